"""Exports, loaded without cocolm_tf and Keras, say what they say with both."""

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_texts import ODD_TEXTS, random_texts

from cocolm_tf.serving.client import find_version

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("bare_client.py")
TEXTS = [
    *(text if isinstance(text, bytes) else text.encode() for text in ODD_TEXTS),
    *random_texts(40, seed=5),
]
# A signature of each model: their others are functions of the same kinds of operations.
QUESTIONS = [
    ("pretrained", "embed_ids", {"token_ids": [[0, *range(4, 20), 2], [0, 7, 8, 2] + [1] * 14]}),
    ("pretrained", "serving_default", {"texts": TEXTS}),
    ("classifier", "classify_pairs", {"first": TEXTS, "second": TEXTS[::-1]}),
    ("answerer", "answer", {"questions": TEXTS[::-1], "contexts": TEXTS}),
    ("tagger", "tag", {"texts": TEXTS}),
]


def encoded(inputs: dict[str, Sequence[Any]]) -> dict[str, list]:
    return {
        name: [base64.b64encode(v).decode() if isinstance(v, bytes) else v for v in values]
        for name, values in inputs.items()
    }


@pytest.fixture(scope="module")
def answers(exports: dict[str, Path], tmp_path_factory: Any) -> list[dict[str, list]]:
    """The answers of a separate process."""
    folder = tmp_path_factory.mktemp("bare")
    asked = [
        (find_version(str(exports[model])), signature, encoded(inputs))
        for model, signature, inputs in QUESTIONS
    ]
    (folder / "questions.json").write_text(json.dumps(asked))
    files = [str(folder / f"{name}.json") for name in ("questions", "answers")]
    subprocess.run([sys.executable, str(PROGRAM), *files], check=True, cwd=folder)
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("number", range(len(QUESTIONS)), ids=lambda n: "-".join(QUESTIONS[n][:2]))
def test_the_answers_are_the_same(answers: list[dict[str, list]], load: Any, number: int):
    model, signature, inputs = QUESTIONS[number]
    signature = "correct" if signature == "serving_default" else signature
    expected = load(model)(signature, **inputs)
    assert answers[number].keys() == expected.keys()
    for name, values in expected.items():
        found = np.array(answers[number][name])
        if values.dtype == object:
            found = np.vectorize(base64.b64decode, otypes=[object])(found)
        assert found.shape == values.shape
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found, values, atol=1e-4)
        else:
            assert (found == values).mean() > 0.99
