"""Our pretraining step beside other projects', beside parts of itself, and beside other sizes."""

import copy
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.alternation import (
    Contender,
    Timings,
    alternate,
    spread_of_ratios,
    thread_environment,
)
from cocolm_tf.costs.accelerators import describe_device
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.costs.step_benchmark import prepare_step, random_batches, summarize
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig, check_config
from cocolm_tf.versions import installed_versions

Batches = list[dict[str, np.ndarray]]

_BATCHES = 4


def our_step(config: PretrainingConfig, batches: Batches | None = None) -> Callable[[], float]:
    """Builds our own training step, on random tokens if there are no batches."""
    dataset = random_batches(config)
    if batches is not None:
        stacked = {name: np.stack([each[name] for each in batches]) for name in batches[0]}
        dataset = tf.data.Dataset.from_tensor_slices(stacked).cache().repeat().prefetch(1)
    _, step = prepare_step(config, dataset)
    return lambda: float(step()["loss"])


# --- Beside other projects, and beside itself without some of its tasks ---

_REPLACED_TOKEN_DETECTION = {
    "objective": {"copy_weight": 50.0, "lm_weight": 0.0, "scl_weight": 0.0}
}
# What each contender of ours changes in the configuration.
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "coco_lm": {},
    "coco_lm_without_scl": {"objective": {"scl_weight": 0.0}},
    "coco_lm_without_lm": {"objective": {"lm_weight": 0.0}},
    # Ours as the paper has it: a second pass to sample from and relative positions, if the
    # configuration has them.
    "rtd": _REPLACED_TOKEN_DETECTION,
    # The work that the peers do.
    "electra": {
        **_REPLACED_TOKEN_DETECTION,
        "auxiliary": {"sampling": "train"},
        "model": {"relative_position_bins": 0},
    },
}
# The options of each peer's step: its name begins with that of the project.
PEERS: dict[str, dict[str, Any]] = {
    "model_garden": {},
    "model_garden_xla": {"jit_compile": True},
    "hugging_face": {},
    "hugging_face_eager": {"attention": "eager"},
    "hugging_face_compiled": {"compile_mode": "default"},
}
# What must be installed for a project's step, by the names to import.
_PACKAGES = {"model_garden": ("official", "tf_keras"), "hugging_face": ("torch", "transformers")}
# The contenders that the others' times are divided by.
_BASES = ("electra", "rtd", "coco_lm")
_DISTRIBUTIONS = ("tensorflow", "keras", "tf_keras", "tf-models-official", "torch", "transformers")


def compare(
    config: PretrainingConfig,
    names: Sequence[str],
    precisions: Sequence[str],
    rounds: int,
    warmup_steps: int,
    threads: int,
) -> dict[str, Any]:
    """Times training steps of `OURS` and of `PEERS` in alternation, one precision at a time."""
    # All have the same sizes, dropout, optimizer, threads and batches: those of the configuration.
    _check(config, names)
    left_out = _left_out(names)
    names = [name for name in names if name not in left_out]
    if not names:
        raise UserError(f"no contender is left: {'; '.join(set(left_out.values()))}.")
    batches = list(random_batches(config, _BATCHES).take(_BATCHES).as_numpy_iterator())
    tokens = config.trainer.batch_size * config.data.sequence_length
    results = {}
    for precision in precisions:
        configs = {name: copy.deepcopy(config) for name in names}
        for name, changed in configs.items():
            changed.override({"runtime": {"precision": precision}} | OURS.get(name, {}))
        contenders = [
            Contender(
                name,
                functools.partial(_contender_step, name, changed, batches),
                thread_environment(threads),
            )
            for name, changed in configs.items()
        ]
        timings = alternate(contenders, rounds, warmup_steps)
        results[precision] = {name: _summary(timings, name, tokens) for name in names}
    return {
        "device": describe_device(),
        "versions": installed_versions(*_DISTRIBUTIONS),
        "threads": threads,
        "rounds": rounds,
        "batch_size": config.trainer.batch_size,
        "sequence_length": config.data.sequence_length,
        "left_out": left_out,
        "precisions": results,
    }


def _contender_step(name: str, config: PretrainingConfig, batches: Batches) -> Callable[[], float]:
    """Builds a contender's step, in its own process: the others do without its packages."""
    if name in OURS:
        return our_step(config, batches)
    if name.startswith("model_garden"):
        from benchmarks import model_garden

        # It would warn of the weights that ELECTRA does without.
        tf.get_logger().setLevel("ERROR")
        return model_garden.electra_step(config, batches, **PEERS[name])
    from benchmarks import hugging_face

    precision = config.runtime.precision
    step = hugging_face.electra_step(config.as_dict(), batches, precision, **PEERS[name])
    return lambda: step()[0].item()


def _summary(timings: dict[str, Timings], name: str, tokens: int) -> dict[str, Any]:
    own = timings[name]
    seconds = summarize(own.seconds)
    return {
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds["median"],
        "first_step_seconds": own.first_seconds,
        "first_loss": own.first_result,
        "waiting_cpu_share": own.waiting_cpu_share,
        # How many times as long as these it took, round by round.
        "times": {
            base: spread_of_ratios(own.seconds, timings[base].seconds)
            for base in _BASES
            if base in timings
        },
    }


def _check(config: PretrainingConfig, names: Sequence[str]) -> None:
    for name in names:
        if name not in OURS and name not in PEERS:
            known = ", ".join([*OURS, *PEERS])
            raise UserError(f"--contenders has {name!r}, but there are only {known}.")
    peers = [name for name in names if name in PEERS]
    if peers and config.auxiliary.replacements != "auxiliary":
        raise UserError(
            f"{peers[0]} has a generator: set auxiliary.replacements=auxiliary, or leave it out."
        )
    if peers and config.trainer.micro_batches != 1:
        raise UserError(
            f"{peers[0]} takes a batch as a whole: set trainer.micro_batches=1, or leave it out."
        )


def _left_out(names: Sequence[str]) -> dict[str, str]:
    """The peers that are not installed, and what is missing."""
    reasons = {}
    for name in (name for name in names if name in PEERS):
        packages = next(_PACKAGES[project] for project in _PACKAGES if name.startswith(project))
        if missing := [one for one in packages if not importlib.util.find_spec(one)]:
            reasons[name] = (
                f"{' and '.join(missing)} not installed (pip install 'cocolm-tf[peers]')"
            )
    return reasons


# --- Beside smaller and larger sizes ---

# The axes: the size that is scaled, and those that follow from it.
AXES: dict[str, tuple[str, ...]] = {
    "trainer.batch_size": (),
    "data.sequence_length": ("model.max_sequence_length",),
    "model.num_layers": (),
    # Heads keep their width, as they do from one size of the paper to the next.
    "model.hidden_dim": ("model.intermediate_dim", "model.num_heads"),
    "model.vocabulary_size": (),
}


def measure_scaling(
    config: PretrainingConfig,
    axes: Sequence[str],
    factors: Sequence[float],
    rounds: int,
    warmup_steps: int,
    threads: int,
) -> dict[str, Any]:
    """Times a configuration's step beside that of smaller and larger ones, axis by axis."""
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
    for key in (axis, *AXES[axis]):
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
        Contender(name, functools.partial(our_step, config), thread_environment(threads))
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
                # 1 where the cost is in proportion to the FLOPs, less where it grows more slowly.
                "time_per_flop_growth": {
                    name: value / flops_growth for name, value in growth.items()
                },
            }
        )
    return rows


def _get(config: PretrainingConfig, key: str) -> int:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
