import json
from pathlib import Path

import pytest

from cocolm_tf import files
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.report import (
    results_page,
    summarize,
    summarize_runs,
    write_results,
)
from cocolm_tf.jobs import write_json
from cocolm_tf.training.model_card import markdown_table

TASKS = {
    "MNLI": 88.5,
    "QQP": 92.0,
    "QNLI": 93.1,
    "SST-2": 93.2,
    "CoLA": 63.9,
    "RTE": 84.8,
    "MRPC": 91.4,
    "STS-B": 90.3,
}


def experiment(task: str, score: float, **changes) -> dict:
    metric = {"CoLA": "matthews", "STS-B": "spearman"}.get(task, "accuracy")
    sets = {"matched": score, "mismatched": score - 0.002} if task == "MNLI" else {"dev": score}
    values = {part: [value, value - 0.01, value + 0.02] for part, value in sets.items()}
    return {
        "task": task,
        "model": "runs/base",
        "train_fraction": 1.0,
        "from_scratch": False,
        "train_rows": 2490,
        "parameters": 110_600_000,
        "metric": metric,
        "dev": {part: {metric: summarize(scores)} for part, scores in values.items()},
        "baseline": {part: {metric: 0.501} for part in sets},
        "seeds": [0, 1, 2],
        "config": FinetuningConfig().as_dict(),
        "examples_per_second": 12.34,
    } | changes


def test_summarize():
    assert summarize([3.0, 1.0, 8.0]) == {
        "median": 3.0,
        "mean": 4.0,
        "std": pytest.approx((26 / 3) ** 0.5),
        "min": 1.0,
        "max": 8.0,
        "values": [3.0, 1.0, 8.0],
    }
    assert summarize([2.0])["std"] == 0


def test_results_may_lie_on_a_store(tmp_path: Path, to_store):
    for name in ("RTE", "CoLA"):
        (tmp_path / "out" / name).mkdir(parents=True)
        write_json(experiment(name, 0.5), str(tmp_path / "out" / name / "results.json"))
    there = files.read_text(write_results(to_store(tmp_path / "out")))
    assert there == files.read_text(write_results(str(tmp_path / "out")))


def test_summarize_runs():
    runs = [{"dev": {"accuracy": value, "f1": 1.0}} for value in (0.5, 0.7)]
    found = summarize_runs(runs)
    assert found["dev"]["accuracy"]["values"] == [0.5, 0.7]
    assert found["dev"]["f1"]["median"] == 1.0


def test_the_table_is_that_of_the_paper():
    page = results_page([experiment(task, score / 100) for task, score in TASKS.items()])
    header = (
        "| Model | Params | MNLI-(m/mm) | QQP | QNLI | SST-2 | CoLA | RTE | MRPC | STS-B | AVG |"
    )
    row = "| runs/base | 111M | 88.5/88.3 | 92.0 | 93.1 | 93.2 | 63.9 | 84.8 | 91.4 | 90.3 | 87.2 |"
    assert header in page and row in page


def test_what_is_missing_is_shown_so_and_ways_to_start_have_rows():
    page = results_page(
        [
            experiment("RTE", 0.6),
            experiment("RTE", 0.5, from_scratch=True),
            experiment("RTE", 0.55, train_fraction=0.1),
            experiment("WNLI", 0.563),
        ]
    )
    lines = page.splitlines()
    assert "| runs/base | 111M | — | — | — | — | — | 60.0 | — | — | — | 56.3 |" in lines
    start = "| runs/base, from random weights | 111M | — | — | — | — | — | 50.0 |"
    assert any(line.startswith(start) for line in lines)
    assert any(line.startswith("| runs/base, 0.1 of the training rows |") for line in lines)
    details = "| RTE | runs/base | accuracy | 60.0 | 59.0 | 62.0 | 60.3 | 1.2 | 50.1 | 3 | 2,490 |"
    assert any(line.startswith(details) for line in lines)


def test_prompts_are_beside_the_others_in_a_table_of_their_own():
    prompted = {
        "task": "SST-2",
        "model": "runs/base",
        "shots": 16,
        "template": "{first} {mask}",
        "label_words": ["▁bad", "▁good"],
        "baseline": {"dev": {"accuracy": 0.509}},
        "test": {"dev": {"accuracy": summarize([0.6, 0.8])}},
    }
    page = results_page([experiment("RTE", 0.6), prompted])
    line = "| SST-2 | runs/base | accuracy | 70.0 (10.0) | 60.0 | 80.0 | 50.9 | 2 | 16 |"
    assert line in page and "| RTE | runs/base |" in page
    assert "Table 1" not in results_page([prompted])


def test_a_task_of_ones_own_has_no_column_of_the_paper():
    page = results_page([experiment("reviews", 0.9)])
    assert "MNLI" not in page and "| reviews | runs/base | accuracy | 90.0 |" in page


def test_what_separates_the_cells_of_a_table_may_stand_in_one():
    assert markdown_table(["task"], [["a|b"]]).splitlines()[-1] == "| a\\|b |"


def test_a_folder_gathers_its_experiments(tmp_path: Path):
    for name, task in (("rte", "RTE"), ("cola", "CoLA")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(experiment(task, 0.5)))
    (tmp_path / "unfinished").mkdir()
    path = write_results(str(tmp_path))
    assert path == str(tmp_path / "results.md")
    assert Path(path).read_text().count("| 50.0 |") > 1
    found = json.loads((tmp_path / "results.json").read_text())
    assert [one["task"] for one in found["experiments"]] == ["CoLA", "RTE"]
