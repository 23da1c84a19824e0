import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from programs import run_python

from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.preset import (
    HEADS_FILENAME,
    head_variables,
    load_frozen_auxiliary,
    load_preset,
    save_preset,
)

HEADS = {
    "copy_head.kernel",
    "lm_head.bias",
    "masked_lm_head.bias",
    *(
        f"{head}.dense.{part}"
        for head in ("projection", "masked_lm_head")
        for part in ("kernel", "bias")
    ),
    *(
        f"{head}.norm.{part}"
        for head in ("projection", "masked_lm_head")
        for part in ("gamma", "beta")
    ),
}


@pytest.fixture
def build(tiny):
    """Makes a pretrainer whose weights are all their own."""

    def build(seed: int = 0, **changes):
        pretrainer = build_pretrainer(tiny(**changes), mask_token_id=59)
        rng = np.random.default_rng(seed)
        for variable in pretrainer.trainable_variables:
            variable.assign(rng.normal(size=variable.shape))
        return pretrainer

    return build


@pytest.fixture
def preset(build, corpus, tmp_path: Path) -> str:
    directory = str(tmp_path / "preset")
    save_preset(build(seed=1), load_vocabulary(corpus.vocabulary), directory)
    return directory


def assert_equal(model, other) -> None:
    for one, two in zip(model.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)


def inputs() -> dict[str, np.ndarray]:
    token_ids = np.random.default_rng(3).integers(3, 59, [2, 12]).astype(np.int32)
    return {"token_ids": token_ids, "padding_mask": np.arange(12) < np.int32([[12], [7]])}


def test_all_that_was_pretrained_comes_back(build, preset: str):
    loaded = build(seed=2)
    assert load_preset(loaded, preset) == []
    assert_equal(loaded, build(seed=1))
    assert set(head_variables(loaded)) == HEADS


def test_the_shared_embedding_stays_shared(build, preset: str):
    loaded = build(seed=2)
    load_preset(loaded, preset)
    main, auxiliary = loaded.backbone, loaded.auxiliary.backbone
    assert auxiliary.token_embedding is main.token_embedding
    main.token_embedding.embeddings.assign_add(
        np.random.default_rng(0).normal(size=main.token_embedding.embeddings.shape)
    )
    before = build(seed=1).auxiliary.backbone(inputs())
    assert not np.allclose(auxiliary(inputs()), before)


@pytest.mark.slow
def test_another_process_reads_it(build, preset: str, tmp_path: Path):
    np.savez(tmp_path / "inputs.npz", **inputs())
    program = f"""
import numpy as np, cocolm_tf
inputs = dict(np.load({str(tmp_path / "inputs.npz")!r}))
backbone = cocolm_tf.CocoLMBackbone.from_preset({preset!r})
auxiliary = cocolm_tf.CocoLMBackbone.from_preset({preset + "/auxiliary"!r})
tokenizer = cocolm_tf.CocoLMTokenizer.from_preset({preset!r})
np.savez({str(tmp_path / "outputs.npz")!r}, main=backbone(inputs), auxiliary=auxiliary(inputs),
         ids=tokenizer("A cat saw the house."), fingerprint=tokenizer.fingerprint())
"""
    run_python(program)
    found = np.load(tmp_path / "outputs.npz")
    model, tokenizer = build(seed=1), load_vocabulary(preset)
    np.testing.assert_allclose(found["main"], model.backbone(inputs()), atol=1e-5)
    np.testing.assert_allclose(found["auxiliary"], model.auxiliary.backbone(inputs()), atol=1e-5)
    np.testing.assert_array_equal(found["ids"], tokenizer("A cat saw the house."))
    assert str(found["fingerprint"]) == tokenizer.fingerprint()


def test_the_backbone_is_kerashubs(build, preset: str):
    loaded = CocoLMBackbone.from_preset(preset)
    assert_equal(loaded, build(seed=1).backbone)


def test_saving_replaces_the_whole_preset(build, preset: str, corpus):
    tokenizer = load_vocabulary(corpus.vocabulary)
    save_preset(build(seed=3, auxiliary={"replacements": "random"}), tokenizer, preset)
    assert not Path(preset, "auxiliary").exists()
    assert [path.name for path in Path(preset).parent.iterdir()] == ["preset"]
    loaded = build(seed=4)
    load_preset(loaded, preset)
    assert_equal(loaded.backbone, build(seed=3, auxiliary={"replacements": "random"}).backbone)


def test_leftovers_of_a_killed_save_do_no_harm(build, preset: str, corpus):
    unfinished = Path(preset).with_name(".preset.tmp")
    (unfinished / "new").mkdir(parents=True)
    (unfinished / "new" / "left").write_text("over")
    save_preset(build(seed=3), load_vocabulary(corpus.vocabulary), preset + "/")
    assert not Path(preset, "left").exists()
    assert not unfinished.exists()


def test_a_failed_save_leaves_the_preset_that_was_there(build, preset: str):
    class Full:
        def save_to_preset(self, directory: str) -> None:
            raise OSError(errno.ENOSPC, "", directory)

    with pytest.raises(OSError):
        save_preset(build(seed=3), Full(), preset)
    assert [path.name for path in Path(preset).parent.iterdir()] == ["preset"]
    assert_equal(CocoLMBackbone.from_preset(preset), build(seed=1).backbone)


@pytest.mark.parametrize("part", ["backbone", "head"])
def test_a_preset_with_weights_that_are_no_numbers_is_refused(
    build, preset: str, corpus, part: str
):
    ruined = build(seed=1)
    variable = ruined.lm_head.bias if part == "head" else ruined.backbone.weights[-1]
    variable.assign(np.full(variable.shape, np.nan))
    save_preset(ruined, load_vocabulary(corpus.vocabulary), preset)
    with pytest.raises(UserError, match=f"{preset}.* has values that are NaN or infinite"):
        load_preset(build(seed=2), preset)


def test_a_preset_without_heads_and_auxiliary_starts_the_main_model(build, preset: str):
    """As other projects' checkpoints are."""
    shutil.rmtree(Path(preset, "auxiliary"))
    Path(preset, HEADS_FILENAME).unlink()
    loaded, fresh = build(seed=2), build(seed=2)
    assert set(load_preset(loaded, preset)) == {"auxiliary"} | HEADS
    assert_equal(loaded.backbone, build(seed=1).backbone)
    for name, head in head_variables(loaded).items():
        np.testing.assert_array_equal(head, head_variables(fresh)[name])
    for block, other in zip(
        loaded.auxiliary.backbone.blocks, fresh.auxiliary.backbone.blocks, strict=True
    ):
        assert_equal(block, other)


def test_a_preset_without_one_head(build, preset: str, corpus):
    save_preset(
        build(seed=1, objective={"projection": False}), load_vocabulary(corpus.vocabulary), preset
    )
    missing = load_preset(build(seed=2), preset)
    assert set(missing) == {name for name in HEADS if name.startswith("projection.")}


def test_what_the_run_has_no_use_for_is_left(build, preset: str):
    loaded = build(seed=2, auxiliary={"replacements": "random"}, objective={"scl_weight": 0.0})
    assert load_preset(loaded, preset) == []
    assert set(head_variables(loaded)) == {"copy_head.kernel", "lm_head.bias"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": {"num_layers": 2}}, "preset has num_layers=1, the configuration's model has 2"),
        ({"model": {"hidden_dim": 8}}, "preset has hidden_dim=16, the configuration's model has 8"),
        ({"model": {"relative_position_bins": 12}}, "has relative_position_bins=8"),
        (
            {"auxiliary": {"num_layers": 2}},
            "preset/auxiliary has num_layers=1, the configuration's auxiliary has 2",
        ),
    ],
    ids=str,
)
def test_another_architecture_is_refused_by_its_key(build, preset: str, changes, complaint: str):
    with pytest.raises(UserError, match=complaint):
        load_preset(build(**changes), preset)


def test_shared_tables_are_the_main_models(build, preset: str, tmp_path: Path):
    """Also where the preset's auxiliary model had tables of its own."""
    source = build(seed=3)
    source.auxiliary = build(
        seed=4, auxiliary={"replacements": "frozen", "preset": preset}
    ).auxiliary
    rng = np.random.default_rng(5)
    table = source.auxiliary.backbone.token_embedding.embeddings
    table.assign(rng.normal(size=table.shape))
    save_preset(source, load_vocabulary(preset), str(tmp_path / "other"))
    loaded = build(seed=2)
    assert load_preset(loaded, str(tmp_path / "other")) == []
    assert_equal(loaded.backbone, source.backbone)


def test_a_frozen_auxiliary_is_that_of_the_preset(build, preset: str):
    frozen = build(seed=2, auxiliary={"replacements": "frozen", "preset": preset})
    before = [variable.numpy() for variable in frozen.trainable_variables]
    load_frozen_auxiliary(frozen.auxiliary, preset)
    source = build(seed=1)
    for one, two in zip(frozen.auxiliary.weights, source.auxiliary.weights, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    for one, two in zip(frozen.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    assert frozen.auxiliary.backbone.token_embedding is not frozen.backbone.token_embedding


def test_a_preset_without_auxiliary_cannot_be_frozen(build, preset: str):
    frozen = build(auxiliary={"replacements": "frozen", "preset": preset})
    Path(preset, HEADS_FILENAME).unlink()
    with pytest.raises(UserError, match="auxiliary.preset=.* lacks masked_lm_head.dense.kernel"):
        load_frozen_auxiliary(frozen.auxiliary, preset)
    shutil.rmtree(Path(preset, "auxiliary"))
    with pytest.raises(UserError, match="auxiliary.preset=.* has no auxiliary/ in it"):
        load_frozen_auxiliary(frozen.auxiliary, preset)
    with pytest.raises(UserError, match="auxiliary.preset=/nowhere has no auxiliary/"):
        load_frozen_auxiliary(frozen.auxiliary, "/nowhere")


def test_masked_language_modeling_leaves_a_preset_too(build, preset: str, corpus):
    save_preset(
        build(seed=3, objective={"name": "masked_lm"}), load_vocabulary(corpus.vocabulary), preset
    )
    assert not Path(preset, "auxiliary").exists()
    loaded = build(seed=2, objective={"name": "masked_lm"})
    assert load_preset(loaded, preset) == []
    assert_equal(loaded, build(seed=3, objective={"name": "masked_lm"}))
    assert all(name.startswith("main_masked_lm_head.") for name in head_variables(loaded))
    # COCO-LM goes on from its encoder alone.
    assert set(load_preset(build(seed=2), preset)) == {"auxiliary"} | HEADS


def test_a_preset_in_several_files_is_read(build, preset: str):
    """As KerasHub leaves one of more than 10 GB."""
    build(seed=3).backbone.save_to_preset(preset, max_shard_size=1e-5)
    Path(preset, "model.weights.h5").unlink()
    assert Path(preset, "model.weights.json").exists()
    loaded = build(seed=2)
    load_preset(loaded, preset)
    assert_equal(loaded.backbone, build(seed=3).backbone)


def test_dropout_is_the_runs_own(build, preset: str):
    loaded = build(model={"dropout": 0.3})
    assert load_preset(loaded, preset) == []
    assert loaded.backbone.dropout == 0.3


def test_heads_of_another_shape_are_refused(build, preset: str):
    heads = dict(np.load(Path(preset, HEADS_FILENAME)))
    np.savez(Path(preset, HEADS_FILENAME), **heads | {"lm_head.bias": np.zeros(3)})
    with pytest.raises(UserError, match=r"lm_head.bias has the shape \(3,\), not \(60,\)"):
        load_preset(build(), preset)


@pytest.mark.parametrize("config", [None, "{}", '{"class_name": "x"}', "no json"])
def test_no_preset_is_refused(build, tmp_path: Path, config: str | None):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=f"{tmp_path}.*config.json"):
        load_preset(build(), str(tmp_path))


def test_another_kind_of_model_is_refused(build, preset: str):
    file = Path(preset, "config.json")
    config = json.loads(file.read_text())
    config |= {"module": "keras.layers", "class_name": "Dense", "registered_name": None}
    config["config"] = {"units": 3}
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json does not describe a CocoLMBackbone"):
        load_preset(build(), preset)
