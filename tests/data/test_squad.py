import gzip
import json
from pathlib import Path

import pytest

from cocolm_tf.data import squad
from cocolm_tf.data.squad import (
    Answer,
    Question,
    load_squad_from_tfds,
    read_squad,
    to_official,
)
from cocolm_tf.errors import UserError

CONTEXT = "The cät sat. 😀 The dog ran."
GOOD = {
    "id": "1",
    "question": "Who sat?",
    "answers": [{"text": "The cät", "answer_start": 0}, {"text": "cät", "answer_start": 4}],
}
IMPOSSIBLE = {"id": "2", "question": "Who flew?", "is_impossible": True, "answers": []}


def write(folder: Path, content: object) -> str:
    path = folder / "squad.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def of(*entries: object) -> dict:
    return {"version": "v2.0", "data": [{"paragraphs": [{"context": CONTEXT, "qas": entries}]}]}


def test_reads_both_versions(tmp_path: Path):
    impossible = IMPOSSIBLE | {"plausible_answers": [{"text": "cät", "answer_start": 4}]}
    questions = read_squad(write(tmp_path, of(GOOD, impossible)))
    answers = (Answer("The cät", 0), Answer("cät", 4))
    assert questions == [
        Question("1", "Who sat?", CONTEXT, answers),
        Question("2", "Who flew?", CONTEXT),
    ]
    assert [question.is_answerable for question in questions] == [True, False]
    assert [question.span for question in questions] == [(0, 7), None]


@pytest.mark.parametrize(
    ("answers", "span"),
    [
        ([("dog", 19)], (19, 22)),  # the emoji is one character
        ([("dog", 22), ("dog", 19)], (19, 22)),
        ([("dog", 22)], None),
        ([("ran.", 400)], None),
        ([("ran.", -4)], None),
        ([("", 0)], None),
    ],
)
def test_an_answer_counts_where_it_is(answers: list[tuple[str, int]], span: tuple[int, int] | None):
    question = Question("1", "?", CONTEXT, tuple(Answer(*answer) for answer in answers))
    assert question.span == span
    assert question.is_misplaced == (span is None)


def test_official_form_round_trip(tmp_path: Path):
    questions = [
        Question("1", "Who?", "a b", (Answer("a", 0),)),
        Question("2", "When?", "a b"),
        Question("3", "Where?", "c d", (Answer("c", 0), Answer("d", 2))),
    ]
    official = to_official(questions)
    assert [len(paragraph["qas"]) for paragraph in official[0]["paragraphs"]] == [2, 1]
    assert read_squad(write(tmp_path, {"data": official})) == questions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be an object with 'data', not a list"),
        ({"data": {}}, "data must be a list, not an object"),
        ({"version": "v2.0"}, "has no 'data'"),
        ({"data": [3]}, "data[0] must be an object with 'paragraphs', not an integer"),
        ({"data": [{}]}, "data[0] has no 'paragraphs'"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "paragraphs[0] has no 'context'"),
        (of(GOOD, {"id": "2", "question": "?"}), "qas[1] has no 'answers'"),
        (of({"id": 1, "question": "?"}), "qas[0] id must be a string, not an integer"),
        (of(GOOD | {"answers": [{"text": "a"}]}), "answers[0] has no 'answer_start'"),
        (of(GOOD | {"answers": [{"text": "a", "answer_start": "0"}]}), "must be an integer"),
        (of(GOOD, GOOD), "two questions with the id '1'"),
        (of(IMPOSSIBLE), "none of its 1 questions has an answer"),
        ({"data": []}, "none of its 0 questions has an answer"),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, content: object, message: str):
    path = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_squad(path)
    assert str(error.value).startswith(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_reads_marked_and_compressed_files(tmp_path: Path, encoding: str):
    content = json.dumps(of(GOOD), ensure_ascii=False).encode(encoding)
    (tmp_path / "squad.json.gz").write_bytes(gzip.compress(content))
    (question,) = read_squad(str(tmp_path / "squad.json.gz"))
    assert question.context == CONTEXT


@pytest.mark.parametrize("content", [b'{"data": [', b"", b"\xff\xfe", b"[" * 100_000])
def test_names_a_file_that_is_not_json(tmp_path: Path, content: bytes):
    path = tmp_path / "squad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"squad\.json is not JSON"):
        read_squad(str(path))


def test_names_a_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"squad\.json: No such file"):
        read_squad(str(tmp_path / "squad.json"))


def test_reads_tfds(monkeypatch: pytest.MonkeyPatch):
    examples = [
        {
            "id": b"1",
            "question": b"Who sat?",
            "context": CONTEXT.encode(),
            "answers": {"text": ["cät".encode()], "answer_start": [4]},
        },
        {
            "id": b"2",
            "question": b"Who flew?",
            "context": CONTEXT.encode(),
            "answers": {"text": [], "answer_start": []},
        },
    ]

    asked = []
    monkeypatch.setattr(squad, "tfds_rows", lambda *names: asked.append(names) or examples)
    questions = load_squad_from_tfds("validation")
    assert asked == [("squad/v2.0", "validation")]
    assert [question.span for question in questions] == [(4, 7), None]
