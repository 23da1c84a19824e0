"""Whole runs, of a model so small that most of their time goes into tracing."""

import json
import math
import os
import shutil
import signal
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from pretraining_runs import assert_same_run, metrics, weights

from cocolm_tf import files
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.fingerprints import fingerprint
from cocolm_tf.training import loop as loop_module
from cocolm_tf.training import pretraining as module
from cocolm_tf.training.config import check_config, load_config
from cocolm_tf.training.identity import History, Input, segment_of
from cocolm_tf.training.monitoring import METRICS_FILENAME
from cocolm_tf.training.preset import HEADS_FILENAME, read_backbone


def test_a_run_leaves_what_it_promises(finished):
    names = {path.name for path in finished.model_dir.iterdir()}
    folders = {"tensorboard", "checkpoints", "preset"}
    assert names == {"config.yaml", "history.json", "metrics.jsonl"} | folders
    config = load_config(str(finished.model_dir / "config.yaml"))
    assert config.as_dict() == finished.config.as_dict()
    kept = {path.stem for path in (finished.model_dir / "checkpoints").glob("*.index")}
    assert kept == {"ckpt-8", "ckpt-10"}


def test_metrics_are_written_when_due(finished):
    lines = metrics(finished.model_dir)
    places = [(line["step"], line["split"]) for line in lines]
    assert places == [
        (2, "train"),
        (4, "train"),
        (4, "validation"),
        (6, "train"),
        (8, "train"),
        (8, "validation"),
        (10, "train"),
        (10, "validation"),
    ]
    assert all(
        math.isfinite(value) for line in lines for value in line.values() if value != line["split"]
    )
    assert all(line["skipped_updates"] == 0 for line in lines if line["split"] == "train")


def test_the_loss_is_the_sum_of_its_parts(finished):
    for line in metrics(finished.model_dir):
        if line["split"] == "train":
            continue
        parts = line["mlm_loss"] + 50 * line["copy_loss"] + line["lm_loss"] + line["scl_loss"]
        # Means over batches of batches' means, and means over tokens: not quite the same.
        assert line["loss"] == pytest.approx(parts, rel=0.02), line["split"]


def test_an_untrained_model_knows_nothing(finished):
    """Losses of the first steps are those of guessing; so nothing leaks and no loss is off."""
    first = metrics(finished.model_dir)[0]
    vocabulary, views = (
        finished.config.model.vocabulary_size,
        2 * finished.config.trainer.batch_size,
    )
    assert first["mlm_loss"] == pytest.approx(math.log(vocabulary), rel=0.1)
    assert first["copy_loss"] == pytest.approx(math.log(2), rel=0.1)
    assert first["scl_loss"] == pytest.approx(math.log(views - 1), rel=0.1)
    assert 0.05 < first["replacement_rate"] < 0.2


class KilledError(Exception):
    """What ends a run in the place of a signal."""


class Kill(keras.callbacks.Callback):
    """Ends a run after a step, once all else that is due at it has been done."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            raise KilledError


def start_and_kill(pretrain_on, *arguments, step: int, **given) -> None:
    with pytest.raises(KilledError):
        pretrain_on(*arguments, callbacks=[Kill(step)], **given)


@pytest.mark.slow
@pytest.mark.parametrize("is_remote", [False, True])
def test_an_interrupted_run_resumes_as_if_it_had_not_been(
    finished, corpus, pretrain_on, to_store, tmp_path: Path, is_remote: bool
):
    model_dir, given = str(tmp_path / "run"), {}
    if is_remote:  # with all that it reads and writes
        model_dir = to_store(model_dir)
        names = ("train", "validation", "vocabulary")
        train, validation, vocabulary = (to_store(getattr(corpus, name)) for name in names)
        given = {"train_data": train, "validation_data": validation, "vocabulary": vocabulary}
    start_and_kill(pretrain_on, finished.config, model_dir, step=7, **given)
    assert not files.exists(f"{model_dir}/preset")
    with files.local_copy(model_dir) as copy:
        assert metrics(Path(copy))[-1]["step"] == 6
    with files.open_append(f"{model_dir}/{METRICS_FILENAME}") as file:
        file.write('{"step": 8, "split": "train"}\n{"step": 8, "spl')

    assert pretrain_on(finished.config, model_dir, **given) == f"{model_dir}/preset"
    with files.local_copy(model_dir) as copy:
        assert_same_run(Path(copy), finished.model_dir, step=10)
        assert fingerprint(f"{copy}/preset") == fingerprint(f"{model_dir}/preset")
        assert sorted(os.listdir(copy)) == sorted(os.listdir(finished.model_dir))


@pytest.mark.slow
def test_a_validation_that_was_lost_is_made_up_for(finished, pretrain_on, tmp_path: Path):
    """Killed after the checkpoint of a step, and before the validation of the same."""
    start_and_kill(pretrain_on, finished.config, tmp_path, step=4)
    last = metrics(tmp_path)[-1]
    assert (last["step"], last["split"]) == (4, "train")
    pretrain_on(finished.config, tmp_path)
    assert metrics(tmp_path) == metrics(finished.model_dir)


@pytest.mark.slow
def test_a_stopped_run_resumes_from_that_very_step(tiny, pretrain_on, tmp_path: Path):
    """With no checkpoint due before, in the midst of a log interval."""
    config = tiny(trainer={"log_interval": 5, "checkpoint_interval": 10, "validation_interval": 8})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain_on(config, whole)

    class Terminate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RestartableError, match="stopped by SIGTERM at step 7, which is saved"):
        pretrain_on(config, stopped, callbacks=[Terminate()])
    assert not (stopped / "preset").exists()

    pretrain_on(config, stopped)
    assert_same_run(stopped, whole, step=10)


@pytest.mark.slow
def test_a_finished_run_only_writes_its_preset_again(finished, pretrain_on, tmp_path: Path):
    model_dir = tmp_path / "run"
    shutil.copytree(finished.model_dir, model_dir)
    shutil.rmtree(model_dir / "preset")
    pretrain_on(finished.config, model_dir)
    assert_same_run(model_dir, finished.model_dir, step=10)
    again, before = (
        np.load(folder / "preset" / "pretraining_heads.npz")
        for folder in (model_dir, finished.model_dir)
    )
    for name in before:
        np.testing.assert_array_equal(again[name], before[name])


@pytest.mark.slow
def test_a_schedule_of_lengths_over_a_mixture_resumes_exactly(
    tiny, pretrain_on, corpus, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Stopped before and after the switch, with batches of as many tokens on either side."""
    settings = {
        "objective": {"name": "masked_lm"},
        "data": {"sequence_length_schedule": [0.5, 8], "scale_batch_size": True},
        "trainer": {"train_steps": 6, "validation_interval": 2},
    }
    config = tiny(**settings)
    mixture = f"{corpus.train}=0.75,{corpus.validation}=0.25"

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain_on(config, whole, train_data=mixture)
    assert "are cut into 3 of up to 7 for a length of 8" in capsys.readouterr().err
    for stop in (3, 5):
        start_and_kill(pretrain_on, config, parts, step=stop, train_data=mixture)
    pretrain_on(config, parts, train_data=mixture)
    assert_same_run(parts, whole, step=6)
    lines = metrics(whole)
    # The stages' end at step 3 is validated too.
    validated = [line["step"] for line in lines if line["split"] == "validation"]
    assert validated == [2, 3, 4, 6]
    counts = [
        [line[f"sequences/{path}"] for path in (corpus.train, corpus.validation)]
        for line in lines
        if line["split"] == "train"
    ]
    # Of 8 sequences a step of 8 tokens, then of 4 of 16.
    assert [sum(count) for count in counts] == [16, 28, 36]
    card = (whole / "preset" / "README.md").read_text()
    assert "3 steps of 64 tokens, then 3 steps of 64 tokens, 384 in all" in card
    assert f"training, 0.75 of the sequences, {corpus.train}" in card
    with pytest.raises(UserError, match="with trainer.train_steps=6, not 8"):
        changed = tiny(**settings | {"trainer": {"train_steps": 8, "validation_interval": 2}})
        pretrain_on(changed, whole, train_data=mixture)
    with pytest.raises(UserError, match="with --train_data=.*=0.75,.*=0.25 .*, not .*=0.5,"):
        pretrain_on(config, whole, train_data=mixture.replace("=0.75", "=0.5"))


@pytest.mark.slow
def test_ramps_averages_and_durations_in_tokens_resume_exactly(
    tiny, pretrain_on, corpus, tmp_path: Path
):
    """Stopped in either stage of a batch size; the last step decays."""
    trainer = {"batch_size_schedule": [0.4, 2], "micro_batches": 2, "train_tokens": 16 * 16}
    config = tiny(
        objective={"scl_weight": 0.0},
        optimizer={"schedule": "wsd_sqrt", "decay_steps": 1, "warmup_steps": 1},
        trainer=trainer | {"train_steps": 1, "ema_decay": 0.5, "log_interval": 1},
    )
    check_config(config, "it")
    assert config.trainer.train_steps == 5
    mixture = f"{corpus.train}=0.75,{corpus.validation}=0.25"
    given = {"train_data": mixture, "validation_data": ""}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain_on(config, whole, **given)
    for stop in (1, 3):
        start_and_kill(pretrain_on, config, parts, step=stop, **given)
    pretrain_on(config, parts, **given)
    assert_same_run(parts, whole, step=5)
    lines = [line for line in metrics(whole) if line["split"] == "train"]
    assert [sum(line[f"sequences/{path}"] for path in corpus[2:]) for line in lines] == [
        2,
        4,
        8,
        12,
        16,
    ]
    peak = config.optimizer.learning_rate
    assert [line["learning_rate"] for line in lines] == pytest.approx([peak] * 5)

    # The second preset has the averages, which the checkpoint has too.
    saved = weights(whole, 5)
    for preset, of in (("preset", "state/"), ("preset_ema", "state/average/")):
        heads = np.load(whole / preset / HEADS_FILENAME)
        np.testing.assert_array_equal(heads["lm_head.bias"], saved[f"{of}lm_head/bias"])
        backbone = read_backbone(str(whole / preset))
        table = saved[f"{of}backbone/token_embedding/embeddings"]
        np.testing.assert_array_equal(backbone.token_embedding.embeddings, table)
    assert (saved["state/lm_head/bias"] != saved["state/average/lm_head/bias"]).any()
    card = (whole / "preset_ema" / "README.md").read_text()
    assert "exponential moving averages, of decay 0.5" in card and 'preset_ema"' in card


@pytest.mark.slow
def test_a_decay_that_branches_off_is_that_of_a_run_by_itself(
    tiny, pretrain_on, to_store, tmp_path: Path
):
    def wsd(train_steps: int, **trainer):
        kept = {"keep_checkpoint_interval": 2, "max_checkpoints": 1, "log_interval": 1}
        return tiny(
            objective={"name": "masked_lm"},
            optimizer={"schedule": "wsd", "decay_steps": 2, "warmup_steps": 1},
            trainer=kept | {"train_steps": train_steps} | trainer,
        )

    stable, alone = tmp_path / "stable", tmp_path / "alone"
    pretrain_on(wsd(9), stable, validation_data="")
    pretrain_on(wsd(6), alone, validation_data="")
    for number, source in enumerate((to_store(stable), str(stable))):
        config, branch = wsd(6, decay_from=f"{source}@4"), tmp_path / f"branch-{number}"
        # Before there is a checkpoint.
        start_and_kill(pretrain_on, config, branch, step=5, validation_data="")
        pretrain_on(config, branch, validation_data="")
        assert_same_run(branch, alone, step=6)
        change = f"steps 5 to 6: trainer.train_steps: 9 -> 6; trainer.decay_from:  -> {source}@4"
        assert change in (branch / "preset" / "README.md").read_text()
    # Its own checkpoints resume it; the run that it came from may be gone.
    shutil.rmtree(stable)
    pretrain_on(config, branch, validation_data="")


@pytest.mark.slow
def test_a_finished_runs_auxiliary_model_can_be_frozen(finished, tiny, pretrain_on, tmp_path: Path):
    preset = finished.model_dir / "preset"
    auxiliary = {"replacements": "frozen", "preset": str(preset), "num_layers": 1}
    objective = {"lm_weight": 0.0, "scl_weight": 0.0}
    pretrain_on(tiny(auxiliary=auxiliary, objective=objective), tmp_path, validation_data="")
    heads, source = (np.load(folder / HEADS_FILENAME) for folder in (tmp_path / "preset", preset))
    for name in ("masked_lm_head.dense.kernel", "masked_lm_head.bias"):
        np.testing.assert_array_equal(heads[name], source[name])
    assert (heads["copy_head.kernel"] != source["copy_head.kernel"]).any()
    backbones = [
        read_backbone(str(folder / "auxiliary")) for folder in (tmp_path / "preset", preset)
    ]
    for one, two in zip(*(backbone.weights for backbone in backbones), strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    # The main model has learned, with tables of its own.
    main = read_backbone(str(tmp_path / "preset")).token_embedding.embeddings
    assert (np.asarray(main) != np.asarray(backbones[0].token_embedding.embeddings)).any()
    assert {line["mlm_loss"] > 0 for line in metrics(tmp_path)} == {True}


@pytest.mark.slow
def test_mcl_takes_its_courses_and_resumes_after_an_interruption(tiny, pretrain_on, tmp_path: Path):
    config = tiny(objective={"name": "mcl"}, trainer={"train_steps": 6})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain_on(config, whole, validation_data="")
    start_and_kill(pretrain_on, config, cut, step=5, validation_data="")
    pretrain_on(config, cut, validation_data="")
    assert_same_run(cut, whole, step=6)
    lines = metrics(whole)
    assert {"re_std_loss", "itd_accuracy_replaced", "rtd_pos4"} <= lines[-1].keys()
    # What is fine-tuned, what generated, and the heads of all three courses.
    preset = whole / "preset"
    assert read_backbone(str(preset)).num_layers == config.model.num_layers
    assert read_backbone(str(preset / "auxiliary")).num_layers == 1
    heads = np.load(preset / HEADS_FILENAME)
    assert {"copy_head.kernel", "swap_head.kernel", "insert_head.kernel"} <= set(heads)
    assert "pretrained by MCL" in (preset / "README.md").read_text()


@pytest.fixture(scope="module")
def masked_lm(tiny, pretrain_on, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of masked language modeling, which traces the least."""
    model_dir = tmp_path_factory.mktemp("runs") / "masked_lm"
    pretrain_on(tiny(**MASKED_LM), model_dir)
    return model_dir


MASKED_LM = {"objective": {"name": "masked_lm"}}


@pytest.mark.slow
def test_masked_language_modeling_runs_alone(masked_lm: Path):
    assert metrics(masked_lm)[-1].keys() == {"step", "split", "loss", "mlm_loss", "mlm_accuracy"}
    assert not (masked_lm / "preset" / "auxiliary").exists()
    card = (masked_lm / "preset" / "README.md").read_text()
    assert "pretrained by masked language modeling" in card


@pytest.mark.slow
def test_several_steps_a_loop_are_the_same_steps(
    masked_lm: Path, tiny, pretrain_on, tmp_path: Path
):
    pretrain_on(tiny(trainer={"steps_per_loop": 2}, **MASKED_LM), tmp_path)
    assert_same_run(tmp_path, masked_lm, step=10)


@pytest.mark.slow
def test_replicas_share_the_batch(
    masked_lm: Path, tiny, pretrain_on, mirrored_strategy: tf.distribute.Strategy, tmp_path: Path
):
    pretrain_on(tiny(**MASKED_LM), tmp_path, strategy=mirrored_strategy)
    for line, one_device in zip(metrics(tmp_path), metrics(masked_lm), strict=True):
        assert (line["step"], line["split"]) == (one_device["step"], one_device["split"])
        # Replicas draw their own dropout; only over all of the validation does that even out.
        tolerance = 0.05 if line["split"] == "validation" else 0.2
        assert line["loss"] == pytest.approx(one_device["loss"], rel=tolerance)
    shapes = {name: value.shape for name, value in weights(tmp_path, 10).items()}
    assert shapes == {name: v.shape for name, v in weights(masked_lm, 10).items()}


def test_another_vocabularys_auxiliary_is_refused(
    finished, tiny, pretrain_on, tmp_path: Path, corpus
):
    preset = shutil.copytree(finished.model_dir / "preset", tmp_path / "preset")
    dictionary = preset / "assets" / "tokenizer" / "dict.txt"
    lines = dictionary.read_text().splitlines(keepends=True)
    dictionary.write_text("".join([*lines[1:], lines[0]]))
    with pytest.raises(UserError, match="auxiliary.preset=.* trained with another vocabulary"):
        pretrain_on(
            tiny(auxiliary={"replacements": "frozen", "preset": str(preset)}), tmp_path / "run"
        )


def test_the_preset_has_a_model_card(finished, corpus):
    """Everything that the run knows, and what it does not is said to be unknown."""
    card = (finished.model_dir / "preset" / "README.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["library_name"] == "keras-hub"
    assert "| optimizer.learning_rate | 0.0005 |" in body
    assert "| trainer.train_steps | 10 |" in body
    assert "10 steps of 64 tokens, 640 in all" in body
    manifest = json.loads(Path(corpus.train, "manifest.json").read_text())
    assert f"{manifest['counts']['documents']:,} documents" in body
    last = metrics(finished.model_dir)[-1]
    assert f"| mlm_loss | {last['mlm_loss']:.4f} |" in body
    assert "Energy" in body
    assert "**License:** More information needed." in body
    assert "@inproceedings{meng2021coco," in body


@pytest.mark.slow
def test_a_failed_run_is_ended_and_counted(tiny, pretrain_on, tmp_path: Path):
    config = tiny(
        objective={"name": "masked_lm"},
        optimizer={"learning_rate": 1e30, "warmup_steps": 0},
        trainer={"log_interval": 1, "max_skipped_updates": 3},
    )
    with pytest.raises(UserError, match="the last 3 updates were skipped.*begins at step 0"):
        pretrain_on(config, tmp_path, validation_data="")
    skipped = [line["skipped_updates"] for line in metrics(tmp_path)]
    assert skipped[0] == 0 and skipped[-3:] == [1, 1, 1]
    assert not (tmp_path / "preset").exists()
    # Where it has fewer steps than that, its preset would be ruined all the same.
    config.trainer.override({"train_steps": 3})
    with pytest.raises(UserError, match="the run's last 2 updates were skipped and its loss"):
        pretrain_on(config, tmp_path, validation_data="")
    assert not (tmp_path / "preset").exists()
    # The advice helps: nothing ruined is gone on with.
    config.optimizer.override({"learning_rate": 1e-4})
    pretrain_on(config, tmp_path, validation_data="")
    assert all(line["loss"] for line in metrics(tmp_path))


@pytest.mark.parametrize(
    ("mine", "all_together"), [(2800.0, 5600.0), (None, math.nan)], ids=["known", "unknown"]
)
def test_energy_is_that_of_all_hosts(
    monkeypatch: pytest.MonkeyPatch, mine: float | None, all_together: float
):
    """Two hosts of four GPUs each; where one does not know, nobody does."""
    told = []
    workers = types.SimpleNamespace(count=2, sum=lambda watts: told.append(watts) or all_together)
    monkeypatch.setattr(module, "device_type", lambda strategy: "GPU")
    monkeypatch.setattr(module, "power_limit", lambda *asked: {("GPU", 4): mine}[asked])
    watts = module._power_limit(types.SimpleNamespace(num_replicas_in_sync=8), workers)
    assert watts == (mine and 5600)
    assert told == [pytest.approx(mine or math.nan, nan_ok=True)], "every worker tells its own"


def test_the_peak_is_that_of_the_device_or_as_configured(
    tiny, monkeypatch: pytest.MonkeyPatch, mirrored_strategy
):
    config = tiny()
    flops = sum(pretraining_flops(config).values())
    peak_seconds = loop_module._peak_seconds
    pretrainer = types.SimpleNamespace(distribute_strategy=mirrored_strategy)
    assert peak_seconds(config, pretrainer) is None
    monkeypatch.setattr(loop_module, "peak_flops", lambda strategy, precision: 5.0 * flops)
    assert peak_seconds(config, pretrainer)(10) == pytest.approx(10 / 5)
    config.runtime.peak_flops = 3.0 * flops  # of each of two devices
    assert peak_seconds(config, pretrainer)(10) == pytest.approx(10 / 6)


# What is wrong is said before anything is written.


@pytest.mark.parametrize("argument", ["train_data", "validation_data", "vocabulary", "init_preset"])
def test_a_missing_folder_is_named(refused, argument: str):
    assert "/nowhere" in refused(**{argument: "/nowhere"})


def test_data_that_matches_nothing_is_named(refused, corpus):
    assert f"{corpus.train}/x*" in refused(train_data=f"{corpus.train}/x*")


def test_the_folder_above_the_data_is_told_apart(refused, corpus):
    assert f"give {corpus.train}" in refused(train_data=str(Path(corpus.train).parent))


def test_a_checkpoint_to_branch_off_that_is_not_there_is_named(refused, tiny, finished):
    trainer = {"decay_from": f"{finished.model_dir}@6", "train_steps": 12}
    complaint = refused(tiny(optimizer={"schedule": "wsd"}, trainer=trainer))
    assert complaint.startswith(f"trainer.decay_from={finished.model_dir}@6: ")
    assert "has kept checkpoints of these steps: 8, 10." in complaint


def test_a_vocabulary_of_another_size_is_refused(refused, tiny):
    complaint = refused(tiny(model={"vocabulary_size": 61}))
    assert "has 60 tokens, but model.vocabulary_size=61" in complaint


@pytest.fixture
def other_vocabulary(tmp_path: Path) -> str:
    from cocolm_tf.tokenization.vocabulary import train_vocabulary

    texts = ["pack my box with five dozen liquor jugs of quite other words", "and two more lines"]
    train_vocabulary(texts, 60, tmp_path / "other")
    return str(tmp_path / "other")


def test_data_of_another_vocabulary_is_refused(refused, other_vocabulary: str):
    assert "was built with another vocabulary" in refused(vocabulary=other_vocabulary)


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_preset_of_another_vocabulary_is_refused(
    refused, to_store, other_vocabulary: str, is_remote: bool
):
    """Their sizes are equal, so all else would fit."""
    preset = to_store(other_vocabulary) if is_remote else other_vocabulary
    assert "was trained with another vocabulary" in refused(init_preset=preset)


def test_a_batch_that_does_not_divide_is_refused(refused, tiny):
    complaint = refused(tiny(trainer={"batch_size": 5, "micro_batches": 2}))
    assert "trainer.batch_size=5" in complaint


@pytest.mark.parametrize("steps", [(0, 3), (5, 4), (5, 11)])
def test_steps_that_cannot_be_profiled_are_refused(refused, steps: tuple[int, int]):
    complaint = refused(profile_steps=steps)
    assert f"--profile_steps={steps[0]},{steps[1]} must be a first and a last step" in complaint
    assert "trainer.train_steps=10" in complaint


def test_too_little_to_validate_on_is_refused(refused, tiny):
    assert "too few to validate on" in refused(tiny(trainer={"batch_size": 1000}))


def test_compiling_for_several_replicas_is_refused(refused, tiny, mirrored_strategy):
    config = tiny(runtime={"jit_compile": True})
    assert "runtime.jit_compile" in refused(config, strategy=mirrored_strategy)


def test_a_preset_of_another_size_is_refused(refused, finished, tiny):
    config = tiny(model={"intermediate_dim": 20})
    complaint = refused(config, init_preset=str(finished.model_dir / "preset"))
    assert "intermediate_dim=16" in complaint


def files_of(model_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in model_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": {"num_layers": 2}}, "at step 10 of a run with model.num_layers=1, not 2: give"),
        ({"objective": {"copy_weight": 20.0}}, "with objective.copy_weight=50.0, not 20.0: give"),
        ({"trainer": {"batch_size": 8}}, "with trainer.batch_size=4, not 8: give"),
        ({"runtime": {"seed": 1}}, "with runtime.seed=0, not 1: give"),
        (
            {"optimizer": {"beta_2": 0.9}, "data": {"crop_fraction": 0.8}},
            "with data.crop_fraction=0.9, not 0.8, optimizer.beta_2=0.98, not 0.9: give",
        ),
        ({"trainer": {"train_steps": 8}}, "is already at step 10 of trainer.train_steps=8: give"),
    ],
)
def test_another_run_than_the_one_that_is_there_is_refused(
    finished, tiny, pretrain_on, changes, complaint: str
):
    before = files_of(finished.model_dir)
    with pytest.raises(UserError) as caught:
        pretrain_on(tiny(**changes), finished.model_dir)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
    assert files_of(finished.model_dir) == before


def test_other_data_than_a_run_was_begun_with_is_refused(
    finished, pretrain_on, corpus, tmp_path: Path
):
    """Also where it lies in the same place; and the same data may lie in another."""
    before = files_of(finished.model_dir)
    moved = shutil.copytree(corpus.train, tmp_path / "data")
    segment = segment_of(finished.config, str(moved), Input("v", "")).inputs["--train_data"]
    assert segment == History.read(str(finished.model_dir)).segments[0].inputs["--train_data"]
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = 64 * "0"
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"with --train_data={corpus.train} .*, not {moved} "):
        pretrain_on(finished.config, finished.model_dir, train_data=str(moved))
    preset = str(finished.model_dir / "preset")
    with pytest.raises(UserError, match=f"with --init_preset=none, not {preset} "):
        pretrain_on(finished.config, finished.model_dir, init_preset=preset)
    assert files_of(finished.model_dir) == before


@pytest.mark.slow
def test_what_may_change_is_printed_recorded_and_in_the_card(
    finished, tiny, pretrain_on, tmp_path: Path, capfd
):
    model_dir = tmp_path / "run"
    shutil.copytree(finished.model_dir, model_dir)
    longer = {"trainer": {"train_steps": 12}, "optimizer": {"learning_rate": 1e-4}}
    pretrain_on(tiny(**longer), model_dir, validation_data="")
    told = capfd.readouterr().err
    assert "resumed at step 10 with:" in told
    assert "optimizer.learning_rate: 0.0005 -> 0.0001" in told
    assert "trainer.train_steps: 10 -> 12" in told and "--validation_data: " in told
    history = History.read(str(model_dir))
    assert [segment.step for segment in history.segments] == [0, 10]
    card = (model_dir / "preset" / "README.md").read_text()
    assert "12 steps of 64 tokens, 768 in all" in card
    assert "steps 1 to 10; steps 11 to 12: optimizer.learning_rate: 0.0005 -> 0.0001" in card
    # And once more as it was just then: nothing is new.
    pretrain_on(tiny(**longer), model_dir, validation_data="")
    assert "resumed at step 12\n" in capfd.readouterr().err
    assert len(History.read(str(model_dir)).segments) == 2


def test_a_run_at_no_multiple_of_the_loop_is_refused(finished, tiny, pretrain_on):
    before = files_of(finished.model_dir)
    trainer = {"steps_per_loop": 4, "train_steps": 12, "log_interval": 4}
    with pytest.raises(UserError, match="stands at step 10.*trainer.steps_per_loop=4"):
        pretrain_on(tiny(trainer=trainer | {"checkpoint_interval": 4}), finished.model_dir)
    assert files_of(finished.model_dir) == before
