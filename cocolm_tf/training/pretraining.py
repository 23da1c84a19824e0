"""A pretraining run: shards in, a preset out."""

import os
from collections.abc import Iterator

import tensorflow as tf

from cocolm_tf.data.manifest import Manifest
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.special_tokens import SpecialTokens
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME, CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import build_pretrainer, compile_pretrainer
from cocolm_tf.training.callbacks import (
    MetricsLog,
    ProgressBar,
    SaveCheckpoints,
    StopHopelessRun,
)
from cocolm_tf.training.checkpoints import Checkpoints
from cocolm_tf.training.config import PretrainingConfig, TrainerConfig, save_config
from cocolm_tf.training.distribution import per_replica_batch
from cocolm_tf.training.preset import load_frozen_auxiliary, load_preset, save_preset
from cocolm_tf.training.pretraining_card import pretraining_facts


def pretrain(
    config: PretrainingConfig,
    train_data: str,
    vocabulary: str,
    model_dir: str,
    strategy: tf.distribute.Strategy,
    validation_data: str = "",
    init_preset: str = "",
) -> str:
    """Pretrains, or goes on pretraining where an earlier run with the same folder stopped.

    Args:
        config: what to train and how.
        train_data: folder or glob of shards.
        vocabulary: folder of the vocabulary that the shards were built with.
        model_dir: RUN. Gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and,
            at the end, `preset/`.
        strategy: the devices.
        validation_data: folder or glob of shards held out, or nothing.
        init_preset: a preset to start from, or nothing.

    Returns:
        The path of the preset.

    Raises:
        UserError: if something given does not exist or does not fit the rest.

    Example:
    ```python
    config = load_config("configs/pretrain/small.yaml")
    pretrain(config, "data", "vocabulary", "runs/first", make_strategy("one_device"))
    ```
    """
    tokenizer = _matching_vocabulary(vocabulary, config)
    if init_preset:
        _check_vocabulary_of("--init_preset", init_preset, tokenizer)
    if config.auxiliary.preset:
        _check_vocabulary_of("auxiliary.preset", config.auxiliary.preset, tokenizer)
    train = _open_data(train_data, tokenizer, config)
    validation = _open_data(validation_data, tokenizer, config) if validation_data else None
    replica_batch = per_replica_batch(
        config.trainer.batch_size, config.trainer.micro_batches, strategy
    )
    # What fits into memory in training must also do so in validation.
    parts = config.trainer.micro_batches
    validation_batches = validation and validation.validation_batches(
        config.trainer.batch_size // parts, config.trainer.validation_steps * parts
    )
    if config.runtime.jit_compile and strategy.num_replicas_in_sync > 1:
        raise UserError(
            "runtime.jit_compile=true compiles the step of one device: set it to false for "
            f"the {strategy.num_replicas_in_sync} of this strategy."
        )

    with strategy.scope():
        pretrainer = build_pretrainer(config, tokenizer.mask_token_id)
        if init_preset:
            missing = load_preset(pretrainer, init_preset)
            if missing:
                print(f"Not in {init_preset}, so initialized afresh: {', '.join(missing)}.")
        if config.auxiliary.preset:
            load_frozen_auxiliary(pretrainer, config.auxiliary.preset)
        compile_pretrainer(pretrainer, config, config.trainer.steps_per_loop)
    checkpoints = Checkpoints(
        os.path.join(model_dir, "checkpoints"), pretrainer, config.trainer.max_checkpoints
    )
    step = checkpoints.restore()
    if step % config.trainer.steps_per_loop:
        raise UserError(
            f"{model_dir} stands at step {step}, which is not a multiple of "
            f"trainer.steps_per_loop={config.trainer.steps_per_loop}: set one that divides it."
        )
    os.makedirs(model_dir, exist_ok=True)
    save_config(config, os.path.join(model_dir, "config.yaml"))

    def host_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        # Each of a host's replicas takes one batch a step.
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        return train.training_batches(
            replica_batch, step * replicas, context.num_input_pipelines, context.input_pipeline_id
        )

    tokens_per_step = config.trainer.batch_size * config.data.sequence_length
    bar = ProgressBar(step, config.trainer.train_steps, tokens_per_step)
    callbacks = [
        MetricsLog(model_dir, step, config.trainer.log_interval, tokens_per_step),
        SaveCheckpoints(checkpoints, config.trainer.checkpoint_interval),
        StopHopelessRun(config.trainer.max_skipped_updates),
        bar,
    ]
    for steps, epochs in _segments(step, config.trainer):
        pretrainer.fit(
            strategy.distribute_datasets_from_function(host_batches),
            epochs=epochs,
            steps_per_epoch=steps,
            validation_data=validation_batches,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )
        step += steps * epochs
    bar.close()
    checkpoints.save()
    preset = os.path.join(model_dir, "preset")
    opened = {"training": train, "validation": validation}
    manifests = {name: Manifest.load(data.paths[0]) for name, data in opened.items() if data}
    facts = pretraining_facts(config, pretrainer, manifests, model_dir, init_preset)
    save_preset(pretrainer, tokenizer, preset, facts)
    return preset


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


def _matching_vocabulary(vocabulary: str, config: PretrainingConfig) -> CocoLMTokenizer:
    tokenizer = load_vocabulary(vocabulary)
    if tokenizer.vocabulary_size() != config.model.vocabulary_size:
        raise UserError(
            f"--vocabulary={vocabulary} has {tokenizer.vocabulary_size()} tokens, but "
            f"model.vocabulary_size={config.model.vocabulary_size}."
        )
    return tokenizer


def _check_vocabulary_of(name: str, preset: str, tokenizer: CocoLMTokenizer) -> None:
    if not os.path.isfile(os.path.join(preset, CONFIG_FILENAME)):
        return  # It has weights only, as a converted checkpoint may.
    if load_vocabulary(preset).fingerprint() != tokenizer.fingerprint():
        raise UserError(
            f"{name}={preset} was trained with another vocabulary than --vocabulary: "
            f"give --vocabulary={preset} and data built with it."
        )


def _open_data(
    pattern: str, tokenizer: CocoLMTokenizer, config: PretrainingConfig
) -> PretrainingData:
    data = PretrainingData.open(
        pattern,
        config.data.sequence_length,
        SpecialTokens(mask=tokenizer.mask_token_id),
        config.data.mask_fraction,
        config.data.crop_fraction,
        config.runtime.seed,
    )
    Manifest.load(data.paths[0]).verify(tokenizer, checksums=config.data.verify_checksums)
    return data
