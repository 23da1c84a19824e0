import os
from pathlib import Path

import pytest
from in_process import given_flags

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning import experiment as module
from cocolm_tf.finetuning.flags import define_run_flags, run_from_flags, suitable_config

CONFIGS = str(Path(__file__).parents[2] / "configs" / "finetune")


@pytest.fixture
def run(tiny_preset, sst2_dir, tmp_path: Path):
    """Runs what flags ask for; takes more of them, and `changes`."""

    def run(*arguments: str, changes=None, **more) -> str:
        folders = [f"--preset={tiny_preset}", f"--output_dir={tmp_path / 'out'}"]
        data = {"data": {"glue": {"task": "sst2", "data_dir": sst2_dir}}}
        with given_flags(define_run_flags, *folders, *arguments):
            return run_from_flags("sst2", "classification", data, changes=changes, **more)

    return run


def test_flags_become_an_experiment(run, tiny_preset, monkeypatch):
    found = []
    monkeypatch.setattr(module, "run_experiment", lambda *arguments: found.append(arguments))
    run(
        "--seeds=3",
        "--search",
        "--train_fraction=0.1",
        "--from_scratch",
        "--jobs=2",
        "--metric=f1",
        "--search_reduction=2",
        "--distribution_strategy=mirrored",
        "--params_override=trainer.epochs=7",
        changes={"sequence_length": ("data.sequence_length", 16)},
    )
    ((experiment, output_dir, jobs, options),) = found
    assert (experiment.name, list(experiment.seeds), jobs) == ("sst2", [0, 1, 2], 2)
    assert options == {"distribution_strategy": "mirrored"} and experiment.reduction == 2
    assert not experiment.search_each_seed
    assert experiment.folder == "sst2-0.1-from_scratch" and os.path.basename(output_dir) == "out"
    assert set(experiment.grid) == {"optimizer.learning_rate", "trainer.batch_size"}
    made = experiment.task
    assert made.metric == "f1"
    assert (made.preset, made.train_fraction, made.from_scratch) == (tiny_preset, 0.1, True)
    assert made.config["trainer"]["epochs"] == 7 and made.config["data"]["sequence_length"] == 16
    # A narrow encoder's.
    assert made.config["optimizer"]["learning_rate"] == 1e-4


@pytest.mark.parametrize(("settings", "epochs"), [(None, 9), ("sst2", 9), ("rte", 8), ("", 7)])
def test_the_settings_of_a_task_are_asked_for(run, write, monkeypatch, settings, epochs):
    found = []
    monkeypatch.setattr(module, "run_experiment", lambda *arguments: found.append(arguments))
    tasks = "{sst2: {trainer: {epochs: 9}}, rte: {trainer: {epochs: 8}}}"
    config = write("config.yaml", f"trainer: {{epochs: 7}}\ntasks: {tasks}")
    run(f"--config_file={config}", settings=settings)
    ((experiment, *_),) = found
    assert experiment.name == "sst2" and experiment.task.config["trainer"]["epochs"] == epochs


def test_seeds_of_their_own_have_searches_of_their_own(run, monkeypatch):
    found = []
    monkeypatch.setattr(module, "run_experiment", lambda *arguments: found.append(arguments))
    run(seeds=[13, 21])
    ((experiment, *_),) = found
    assert list(experiment.seeds) == [13, 21] and experiment.search_each_seed and experiment.grid


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--preset=/nowhere", "--preset=/nowhere is not a preset: it has no config.json."),
        ("--train_fraction=0", r"--train_fraction=0.0 must be in \(0, 1\]."),
        ("--config_file=/nowhere.yaml", "--config_file=/nowhere.yaml does not exist."),
        (f"--output_dir={__file__}", "is a file; the output must be a folder."),
        ("--params_override=trainer.epoch=3", "trainer.epoch does not exist"),
        ("--metric=spearman", "--metric=spearman: that of 2 classes is one of accuracy, f1,"),
        ("--tpu=local", "--tpu goes with --distribution_strategy=tpu"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(run, tmp_path, argument, complaint):
    with pytest.raises(UserError, match=complaint):
        run(argument)
    assert not (tmp_path / "out").exists()


def test_a_search_wants_a_grid(run, write):
    with pytest.raises(UserError, match="has no `search` to go through"):
        run("--search", f"--config_file={write('config.yaml', 'trainer: {epochs: 1}')}")


@pytest.mark.parametrize(
    ("width", "name"),
    [(256, "small"), (768, "base_pp"), (1024, "large_pp"), (1536, "large_pp")],
)
def test_the_settings_suit_the_size(width, name):
    assert (
        suitable_config(width)
        == suitable_config(width, CONFIGS)
        == os.path.join(CONFIGS, f"{name}.yaml")
    )
