"""What a run remembers of itself, and what may become of it."""

import dataclasses
from pathlib import Path

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig, save_config
from cocolm_tf.training.identity import HISTORY_FILENAME, History, Input, Segment, flat

INPUTS = {
    "--train_data": Input("data", "d1"),
    "--vocabulary": Input("vocabulary", "v1"),
    "--validation_data": Input("", ""),
    "--init_preset": Input("start", "p1"),
    "auxiliary.preset": Input("", ""),
}


def segment(inputs: dict[str, Input] | None = None, **changes: dict) -> Segment:
    config = PretrainingConfig()
    config.override(changes)
    settings = flat(config.as_dict()) | {"replicas": 1}
    return Segment(0, settings, INPUTS | (inputs or {}))


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Of a run that has begun, as it is read again."""
    history = History(str(tmp_path))
    assert history.resume(segment(), 0) == []
    history.save()
    return History.read(str(tmp_path))


def lower(rate: float) -> Segment:
    return segment(optimizer={"learning_rate": rate})


def test_a_history_that_an_earlier_version_wrote_is_read(history: History):
    path = Path(history.model_dir, "history.json")
    path.write_text(path.read_text().replace('"segments"', '"stretches"'))
    assert History.read(history.model_dir).segments == history.segments


def test_nothing_new_is_no_segment(history: History):
    assert history.resume(segment(), 40) == []
    assert [one.step for one in history.segments] == [0]


def test_what_changes_is_a_segment_and_read_again(history: History):
    now = segment({"--validation_data": Input("held", "h1")}, trainer={"train_steps": 9})
    assert history.resume(now, 40) == [
        "trainer.train_steps: 125000 -> 9",
        "--validation_data: none -> held (h1)",
    ]
    history.save()
    assert History.read(history.model_dir).segments == history.segments
    assert list(history.lines(60)) == [
        "steps 1 to 40",
        "steps 41 to 60: trainer.train_steps: 125000 -> 9; --validation_data: none -> held (h1)",
    ]


def test_what_never_came_to_be_is_forgotten(history: History):
    """A run that was killed before the first checkpoint after its resumption."""
    history.resume(lower(1e-4), 40)
    assert history.resume(lower(2e-4), 40) == ["optimizer.learning_rate: 0.0005 -> 0.0002"]
    assert [one.step for one in history.segments] == [0, 40]
    assert history.resume(segment(), 40) == []
    assert [one.step for one in history.segments] == [0]
    history.resume(lower(3e-4), 0)
    assert [one.settings["optimizer.learning_rate"] for one in history.segments] == [3e-4]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "dropout", 0.2),
        ("auxiliary", "num_layers", 3),
        ("objective", "copy_weight", 20.0),
        ("data", "mask_fraction", 0.3),
        ("optimizer", "beta_2", 0.9),
        ("trainer", "batch_size", 64),
        ("runtime", "seed", 1),
    ],
)
def test_what_changes_the_meaning_is_refused(history: History, section: str, key: str, value):
    with pytest.raises(UserError, match=rf"{section}.{key}=.*, not {value}: give what it was beg"):
        history.check(segment(**{section: {key: value}}), 40)
    assert history.check(segment(**{section: {key: value}}), 0) == {}, "nothing was done"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "rematerialize", True),
        ("data", "skip_corrupt", True),
        ("optimizer", "weight_decay", 0.0),
        ("trainer", "micro_batches", 2),
        ("trainer", "log_interval", 7),
        ("runtime", "precision", "mixed_bfloat16"),
    ],
)
def test_what_may_change_does(history: History, section: str, key: str, value):
    (change,) = history.check(segment(**{section: {key: value}}), 40).items()
    assert change[0] == f"{section}.{key}" and change[1][1] == value


@pytest.mark.parametrize("name", ["--train_data", "--vocabulary", "--init_preset"])
def test_inputs_are_known_by_what_they_hold(history: History, name: str):
    moved = Input("elsewhere", INPUTS[name].fingerprint)
    assert history.check(segment({name: moved}), 40) == {}
    edited = Input(INPUTS[name].path, "another")
    with pytest.raises(UserError, match=rf"{name}={edited.path} \(..\), not {edited.path} \(anoth"):
        history.check(segment({name: edited}), 40)


def test_the_preset_that_it_was_started_from_may_be_gone(history: History):
    for preset in (Input("", ""), Input("start", "")):
        assert history.check(segment({"--init_preset": preset}), 40) == {}
    history.resume(dataclasses.replace(lower(1e-4), inputs=INPUTS | {"--init_preset": preset}), 40)
    assert all(one.inputs["--init_preset"].fingerprint == "p1" for one in history.segments)


def test_a_run_from_before_there_were_histories_has_its_configuration(tmp_path: Path):
    save_config(PretrainingConfig(), str(tmp_path / "config.yaml"))
    history = History.read(str(tmp_path))
    with pytest.raises(UserError, match="objective.copy_weight=50.0, not 20.0"):
        history.check(segment(objective={"copy_weight": 20.0}), 40)
    assert history.resume(lower(1e-4), 40) == ["optimizer.learning_rate: 0.0005 -> 0.0001"]
    assert history.segments[0].inputs == INPUTS


def test_a_key_that_is_younger_than_the_record_had_its_default(history: History):
    del history.segments[0].settings["objective.temperature"]
    assert history.check(segment(), 40) == {}
    with pytest.raises(UserError, match="objective.temperature=1.0, not 2.0"):
        history.check(segment(objective={"temperature": 2.0}), 40)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"segments": [{"step": 1}]}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str):
    (tmp_path / HISTORY_FILENAME).write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/{HISTORY_FILENAME} cannot be read"):
        History.read(str(tmp_path))


# Branches: a run that lets the learning rate of another decay.


def wsd(train_steps: int = 100, **trainer) -> Segment:
    optimizer = {"schedule": "wsd", "warmup_steps": 10, "decay_steps": 20}
    return segment(optimizer=optimizer, trainer={"train_steps": train_steps} | trainer)


@pytest.fixture
def stable(tmp_path: Path) -> str:
    """A run of 100 steps, the last 20 of which decay, and its checkpoints."""
    history = History(str(tmp_path / "stable"))
    history.resume(wsd(), 0)
    (tmp_path / "stable" / "checkpoints").mkdir(parents=True)
    for step in (40, 80, 90):
        (tmp_path / "stable" / "checkpoints" / f"ckpt-{step}.index").touch()
    history.save()
    return history.model_dir


def test_a_branch_has_the_history_of_the_run_before_it(stable: str, tmp_path: Path):
    asked = f"{stable}@40"
    history = History.branch(asked, str(tmp_path / "branch"))
    assert history.resume(wsd(60, decay_from=asked), 40) == [
        "trainer.train_steps: 100 -> 60",
        f"trainer.decay_from:  -> {asked}",
    ]
    assert [one.step for one in history.segments] == [0, 40]
    history.model_dir = str(tmp_path / "stable")
    history.save()
    resumed = History.read(history.model_dir)
    assert resumed.check(wsd(60, decay_from=asked), 50) == {}
    with pytest.raises(UserError, match="trainer.decay_from=.*@40, not .*@20"):
        resumed.check(wsd(60, decay_from=f"{stable}@20"), 50)
    with pytest.raises(UserError, match="trainer.decay_from=.*@40, not"):
        resumed.check(wsd(60), 50)


@pytest.mark.parametrize(
    ("step", "changes", "complaint"),
    [
        (50, {}, "has kept checkpoints of these steps: 40, 80, 90"),
        (90, {}, "learning rate of that run decayed from step 80 on: give a checkpoint up to"),
        (80, {"batch_size": 64}, "is of a run with trainer.batch_size=2048, not 64: a decay cont"),
    ],
)
def test_what_cannot_be_branched_off_is_refused(stable: str, step: int, changes, complaint: str):
    asked = f"{stable}@{step}"

    with pytest.raises(UserError, match=complaint) as caught:
        History.branch(asked, "branch").check(wsd(99, decay_from=asked, **changes), step)
    assert str(caught.value).startswith(f"trainer.decay_from={asked}")


def test_the_last_step_before_the_decay_can_be_branched_off(stable: str):
    asked = f"{stable}@80"
    assert History.branch(asked, "branch").check(wsd(99, decay_from=asked), 80)


def test_a_folder_that_is_no_run_cannot_be_branched_off(tmp_path: Path):
    with pytest.raises(UserError, match="has no config.yaml: give the --model_dir of a run"):
        History.branch(f"{tmp_path}@40", "branch")


def test_a_run_whose_rate_always_decays_can_be_branched_off_its_warm_up_alone(
    history: History,
):
    checkpoints = Path(history.model_dir) / "checkpoints"
    checkpoints.mkdir()
    for step in (10_000, 20_000):
        (checkpoints / f"ckpt-{step}.index").touch()
    assert History.branch(f"{history.model_dir}@10000", "branch").segments
    with pytest.raises(UserError, match="decayed from step 10000 on"):
        History.branch(f"{history.model_dir}@20000", "branch")
