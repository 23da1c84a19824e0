"""The loop of a pretraining run: steps, and when to log, save, stop and validate."""

import contextlib
import math
import os
from collections.abc import Sequence

import keras

from cocolm_tf.costs.accelerators import peak_flops
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.errors import RestartableError
from cocolm_tf.modeling.training_step import TrainingStep
from cocolm_tf.training.checkpoints import Checkpoints, steps_taken
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.distribution import StopSignal, Workers
from cocolm_tf.training.feed import Feed
from cocolm_tf.training.monitoring import (
    TENSORBOARD_DIRECTORY,
    MetricsLog,
    Profile,
    ProgressBar,
    print_skipped_update,
)
from cocolm_tf.training.stages import Total, tokens_per_step


def train(
    pretrainer: TrainingStep,
    config: PretrainingConfig,
    model_dir: str,
    feed: Feed,
    checkpoints: Checkpoints,
    workers: Workers,
    stop: StopSignal,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    profile_steps: Sequence[int] = (),
) -> None:
    """Trains from the pretrainer's step to the run's last one, and saves a checkpoint of it."""
    trainer, step = config.trainer, steps_taken(pretrainer)
    sums = Total(config, tokens_per_step), _peak_seconds(config, pretrainer)
    directory = model_dir if workers.is_chief else None  # the chief alone writes
    log = MetricsLog(directory, step, *sums, feed.sequences_by_dataset())

    def stop_if_asked() -> None:
        if workers.any(stop.received):
            _stop(pretrainer, checkpoints, workers)

    in_validation = keras.callbacks.LambdaCallback(
        on_test_batch_end=lambda batch, logs=None: stop_if_asked()
    )
    for callback in callbacks:
        callback.set_model(pretrainer)

    def validate() -> None:
        batches = feed.validation(step - 1)
        if batches is not None:
            found = pretrainer.evaluate(
                batches, callbacks=[in_validation, *callbacks], verbose=0, return_dict=True
            )
            log.write_validation(step, found)
            if bar:
                bar.print_validation(step, found)
        pretrainer.reset_metrics()

    with contextlib.ExitStack() as stack:
        bar = profile = None
        if workers.is_chief:
            bar = ProgressBar(step, trainer.train_steps, *sums)
            stack.callback(bar.close)
            if profile_steps:
                profile = Profile(os.path.join(model_dir, TENSORBOARD_DIRECTORY), *profile_steps)
                stack.callback(profile.close)

        # A run may have stopped between the checkpoint of a step and the validation of that step.
        ends = [stage.end for stage in feed.stages]
        if step and (step % trainer.validation_interval == 0 or step in ends):
            if workers.any(workers.is_chief and not log.has(step, "validation")):
                validate()
        elif step:
            checkpoints.restore_metrics()

        take_steps = pretrainer.make_train_function()
        is_skip_reported = is_checkpoint_due = False
        for stage in feed.stages:
            if step >= stage.end:
                continue
            pretrainer.micro_batches = stage.config.trainer.micro_batches
            batches = iter(feed.training(step))
            while step < stage.end:
                first, step = step + 1, step + trainer.steps_per_loop
                with profile.record(first, step) if profile else contextlib.nullcontext():
                    logs = take_steps(batches)
                skipped = skipped_in_a_row(pretrainer)

                is_log_due = step % trainer.log_interval == 0
                looks_for_skips = (is_log_due or skipped) and not is_skip_reported
                if looks_for_skips and pretrainer.skipped_at.numpy():
                    is_skip_reported = True
                    if workers.is_chief:
                        print_skipped_update(pretrainer)
                if is_log_due:  # before the checkpoint, so that what is saved is logged
                    log.write_training(step, logs)
                    pretrainer.reset_metrics()  # so that each line has the means of its own steps

                # Weights after which no update succeeds are ruined, and not saved.
                is_checkpoint_due |= step % trainer.checkpoint_interval == 0
                if is_checkpoint_due and not skipped:
                    checkpoints.save()
                    is_checkpoint_due = False
                checkpoints.check()
                if skipped >= trainer.max_skipped_updates:
                    raise checkpoints.failure(
                        f"the last {skipped} updates were skipped, as their losses or gradients "
                        "were not finite,"
                    )
                stop_if_asked()

                for callback in callbacks:
                    callback.on_train_batch_end(step - 1, logs)
                if bar:
                    bar.update(step, logs)
                if step % trainer.validation_interval == 0 or step == stage.end:
                    validate()

    if skipped := skipped_in_a_row(pretrainer):
        # Too few to end the run before, but no steps are left, and the preset's weights must work.
        found = pretrainer.evaluate(feed.training(step), steps=1, verbose=0, return_dict=True)
        if not math.isfinite(found["loss"]):
            raise checkpoints.failure(
                f"the run's last {skipped} updates were skipped and its loss is not finite"
            )
    checkpoints.save()
    checkpoints.wait()


def skipped_in_a_row(pretrainer: TrainingStep) -> int:
    """How many updates were skipped since the last one that was not."""
    return int(pretrainer.skipped_in_a_row.numpy())


def _stop(pretrainer: TrainingStep, checkpoints: Checkpoints, workers: Workers) -> None:
    """Ends the run for SIGTERM, with a checkpoint of the step that it has reached."""
    step, skipped = steps_taken(pretrainer), skipped_in_a_row(pretrainer)
    if not skipped:
        checkpoints.save()
    checkpoints.wait()
    # The others would take a worker that ends first for lost.
    workers.wait_for_all()
    if skipped:
        raise RestartableError(
            f"stopped by SIGTERM at step {step}, whose last {skipped} updates were skipped: it is "
            "not saved, and starting again with the same flags resumes from the checkpoint before."
        )
    raise RestartableError(
        f"stopped by SIGTERM at step {step}, which is saved: start again with the same flags to "
        "resume."
    )


def _peak_seconds(config: PretrainingConfig, pretrainer: TrainingStep) -> Total | None:
    """The seconds that steps would take at the peak of all devices; None if it is not known."""
    strategy = pretrainer.distribute_strategy
    peak = config.runtime.peak_flops * strategy.num_replicas_in_sync
    peak = peak or peak_flops(strategy, config.runtime.precision)
    return peak and Total(config, lambda stage: sum(pretraining_flops(stage).values()) / peak)
