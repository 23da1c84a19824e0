"""Our pretraining step beside other projects', and beside itself without some of its tasks."""

import copy
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from cocolm_tf.benchmarking.alternation import (
    Contender,
    Timings,
    alternate,
    describe_spread,
    spread_of_ratios,
    thread_environment,
)
from cocolm_tf.costs.step_benchmark import describe_device, prepare_step, random_batches, summarize
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.versions import installed_versions, versions_line

_BATCHES = 4

_REPLACED_TOKEN_DETECTION = {
    "objective": {"copy_weight": 50.0, "lm_weight": 0.0, "scl_weight": 0.0}
}

# What each contender of ours changes in the configuration.
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "coco_lm": {},
    "coco_lm_without_scl": {"objective": {"scl_weight": 0.0}},
    "coco_lm_without_lm": {"objective": {"lm_weight": 0.0}},
    "rtd": _REPLACED_TOKEN_DETECTION,
    # The work that the peers do.
    "electra": {
        **_REPLACED_TOKEN_DETECTION,
        "auxiliary": {"sampling": "train"},
        "model": {"relative_position_bins": 0},
    },
}


def _model_garden(*arguments: Any, **options: Any) -> Callable[[], float]:
    # Imported in the contender's own process: the others do without.
    from benchmarks.model_garden import electra_step

    # It would warn of the weights that ELECTRA does without.
    tf.get_logger().setLevel("ERROR")
    return electra_step(*arguments, **options)


def _hugging_face(*arguments: Any, **options: Any) -> Callable[[], float]:
    from benchmarks.hugging_face import electra_step

    return electra_step(*arguments, **options)


@dataclass(frozen=True)
class Peer:
    """Another project's ELECTRA."""

    # takes a configuration and batches, and returns the training step.
    build: Callable[..., Callable[[], float]]
    packages: tuple[str, ...]  # what must be installed for it, by the names to import
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of `build`


_MODEL_GARDEN = (_model_garden, ("official", "tf_keras"))
_HUGGING_FACE = (_hugging_face, ("torch", "transformers"))

PEERS: dict[str, Peer] = {
    "model_garden": Peer(*_MODEL_GARDEN),
    "model_garden_xla": Peer(*_MODEL_GARDEN, {"jit_compile": True}),
    "hugging_face": Peer(*_HUGGING_FACE),
    "hugging_face_eager": Peer(*_HUGGING_FACE, {"attention": "eager"}),
    "hugging_face_compiled": Peer(*_HUGGING_FACE, {"compiled": True}),
}

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
    """Times training steps of ours and of peers in alternation.

    All have the same sizes, dropout, optimizer, threads and batches: those of the configuration.
    `electra` is our step doing what the peers do: replaced token detection, sampling from the pass
    that learns, no relative positions. `rtd` is ours as the paper has it, with a second pass to
    sample from and relative positions, if the configuration has them. `coco_lm` is the
    configuration itself, beside it what it costs without SCL, and without CLM's LM head.

    Args:
        config: the run.
        names: which of `OURS` and `PEERS` to time.
        precisions: `"float32"`, `"mixed_bfloat16"` or both, one after the other.
        rounds: How many steps of each to time.
        warmup_steps: Untimed ones before them, beside the first.
        threads: That each may use.

    Returns:
        What JSON can hold; times in seconds:
        `device`, `versions`, `threads`, `rounds`, `batch_size`, `sequence_length`;
        `left_out`: the peers that are not installed, and why;
        `precisions`: from a precision to its contenders, and from their names to
        `step_seconds` (see `summarize`), `tokens_per_second`, `first_step_seconds`, `first_loss`,
        `waiting_cpu_share` (see `Timings`) and `times`: from `electra`, `rtd` and `coco_lm`, where
        they take part, to the `first_quartile`, `median` and `third_quartile` of how many times as
        long as these this one took, round by round.

    Raises:
        UserError: if a contender is unknown, or a peer cannot do what the configuration asks for.

    Example:
    ```python
    config = load_config("configs/pretrain/small.yaml")
    result = compare(config, ["electra", "model_garden"], ["float32"], 5, 1, threads=2)
    result["precisions"]["float32"]["model_garden"]["times"]["electra"]["median"]
    ```
    """
    _check(config, names)
    left_out = _left_out(names)
    names = [name for name in names if name not in left_out]
    if not names:
        raise UserError(f"no contender is left: {'; '.join(set(left_out.values()))}.")
    batches = list(random_batches(config, _BATCHES).take(_BATCHES).as_numpy_iterator())
    tokens = config.trainer.batch_size * config.data.sequence_length
    environment = thread_environment(threads)
    results = {}
    for precision in precisions:
        contenders = [
            Contender(name, _build_function(name, config, precision, batches), environment)
            for name in names
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


def format_comparison(result: dict[str, Any]) -> str:
    """Lays the result of `compare` out for reading."""
    lines = [
        f"device      {result['device']}, {result['threads']} threads",
        f"versions    {versions_line(result['versions'])}",
        f"step        {result['batch_size']:,} x {result['sequence_length']:,} tokens, "
        f"{result['rounds']} of each in turn: medians and quartiles",
        *(f"left out    {name}: {reason}" for name, reason in result["left_out"].items()),
    ]
    for precision, contenders in result["precisions"].items():
        bases = list(next(iter(contenders.values()))["times"])
        heads = [f"time / {base}'s" for base in bases]
        lines += [
            "",
            f"{precision:22} {'seconds':>26} {'tokens/s':>9} {'waiting':>8} "
            + " ".join(f"{head:>22}" for head in heads),
        ]
        for name, one in contenders.items():
            times = " ".join(f"{describe_spread(one['times'][base]):>22}" for base in bases)
            lines.append(
                f"{name:22} {describe_spread(one['step_seconds'], 4):>26} "
                f"{one['tokens_per_second']:9,.0f} {one['waiting_cpu_share']:8.1%} {times}"
            )
    return "\n".join(line.rstrip() for line in lines)


def our_step(
    config: PretrainingConfig, batches: list[dict[str, np.ndarray]]
) -> Callable[[], float]:
    """Builds our own training step."""
    stacked = {name: np.stack([each[name] for each in batches]) for name in batches[0]}
    dataset = tf.data.Dataset.from_tensor_slices(stacked).cache().repeat().prefetch(1)
    _, step = prepare_step(config, dataset)
    return lambda: float(step()["loss"])


def _build_function(
    name: str, config: PretrainingConfig, precision: str, batches: list[dict[str, np.ndarray]]
) -> Callable[[], Callable[[], float]]:
    config = copy.deepcopy(config)
    config.override({"runtime": {"precision": precision}})
    if name in OURS:
        config.override(OURS[name])
        return functools.partial(our_step, config, batches)
    peer = PEERS[name]
    return functools.partial(peer.build, config, batches, **peer.options)


def _summary(timings: dict[str, Timings], name: str, tokens: int) -> dict[str, Any]:
    own = timings[name]
    seconds = summarize(own.seconds)
    return {
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds["median"],
        "first_step_seconds": own.first_seconds,
        "first_loss": own.first_result,
        "waiting_cpu_share": own.waiting_cpu_share,
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
    for name in names:
        packages = PEERS[name].packages if name in PEERS else ()
        missing = [package for package in packages if not importlib.util.find_spec(package)]
        if missing:
            reasons[name] = (
                f"{' and '.join(missing)} not installed (pip install 'cocolm-tf[peers]')"
            )
    return reasons
