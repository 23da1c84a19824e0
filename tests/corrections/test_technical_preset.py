"""The model that comes with the project: presets/english-technical."""

import os
from pathlib import Path

from cocolm_tf.corrections.evaluation import predict_corrections

PRESET = Path(__file__).parents[2] / "presets" / "english-technical"


def test_it_corrects_the_example_of_the_readme_and_leaves_good_text_alone():
    text = "The functon return an list of all the the names wich are used by there parent class."
    good = "The function returns a list of all the names which are used by their parent class."
    words, of_good = predict_corrections(str(PRESET), [text, good])
    assert of_good.edits(good, threshold=0.5) == []
    found = [(text[e.start : e.end], e.correction) for e in words.edits(text, threshold=0.5)]
    assert found == [
        ("functon", "function"),
        ("an", "a"),
        (" the", ""),
        ("wich", "which"),
        ("there", "their"),
    ]


def test_it_is_as_small_as_its_card_says():
    files = [Path(folder, name) for folder, _, names in os.walk(PRESET) for name in names]
    assert sum(file.stat().st_size for file in files) < 12e6
