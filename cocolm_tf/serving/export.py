"""Exports presets for TensorFlow Serving: versioned, and atomically."""

import dataclasses
import os
from collections.abc import Sequence

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
from cocolm_tf.serving.encoder import BUCKETS, Encoder
from cocolm_tf.serving.inference import InferenceEncoder
from cocolm_tf.serving.preset import ServedPreset
from cocolm_tf.serving.saved_model import (
    BATCHING_FILENAME,
    batching_parameters,
    warmup_texts,
    write_saved_model,
    write_warmup_requests,
)
from cocolm_tf.serving.signature import MAX_BYTES, Signature
from cocolm_tf.serving.tagging import Tagger, tagging_signatures


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
