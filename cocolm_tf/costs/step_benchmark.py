"""The training throughput of a configuration on this machine's device, without reading data."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf.costs.accelerators import describe_device
from cocolm_tf.costs.compiled import compiled_costs
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.data.augmentation import SpecialTokens
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.dictionary import UNKNOWN_TOKEN_ID
from cocolm_tf.training.build import build_augmentation, build_pretrainer, compile_pretrainer
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.distribution import make_strategy, per_replica_batch
from cocolm_tf.versions import own_versions

_FIRST_ORDINARY_TOKEN = UNKNOWN_TOKEN_ID + 1


def benchmark(
    config: PretrainingConfig, steps: int, warmup_steps: int = 2, count_compiled: bool = False
) -> dict[str, Any]:
    """Times training steps of a configuration on one device.

    The model, the optimizer and the compiled step are those of a training run; the batches are
    of random tokens, made beforehand. Each step is called, waited for and timed by itself, whatever
    `trainer.steps_per_loop` is, so that the median is safe from the few that something disturbs.

    Rates are those of the median step. Tokens are those of the text, B * S a step: what the
    auxiliary model and the crops read of them again is not counted, so that the rates of
    different objectives compare.

    Args:
        config: the run. `trainer.batch_size` sequences are one step on the one device, whatever
            `trainer.micro_batches` cuts them into.
        steps: Steps to time, at least 1.
        warmup_steps: Steps to run untimed after the first, which traces and compiles.
        count_compiled: Whether to compile the step once more and count what XLA's program
            of it takes.

    Returns:
        What JSON can hold; times in seconds, memory in bytes: what was measured and with what;
        `tokens_per_second`, `sequences_per_second`; `step_seconds` (see `summarize`);
        `first_step_seconds`, with tracing and compiling; `flops_per_step`, `flops_by_part`;
        `flops_per_second` beside `matmul_flops_per_second` (see `matmul_rate`), and the quotient,
        `matmul_share`; `peak_memory_bytes` (see `peak_memory`); `skipped_updates`, the timed steps
        whose gradients were not finite; `compiled` (see `compiled_costs`), if it was asked for.

    Raises:
        UserError: if the sizes do not go together or do not fit into memory, or if the step is not
            compiled and was to be counted.

    Example:
    ```python
    config = load_config("configs/pretrain/small.yaml", "trainer.batch_size=4")
    benchmark(config, steps=3)["tokens_per_second"]
    ```
    """
    trainer = config.trainer
    batches = random_batches(config)
    pretrainer, step = prepare_step(config, batches)
    if count_compiled and not pretrainer.compile_step:
        raise UserError("only a compiled step can be counted: set runtime.jit_compile=true.")
    # The machine's speed changes with its load: measure it before and after the steps.
    rate_before = matmul_rate(pretrainer.compute_dtype)
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
    try:
        first, seconds = _time_steps(pretrainer, step, steps, warmup_steps)
    except tf.errors.ResourceExhaustedError as error:
        raise UserError(
            f"trainer.batch_size={trainer.batch_size} in trainer.micro_batches="
            f"{trainer.micro_batches} does not fit into the memory of {describe_device()}: "
            f"lower the first or raise the second."
        ) from error
    memory = peak_memory()
    rate = max(rate_before, matmul_rate(pretrainer.compute_dtype))

    compiled = None
    if count_compiled:
        one_step = tf.function(pretrainer.train_step, jit_compile=True, autograph=False)
        compiled = compiled_costs(one_step, next(iter(batches)))
    summary, by_part = summarize(seconds), pretraining_flops(config)
    median, flops = summary["median"], sum(by_part.values())
    return {
        "device": describe_device(),
        "versions": own_versions(),
        "precision": config.runtime.precision,
        "jit_compile": pretrainer.compile_step,
        "batch_size": trainer.batch_size,
        "sequence_length": config.data.sequence_length,
        "micro_batches": trainer.micro_batches,
        "parameters": sum(int(np.prod(v.shape)) for v in pretrainer.trainable_variables),
        "steps": steps,
        "tokens_per_second": trainer.batch_size * config.data.sequence_length / median,
        "sequences_per_second": trainer.batch_size / median,
        "step_seconds": summary,
        "first_step_seconds": first,
        "flops_per_step": flops,
        "flops_by_part": by_part,
        "flops_per_second": flops / median,
        "matmul_flops_per_second": rate,
        "matmul_share": flops / median / rate,
        "peak_memory_bytes": memory,
        "skipped_updates": int(pretrainer.get_metrics_result()["skipped_updates"]),
        "compiled": compiled,
    }


def prepare_step(
    config: PretrainingConfig, batches: tf.data.Dataset
) -> tuple[CocoLMPretrainer, Callable[[], dict[str, tf.Tensor]]]:
    """Builds the model and the step of a training run, on one device."""
    strategy = make_strategy("one_device")
    per_replica_batch(config.trainer.batch_size, config.trainer.micro_batches, strategy)
    with strategy.scope():
        try:
            pretrainer = build_pretrainer(config, config.model.vocabulary_size - 1)
        except ValueError as error:
            raise UserError(f"the model cannot be built: {' '.join(str(error).split())}") from error
        compile_pretrainer(pretrainer, config, steps_per_execution=1)
    iterator = iter(strategy.distribute_datasets_from_function(lambda _: batches))
    function = pretrainer.make_train_function()

    def step() -> dict[str, tf.Tensor]:
        result = function(iterator)
        # Its value is available only once the device has done all earlier work.
        float(result["gradient_norm"])
        return result

    return pretrainer, step


def random_batches(config: PretrainingConfig, count: int = 4) -> tf.data.Dataset:
    """Makes batches of full sequences of random tokens, masked and cropped as in training."""
    batch, length = config.trainer.batch_size, config.data.sequence_length
    special = SpecialTokens(mask=config.model.vocabulary_size - 1)
    if special.mask <= _FIRST_ORDINARY_TOKEN:
        raise UserError(
            f"model.vocabulary_size={config.model.vocabulary_size} leaves no ordinary token "
            f"beside the special ones: it must be at least {_FIRST_ORDINARY_TOKEN + 2}."
        )
    if length < 3:
        raise UserError(
            f"data.sequence_length={length} leaves no room between <s> and </s>: it must be "
            "at least 3."
        )

    def random_batch(number: tf.Tensor) -> dict[str, tf.Tensor]:
        seed = tf.stack([config.runtime.seed, tf.cast(number, tf.int32)])
        text_seed, mask_seed = tf.unstack(tf.random.split(seed, 2))
        text = tf.random.stateless_uniform(
            [batch, length - 2],
            text_seed,
            minval=_FIRST_ORDINARY_TOKEN,
            maxval=special.mask,
            dtype=tf.int32,
        )
        token_ids = tf.pad(text, [[0, 0], [1, 0]], constant_values=special.start)
        token_ids = tf.pad(token_ids, [[0, 0], [0, 1]], constant_values=special.end)
        return build_augmentation(config, special.mask)(token_ids, mask_seed)

    return tf.data.Dataset.range(count).map(random_batch).cache().repeat().prefetch(1)


def matmul_rate(dtype: str, min_seconds: float = 0.5) -> float:
    """The FLOPs a second of a large matrix product on the device that trains."""
    # The best of several, as everything else that a machine does can only slow a product down.
    # A call to an accelerator costs as much time as some products: make it several.
    width, products = (8192, 8) if tf.config.list_physical_devices("GPU") else (2048, 1)
    left = tf.cast(tf.random.stateless_normal([width, width], [1, 2]), dtype)
    # Scaled so that however many products keep the magnitude.
    right = tf.cast(tf.random.stateless_normal([width, width], [3, 4]) * width**-0.5, dtype)

    @tf.function(autograph=False)
    def multiply(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        for _ in range(products):
            left = tf.matmul(left, right)
        return left[0, 0]

    float(multiply(left, right))  # traces
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or spent < min_seconds:
        started = time.perf_counter()
        float(multiply(left, right))  # waits for the device
        elapsed = time.perf_counter() - started
        best, spent, calls = min(best, elapsed), spent + elapsed, calls + 1
    return products * 2 * width**3 / best


def peak_memory() -> int:
    """The most bytes used so far: on a GPU since the steps began, on a CPU by the whole process."""
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts it in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def summarize(seconds: list[float]) -> dict[str, float]:
    """The median, spread and mean of times."""
    names = ("min", "first_quartile", "median", "third_quartile", "max")
    quartiles = np.percentile(seconds, [0, 25, 50, 75, 100]).tolist()
    return {**dict(zip(names, quartiles, strict=True)), "mean": float(np.mean(seconds))}


def _time_steps(
    pretrainer: CocoLMPretrainer, step: Callable[[], Any], steps: int, warmup_steps: int
) -> tuple[float, list[float]]:
    """Seconds of the first step, and of each of the timed ones."""
    with tqdm(total=1 + warmup_steps + steps, desc="compiling", unit="step") as progress:

        def seconds(phase: str) -> float:
            progress.set_description(phase)
            started = time.perf_counter()
            step()
            elapsed = time.perf_counter() - started
            progress.update()
            return elapsed

        first = seconds("compiling")
        for _ in range(warmup_steps):
            seconds("warming up")
        pretrainer.reset_metrics()
        return first, [seconds("timing") for _ in range(steps)]
