from pathlib import Path

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig, load_finetuning_config, with_values

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"

# Batch size, learning rate, epochs and warm-up of the released models.
RELEASED = {
    "base_pp": {
        "mnli": (32, 2e-5, 2, 1 / 16),
        "qqp": (32, 3e-5, 5, 1 / 16),
        "qnli": (32, 1e-5, 5, 1 / 16),
        "sst2": (32, 2e-5, 5, 1 / 16),
        "cola": (16, 2e-5, 10, 1 / 16),
        "rte": (16, 2e-5, 10, 1 / 10),
        "mrpc": (16, 4e-5, 10, 1 / 16),
        "stsb": (16, 4e-5, 10, 1 / 16),
        "squad": (32, 2e-5, 3, 1 / 10),
    },
    "large_pp": {
        "mnli": (32, 5e-6, 3, 1 / 16),
        "qqp": (32, 1e-5, 5, 1 / 16),
        "qnli": (32, 7e-6, 2, 1 / 16),
        "sst2": (32, 5e-6, 2, 1 / 16),
        "cola": (16, 1e-5, 10, 1 / 10),
        "rte": (32, 2e-5, 5, 1 / 16),
        "mrpc": (16, 2e-5, 5, 1 / 16),
        "stsb": (16, 2e-5, 10, 1 / 16),
        "squad": (32, 2e-5, 2, 1 / 16),
    },
}


@pytest.mark.parametrize(
    ("name", "task"), [(name, task) for name, tasks in RELEASED.items() for task in tasks]
)
def test_the_released_settings(name: str, task: str):
    config, grid = load_finetuning_config(str(CONFIGS / f"{name}.yaml"), task)
    trainer, optimizer = config.trainer, config.optimizer
    assert RELEASED[name][task] == pytest.approx(
        (trainer.batch_size, optimizer.learning_rate, trainer.epochs, optimizer.warmup_fraction)
    )
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.9, 0.98, 1e-6)
    assert (optimizer.weight_decay, optimizer.clip_norm, config.model.dropout) == (0.01, 0, 0.1)
    assert optimizer.learning_rate in grid["optimizer.learning_rate"] or task in ("qqp", "squad")
    assert ("trainer.batch_size" in grid) == (task not in ("mnli", "qqp", "qnli"))


def test_the_small_configuration_loads():
    config, grid = load_finetuning_config(str(CONFIGS / "small.yaml"), "rte")
    assert config.trainer.epochs == 10 and grid


@pytest.fixture
def load(write):
    def load(text: str, task: str = "rte", overrides=""):
        return load_finetuning_config(write("config.yaml", text), task, overrides)

    return load


def test_overrides_come_after_the_task_after_the_file(load):
    text = "trainer: {epochs: 2, batch_size: 4}\ntasks: {rte: {trainer: {epochs: 3}}}"
    trainer = load(text)[0].trainer
    assert (trainer.epochs, trainer.batch_size) == (3, 4)
    assert load(text, "cola")[0].trainer.epochs == 2
    assert load(text, overrides=["trainer.epochs=7", ""])[0].trainer.epochs == 7
    assert load("")[0].as_dict() == FinetuningConfig().as_dict()


def test_the_grid(load):
    _, grid = load("search: {optimizer.learning_rate: [1e-5, 2e-5], trainer.epochs: [1]}")
    assert grid == {"optimizer.learning_rate": [1e-5, 2e-5], "trainer.epochs": [1]}
    _, grid = load("search: {trainer.epochs: [1]}\ntasks: {rte: {search: {trainer.epochs: [2]}}}")
    assert grid == {"trainer.epochs": [2]}
    config = FinetuningConfig()
    changed = with_values(config, {"trainer.epochs": 9}, "here")
    assert (changed.trainer.epochs, config.trainer.epochs) == (9, 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "trainer: {epoch: 1}",
            "config.yaml: trainer.epoch does not exist; trainer has batch_size",
        ),
        ("tasks: {cola: {trainer: {epochs: x}}}", "tasks.cola: trainer.epochs must be of type int"),
        ("tasks: [rte]", r"tasks takes keys and their values, not \['rte'\]"),
        ("search: {trainer.epochs: 3}", "search.trainer.epochs is a list of values, not 3"),
        ("search: {trainer.epochs: []}", "search.trainer.epochs is a list of values"),
        ("search: {trainer.step: [3]}", "search.trainer.step: trainer.step does not exist"),
        ("search: {epochs: [3]}", "search.epochs: epochs does not exist"),
        ("search: {trainer.epochs: [0]}", "trainer.epochs must be at least 1, not 0"),
        ("model: {dropout: 1.0}", r"model.dropout must be in \[0, 1\), not 1.0"),
        ("optimizer: {layer_decay: 0.0}", r"optimizer.layer_decay must be in \(0, 1\]"),
        ("optimizer: {warmup_fraction: 2.0}", r"optimizer.warmup_fraction must be in \[0, 1\]"),
        ("trainer: {micro_batches: 3}", "batch_size=32 must be a multiple of .*micro_batches=3"),
        ("model: {rematerialize: all}", "model.rematerialize is one of none, attention, block"),
        ("prompt: {demonstrations: few}", "prompt.demonstrations is one of none, random, similar"),
        ("runtime: {precision: half}", "runtime.precision is one of float32, .*, not 'half'"),
        ("- 1", "takes keys and their values"),
        ("a: {", "not valid YAML"),
    ],
)
def test_mistakes_are_named(load, text: str, complaint: str):
    with pytest.raises(UserError, match=complaint):
        load(text)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="--config_file=/nowhere.yaml does not exist"):
        load_finetuning_config("/nowhere.yaml")
