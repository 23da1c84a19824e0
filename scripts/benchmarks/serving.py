"""Exports under load: throughput, and the latency that clients see, beside ONNX."""

import functools
import importlib.util
import itertools
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
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
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.serving.export import BATCH_TIMEOUT_MICROS, MAX_BATCH_SIZE, Settings, export_preset
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.versions import installed_versions

# The kinds of export, and of the ONNX models to compare with.
EXPORTS = {
    "float32": Settings(),
    "bfloat16": Settings(precision="bfloat16"),
    "int8": Settings(int8=True),
}
ONNX = "onnx"
_OUTPUTS = {"embed": "embeddings", "classify": "probabilities"}
_DISTRIBUTIONS = ("tensorflow", "tensorflow-text", "onnx", "onnxruntime")

Function = Callable[[tf.Tensor], Any]


def compare_serving(
    presets: dict[str, str],
    names: Sequence[str],
    texts: Sequence[str],
    clients: Sequence[int],
    rounds: int,
    seconds: float,
    threads: int,
) -> dict[str, Any]:
    """Measures throughput and latency of exports, and of ONNX models of the same presets."""
    # `presets` are by signature, `names` of `EXPORTS` and `ONNX`, `clients` the numbers of those
    # that ask at the same time. A request is one text, and an answer its vector or its classes. All
    # are tokenized by the same graph. With batching, simultaneous requests are answered together by
    # TensorFlow's batch scheduler, the one that TensorFlow Serving has. Each is measured with all
    # threads for one operation, and with one, so that requests share them.
    missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if ONNX in names and missing:
        raise UserError(
            f"{' and '.join(missing)} not installed: pip install 'cocolm-tf[onnx]', or leave "
            f"{ONNX} out of --contenders."
        )
    signatures = {}
    for signature, preset in presets.items():
        with tempfile.TemporaryDirectory() as folder:
            functions = {
                name: _onnx_of(preset, signature, folder)
                if name == ONNX
                else _export_of(preset, signature, folder, name)
                for name in names
            }
            contenders = [
                Contender(
                    _label(name, is_batched, intra_op, threads),
                    functools.partial(
                        _measured,
                        functools.partial(function, intra_op),
                        threads if is_batched else 0,
                        texts=texts,
                        clients=clients,
                        seconds=seconds,
                    ),
                    thread_environment(threads, intra_op),
                )
                for name, function in functions.items()
                for is_batched in (False, True)
                for intra_op in sorted({1, threads}, reverse=True)
            ]
            timings = alternate(contenders, rounds, warmup_calls=0)
        signatures[signature] = {name: _summary(timings, name) for name in timings}
    words = np.percentile([len(text.split()) for text in texts], [0, 25, 50, 75, 100])
    return {
        "device": describe_device(),
        "versions": installed_versions(*_DISTRIBUTIONS),
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
        "words": dict(zip(("min", "p25", "p50", "p75", "max"), words.tolist(), strict=True)),
        "signatures": signatures,
    }


def _label(name: str, is_batched: bool, intra_op: int, threads: int) -> str:
    how = " batched" if is_batched else ""
    return name + how + ("" if intra_op == threads else f", {intra_op} thread")


def _export_of(preset: str, signature: str, folder: str, kind: str) -> Callable[[int], Function]:
    path = export_preset(preset, [signature], os.path.join(folder, kind), settings=EXPORTS[kind])
    return functools.partial(_saved_model, path, signature)


def _onnx_of(preset: str, signature: str, folder: str) -> Callable[[int], Function]:
    # An extra, which the exports do not need.
    import onnx

    from cocolm_tf.conversion.onnx_model import classification_model, embedding_model

    parts = ServedPreset(preset)
    if signature == "embed":
        model, length = embedding_model(parts.backbone), parts.backbone.max_sequence_length
    else:
        classifier = parts.task(CocoLMTextClassifier)
        model, length = classification_model(classifier), classifier.preprocessor.sequence_length
    path = os.path.join(folder, f"{signature}.onnx")
    onnx.save(model, path)
    return functools.partial(_onnx, path, preset, length)


def measure_load(
    ask: Callable[[str], Any], texts: Sequence[str], clients: int, seconds: float
) -> dict[str, float]:
    """Answers clients for a while, each the next question when the last one is answered."""
    # Drawn by all clients in turn: `next` of a cycle is one step of the interpreter.
    questions = itertools.cycle(texts)
    waits: list[list[float]] = [[] for _ in range(clients)]
    failures: list[BaseException] = []
    barrier = threading.Barrier(clients + 1)

    def client(own_waits: list[float]) -> None:
        barrier.wait()
        now = time.perf_counter()
        try:
            while now < end and not failures:
                ask(next(questions))
                asked, now = now, time.perf_counter()
                own_waits.append(now - asked)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(own,), daemon=True) for own in waits]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    end = start + seconds
    barrier.wait()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    if failures:
        raise failures[0]
    milliseconds = 1000 * np.concatenate(waits)
    quantiles = np.percentile(milliseconds, [50, 95, 99])
    names = ("p50_ms", "p95_ms", "p99_ms")
    return {
        "requests_per_second": len(milliseconds) / elapsed,
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
    }


def texts_of_mixed_lengths(
    words: Iterable[str], count: int, longest: int, seed: int = 0
) -> list[str]:
    """Cuts a stream of words into texts whose lengths are log-uniform."""
    stream = itertools.cycle(words)
    draw = random.Random(seed)
    lengths = (round(longest ** draw.random()) for _ in range(count))
    return [" ".join(itertools.islice(stream, length)) for length in lengths]


# --- In the contender's process ---


def _measured(
    make_function: Callable[[], Function],
    batch_threads: int,
    *,
    texts: Sequence[str],
    clients: Sequence[int],
    seconds: float,
) -> Callable[[], dict[int, dict[str, float]]]:
    function = make_function()
    if batch_threads:
        function = _batched(function, batch_threads)
    # Every length has been traced before the clients start.
    for text in sorted(texts, key=len):
        function(tf.constant([text]))

    def measure() -> dict[int, dict[str, float]]:
        return {
            number: measure_load(lambda text: function(tf.constant([text])), texts, number, seconds)
            for number in clients
        }

    return measure


def _saved_model(path: str, signature: str, _intra_op: int) -> Function:
    import tensorflow_text  # noqa: F401  (its operations are in the graph)

    model = tf.saved_model.load(path)
    asked = model.signatures[signature]

    def function(texts: tf.Tensor) -> tf.Tensor:
        return asked(texts=texts)[_OUTPUTS[signature]]

    # The function holds the model's variables by no more than weak references.
    function.model = model
    return function


def _onnx(path: str, preset: str, length: int, intra_op: int) -> Function:
    import onnxruntime

    tokenizer = ServedPreset(preset).tokenizer
    graph = tokenizer.graph_module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokenize(texts: tf.Tensor) -> tf.Tensor:
        packed = tokenizer.pack(graph.tokenize(texts), sequence_length=length)
        longest = tf.reduce_max(tf.reduce_sum(tf.cast(packed["padding_mask"], tf.int32), axis=1))
        return tf.cast(packed["token_ids"][:, :longest], tf.int64)

    def run(token_ids: np.ndarray) -> np.ndarray:
        return session.run(None, {"token_ids": token_ids})[0]

    def function(texts: tf.Tensor) -> Any:
        token_ids = tokenize(texts)
        if tf.executing_eagerly():
            return run(token_ids.numpy())
        return tf.numpy_function(run, [token_ids], tf.float32)

    return function


def _batched(function: Function, threads: int) -> Function:
    """Batches simultaneous requests, as TensorFlow Serving does."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def ask(texts: tf.Tensor) -> tf.Tensor:
        together = tf.nondifferentiable_batch_function(
            num_batch_threads=threads,
            max_batch_size=MAX_BATCH_SIZE,
            batch_timeout_micros=BATCH_TIMEOUT_MICROS,
            autograph=False,
        )
        return together(function)(texts)

    return ask


def _summary(timings: dict[str, Timings], name: str) -> dict[int, dict[str, Any]]:
    own, found, key = timings[name].results, {}, "requests_per_second"
    yardsticks = [timings[x].results for x in timings if x.startswith(ONNX)]
    for clients in own[0]:
        rounds = [result[clients] for result in own]
        found[clients] = {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}
        if yardsticks:
            # Beside the best of its own: batching makes it slower for most.
            rates = ([result[clients][key] for result in results] for results in yardsticks)
            found[clients]["throughput"] = spread_of_ratios(
                [one[key] for one in rounds], max(rates, key=np.median)
            )
    return found
