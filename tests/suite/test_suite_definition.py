from pathlib import Path

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.suite.definition import Row, load_suite, row_overrides

CONFIGS = Path(__file__).parents[2] / "configs"
SUITES = str(CONFIGS / "suites")


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
def test_what_is_wrong_in_a_suite_is_told_with_its_place(tmp_path: Path, text: str, complaint: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=complaint) as told:
        load_suite(str(tmp_path / "mine.yaml"), SUITES)
    assert "mine.yaml: " in str(told.value)


def test_a_suite_that_is_not_there_is_told_with_those_that_are():
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
