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
from cocolm_tf.costs.memory import moment_shares, step_memory
from cocolm_tf.costs.parameters import count_parameters
from cocolm_tf.costs.workload import contrasted_parts, encoder_passes, heads_of
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.stages import Stage, stages, tokens_per_step
from cocolm_tf.units import duration, gib, si

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
        What JSON can hold; bytes, seconds, and numbers of a step unless it says otherwise:
        `devices`, `precision`, `batch_size`, `sequence_length`, `micro_batches`, `rematerialize`
        and `train_steps`: what was asked about; `stages`, of each its `steps`, `sequence_length`,
        `batch_size` and `flops_per_step`;
        `parameters` and their parts `parameters_by_part`;
        `tokens_per_step`, `tokens_per_run`: of the text, as `benchmark` counts them;
        `flops_per_step` and its parts `flops_by_part`, `flops_per_token`, `flops_per_run`, and
        `rematerialization_flops` beyond them;
        `memory`: from `kept` and `rematerialized`, the parts of `step_memory` on each device;
        `all_reduce_bytes`, `gather_bytes`, `update_gather_bytes`: what each device sends;
        `share_of_peak`, `share_of_memory`;
        `accelerators`: from each key, `title`, `memory`, `link_seconds`, `update_seconds`, and
        `plans`, two of `plan`'s: one that keeps the activations, one that rematerializes them.

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
    total, step = sum(parameters.values()), sum(flops.values())
    tokens = trainer.batch_size * data.sequence_length
    if not share_of_peak:
        share_of_peak = published_share(parameters["embeddings"] + parameters["main"])
    by_target = {one["target"]: of_compiled(whole, devices, one) for one in compiled}
    if unasked := sorted(set(by_target) - set(accelerators)):
        raise UserError(
            f"what was compiled is for {', '.join(unasked)}, which is not among the accelerators."
        )
    shares = moment_shares(config, devices)
    sent = [
        all_reduce_bytes(total, devices),
        gather_bytes(config, devices),
        all_reduce_bytes(total, shares),  # of updated weights among zeros
    ]
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
                "flops_per_step": sum(pretraining_flops(stage.config).values()),
            }
            for stage in run
        ],
        "parameters": total,
        "parameters_by_part": parameters,
        "tokens_per_step": tokens,
        "tokens_per_run": _total(run, tokens_per_step),
        "flops_per_step": step,
        "flops_by_part": flops,
        "flops_per_token": step / tokens,
        "flops_per_run": _total(run, lambda stage: sum(pretraining_flops(stage).values())),
        "rematerialization_flops": rematerialization_flops(config),
        "memory": {
            name: max(
                (step_memory(stage.config, devices, rematerialize) for stage in run),
                key=lambda parts: sum(parts.values()),
            )
            for name, rematerialize in WAYS.items()
        },
        "all_reduce_bytes": sent[0],
        "gather_bytes": sent[1],
        "update_gather_bytes": sent[2],
        "share_of_peak": share_of_peak,
        "share_of_memory": share_of_memory,
        "accelerators": {
            key: {
                "title": ACCELERATORS[key].title,
                "memory": ACCELERATORS[key].memory,
                "link_seconds": sum(sent) / (link_bandwidth or ACCELERATORS[key].link_bandwidth),
                "update_seconds": update_bytes(total, shares) / ACCELERATORS[key].memory_bandwidth,
                "plans": {
                    name: plan(
                        whole,
                        devices,
                        ACCELERATORS[key],
                        rematerialize,
                        share_of_peak,
                        share_of_memory,
                    )
                    for name, rematerialize in WAYS.items()
                },
                "compiled": by_target.get(key),
            }
            for key in accelerators
        },
    }


# The plans for activations, and whether each rematerializes them.
WAYS = {"kept": False, "rematerialized": True}


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


def _total(run: Sequence[Stage], of_step: Callable[[PretrainingConfig], float]) -> float:
    """Sums a quantity of each stage's step over all steps."""
    return sum((stage.end - stage.begin) * of_step(stage.config) for stage in run)


def of_compiled(
    config: PretrainingConfig, devices: int, compiled: dict[str, Any]
) -> dict[str, float]:
    """The least time and the memory of a run, by a compiled program of its step."""
    run = stages(config)
    one = copy.deepcopy(run[-1].config)
    one.trainer.batch_size, one.trainer.micro_batches = compiled["sequences"], 1
    flops = sum(pretraining_flops(one).values())
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
        return sum(pretraining_flops(stage).values()) / devices / rate

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
    shared = sum(pretraining_flops(config).values()) + logit_chunk_flops(config)
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
    sections = [_run_rows(result), _cost_rows(result), _memory_rows(result)]
    if result["devices"] > 1:
        sections.append(_traffic_rows(result))
    return "\n\n".join("\n".join(rows) for rows in [*sections, *_accelerator_tables(result)])


def _row(name: str, *values: str) -> str:
    return f"{name:24}" + "  ".join(f"{value:14}" for value in values).rstrip()


def _run_rows(result: dict[str, Any]) -> list[str]:
    devices, batch = result["devices"], result["batch_size"]
    sequences = batch // (devices * result["micro_batches"])
    return [
        _row("precision", result["precision"]),
        _row("step", f"{batch:,} sequences of {result['sequence_length']:,} tokens"),
        _row("  devices", f"{devices:,}"),
        _row("  micro-batches", f"{result['micro_batches']:,}, of {sequences:,} on a device"),
        _row("run", f"{result['train_steps']:,} steps, {si(result['tokens_per_run'])} tokens"),
        *(
            _row("  stage", f"{stage['steps']:,} steps of {stage['batch_size']:,} x {length:,}")
            for stage in result["stages"]
            if (length := stage["sequence_length"]) and len(result["stages"]) > 1
        ),
    ]


def _cost_rows(result: dict[str, Any]) -> list[str]:
    total, flops = result["parameters"], result["flops_per_step"]
    extra = result["rematerialization_flops"]
    rows = [_row("parameters", f"{total:,}")]
    rows += [
        _row(f"  {part}", f"{count:14,}") for part, count in result["parameters_by_part"].items()
    ]
    per_token, per_run = (si(result[f"flops_per_{what}"], "FLOP") for what in ("token", "run"))
    amounts = f"{si(flops, 'FLOP')} a step, {per_token} a token, {per_run} a run"
    rows += ["", _row("model FLOPs", amounts)]
    by_part = sorted(result["flops_by_part"].items(), key=lambda item: -item[1])
    rows += [_row(f"  {part}", f"{part_flops / flops:7.1%}") for part, part_flops in by_part]
    return [*rows, _row("  rematerialization", f"{extra / flops:+7.1%}, if it is chosen")]


def _memory_rows(result: dict[str, Any]) -> list[str]:
    memory = result["memory"]
    rows = [_row("memory of a device", *(f"{way:>14}" for way in memory))]
    totals = {way: sum(parts.values()) for way, parts in memory.items()}
    for part in memory["kept"]:
        rows.append(_row(f"  {part}", *(f"{gib(parts[part]):>14}" for parts in memory.values())))
    return [*rows, _row("  together", *(f"{gib(total):>14}" for total in totals.values()))]


def _traffic_rows(result: dict[str, Any]) -> list[str]:
    rows = [
        _row("a device sends", f"{si(result['all_reduce_bytes'], 'B')} of gradients a step"),
        _row("", f"{si(result['gather_bytes'], 'B')} of vectors and their gradients a step"),
    ]
    if sent := result["update_gather_bytes"]:
        rows.append(_row("", f"{si(sent, 'B')} of updated weights a step"))
    return rows


def _accelerator_tables(result: dict[str, Any]) -> list[list[str]]:
    shares = f"{result['share_of_peak']:.0%} of peak, {result['share_of_memory']:.0%} of memory"
    header = ("accelerator", "micro-batches", "sequences", "contrasted", "memory", "step", "run")
    tables = []
    for way in WAYS:
        rows = [f"activations {way}: at {shares}", _columns(header)]
        for accelerator in result["accelerators"].values():
            plan = accelerator["plans"][way]
            cells = ["does not fit"] if plan is None else _plan_cells(plan)
            rows.append(_columns([accelerator["title"], *cells]))
        tables.append(rows)
    tables += _compiled_table(result)
    rows = ["of each step, at full bandwidth", _columns(("accelerator", "links", "update"))]
    for accelerator in result["accelerators"].values():
        seconds = (accelerator["link_seconds"], accelerator["update_seconds"])
        rows.append(_columns([accelerator["title"], *map(duration, seconds)]))
    return [*tables, rows]


def _compiled_table(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for accelerator in result["accelerators"].values():
        if found := accelerator["compiled"]:
            cells = [
                f"{found['share_of_peak']:.1%}",
                *(duration(found[key]) for key in ("step_seconds", "run_seconds")),
                f"{found['sequences']:,}",
                *(gib(found[key]) for key in ("memory", "estimated_memory")),
            ]
            rows.append(_columns([accelerator["title"], *cells]))
    header = ("accelerator", "peak, at most", "step", "run", "sequences", "memory", "by arithmetic")
    title = "as compiled: at least, and the memory of the sequences that it was compiled for"
    return [[title, _columns(header), *rows]] if rows else []


def _plan_cells(plan: dict[str, float]) -> list[str]:
    return [
        *(f"{plan[key]:,}" for key in ("micro_batches", "sequences", "contrasted")),
        gib(plan["memory"]),
        *(duration(plan[key]) for key in ("step_seconds", "run_seconds")),
    ]


def _columns(cells: Sequence[str]) -> str:
    return f"  {cells[0]:22}" + "".join(f"{cell:>14}" for cell in cells[1:])
