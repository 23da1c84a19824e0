"""How fast fine-tuning is, beside what it was without static shapes, on the same batches."""

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.alternation import (
    Contender,
    alternate,
    spread_of_ratios,
    thread_environment,
)
from cocolm_tf.costs.accelerators import describe_device
from cocolm_tf.costs.step_benchmark import summarize
from cocolm_tf.finetuning.config import from_dict
from cocolm_tf.finetuning.run import build_optimizer
from cocolm_tf.finetuning.tasks import task_of
from cocolm_tf.finetuning.tasks.task import Prepared

# One program for all widths, operation by operation, as Keras makes it; and one for each width,
# with fused operations, or compiled as a whole where there is a GPU.
WAYS = ("unknown_shapes", "static_shapes")


def measure_finetuning(
    spec: Mapping[str, Any], batches: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Times the same steps of fine-tuning in each of `WAYS`, in alternation."""
    contenders = [
        Contender(
            name,
            functools.partial(finetuning_steps, spec, batches, name),
            thread_environment(threads),
        )
        for name in WAYS
    ]
    timings = alternate(contenders, rounds, warmup_calls=0)
    config = from_dict(spec["config"], "the configuration")
    facts = timings[WAYS[0]].first_result
    # Where other processes want the machine too, only CPU seconds tell something.
    cpu = {
        name: [result["cpu_seconds"] for result in timing.results]
        for name, timing in timings.items()
    }
    return {
        "device": describe_device(),
        "precision": config.runtime.precision,
        "threads": threads,
        "rounds": rounds,
        "batch_size": config.trainer.batch_size,
        "batches": batches,
        "rows": facts["rows"],
        "tokens": facts["tokens"],
        "ways": {
            name: {
                "seconds": summarize(timing.seconds),
                "cpu_seconds": summarize(cpu[name]),
                "first_seconds": timing.first_seconds,
                "examples_per_second": facts["rows"] / float(np.median(timing.seconds)),
                "speedup": spread_of_ratios(timings[WAYS[0]].seconds, timing.seconds),
                "cpu_speedup": spread_of_ratios(cpu[WAYS[0]], cpu[name]),
            }
            for name, timing in timings.items()
        },
    }


def finetuning_steps(spec: Mapping[str, Any], count: int, way: str) -> Callable[[], dict[str, Any]]:
    """Builds a model and returns the function that learns from so many batches."""
    prepared, batches = _prepared(spec, count)
    model = prepared.model
    rows = sum(_real_rows(weights) for _, _, weights in batches)
    tokens = sum(int(tf.size(x["token_ids"])) for x, *_ in batches)
    if way == WAYS[0]:
        # Keras's own step, which takes batches of any shape.
        model.optimizer.build(model.trainable_variables)
        model.train_function = keras.Model._make_function(
            model,
            tf.autograph.experimental.do_not_convert(
                lambda data: keras.Model.train_step(model, data)
            ),
        )
    else:
        model.make_train_function(force=True)

    def steps() -> dict[str, Any]:
        started = time.process_time()
        for batch in batches:
            logs = model.train_function(iter([batch]) if way == WAYS[0] else _BatchWithSpec(batch))
        float(logs["loss"])
        spent = time.process_time() - started
        return {"rows": rows, "tokens": tokens, "cpu_seconds": spent}

    return steps


def export_batches(spec: Mapping[str, Any], count: int, path: str) -> None:
    """Writes the batches that are timed, for programs without TensorFlow."""
    # As `numpy.savez` does: `batch{i}/token_ids`, `/padding_mask`, `/weights` and `/label`, or
    # `/start` and `/end`; and `sizes`, the encoder's and the optimizer's settings as JSON.
    prepared, batches = _prepared(spec, count)
    backbone, config = prepared.model.backbone, from_dict(spec["config"], "the configuration")
    arrays: dict[str, Any] = {}
    for number, (x, y, weights) in enumerate(batches):
        labels = y if isinstance(y, dict) else {"label": y}
        for name, value in {**x, **labels, "weights": weights}.items():
            arrays[f"batch{number}/{name}"] = np.asarray(value)
    sizes = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
    sizes += ("dropout", "max_sequence_length", "initializer_range")
    described = {name: getattr(backbone, name) for name in sizes}
    described["classes"] = getattr(prepared.model, "num_classes", 0)
    described |= {
        "precision": config.runtime.precision,
        "optimizer": config.optimizer.as_dict(),
        "name": prepared.name,
    }
    np.savez(path, sizes=json.dumps(described), **arrays)


class _BatchWithSpec:
    """One batch as an iterator whose shapes are announced, as those of `training_batches` are."""

    def __init__(self, batch: Any) -> None:
        self._batches: Iterator[Any] = iter([batch])
        self.element_spec = tf.nest.map_structure(
            lambda x: tf.TensorSpec([x.shape[0], *[None] * (x.shape.rank - 1)], x.dtype), batch
        )

    def __iter__(self) -> "_BatchWithSpec":
        return self

    def __next__(self) -> Any:
        return next(self._batches)


def _prepared(spec: Mapping[str, Any], count: int) -> tuple[Prepared, list[Any]]:
    """A compiled model and the first so many batches of its training."""
    config = from_dict(spec["config"], "the configuration")
    prepared = task_of(spec).prepare(config)
    dataset, steps, _ = prepared.training()
    model = prepared.model
    model.compile(
        build_optimizer(config.optimizer, 100 * steps, model, model.backbone),
        metrics=[],
        **prepared.compile_arguments(),
    )
    return prepared, list(dataset.take(count))


def _real_rows(weights: tf.Tensor) -> int:
    """How many rows of a batch are no padding."""
    rows = np.reshape(weights, [len(weights), -1])
    return int(np.any(rows != 0, axis=1).sum())
