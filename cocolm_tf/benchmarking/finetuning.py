"""What batches of like lengths are worth in fine-tuning."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cocolm_tf.benchmarking.alternation import (
    Contender,
    alternate,
    describe_spread,
    spread_of_ratios,
    thread_environment,
)
from cocolm_tf.costs.step_benchmark import describe_device, summarize
from cocolm_tf.finetuning.batches import describe_lengths, tokenized, training_batches
from cocolm_tf.finetuning.config import from_dict
from cocolm_tf.finetuning.optimization import build_optimizer
from cocolm_tf.finetuning.tasks.classification import ClassificationTask, build_classifier

WAYS = {"full_width": 0, "as_they_come": 1, "bucketed": 8}
"""The numbers of groups of like lengths, see `training_batches`: none with padding to the longest
row that the model can read; one with padding to the longest row of a batch; some."""

_SLOWEST = "full_width"


def measure_bucketing(
    run: ClassificationTask, rows: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Times epochs of fine-tuning with each of `WAYS`, in alternation.

    Args:
        run: whose preset, data and configuration it takes.
        rows: How many training examples an epoch has, drawn once for all.
        rounds: How many epochs of each way to time, after one that is not.
        threads: That each may use.

    Returns:
        What JSON can hold: `device`, `precision`, `threads`, `rounds`, `batch_size`, `rows`,
        `tokens` (see `describe_lengths`), and for each of `ways` its `epoch_seconds` (see
        `summarize`), `examples_per_second`, the median, and `speedup` over `full_width`: its
        `first_quartile`, `median` and `third_quartile` over the rounds.

    Raises:
        UserError: if the data or the preset is not what it should be.

    Example:
    ```python
    run = ClassificationTask(
        preset="runs/first/preset", config=config.as_dict(), data={"glue": {"task": "sst2"}}
    )
    measure_bucketing(run, 1024, rounds=5, threads=2)["ways"]["bucketed"]["speedup"]["median"]
    ```
    """
    contenders = [
        Contender(
            name,
            functools.partial(fine_tuning_epoch, run, rows, buckets),
            thread_environment(threads),
        )
        for name, buckets in WAYS.items()
    ]
    timings = alternate(contenders, rounds, warmup_calls=0)
    facts = timings[_SLOWEST].first_result
    config = from_dict(run.config, "the configuration")
    return {
        "device": describe_device(),
        "precision": config.runtime.precision,
        "threads": threads,
        "rounds": rounds,
        "batch_size": config.trainer.batch_size,
        **facts,
        "ways": {
            name: {
                "epoch_seconds": summarize(timing.seconds),
                "examples_per_second": facts["rows"] / float(np.median(timing.seconds)),
                "speedup": spread_of_ratios(timings[_SLOWEST].seconds, timing.seconds),
            }
            for name, timing in timings.items()
        },
    }


def format_bucketing(result: dict[str, Any]) -> str:
    """Formats the result of `measure_bucketing` for a terminal."""
    tokens = result["tokens"]
    lines = [
        f"device      {result['device']}, {result['threads']} threads",
        f"epochs      {result['rows']:,} rows in batches of {result['batch_size']}, "
        f"{result['precision']}, {result['rounds']} of each way in turn",
        f"tokens      median {tokens['median']}, 95% up to {tokens['percentile_95']}, longest "
        f"{tokens['longest']}",
        "",
        f"{'':<14} {'examples/s':>10} {'speedup, median and quartiles':>32}",
    ]
    for name, way in result["ways"].items():
        speedup = describe_spread(way["speedup"])
        lines.append(f"{name:<14} {way['examples_per_second']:>10.1f} {speedup:>32}")
    return "\n".join(lines)


def fine_tuning_epoch(
    run: ClassificationTask, rows: int, buckets: int
) -> Callable[[], dict[str, Any]]:
    """Builds a classifier and its batches."""
    data, config = run.read(), from_dict(run.config, "the configuration")
    chosen = np.random.default_rng(run.seed).permutation(len(data.train))[:rows]
    train = data.train.select(chosen)
    classifier = build_classifier(run, config, data)
    tokens = tokenized(classifier.preprocessor, train)
    batches, steps = training_batches(
        tokens, train.labels, config.trainer.batch_size, run.seed, buckets
    )
    optimizer = build_optimizer(config.optimizer, 100 * steps, classifier, classifier.backbone)
    classifier.compile(optimizer, metrics=[])

    def epoch() -> dict[str, Any]:
        classifier.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
        return {"rows": len(train), "tokens": describe_lengths(tokens)}

    return epoch
