"""The folder of a version: a SavedModel, warmup requests and batching parameters.

It needs nothing but TensorFlow and TensorFlow Text to load. Before TensorFlow Serving answers
anybody, it asks a model the requests of `assets.extra/tf_serving_warmup_requests`, TFRecords of
`tensorflow.serving.PredictionLog`. The few fields of its messages that are needed are written here
by their numbers, so that an export does not need the package `tensorflow-serving-api`:

    PredictionLog           classify_log = 2, regress_log = 3, predict_log = 6
    PredictLog etc.         request = 1
    PredictRequest          model_spec = 1, inputs = 2: map of TensorProto
    ClassificationRequest   model_spec = 1, input = 2   (RegressionRequest likewise)
    Input                   example_list = 1
    ExampleList             examples = 1: Example
    ModelSpec               name = 1, signature_name = 3
"""

import os
from collections.abc import Iterable, Sequence

import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.serving.signature import CLASSIFY, PREDICT, REGRESS, Signature
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
WARMUP_FILENAME = os.path.join("assets.extra", "tf_serving_warmup_requests")
BATCHING_FILENAME = "batching_params.pbtxt"

# Defaults for two cores: requests that arrive while one is computed wait for nothing else.
# `scripts/benchmark_serving.py` measures their effect on a machine.
MAX_BATCH_SIZE = 32
BATCH_TIMEOUT_MICROS = 0

_LOG_FIELDS = {CLASSIFY: 2, REGRESS: 3, PREDICT: 6}
_FILLER = "It was the best of times, it was the worst of times."


def write_saved_model(
    signatures: dict[str, Signature], default: str, tokenizer: CocoLMTokenizer, directory: str
) -> None:
    """Writes a SavedModel of signatures, one of them the default, to an empty folder."""
    functions = {name: signature.concrete() for name, signature in signatures.items()}
    module = tf.Module()
    # Only the variables that the functions read are saved.
    module.weights = _variables(functions.values())
    module.tokenizer = tokenizer.graph_module()
    tf.saved_model.save(
        module,
        directory,
        signatures=functions | {DEFAULT_SIGNATURE: functions[default]},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    methods = {name: signature.method for name, signature in signatures.items()}
    _set_methods(directory, methods | {DEFAULT_SIGNATURE: methods[default]})


def write_warmup_requests(
    signatures: dict[str, Signature], texts: Iterable[Sequence[str]], model: str, directory: str
) -> int:
    """Writes warmup requests, each batch of texts for each signature; returns their number."""
    path = os.path.join(directory, WARMUP_FILENAME)
    files.make_dirs(os.path.dirname(path))
    records = [
        prediction_log(name, signature, batch, model)
        for batch in texts
        for name, signature in signatures.items()
    ]
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return len(records)


def warmup_texts(tokenizer: CocoLMTokenizer, lengths: Iterable[int]) -> list[list[str]]:
    """Batches of one text each, of about `lengths` tokens."""
    tokens = len(tokenizer(_FILLER))
    return [[" ".join([_FILLER] * max(1, length // tokens))] for length in lengths]


def prediction_log(name: str, signature: Signature, texts: Sequence[str], model: str) -> bytes:
    """A request as a serialized `PredictionLog`."""
    inputs = signature.request(texts)
    model_spec = _field(1, model.encode()) + _field(3, name.encode())
    if signature.method == PREDICT:
        request_inputs = b"".join(
            _field(
                2,
                _field(1, key.encode())
                + _field(2, tf.make_tensor_proto(value).SerializeToString()),
            )
            for key, value in inputs.items()
        )
    else:
        (examples,) = inputs.values()
        example_list = b"".join(_field(1, example) for example in examples.numpy())
        request_inputs = _field(2, _field(1, example_list))
    request = _field(1, model_spec) + request_inputs
    return _field(_LOG_FIELDS[signature.method], _field(1, request))


def batching_parameters() -> str:
    """The file that `--enable_per_model_batching_parameters` reads from a SavedModel's folder."""
    # The number of threads is not a model's: the server reads it from `--batching_parameters_file`.
    # Its option to split large requests stays off: it joins the parts' results as they are, and
    # those of `correct` are as wide as the text with the most words in each part.
    return (
        f"max_batch_size {{ value: {MAX_BATCH_SIZE} }}\n"
        f"batch_timeout_micros {{ value: {BATCH_TIMEOUT_MICROS} }}\n"
    )


def _variables(functions: Iterable[tf.types.experimental.ConcreteFunction]) -> list[tf.Variable]:
    variables = {id(v): v for function in functions for v in function.graph.variables}
    return list(variables.values())


def _set_methods(directory: str, methods: dict[str, str]) -> None:
    """Sets which of TensorFlow Serving's interfaces each signature is for."""
    # `tf.saved_model.save` makes every one of them for Predict.
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(directory)
    for name, method in methods.items():
        updater.replace_method_name(name, method)
    updater.save()


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups[-1] |= 0x80
        groups.append(value & 0x7F)
    return bytes(groups)
