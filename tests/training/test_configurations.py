"""What each configuration of `configs/` trains, and by which losses."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.costs.step_benchmark import random_batches
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
OF_OTHER_KINDS = {"finetune", "suites"}
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in OF_OTHER_KINDS)
ROWS = sorted([*(CONFIGS / "ablations").glob("*.yaml"), *(CONFIGS / "baselines").glob("*.yaml")])
TINY = """
model:
  vocabulary_size: 60
  num_layers: 2
  num_heads: 2
  hidden_dim: 16
  intermediate_dim: 24
  max_sequence_length: 16
  dropout: 0.0
auxiliary: {num_layers: 1}
data: {sequence_length: 16}
trainer: {batch_size: 4}
runtime: {precision: float32}
"""
NARROW = "auxiliary.hidden_dim=8,auxiliary.num_heads=1,auxiliary.intermediate_dim=12"

ALL = {"main", "auxiliary", "masked_lm_head", "copy_head", "lm_head", "projection"}
# Each row's losses, and the parts that are there and trained.
EXPECTED = {
    "rtd_only": ({"mlm", "copy"}, ALL - {"lm_head", "projection"}),
    "clm_only": ({"mlm", "copy", "lm"}, ALL - {"projection"}),
    "scl_rtd": ({"mlm", "copy", "scl"}, ALL - {"lm_head"}),
    "no_relative_positions": ({"mlm", "copy", "lm", "scl"}, ALL),
    "electra_auxiliary": ({"mlm", "copy", "lm", "scl"}, ALL),
    "random_replacements": ({"copy", "lm", "scl"}, ALL - {"auxiliary", "masked_lm_head"}),
    "converged_auxiliary": ({"copy", "lm", "scl"}, ALL - {"auxiliary", "masked_lm_head"}),
    "converged_auxiliary_temperature": (
        {"copy", "lm", "scl"},
        ALL - {"auxiliary", "masked_lm_head"},
    ),
    "all_token_lm_only": ({"mlm", "lm", "scl"}, ALL),
    "clm_without_copy": ({"mlm", "copy", "lm", "scl"}, ALL),
    "clm_without_stop_gradient": ({"mlm", "copy", "lm", "scl"}, ALL),
    **dict.fromkeys(("crop_100", "crop_80", "crop_70"), ({"mlm", "copy", "lm", "scl"}, ALL)),
    "roberta": ({"mlm"}, {"main", "main_masked_lm_head"}),
    "electra": ({"mlm", "copy"}, ALL - {"lm_head", "projection"}),
}
# The losses that train the copy head, and those that train the tables of words and positions.
COPY_HEAD = {"all_token_lm_only": {"lm"}, "clm_without_stop_gradient": {"copy", "lm"}}


def parts_of(pretrainer) -> dict[str, set[int]]:
    """The identities of the variables of each part; shared tables are the main model's."""
    masked_lm = "masked_lm_head" if pretrainer.auxiliary else "main_masked_lm_head"
    model = pretrainer.auxiliary or getattr(pretrainer, "model", None)
    layers = {
        "main": pretrainer.backbone,
        masked_lm: model and model.head.transform,
        "auxiliary": pretrainer.auxiliary and pretrainer.auxiliary.backbone,
        "copy_head": pretrainer.copy_head,
        "projection": pretrainer.projection,
    }
    parts = {n: {id(v) for v in layer.weights} for n, layer in layers.items() if layer}
    parts.get("auxiliary", set()).difference_update(parts["main"])
    if model:
        parts[masked_lm].add(id(model.head.projection.bias))
    if pretrainer.lm_head:
        parts["lm_head"] = {id(pretrainer.lm_head.bias)}
    return parts


def tiny(path: Path) -> PretrainingConfig:
    narrow = NARROW if "electra" in path.stem else ""
    return load_config(str(path), [TINY, narrow, "optimizer.warmup_steps=1"])


def build(config: PretrainingConfig):
    pretrainer = build_pretrainer(config, mask_token_id=59)
    rng = np.random.default_rng(0)
    for variable in pretrainer.weights:
        if variable.dtype == "float32":
            center = 1.0 if variable.path.endswith("gamma") else 0.0
            variable.assign(center + rng.normal(0, 0.25, variable.shape))
    pretrainer.loss_scale.assign(1.0)
    return pretrainer


def trained_by(pretrainer, losses: tuple[str, ...], batch) -> set[int]:
    """The identities of the variables that a sum of losses has a gradient to."""
    with tf.GradientTape() as tape:
        values, _ = pretrainer.compute(batch, training=True)
        total = tf.add_n([values[f"{name}_loss"] for name in losses])
    variables = pretrainer.trainable_variables
    gradients = tape.gradient(total, [variable.value for variable in variables])
    return {
        id(variable)
        for variable, gradient in zip(variables, gradients, strict=True)
        if gradient is not None and np.any(tf.convert_to_tensor(gradient))
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_is_a_configuration(path: Path):
    config = load_config(str(path))
    assert config.data.sequence_length <= config.model.max_sequence_length


def test_every_row_is_known():
    assert {path.stem for path in ROWS} == EXPECTED.keys()


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_trains_what_it_names_by_the_losses_that_it_names(path: Path):
    losses, trained = EXPECTED[path.stem]
    config = tiny(path)
    pretrainer = build(config)
    assert pretrainer.loss_weights.keys() == {f"{name}_loss" for name in losses}

    parts = parts_of(pretrainer)
    variables = {id(variable): variable for variable in pretrainer.trainable_variables}
    assert variables.keys() == set().union(*(parts[name] for name in trained))
    is_frozen = path.stem.startswith("converged_auxiliary")
    frozen = {"auxiliary", "masked_lm_head"} if is_frozen else set()
    assert parts.keys() == trained | frozen

    batch = next(iter(random_batches(config, count=1)))
    found = trained_by(pretrainer, tuple(losses), batch)
    # Softmax takes away what a key's bias adds to all of a query's logits.
    keys = {id(v) for v in variables.values() if v.path.endswith("key/bias")}
    assert found - keys == variables.keys() - keys

    if "copy_head" in trained:
        head = parts["copy_head"]
        reach = {name for name in losses if head <= trained_by(pretrainer, (name,), batch)}
        assert reach == COPY_HEAD.get(path.stem, {"copy"})
    if "auxiliary" in trained:
        own = parts["auxiliary"] | parts["masked_lm_head"]
        others = tuple(losses - {"mlm"})
        assert own - keys <= trained_by(pretrainer, ("mlm",), batch)
        assert not own & trained_by(pretrainer, others, batch)


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_can_be_put_over_another_base(path: Path):
    small = CONFIGS / "pretrain" / "small.yaml"
    config = load_config(str(small), str(path))
    assert config.model.hidden_dim == 256
    assert config.trainer == load_config(str(small)).trainer
    row, base = load_config(str(path)), load_config(str(CONFIGS / "pretrain" / "base.yaml"))
    if path.stem != "electra":  # which is based on another row
        for section in ("objective", "auxiliary", "data"):
            ours, theirs = getattr(row, section).as_dict(), getattr(base, section).as_dict()
            changes = {key: ours[key] for key in ours if ours[key] != theirs[key]}
            assert changes.items() <= getattr(config, section).as_dict().items()


def flops(row: str) -> dict[str, int]:
    return pretraining_flops(load_config(str(CONFIGS / f"{row}.yaml")))


def test_a_row_pays_for_nothing_that_it_does_without():
    whole = flops("pretrain/base")
    for row, absent in {
        "ablations/rtd_only": {"lm_head", "main_crop", "scl_head"},
        "ablations/clm_only": {"main_crop", "scl_head"},
        "ablations/scl_rtd": {"lm_head"},
        "ablations/random_replacements": {"auxiliary", "mlm_head", "auxiliary_sampling"},
        "ablations/converged_auxiliary": {"auxiliary", "mlm_head"},
        "baselines/roberta": whole.keys() - {"mlm_head"},
    }.items():
        found = flops(row)
        assert whole.keys() - found.keys() == absent, row
        assert all(found[part] == whole[part] for part in found if part not in ("main", "mlm_head"))
    assert flops("ablations/converged_auxiliary")["auxiliary_sampling"] * 3 == pytest.approx(
        whole["auxiliary"] + whole["mlm_head"]
    )
    assert flops("baselines/roberta")["main"] <= whole["main_corrupted"]
    crops = [flops(f"ablations/crop_{percent}")["main_crop"] for percent in (70, 80, 100)]
    assert crops[0] < crops[1] < whole["main_crop"] < crops[2]


@pytest.mark.parametrize(
    ("size", "billions"), [("base", 0.184), ("large", 0.434), ("xl", 1.6), ("xxl", 5.4)]
)
def test_metro_sizes(size: str, billions: float):
    model = load_config(str(CONFIGS / "metro" / f"{size}.yaml")).model
    width, inner = model.hidden_dim, model.intermediate_dim
    block = 4 * width * (width + 1) + 2 * width * inner + inner + width + 4 * width
    tables = (model.vocabulary_size + model.max_sequence_length + 2) * width
    tables += model.relative_position_bins * model.num_heads
    assert (model.num_layers * block + tables) / 1e9 == pytest.approx(billions, rel=0.05)


def test_metro_is_zero_dropout_and_language_modeling_without_copy_beside_rtd():
    config = load_config(str(CONFIGS / "metro" / "xxl.yaml"))
    assert config.auxiliary.sampling == "zero_dropout"
    assert config.objective.copy_weight == 50 and config.objective.lm_weight == 1
    assert not config.objective.use_copy and not config.objective.scl_weight
    assert config.model.rematerialize == "block"
    assert (config.model.residual_init, config.model.initializer_range) == ("layer", 0.02)
    assert (config.auxiliary.shared, config.optimizer.sharded) == ("token_position_norm", True)
    assert "auxiliary_sampling" not in pretraining_flops(config)


RTD, STD, ITD = {"mlm", "rtd"}, {"slm", "std"}, {"itd"}
RE_RTD, RE_STD = {"re_mlm", "re_rtd"}, {"re_slm", "re_std"}
COURSES = {
    "rtd_only": RTD,
    "swapped": RTD | STD,
    "inserted": RTD | ITD,
    "self_supervision": RTD | STD | ITD,
    "re_rtd": RTD | STD | ITD | RE_RTD,
    "re_std": RTD | STD | ITD | RE_STD,
    "mcl": RTD | STD | ITD | RE_RTD | RE_STD,
}


@pytest.mark.parametrize("name", COURSES)
def test_an_ablation_of_mcl_takes_the_courses_that_it_names(name: str):
    path = str(CONFIGS / "mcl" / f"{name}.yaml")
    for config in (load_config(path), load_config(str(CONFIGS / "pretrain" / "small.yaml"), path)):
        assert config.objective.name == "mcl"
        weights = config.mcl.as_dict()
        tasks = {key for key in weights if key.endswith("_weight") and weights[key]}
        assert tasks == {f"{task}_weight" for task in COURSES[name]}


def test_mcl_tiny_is_base_in_a_quarter_of_its_batch():
    base, tiny_ = (load_config(str(CONFIGS / "mcl" / f"{name}.yaml")) for name in ("base", "tiny"))
    assert base.trainer.batch_size == 4 * tiny_.trainer.batch_size
    tiny_.trainer.batch_size = base.trainer.batch_size
    assert tiny_.as_dict() == base.as_dict()
