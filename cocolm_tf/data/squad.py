"""Questions on paragraphs: SQuAD 1.1 and 2.0, from their JSON files or from TFDS."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import starmap
from typing import Any, NamedTuple

from cocolm_tf.data.sources import tfds_rows
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import read_text, without_surrogates

TFDS_NAME = "squad/v2.0"


class Answer(NamedTuple):
    """A part of a context."""

    text: str
    start: int  # The character of the context at which it begins


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the paragraph it is asked of, and people's answers."""

    id: str  # Unlike that of any other question
    question: str
    context: str
    answers: tuple[Answer, ...] = ()  # Empty where the context does not answer the question

    @property
    def is_answerable(self) -> bool:
        """Whether the context answers the question."""
        return bool(self.answers)

    @property
    def span(self) -> tuple[int, int] | None:
        """The first answer that is where it claims to be, as characters [start, end), or None."""
        # None for a question without an answer, or with misplaced ones only.
        for text, start in self.answers:
            if text and start >= 0 and self.context.startswith(text, start):
                return start, start + len(text)
        return None

    @property
    def is_misplaced(self) -> bool:
        """Whether there are answers, but none is where it claims to be."""
        return self.is_answerable and self.span is None


def read_squad(path: str) -> list[Question]:
    """Reads a JSON file in the format of SQuAD 1.1 or 2.0; refuses one without any answer."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    return _checked(list(_questions(content, path)), path)


def load_squad_from_tfds(split: str) -> list[Question]:
    """Reads a split of SQuAD 2.0, or a part as `train[:1%]`, from TensorFlow Datasets."""
    # TensorFlow Datasets downloads it if need be.
    questions = []
    for row in tfds_rows(TFDS_NAME, split):
        id, question, context = (row[name].decode() for name in ("id", "question", "context"))
        answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = tuple(Answer(text.decode(), int(start)) for text, start in answers)
        questions.append(Question(id, question, context, answers))
    return _checked(questions, f"{TFDS_NAME} ({split})")


def to_official(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """Questions as the `data` of an official file, which the official evaluation takes."""
    # Questions that follow each other on one context share a paragraph.
    paragraphs: list[dict[str, Any]] = []
    for question in questions:
        if not paragraphs or paragraphs[-1]["context"] != question.context:
            paragraphs.append({"context": question.context, "qas": []})
        answers = [{"text": text, "answer_start": start} for text, start in question.answers]
        paragraphs[-1]["qas"].append(
            {
                "id": question.id,
                "question": question.question,
                "is_impossible": not question.is_answerable,
                "answers": answers,
            }
        )
    return [{"title": "", "paragraphs": paragraphs}]


def _checked(questions: Sequence[Question], name: str) -> Sequence[Question]:
    seen = set()
    for question in questions:
        if question.id in seen:
            raise UserError(f"{name}: there are two questions with the id {question.id!r}.")
        seen.add(question.id)
    if not any(question.is_answerable for question in questions):
        raise UserError(
            f"{name}: none of its {len(questions)} questions has an answer: there is nothing to "
            "learn from and nothing to score against."
        )
    return questions


def _questions(content: Any, path: str) -> Iterator[Question]:
    for article, in_article in _items(content, "data", path):
        for paragraph, in_paragraph in _items(article, "paragraphs", in_article):
            context = _value(paragraph, "context", str, in_paragraph)
            for entry, in_entry in _items(paragraph, "qas", in_paragraph):
                id, question = (_value(entry, key, str, in_entry) for key in ("id", "question"))
                answers = () if entry.get("is_impossible") else _items(entry, "answers", in_entry)
                yield Question(id, question, context, tuple(starmap(_answer, answers)))


def _answer(answer: Any, where: str) -> Answer:
    return Answer(_value(answer, "text", str, where), _value(answer, "answer_start", int, where))


def _items(parent: Any, key: str, where: str) -> Iterator[tuple[Any, str]]:
    """The items of a list, with the place of each for messages."""
    for index, item in enumerate(_value(parent, key, list, where)):
        yield item, f"{where} {key}[{index}]"


def _value(parent: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(parent, dict):
        raise UserError(f"{where} must be an object with {key!r}, not {_kind(parent)}.")
    if key not in parent:
        raise UserError(f"{where} has no {key!r}: SQuAD files have it there.")
    if not isinstance(parent[key], kind) or isinstance(parent[key], bool):
        raise UserError(f"{where} {key} must be {_KINDS[kind]}, not {_kind(parent[key])}.")
    return without_surrogates(parent[key]) if kind is str else parent[key]


_KINDS = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), json.dumps(value))
