"""Exports presets for TensorFlow Serving: versioned, and atomically.

A version is a SavedModel, warmup requests and batching parameters. It needs nothing but TensorFlow
and TensorFlow Text to load. Before TensorFlow Serving answers anybody, it asks a model the requests
of `assets.extra/tf_serving_warmup_requests`, TFRecords of `tensorflow.serving.PredictionLog`. The
few fields of its messages that are needed are written here by their numbers, so that an export does
not need the package `tensorflow-serving-api`:

    PredictionLog           classify_log = 2, regress_log = 3, predict_log = 6
    PredictLog etc.         request = 1
    PredictRequest          model_spec = 1, inputs = 2: map of TensorProto
    ClassificationRequest   model_spec = 1, input = 2   (RegressionRequest likewise)
    Input                   example_list = 1
    ExampleList             examples = 1: Example
    ModelSpec               name = 1, signature_name = 3
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence

import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.serving.answering import Answerer, answering_signatures
from cocolm_tf.serving.classification import Classifier, classification_signatures
from cocolm_tf.serving.client import SAVED_MODEL_FILENAME
from cocolm_tf.serving.correction import (
    MAX_TOKENS,
    NUM_CORRECTIONS,
    Corrector,
    correction_signatures,
)
from cocolm_tf.serving.embedding import embedding_signatures
from cocolm_tf.serving.encoder import BUCKETS, Encoder, InferenceEncoder
from cocolm_tf.serving.preset import ServedPreset
from cocolm_tf.serving.signature import CLASSIFY, MAX_BYTES, PREDICT, REGRESS, Signature
from cocolm_tf.serving.tagging import Tagger, tagging_signatures
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a preset is served.

    Args:
        precision: One of `PRECISIONS`, what the matrices are stored and multiplied in.
        int8: Whether the matrices are stored in 8 bits.
        buckets: Lengths in tokens at which texts are encoded apart from shorter ones.
        pooling: One of `POOLINGS`, how `embed` makes a vector; `""` for what the preset's embedder
            was trained with, or `"cls"`.
        dimension: The length of a vector; 0 for what the embedder was trained with, or all.
        num_corrections: How many corrections `correct` gives for each word.
        max_tokens: The longest text that `correct` and `tag` read, and context that `answer` does.
        max_bytes: The bytes of a text that any signature reads.
        min_probability: Words that belong more surely get no corrections.
        pairs: Whether `serving_default` of `classify` takes pairs of texts.

    Example:
    ```python
    Settings(precision="bfloat16", pooling="mean")
    ```
    """

    precision: str = "float32"
    int8: bool = False
    buckets: tuple[int, ...] = BUCKETS
    pooling: str = ""
    dimension: int = 0
    num_corrections: int = NUM_CORRECTIONS
    max_tokens: int = MAX_TOKENS
    max_bytes: int = MAX_BYTES
    min_probability: float = 0.0
    pairs: bool = False


def export_preset(
    preset: str,
    names: list[str],
    output_dir: str,
    version: int | None = None,
    settings: Settings | None = None,
) -> str:
    """Writes a SavedModel of a preset to `output_dir/version`.

    TensorFlow Serving, given `output_dir`, loads the highest version in it. The folder appears when
    it is complete.

    Args:
        preset: What pretraining or fine-tuning wrote.
        names: The signatures, of `SIGNATURES`; the first is `serving_default` too. Each comes
            with its variants, such as `embed_ids`.
        output_dir: The folder of all versions. Its name is the model's.
        version: None for the next one.
        settings: None for the defaults.

    Returns:
        The path of the version.

    Raises:
        UserError: If the preset lacks what a signature needs, or the version exists already.

    Example:
    ```python
    export_preset("runs/first/preset", ["correct", "embed"], "exports/first")
    ```
    """
    settings = settings or Settings()
    version = next_version(output_dir) if version is None else version
    path = os.path.join(output_dir, str(version))
    if files.exists(path):
        raise UserError(f"--version={version} is in --output_dir={output_dir} already.")
    with files.local_copy(preset) as local:
        _write_version(local, names, output_dir, path, settings)
    return path


def _write_version(
    preset: str, names: Sequence[str], output_dir: str, path: str, settings: Settings
) -> None:
    parts = ServedPreset(preset)
    model = InferenceEncoder(parts.backbone, settings.precision, settings.int8)
    encoder = Encoder(model, settings.buckets)
    signatures = {}
    for name in names:
        signatures |= SIGNATURES[name](parts, encoder, settings)
    default = "classify_pairs" if names[0] == "classify" and settings.pairs else names[0]
    limit = parts.backbone.max_sequence_length
    texts = warmup_texts(parts.tokenizer, [*(b for b in settings.buckets if b < limit), limit])
    with files.new_folder(path, last=SAVED_MODEL_FILENAME) as folder:
        write_saved_model(signatures, default, parts.tokenizer, folder)
        model = files.name(output_dir)
        write_warmup_requests(signatures, texts, model, folder)
        files.write_text(os.path.join(folder, BATCHING_FILENAME), batching_parameters())


def next_version(output_dir: str) -> int:
    """The version after those in a folder, whose names are numbers; 1 in a new one."""
    if not files.exists(output_dir):
        return 1
    if not files.is_dir(output_dir):
        raise UserError(f"--output_dir={output_dir} is a file; the output must be a folder.")
    return 1 + max(
        (int(name) for name in files.list_dir(output_dir) if name.isdecimal()), default=0
    )


def _embed(parts: ServedPreset, encoder: Encoder, settings: Settings) -> dict[str, Signature]:
    pooling, dimension = parts.embedding(settings.pooling, settings.dimension)
    projection = parts.projection if pooling == "projection" else None
    return embedding_signatures(
        encoder, parts.tokenizer, pooling, projection, settings.max_bytes, dimension
    )


def _correct(parts: ServedPreset, encoder: Encoder, settings: Settings) -> dict[str, Signature]:
    corrector = Corrector(
        encoder,
        parts.tokenizer,
        parts.copy_head,
        parts.lm_head,
        settings.num_corrections,
        settings.max_tokens,
        settings.min_probability,
        settings.max_bytes,
    )
    return correction_signatures(corrector)


def _classify(parts: ServedPreset, encoder: Encoder, settings: Settings) -> dict[str, Signature]:
    classifier = Classifier(encoder, parts.tokenizer, parts.classifier, settings.max_bytes)
    return classification_signatures(classifier)


def _answer(parts: ServedPreset, encoder: Encoder, settings: Settings) -> dict[str, Signature]:
    answerer = Answerer(
        encoder, parts.tokenizer, parts.answerer, settings.max_tokens, settings.max_bytes
    )
    return answering_signatures(answerer)


def _tag(parts: ServedPreset, encoder: Encoder, settings: Settings) -> dict[str, Signature]:
    tagger = Tagger(
        encoder, parts.tokenizer, parts.token_classifier, settings.max_tokens, settings.max_bytes
    )
    return tagging_signatures(tagger)


SIGNATURES = {
    "embed": _embed,
    "correct": _correct,
    "classify": _classify,
    "answer": _answer,
    "tag": _tag,
}


# --- The folder of a version ---


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
