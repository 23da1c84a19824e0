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

import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.serving.client import SAVED_MODEL_FILENAME
from cocolm_tf.serving.correction import Corrector
from cocolm_tf.serving.encoder import Encoder, InferenceEncoder
from cocolm_tf.serving.sequence_signatures import Classifier, Embedder
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import Settings
from cocolm_tf.serving.span_signatures import Answerer, Tagger
from cocolm_tf.tokenization.dictionary import END_TOKEN_ID, START_TOKEN_ID
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

Graph = tf.types.experimental.ConcreteFunction

SIGNATURES = {
    "embed": Embedder,
    "correct": Corrector,
    "classify": Classifier,
    "answer": Answerer,
    "tag": Tagger,
}
DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
WARMUP_FILENAME = os.path.join("assets.extra", "tf_serving_warmup_requests")
BATCHING_FILENAME = "batching_params.pbtxt"

# Defaults for two cores: requests that arrive while one is computed wait for nothing else.
# `scripts/benchmark_serving.py` measures their effect on a machine.
MAX_BATCH_SIZE = 32
BATCH_TIMEOUT_MICROS = 0
# The file that `--enable_per_model_batching_parameters` reads from a SavedModel's folder. The
# number of threads is not a model's: the server reads it from `--batching_parameters_file`. Its
# option to split large requests stays off: it joins the parts' results as they are, and those of
# `correct` are as wide as the text with the most words in each part.
_BATCHING_PARAMETERS = (
    f"max_batch_size {{ value: {MAX_BATCH_SIZE} }}\n"
    f"batch_timeout_micros {{ value: {BATCH_TIMEOUT_MICROS} }}\n"
)

# TensorFlow Serving's interfaces beside Predict, by the outputs of the signatures that are for
# them; and the number of each in `PredictionLog`.
_INTERFACES = {"classes": "classify", "outputs": "regress"}
_LOG_FIELDS = {"classify": 2, "regress": 3, "predict": 6}
_FILLER = "It was the best of times, it was the worst of times."


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
        parts = ServedPreset(local)
        model = InferenceEncoder(parts.backbone, settings.precision, settings.int8)
        encoder = Encoder(model, settings.buckets)
        signatures = {}
        for name in names:
            signatures |= SIGNATURES[name](parts, encoder, settings).graphs()
        default = "classify_pairs" if names[0] == "classify" and settings.pairs else names[0]
        limit = parts.backbone.max_sequence_length
        lengths = [*(b for b in settings.buckets if b < limit), limit]
        with files.new_folder(path, last=SAVED_MODEL_FILENAME) as folder:
            write_saved_model(signatures, default, parts.tokenizer, folder)
            model_name = files.name(output_dir)
            _write_warmup_requests(signatures, lengths, parts.tokenizer, model_name, folder)
            files.write_text(os.path.join(folder, BATCHING_FILENAME), _BATCHING_PARAMETERS)
    return path


def next_version(output_dir: str) -> int:
    """The version after those in a folder, whose names are numbers; 1 in a new one."""
    if not files.exists(output_dir):
        return 1
    if not files.is_dir(output_dir):
        raise UserError(f"--output_dir={output_dir} is a file; the output must be a folder.")
    return 1 + max(
        (int(name) for name in files.list_dir(output_dir) if name.isdecimal()), default=0
    )


def write_saved_model(
    signatures: Mapping[str, Graph], default: str, tokenizer: CocoLMTokenizer, directory: str
) -> None:
    """Writes a SavedModel of signatures, one of them the default, to an empty folder."""
    signatures = {**signatures, DEFAULT_SIGNATURE: signatures[default]}
    module = tf.Module()
    # Only the variables that the functions read are saved.
    variables = {id(v): v for graph in signatures.values() for v in graph.graph.variables}
    module.weights = list(variables.values())
    module.tokenizer = tokenizer.graph_module()
    tf.saved_model.save(
        module,
        directory,
        signatures=signatures,
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    # `tf.saved_model.save` makes every signature for Predict.
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(directory)
    for name, graph in signatures.items():
        updater.replace_method_name(name, f"tensorflow/serving/{_interface(graph)}")
    updater.save()


def _interface(signature: Graph) -> str:
    """The interface of TensorFlow Serving that a signature is for."""
    (name, *_) = signature.structured_outputs
    return _INTERFACES.get(name, "predict")


def _write_warmup_requests(
    signatures: Mapping[str, Graph],
    lengths: Sequence[int],
    tokenizer: CocoLMTokenizer,
    model_name: str,
    directory: str,
) -> None:
    """Writes a request to each signature with a text of about each of `lengths`, in tokens."""
    path = os.path.join(directory, WARMUP_FILENAME)
    files.make_dirs(os.path.dirname(path))
    filler_length = len(tokenizer(_FILLER))
    with tf.io.TFRecordWriter(path) as writer:
        for length in lengths:
            text = " ".join([_FILLER] * max(1, length // filler_length))
            ids = [START_TOKEN_ID, *tokenizer(text).numpy(), END_TOKEN_ID]
            for name, graph in signatures.items():
                writer.write(_prediction_log(name, graph, text, ids, model_name))


def _prediction_log(
    name: str, signature: Graph, text: str, token_ids: Sequence[int], model_name: str
) -> bytes:
    """A request as a serialized `PredictionLog`."""
    model_spec = _field(1, model_name.encode()) + _field(3, name.encode())
    interface = _interface(signature)
    if interface == "predict":
        given = {"token_ids": [token_ids], "questions": ["What was it?"]}
        inputs = b""
        for spec in signature.structured_input_signature[0]:
            tensor = tf.make_tensor_proto(given.get(spec.name, [text]), spec.dtype)
            inputs += _field(
                2, _field(1, spec.name.encode()) + _field(2, tensor.SerializeToString())
            )
    else:
        example = tf.train.Example()
        example.features.feature["first"].bytes_list.value.append(text.encode())
        inputs = _field(2, _field(1, _field(1, example.SerializeToString())))
    return _field(_LOG_FIELDS[interface], _field(1, _field(1, model_spec) + inputs))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups[-1] |= 0x80
        groups.append(value & 0x7F)
    return bytes(groups)
