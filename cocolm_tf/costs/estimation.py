"""Estimates of a run's memory, FLOPs, traffic and time before it is started, by arithmetic."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from cocolm_tf.costs.accelerators import ACCELERATORS, Accelerator, published_share
from cocolm_tf.costs.flops import (
    logit_chunk_flops,
    pass_flops,
    pretraining_flops,
    rematerialization_flops,
    similarity_flops,
)
from cocolm_tf.costs.formatting import format_result
from cocolm_tf.costs.memory import moment_shares, step_memory
from cocolm_tf.costs.workload import (
    contrasted_parts,
    count_parameters,
    encoder_passes,
    heads_of,
)
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.stages import Stage, stages, tokens_per_step
from cocolm_tf.units import si

_FLOAT32 = 4
# The contrastive task's products, next to nothing, grow with the square of the batch.
_SAME_WORK = 0.01


def estimate(
    config: PretrainingConfig,
    devices: int = 1,
    accelerators: Sequence[str] = tuple(ACCELERATORS),
    share_of_peak: float = 0.0,
    share_of_memory: float = 0.9,
    link_bandwidth: float = 0.0,
    compiled: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Estimates what a run takes of each of a number of devices.

    Args:
        config: the run. Of several stages (see `stages`) what is said of a step is the last one's,
            memory is that of the stage that takes most, and a run is all of them.
        devices: Replicas that share `trainer.batch_size` out evenly.
        accelerators: keys of `ACCELERATORS`.
        share_of_peak: The share of the peak FLOPs that a step reaches from its beginning
            to its end. 0 for what encoders of the main model's size were published to reach.
        share_of_memory: The share of the memory that tensors may take. The rest is for
            the libraries, and for what fragments.
        link_bandwidth: Bytes a second that a device sends, where that is not its vendor's:
            of several hosts it is the network's. 0 for the vendor's.
        compiled: what `compile_step.py` said of this configuration's step on some of the
            accelerators: the least time that it allows.

    Returns:
        What JSON can hold, in bytes, seconds and numbers of a step unless the key says otherwise:
        what was asked about; `parameters`, `tokens`, `flops` and their parts; `memory` by the parts
        of `step_memory`, and for each of `accelerators` two `plans` (see `plan`), from `kept` for
        activations that are kept and from `rematerialized`; what each device sends
        (`all_reduce_bytes`, `gather_bytes`, `update_gather_bytes`) and the time that this and the
        optimizer take.

    Raises:
        UserError: if the batch cannot be shared out.

    Example:
    ```python
    result = estimate(load_config("configs/pretrain/base.yaml"), devices=8, accelerators=["h100"])
    result["accelerators"]["h100"]["plans"]["kept"]["run_seconds"] / 86_400  # days
    ```
    """
    whole, run = config, stages(config)
    config = run[-1].config
    trainer, data = config.trainer, config.data
    parts = devices * trainer.micro_batches
    if any(stage.config.trainer.batch_size % parts for stage in run):
        raise UserError(
            f"trainer.batch_size={trainer.batch_size} does not divide into {devices} replicas of "
            f"{trainer.micro_batches} micro-batches: make it a multiple of {parts}."
        )
    parameters, flops = count_parameters(config), pretraining_flops(config)
    total, tokens = sum(parameters.values()), trainer.batch_size * data.sequence_length
    if not share_of_peak:
        share_of_peak = published_share(parameters["embeddings"] + parameters["main"])
    by_target = {one["target"]: compiled_bounds(whole, devices, one) for one in compiled}
    if unasked := sorted(set(by_target) - set(accelerators)):
        raise UserError(
            f"what was compiled is for {', '.join(unasked)}, which is not among the accelerators."
        )
    shares = moment_shares(config, devices)
    sent = {
        "all_reduce_bytes": all_reduce_bytes(total, devices),
        "gather_bytes": gather_bytes(config, devices),
        # Of updated weights among zeros.
        "update_gather_bytes": all_reduce_bytes(total, shares),
    }

    def on(key: str) -> dict[str, Any]:
        accelerator = ACCELERATORS[key]
        return {
            "title": accelerator.title,
            "memory": accelerator.memory,
            "link_seconds": sum(sent.values()) / (link_bandwidth or accelerator.link_bandwidth),
            "update_seconds": update_bytes(total, shares) / accelerator.memory_bandwidth,
            "plans": {
                name: plan(
                    whole, devices, accelerator, rematerialize, share_of_peak, share_of_memory
                )
                for name, rematerialize in ACTIVATIONS.items()
            },
            "compiled": by_target.get(key),
        }

    return {
        "devices": devices,
        "precision": config.runtime.precision,
        "batch_size": trainer.batch_size,
        "sequence_length": data.sequence_length,
        "micro_batches": trainer.micro_batches,
        "rematerialize": config.model.rematerialize,
        "train_steps": trainer.train_steps,
        "stages": [
            {
                "steps": stage.end - stage.begin,
                "sequence_length": stage.config.data.sequence_length,
                "batch_size": stage.config.trainer.batch_size,
                "flops_per_step": step_flops(stage.config),
            }
            for stage in run
        ],
        "parameters": total,
        "parameters_by_part": parameters,
        "tokens_per_step": tokens,
        "tokens_per_run": _total(run, tokens_per_step),
        "flops_per_step": step_flops(config),
        "flops_by_part": flops,
        "flops_per_token": step_flops(config) / tokens,
        "flops_per_run": _total(run, step_flops),
        "rematerialization_flops": rematerialization_flops(config),
        "memory": {
            name: max(
                (step_memory(stage.config, devices, rematerialize) for stage in run),
                key=lambda parts: sum(parts.values()),
            )
            for name, rematerialize in ACTIVATIONS.items()
        },
        **sent,
        "share_of_peak": share_of_peak,
        "share_of_memory": share_of_memory,
        "accelerators": {key: on(key) for key in accelerators},
    }


# The plans for activations, and whether each rematerializes them.
ACTIVATIONS = {"kept": False, "rematerialized": True}


def plan(
    config: PretrainingConfig,
    devices: int,
    accelerator: Accelerator,
    rematerialize: bool,
    share_of_peak: float,
    share_of_memory: float,
) -> dict[str, float] | None:
    """The fewest micro-batches with which all stages of a run fit into a memory."""
    of_device = config.trainer.batch_size // devices
    config = copy.deepcopy(config)
    for micro_batches in (m for m in range(1, of_device + 1) if of_device % m == 0):
        config.trainer.micro_batches = micro_batches
        run = stages(config)
        memory = max(
            sum(step_memory(stage.config, devices, rematerialize).values()) for stage in run
        )
        if memory <= share_of_memory * accelerator.memory:
            break
    else:
        return None
    cut = run[-1].config
    rate = share_of_peak * accelerator.peak_flops(config.runtime.precision)

    def seconds(stage: PretrainingConfig) -> float:
        return device_flops(stage, devices, rematerialize) / rate

    return {
        "micro_batches": micro_batches,
        "sequences": of_device // micro_batches,
        "contrasted": heads_of(cut).contrast * config.trainer.batch_size // contrasted_parts(cut),
        "memory": memory,
        "step_seconds": seconds(cut),
        "run_seconds": _total(run, seconds),
    }


def step_flops(config: PretrainingConfig) -> int:
    """The model FLOPs of a step."""
    return sum(pretraining_flops(config).values())


def _total(run: Sequence[Stage], of_step: Callable[[PretrainingConfig], float]) -> float:
    """Sums a quantity of each stage's step over all steps."""
    return sum((stage.end - stage.begin) * of_step(stage.config) for stage in run)


def compiled_bounds(
    config: PretrainingConfig, devices: int, compiled: dict[str, Any]
) -> dict[str, float]:
    """The least time and the memory of a run, by a compiled program of its step."""
    run = stages(config)
    one = copy.deepcopy(run[-1].config)
    one.trainer.batch_size, one.trainer.micro_batches = compiled["sequences"], 1
    flops = step_flops(one)
    if (
        abs(compiled["model_flops"] / flops - 1) > _SAME_WORK
        or compiled["precision"] != config.runtime.precision
    ):
        raise UserError(
            f"what was compiled for {compiled['target']} is {si(compiled['model_flops'], 'FLOP')} "
            f"in {compiled['precision']}, and {compiled['sequences']} sequences of this "
            f"configuration are {si(flops, 'FLOP')} in {config.runtime.precision}: compile it as "
            "it is."
        )
    peak = ACCELERATORS[compiled["target"]].peak_flops(config.runtime.precision)
    rate = compiled["share_of_peak_at_most"] * peak

    def seconds(stage: PretrainingConfig) -> float:
        return step_flops(stage) / devices / rate

    return {
        "share_of_peak": compiled["share_of_peak_at_most"],
        "step_seconds": seconds(run[-1].config),
        "run_seconds": _total(run, seconds),
        "sequences": compiled["sequences"],
        "memory": compiled["argument_bytes"] + compiled["temporary_bytes"],
        "estimated_memory": sum(step_memory(one, 1, compiled["rematerialize"]).values()),
    }


def device_flops(config: PretrainingConfig, devices: int, rematerialize: bool) -> float:
    """The FLOPs that one device computes in a step."""
    # Its share of `pretraining_flops`, of `logit_chunk_flops`, of the forward passes that
    # `objective.scl_over_micro_batches` adds and, if so wanted, of `rematerialization_flops`; but
    # all of `similarity_flops`, as each device compares the vectors of all.
    shared = step_flops(config) + logit_chunk_flops(config)
    if contrasted_parts(config) < config.trainer.micro_batches:
        passes = encoder_passes(config).values()
        shared += config.trainer.batch_size * sum(map(pass_flops, passes))
    whole = similarity_flops(config)
    if rematerialize:
        shared += rematerialization_flops(config)
    return (shared - whole) / devices + whole


def all_reduce_bytes(parameters: int, devices: int) -> float:
    """The bytes that each device sends to sum the gradients, once a step."""
    # A ring of R devices passes each of the 4P bytes on twice but for its own part, first to sum,
    # then to share the sum: 2 * 4P * (R - 1) / R.
    return 2 * _FLOAT32 * parameters * (devices - 1) / devices


def gather_bytes(config: PretrainingConfig, devices: int) -> float:
    """The bytes that each device sends for the contrastive task in a step."""
    # Of B sequences the vectors of both views, in float32, are 2B * 4H bytes. They are gathered by
    # an all-reduce, 2(R - 1) / R of that in a ring of R devices, and so are their gradients summed.
    # Together 4 * 8BH * (R - 1) / R, however many micro-batches there are.
    if not heads_of(config).contrast:
        return 0.0
    vectors = 2 * config.trainer.batch_size * _FLOAT32 * config.model.hidden_dim
    return 4 * vectors * (devices - 1) / devices


def update_bytes(parameters: int, shares: int = 1) -> float:
    """The bytes that AdamW moves to and from memory, once a step."""
    # It reads weights, gradients and both moments, and writes all but the gradients: 7 * 4P, or a
    # device's share of that. What is gathered then is read and written as a whole: 2 * 4P.
    gathered = 2 if shares > 1 else 0
    return (7 / shares + gathered) * _FLOAT32 * parameters


def format_report(result: dict[str, Any]) -> str:
    """Formats an estimate for a terminal."""
    accelerators, flops = result["accelerators"].values(), result["flops_per_step"]
    shares = f"{result['share_of_peak']:.0%} of peak, {result['share_of_memory']:.0%} of memory"
    memory = {
        part: {f"{plan} memory": result["memory"][plan][part] for plan in ACTIVATIONS}
        for part in result["memory"]["kept"]
    }
    memory["together"] = {
        f"{plan} memory": sum(result["memory"][plan].values()) for plan in ACTIVATIONS
    }
    parameters = {part: {"": count} for part, count in result["parameters_by_part"].items()}
    by_part = sorted(result["flops_by_part"].items(), key=lambda item: -item[1])
    tables = {
        "parameters": parameters,
        "model FLOPs": {part: {"flops": n, "share": n / flops} for part, n in by_part},
        "memory of a device": memory,
    }
    if len(result["stages"]) > 1:
        tables["stage"] = {f"{n}": stage for n, stage in enumerate(result["stages"])}
    for name in ACTIVATIONS:
        tables[f"activations {name}, at {shares}"] = {
            one["title"]: one["plans"][name] or {"micro_batches": "does not fit"}
            for one in accelerators
        }
    if compiled := {one["title"]: one["compiled"] for one in accelerators if one["compiled"]}:
        tables["as compiled: at least"] = compiled
    tables["of each step, at full bandwidth"] = {
        one["title"]: {key: one[key] for key in ("link_seconds", "update_seconds")}
        for one in accelerators
    }
    shown = {key: value for key, value in result.items() if not key.endswith("_by_part")}
    return format_result(shown, tables)
