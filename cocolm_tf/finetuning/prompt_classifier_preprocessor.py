"""Raw texts to prompts: sentences with a word left out, and finished ones to go by."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub
import tensorflow as tf
from keras_hub.src.utils.tensor_utils import preprocessing_function

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.templates import Part, Template, changed
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.dictionary import (
    END_TOKEN_ID,
    PAD_TOKEN_ID,
    START_TOKEN_ID,
    UNKNOWN_TOKEN_ID,
)
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

# Between the texts that together decide which demonstrations a row gets. No text has it.
_SEPARATOR = "\x1f"


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMPromptClassifierPreprocessor(keras_hub.models.Preprocessor):
    """Fills templates: `<s> prompt </s>`, then `demonstration </s>` for every class.

    The prompt has `<mask>` where the label word belongs; a demonstration is an example of its
    class, drawn from those given, with the label word in place (LM-BFF, Gao et al., 2021). Which
    one a text gets follows from the text, the seed and the number of the draw, and it never is
    the text itself where there is another. All get the same room; texts that need more are cut.

    Args:
        tokenizer: `CocoLMTokenizer`.
        template: As for `Template`.
        label_words: For every class its word, which is one token, or several to take the first
            from that is.
        demonstrations: For every class its examples, each a list of one text or two. None for no
            demonstrations.
        sequence_length: int. S, how long every row becomes.
        seed: int. Decides the draws.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        x: A text, a batch of texts, a tuple of two of these for pairs, or a [B, 2] batch of
            pairs. Strings or string tensors.
        y: Labels, passed through.
        sample_weight: Weights of the labels, passed through.
        draw: int. Another number draws other demonstrations.

    Returns:
        A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S] bool, [S] for a single text;
        in a tuple with `y` and `sample_weight` where these are given.

    Raises:
        UserError: If the template is none, a class has no word of one token, two classes have the
            same, or S leaves no room for texts.

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
        """There is nothing to build."""
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

    def call(self, x: Any, y: Any = None, sample_weight: Any = None, draw: Any = 0) -> Any:
        """Turns texts into the model's input."""
        x = tuple(map(as_string_tensor, x)) if isinstance(x, tuple) else as_string_tensor(x)
        return self._pack(x, y, sample_weight, draw=draw)

    @preprocessing_function
    def _pack(self, x: Any, y: Any = None, sample_weight: Any = None, draw: Any = 0) -> Any:
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
        features = self._features(batches, draw)
        if not is_batched:
            features = {name: feature[0] for name, feature in features.items()}
        return keras.utils.pack_x_y_sample_weight(features, y, sample_weight)

    def _features(self, texts: Sequence[tf.Tensor], draw: Any) -> dict[str, tf.Tensor]:
        words = {part.words: self._ids_of(part.words) for part in self._fixed() if part.words}
        room = self.room
        filled = [(self.tokenizer.mask_token_id, texts)]
        if self.demonstrations is not None:
            ids = self.label_word_ids
            filled += [(ids[label], self._drawn(label, texts, draw)) for label in range(len(ids))]
        size = tf.shape(texts[0])[0]
        rows: list[Any] = [tf.fill([size, 1], START_TOKEN_ID)]
        for middle, own in filled:
            rows += [*self._filled(own, middle, words, room), tf.fill([size, 1], END_TOKEN_ID)]
        packed = tf.concat(rows, axis=1)
        token_ids = packed.to_tensor(PAD_TOKEN_ID, shape=[None, self.sequence_length])
        mask = tf.sequence_mask(packed.row_lengths(), self.sequence_length)
        return {"token_ids": token_ids, "padding_mask": mask}

    def _ids_of(self, text: str) -> list[int]:
        """The tokens of a text, also while a graph is being made."""
        with tf.init_scope():
            return self.tokenizer.graph_module().tokenize(tf.constant([text]))[0].numpy().tolist()

    def _drawn(self, label: int, texts: Sequence[tf.Tensor], draw: Any) -> list[tf.Tensor]:
        """Draws an example of a class for every row."""
        examples = self.demonstrations[label]
        names = tf.constant([_SEPARATOR.join(example) for example in examples])
        name = tf.strings.join(list(texts), _SEPARATOR)
        place = [str(self.seed), str(label), tf.strings.as_string(draw)]
        place = tf.strings.join([name, *place], _SEPARATOR)
        number = tf.strings.to_hash_bucket_fast(place, len(examples))
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
        """The parts of a template, with the texts in it."""
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
