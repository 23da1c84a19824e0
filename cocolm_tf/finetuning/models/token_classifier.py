"""A pretrained encoder that labels the words of texts, and the preprocessor of its texts."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from keras_hub.src.utils.preset_utils import get_preset_loader
from keras_hub.src.utils.tensor_utils import preprocessing_function

from cocolm_tf.data.tags import (
    NO_SCHEME,
    SCHEMES,
    Chunk,
    TagCodes,
    chunks_of_numbers,
    converted,
    tag_names,
    tags_of_chunks,
)
from cocolm_tf.finetuning.batches import (
    PREDICTION_BATCH,
    Tokens,
    predict_rows,
    training_batches,
)
from cocolm_tf.finetuning.models.raw_inputs import decoded, texts_or_words
from cocolm_tf.finetuning.models.raw_text import (
    TextPreprocessor,
    check_row_length,
    output_layer,
    raw_text_task,
)
from cocolm_tf.finetuning.models.token_rows import (
    NO_UNIT,
    UNITS,
    TokenRows,
    lay_out_rows,
    string_tensor,
    token_rows,
    tokens_and_units,
)
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.transformer import Dropout
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

_LABELS_WANTED = (
    "y has, for each text, its spans (start, end, label) in characters; or, where texts come as "
    "lists of words, a tag for each word"
)


class TaggedSpan(NamedTuple):
    """A labeled part of a text, as `CocoLMTokenClassifier.predict` finds it.

    Attributes:
        start: Its first character.
        end: The character after its last.
        label: The label.
        text: The characters from `start` to before `end`.
        score: The probability of the tags of all its words together, from 0 to 1.
    """

    start: int
    end: int
    label: str
    text: str
    score: float


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMTokenClassifierPreprocessor(TextPreprocessor, keras_hub.models.Preprocessor):
    """Tokenizes texts or words, and reads long texts in overlapping windows.

    A batch of B texts becomes W >= B rows `<s> tokens </s>`.

    Args:
        tokenizer: Turns texts into tokens.
        sequence_length: S, the tokens of every row. `from_preset` takes as many as the model has
            positions.
        overlap: How many tokens two windows of a text share; None for a quarter of a row.
        unit: What has a label in a text that comes as a string: `"word"`, what white space
            separates, and each punctuation mark; or `"token"`, the tokenizer's pieces, for
            languages that do not separate words.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        x: A batch of strings; or of lists of words, a [B, (N)] ragged tensor.
        y: The numbers of the words' tags, in lists as those of `x`. Only words have them: the spans
            of strings are aligned by `CocoLMTokenClassifier.fit`.
        sample_weight: Must be None: the weights that are returned are those of tokens.

    Returns:
        A dict of `token_ids` [W, S] int32 and `padding_mask` [W, S] bool; with `y` in a tuple with
        the tokens' labels [W, S] int32 and weights [W, S] float32, which are 0 for tokens that are
        not the first of a word.

    Raises:
        ValueError: If the arguments do not fit each other, or strings come with `y`.

    Example:
    ```python
    preprocessor = CocoLMTokenClassifierPreprocessor.from_preset("runs/first/preset")
    preprocessor(["Ada met Bo."])
    features, labels, weights = preprocessor([["Ada", "sat", "."]], [[1, 0, 0]])
    ```
    """

    saved = ("sequence_length", "overlap", "unit")

    def __init__(
        self,
        tokenizer: CocoLMTokenizer,
        sequence_length: int = 512,
        overlap: int | None = None,
        unit: str = "word",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if unit not in UNITS:
            raise ValueError(f"unit is one of {', '.join(UNITS)}, not {unit!r}.")
        room = sequence_length - 2
        if room < 1:
            raise ValueError(f"sequence_length={sequence_length} has no room beside <s> and </s>.")
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.overlap = room // 4 if overlap is None else overlap
        self.unit = unit
        if not 0 <= self.overlap < room:
            raise ValueError(f"overlap={overlap} must be in [0, {room}), the room of a window.")

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if sample_weight is not None:
            raise ValueError("texts have no weights: sample_weight must be None.")
        if not isinstance(x, tf.Tensor | tf.RaggedTensor):
            x = string_tensor(texts_or_words(x))
        if y is not None and not isinstance(y, tf.Tensor | tf.RaggedTensor):
            y = tf.ragged.constant(y, tf.int32, ragged_rank=1, row_splits_dtype=tf.int64)
        return self._lay_out(x, y)

    @preprocessing_function
    def _lay_out(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if y is not None and not isinstance(x, tf.RaggedTensor):
            raise ValueError("y has a number for each word: x must be lists of words.")
        tokens, units = tokens_and_units(self.tokenizer.graph_module(), x, self.unit)
        rows, numbers = lay_out_rows(
            tokens.ids,
            units.of_tokens,
            sequence_length=self.sequence_length,
            overlap=self.overlap,
        )
        shape = [None, self.sequence_length]
        features = {
            "token_ids": rows.to_tensor(PAD_TOKEN_ID, shape=shape),
            "padding_mask": tf.sequence_mask(rows.row_lengths(), self.sequence_length),
        }
        if y is None:
            return features
        numbers = numbers.to_tensor(NO_UNIT, shape=shape)
        has_unit = numbers != NO_UNIT
        labels = tf.concat([tf.cast(y.flat_values, tf.int32), [0]], 0)
        labels = tf.gather(labels, tf.where(has_unit, numbers, tf.size(labels) - 1))
        return features, labels, tf.cast(has_unit, tf.float32)

    def rows(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> TokenRows:
        """Lays out many texts on the CPU, without padding: see `token_rows`."""
        with tf.device("cpu"):
            return token_rows(self, texts)


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMTokenClassifier(raw_text_task(keras_hub.models.Task)):
    """Finds labeled spans in texts, or tags words; `fit()` fine-tunes it on raw strings.

    The head is BERT's: dropout, and one dense layer from each token's hidden state to the logits of
    its tags. A word's tag is that of its first token. Texts that are longer than the model can read
    are read in overlapping windows, and none of them is cut.

    `from_preset(directory, label_names=[...])` puts a new head on a pretrained encoder; without
    `label_names` it loads a fine-tuned token classifier with its head.

    `fit(x, y)` takes strings with their spans `(start, end, label)`, in characters; or for each
    text a list of its words with a tag for each, which may be written in any scheme; or a
    `tf.data.Dataset` of batches of `(features, labels, weights)`, see the preprocessor. The default
    loss is the mean cross entropy of the words' tags, and the default of `weighted_metrics` the
    share of words whose tag is right; metrics that take no weights count every token.

    Args:
        backbone: The encoder.
        label_names: The labels of spans, as `["LOC", "PER"]`; without a scheme the tags of words.
        preprocessor: Turns texts into the encoder's input; None where `fit()` gets tokens.
        scheme: How spans are written as tags of words: `"BIO"`, in which a span's first word has
            a tag of its own; `"BIOES"`, in which last words and single words have one as well; or
            `"none"`, in which each word has a label of its own.
        dropout: Rate of the head's dropout; None for the encoder's.
        **kwargs: As for `keras_hub.models.Task`.

    Call arguments:
        inputs: A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S].

    Returns:
        [B, S, number of tags] float32 logits.

    Raises:
        ValueError: If the arguments do not fit each other.

    Example:
    ```python
    tagger = CocoLMTokenClassifier.from_preset("runs/first/preset", label_names=["LOC", "PER"])
    tagger.fit(["Ada lives in Rome."], [[(0, 3, "PER"), (13, 17, "LOC")]], epochs=3)
    tagger.predict(["Bo lives in Paris."])  # a list of `TaggedSpan` for each text

    tagger.fit([["Ada", "sat"]], [["B-PER", "O"]])
    tagger.predict([["Bo", "sat"]])  # a list of tags for each text
    tagger.save_to_preset("runs/names")
    tagger = CocoLMTokenClassifier.from_preset("runs/names")
    ```
    """

    preprocessor_cls = CocoLMTokenClassifierPreprocessor
    saved = ("label_names", "scheme", "dropout")
    keras_can_batch = False  # spans are aligned with the tokens of all texts

    def __init__(
        self,
        backbone: CocoLMBackbone,
        label_names: Sequence[str],
        preprocessor: CocoLMTokenClassifierPreprocessor | None = None,
        scheme: str = "BIO",
        dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        names = list(label_names)
        if scheme not in (*SCHEMES, NO_SCHEME):
            raise ValueError(f"scheme={scheme!r} is none of {', '.join((*SCHEMES, NO_SCHEME))}.")
        if len(set(names)) != len(names) or len(names) < (2 if scheme == NO_SCHEME else 1):
            raise ValueError(f"label_names={names} must be different labels, and some.")
        check_row_length(preprocessor, backbone)
        tags = names if scheme == NO_SCHEME else tag_names(names, scheme)
        dropout = backbone.dropout if dropout is None else dropout

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.output_dropout = Dropout(
            dropout, backbone.seed_generator, dtype=backbone.dtype_policy, name="output_dropout"
        )
        self.tag_logits = output_layer(backbone, len(tags), "tag_logits")

        # === Functional model ===
        inputs = backbone.input
        outputs = self.tag_logits(self.output_dropout(backbone(inputs)))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Configuration ===
        self.label_names = names
        self.scheme = scheme
        self.tag_names = tags
        self.dropout = dropout

    def default_losses(self) -> dict[str, Any]:
        # The base class averages over the tokens with a weight: the words.
        return {
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "weighted_metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        }

    def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Finds spans in texts, or tags words.

        Args:
            x: Strings, or for each text a list of its words. With tokens instead, the result is
                that of `keras.Model.predict`, logits.
            batch_size: Windows of a batch; None for 64.
            **kwargs: As for `keras.Model.predict`; for tokens only.

        Returns:
            For each string a list of `TaggedSpan`, in order; without a scheme one for each word.
            For each list of words a list of tags, valid in the model's scheme; a word of which the
            tokenizer makes no token is in no span.

        Example:
        ```python
        tagger.predict(["Ada sat."])[0][0].label
        ```
        """
        texts = self.texts_of(x)
        if texts is None:
            return super().predict(x, batch_size, **kwargs)
        if not texts:
            return []
        rows = self.preprocessor.rows(texts)
        found = self.spans_of(rows, self.unit_logits(rows, batch_size or PREDICTION_BATCH))
        if isinstance(texts[0], str):
            return [
                [TaggedSpan(*place, text[place[0] : place[1]], score) for _, place, score in spans]
                for text, spans in zip(texts, found, strict=True)
            ]
        if self.scheme == NO_SCHEME:
            return [[chunk.label for chunk, _, _ in spans] for spans in found]
        return [
            tags_of_chunks([chunk for chunk, _, _ in spans], len(words), self.scheme)
            for words, spans in zip(texts, found, strict=True)
        ]

    def unit_logits(self, rows: TokenRows, batch_size: int = PREDICTION_BATCH) -> np.ndarray:
        """The logits [U, tags] of all units of rows."""
        logits = np.zeros([len(rows.starts), len(self.tag_names)], np.float32)
        # A word without tokens is in no span, or has the first label.
        logits[:, 0] = 1.0
        outputs = predict_rows(self, rows.tokens, batch_size)
        has_unit = rows.units != NO_UNIT
        logits[rows.units[has_unit]] = np.concatenate(outputs)[has_unit]
        return logits

    def spans_of(
        self, rows: TokenRows, logits: np.ndarray
    ) -> list[list[tuple[Chunk, Chunk, float]]]:
        """Each text's spans by its units' logits [U, tags]: in units, in characters, and scores."""
        numbers = logits.argmax(axis=1)
        shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
        log_probabilities = -np.log(np.exp(shifted).sum(axis=1))
        total = np.concatenate([[0.0], np.cumsum(log_probabilities)])
        if self.scheme == NO_SCHEME:
            places = np.arange(len(numbers))
            found, labels = np.stack([places, places + 1, numbers], axis=1), self.tag_names
        else:
            codes = TagCodes.of(self.tag_names)
            found, labels = chunks_of_numbers(numbers, rows.counts, codes), codes.labels
        first_units = rows.first_units
        by_text: list[list[tuple[Chunk, Chunk, float]]] = [[] for _ in rows.counts]
        texts = np.searchsorted(first_units, found[:, 0], side="right") - 1
        for text, (start, end, number) in zip(texts.tolist(), found.tolist(), strict=True):
            label, first = labels[number], int(first_units[text])
            characters = Chunk(int(rows.starts[start]), int(rows.ends[end - 1]), label)
            score = float(np.exp(total[end] - total[start]))
            by_text[text].append((Chunk(start - first, end - first, label), characters, score))
        return by_text

    def labeled_rows(self, x: Any, y: Any) -> tuple[TokenRows, np.ndarray]:
        """Lays out texts; returns the rows and the number of each unit's tag, [U] int32."""
        texts = texts_or_words(x)
        if not texts:
            raise ValueError("there are no texts.")
        if y is None or isinstance(y, str) or len(y) != len(texts):
            count = "nothing" if y is None else f"labels of {len(y)}"
            raise ValueError(f"{len(texts)} texts, but {count}: {_LABELS_WANTED}.")
        rows = self.preprocessor.rows(texts)
        if not isinstance(texts[0], str):
            tags = [self._tags_of_words(at, *row) for at, row in _numbered(texts, y)]
        elif self.scheme == NO_SCHEME:
            raise ValueError("without a scheme words have labels: give texts as lists of words.")
        else:
            tags = []
            for at, (text, spans) in _numbered(texts, y):
                units = slice(*rows.first_units[at : at + 2])
                chunks = _chunks_of_spans(
                    _checked_spans(at, text, spans), rows.starts[units], rows.ends[units]
                )
                tags.append(tags_of_chunks(chunks, int(rows.counts[at]), self.scheme))
        numbers = {name: number for number, name in enumerate(self.tag_names)}
        labels = []
        for at, row in enumerate(tags):
            for tag in row:
                if tag not in numbers:
                    raise ValueError(
                        f"text {at} has the label {tag.partition('-')[2] or tag!r}, none of "
                        f"{', '.join(self.label_names)}."
                    )
                labels.append(numbers[tag])
        return rows, np.array(labels, np.int32)

    def learning_batches(
        self, rows: TokenRows, labels: np.ndarray, batch_size: int, seed: int, buckets: int = 8
    ) -> tuple[tf.data.Dataset, int]:
        """Endless batches of rows with units' tags [U] for `fit()`, and how many an epoch has."""
        labels, weights = rows.labels_of_tokens(labels)
        return training_batches(rows.tokens, labels, batch_size, seed, buckets, weights)

    @classmethod
    def _load(cls, preset: str, load_weights: bool, **kwargs: Any) -> Self:
        loader = get_preset_loader(preset)
        return loader.load_task(cls, load_weights, "label_names" not in kwargs, **kwargs)

    def texts_of(self, x: Any) -> list[str] | list[list[str]] | None:
        is_raw = isinstance(x, tuple | list | str | tf.RaggedTensor) or hasattr(x, "__array__")
        return texts_or_words(x) if self.preprocessor is not None and is_raw else None

    def checked_labels(self, texts: Sequence[Any], y: Any, weights: Any) -> tuple[Any, None]:
        if weights is not None:
            raise ValueError("texts have no weights: sample_weight must be None.")
        return y, None

    def labeled_tokens(
        self, texts: Sequence[Any], labels: Any, weights: None
    ) -> tuple[Tokens, np.ndarray, np.ndarray]:
        rows, numbers = self.labeled_rows(texts, labels)
        return rows.tokens, *rows.labels_of_tokens(numbers)

    def _tags_of_words(self, at: int, words: Sequence[str], tags: Any) -> Sequence[str]:
        tags = [*map(decoded, tags)]
        if len(tags) != len(words) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError(
                f"text {at} has {len(words)} words and the labels {tags!r}: {_LABELS_WANTED}."
            )
        if self.scheme == NO_SCHEME:
            return tags
        try:
            return converted(tags, self.scheme)
        except ValueError as error:
            raise ValueError(f"text {at}: {error}.") from error


def _numbered(texts: Sequence[Any], labels: Sequence[Any]) -> Iterable[tuple[int, tuple[Any, Any]]]:
    return enumerate(zip(texts, labels, strict=True))


def _checked_spans(at: int, text: str, spans: Any) -> list[Chunk]:
    try:
        found = sorted(Chunk(int(start), int(end), str(label)) for start, end, label in spans)
    except (TypeError, ValueError) as error:
        raise ValueError(f"text {at} has the spans {spans!r}: {_LABELS_WANTED}.") from error
    before = 0
    for span in found:
        if not before <= span.start < span.end <= len(text):
            where = f"a text of {len(text)} characters, after {before}"
            raise ValueError(f"text {at} has the span {tuple(span)!r}, which is not in {where}.")
        before = span.end
    return found


def _chunks_of_spans(spans: Sequence[Chunk], starts: np.ndarray, ends: np.ndarray) -> list[Chunk]:
    """The units that each span of characters overlaps; a unit belongs to the first span only."""
    chunks, taken = [], 0
    for start, end, label in spans:
        first = max(taken, int(np.searchsorted(ends, start, side="right")))
        last = int(np.searchsorted(starts, end, side="left"))
        if first < last:
            chunks.append(Chunk(first, last, label))
            taken = last
    return chunks
