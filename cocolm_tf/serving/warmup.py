"""Requests that TensorFlow Serving makes of a model before it lets anybody else ask.

A SavedModel brings them along in `assets.extra/tf_serving_warmup_requests`, TFRecords of
`tensorflow.serving.PredictionLog`. The few fields of its messages that are needed are written here
by their numbers, so that an export does not ask for the package `tensorflow-serving-api`:

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

WARMUP_FILENAME = os.path.join("assets.extra", "tf_serving_warmup_requests")

_LOG_FIELDS = {CLASSIFY: 2, REGRESS: 3, PREDICT: 6}
_FILLER = "It was the best of times, it was the worst of times."


def write_warmup_requests(
    signatures: dict[str, Signature], texts: Iterable[Sequence[str]], model: str, directory: str
) -> int:
    """Writes the requests of a SavedModel.

    Args:
        signatures: by name; each gets a request for every batch.
        texts: the batches.
        model: the name that the model will be served under.
        directory: the SavedModel's.

    Returns:
        The number of requests.

    Example:
    ```python
    write_warmup_requests(signatures, [["A cat."], ["A cat.", "A dog."]], "embed", "/tmp/embed")
    ```
    """
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
    """Makes batches of one text each, of about as many tokens as asked for.

    Args:
        tokenizer: counts.
        lengths: in tokens.

    Returns:
        The batches.

    Example:
    ```python
    warmup_texts(tokenizer, [16, 64, 512])
    ```
    """
    tokens = len(tokenizer(_FILLER))
    return [[" ".join([_FILLER] * max(1, length // tokens))] for length in lengths]


def prediction_log(name: str, signature: Signature, texts: Sequence[str], model: str) -> bytes:
    """Makes one request, a serialized `PredictionLog`.

    Args:
        name: the signature's.
        signature: the signature.
        texts: what to ask it.
        model: the name that the model will be served under.

    Returns:
        The message.

    Example:
    ```python
    prediction_log("embed", signatures["embed"], ["A cat."], "embed")
    ```
    """
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


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups[-1] |= 0x80
        groups.append(value & 0x7F)
    return bytes(groups)
