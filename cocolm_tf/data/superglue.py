"""The tasks of SuperGLUE, from their official JSON lines or from TensorFlow Datasets.

Every task becomes the classification of texts or pairs, so that one model serves all. Where a
question has several candidates, each is a row with the label right or wrong, and the rows of a
question are a group. How COPA, WiC, WSC and ReCoRD are written as texts is ours: no paper on
COCO-LM has settings or inputs for them.
"""

import collections
import dataclasses
import json
import operator
import os
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cocolm_tf import files
from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.glue import task_path
from cocolm_tf.data.sources import tfds_rows
from cocolm_tf.data.tables import json_objects
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import text_lines, without_surrogates

TFDS_NAME = "super_glue"

Row = Mapping[str, Any]
"""A row with the official names of its fields. Those of MultiRC and ReCoRD are an answer's and a
query's; `idx` is a number, or a dict of numbers."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a set, apart from their texts."""

    # The official `idx` of each, with `answer` or `choice` in it where rows are candidates.
    ids: Sequence[Any]
    # [N] int, the question that each row is a candidate of, numbered in their order; each row by
    # itself where there are no candidates.
    groups: np.ndarray
    # The text of each row's candidate; empty where it is not needed.
    candidates: Sequence[str] = ()
    # For each question its right answers; empty where they are not needed.
    references: Sequence[Sequence[str]] = ()

    @property
    def num_groups(self) -> int:
        """How many questions there are."""
        return int(self.groups.max(initial=-1)) + 1


@dataclasses.dataclass(frozen=True)
class SuperGlueData(TaskData):
    """All examples of a task of SuperGLUE."""

    key: str = ""  # One of `SUPERGLUE_TASKS`
    # The rows of `train`, of each dev and of each test set.
    rows: Mapping[str, Rows] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SuperGlueTask:
    """One task, as its files are."""

    title: str  # The name of its folder, and of its file on the leaderboard
    fields: tuple[str, ...]  # The fields that a row must have, its label aside
    texts: Callable[[Row], tuple[str, ...]]  # Makes the one or two texts of a row
    label_names: tuple[str, ...] = ("False", "True")  # The classes in order, as TFDS has them
    metrics: tuple[str, ...] = ("accuracy",)  # The first is the one to choose by
    chooses: bool = False  # Whether exactly one of a question's candidates is chosen
    # Other test sets that its model predicts: of each the folder and name on the leaderboard, the
    # configuration in TFDS, and the row's fields in the order of this task's own.
    extra_tests: Mapping[str, tuple[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    tfds: str | None = None  # Its configuration in TFDS; None for its key


def _copa(row: Row) -> tuple[str, ...]:
    link = {"cause": "because", "effect": "so"}[row["question"]]
    return row["premise"], f"{link} {row['choice']}"


def _wic(row: Row) -> tuple[str, ...]:
    def marked(text: str, start: int, end: int) -> str:
        return f"{text[:start]}* {text[start:end]} *{text[end:]}"

    return tuple(marked(row[f"sentence{n}"], row[f"start{n}"], row[f"end{n}"]) for n in (1, 2))


def _wsc(row: Row) -> tuple[str, ...]:
    # The indices count words that white space separates, and some are one off.
    words = row["text"].split(" ")
    pronoun, place = row["span2_text"], row["span2_index"]
    near = sorted(range(len(words)), key=lambda at: abs(at - place))
    bare = [word.strip(string.punctuation).lower() for word in words]
    at = next((at for at in near[:5] if bare[at] == pronoun.lower()), min(place, len(words) - 1))
    words[at] = f"* {words[at]} *"
    return " ".join(words), row["span1_text"]


def _multirc(row: Row) -> tuple[str, ...]:
    return row["paragraph"], f"{row['question']} {row['answer']}"


def _record(row: Row) -> tuple[str, ...]:
    passage = re.sub(r"\s*@highlight\s*", " ", row["passage"]).strip()
    return passage, row["query"].replace("@placeholder", row["entity"])


_RIGHT = ("wrong", "right")
_PAIR = ("premise", "hypothesis")

SUPERGLUE_TASKS = {
    "boolq": SuperGlueTask(
        "BoolQ", ("question", "passage"), operator.itemgetter("question", "passage")
    ),
    "cb": SuperGlueTask(
        "CB",
        _PAIR,
        operator.itemgetter(*_PAIR),
        ("entailment", "contradiction", "neutral"),
        ("macro_f1", "accuracy"),
    ),
    "copa": SuperGlueTask(
        "COPA", ("premise", "choice1", "choice2", "question"), _copa, _RIGHT, chooses=True
    ),
    "multirc": SuperGlueTask(
        "MultiRC", ("paragraph", "question", "answer"), _multirc, _RIGHT, ("f1a", "em")
    ),
    "record": SuperGlueTask(
        "ReCoRD", ("passage", "query", "entities"), _record, _RIGHT, ("f1", "em"), chooses=True
    ),
    "rte": SuperGlueTask(
        "RTE",
        _PAIR,
        operator.itemgetter(*_PAIR),
        ("entailment", "not_entailment"),
        extra_tests={"AX-b": ("axb", ("sentence1", "sentence2")), "AX-g": ("axg", _PAIR)},
    ),
    "wic": SuperGlueTask(
        "WiC", ("word", "sentence1", "sentence2", "start1", "start2", "end1", "end2"), _wic
    ),
    "wsc": SuperGlueTask(
        "WSC", ("text", "span1_text", "span2_text", "span2_index"), _wsc, tfds="wsc.fixed"
    ),
}


def read_superglue(task: str, data_dir: str | None = None) -> SuperGlueData:
    """Reads a task of SuperGLUE from its JSON lines, or from TFDS without a `data_dir`."""
    # The folder has `BoolQ/train.jsonl` and so on, or is the task's own. TensorFlow Datasets
    # downloads missing data. Missing test files are no test sets.
    if task not in SUPERGLUE_TASKS:
        raise UserError(f"--task is one of {', '.join(SUPERGLUE_TASKS)}, not {task!r}.")
    known = SUPERGLUE_TASKS[task]
    parts, rows = {}, {}
    for one in _sets(task):
        is_labeled = one.name in ("train", "dev")
        if not data_dir:
            source, found = _rows_of_tfds(one.config, one.split)
        elif files.is_file(source := task_path(data_dir, one.title, one.file)):
            found = _rows_of_file(source, task)
        elif is_labeled:
            raise UserError(
                f"--data_dir={data_dir} has no {os.path.join(one.title, one.file)}: it is the "
                "folder that SuperGLUE's own folders lie in."
            )
        else:
            continue
        if one.title in known.extra_tests:
            _, names = known.extra_tests[one.title]
            for _, row in found:
                row.update(zip(_PAIR, map(row.get, names), strict=True))
        parts[one.name], rows[one.name] = _examples(task, source, found, is_labeled)
    return SuperGlueData(
        f"{known.title} (SuperGLUE)" if known.title == "RTE" else known.title,
        known.label_names,
        parts.pop("train"),
        {"dev": parts.pop("dev")},
        parts,
        metrics=known.metrics,
        key=task,
        rows=rows,
    )


def superglue_files(task: str, data_dir: str | None = None) -> list[str]:
    """The paths that `read_superglue` reads, those included that may be missing."""
    if not data_dir:
        return []
    return [task_path(data_dir, one.title, one.file) for one in _sets(task)]


class _Set(NamedTuple):
    name: str
    title: str  # of its folder
    file: str
    config: str  # of TFDS
    split: str  # of TFDS


def _sets(task: str) -> list[_Set]:
    known = SUPERGLUE_TASKS[task]
    title, config = known.title, known.tfds or task
    return [
        _Set("train", title, "train.jsonl", config, "train"),
        _Set("dev", title, "val.jsonl", config, "validation"),
        _Set(title, title, "test.jsonl", config, "test"),
        *(
            _Set(extra, extra, f"{extra}.jsonl", config, "test")
            for extra, (config, _) in known.extra_tests.items()
        ),
    ]


def leaderboard_lines(key: str, rows: Rows, predictions: np.ndarray) -> Iterator[str]:
    """The predictions [N] of a test set as the leaderboard takes them, a JSON object a line."""
    # `key` is the task's. A prediction is the class of a row; in tasks that choose, 1 for the
    # chosen candidate.
    known = SUPERGLUE_TASKS[key]
    if key == "multirc":
        paragraphs: dict[int, dict[int, list]] = {}
        for id, prediction in zip(rows.ids, predictions.tolist(), strict=True):
            questions = paragraphs.setdefault(id["paragraph"], {})
            answers = questions.setdefault(id["question"], [])
            answers.append({"idx": id["answer"], "label": int(prediction)})
        for paragraph, questions in paragraphs.items():
            found = [{"idx": idx, "answers": answers} for idx, answers in questions.items()]
            yield _line({"idx": paragraph, "passage": {"questions": found}})
        return
    for at in np.flatnonzero(predictions) if known.chooses else range(len(predictions)):
        id = rows.ids[at]
        if key == "copa":
            label = id["choice"]
        elif key == "record":
            label = rows.candidates[at]
        elif key in ("boolq", "wic"):
            label = known.label_names[predictions[at]].lower()
        else:
            label = known.label_names[predictions[at]]
        yield _line({"idx": id["query"] if key == "record" else _number(id), "label": label})


def chosen(rows: Rows, scores: np.ndarray) -> np.ndarray:
    """[N] int32: 1 for the candidate of each question that scores highest, the first of several."""
    order = np.lexsort((np.arange(len(scores)), -scores, rows.groups))
    is_best = np.diff(rows.groups[order], prepend=-1) != 0
    predictions = np.zeros(len(scores), np.int32)
    predictions[order[is_best]] = 1
    return predictions


def superglue_scores(
    data: SuperGlueData, part: str, labels: np.ndarray, predictions: np.ndarray
) -> dict[str, float]:
    """Scores the predictions [N] for a set, a key of `data.rows`, by the metrics of the task."""
    # Labels and predictions are classes; see `leaderboard_lines`. `accuracy` is that of questions
    # where candidates are chosen; `macro_f1` is CB's; `f1a` is MultiRC's F1 over all answers, and
    # its `em` the share of questions whose answers are all labeled right; ReCoRD's `f1` and `em`
    # compare the chosen entity's words with those of the best reference, as SQuAD's evaluation
    # does.
    from sklearn import metrics

    rows = data.rows[part]
    if data.key == "multirc":
        is_wrong = np.bincount(rows.groups, labels != predictions, rows.num_groups) > 0
        f1a = metrics.f1_score(labels, predictions, zero_division=0.0)
        return {"f1a": float(f1a), "em": float(1 - is_wrong.mean())}
    if data.key == "record":
        found = [rows.candidates[at] for at in np.flatnonzero(predictions)]
        pairs = [
            [_overlap(answer, reference) for reference in references] or [(0.0, 0.0)]
            for answer, references in zip(found, rows.references, strict=True)
        ]
        f1, em = np.mean([np.max(pair, axis=0) for pair in pairs], axis=0)
        return {"f1": float(f1), "em": float(em)}
    if data.key == "copa":
        is_chosen = predictions == 1
        return {"accuracy": float(labels[is_chosen].mean())}
    scores = {"accuracy": float(metrics.accuracy_score(labels, predictions))}
    if "macro_f1" in data.metrics:
        scores["macro_f1"] = float(
            metrics.f1_score(labels, predictions, average="macro", zero_division=0.0)
        )
    return scores


def _overlap(answer: str, reference: str) -> tuple[float, float]:
    """F1 of words and exact match, both as SQuAD's evaluation has them."""
    first, second = _plain(answer), _plain(reference)
    same = sum((collections.Counter(first) & collections.Counter(second)).values())
    f1 = 2 * same / (len(first) + len(second)) if same else 0.0
    return f1, float(first == second)


def _plain(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


# A row with its line, or its place in TFDS.
_Found = list[tuple[int, dict[str, Any]]]


def _rows_of_file(path: str, task: str) -> _Found:
    found = []
    for number, row in json_objects(text_lines(path)):
        if isinstance(row, str):
            raise UserError(f"{path}:{number} {row}.")
        try:
            found += [(number, flat) for flat in _flat_rows(row, task)] if row is not None else []
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            title = SUPERGLUE_TASKS[task].title
            raise UserError(f"{path}:{number} lacks or misplaces {error} of {title}.") from error
    if not found:
        raise UserError(f"{path} has no rows.")
    return found


def _rows_of_tfds(config: str, split: str) -> tuple[str, _Found]:
    """The name of a set in TFDS and its rows, in Python's types."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, np.ndarray):
            return [plain(one) for one in value.tolist()]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return value.item() if isinstance(value, np.generic) else value

    def order(row: dict[str, Any]) -> tuple[int, ...]:
        idx = row["idx"] if isinstance(row["idx"], dict) else {"query": row["idx"]}
        names = ("passage", "paragraph", "query", "question", "answer")
        return tuple(idx[name] for name in names if name in idx)

    name = f"{TFDS_NAME}/{config}"
    # TFDS shuffles the rows when it writes them.
    rows = sorted(map(plain, tfds_rows(name, split)), key=order)
    return f"{name} ({split})", [*enumerate(rows)]


def _flat_rows(row: dict[str, Any], task: str) -> Iterator[dict[str, Any]]:
    """The official row with the fields of TFDS."""
    if task == "multirc":
        passage = row["passage"]
        for question in passage["questions"]:
            for answer in question["answers"]:
                yield {
                    "paragraph": passage["text"],
                    "question": question["question"],
                    "answer": answer["text"],
                    "idx": {
                        "paragraph": row["idx"],
                        "question": question["idx"],
                        "answer": answer["idx"],
                    },
                    "label": answer.get("label"),
                }
    elif task == "record":
        text, places = row["passage"]["text"], row["passage"]["entities"]
        for query in row["qas"]:
            yield {
                "passage": text,
                "query": query["query"],
                # The end is the index of the last character.
                "entities": [text[place["start"] : place["end"] + 1] for place in places],
                "answers": [answer["text"] for answer in query.get("answers", ())],
                "idx": {"passage": row["idx"], "query": query["idx"]},
            }
    elif task == "wsc":
        yield {**row, **row["target"]}
    else:
        yield row


def _examples(task: str, source: str, found: _Found, is_labeled: bool) -> tuple[Examples, Rows]:
    """Makes the examples of a set, candidate by candidate."""
    known = SUPERGLUE_TASKS[task]
    texts, labels, ids, groups, candidates, references = [], [], [], [], [], []
    questions: dict[Any, int] = {}
    for line, row in found:
        for name in known.fields:
            is_number = re.fullmatch(r"(start|end)\d|span2_index", name)
            kind = int if is_number else list if name == "entities" else str
            if not isinstance(row.get(name), kind):
                raise UserError(f"{source}:{line} has in {name!r} no {kind.__name__}.")
        try:
            for question, candidate in _candidates(task, row):
                # Rows that are no candidates are questions of their own.
                key = len(ids) if question is None else question
                groups.append(questions.setdefault(key, len(questions)))
                labels.append(_label(known, candidate) if is_labeled else 0)
                texts.append(tuple(map(without_surrogates, known.texts(candidate))))
                ids.append(candidate["idx"])
                if task == "record":
                    candidates.append(candidate["entity"])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{source}:{line} has what is wrong for {known.title}: {error}."
            ) from error
        if task == "record":
            references.append(row["answers"])
    first, second = map(list, zip(*texts, strict=True))
    examples = Examples(first, second, np.int32(labels) if is_labeled else None, source)
    return examples, Rows(ids, np.array(groups), candidates, references)


def _candidates(task: str, row: Row) -> Iterator[tuple[Any, Row]]:
    """The candidates in a row, with the question that each is of; None for the row's own."""
    idx = row["idx"]
    if task == "copa":
        number, label = _number(idx), row.get("label")
        for choice in (0, 1):
            yield (
                number,
                {
                    **row,
                    "choice": row[f"choice{choice + 1}"],
                    "label": None if label is None else int(label == choice),
                    "idx": {"idx": number, "choice": choice},
                },
            )
    elif task == "record":
        if not row["entities"]:
            raise ValueError("it has no entities")
        for entity in dict.fromkeys(row["entities"]):
            candidate = {**row, "entity": entity, "label": int(entity in row["answers"])}
            yield (idx["passage"], idx["query"]), candidate
    else:
        question = (idx["paragraph"], idx["question"]) if task == "multirc" else None
        yield question, row


def _label(known: SuperGlueTask, row: Row) -> int:
    label = row.get("label")
    names = {name.lower(): number for number, name in enumerate(known.label_names)}
    if isinstance(label, str | bool) and str(label).lower() in names:
        return names[str(label).lower()]
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise ValueError(f"the label {label!r}, none of {', '.join(known.label_names)}")


def _number(idx: Any) -> int:
    return int(idx["idx"]) if isinstance(idx, dict) else int(idx)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
