"""Small sets of SuperGLUE in the official layout, for the tests of reading and of fine-tuning."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MULTIRC = {
    "idx": 7,
    "version": 1.1,
    "passage": {
        "text": "a cat saw a dog",
        "questions": [
            {
                "question": "Who saw?",
                "idx": 4,
                "answers": [
                    {"text": "a cat", "idx": 10, "label": 1},
                    {"text": "a dog", "idx": 11, "label": 0},
                ],
            },
            {"question": "Where?", "idx": 5, "answers": [{"text": "here", "idx": 12, "label": 0}]},
        ],
    },
}
_RECORD = {
    "idx": 3,
    "source": "x",
    "passage": {
        "text": "Ada met Bo Li\n@highlight\nBo smiled",
        "entities": [
            {"start": 0, "end": 2},
            {"start": 8, "end": 12},
            {"start": 8, "end": 9},
            {"start": 25, "end": 26},
        ],
    },
    "qas": [
        {
            "idx": 20,
            "query": "@placeholder was met",
            "answers": [
                {"start": 8, "end": 12, "text": "Bo Li"},
                {"start": 25, "end": 26, "text": "Bo"},
            ],
        },
        {
            "idx": 21,
            "query": "It was @placeholder",
            "answers": [{"start": 0, "end": 2, "text": "Ada"}],
        },
    ],
}
ROWS: Mapping[str, Sequence[dict[str, Any]]] = {
    "BoolQ": [
        {"question": "is it", "passage": "it is", "idx": 0, "label": True},
        {"question": "is he", "passage": "she is", "idx": 1, "label": False},
    ],
    "CB": [
        {"premise": "a cat", "hypothesis": "an animal", "idx": 0, "label": "entailment"},
        {"premise": "a dog", "hypothesis": "a cat", "idx": 1, "label": "contradiction"},
        {"premise": "a dog", "hypothesis": "rain", "idx": 2, "label": "neutral"},
    ],
    "COPA": [
        {
            "premise": "The hill was red.",
            "choice1": "the cat sang",
            "choice2": "the bird saw it",
            "question": question,
            "idx": number,
            "label": number % 2,
        }
        for number, question in enumerate(("cause", "effect", "cause"))
    ],
    "MultiRC": [_MULTIRC],
    "ReCoRD": [_RECORD],
    "RTE": [
        {"premise": "a cat sat", "hypothesis": "it sat", "idx": 0, "label": "entailment"},
        {"premise": "a dog", "hypothesis": "rain", "idx": 1, "label": "not_entailment"},
    ],
    "WiC": [
        {
            "word": "saw",
            "sentence1": "a cat saw it",
            "sentence2": "the saw is red",
            "start1": 6,
            "end1": 9,
            "start2": 4,
            "end2": 7,
            "idx": 0,
            "label": False,
            "version": 1.1,
        }
    ],
    "WSC": [
        {
            "text": "Ada told Bo that she, too, saw it.",
            "target": {
                "span1_index": 0,
                "span1_text": "Ada",
                "span2_index": 3,
                "span2_text": "she",
            },
            "idx": 0,
            "label": True,
        }
    ],
}


def without_labels(row: Any) -> Any:
    """A row as it is in a test set."""
    if isinstance(row, list):
        return [without_labels(one) for one in row]
    if not isinstance(row, dict):
        return row
    return {key: without_labels(v) for key, v in row.items() if key not in ("label", "answers")} | (
        {"answers": [without_labels(one) for one in row["answers"]]}
        if row.get("answers") and "start" not in row["answers"][0]
        else {}
    )


def write_superglue(folder: Path, repeat: int = 1) -> str:
    """Writes all tasks into a folder; each training set has its rows so many times."""
    for title, rows in ROWS.items():
        (folder / title).mkdir(parents=True)
        tests = [without_labels(row) for row in rows]
        for name, content in (("train", [*rows] * repeat), ("val", rows), ("test", tests)):
            lines = "".join(json.dumps(row) + "\n" for row in content)
            (folder / title / f"{name}.jsonl").write_text(lines)
    (folder / "AX-b").mkdir()
    row = {"sentence1": "a cat", "sentence2": "a dog", "idx": 0, "label": "entailment"}
    (folder / "AX-b" / "AX-b.jsonl").write_text(json.dumps(row) + "\n")
    return str(folder)
