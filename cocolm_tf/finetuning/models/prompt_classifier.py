"""A pretrained language model that classifies texts by the words it predicts in a prompt."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from keras_hub.src.utils.tensor_utils import preprocessing_function

from cocolm_tf.data.examples import Examples
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.batches import (
    PREDICTION_BATCH,
    TOKENIZED_AT_ONCE,
    Tokens,
    predict_rows,
    prediction_batches,
    tokenized,
    without_padding,
)
from cocolm_tf.finetuning.models.raw_text import (
    BATCH_SIZE,
    Columns,
    check_row_length,
    class_numbers,
    class_numbers_in_graph,
    finite_numbers,
    raw_text_task,
)
from cocolm_tf.finetuning.presets import language_model_bias, local_preset
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.dictionary import (
    END_TOKEN_ID,
    PAD_TOKEN_ID,
    START_TOKEN_ID,
    UNKNOWN_TOKEN_ID,
)
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

_FIELD = re.compile(r"\{([^{}]*)\}")
_TEXTS = ("first", "second")
_MASK = "mask"
_CHANGES = ("open", "lower")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a template: words, a text, or the mask."""

    words: str = ""  # empty where a text or the mask is
    text: int | None = None  # which text is here, 0 or 1; None where none is
    change: str = ""  # `open` removes the text's final punctuation, `lower` lowers its first letter

    @property
    def is_mask(self) -> bool:
        """Whether the mask, or a label word in its place, is here."""
        return not self.words and self.text is None


@dataclasses.dataclass(frozen=True)
class Template:
    """A template, see `CocoLMPromptClassifierPreprocessor`; `UserError` if it is none."""

    source: str

    def __post_init__(self) -> None:
        texts = [part.text for part in self.parts if part.text is not None]
        masks = sum(part.is_mask for part in self.parts)
        if masks != 1 or sorted(texts) not in ([0], [0, 1]):
            raise UserError(
                f"template {self.source!r} must have {{mask}} once, {{first}} once, and for pairs "
                "{second} once."
            )

    @property
    def num_texts(self) -> int:
        """1, or 2 for pairs of texts."""
        return sum(part.text is not None for part in self.parts)

    @property
    def parts(self) -> list[Part]:
        """The parts, in order."""
        parts = []
        # Words and what is in braces alternate.
        for number, piece in enumerate(_FIELD.split(self.source)):
            if number % 2:
                parts.append(self._field(piece))
            elif piece.strip():
                parts.append(Part(words=piece.strip()))
        return parts

    def _field(self, piece: str) -> Part:
        name, _, change = piece.partition("|")
        if name == _MASK and not change:
            return Part()
        if name not in _TEXTS or (change and change not in _CHANGES):
            raise UserError(
                f"template {self.source!r}: {{{piece}}} is none of {{mask}}, {{first}}, "
                "{second}, {first|open}, {first|lower} and the like."
            )
        return Part(text=_TEXTS.index(name), change=change)


def changed(texts: tf.Tensor, change: str) -> tf.Tensor:
    """Texts [B] with the change of a part."""
    if change == "open":
        return tf.strings.regex_replace(texts, r"[\s.?!]+$", "")
    if change == "lower":
        first = tf.strings.substr(texts, 0, 1, unit="UTF8_CHAR")
        rest = tf.strings.regex_replace(texts, r"^(?s:.)", "")
        return tf.strings.join([tf.strings.lower(first, encoding="utf-8"), rest])
    return texts


# Joins the texts that decide which demonstrations a row gets; no text contains it.
_SEPARATOR = "\x1f"


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMPromptClassifierPreprocessor(keras_hub.models.Preprocessor):
    """Fills templates: `<s> prompt </s>`, then `demonstration </s>` for every class.

    The prompt has `<mask>` where the label word belongs; a demonstration is an example of its
    class, drawn from those given, with the label word in place (LM-BFF, Gao et al., 2021). The
    text, the seed and the number of the draw decide which one a text gets; it is not the text
    itself where there is another. The prompt and each demonstration have room for the same number
    of tokens; texts that are longer are cut.

    Args:
        tokenizer: Turns texts into tokens.
        template: Words, and in braces `first` and `second` for the texts and `mask` for the word
            that is left out, as LM-BFF's manual templates. `{first|open}` is the text without its
            final punctuation, `{second|lower}` the text with a small first letter.
        label_words: For every class its word, which must be one token, or several words, of which
            the first that is one token is taken.
        demonstrations: For every class its examples, each a list of one text or two. None for no
            demonstrations.
        sequence_length: S, the tokens of every row.
        seed: Decides the draws.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        x: A text, a batch of texts, a tuple of two of these for pairs, or a [B, 2] batch of
            pairs. Strings or string tensors.
        y: Labels, passed through.
        sample_weight: Weights of the labels, passed through.
        draw: Another number draws other demonstrations.
        candidates: For every class [B, K] int32, the numbers of the demonstrations to draw from
            for each row; None for all of them.

    Returns:
        A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S] bool, [S] for a single text;
        in a tuple with `y` and `sample_weight` where these are given.

    Raises:
        UserError: If the template has not one mask and its texts once each, a class has no word of
            one token, two classes have the same word, or S leaves no room for texts.

    Example:
    ```python
    preprocessor = CocoLMPromptClassifierPreprocessor(
        CocoLMTokenizer.from_preset("runs/first/preset"),
        "{first} It was {mask} .",
        label_words=["terrible", "great"],
        demonstrations=[[["It was a bore."]], [["A feast for the eyes."]]],
        sequence_length=128,
    )
    preprocessor(["I liked it."])
    ```
    """

    backbone_cls = CocoLMBackbone
    tokenizer_cls = CocoLMTokenizer

    def __init__(
        self,
        tokenizer: CocoLMTokenizer,
        template: str,
        label_words: Sequence[str | Sequence[str]],
        demonstrations: Sequence[Sequence[Sequence[str]]] | None = None,
        sequence_length: int = 512,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.template = Template(template)
        self.label_words = [[word] if isinstance(word, str) else [*word] for word in label_words]
        self.demonstrations = _checked(demonstrations, len(self.label_words), self.template)
        self.sequence_length = sequence_length
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        self.built = True

    @property
    def label_word_ids(self) -> list[int]:
        """The tokens of the label words, in the order of the classes."""
        ids = [self._label_word_id(words) for words in self.label_words]
        if len(set(ids)) < len(ids):
            chosen = ", ".join(map(self.tokenizer.id_to_token, ids))
            raise UserError(f"two classes have the same label word: {chosen}.")
        return ids

    @property
    def room(self) -> int:
        """How many tokens the texts of the prompt may have, and those of each demonstration."""
        fixed = sum(1 if part.is_mask else len(self._ids_of(part.words)) for part in self._fixed())
        filled = 1 if self.demonstrations is None else 1 + len(self.demonstrations)
        # `<s>` once, and `</s>` after each.
        room = (self.sequence_length - 1) // filled - 1 - fixed
        if room < self.template.num_texts:
            raise UserError(
                f"{self.sequence_length} tokens have no room for {filled} times the template "
                f"{self.template.source!r}: give more tokens, or no demonstrations."
            )
        return room

    def _fixed(self) -> list[Part]:
        return [part for part in self.template.parts if part.text is None]

    def _label_word_id(self, words: Sequence[str]) -> int:
        tried = []
        for word in words:
            ids = self._ids_of(word)
            if len(ids) == 1 and ids[0] != UNKNOWN_TOKEN_ID:
                return ids[0]
            tried.append(f"{word!r} is {' '.join(map(self.tokenizer.id_to_token, ids))}")
        raise UserError(
            f"a label word must be one token of the vocabulary, but {'; '.join(tried)}: choose "
            "another word."
        )

    def call(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        draw: Any = 0,
        candidates: Sequence[tf.Tensor] | None = None,
    ) -> Any:
        x = tuple(map(as_string_tensor, x)) if isinstance(x, tuple) else as_string_tensor(x)
        return self._pack(x, y, sample_weight, draw=draw, candidates=candidates)

    @preprocessing_function
    def _pack(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        draw: Any = 0,
        candidates: Sequence[tf.Tensor] | None = None,
    ) -> Any:
        if isinstance(x, tf.Tensor) and x.shape.rank == 2:
            x = tuple(tf.unstack(x, axis=1))
        texts = x if isinstance(x, tuple) else (x,)
        if len(texts) != self.template.num_texts:
            raise ValueError(
                f"the template {self.template.source!r} has {self.template.num_texts} text(s), a "
                f"row {len(texts)}."
            )
        is_batched = texts[0].shape.rank == 1
        batches = texts if is_batched else [text[tf.newaxis] for text in texts]
        features = self._features(batches, draw, candidates)
        if not is_batched:
            features = {name: feature[0] for name, feature in features.items()}
        return keras.utils.pack_x_y_sample_weight(features, y, sample_weight)

    def _features(
        self, texts: Sequence[tf.Tensor], draw: Any, candidates: Sequence[tf.Tensor] | None
    ) -> dict[str, tf.Tensor]:
        words = {part.words: self._ids_of(part.words) for part in self._fixed() if part.words}
        room = self.room
        filled = [(self.tokenizer.mask_token_id, texts)]
        if self.demonstrations is not None:
            ids = self.label_word_ids
            for label, own in enumerate(candidates or [None] * len(ids)):
                filled.append((ids[label], self._drawn(label, texts, draw, own)))
        size = tf.shape(texts[0])[0]
        rows: list[Any] = [tf.fill([size, 1], START_TOKEN_ID)]
        for middle, own in filled:
            rows += [*self._filled(own, middle, words, room), tf.fill([size, 1], END_TOKEN_ID)]
        packed = tf.concat(rows, axis=1)
        token_ids = packed.to_tensor(PAD_TOKEN_ID, shape=[None, self.sequence_length])
        mask = tf.sequence_mask(packed.row_lengths(), self.sequence_length)
        return {"token_ids": token_ids, "padding_mask": mask}

    def _ids_of(self, text: str) -> list[int]:
        """The tokens of a text, as numbers also while a graph is traced."""
        with tf.init_scope():
            return self.tokenizer.graph_module().tokenize(tf.constant([text]))[0].numpy().tolist()

    def _drawn(
        self, label: int, texts: Sequence[tf.Tensor], draw: Any, candidates: tf.Tensor | None
    ) -> list[tf.Tensor]:
        """Draws an example of a class for every row."""
        examples = self.demonstrations[label]
        count = len(examples) if candidates is None else candidates.shape[1]
        names = tf.constant([_SEPARATOR.join(example) for example in examples])
        name = tf.strings.join(list(texts), _SEPARATOR)
        place = [str(self.seed), str(label), tf.strings.as_string(draw)]
        place = tf.strings.join([name, *place], _SEPARATOR)
        number = tf.strings.to_hash_bucket_fast(place, count)
        if candidates is not None:
            number = tf.cast(tf.gather(candidates, number, batch_dims=1), tf.int64)
        is_itself = tf.equal(tf.gather(names, number), name)
        number = (number + tf.cast(is_itself, tf.int64)) % len(examples)
        return [tf.gather(tf.constant(column), number) for column in zip(*examples, strict=True)]

    def _filled(
        self,
        texts: Sequence[tf.Tensor],
        middle: int,
        words: Mapping[str, list[int]],
        room: int,
    ) -> list[tf.RaggedTensor | tf.Tensor]:
        """The tokens of a template's parts, filled with texts and the mask or a label word."""
        parts, graph = self.template.parts, self.tokenizer.graph_module()
        changes = {part.text: part.change for part in parts}
        ids = [graph.tokenize(changed(text, changes[number])) for number, text in enumerate(texts)]
        ids = _cut(ids, room)
        size = tf.shape(texts[0])[0]

        def tokens(part: Part) -> tf.RaggedTensor | tf.Tensor:
            if part.text is not None:
                return ids[part.text]
            own = [middle] if part.is_mask else words[part.words]
            return tf.tile(tf.constant([own]), [size, 1])

        return list(map(tokens, parts))

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild this layer."""
        return {
            **super().get_config(),
            "template": self.template.source,
            "label_words": self.label_words,
            "demonstrations": self.demonstrations,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
        }


def _cut(ids: list[tf.RaggedTensor], room: int) -> list[tf.RaggedTensor]:
    """Cuts texts that together are too long, the longer one first."""
    if len(ids) == 1:
        return [ids[0][:, :room]]
    lengths = [row.row_lengths() for row in ids]
    half = room // 2
    limits = (
        tf.maximum(room - lengths[1], room - half),
        tf.maximum(room - lengths[0], half),
    )
    return [
        tf.ragged.boolean_mask(row, tf.ragged.range(length) < limit[:, tf.newaxis])
        for row, length, limit in zip(ids, lengths, limits, strict=True)
    ]


def _checked(
    demonstrations: Sequence[Sequence[Sequence[str]]] | None, num_classes: int, template: Template
) -> list[list[list[str]]] | None:
    if demonstrations is None:
        return None
    demonstrations = [[[*texts] for texts in examples] for examples in demonstrations]
    if len(demonstrations) != num_classes or not all(demonstrations):
        raise ValueError(f"demonstrations are some examples of each of the {num_classes} classes.")
    for examples in demonstrations:
        for texts in examples:
            if len(texts) != template.num_texts:
                raise ValueError(f"a demonstration has {template.num_texts} text(s): {texts!r}.")
    return demonstrations


class LabelWordHead(keras.layers.Layer):
    """The language modeling head at the mask: logits [B, words] of some words alone."""

    # Its inputs are hidden states [B, S, H] and token ids [B, S] with the mask once in each row.

    def __init__(
        self,
        token_embedding: keras.layers.Layer,
        mask_token_id: int,
        label_word_ids: Sequence[int],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.token_embedding = token_embedding
        self.mask_token_id = mask_token_id
        self.label_word_ids = [*label_word_ids]

    def build(self, hidden_shape: Any, token_ids_shape: Any = None) -> None:
        # The matrix is the embedding's.
        self.bias = self.add_weight(
            name="bias", shape=(len(self.label_word_ids),), initializer="zeros"
        )

    def call(self, hidden: tf.Tensor, token_ids: tf.Tensor) -> tf.Tensor:
        is_mask = tf.equal(token_ids, self.mask_token_id)
        position = tf.argmax(is_mask, axis=1, output_type=tf.int32)
        at_mask = tf.gather(hidden, position, axis=1, batch_dims=1)
        matrix = tf.convert_to_tensor(self.token_embedding.embeddings)
        words = tf.cast(tf.gather(matrix, self.label_word_ids), at_mask.dtype)
        return tf.matmul(at_mask, words, transpose_b=True) + self.bias

    def compute_output_shape(self, hidden_shape: Any, token_ids_shape: Any = None) -> Any:
        return (hidden_shape[0], len(self.label_word_ids))


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMPromptClassifier(raw_text_task(keras_hub.models.Task)):
    """Classifies texts as LM-BFF does (Gao et al., 2021; paper, section 5.3).

    A template makes each text a sentence with a word left out, and the pretrained language
    modeling head scores the classes' words there. There is no new head to train, so that a few
    examples can be enough. A model that was pretrained without the language modeling head, as
    ELECTRA is, cannot do it.

    With `bounds` it is a regression between two words, for the lowest and the highest number: the
    output is the mean of the bounds weighted by the words' probabilities.

    Args:
        backbone: The encoder.
        label_word_ids: The tokens of the classes' words, in the order of the classes.
        mask_token_id: The vocabulary's `<mask>`.
        preprocessor: Fills the template; None where `fit()` gets tokens.
        label_names: The names of the classes, in order; saved in presets.
        bounds: The lowest and the highest number of a regression; None for classes.
        draws: How many sets of demonstrations `predict()` averages over.
        similar: Whether demonstrations are drawn among the half of each class that is most
            like the text, by the cosine of the encoder's hidden states of `<s>`.
        trim_padding: Whether padding that all rows of a batch have in common is cut off.
        **kwargs: As for `keras_hub.models.Task`.

    Call arguments:
        inputs: A dict of `token_ids` [B, S] int32, with the mask once in each row, and
            `padding_mask` [B, S].

    Returns:
        Logits [B, classes], or numbers [B, 1], float32.

    Raises:
        ValueError: If the arguments do not fit each other.

    Example:
    ```python
    classifier = CocoLMPromptClassifier.from_preset(
        "runs/first/preset",
        template="{first} It was {mask} .",
        label_words=["terrible", "great"],
    )
    classifier.fit(["A feast for the eyes.", "What a bore."], [1, 0], epochs=10)
    classifier.predict(["I liked it."])  # [1, 2] logits
    ```
    """

    backbone_cls = CocoLMBackbone
    preprocessor_cls = CocoLMPromptClassifierPreprocessor

    def __init__(
        self,
        backbone: CocoLMBackbone,
        label_word_ids: Sequence[int],
        mask_token_id: int,
        preprocessor: CocoLMPromptClassifierPreprocessor | None = None,
        label_names: Sequence[str] | None = None,
        bounds: Sequence[float] | None = None,
        draws: int = 1,
        similar: bool = False,
        trim_padding: bool = True,
        **kwargs: Any,
    ) -> None:
        if backbone.embedding_dim != backbone.hidden_dim:
            raise ValueError("The LM head has no layer between hidden states and word embeddings.")
        if label_names is not None and len(label_names) != len(label_word_ids):
            raise ValueError(
                f"{len(label_word_ids)} label words, but {len(label_names)} label_names."
            )
        if bounds is not None and (len(label_word_ids) != 2 or not bounds[0] < bounds[1]):
            raise ValueError("A regression has two words, and a lower and a higher bound.")
        check_row_length(preprocessor, backbone)
        # Set before the base class's constructor, which calls `compile`.
        self.bounds = None if bounds is None else list(bounds)

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.head = LabelWordHead(
            backbone.token_embedding,
            mask_token_id,
            label_word_ids,
            # In float32: half precision would round the predictions themselves.
            dtype="float32",
            name="label_words",
        )

        # === Functional model ===
        inputs = backbone.input
        outputs = self.head(backbone(inputs), inputs["token_ids"])
        if bounds is not None:
            low, high = bounds
            share = keras.ops.sigmoid(outputs[:, 1:] - outputs[:, :1])
            outputs = low + (high - low) * share
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Configuration ===
        self.label_word_ids = [*label_word_ids]
        self.mask_token_id = mask_token_id
        self.label_names = None if label_names is None else list(label_names)
        self.draws, self.similar = draws, similar
        self.trim_padding = trim_padding

    def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Computes the outputs; for texts their mean over `draws` sets of demonstrations.

        Args:
            x: As for `fit`.
            batch_size: Rows of a batch; None for 32.
            **kwargs: As for `keras.Model.predict`.

        Returns:
            [N, classes] logits, or [N, 1] numbers.

        Example:
        ```python
        classifier.predict(["I liked it."]).argmax(axis=1)
        ```
        """
        columns = self._columns(x)
        if not columns or not columns[0] or self.preprocessor.demonstrations is None:
            return super().predict(x, batch_size, **kwargs)
        candidates = self.candidates(columns)
        total = 0.0
        for draw in range(self.draws):
            tokens = self.tokens_of(columns, draw, candidates)
            outputs = predict_rows(self, tokens, min(batch_size or BATCH_SIZE, len(tokens)))
            total = total + outputs.astype(np.float64)
        return (total / self.draws).astype(np.float32)

    def tokens_of(
        self, columns: Columns, draw: int = 0, candidates: Sequence[np.ndarray] | None = None
    ) -> Tokens:
        """Texts in prompts as rows of tokens, without padding."""
        features = []
        for start in range(0, len(columns[0]), TOKENIZED_AT_ONCE):
            part = slice(start, start + TOKENIZED_AT_ONCE)
            features.append(
                self.preprocessor(
                    x=tuple(texts[part] for texts in columns),
                    draw=draw,
                    candidates=candidates and [tf.constant(one[part]) for one in candidates],
                )
            )
        return without_padding(features, self.preprocessor.sequence_length)

    def candidates(self, columns: Columns) -> list[np.ndarray] | None:
        """For every class [N, K] int32, the half of its demonstrations most like each text."""
        # None where demonstrations are drawn from all.
        demonstrations = self.preprocessor.demonstrations
        if demonstrations is None or not self.similar:
            return None
        vectors, found = self._vectors(columns), []
        texts = list(zip(*columns, strict=True))
        for examples in demonstrations:
            likeness = vectors @ self._vectors(tuple(zip(*examples, strict=True))).T
            # A text is a demonstration for itself only where there is no other.
            names = list(map(tuple, examples))
            likeness[[[name == text for name in names] for text in texts]] = -2.0
            count = max(1, -(-len(examples) // 2))
            order = np.argsort(-likeness, axis=1, kind="stable")
            found.append(order[:, :count].astype(np.int32))
        return found

    def _vectors(self, columns: Columns) -> np.ndarray:
        """The hidden states [N, H] of `<s>`, scaled to length 1."""
        second = columns[1] if len(columns) > 1 else None
        tokens = tokenized(self.preprocessor, Examples(list(columns[0]), second))
        batches, order = prediction_batches(tokens, PREDICTION_BATCH)
        read = tf.function(
            lambda features: self.backbone(features, training=False)[:, 0], reduce_retracing=True
        )
        found = np.concatenate([read(features) for features in batches])[: len(order)]
        vectors = np.empty(found.shape, np.float64)
        vectors[order] = found
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """Configures the model for `fit()`.

        Args:
            optimizer: `"auto"` for AdamW with the released models' settings and a learning rate
                of 2e-5, or what Keras takes.
            loss: `"auto"` for the cross entropy among the words, or what Keras takes.
            metrics: `"auto"` for the accuracy, none of a regression, or what Keras takes.
            **kwargs: As for `CocoLMTextClassifier.compile`.
        """
        is_regression = self.bounds is not None
        if optimizer == "auto":
            optimizer = self.default_optimizer()
        if loss == "auto":
            loss = (
                BoundedCrossentropy(self.bounds)
                if is_regression
                else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            )
        if metrics == "auto":
            metrics = [] if is_regression else [keras.metrics.SparseCategoricalAccuracy()]
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)

    def checked_labels(self, y: Any, rows: int) -> Any:
        """Labels of texts as the loss takes them; `ValueError` names the first that is wrong."""
        if self.bounds is not None:
            return finite_numbers(y, rows, self.bounds)
        count = len(self.label_word_ids)
        return class_numbers(y, rows, count, self.label_names, self._has_class_loss)

    def labels_in_graph(self, y: Any) -> Any:
        """Labels of a dataset's batch as the loss takes them."""
        if self.bounds is not None:
            return y
        count = len(self.label_word_ids)
        return class_numbers_in_graph(y, count, self.label_names, self._has_class_loss)

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild this model."""
        return {
            **super().get_config(),
            "label_word_ids": self.label_word_ids,
            "mask_token_id": self.mask_token_id,
            "label_names": self.label_names,
            "bounds": self.bounds,
            "draws": self.draws,
            "similar": self.similar,
            "trim_padding": self.trim_padding,
        }

    @classmethod
    def from_preset(
        cls,
        preset: str | os.PathLike[str],
        load_weights: bool = True,
        template: str | None = None,
        label_words: Sequence[str | Sequence[str]] | None = None,
        demonstrations: Sequence[Sequence[Sequence[str]]] | None = None,
        sequence_length: int | None = None,
        seed: int = 0,
        backbone: CocoLMBackbone | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a prompt classifier, or makes one on a pretrained language model.

        Args:
            preset: A folder. With a `template`, one that pretraining wrote.
            load_weights: Whether to load the preset's weights; otherwise they are random.
            template: As for the preprocessor; None loads a saved prompt classifier.
            label_words: As for the preprocessor.
            demonstrations: As for the preprocessor.
            sequence_length: The tokens of every row; None for as many as the model has positions.
            seed: Decides which demonstrations a text gets.
            backbone: The encoder, if it is loaded already.
            **kwargs: Arguments of the class.

        Returns:
            The classifier, compiled with the defaults of `compile`.

        Raises:
            UserError: If the model was pretrained without a language modeling head, or for the
                reasons of the preprocessor.

        Example:
        ```python
        CocoLMPromptClassifier.from_preset(
            "runs/first/preset", template="{first} ? {mask} .", label_words=["No", "Yes"]
        )
        ```
        """
        if template is None:
            with local_preset(preset) as local:
                return super().from_preset(local, load_weights, **kwargs)
        if label_words is None:
            raise ValueError("A template needs label_words.")
        dtype = {"dtype": kwargs.pop("dtype")} if "dtype" in kwargs else {}
        with local_preset(preset) as local:
            bias = language_model_bias(local)
            backbone = backbone or CocoLMBackbone.from_preset(local, load_weights, **dtype)
            tokenizer = CocoLMTokenizer.from_preset(local)
        preprocessor = CocoLMPromptClassifierPreprocessor(
            tokenizer,
            template,
            label_words,
            demonstrations,
            sequence_length or backbone.max_sequence_length,
            seed,
        )
        # Checked here, as Keras wraps the errors that occur in a call.
        ids, _ = preprocessor.label_word_ids, preprocessor.room
        classifier = cls(backbone, ids, tokenizer.mask_token_id, preprocessor, **kwargs)
        if load_weights:
            classifier.head.bias.assign(bias[ids])
        return classifier


@keras.saving.register_keras_serializable(package="cocolm_tf")
class BoundedCrossentropy(keras.losses.Loss):
    """The cross entropy of a number between two bounds, as a share of the way between them."""

    # Up to a constant it is the divergence that LM-BFF minimizes for regressions.

    def __init__(self, bounds: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bounds = [*bounds]

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        low, high = self.bounds
        share, predicted = ((tf.reshape(y, [-1]) - low) / (high - low) for y in (y_true, y_pred))
        predicted = tf.clip_by_value(predicted, 1e-6, 1 - 1e-6)
        return -share * tf.math.log(predicted) - (1 - share) * tf.math.log(1 - predicted)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bounds": self.bounds}
