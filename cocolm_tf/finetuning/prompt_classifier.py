"""A pretrained language model that classifies texts by the words it puts into a prompt."""

import os
from collections.abc import Sequence
from typing import Any, Self

import keras
import keras_hub
import tensorflow as tf

from cocolm_tf.finetuning.presets import language_model_bias, local_preset
from cocolm_tf.finetuning.prompt_classifier_preprocessor import CocoLMPromptClassifierPreprocessor
from cocolm_tf.finetuning.raw_inputs import (
    class_numbers,
    class_numbers_in_graph,
    finite_numbers,
)
from cocolm_tf.finetuning.raw_text_task import check_row_length, raw_text_task
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer


class LabelWordHead(keras.layers.Layer):
    """The language modeling head at the mask, for some words only.

    Args:
        token_embedding: `ReversibleEmbedding` of the encoder.
        mask_token_id: int.
        label_word_ids: The tokens to score.

    Call arguments:
        hidden: [B, S, H].
        token_ids: [B, S], with the mask once in each row.

    Returns:
        Logits [B, words].

    Example:
    ```python
    head = LabelWordHead(backbone.token_embedding, mask_token_id=999, label_word_ids=[5, 6])
    head(backbone(inputs), inputs["token_ids"])
    ```
    """

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
        """Creates the bias; the matrix is the embedding's."""
        self.bias = self.add_weight(
            name="bias", shape=(len(self.label_word_ids),), initializer="zeros"
        )

    def call(self, hidden: tf.Tensor, token_ids: tf.Tensor) -> tf.Tensor:
        """Scores."""
        is_mask = tf.equal(token_ids, self.mask_token_id)
        position = tf.argmax(is_mask, axis=1, output_type=tf.int32)
        at_mask = tf.gather(hidden, position, axis=1, batch_dims=1)
        matrix = tf.convert_to_tensor(self.token_embedding.embeddings)
        words = tf.cast(tf.gather(matrix, self.label_word_ids), at_mask.dtype)
        return tf.matmul(at_mask, words, transpose_b=True) + self.bias

    def compute_output_shape(self, hidden_shape: Any, token_ids_shape: Any = None) -> Any:
        """The shape of the logits, for the functional graph."""
        return (hidden_shape[0], len(self.label_word_ids))


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMPromptClassifier(raw_text_task(keras_hub.models.Task)):
    """Classifies texts as LM-BFF does (Gao et al., 2021; paper, section 5.3).

    A template makes each text a sentence with a word left out, and the pretrained language
    modeling head scores the classes' words there: nothing but the encoder is fine-tuned, and a few
    examples can do. A model that was pretrained without that head, as ELECTRA is, cannot do it.

    With `bounds` it is a regression between two words, for the lowest and the highest number: the
    output is the mean of the bounds weighted by the words' probabilities.

    Args:
        backbone: `CocoLMBackbone`.
        label_word_ids: The tokens of the classes' words, in the order of the classes.
        mask_token_id: int. Of the vocabulary.
        preprocessor: `CocoLMPromptClassifierPreprocessor`, or None where `fit()` gets tokens.
        label_names: The classes by name, in order; kept in the preset.
        bounds: The lowest and the highest number of a regression; None for classes.
        trim_padding: bool. Whether padding that all rows of a batch have in common is cut off.

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
        # The base class compiles in its constructor.
        self.bounds = None if bounds is None else list(bounds)

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.head = LabelWordHead(
            backbone.token_embedding,
            mask_token_id,
            label_word_ids,
            # Half precision would round the answer itself.
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
        self.trim_padding = trim_padding

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        metrics: Any = "auto",
        jit_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        """Readies the model for `fit()`.

        Args:
            optimizer: `"auto"` for AdamW with the released models' settings and a learning rate
                of 2e-5, or what Keras takes.
            loss: `"auto"` for the cross entropy among the words, or what Keras takes.
            metrics: `"auto"` for the accuracy, none of a regression, or what Keras takes.
            jit_compile: As in Keras, but off unless asked for.
            **kwargs: As for `keras.Model.compile`.
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
        super().compile(
            optimizer=optimizer, loss=loss, metrics=metrics, jit_compile=jit_compile, **kwargs
        )

    def checked_labels(self, y: Any, rows: int) -> Any:
        """Labels of texts as the loss takes them; a `ValueError` says what is wrong."""
        if self.bounds is not None:
            return finite_numbers(y, rows, self.bounds)
        count = len(self.label_word_ids)
        return class_numbers(y, rows, count, self.label_names, self._has_class_loss)

    def labels_in_graph(self, y: Any) -> Any:
        """The same for the labels of a dataset's batch."""
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
        """Loads a prompt classifier, or makes one of a pretrained language model.

        Args:
            preset: A folder. With a `template`, one that pretraining wrote.
            load_weights: Whether the weights are the preset's, or fresh.
            template: As for the preprocessor; None loads a saved prompt classifier.
            label_words: As for the preprocessor.
            demonstrations: As for the preprocessor.
            sequence_length: How long every row becomes; None for what the model has positions for.
            seed: Decides which demonstrations a text gets.
            backbone: The encoder, where it is loaded already.
            **kwargs: Arguments of the class.

        Returns:
            The classifier, compiled with the defaults.

        Raises:
            UserError: If the model was pretrained without a language modeling head, or as the
                preprocessor.

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
        # Here, as Keras wraps what goes wrong in a call.
        ids, _ = preprocessor.label_word_ids, preprocessor.room
        classifier = cls(backbone, ids, tokenizer.mask_token_id, preprocessor, **kwargs)
        if load_weights:
            classifier.head.bias.assign(bias[ids])
        return classifier


@keras.saving.register_keras_serializable(package="cocolm_tf")
class BoundedCrossentropy(keras.losses.Loss):
    """The cross entropy of a number between two bounds, read as a share of the way from one to
    the other: up to a constant the divergence that LM-BFF minimizes for regressions.

    Args:
        bounds: The lowest and the highest number.

    Example:
    ```python
    BoundedCrossentropy((0, 5))(tf.constant([4.0]), tf.constant([[3.8]]))
    ```
    """

    def __init__(self, bounds: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bounds = [*bounds]

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The loss of each row."""
        low, high = self.bounds
        share, predicted = ((tf.reshape(y, [-1]) - low) / (high - low) for y in (y_true, y_pred))
        predicted = tf.clip_by_value(predicted, 1e-6, 1 - 1e-6)
        return -share * tf.math.log(predicted) - (1 - share) * tf.math.log(1 - predicted)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "bounds": self.bounds}
