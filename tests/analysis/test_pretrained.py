import shutil
from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.analysis.presets import load_pretrained
from cocolm_tf.errors import UserError
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.preset import head_variables, load_preset


def test_everything_that_was_saved_is_loaded(preset: Path, config: PretrainingConfig):
    pretrainer, tokenizer = load_pretrained(str(preset))
    expected = build_pretrainer(config, config.model.vocabulary_size - 1)
    load_preset(expected, str(preset))
    heads, wanted = head_variables(pretrainer), head_variables(expected)
    assert set(heads) == set(wanted)
    for name, head in heads.items():
        assert np.array_equal(head, wanted[name])
    pairs = zip(
        [*pretrainer.backbone.weights, *pretrainer.auxiliary.backbone.weights],
        [*expected.backbone.weights, *expected.auxiliary.backbone.weights],
        strict=True,
    )
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert pretrainer.compute_dtype == "float32"
    assert tokenizer.mask_token_id == pretrainer.mask_token_id


def test_a_preset_without_heads_has_none(preset: Path, tmp_path: Path):
    copied = tmp_path / "preset"
    shutil.copytree(preset, copied)
    (copied / "pretraining_heads.npz").unlink()
    shutil.rmtree(copied / "auxiliary")
    pretrainer, _ = load_pretrained(str(copied))
    assert not (pretrainer.copy_head or pretrainer.lm_head or pretrainer.projection)
    assert pretrainer.auxiliary is None


def test_a_folder_that_is_no_preset_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a preset: it has no config\.json"):
        load_pretrained(str(tmp_path))
