"""Texts to prompts: templates with a word left out, and demonstrations that follow (LM-BFF)."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub
import tensorflow as tf
from keras_hub.src.utils.tensor_utils import preprocessing_function

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.raw_text import TextPreprocessor, columns_of, string_tensors
from cocolm_tf.tokenization.dictionary import (
    END_TOKEN_ID,
    PAD_TOKEN_ID,
    START_TOKEN_ID,
    UNKNOWN_TOKEN_ID,
)
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
class CocoLMPromptClassifierPreprocessor(TextPreprocessor, keras_hub.models.Preprocessor):
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

    saved = ("label_words", "demonstrations", "sequence_length", "seed")

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
        return self._pack(string_tensors(x), y, sample_weight, draw=draw, candidates=candidates)

    @preprocessing_function
    def _pack(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        draw: Any = 0,
        candidates: Sequence[tf.Tensor] | None = None,
    ) -> Any:
        texts = columns_of(x)
        if len(texts) != self.template.num_texts:
            raise ValueError(
                f"the template {self.template.source!r} has {self.template.num_texts} text(s), a "
                f"row {len(texts)}."
            )
        is_batched = texts[0].shape.rank == 1
        if not is_batched:
            texts = [text[tf.newaxis] for text in texts]
        filled = [(self.tokenizer.mask_token_id, texts)]
        if self.demonstrations is not None:
            ids = self.label_word_ids
            for label, own in enumerate(candidates or [None] * len(ids)):
                filled.append((ids[label], self._drawn(label, texts, draw, own)))
        size, room = tf.shape(texts[0])[0], self.room
        words = {part.words: self._ids_of(part.words) for part in self._fixed() if part.words}
        rows: list[Any] = [tf.fill([size, 1], START_TOKEN_ID)]
        for word, own in filled:
            rows += [*self._filled(own, word, room, words), tf.fill([size, 1], END_TOKEN_ID)]
        packed = tf.concat(rows, axis=1)
        features = {
            "token_ids": packed.to_tensor(PAD_TOKEN_ID, shape=[None, self.sequence_length]),
            "padding_mask": tf.sequence_mask(packed.row_lengths(), self.sequence_length),
        }
        if not is_batched:
            features = {name: feature[0] for name, feature in features.items()}
        return keras.utils.pack_x_y_sample_weight(features, y, sample_weight)

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
        self, texts: Sequence[tf.Tensor], word: int, room: int, words: Mapping[str, list[int]]
    ) -> list[tf.RaggedTensor | tf.Tensor]:
        """The tokens of a template's parts, filled with texts and the mask or a label word."""
        parts, graph = self.template.parts, self.tokenizer.graph_module()
        changes = {part.text: part.change for part in parts}
        ids = [graph.tokenize(changed(text, changes[number])) for number, text in enumerate(texts)]
        ids, size = _cut(ids, room), tf.shape(texts[0])[0]

        def tokens(part: Part) -> tf.RaggedTensor | tf.Tensor:
            if part.text is not None:
                return ids[part.text]
            own = [word] if part.is_mask else words[part.words]
            return tf.tile(tf.constant([own]), [size, 1])

        return list(map(tokens, parts))

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild this layer."""
        return super().get_config() | {"template": self.template.source}


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
