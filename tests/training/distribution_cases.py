"""Training on given batches under any strategy, with everything written down.

Tests call `train` in their own process; several workers are processes that call `train_worker`.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf.data.augmentation import SpecialTokens
from cocolm_tf.data.mcl_augmentation import MCLAugmentation
from cocolm_tf.data.pipeline import Dataset, PretrainingData
from cocolm_tf.data.shards import serialize
from cocolm_tf.modeling import masked_lm
from cocolm_tf.training.build import build_augmentation, build_pretrainer, compile_pretrainer
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.distribution import make_strategy

BATCH, LENGTH, MASK = 8, 12, 59
SPECIAL = SpecialTokens(mask=MASK)

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
OTHER_COURSES = [f"{name}_weight" for name in ("slm", "std", "itd", "re_slm", "re_std")]
SAMPLING_MODES = ("eval", "train", "zero_dropout")


class Case(NamedTuple):
    """What a training is of.

    `exact` takes all randomness away that depends on the replica. Without `contrasts` it detects
    replaced tokens only: contrasts of micro-batches are the most to trace, as they are unrolled.
    With `one_course`, MCL has only that of masked tokens, and its corrections.
    """

    precision: str = "float32"
    micro_batches: int = 1
    steps_per_loop: int = 1
    sampling: str = "eval"
    steps: int = 4
    exact: bool = False
    objective: str = "coco_lm"
    sharded: bool = False
    contrasts: bool = True
    one_course: bool = False

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


Place = tuple[str, Case]


# As few as have every value of each factor at least once.
FEW: list[Place] = [
    ("one_device", Case("float32", 1, 1, "train")),
    ("mirrored", Case("mixed_bfloat16", 1, 1, "eval")),
    ("workers", Case("mixed_float16", 2, 2, "zero_dropout", contrasts=False)),
]


def others() -> list[Place]:
    """All other combinations of strategy, precision, micro-batches, steps a loop and sampling."""
    strategies = ("one_device", "mirrored", "workers")
    values = itertools.product(strategies, PRECISIONS, (1, 2), (1, 2), SAMPLING_MODES)
    few = {(strategy, *case[:4]) for strategy, case in FEW}
    return [(strategy, Case(*rest)) for strategy, *rest in values if (strategy, *rest) not in few]


def config_of(case: Case) -> PretrainingConfig:
    config = PretrainingConfig()
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 16}
    positions = {"relative_position_bins": 8, "relative_position_max_distance": 12}
    dropout = 0.0 if case.exact else 0.1
    config.override(
        {
            "model": sizes
            | positions
            | {"vocabulary_size": 60, "max_sequence_length": LENGTH, "dropout": dropout},
            "auxiliary": {"num_layers": 1, "sampling": case.sampling},
            "objective": {"name": case.objective}
            | ({} if case.contrasts else {"lm_weight": 0.0, "scl_weight": 0.0}),
            "mcl": dict.fromkeys(OTHER_COURSES, 0.0) if case.one_course else {},
            "data": {"sequence_length": LENGTH},
            # So large that no weight moves by the sign of a gradient that is all rounding error.
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0, "epsilon": 1e-3}
            | {"sharded": case.sharded},
            "trainer": {
                "batch_size": BATCH,
                "micro_batches": case.micro_batches,
                "train_steps": 1000,
            },
            "runtime": {"precision": case.precision},
        }
    )
    return config


def batches(steps: int, objective: str = "coco_lm") -> dict[str, np.ndarray]:
    """Global batches, one after the other, whose sequences have 0 to 3 masked tokens."""
    rng = np.random.default_rng(0)
    rows = steps * BATCH
    token_ids = rng.integers(4, MASK, (rows, LENGTH)).astype(np.int32)
    token_ids[:, 0] = 0
    real = np.arange(LENGTH) < rng.integers(LENGTH // 2, LENGTH + 1, (rows, 1))
    token_ids = np.where(real, token_ids, 1)
    positions = [np.sort(rng.choice(np.arange(1, LENGTH // 2), 3, False)) for _ in range(rows)]
    # The first of two replicas, and of four, has fewer of them than the others.
    masked = rng.integers(0, 4, (rows, 1)) * (np.arange(rows)[:, np.newaxis] % BATCH > 1)
    masks = {
        "masked_positions": np.stack(positions).astype(np.int32),
        "masked_weights": (np.arange(3) < masked).astype(np.float32),
    }
    if objective == "mcl":
        augment = MCLAugmentation(SPECIAL, 0.25, 0.2, 0.15)
        batch = augment(tf.constant(token_ids), tf.constant([0, 1]))
        return {name: np.asarray(value) for name, value in batch.items()} | masks
    crop = np.concatenate([token_ids[:, :1], token_ids[:, 2:-1]], axis=1)
    crops = {"crop_token_ids": crop, "crop_padding_mask": crop != 1}
    return {"token_ids": token_ids, "padding_mask": real} | masks | crops


def write_shards(folder: Path) -> None:
    """Writes two shards to validate on, whose sequences do not fill the last batch."""
    rows = batches(4)["token_ids"]
    for number, part in enumerate((rows[:11], rows[11:29])):
        with tf.io.TFRecordWriter(str(folder / f"data-{number:05d}-of-00002.tfrecord")) as writer:
            for row in part:
                writer.write(serialize(row[row != 1].tolist()))


def validation_batches(folder: Path, config: PretrainingConfig) -> tf.data.Dataset:
    paths = [str(path) for path in sorted(folder.glob("*.tfrecord"))]
    augmentation = build_augmentation(config, MASK)
    data = PretrainingData([Dataset("shards", paths, [11, 18], LENGTH)], LENGTH, augmentation)
    return data.validation_batches(BATCH)


def train(strategy: tf.distribute.Strategy, case: Case, shards: Path) -> dict[str, np.ndarray]:
    """Trains and writes down, and validates an exact case.

    Returns:
        `metrics` [loops, names], `names`, `weights` [loops, all of them], `validation` [names],
        `moments` [all of them].
    """
    config, found = config_of(case), {"metrics": [], "weights": []}
    with strategy.scope():
        pretrainer = build_pretrainer(config, MASK)
        rng = np.random.default_rng(0)
        for variable in pretrainer.trainable_variables:
            center = 1.0 if variable.path.endswith("gamma") else 0.0
            variable.assign(center + rng.normal(0, 0.25, variable.shape))
        compile_pretrainer(pretrainer, config, case.steps_per_loop)
    if case.precision == "mixed_float16":
        # What it would come down to by itself, skipping the few steps that there are.
        pretrainer.loss_scale.assign(2.0**8)

    def of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        size = BATCH // context.num_replicas_in_sync
        parts = tf.data.Dataset.from_tensor_slices(batches(case.steps, case.objective))
        parts = parts.batch(size, drop_remainder=True)
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        groups = parts.batch(replicas, drop_remainder=True)
        return groups.shard(context.num_input_pipelines, context.input_pipeline_id).unbatch()

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            found["metrics"].append([float(value) for value in logs.values()])
            found["names"] = list(logs)
            weights = [v.numpy().ravel() for v in self.model.trainable_variables]
            found["weights"].append(np.concatenate(weights))
            self.model.reset_metrics()

    sample = likeliest if case.exact else masked_lm.sample_tokens
    with mock.patch.object(masked_lm, "sample_tokens", sample):
        pretrainer.fit(
            strategy.distribute_datasets_from_function(of_host),
            steps_per_epoch=case.steps,
            callbacks=[Record()],
            shuffle=False,
            verbose=0,
        )
        if case.exact:
            measured = pretrainer.evaluate(
                validation_batches(shards, config), return_dict=True, verbose=0
            )
            found["validation"] = [float(measured[name]) for name in found["names"]]
            found["moments"] = moments_of(pretrainer)
    return {name: np.array(values) for name, values in found.items()}


def moments_of(pretrainer: keras.Model) -> np.ndarray:
    """All moments, read, written back and read again."""
    optimizer = pretrainer.optimizer
    slots = [s for v in pretrainer.trainable_variables for s in optimizer.slots(v).values()]
    for slot in slots:
        slot.assign(slot.numpy())
    return np.concatenate([slot.numpy().ravel() for slot in slots])


def likeliest(logits: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
    """Takes the place of sampling, as seeds differ between replicas."""
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def train_worker(cases: list[Case], shards: Path, output: Path) -> None:
    """Trains the cases, one after the other, as one of several workers."""
    strategy, found = make_strategy("multi_worker_mirrored"), {}
    for case in cases:
        results = train(strategy, case, shards)
        found |= {f"{case.name}/{name}": value for name, value in results.items()}
    np.savez(output, **found)
