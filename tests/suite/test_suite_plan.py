import json
from pathlib import Path

import pytest
from suite_inputs import FINETUNING, NARROW, TINY
from tiny_presets import write_tiny_preset

from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.errors import UserError
from cocolm_tf.suite.definition import Row, Suite, load_suite
from cocolm_tf.suite.plan import Budget, Plan, Task, architectures, glue_tasks, pretraining_configs

SUITES = str(Path(__file__).parents[2] / "configs" / "suites")


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


def configs_of(suite: Suite, config_file: str, **changes):
    return pretraining_configs(suite, config_file, "/out", **changes)


def test_rows_differ_in_what_they_name_alone(tiny: str):
    configs = configs_of(load_suite("table3", SUITES), tiny, overrides=["runtime.seed=7"])
    base = configs["coco_lm"].as_dict()

    def differences(name: str) -> dict[str, object]:
        return {
            f"{section}.{key}": value
            for section, values in configs[name].as_dict().items()
            for key, value in values.items()
            if value != base[section][key]
        }

    assert base["runtime"]["seed"] == 7 and base["model"]["hidden_dim"] == 16
    assert differences("rtd_only") == {"objective.lm_weight": 0.0, "objective.scl_weight": 0.0}
    assert differences("no_relative_positions") == {"model.relative_position_bins": 0}
    assert differences("converged_auxiliary") == {
        "auxiliary.replacements": "frozen",
        "auxiliary.preset": "/out/pretraining/coco_lm/run/preset",
    }
    assert differences("random_replacements") == {"auxiliary.replacements": "random"}


def test_suites_of_other_methods_are_of_them(tiny: str):
    courses = configs_of(load_suite("mcl", SUITES), tiny)
    assert {config.objective.name for config in courses.values()} == {"mcl"}
    costs = [sum(pretraining_flops(config).values()) for config in courses.values()]
    assert min(costs) == costs[0] and max(costs) == costs[-1]
    rows = configs_of(load_suite("fast_electra", SUITES), tiny)
    found = {
        name: (row.auxiliary.replacements, row.auxiliary.temperature) for name, row in rows.items()
    }
    assert found == {
        "coco_lm": ("auxiliary", 1.0),
        "converged_auxiliary": ("frozen", 1.0),
        "converged_auxiliary_temperature": ("frozen", 2.0),
    }


def test_a_file_that_is_put_over_another_needs_it_before_it(tiny: str):
    electra = configs_of(load_suite("baselines", SUITES), tiny)["electra"]
    assert (electra.auxiliary.num_layers, electra.auxiliary.hidden_dim) == (12, 256)
    assert electra.auxiliary.sampling == "train" and electra.objective.scl_weight == 0


def test_what_is_changed_of_a_row_comes_last(tiny: str):
    configs = configs_of(
        load_suite("table3", SUITES), tiny, of_rows={"electra_auxiliary": [NARROW]}
    )
    assert configs["electra_auxiliary"].auxiliary.hidden_dim == 8
    assert configs["coco_lm"].auxiliary.hidden_dim == 0


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(train_steps=12), 12),
        (Budget(tokens=12 * 64), 12),
        (Budget(tokens=12 * 64 + 1), 15),
        (Budget(), 30),
    ],
)
def test_every_row_has_the_same_budget(tiny: str, budget: Budget, steps: int):
    overrides = ["trainer.train_steps=30,trainer.steps_per_loop=3,trainer.log_interval=3"]
    overrides += ["trainer.validation_interval=30,trainer.checkpoint_interval=3"]
    for config in configs_of(
        load_suite("figure4", SUITES), tiny, overrides=overrides, budget=budget
    ).values():
        assert config.trainer.train_steps == steps


def test_rows_may_branch_off_one_above(tiny: str):
    stable = "{optimizer: {schedule: wsd}, trainer: {train_steps: 100}}"
    short = "{trainer: {train_steps: 50}}"
    rows = (
        Row("long", "long", changes=(stable,)),
        Row("short", "short", changes=(stable, short), decay_from="long@40"),
    )
    configs = configs_of(Suite("mine", rows), tiny)
    assert configs["long"].trainer.decay_from == ""
    assert configs["short"].trainer.decay_from == "/out/pretraining/long/run@40"
    assert rows[1].needs() == ("long",)
    with pytest.raises(UserError, match="decay_from=.*leaves no steps to decay in"):
        configs_of(Suite("mine", rows), tiny, budget=Budget(train_steps=40))


def test_crops_cost_what_they_keep(tiny: str):
    costs = [
        sum(pretraining_flops(config).values())
        for config in configs_of(load_suite("figure4", SUITES), tiny).values()
    ]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            (Row("a", "a", changes=("objective.name=masked_lm",)), Row("b", "b", auxiliary_of="a")),
            "row b: auxiliary_of: a trains no auxiliary model",
        ),
        (
            (Row("a", "a"), Row("b", "b", changes=("auxiliary.num_layers=2",), auxiliary_of="a")),
            "row b has auxiliary.num_layers=2 and a, whose auxiliary model it is to take, 1",
        ),
        (
            (Row("a", "a"), Row("b", "b", changes=("model.hidden_dim=32",), auxiliary_of="a")),
            "row b has model.hidden_dim=32 and a",
        ),
        ((Row("a", "a", changes=("model.depth=2",)),), "model.depth does not exist"),
    ],
)
def test_what_cannot_be_pretrained_is_told_before_anything_is(tiny: str, rows, complaint: str):
    with pytest.raises(UserError, match=complaint):
        configs_of(Suite("mine", rows), tiny)


def test_runs_are_pretrainings_and_then_fine_tunings_seed_by_seed(tiny: str):
    suite = load_suite("baselines", SUITES)
    tasks = [Task(name, name, {}, None) for name in ("cola", "rte")]
    runs = Plan(suite, configs_of(suite, tiny), tasks, seeds=2).runs()
    names = [(run.row.name, run.task and run.task.name, run.seed) for run in runs]
    rows = ["roberta", "electra", "coco_lm", "from_scratch"]
    assert names == [
        *((row, None, 0) for row in rows[:3]),
        *((row, task, seed) for seed in (0, 1) for task in ("cola", "rte") for row in rows),
    ]


def test_tasks_are_read_and_checked_first(tiny: str, tmp_path: Path):
    suite = load_suite("figure4", SUITES)
    rows = architectures(suite, configs_of(suite, tiny))
    file = tmp_path / "finetuning.yaml"
    file.write_text(FINETUNING)
    (tmp_path / "SST-2").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    (task,) = glue_tasks(["sst2"], str(tmp_path), rows, str(file), ["trainer.epochs=2"])
    assert (task.name, task.title, task.config.trainer.epochs) == ("sst2", "SST-2", 2)
    assert task.data == {"glue": {"task": "sst2", "data_dir": str(tmp_path)}}
    for names, changes, complaint in (
        (["snli"], [], "--tasks are of cola, .*, not 'snli'"),
        (["rte"], [], "has no RTE/train.tsv"),
        (["sst2"], ["data.sequence_length=17"], "17 is more than the 16 positions of crop_100"),
    ):
        with pytest.raises(UserError, match=complaint):
            glue_tasks(names, str(tmp_path), rows, str(file), changes)


def test_the_sizes_of_a_preset_are_its_own(tiny: str, tmp_path: Path):
    tiny_preset = write_tiny_preset(tmp_path)
    suite = Suite("mine", (Row("plain", "plain"), Row("made", "made", preset=tiny_preset)))
    rows = architectures(suite, configs_of(suite, tiny))
    assert list(rows) == ["made", "plain"]
    with open(f"{tiny_preset}/config.json") as file:
        config = json.load(file)["config"]
    assert rows["made"]["hidden_dim"] == config["hidden_dim"]
    assert rows["made"]["max_sequence_length"] == config["max_sequence_length"]
    suite = Suite("mine", (Row("made", "made", preset=str(Path(tiny).parent)),))
    with pytest.raises(UserError, match="is not a preset"):
        architectures(suite, {})


def test_the_settings_are_those_for_the_size_unless_a_file_is_given(tiny: str, tmp_path: Path):
    suite = load_suite("figure4", SUITES)
    (tmp_path / "SST-2").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    (task,) = glue_tasks(
        ["sst2"],
        str(tmp_path),
        architectures(suite, configs_of(suite, tiny)),
        overrides=["data.sequence_length=16"],
        finetuning_configs=str(Path(SUITES).parent / "finetune"),
    )
    assert task.config.optimizer.learning_rate == 1e-4  # that of small.yaml
