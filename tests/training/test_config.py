import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.errors import UserError
from cocolm_tf.training.config import (
    PRECISIONS,
    PretrainingConfig,
    check_config,
    load_config,
    save_config,
)

CONFIGS = Path(__file__).parents[2] / "configs"
PRETRAINING = sorted(
    path
    for folder in ("pretrain", "baselines", "ablations")
    for path in (CONFIGS / folder).rglob("*.yaml")
)


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_of_the_project_loads(path: Path):
    load_config(str(path))


@pytest.mark.parametrize("path", ["defaults", "pretrain/base.yaml"])
def test_base_is_the_papers(path: str):
    config = PretrainingConfig() if path == "defaults" else load_config(str(CONFIGS / path))
    check_config(config, path)
    model, trainer, optimizer = config.model, config.trainer, config.optimizer
    assert (model.num_layers, model.hidden_dim, model.num_heads) == (12, 768, 12)
    assert (model.intermediate_dim, model.vocabulary_size) == (3072, 32_768)
    assert (model.max_sequence_length, config.data.sequence_length) == (512, 512)
    assert (model.relative_position_bins, model.relative_position_max_distance) == (32, 128)
    assert model.dropout == 0.1
    assert (trainer.train_steps, trainer.batch_size) == (125_000, 2048)
    assert config.auxiliary.num_layers == 4
    assert (config.auxiliary.replacements, config.auxiliary.sampling) == ("auxiliary", "eval")
    assert (config.data.mask_fraction, config.data.crop_fraction) == (0.15, 0.9)
    objective = config.objective
    assert (objective.copy_weight, objective.lm_weight, objective.scl_weight) == (50, 1, 1)
    assert objective.use_copy and objective.stop_gradient and not objective.all_token_lm
    assert objective.temperature == 1
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.9, 0.98, 1e-6)
    assert optimizer.weight_decay == 0.01


def test_a_file_states_only_what_differs(write):
    config = load_config(write("model: {num_layers: 2}\noptimizer: {learning_rate: 1e-3}\n"))
    assert config.model.num_layers == 2
    assert config.optimizer.learning_rate == 1e-3
    expected = PretrainingConfig()
    expected.override({"model": {"num_layers": 2}, "optimizer": {"learning_rate": 1e-3}})
    assert config.as_dict() == expected.as_dict()


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "model: {}\n"])
def test_an_empty_file_is_the_defaults(write, text: str):
    assert load_config(write(text)).as_dict() == PretrainingConfig().as_dict()


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "1E-3", "0.001", "+1e-3"])
def test_a_number_may_have_an_exponent(write, number: str):
    assert load_config(write(f"optimizer: {{learning_rate: {number}}}")).optimizer == (
        load_config(write(""), f"optimizer.learning_rate={number}").optimizer
    )
    assert load_config(write(f"optimizer: {{learning_rate: {number}}}")).as_dict()["optimizer"][
        "learning_rate"
    ] == float(number)


@pytest.mark.parametrize(
    "overrides",
    [
        "model.num_layers=3,runtime.precision=mixed_bfloat16,auxiliary.sampling=zero_dropout",
        "model.num_layers = 3, runtime.precision = 'mixed_bfloat16', "
        "auxiliary.sampling = zero_dropout",
        '{"model": {"num_layers": 3}, "runtime": {"precision": "mixed_bfloat16"}, '
        '"auxiliary": {"sampling": "zero_dropout"}}',
        "model:\n  num_layers: 3\nruntime: {precision: mixed_bfloat16}\n"
        "auxiliary: {sampling: zero_dropout}",
        [
            "model.num_layers=9",
            "model.num_layers=3,runtime.precision=mixed_bfloat16",
            "",
            '{"auxiliary": {"sampling": "zero_dropout"}}',
        ],
    ],
    ids=["csv", "spaced csv", "json", "yaml", "list"],
)
def test_overrides_come_in_many_forms(write, overrides):
    config = load_config(write("model: {num_layers: 2, num_heads: 6}"), overrides)
    assert (config.model.num_layers, config.model.num_heads) == (3, 6)
    assert config.runtime.precision == "mixed_bfloat16"
    assert config.auxiliary.sampling == "zero_dropout"


def test_null_leaves_a_choice_to_the_device(write):
    assert load_config(write("")).runtime.jit_compile is None
    for value, expected in (("null", None), ("true", True), ("false", False)):
        config = load_config(write("runtime: {jit_compile: true}"), f"runtime.jit_compile={value}")
        assert config.runtime.jit_compile is expected


def test_an_override_may_be_a_file(write, tmp_path: Path):
    (tmp_path / "a=b.yaml").write_text("model: {num_layers: 3}")
    config = load_config(write("model: {num_layers: 2}"), str(tmp_path / "a=b.yaml"))
    assert config.model.num_layers == 3


def test_a_file_may_change_another(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "base.yaml").write_text("model: {num_layers: 3, num_heads: 6}\ntrainer: {}")
    (tmp_path / "rows" / "one.yaml").write_text("base: ../base.yaml\nmodel: {num_layers: 4}")
    (tmp_path / "rows" / "two.yaml").write_text("base: one.yaml\ndata: {crop_fraction: 0.5}")
    config = load_config(str(tmp_path / "rows" / "two.yaml"), "model.hidden_dim=96")
    assert (config.model.num_layers, config.model.num_heads) == (4, 6)
    assert (config.model.hidden_dim, config.data.crop_fraction) == (96, 0.5)


def test_what_a_file_changes_can_be_put_over_another_base(tmp_path: Path, write):
    (tmp_path / "row.yaml").write_text("base: /nowhere.yaml\nmodel: {num_layers: 4}")
    config = load_config(write("model: {num_layers: 2, num_heads: 6}"), str(tmp_path / "row.yaml"))
    assert (config.model.num_layers, config.model.num_heads) == (4, 6)


@pytest.mark.parametrize(
    ("base", "complaint"),
    [
        ("/nowhere.yaml", "base: /nowhere.yaml does not exist"),
        ("../nowhere.yaml", "nowhere.yaml does not exist"),
        ("2", "base must be the path of a file, not 2"),
        ("[a.yaml]", "base must be the path of a file, not ['a.yaml']"),
        ("loop.yaml", "loop.yaml is based on this file"),
        ("back.yaml", "loop.yaml is based on this file"),
    ],
)
def test_a_base_that_is_none_is_named(tmp_path: Path, base: str, complaint: str):
    (tmp_path / "loop.yaml").write_text(f"base: {base}")
    (tmp_path / "back.yaml").write_text("base: loop.yaml")
    with pytest.raises(UserError) as caught:
        load_config(str(tmp_path / "loop.yaml"))
    assert str(caught.value).startswith(str(tmp_path)) and complaint in str(caught.value)


def test_a_wrong_key_of_a_base_is_named_with_its_file(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("model: {layers: 3}")
    (tmp_path / "row.yaml").write_text("base: base.yaml")
    with pytest.raises(UserError, match="base.yaml: model.layers does not exist"):
        load_config(str(tmp_path / "row.yaml"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("modell: {num_layers: 2}", "modell does not exist; a configuration has model, aux"),
        ("model: {layers: 2}", "model.layers does not exist; model has vocabulary_size, "),
        ("default_params: {}", "default_params does not exist"),
        ("1: 2", "1 does not exist"),
        ("model: {num_layers: two}", "model.num_layers must be of type int, not 'two'"),
        ("model: {num_layers: 2.0}", "model.num_layers must be of type int, not 2.0"),
        ("model: {num_layers: true}", "model.num_layers must be of type int, not True"),
        ("model: {num_layers: {a: 1}}", "model.num_layers must be of type int, not {'a': 1}"),
        ("model: {num_layers: [1]}", "model.num_layers must be of type int, not [1]"),
        ("model: {dropout: '0.1'}", "model.dropout must be of type float, not '0.1'"),
        ("runtime: {jit_compile: 1}", "runtime.jit_compile must be of type bool or null, not 1"),
        ("model: {dropout: null}", "model.dropout must be of type float, not None"),
        ("runtime: {precision: 16}", "runtime.precision must be of type str, not 16"),
        ("model:", "model takes keys and their values, not None"),
        ("model: 12", "model takes keys and their values, not 12"),
        ("- model", "a configuration takes keys and their values, not ['model']"),
        ("model: {num_layers: 2", "is not valid YAML: "),
        ("model:\n\tnum_layers: 2", "is not valid YAML: "),
        (b"model: \xff", "is not UTF-8: byte 7"),
        ("model: !!python/object/apply:os.getcwd []", "is not valid YAML: "),
        ("model: {num_layers: !!python/name:os.getcwd }", "is not valid YAML: "),
    ],
)
def test_a_wrong_key_or_type_is_named(write, text, complaint: str):
    path = write(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.depth=3", "model.depth does not exist; model has"),
        ("model.num_layers=x", "model.num_layers must be of type int, not 'x'"),
        ("model.num_layers=", "model.num_layers must be of type int, not None"),
        ("model=3", "model takes keys and their values, not 3"),
        ("/nowhere.yaml", "not '/nowhere.yaml'"),
        ("{model: ", "is not valid YAML: "),
    ],
)
def test_a_wrong_override_is_named(write, override: str, complaint: str):
    with pytest.raises(UserError) as caught:
        load_config(write(""), ["model.num_layers=3", override])
    assert str(caught.value).startswith(f"--params_override={override}")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.num_heads=5", "model.hidden_dim=768 is not a multiple of model.num_heads=5"),
        ("model.num_heads=0", "model.num_heads must be at least 1, not 0"),
        ("model.num_layers=-1", "model.num_layers must be at least 1, not -1"),
        ("model.dropout=1", "model.dropout must be in [0, 1), not 1"),
        ("model.relative_position_bins=30", "model.relative_position_bins must be a multiple of 4"),
        ("model.relative_position_max_distance=8", "model.relative_position_max_distance must"),
        ("auxiliary.num_heads=5", "the auxiliary model's width 768 .* heads 5"),
        ("auxiliary.hidden_dim=100", "the auxiliary model's width 100 .* heads 12"),
        ("auxiliary.sampling=none", "auxiliary.sampling is one of eval, train, zero_dropout"),
        ("auxiliary.replacements=none", "auxiliary.replacements is one of .* 'none'"),
        (
            "auxiliary.replacements=stored,objective.name=masked_lm",
            "auxiliary.replacements=stored does not go with objective.name=masked_lm",
        ),
        (
            "auxiliary.replacements=stored,trainer.batch_size_schedule=[0.5, 512]",
            "auxiliary.replacements=stored has batches of one shape",
        ),
        ("auxiliary.shared=all", "auxiliary.shared is one of token, .* 'all'"),
        (
            "objective.weighted_lm=true,objective.copy_weight=0,objective.use_copy=false",
            "objective.weighted_lm=true weighs by the copy head, which nothing trains",
        ),
        ("auxiliary.replacements=frozen", "replacements=frozen and auxiliary.preset go together"),
        ("auxiliary.preset=runs/a", "replacements=frozen and auxiliary.preset go together"),
        ("objective.name=bert", "objective.name is one of coco_lm, masked_lm, mcl, not 'bert'"),
        ("model.residual_init=deep", "model.residual_init is one of none, layer, total"),
        ("runtime.precision=float8", "runtime.precision is one of float32, .* not 'float8'"),
        ("runtime.seed=-1", "runtime.seed must be"),
        ("runtime.seed=2147483648", "runtime.seed must be"),
        ("data.sequence_length=513", "data.sequence_length=513 .* model.max_sequence_length=512"),
        ("data.masking=sentence", "data.masking is one of token, word, span, not 'sentence'"),
        ("data.span_words=0.5", "data.span_words must be at least 1"),
        ("data.short_fraction=1.5", "data.short_fraction must be in [0, 1], not 1.5"),
        ("objective.name=mcl,data.masking=word", "data.masking=word does not go with objective"),
        ("data.mask_fraction=0", "data.mask_fraction must be in (0, 1], not 0"),
        ("data.crop_fraction=1.1", "data.crop_fraction must be in (0, 1], not 1.1"),
        ("trainer.steps_per_loop=0", "trainer.steps_per_loop must be at least 1"),
        ("trainer.micro_batches=0", "trainer.micro_batches must be at least 1"),
        ("trainer.train_steps=0", "trainer.train_steps must be at least 1"),
        ("trainer.max_checkpoints=0", "trainer.max_checkpoints must be at least 1"),
        (
            "trainer.keep_checkpoint_interval=7500",
            "keep_checkpoint_interval=7500 must be a multiple of trainer.checkpoint_interval=5000",
        ),
        (
            "trainer.steps_per_loop=10,trainer.train_steps=100005",
            "trainer.train_steps=100005 must be a multiple of trainer.steps_per_loop=10",
        ),
        (
            "trainer.steps_per_loop=10,trainer.log_interval=5",
            "trainer.log_interval=5 must be a multiple of trainer.steps_per_loop=10",
        ),
        ("optimizer.warmup_steps=125001", "optimizer.warmup_steps=125001 .* train_steps=125000"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate must be more than 0"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate must be more than 0, not nan"),
        ("optimizer.beta_2=1.0", "optimizer.beta_2 must be in [0, 1), not 1.0"),
        ("optimizer.clip_norm=-1", "optimizer.clip_norm must be 0 or more, not -1"),
        (
            "objective.copy_weight=0,objective.lm_weight=0,objective.scl_weight=0",
            "objective gives the main model nothing to learn",
        ),
        ("mcl.re_rtd_weight=-1", "mcl.re_rtd_weight must be 0 or more, not -1"),
        ("mcl.swap_fraction=0", "mcl.swap_fraction must be in (0, 1], not 0"),
        (
            "objective.name=mcl,auxiliary.replacements=random",
            "auxiliary.replacements=random does not go with objective.name=mcl",
        ),
        (
            "objective.name=mcl,mcl.mlm_weight=0,mcl.slm_weight=0",
            "mcl gives the generator nothing to learn: set mcl.mlm_weight",
        ),
        (
            "{objective: {name: mcl}, mcl: {rtd_weight: 0, std_weight: 0, itd_weight: 0}}",
            "mcl gives the main model nothing to learn: set mcl.rtd_weight",
        ),
        (
            "objective.name=mcl,mcl.std_weight=0",
            "mcl.re_slm_weight needs mcl.std_weight",
        ),
    ],
)
def test_what_does_not_go_together_is_named(write, override: str, complaint: str):
    path = write("")
    with pytest.raises(UserError) as caught:
        load_config(path, override)
    message = str(caught.value)
    assert message.startswith(f"{path} --params_override={override}: ")
    position = 0
    for part in complaint.split(" .* "):
        position = message.find(part, position)
        assert position >= 0, message


@pytest.mark.parametrize("path", ["/nowhere.yaml", "/"])
def test_a_missing_file_is_named(path: str):
    with pytest.raises(UserError, match=f"--config_file={path} does not exist"):
        load_config(path)


def test_types_are_checked_of_a_configuration_made_in_python():
    config = PretrainingConfig()
    config.model.num_layers = "twelve"
    with pytest.raises(UserError, match=r"mine: model\.num_layers must be of type int"):
        check_config(config, "mine")


@settings(max_examples=20)
@given(
    layers=st.integers(1, 48),
    rate=st.floats(1e-12, 1.0),
    precision=st.sampled_from(PRECISIONS),
    all_tokens=st.booleans(),
)
def test_it_is_loaded_as_it_was_saved(layers, rate, precision, all_tokens):
    config = PretrainingConfig()
    config.override(
        {
            "model": {"num_layers": layers},
            "optimizer": {"learning_rate": rate},
            "objective": {"all_token_lm": all_tokens},
            "runtime": {"precision": precision},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.yaml")
        save_config(config, path)
        assert load_config(path).as_dict() == config.as_dict()
        assert os.listdir(folder) == ["config.yaml"]


def test_two_configurations_share_nothing():
    first, second = PretrainingConfig(), PretrainingConfig()
    first.model.num_layers = 1
    assert second.model.num_layers == 12
