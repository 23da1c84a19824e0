"""A pretraining run: shards in, a preset out."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.costs.accelerators import device_type, peak_flops
from cocolm_tf.costs.energy import power_limit
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.data.augmentation import word_starts
from cocolm_tf.data.manifest import Manifest
from cocolm_tf.data.pipeline import PretrainingData, pieces
from cocolm_tf.data.reading import explain_read_errors
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME, CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import (
    Pretrainer,
    build_augmentation,
    build_pretrainer,
    compile_pretrainer,
)
from cocolm_tf.training.callbacks import (
    TENSORBOARD_DIRECTORY,
    MetricsLog,
    Profile,
    ProgressBar,
    ResumeMetrics,
    SaveCheckpoints,
    StopHopelessRun,
    StopWhenAsked,
    TellSkippedUpdate,
    skipped_in_a_row,
)
from cocolm_tf.training.checkpoints import Checkpoints, checkpoint_steps, steps_taken
from cocolm_tf.training.config import PretrainingConfig, save_config
from cocolm_tf.training.distribution import per_replica_batch
from cocolm_tf.training.identity import History, Input, Stretch, stretch_of
from cocolm_tf.training.preemption import StopSignal
from cocolm_tf.training.preset import load_frozen_auxiliary, load_preset, save_preset
from cocolm_tf.training.pretraining_card import pretraining_facts
from cocolm_tf.training.stages import Stage, Total, stage_at, stages, tokens_per_step
from cocolm_tf.training.workers import Workers


def pretrain(
    config: PretrainingConfig,
    train_data: str,
    vocabulary: str,
    model_dir: str,
    strategy: tf.distribute.Strategy,
    validation_data: str = "",
    init_preset: str = "",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    profile_steps: Sequence[int] = (),
) -> str:
    """Pretrains, or resumes where an earlier call with the same folder stopped.

    A resumed run may differ from what it was in how far, how fast and how watched it trains, and
    in its learning rate and the like; that is printed and recorded. See `identity`.

    Args:
        config: what to train and how.
        train_data: folder or glob of shards, or several with weights, as `wiki=0.7,books=0.3`.
        vocabulary: folder of the vocabulary that the shards were built with.
        model_dir: RUN. Gets `config.yaml`, `history.json`, `metrics.jsonl`, `tensorboard/`,
            `checkpoints/` and, at the end, `preset/`. Of several workers, the chief alone reads
            and writes it.
        strategy: the devices.
        validation_data: folder or glob of shards held out, or nothing.
        init_preset: a preset to start from, or nothing.
        callbacks: what else is to be called, after the run's own.
        profile_steps: the first and the last step, counted from 1, of a profile for TensorBoard;
            nothing for no profile.

    Returns:
        The path of the preset.

    Raises:
        UserError: if something given does not exist or does not fit the rest, or would make
            another run of the one in `model_dir`.
        RestartableError: if the run is ended by SIGTERM or by the loss of another worker. Called
            again with the same arguments, it goes on.

    Example:
    ```python
    config = load_config("configs/pretrain/small.yaml")
    pretrain(config, "data", "vocabulary", "runs/first", make_strategy("one_device"))
    ```
    """
    if (
        profile_steps
        and not 1 <= profile_steps[0] <= profile_steps[1] <= config.trainer.train_steps
    ):
        raise UserError(
            f"--profile_steps={profile_steps[0]},{profile_steps[1]} must be a first and a last "
            f"step between 1 and trainer.train_steps={config.trainer.train_steps}."
        )
    workers = Workers(strategy)
    # The shards that are read, for what is told of one that cannot be.
    shards: list[Callable[[], list[str]]] = []
    read = explain_read_errors(lambda: [path for paths in shards for path in paths()])
    with StopSignal() as stop, workers.loss_told(), read:
        checkpoint_dir = os.path.join(model_dir, "checkpoints")
        if workers.is_chief:
            files.check_writable(model_dir, "--model_dir")
        tokenizer = matching_vocabulary(vocabulary, config)
        saved: list[int] = []
        if workers.is_chief:
            saved = checkpoint_steps(checkpoint_dir)
            known = Input(vocabulary, tokenizer.fingerprint())
            replicas = strategy.num_replicas_in_sync
            stretch = stretch_of(config, train_data, known, validation_data, init_preset, replicas)
            history = History.read(model_dir)
            if saved:
                history.check(stretch, saved[-1])
                _check_length(config, model_dir, saved[-1])
        # A run that goes on does not wait until all data is read through again: what it reads is
        # checked as it is read, by the checksums of the records.
        goes_on = workers.any(bool(saved))
        if goes_on:
            init_preset = ""  # Its weights are the checkpoint's.
        if init_preset:
            _check_vocabulary_of("--init_preset", init_preset, tokenizer)
        if config.auxiliary.preset:
            _check_vocabulary_of("auxiliary.preset", config.auxiliary.preset, tokenizer)
        checksums = config.data.verify_checksums and not goes_on
        train = _open_data(train_data, tokenizer, config, checksums, workers.count, workers.index)
        feed = _Feed(train, config, strategy, workers)
        if validation_data:
            feed.held_out = _open_data(validation_data, tokenizer, config, checksums)
            for stage in feed.stages:
                feed.validation(stage.begin)  # What is too small for it is told now.

        pretrainer = _build(config, tokenizer, init_preset, strategy)
        checkpoints = Checkpoints(
            checkpoint_dir,
            pretrainer,
            config.trainer.max_checkpoints,
            config.trainer.keep_checkpoint_interval,
            workers,
        )
        step = checkpoints.restore()
        shards.append(lambda: feed.shards(steps_taken(pretrainer)))
        if step % config.trainer.steps_per_loop:
            raise UserError(
                f"{model_dir} stands at step {step}, which is not a multiple of "
                f"trainer.steps_per_loop={config.trainer.steps_per_loop}: set one that divides it."
            )
        if workers.is_chief:
            _record(config, history, stretch, step)
        with stop.deferred():
            _train(
                pretrainer,
                config,
                model_dir,
                feed,
                checkpoints,
                workers,
                stop,
                callbacks,
                profile_steps,
            )
        preset = os.path.join(model_dir, "preset")
        watts = _power_limit(strategy, workers)
        if workers.is_chief:
            facts = pretraining_facts(config, pretrainer, feed.manifests(), history, watts)
            save_preset(pretrainer, tokenizer, preset, facts)
        # Who ends first would be missed by the others.
        workers.wait_for_all()
        return preset


def _train(
    pretrainer: Pretrainer,
    config: PretrainingConfig,
    model_dir: str,
    feed: "_Feed",
    checkpoints: Checkpoints,
    workers: Workers,
    stop: StopSignal,
    further: Sequence[keras.callbacks.Callback],
    profile_steps: Sequence[int],
) -> None:
    """Trains from where the pretrainer stands to the end, and saves that."""
    trainer, step = config.trainer, steps_taken(pretrainer)
    speed = (
        Total(config, tokens_per_step),
        _peak_seconds(config, pretrainer.distribute_strategy),
    )
    directory = model_dir if workers.is_chief else None
    log = MetricsLog(directory, step, trainer.log_interval, *speed, feed.counts())
    callbacks = [
        log,  # before the checkpoint, so that what is saved is logged
        SaveCheckpoints(checkpoints, trainer.checkpoint_interval),
        StopHopelessRun(trainer.max_skipped_updates, checkpoints),
        StopWhenAsked(stop, checkpoints, workers),
        *further,
    ]
    with contextlib.ExitStack() as stack:
        if workers.is_chief:
            bar = ProgressBar(step, trainer.train_steps, *speed)
            callbacks.append(stack.enter_context(contextlib.closing(bar)))
            # Before what may end the run for it.
            callbacks.insert(0, TellSkippedUpdate(trainer.log_interval))
            if profile_steps:
                profile = Profile(os.path.join(model_dir, TENSORBOARD_DIRECTORY), *profile_steps)
                callbacks.append(stack.enter_context(contextlib.closing(profile)))
        ends = [stage.end for stage in feed.stages]
        if step and (step % trainer.validation_interval == 0 or step in ends):
            # The run may have been ended between a checkpoint and the validation of its step.
            is_missing = workers.is_chief and not log.has(step, "validation")
            if feed.held_out and workers.any(is_missing):
                pretrainer.evaluate(feed.validation(step - 1), callbacks=callbacks, verbose=0)
        elif step:
            callbacks.append(ResumeMetrics(checkpoints))
        for steps, epochs in _segments(step, trainer.validation_interval, ends):
            pretrainer.fit(
                feed.training(step),
                epochs=epochs,
                steps_per_epoch=steps,
                validation_data=feed.validation(step),
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )
            step += steps * epochs
    if skipped := skipped_in_a_row(pretrainer):
        # Fewer than end a run, but it has no more steps: what becomes a preset must work.
        measured = pretrainer.evaluate(feed.training(step), steps=1, verbose=0, return_dict=True)
        if not math.isfinite(measured["loss"]):
            raise checkpoints.hopeless(
                f"the run's last {skipped} updates were skipped and its loss is not finite"
            )
    checkpoints.save()
    checkpoints.wait()


def _peak_seconds(config: PretrainingConfig, strategy: tf.distribute.Strategy) -> Total | None:
    """The seconds of a step at the devices' peak; None for not known."""
    peak = config.runtime.peak_flops * strategy.num_replicas_in_sync
    peak = peak or peak_flops(strategy, config.runtime.precision)
    return peak and Total(config, lambda stage: sum(pretraining_flops(stage).values()) / peak)


def _power_limit(strategy: tf.distribute.Strategy, workers: Workers) -> float | None:
    """Watts of all workers' devices; None if any does not know its own. All workers call it."""
    watts = power_limit(device_type(strategy), strategy.num_replicas_in_sync // workers.count)
    total = workers.sum(math.nan if watts is None else watts)
    return None if math.isnan(total) else total


class _Feed:
    """What a run trains and validates on: batches of each stage's length."""

    def __init__(
        self,
        train: PretrainingData,
        config: PretrainingConfig,
        strategy: tf.distribute.Strategy,
        workers: Workers,
    ) -> None:
        self.stages = stages(config)
        self.held_out: PretrainingData | None = None
        self._validations: dict[int, tf.data.Dataset] = {}
        self._train, self._strategy, self._workers = train, strategy, workers
        self._replicas = strategy.num_replicas_in_sync // workers.count
        for stage in self.stages:
            self._size(stage)  # A batch that cannot be shared out is told now.
            _tell_cut(train, stage.config.data.sequence_length)

    def training(self, step: int) -> tf.distribute.DistributedDataset:
        """The batches from a step on, shared out, of the length of its stage."""
        stage = stage_at(self.stages, step)
        size, data = self._size(stage), _of_stage(self._train, stage)

        def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
            # Each of a host's replicas takes one batch a step.
            replicas = context.num_replicas_in_sync // context.num_input_pipelines
            return data.training_batches(
                size, step * replicas, context.num_input_pipelines, context.input_pipeline_id
            )

        return self._strategy.distribute_datasets_from_function(of_host)

    def validation(self, step: int) -> tf.data.Dataset | None:
        """What is validated on in the stage of a step, at its length; None for nothing."""
        stage = stage_at(self.stages, step)
        if self.held_out and stage.begin not in self._validations:
            # What fits into memory in training must also do so in validation.
            trainer = stage.config.trainer
            self._validations[stage.begin] = _of_stage(self.held_out, stage).validation_batches(
                trainer.batch_size // trainer.micro_batches,
                trainer.validation_steps * trainer.micro_batches,
            )
        return self._validations.get(stage.begin)

    def counts(self) -> Callable[[int], dict[str, int]] | None:
        """Of several datasets, how many sequences of each there were up to a step, to be logged."""
        if len(self._train.datasets) == 1:
            return None

        def of_stage(stage: Stage, step: int) -> dict[str, int]:
            return _of_stage(self._train, stage).sequences_by_dataset(
                self._size(stage), step * self._replicas, self._workers.count
            )

        def counts(step: int) -> dict[str, int]:
            total = dict.fromkeys((one.pattern for one in self._train.datasets), 0)
            for stage in (stage for stage in self.stages if stage.begin < step):
                before, after = of_stage(stage, stage.begin), of_stage(stage, min(step, stage.end))
                total = {name: n + after[name] - before[name] for name, n in total.items()}
            return {f"sequences/{name}": n for name, n in total.items()}

        return counts

    def shards(self, step: int) -> list[str]:
        """This host's shards, those first that are read at a step."""
        stage = stage_at(self.stages, step)
        paths = _of_stage(self._train, stage).paths_from(
            self._size(stage), step * self._replicas, self._workers.count, self._workers.index
        )
        held_out = self.held_out.datasets if self.held_out else ()
        return paths + [path for one in held_out for path in one.paths]

    def manifests(self) -> dict[str, Manifest]:
        """Those of the data, by what it is for."""
        datasets = self._train.datasets
        names, whole = ["training"], sum(one.weight for one in datasets)
        if len(datasets) > 1:
            names = [
                f"training, {one.weight / whole:.4g} of the sequences, {one.pattern}"
                for one in datasets
            ]
        manifests = {
            name: Manifest.load(one.paths[0]) for name, one in zip(names, datasets, strict=True)
        }
        if self.held_out:
            manifests["validation"] = Manifest.load(self.held_out.datasets[0].paths[0])
        return manifests

    def _size(self, stage: Stage) -> int:
        trainer = stage.config.trainer
        return per_replica_batch(trainer.batch_size, trainer.micro_batches, self._strategy)


def _of_stage(data: PretrainingData, stage: Stage) -> PretrainingData:
    return dataclasses.replace(data, sequence_length=stage.config.data.sequence_length)


def _tell_cut(data: PretrainingData, length: int) -> None:
    """Says how full sequences are that are cut from longer ones, as a little more may hold more."""
    for one in data.datasets:
        if (count := pieces(one.record_length, length)) > 1:
            inner = one.record_length - 2
            print(
                f"{one.pattern}: sequences of up to {one.record_length} tokens are cut into "
                f"{count} of up to {-(-inner // count) + 2} for a length of {length}; "
                f"{-(-inner // (count - 1)) + 2} would hold each of {count - 1}.",
                file=sys.stderr,
            )


def _build(
    config: PretrainingConfig,
    tokenizer: CocoLMTokenizer,
    init_preset: str,
    strategy: tf.distribute.Strategy,
) -> Pretrainer:
    with strategy.scope():
        pretrainer = build_pretrainer(config, tokenizer.mask_token_id)
        if init_preset:
            missing = load_preset(pretrainer, init_preset)
            if missing:
                print(f"Not in {init_preset}, so initialized afresh: {', '.join(missing)}.")
        if config.auxiliary.preset:
            load_frozen_auxiliary(pretrainer, config.auxiliary.preset)
        compile_pretrainer(pretrainer, config, config.trainer.steps_per_loop)
    return pretrainer


def _segments(step: int, interval: int, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cuts what is left of a run into stretches of equal epochs that end in a validation.

    Yields:
        Steps an epoch, and how many such epochs follow each other; none goes past a stage's end.
    """
    for end in ends:
        while step < end:
            steps = min(interval - step % interval, end - step)
            epochs = 1 if step % interval else max(1, (end - step) // interval)
            yield steps, epochs
            step += steps * epochs


def _check_length(config: PretrainingConfig, model_dir: str, step: int) -> None:
    """A run that is past its end would be said to have ended there."""
    if step > config.trainer.train_steps:
        raise UserError(
            f"--model_dir={model_dir} is already at step {step} of "
            f"trainer.train_steps={config.trainer.train_steps}: give at least {step} to go on with "
            "it, or another --model_dir for a shorter run."
        )


def _record(config: PretrainingConfig, history: History, stretch: Stretch, step: int) -> None:
    """Writes what holds from now on, and tells what changes."""
    files.make_dirs(history.model_dir)
    changes = history.go_on(stretch, step)
    history.save()
    save_config(config, os.path.join(history.model_dir, "config.yaml"))
    if step:
        told = ["resumed at step " + str(step) + (" with:" if changes else "")]
        print("\n  ".join([*told, *changes]), file=sys.stderr)


def matching_vocabulary(vocabulary: str, config: PretrainingConfig) -> CocoLMTokenizer:
    """The tokenizer of a vocabulary, which must have the size that the model is to have."""
    tokenizer = load_vocabulary(vocabulary)
    if tokenizer.vocabulary_size() != config.model.vocabulary_size:
        raise UserError(
            f"--vocabulary={vocabulary} has {tokenizer.vocabulary_size()} tokens, but "
            f"model.vocabulary_size={config.model.vocabulary_size}."
        )
    return tokenizer


def _check_vocabulary_of(name: str, preset: str, tokenizer: CocoLMTokenizer) -> None:
    if not files.is_file(os.path.join(preset, CONFIG_FILENAME)):
        return  # It has weights only, as a converted checkpoint may.
    if load_vocabulary(preset).fingerprint() != tokenizer.fingerprint():
        raise UserError(
            f"{name}={preset} was trained with another vocabulary than --vocabulary: "
            f"give --vocabulary={preset} and data built with it."
        )


def _open_data(
    pattern: str,
    tokenizer: CocoLMTokenizer,
    config: PretrainingConfig,
    checksums: bool,
    pipelines: int = 1,
    pipeline: int = 0,
) -> PretrainingData:
    starts = None
    if config.data.masking != "token":
        starts = word_starts(tokenizer.get_vocabulary())
    return PretrainingData.open(
        pattern,
        config.data.sequence_length,
        build_augmentation(config, tokenizer.mask_token_id, starts),
        config.runtime.seed,
        tokenizer,
        checksums,
        config.data.skip_corrupt,
        pipelines,
        pipeline,
    )
