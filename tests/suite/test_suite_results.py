import json
from pathlib import Path

import pytest
from suite_inputs import TINY

from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.suite.plan import Plan, Row, Suite, Task
from cocolm_tf.suite.results import pretraining_cost, suite_page, suite_results
from cocolm_tf.training.config import load_config

PLAN = Plan(
    Suite("mine", (Row("a", "A"), Row("b", "B", "Group"), Row("c", "C", "Group"))),
    {"a": None, "b": None},
    [Task(name, name.upper(), {}, FinetuningConfig()) for name in ("rte", "mnli")],
    seeds=3,
)


def run(score: float, other: float | None = None) -> dict:
    dev = {"dev": {"accuracy": score}}
    if other is not None:
        dev = {"matched": {"accuracy": score}, "mismatched": {"accuracy": other}}
    return {"metric": "accuracy", "score": score, "dev": dev, "seconds": 30.0}


FINETUNED = {
    ("a", "rte"): {2: run(0.7), 0: run(0.5), 1: run(0.6)},
    ("a", "mnli"): {0: run(0.4, 0.3), 1: run(0.5, 0.2)},
    ("b", "rte"): {0: {"diverged": True}, 1: run(0.6)},
}
PRETRAINED = {
    "a": {
        "parameters": 4_000_000,
        "steps": 1000,
        "tokens": 64_000,
        "tokens_per_second": 1234.5,
        "flops": 3 * 10**15,
        "minutes": 2.5,
        "held_out": {"positive_cosine": 0.91, "negative_cosine": 0.1, "mlm_accuracy": 0.25},
    }
}


def test_medians_are_over_seeds_and_averages_over_tasks():
    a, b, c = suite_results(PLAN, PRETRAINED, FINETUNED)["rows"]
    assert a["finetuning"]["rte"]["score"]["values"] == [0.5, 0.6, 0.7]
    assert a["finetuning"]["rte"]["score"]["median"] == 0.6
    assert a["finetuning"]["mnli"]["dev"]["mismatched"]["accuracy"]["median"] == 0.25
    assert a["average"] == pytest.approx((0.6 + 0.45) / 2)
    # Of the seeds that all tasks have.
    assert a["averages"]["values"] == pytest.approx([0.45, 0.55])
    assert a["averages"]["seeds"] == [0, 1]
    assert a["finetuning"]["rte"]["minutes"] == 1.5
    assert (b["average"], b["averages"]) == (None, None)
    assert (b["finetuning"]["rte"]["diverged"], b["finetuning"]["rte"]["seeds"]) == (1, [1])
    assert (c["pretraining"], c["finetuning"]) == (None, {})


def test_the_page_shows_what_there_is():
    page = suite_page(suite_results(PLAN, PRETRAINED, FINETUNED))
    lines = page.splitlines()
    assert "| Group | Method | RTE | MNLI | AVG |" in lines
    assert "|  | A | 60.0 | 45.0/25.0 | 52.5 |" in lines
    assert "| Group | B | 60.0 | — | — |" in lines
    assert "|  | C | — | — | — |" in lines
    assert "|  | A | 50.0 to 70.0 (3) | 40.0 to 50.0 (2) | 50.0 ± 5.0 (2) |" in lines
    assert "| Group | B | 60.0 to 60.0 (1), 1 diverged | — | — |" in lines
    assert "| A | 25.0% | 0.910 | 0.100 |" in lines
    assert "|  | A | 4M | 1,000 | 64,000 | 1,234 | 3e+15 | 2.5 | 2.5 |" in lines
    assert "| Group | B | — | — | — | — | — | — | 0.5 |" in lines


def test_a_suite_without_fine_tuning_has_no_scores():
    plan = Plan(PLAN.suite, PLAN.configs, (), 3)
    page = suite_page(suite_results(plan, PRETRAINED, {}))
    assert "AVG" not in page and "64,000" in page


def test_costs_are_those_of_the_whole_run(tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    config = load_config(str(tmp_path / "tiny.yaml"), "trainer.train_steps=40")
    lines = [
        {"step": 10, "split": "train", "seconds": 60, "tokens_per_second": 100.0},
        {"step": 20, "split": "train", "seconds": 120, "tokens_per_second": 300.0},
        # Ended, and gone on with.
        {"step": 40, "split": "train", "seconds": 30, "tokens_per_second": 200.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = pretraining_cost(config, str(tmp_path))
    assert cost["steps"] == 40 and cost["tokens"] == 40 * 4 * 16
    assert cost["tokens_per_second"] == 200.0 and cost["minutes"] == 2.5
    assert cost["flops"] == 40 * sum(pretraining_flops(config).values())


def test_rows_differ_from_the_reference_by_pairs_of_seeds():
    scores = {"a": [0.5, 0.6, 0.7], "b": [0.56, 0.63, 0.79], "c": [0.6]}
    finetuned = {
        (row, "rte"): {seed: run(score) for seed, score in enumerate(values)}
        for row, values in scores.items()
    }
    page = suite_page(suite_results(PLAN, {}, finetuned))
    table = page.split("Differences from A")[1].split("\n\n")[1].splitlines()
    # Differences .06, .03, .09: their mean over its standard error is 2 * sqrt(3), of which
    # Student's distribution with 2 degrees of freedom leaves 7.4% outside.
    assert table[2] == "| Group | B | +6.0 (p = 0.074) | — | — |"
    assert table[3] == "|  | C | +10.0 | — | — |"
