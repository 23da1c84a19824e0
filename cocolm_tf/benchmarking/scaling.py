"""How a step's time grows with its sizes, compared with its FLOPs."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

from cocolm_tf.benchmarking.alternation import (
    Contender,
    alternate,
    describe_spread,
    spread_of_ratios,
    thread_environment,
)
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.costs.step_benchmark import describe_device, prepare_step, random_batches, summarize
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig, check_config

# The axes: the size that is scaled, and those that follow from it.
AXES: dict[str, tuple[str, ...]] = {
    "trainer.batch_size": ("trainer.batch_size",),
    "data.sequence_length": ("data.sequence_length", "model.max_sequence_length"),
    "model.num_layers": ("model.num_layers",),
    # Heads keep their width, as they do from one size of the paper to the next.
    "model.hidden_dim": ("model.hidden_dim", "model.intermediate_dim", "model.num_heads"),
    "model.vocabulary_size": ("model.vocabulary_size",),
}


def measure_scaling(
    config: PretrainingConfig,
    axes: Sequence[str],
    factors: Sequence[float],
    rounds: int,
    warmup_steps: int,
    threads: int,
) -> dict[str, Any]:
    """Times a configuration's step beside that of smaller and larger ones.

    For each axis, the configuration and its variants are timed in alternation.

    Args:
        config: the run.
        axes: which of `AXES` to follow.
        factors: by what each is multiplied, beside 1.
        rounds: How many steps of each to time.
        warmup_steps: Untimed ones before them, beside the first.
        threads: That each may use.

    Returns:
        What JSON can hold; times in seconds:
        `device`, `precision`, `threads`, `rounds`;
        `axes`: from an axis to a row for each of its values: `value`; `step_seconds` (see
        `summarize`); `flops` (see `pretraining_flops`); `flops_growth`, how many times the
        configuration's own; and `time_growth` and `time_per_flop_growth`, the `first_quartile`,
        `median` and `third_quartile` over the rounds. The last is 1 where cost is in proportion to
        the FLOPs, and below 1 where it grows more slowly than they do.

    Raises:
        UserError: if a variant's sizes do not go together or do not fit into memory.

    Example:
    ```python
    config = load_config("configs/pretrain/small.yaml")
    result = measure_scaling(config, ["trainer.batch_size"], [0.5, 2], 5, 1, threads=2)
    result["axes"]["trainer.batch_size"][-1]["time_per_flop_growth"]["median"]
    ```
    """
    factors = sorted({1.0, *factors})
    # Checked before anything is measured.
    variants = {axis: [scaled(config, axis, factor) for factor in factors] for axis in axes}
    return {
        "device": describe_device(),
        "precision": config.runtime.precision,
        "threads": threads,
        "rounds": rounds,
        "axes": {
            axis: _measure_axis(axis, configs, factors.index(1.0), rounds, warmup_steps, threads)
            for axis, configs in variants.items()
        },
    }


def scaled(config: PretrainingConfig, axis: str, factor: float) -> PretrainingConfig:
    """Multiplies one of a configuration's sizes, and those that follow from it."""
    if axis not in AXES:
        raise UserError(f"--axes has {axis!r}, but there are only {', '.join(AXES)}.")
    variant = copy.deepcopy(config)
    for key in AXES[axis]:
        value = _get(config, key) * factor
        if value != int(value):
            raise UserError(
                f"--factors has {factor:g}, but {key}={_get(config, key)} times that is "
                f"{value:g}, not a whole number."
            )
        section, name = key.split(".")
        variant.override({section: {name: int(value)}})
    check_config(variant, f"{axis} times {factor:g}")
    return variant


def format_scaling(result: dict[str, Any]) -> str:
    """Formats the result of `measure_scaling` for a terminal."""
    lines = [
        f"device      {result['device']}, {result['threads']} threads",
        f"step        {result['precision']}, {result['rounds']} of each in turn: medians and "
        "quartiles",
        "",
        f"{'':>30} {'seconds':>26} {'time':>22} {'FLOPs':>7} {'time / FLOPs':>22}",
    ]
    for axis, rows in result["axes"].items():
        lines += [
            f"{axis:>22} {row['value']:>7,} {describe_spread(row['step_seconds'], 4):>26} "
            f"{describe_spread(row['time_growth']):>22} {row['flops_growth']:7.3g} "
            f"{describe_spread(row['time_per_flop_growth']):>22}"
            for row in rows
        ]
    return "\n".join(lines)


def training_step(config: PretrainingConfig) -> Callable[[], float]:
    """Builds a run's step on random tokens."""
    _, step = prepare_step(config, random_batches(config))
    return lambda: float(step()["loss"])


def _measure_axis(
    axis: str,
    configs: Sequence[PretrainingConfig],
    base: int,
    rounds: int,
    warmup_steps: int,
    threads: int,
) -> list[dict[str, Any]]:
    """The rows of one axis; `base` is the index of the configuration that all are divided by."""
    names = [f"{axis}={_get(config, axis)}" for config in configs]
    contenders = [
        Contender(name, functools.partial(training_step, config), thread_environment(threads))
        for name, config in zip(names, configs, strict=True)
    ]
    timings = alternate(contenders, rounds, warmup_steps)
    seconds = [timings[name].seconds for name in names]
    flops = [sum(pretraining_flops(config).values()) for config in configs]
    rows = []
    for config, own_seconds, own_flops in zip(configs, seconds, flops, strict=True):
        growth = spread_of_ratios(own_seconds, seconds[base])
        flops_growth = own_flops / flops[base]
        rows.append(
            {
                "value": _get(config, axis),
                "step_seconds": summarize(own_seconds),
                "flops": own_flops,
                "flops_growth": flops_growth,
                "time_growth": growth,
                "time_per_flop_growth": {
                    name: value / flops_growth for name, value in growth.items()
                },
            }
        )
    return rows


def _get(config: PretrainingConfig, key: str) -> int:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
