"""A pretrained language model that classifies texts by the words it predicts in a prompt."""

import os
from collections.abc import Sequence
from typing import Any, Self

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.data.examples import Examples
from cocolm_tf.finetuning.batches import (
    PREDICTION_BATCH,
    predict_rows,
    prediction_batches,
    tokenized,
)
from cocolm_tf.finetuning.models.prompts import CocoLMPromptClassifierPreprocessor
from cocolm_tf.finetuning.models.raw_inputs import Columns, Labels
from cocolm_tf.finetuning.models.raw_text import BATCH_SIZE, check_row_length, raw_text_task
from cocolm_tf.finetuning.presets import language_model_bias, local_preset
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer


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
    output is the mean of the bounds weighted by the words' probabilities. The default loss is the
    cross entropy among the words.

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

    preprocessor_cls = CocoLMPromptClassifierPreprocessor
    saved = (
        "label_word_ids",
        "mask_token_id",
        "label_names",
        "bounds",
        "draws",
        "similar",
        "trim_padding",
    )

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
        # Read by `compile`, which the base's constructor calls.
        num_classes = len(label_word_ids) if bounds is None else 1
        self.labels = Labels(num_classes, label_names, bounds=bounds)

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
        self.bounds = None if bounds is None else list(bounds)
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
        columns = self.texts_of(x)
        if not columns or not columns[0] or self.preprocessor.demonstrations is None:
            return super().predict(x, batch_size, **kwargs)
        candidates, total = self.candidates(columns), 0.0
        for draw in range(self.draws):
            tokens = self.tokens_of(columns, draw=draw, candidates=candidates)
            outputs = predict_rows(self, tokens, batch_size or BATCH_SIZE)
            total = total + outputs.astype(np.float64)
        return (total / self.draws).astype(np.float32)

    def _tokenized(
        self,
        columns: Columns,
        rows: slice,
        draw: int = 0,
        candidates: Sequence[np.ndarray] | None = None,
    ) -> dict[str, tf.Tensor]:
        return self.preprocessor(
            x=tuple(texts[rows] for texts in columns),
            draw=draw,
            candidates=candidates and [tf.constant(one[rows]) for one in candidates],
        )

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

    def default_losses(self) -> dict[str, Any]:
        if self.labels.is_regression:
            return {"loss": BoundedCrossentropy(self.labels.bounds)}
        return {
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": [keras.metrics.SparseCategoricalAccuracy()],
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
            return super().from_preset(preset, load_weights, **kwargs)
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
