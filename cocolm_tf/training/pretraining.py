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
from cocolm_tf.data.manifest import Manifest
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.reading import read_errors_told
from cocolm_tf.data.special_tokens import SpecialTokens
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME, CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.accelerators import device_type, peak_flops
from cocolm_tf.training.build import (
    Pretrainer,
    build_pretrainer,
    build_views,
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
from cocolm_tf.training.config import PretrainingConfig, TrainerConfig, save_config
from cocolm_tf.training.distribution import per_replica_batch
from cocolm_tf.training.energy import power_limit
from cocolm_tf.training.flops import pretraining_flops
from cocolm_tf.training.identity import History, Input, Stretch, stretch_of
from cocolm_tf.training.preemption import StopSignal
from cocolm_tf.training.preset import load_frozen_auxiliary, load_preset, save_preset
from cocolm_tf.training.pretraining_card import pretraining_facts
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
        train_data: folder or glob of shards.
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
    with StopSignal() as stop, workers.loss_told(), read_errors_told():
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
        batches = _training_batches(train, config.trainer, strategy)
        opened, validation = {"training": train}, None
        if validation_data:
            held_out = _open_data(validation_data, tokenizer, config, checksums)
            opened["validation"] = held_out
            # What fits into memory in training must also do so in validation.
            parts = config.trainer.micro_batches
            validation = held_out.validation_batches(
                config.trainer.batch_size // parts, config.trainer.validation_steps * parts
            )

        pretrainer = _build(config, tokenizer, init_preset, strategy)
        checkpoints = Checkpoints(
            checkpoint_dir,
            pretrainer,
            config.trainer.max_checkpoints,
            config.trainer.keep_checkpoint_interval,
            workers,
        )
        step = checkpoints.restore()
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
                batches,
                validation,
                checkpoints,
                workers,
                stop,
                callbacks,
                profile_steps,
            )
        preset = os.path.join(model_dir, "preset")
        watts = _power_limit(strategy, workers)
        if workers.is_chief:
            manifests = {name: Manifest.load(data.paths[0]) for name, data in opened.items()}
            facts = pretraining_facts(config, pretrainer, manifests, history, watts)
            save_preset(pretrainer, tokenizer, preset, facts)
        # Who ends first would be missed by the others.
        workers.wait_for_all()
        return preset


def _train(
    pretrainer: Pretrainer,
    config: PretrainingConfig,
    model_dir: str,
    batches: Callable[[int], tf.distribute.DistributedDataset],
    validation: tf.data.Dataset | None,
    checkpoints: Checkpoints,
    workers: Workers,
    stop: StopSignal,
    further: Sequence[keras.callbacks.Callback],
    profile_steps: Sequence[int],
) -> None:
    """Trains from where the pretrainer stands to the end, and saves that."""
    trainer, step = config.trainer, steps_taken(pretrainer)
    speed = (
        trainer.batch_size * config.data.sequence_length,
        _peak_tokens_per_second(config, pretrainer.distribute_strategy),
    )
    log = MetricsLog(model_dir if workers.is_chief else None, step, trainer.log_interval, *speed)
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
        if step and (step % trainer.validation_interval == 0 or step == trainer.train_steps):
            # The run may have been ended between a checkpoint and the validation of its step.
            is_missing = workers.is_chief and not log.has(step, "validation")
            if validation is not None and workers.any(is_missing):
                pretrainer.evaluate(validation, callbacks=callbacks, verbose=0)
        elif step:
            callbacks.append(ResumeMetrics(checkpoints))
        for steps, epochs in _segments(step, trainer):
            pretrainer.fit(
                batches(step),
                epochs=epochs,
                steps_per_epoch=steps,
                validation_data=validation,
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )
            step += steps * epochs
    if skipped := skipped_in_a_row(pretrainer):
        # Fewer than end a run, but it has no more steps: what becomes a preset must work.
        measured = pretrainer.evaluate(batches(step), steps=1, verbose=0, return_dict=True)
        if not math.isfinite(measured["loss"]):
            raise checkpoints.hopeless(
                f"the run's last {skipped} updates were skipped and its loss is not finite"
            )
    checkpoints.save()
    checkpoints.wait()


def _peak_tokens_per_second(
    config: PretrainingConfig, strategy: tf.distribute.Strategy
) -> float | None:
    """The tokens a second that the devices would train on at their peak; None for not known."""
    peak = config.runtime.peak_flops * strategy.num_replicas_in_sync
    peak = peak or peak_flops(strategy, config.runtime.precision)
    tokens = config.trainer.batch_size * config.data.sequence_length
    return peak and peak * tokens / sum(pretraining_flops(config).values())


def _power_limit(strategy: tf.distribute.Strategy, workers: Workers) -> float | None:
    """Watts of all workers' devices; None if any does not know its own. All workers call it."""
    watts = power_limit(device_type(strategy), strategy.num_replicas_in_sync // workers.count)
    total = workers.sum(math.nan if watts is None else watts)
    return None if math.isnan(total) else total


def _training_batches(
    data: PretrainingData, trainer: TrainerConfig, strategy: tf.distribute.Strategy
) -> Callable[[int], tf.distribute.DistributedDataset]:
    """Shares the batches out. What it returns gives those from a step on."""
    size = per_replica_batch(trainer.batch_size, trainer.micro_batches, strategy)

    def batches(step: int) -> tf.distribute.DistributedDataset:
        def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
            # Each of a host's replicas takes one batch a step.
            replicas = context.num_replicas_in_sync // context.num_input_pipelines
            return data.training_batches(
                size, step * replicas, context.num_input_pipelines, context.input_pipeline_id
            )

        return strategy.distribute_datasets_from_function(of_host)

    return batches


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


def _segments(step: int, trainer: TrainerConfig) -> Iterator[tuple[int, int]]:
    """Cuts what is left of a run into stretches of equal epochs that end in a validation.

    Yields:
        Steps an epoch, and how many such epochs follow each other.
    """
    interval, end = trainer.validation_interval, trainer.train_steps
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
    special = SpecialTokens(mask=tokenizer.mask_token_id)
    opened = PretrainingData.open(
        pattern,
        config.data.sequence_length,
        special,
        config.data.mask_fraction,
        config.data.crop_fraction,
        config.runtime.seed,
        tokenizer,
        checksums,
        config.data.skip_corrupt,
        pipelines,
        pipeline,
    )
    return dataclasses.replace(opened, views=build_views(config, tokenizer.mask_token_id))
