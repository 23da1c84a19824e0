import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocolm_tf import UserError
from cocolm_tf.serving.client import UNFINISHED, Export, answer_file

TEXTS = ["The cat sat on it.", "", "“The” others", "\x00", "It's 30.5%", "the " * 30, "a"]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [
        text if number % 2 else {"texts": text, "id": number} for number, text in enumerate(TEXTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_line_is_answered_as_it_is_alone(export: Export, texts: Path, tmp_path: Path):
    output = tmp_path / "words.jsonl"
    assert answer_file(export, "correct", str(texts), str(output), batch_size=3) == len(TEXTS)
    for number, (text, row) in enumerate(zip(TEXTS, lines(output), strict=True)):
        alone = export("correct", texts=[text])
        count = int(alone["num_words"][0])
        assert row["words"] == [word.decode() for word in alone["words"][0, :count]]
        np.testing.assert_allclose(
            row["probabilities"], alone["probabilities"][0, :count], atol=1e-5
        )
        assert len(row["corrections"]) == count
        assert row["truncated"] is bool(alone["truncated"][0])
        assert row.get("id") == (None if number % 2 else number)
    assert sorted(tmp_path.iterdir()) == [texts, output]


def test_what_was_ended_resumes(
    export: Export, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "vectors.jsonl"
    arguments = (export, "embed", str(texts))
    answer_file(*arguments, str(whole), batch_size=2)
    asked = 0

    def killed(self: Export, signature: str, **inputs: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt
        return answers(self, signature, **inputs)

    answers = Export.answers
    monkeypatch.setattr(Export, "answers", killed)
    with pytest.raises(KeyboardInterrupt):
        answer_file(*arguments, str(output), batch_size=2)
    assert not output.exists()
    partial = tmp_path / f"vectors.jsonl{UNFINISHED}"
    assert len(lines(partial)) == 4
    with pytest.raises(UserError, match="was begun with signature embed, and this is correct"):
        answer_file(export, "correct", str(texts), str(output))
    with partial.open("a") as file:
        file.write('{"half": "of a li')
    asked = 10
    assert answer_file(*arguments, str(output), batch_size=2) == len(TEXTS)
    assert asked == 12
    assert output.read_bytes() == whole.read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("", "line 2: not JSON"),
        ("5", r"line 2: embed takes a string, or an object with the text\(s\) 'texts'"),
        ('{"text": "a"}', "line 2: embed takes a string, or an object"),
    ],
)
def test_a_line_that_is_no_question_is_named(
    export: Export, tmp_path: Path, line: str, message: str
):
    path = tmp_path / "texts.jsonl"
    path.write_text(f'"a"\n{line}\n')
    with pytest.raises(UserError, match=f"{path}, {message}"):
        answer_file(export, "embed", str(path), str(tmp_path / "out"))


def test_what_is_there_stays(export: Export, texts: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--output=.* is there already"):
        answer_file(export, "embed", str(texts), str(texts))
    with pytest.raises(UserError, match="--input=.*nothing is not a file"):
        answer_file(export, "embed", str(tmp_path / "nothing"), str(tmp_path / "out"))
