import json

import numpy as np
import pytest
from superglue_data import write_superglue

from cocolm_tf.data.superglue import SUPERGLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.run import run_task
from cocolm_tf.finetuning.tasks import task_of
from cocolm_tf.finetuning.tasks.superglue import SuperGlueClassificationTask
from cocolm_tf.jobs import Reporter

FAST = {
    "model": {"dropout": 0.0},
    "optimizer": {"learning_rate": 1e-2},
    "trainer": {"batch_size": 8, "epochs": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_superglue(tmp_path_factory.mktemp("superglue"), repeat=4)


@pytest.fixture
def task(tiny_preset, folder):
    def make(name: str, **fields):
        config = FinetuningConfig()
        config.override(FAST)
        data = {"superglue": {"task": name, "data_dir": folder}}
        made = SuperGlueClassificationTask(
            preset=tiny_preset, config=config.as_dict(), data=data, **fields
        )
        return task_of(json.loads(json.dumps(made.spec())))

    return make


def test_a_run_chooses_among_candidates(task, tmp_path):
    results = run_task(task("copa").spec(), str(tmp_path), Reporter())
    assert json.loads(json.dumps(results)) == results
    assert (results["task"], results["metric"]) == ("COPA", "accuracy")
    # One choice of three is the first.
    assert results["baseline"]["dev"]["accuracy"] == pytest.approx(2 / 3)
    assert results["dev"]["dev"]["accuracy"] in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
    lines = (tmp_path / "predictions" / "COPA.jsonl").read_text().splitlines()
    assert [json.loads(line)["idx"] for line in lines] == [0, 1, 2]
    assert {json.loads(line)["label"] for line in lines} <= {0, 1}


@pytest.mark.parametrize("name", ["cb", "multirc", "record", "rte", "wsc"])
def test_every_task_is_measured_and_predicted(task, tmp_path, name):
    prepared = task(name).prepare(FinetuningConfig())
    scores = prepared.measure()["dev"]
    assert tuple(scores) == SUPERGLUE_TASKS[name].metrics
    assert all(0 <= value <= 1 for value in scores.values())
    found = prepared.artifacts(str(tmp_path))
    assert tuple(found["baseline"]["dev"]) == SUPERGLUE_TASKS[name].metrics
    title = SUPERGLUE_TASKS[name].title
    (first, *_) = (tmp_path / "predictions" / f"{title}.jsonl").read_text().splitlines()
    assert "idx" in json.loads(first)
    if name == "rte":
        assert (tmp_path / "predictions" / "AX-b.jsonl").exists()


def test_a_fraction_has_whole_questions(task):
    some = task("copa", train_fraction=0.5, seed=1)
    data = some.read()
    # The same idx is the same question, however often the file has it.
    kept = some.drawn(data)
    groups = data.rows["train"].groups
    assert len(np.unique(groups[kept])) == 2
    assert set(kept) == set(np.flatnonzero(np.isin(groups, groups[kept])))


def test_a_metric_of_another_task(task):
    with pytest.raises(UserError, match="--metric=f1a: that of CB is one of macro_f1, accuracy"):
        task("cb", metric="f1a").check()
    assert task("cb", metric="accuracy").check() == "CB"
