"""Draws the replacements of a run beforehand, so that it needs no auxiliary model.

What a run with a frozen auxiliary model (`auxiliary.replacements: frozen`) reads and samples in
each step is a function of its configuration and data. It is written step by step, and a run with
`auxiliary.replacements: stored` trains on it.
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.shards import (
    COUNTS,
    FEATURES,
    FILE_NAME,
    TEMPORARY_SUFFIX,
    Manifest,
    Shard,
    serialize,
    sha256_of,
    shard_name,
    write_shard,
)
from cocolm_tf.errors import UserError
from cocolm_tf.fingerprints import fingerprint
from cocolm_tf.modeling.corruption import SamplingTemperature, replace_tokens, sample_tokens
from cocolm_tf.modeling.masked_lm import MaskedLanguageModel
from cocolm_tf.modeling.training_step import Batch, generator_states
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.training.build import build_auxiliary, sampling_temperature
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.preset import load_frozen_auxiliary

# Describes an unfinished draw, which resumes only if it is the same.
STATE_FILENAME = "draw.json"
# The orders of records: those in which `PretrainingData` gives them to train or to validate on.
TRAINING, VALIDATION = "training", "validation"

Draw = Callable[[Batch, int], tf.Tensor]


def sample_replacements(
    auxiliary: MaskedLanguageModel,
    batch: Batch,
    mask_token_id: int,
    seed: tf.Tensor,
    temperature: tf.Tensor | float = 1.0,
    chunk_rows: int = 0,
) -> tf.Tensor:
    """Samples a token for each masked position, [B, M] int32, as `CocoLMPretrainer` does."""
    original, positions = batch["token_ids"], batch["masked_positions"]
    masked = replace_tokens(original, positions, mask_token_id, batch["masked_weights"])

    def sample(logits: tf.Tensor, numbers: tf.Tensor) -> tuple[tf.Tensor]:
        return (sample_tokens(logits, seed, numbers[0], temperature),)

    (sampled,) = auxiliary.map_logits(
        sample,
        {"token_ids": masked, "padding_mask": batch["padding_mask"]},
        positions,
        [tf.range(tf.size(positions))],
        chunk_rows,
    )
    return tf.reshape(sampled, tf.shape(positions))


def precompute_replacements(
    config: PretrainingConfig,
    train_data: str,
    tokenizer: CocoLMTokenizer,
    output_dir: str,
    open_data: Callable[[str], PretrainingData],
    validation_data: str = "",
    num_shards: int = 16,
) -> list[Manifest]:
    """Writes the data and samples of a run with a frozen auxiliary model: `train`, `validation`."""
    # `open_data` opens what `pretrain` would read. Steps are shared out evenly among the shards; a
    # draw that was stopped resumes with the same arguments, and keeps the finished shards.
    _check(config, num_shards)
    trainer, parts = config.trainer, config.trainer.micro_batches
    train, held_out = open_data(train_data), validation_data and open_data(validation_data)
    auxiliary = build_auxiliary(config)
    load_frozen_auxiliary(auxiliary, config.auxiliary.preset)
    draw = _drawer(config, auxiliary, tokenizer.mask_token_id)
    identity = {
        "config": _of_draw(config),
        "auxiliary": fingerprint(config.auxiliary.preset),
    }
    written = []
    for name, data in ((TRAINING, train), (VALIDATION, held_out)):
        if not data:
            continue
        if name == TRAINING:
            size, steps, shards = trainer.batch_size, trainer.train_steps, num_shards
            batches: Callable[[int], tf.data.Dataset] = functools.partial(
                data.training_batches, size
            )
            sample = functools.partial(_in_parts, draw, parts)
        else:
            size, shards = trainer.batch_size // parts, 1
            whole = data.validation_batches(size, trainer.validation_steps * parts)
            steps, batches = int(whole.cardinality()), whole.skip
            # At the temperature of the run's end; see `TrainingStep.temperature_now`.
            sample = functools.partial(_at_end, draw, trainer.train_steps)
        sources = [Manifest.load(one.paths[0]) for one in data.datasets]
        facts = identity | {
            "order": name,
            "steps": steps,
            "batch_size": size,
            "slots": next(iter(batches(0).element_spec["masked_positions"].shape[1:])),
            "data": [
                source.fingerprint(one.paths)
                for source, one in zip(sources, data.datasets, strict=True)
            ],
            "shards": shards,
        }
        folder = files.join(output_dir, "train" if name == TRAINING else "validation")
        written.append(_write(folder, facts, sources, config, batches, sample))
    return written


def _check(config: PretrainingConfig, num_shards: int) -> None:
    if config.auxiliary.replacements != "frozen" or config.objective.name != "coco_lm":
        raise UserError(
            "replacements are drawn beforehand from an auxiliary model that does not learn: set "
            "auxiliary.replacements=frozen and auxiliary.preset, with objective.name=coco_lm."
        )
    if config.data.sequence_length_schedule or config.trainer.batch_size_schedule:
        raise UserError(
            "replacements are drawn for batches of one shape, without a "
            "data.sequence_length_schedule or a trainer.batch_size_schedule."
        )
    if num_shards > config.trainer.train_steps:
        raise UserError(
            f"--num_shards={num_shards} is more than trainer.train_steps="
            f"{config.trainer.train_steps}: a shard has one step at least."
        )


def _of_draw(config: PretrainingConfig) -> dict[str, Any]:
    """The part of a configuration that decides which tokens are drawn."""
    data, auxiliary = config.data.as_dict(), config.auxiliary.as_dict()
    for key in ("verify_checksums", "skip_corrupt", "scale_batch_size"):
        del data[key]
    del auxiliary["preset"]  # compared by its content
    keys = ("train_steps", "batch_size", "micro_batches", "validation_steps")
    return {
        "data": data,
        "auxiliary": auxiliary,
        "trainer": {key: getattr(config.trainer, key) for key in keys},
        "runtime": {key: getattr(config.runtime, key) for key in ("seed", "precision")},
    }


def _drawer(
    config: PretrainingConfig, auxiliary: MaskedLanguageModel, mask_token_id: int
) -> Callable[[Batch, tf.Tensor, tf.Tensor], tf.Tensor]:
    """The function that draws the tokens of a micro-batch of a step."""
    schedule: SamplingTemperature | None = sampling_temperature(config)
    jit_compile = bool(tf.config.list_physical_devices("GPU"))

    @tf.function(autograph=False, jit_compile=jit_compile)
    def draw(batch: Batch, step: tf.Tensor, micro_batch: tf.Tensor) -> tf.Tensor:
        # The first of the pretrainer's generators, on its first replica.
        seed = next(generator_states(config.runtime.seed, step, 0, micro_batch))
        temperature = schedule.at(step) if schedule else 1.0
        return sample_replacements(
            auxiliary, batch, mask_token_id, seed, temperature, config.runtime.logit_chunk_rows
        )

    return draw


def _in_parts(draw: Callable[..., tf.Tensor], parts: int, batch: Batch, step: int) -> tf.Tensor:
    cut = {name: tf.reshape(x, [parts, -1, *x.shape[1:]]) for name, x in batch.items()}
    drawn = [
        draw({name: x[part] for name, x in cut.items()}, tf.constant(step), tf.constant(part))
        for part in range(parts)
    ]
    return tf.concat(drawn, axis=0)


def _at_end(draw: Callable[..., tf.Tensor], end: int, batch: Batch, step: int) -> tf.Tensor:
    return draw(batch, tf.constant(end), tf.constant(step))


def _write(
    folder: str,
    facts: dict[str, Any],
    sources: Sequence[Manifest],
    config: PretrainingConfig,
    batches: Callable[[int], tf.data.Dataset],
    sample: Draw,
) -> Manifest:
    """Writes the shards that are missing, and then the manifest."""
    state = files.join(folder, STATE_FILENAME)
    if files.is_file(files.join(folder, FILE_NAME)):
        raise UserError(f"{folder} has a finished dataset: give another --output_dir.")
    if names := files.list_dir(folder):
        if STATE_FILENAME not in names:
            raise UserError(f"{folder} is not empty: give another --output_dir.")
        if json.loads(files.read_text(state)) != facts:
            raise UserError(
                f"{folder} has part of another draw: give another --output_dir, or what that one "
                "was begun with."
            )
    files.make_dirs(folder)
    files.write_text(state, json.dumps(facts, indent=2) + "\n")
    count, steps, size = facts["shards"], facts["steps"], facts["batch_size"]
    bounds = [number * steps // count for number in range(count + 1)]
    found = []
    with tqdm(total=steps, unit="step", desc=facts["order"]) as progress:
        for number, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            path = files.join(folder, shard_name(number, count))
            if not files.is_file(path):
                records = _records(batches(begin).take(end - begin), begin, sample, progress)
                with tempfile.TemporaryDirectory(prefix="cocolm_tf.") as scratch:
                    write_shard(path, records, scratch)
                files.rename(path + TEMPORARY_SUFFIX, path)
            else:
                progress.update(end - begin)
            # The counts of text are those of the sources, however often it was read.
            texts = [source.counts for source in sources] if not found else []
            found.append(_described(path, (end - begin) * size, texts))
    manifest = Manifest(
        folder,
        config.data.sequence_length,
        sources[0].vocabulary_size,
        sources[0].vocabulary_fingerprint,
        sources[0].parameters | {"replacements": facts},
        tuple(found),
    )
    manifest.save()
    files.remove(state)
    return manifest


def _records(batches: tf.data.Dataset, begin: int, sample: Draw, progress: tqdm) -> Iterator[bytes]:
    for step, batch in enumerate(batches, begin):
        replacements = sample(batch, step).numpy()
        arrays = [batch[n].numpy() for n in ("token_ids", "padding_mask")]
        arrays += [batch[n].numpy() for n in ("masked_positions", "masked_weights")]
        for ids, real, positions, weights, drawn in zip(*arrays, replacements, strict=True):
            used = weights > 0
            yield serialize(ids[real], masked_positions=positions[used], replacements=drawn[used])
        progress.update()


def _described(path: str, sequences: int, texts: Sequence[Mapping[str, int]]) -> Shard:
    """A shard's entry in the manifest, from reading all of it."""
    records = tokens = 0
    try:
        for batch in tf.data.TFRecordDataset(path).batch(1024):
            ids = tf.io.parse_example(batch, FEATURES)["token_ids"]
            records, tokens = records + int(batch.shape[0]), tokens + int(tf.size(ids.values))
    except tf.errors.DataLossError:
        records = -1
    if records != sequences:
        raise UserError(f"{path} is damaged: remove it, and start again with the same flags.")
    counts = {name: sum(text[name] for text in texts) for name in COUNTS}
    counts |= {"sequences": sequences, "tokens": tokens}
    return Shard(os.path.basename(path), **counts, bytes=files.size(path), sha256=sha256_of(path))
