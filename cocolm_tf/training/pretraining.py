"""A pretraining run: shards in, a preset out."""

import math
import os
import sys
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.costs.accelerators import device_type, power_limit
from cocolm_tf.data.augmentation import word_starts
from cocolm_tf.data.pipeline import PretrainingData, ReplacedData
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
from cocolm_tf.training.checkpoints import Checkpoints, checkpoint_steps, steps_taken
from cocolm_tf.training.config import PretrainingConfig, save_config
from cocolm_tf.training.distribution import StopSignal, Workers
from cocolm_tf.training.feed import Feed
from cocolm_tf.training.identity import (
    History,
    Input,
    Segment,
    segment_of,
    split_decay_from,
)
from cocolm_tf.training.loop import train
from cocolm_tf.training.monitoring import METRICS_FILENAME, read_lines, write_lines
from cocolm_tf.training.preset import (
    AVERAGE_SUFFIX,
    load_frozen_auxiliary,
    load_preset,
    save_preset,
)
from cocolm_tf.training.pretraining_card import averaged_facts, pretraining_facts


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

    A resumed run may change how far, how fast and how observed it trains, and its learning rate
    and the like; changes are printed and recorded. See `identity`.

    Args:
        config: What to train and how.
        train_data: Folder or glob of shards, or several with weights, as `wiki=0.7,books=0.3`.
        vocabulary: Folder of the vocabulary that the shards were built with.
        model_dir: RUN. Gets `config.yaml`, `history.json`, `metrics.jsonl`, `tensorboard/`,
            `checkpoints/` and, at the end, `preset/`. Of several workers, the chief alone reads
            and writes it.
        strategy: The devices.
        validation_data: Folder or glob of held-out shards; empty for none.
        init_preset: A preset to start from; empty for fresh weights.
        callbacks: Only their `on_train_batch_end` and `on_test_*` are called.
        profile_steps: The first and the last step, counted from 1, of a profile for TensorBoard;
            empty for no profile.

    Returns:
        The path of the preset.

    Raises:
        UserError: If something given does not exist or does not fit the rest, or would make
            another run of the one in `model_dir`.
        RestartableError: If the run is ended by SIGTERM or by the loss of another worker. Called
            again with the same arguments, it resumes.

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
    # The shards that are read, for the message about one that cannot be.
    shards: list[Callable[[], list[str]]] = []
    read = explain_read_errors(lambda: [path for paths in shards for path in paths()])
    with StopSignal() as stop, workers.lost_worker_errors(), read:
        checkpoint_dir = os.path.join(model_dir, "checkpoints")
        if workers.is_chief:
            files.check_writable(model_dir, "--model_dir")
        tokenizer = matching_vocabulary(vocabulary, config)
        saved: list[int] = []
        if workers.is_chief:
            saved = checkpoint_steps(checkpoint_dir)
            known = Input(vocabulary, tokenizer.fingerprint())
            replicas = strategy.num_replicas_in_sync
            segment = segment_of(config, train_data, known, validation_data, init_preset, replicas)
            if config.trainer.decay_from and not saved:
                history = History.branch(config.trainer.decay_from, model_dir)
                history.check(segment, split_decay_from(config.trainer.decay_from)[1])
            else:
                history = History.read(model_dir)
            if saved:
                history.check(segment, saved[-1])
                _check_length(config, model_dir, saved[-1])
        # A resumed run does not wait until all data is read through again: what it reads is
        # checked as it is read, by the checksums of the records.
        is_resumed = workers.any(bool(saved))
        is_branched = bool(config.trainer.decay_from) and not is_resumed
        if is_resumed or is_branched:
            init_preset = ""  # Its weights are the checkpoint's.
        if init_preset:
            _check_vocabulary_of("--init_preset", init_preset, tokenizer)
        if config.auxiliary.replacements == "frozen":
            _check_vocabulary_of("auxiliary.preset", config.auxiliary.preset, tokenizer)
        checksums = config.data.verify_checksums and not is_resumed
        data = open_data(train_data, tokenizer, config, checksums, workers.count, workers.index)
        if isinstance(data, ReplacedData):
            data.check(config.trainer.batch_size, config.trainer.train_steps)
        held_out = None
        if validation_data:
            held_out = open_data(validation_data, tokenizer, config, checksums)
        feed = Feed(data, config, strategy, workers, held_out)

        pretrainer = _build(config, tokenizer, init_preset, strategy)
        checkpoints = Checkpoints(
            checkpoint_dir,
            pretrainer,
            config.trainer.max_checkpoints,
            config.trainer.keep_checkpoint_interval,
            workers,
        )
        if is_branched:
            run, step = split_decay_from(config.trainer.decay_from)
            step = checkpoints.restore(step, os.path.join(run, "checkpoints"))
        else:
            step = checkpoints.restore()
        shards.append(lambda: feed.shards(steps_taken(pretrainer)))
        if step % config.trainer.steps_per_loop:
            raise UserError(
                f"{model_dir} stands at step {step}, which is not a multiple of "
                f"trainer.steps_per_loop={config.trainer.steps_per_loop}: set one that divides it."
            )
        if workers.is_chief:
            _record(config, history, segment, step)
        with stop.deferred():
            train(
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
        if config.trainer.ema_decay:
            with pretrainer.averaged_weights():
                if workers.is_chief:
                    facts = averaged_facts(facts, config.trainer.ema_decay)
                    save_preset(pretrainer, tokenizer, f"{preset}{AVERAGE_SUFFIX}", facts)
        # The others would take a worker that ends first for lost.
        workers.wait_for_all()
        return preset


def _power_limit(strategy: tf.distribute.Strategy, workers: Workers) -> float | None:
    """Watts of all workers' devices; None if any worker's are unknown. All workers call it."""
    watts = power_limit(device_type(strategy), strategy.num_replicas_in_sync // workers.count)
    total = workers.sum(math.nan if watts is None else watts)
    return None if math.isnan(total) else total


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
        if config.auxiliary.replacements == "frozen":
            load_frozen_auxiliary(pretrainer.auxiliary, config.auxiliary.preset)
        compile_pretrainer(pretrainer, config, config.trainer.steps_per_loop)
    return pretrainer


def _check_length(config: PretrainingConfig, model_dir: str, step: int) -> None:
    """Refuses a run that is past its last step: it would seem to have ended there."""
    if step > config.trainer.train_steps:
        raise UserError(
            f"--model_dir={model_dir} is already at step {step} of "
            f"trainer.train_steps={config.trainer.train_steps}: give at least {step} to go on with "
            "it, or another --model_dir for a shorter run."
        )


def _record(config: PretrainingConfig, history: History, segment: Segment, step: int) -> None:
    """Records the configuration from now on, and prints the changes."""
    files.make_dirs(history.model_dir)
    if history.branched_from:  # Its log begins with that of the run it branched off.
        run, _ = split_decay_from(history.branched_from)
        lines = read_lines(os.path.join(run, METRICS_FILENAME))
        write_lines(os.path.join(history.model_dir, METRICS_FILENAME), lines, step)
    changes = history.resume(segment, step)
    history.save()
    save_config(config, os.path.join(history.model_dir, "config.yaml"))
    if step:
        begun = f"branched off {history.branched_from}" if history.branched_from else "resumed"
        first = f"{begun} at step {step}" + (" with:" if changes else "")
        print("\n  ".join([first, *changes]), file=sys.stderr)


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


def open_data(
    pattern: str,
    tokenizer: CocoLMTokenizer,
    config: PretrainingConfig,
    checksums: bool,
    pipelines: int = 1,
    pipeline: int = 0,
) -> PretrainingData:
    """Opens the data that a run trains or validates on."""
    starts = None
    if config.data.masking != "token":
        starts = word_starts(tokenizer.get_vocabulary())
    augmentation = build_augmentation(config, tokenizer.mask_token_id, starts)
    arguments = (
        pattern,
        config.data.sequence_length,
        augmentation,
        config.runtime.seed,
        tokenizer,
        checksums,
    )
    if config.auxiliary.replacements == "stored":
        return ReplacedData.open(*arguments)
    return PretrainingData.open(
        *arguments,
        config.data.skip_corrupt,
        pipelines,
        pipeline,
    )
