import json
from pathlib import Path

import pytest
from suite_inputs import FINETUNING, NARROW, TINY
from tiny_presets import write_tiny_preset

from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.errors import UserError
from cocolm_tf.suite.plan import (
    Plan,
    Row,
    Suite,
    Task,
    architectures,
    glue_tasks,
    load_suite,
    pretraining_configs,
    row_overrides,
)

SUITES = str(Path(__file__).parents[2] / "configs" / "suites")


def test_table_3_has_the_rows_of_the_paper_in_its_groups():
    suite = load_suite("table3", SUITES)
    assert suite.name == "table3"
    groups: dict[str, list[str]] = {}
    for row in suite.rows:
        groups.setdefault(row.group, []).append(row.name)
    assert groups == {
        "": ["coco_lm"],
        "Pretraining task": ["rtd_only", "clm_only", "scl_rtd"],
        "Network setting": ["no_relative_positions", "electra_auxiliary"],
        "Training signal": ["random_replacements", "converged_auxiliary"],
        "CLM setup": ["all_token_lm_only", "clm_without_copy", "clm_without_stop_gradient"],
    }
    converged = suite.rows[7]
    assert converged.auxiliary_of == "coco_lm"


@pytest.mark.parametrize("path", sorted(Path(SUITES).glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_at_hand_is_one(path: Path):
    suite = load_suite(path.stem, SUITES)
    titles = [row.title for row in suite.rows]
    assert len(set(titles)) == len(titles) > 1
    for row in suite.rows:
        # COCO-LM is what the others change.
        assert bool(row.changes or row.name == "coco_lm") != bool(row.random_weights_of)


def test_figure_4_has_every_crop_fraction():
    rows = load_suite("figure4", SUITES).rows
    assert [row.name for row in rows] == ["crop_100", "crop_90", "crop_80", "crop_70"]


def test_a_suite_of_ones_own_names_files_by_their_path_from_it(tmp_path: Path):
    (tmp_path / "wide.yaml").write_text("model: {hidden_dim: 32}")
    (tmp_path / "mine.yaml").write_text(
        "rows:\n"
        "  plain:\n"
        "  wide: {title: Wide, group: Size, changes: wide.yaml}\n"
        "  deep: {changes: [wide.yaml, {model: {num_layers: 3}}], auxiliary_of: plain}\n"
        "  fresh: {random_weights_of: wide}\n"
        "  short: {decay_from: plain@40, changes: {trainer: {train_steps: 50}}}\n"
        "  soup: {title: Soup, preset: soup}\n"
        "  soup_afresh: {random_weights_of: soup}\n"
    )
    (tmp_path / "soup").mkdir()
    suite = load_suite(str(tmp_path / "mine.yaml"), SUITES)
    wide = str(tmp_path / "wide.yaml")
    assert suite.name == "mine"
    assert suite.rows == (
        Row("plain", "plain"),
        Row("wide", "Wide", "Size", (wide,)),
        Row("deep", "deep", "", (wide, '{"model": {"num_layers": 3}}'), auxiliary_of="plain"),
        Row("fresh", "fresh", random_weights_of="wide"),
        Row("short", "short", "", ('{"trainer": {"train_steps": 50}}',), decay_from="plain@40"),
        Row("soup", "Soup", preset=str(tmp_path / "soup")),
        Row("soup_afresh", "soup_afresh", random_weights_of="soup"),
    )
    with pytest.raises(UserError, match="where the row is one of plain, wide, deep, short"):
        row_overrides(suite, ["soup:a.b=1"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1", "a suite has the key rows, with the rows by their names"),
        ("rows: {}", "a suite has the key rows"),
        ("rows: {a: }\nbase: b", "a suite has the key rows"),
        ("rows: {a/b: }", "rows.a/b: a row's name is that of its folder"),
        ("rows: {..: }", "rows...: a row's name is that of its folder"),
        ("rows: {1: }", "rows.1: a row's name is that of its folder"),
        ("rows: {a: [b]}", r"rows.a takes keys and their values, not \['b'\]"),
        ("rows: {a: {change: b}}", "rows.a.change does not exist; a row has title, group, changes"),
        ("rows: {a: {title: 1}}", "rows.a.title must be of type str, not 1"),
        ("rows: {a: {changes: b.yaml}}", "rows.a.changes: .*b.yaml does not exist"),
        ("rows: {a: {changes: [3]}}", "rows.a.changes are YAML files or values"),
        ("rows: {a: {auxiliary_of: b}, b: }", "rows.a.auxiliary_of: b is no pretrained row above"),
        ("rows: {a: , b: {decay_from: a}}", "rows.b.decay_from must be ROW@STEP, not 'a'"),
        ("rows: {a: {decay_from: b@5}, b: }", "rows.a.decay_from: b is no pretrained row above"),
        ("rows: {a: {random_weights_of: a}}", "a is no pretrained row above this one"),
        (
            "rows: {a: , b: {random_weights_of: a}, c: {auxiliary_of: b}}",
            "rows.c.auxiliary_of: b is no pretrained row above",
        ),
        (
            "rows: {a: , b: {random_weights_of: a, changes: [{model: {}}]}}",
            "rows.b has random_weights_of: it is not pretrained, so it cannot have changes",
        ),
        ("rows: {a: {preset: nowhere}}", "rows.a.preset: .*nowhere is not a folder"),
        ("rows: {a: {preset: ., changes: []}}", "rows.a has preset: it is not pretrained, so"),
        ("rows: {a: {preset: .}, b: {auxiliary_of: a}}", "rows.b.auxiliary_of: a is no pretrained"),
    ],
)
def test_what_is_wrong_in_a_suite_is_reported_with_its_place(
    tmp_path: Path, text: str, complaint: str
):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=complaint) as told:
        load_suite(str(tmp_path / "mine.yaml"), SUITES)
    assert "mine.yaml: " in str(told.value)


def test_a_suite_that_is_not_there_is_reported_with_those_that_are():
    with pytest.raises(
        UserError, match="one of baselines, fast_electra, figure4, mcl, table3, tasks or"
    ):
        load_suite("table4", SUITES)


def test_row_overrides_are_sorted_by_rows():
    suite = load_suite("baselines", SUITES)
    assert row_overrides(suite, ["electra:a.b=1", "electra:c.d=x:y", "coco_lm:{}"]) == {
        "electra": ["a.b=1", "c.d=x:y"],
        "coco_lm": ["{}"],
    }
    for flag in ("bert:a.b=1", "electra", "from_scratch:a.b=1"):
        with pytest.raises(UserError, match=f"--row_override={flag}: .*roberta, electra, coco_lm"):
            row_overrides(suite, [flag])


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
        ("trainer.train_steps=12", 12),
        (f"trainer.train_tokens={12 * 64}", 12),
        (f"trainer.train_tokens={12 * 64 + 1}", 15),
        ("", 30),
    ],
)
def test_every_row_has_the_same_budget(tiny: str, budget: str, steps: int):
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
        configs_of(Suite("mine", rows), tiny, budget="trainer.train_steps=40")


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
def test_what_cannot_be_pretrained_is_reported_before_anything_is(tiny: str, rows, complaint: str):
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
