import shutil
from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.analysis.runs import measure_run
from cocolm_tf.data.build import build_shards
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import train_vocabulary

TEXTS = [
    "the cat sat on a mat and dog ran to its house",
    "it was cold outside again when the dog sat on its mat and the cat ran",
    "a dog and a cat ran outside to the cold house again and again when it was on",
]


def shards(vocabulary: Path, folder: Path) -> str:
    build_shards(TEXTS * 4, str(vocabulary), 16, 2, 0, str(folder))
    return str(folder)


def test_a_run_is_measured_on_shards_of_its_vocabulary(finished_run: Path, tmp_path: Path):
    data = shards(finished_run / "preset", tmp_path / "data")
    measures = measure_run(str(finished_run), data, batches=3, batch_size=2)
    logged = {"mlm_loss", "copy_loss", "lm_loss", "scl_loss", "positive_cosine", "negative_cosine"}
    assert logged <= set(measures)
    assert all(np.isfinite(list(measures.values())))
    assert -1 <= measures["negative_cosine"] <= 1
    # The same data, masks and samples every time.
    assert measure_run(str(finished_run), data, batches=3, batch_size=2) == measures


def test_cosines_are_measured_without_contrastive_learning_too(finished_run: Path, tmp_path: Path):
    data = shards(finished_run / "preset", tmp_path / "data")
    config = finished_run / "config.yaml"
    config.write_text(config.read_text().replace("scl_weight: 1.0", "scl_weight: 0.0"))
    measures = measure_run(str(finished_run), data, batches=2, batch_size=2)
    assert {"positive_cosine", "negative_cosine"} <= set(measures)


def test_shards_of_another_vocabulary_are_named(finished_run: Path, tmp_path: Path):
    train_vocabulary([" ".join(TEXTS) * 9], 60, tmp_path / "other")
    data = shards(tmp_path / "other", tmp_path / "data")
    with pytest.raises(UserError, match=r"--data=.* was built with another vocabulary"):
        measure_run(str(finished_run), data)


def test_an_unfinished_run_is_named(finished_run: Path, tmp_path: Path):
    data = shards(finished_run / "preset", tmp_path / "data")
    shutil.rmtree(finished_run / "preset")
    with pytest.raises(UserError, match="has no preset yet"):
        measure_run(str(finished_run), data)
