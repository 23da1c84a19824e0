"""A pretrained encoder that classifies texts, or rates them."""

from collections.abc import Sequence
from typing import Any, Self

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.models.raw_inputs import Labels
from cocolm_tf.finetuning.models.raw_text import (
    PackingPreprocessor,
    check_row_length,
    initializer,
    output_layer,
    raw_text_task,
)
from cocolm_tf.finetuning.presets import converted_head
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.transformer import Dropout
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMTextClassifierPreprocessor(
    PackingPreprocessor, keras_hub.models.TextClassifierPreprocessor
):
    """Tokenizes texts and lays them out as `<s> A </s>` or `<s> A </s> </s> B </s>`.

    What is too long is cut at its end; of a pair the longer text is cut.

    Args:
        tokenizer: Turns texts into tokens.
        sequence_length: S, the tokens of every row. `from_preset` takes as many as the model has
            positions.
        truncate: `"round_robin"`, as KerasHub calls it; there is no other way.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        x: A text, a batch of texts, a tuple of two of these for pairs, or a [B, 2] batch of
            pairs. Strings or string tensors.
        y: Labels, passed through.
        sample_weight: Weights of the labels, passed through.

    Returns:
        A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S] bool, [S] for a single text;
        in a tuple with `y` and `sample_weight` where these are given.

    Raises:
        ValueError: If a row has more than two texts, or `truncate` is another one.

    Example:
    ```python
    preprocessor = CocoLMTextClassifierPreprocessor.from_preset("runs/first/preset")
    preprocessor(["The cat sat.", "It slept."])
    preprocessor(x=(["Where is it?", "Who slept?"], ["On the mat.", "The cat."]))
    x, y = preprocessor(["The cat sat.", "It slept."], [0, 1])
    tf.data.Dataset.from_tensor_slices((["The cat sat.", "It slept."], [0, 1])).map(preprocessor)
    ```
    """

    def __init__(
        self,
        tokenizer: CocoLMTokenizer,
        sequence_length: int = 512,
        truncate: str = "round_robin",
        **kwargs: Any,
    ) -> None:
        if truncate != "round_robin":
            raise ValueError(f"truncate={truncate!r}: the longer text is cut, 'round_robin'.")
        super().__init__(tokenizer, sequence_length, truncate, **kwargs)


class FirstState(keras.layers.Layer):
    """The hidden state of `<s>`, [B, H]: the last block is computed for it alone."""

    def __init__(self, backbone: CocoLMBackbone, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        first = tf.zeros([tf.shape(inputs["token_ids"])[0], 1], tf.int32)
        return self.backbone.states_at(inputs, first, training)[:, 0]

    def compute_output_shape(self, inputs_shape: dict[str, Any]) -> tuple[int | None, ...]:
        return (inputs_shape["token_ids"][0], self.backbone.hidden_dim)


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMTextClassifier(raw_text_task(keras_hub.models.TextClassifier)):
    """Classifies texts or pairs of texts; `fit()` fine-tunes it on raw strings.

    The head is that of the released models, on the hidden state of `<s>`: dropout, dense, GELU,
    dropout, output. The default loss is the cross entropy. With one class it is a regression: the
    output is a number, and the default loss the squared error. With `multi_label` a text has any
    number of the classes: the default loss is the binary cross entropy of each, the default metric
    the accuracy of each by itself.

    `from_preset(directory, num_classes=...)` puts a new head on a pretrained encoder; without
    `num_classes` it loads a fine-tuned classifier with its head, which may be a converted
    checkpoint's.

    Args:
        backbone: The encoder.
        num_classes: How many classes there are; 1 for a regression.
        preprocessor: Turns texts into the encoder's input; None where `fit()` gets tokens.
        label_names: The names of the classes, in order; saved in presets. None for no names.
        activation: On the output, as `"softmax"`; None for logits.
        hidden_dim: Width of the dense layer; None for the encoder's.
        dropout: Rate of both dropouts; None for the encoder's.
        trim_padding: Whether `fit()`, `evaluate()` and `predict()` cut off the padding that
            all rows of a batch have in common, down to one of at most 8 widths.
        multi_label: Whether a text may have several of the classes, or none: labels are
            [N, num_classes], 0 or 1, or for each text a list of names.
        thresholds: With `multi_label`, the probability from which on a text has each class; None
            for 0.5. See `assigned`.
        **kwargs: As for `keras_hub.models.TextClassifier`.

    Call arguments:
        inputs: A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S].

    Returns:
        [B, num_classes] float32.

    Raises:
        ValueError: If the arguments do not fit each other.

    Example:
    ```python
    classifier = CocoLMTextClassifier.from_preset(
        "runs/first/preset", num_classes=2, label_names=["negative", "positive"]
    )
    classifier.fit(["It was great.", "It was not."], [1, 0], batch_size=2, epochs=3)
    classifier.predict(["Great!"])  # [1, 2] logits
    classifier.save_to_preset("runs/reviews")
    classifier = CocoLMTextClassifier.from_preset("runs/reviews")

    pairs = CocoLMTextClassifier.from_preset("runs/first/preset", num_classes=1)
    pairs.fit((["A cat sat."], ["A cat was sitting."]), [4.8])

    topics = CocoLMTextClassifier.from_preset(
        "runs/first/preset", num_classes=2, label_names=["cats", "dogs"], multi_label=True
    )
    topics.fit(["A cat sat.", "It rained."], [["cats"], []])
    topics.assigned(topics.predict(["A dog saw a cat."]))  # [1, 2] bool
    ```
    """

    preprocessor_cls = CocoLMTextClassifierPreprocessor
    saved = (
        "num_classes",
        "label_names",
        "hidden_dim",
        "dropout",
        "trim_padding",
        "multi_label",
        "thresholds",
    )

    def __init__(
        self,
        backbone: CocoLMBackbone,
        num_classes: int,
        preprocessor: CocoLMTextClassifierPreprocessor | None = None,
        label_names: Sequence[str] | None = None,
        activation: Any = None,
        hidden_dim: int | None = None,
        dropout: float | None = None,
        trim_padding: bool = True,
        multi_label: bool = False,
        thresholds: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1.")
        if label_names is not None and len(label_names) != num_classes:
            raise ValueError(f"num_classes={num_classes}, but {len(label_names)} label_names.")
        if thresholds is not None and (not multi_label or len(thresholds) != num_classes):
            raise ValueError(
                f"thresholds={thresholds} must be one for each of num_classes={num_classes}, with "
                "multi_label=True."
            )
        check_row_length(preprocessor, backbone)
        hidden_dim = hidden_dim or backbone.hidden_dim
        dropout = backbone.dropout if dropout is None else dropout

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        dtype = backbone.dtype_policy
        self.pooled_dropout = Dropout(
            dropout, backbone.seed_generator, dtype=dtype, name="pooled_dropout"
        )
        self.pooled_dense = keras.layers.Dense(
            hidden_dim,
            activation=keras.activations.gelu,
            kernel_initializer=initializer(backbone),
            dtype=dtype,
            name="pooled_dense",
        )
        self.output_dropout = Dropout(
            dropout, backbone.seed_generator, dtype=dtype, name="output_dropout"
        )
        self.output_dense = output_layer(backbone, num_classes, "logits", activation)
        # Read by `compile`, which the base's constructor calls.
        self.labels = Labels(num_classes, label_names, several=multi_label)

        # === Functional model ===
        inputs = backbone.input
        x = self.pooled_dropout(FirstState(backbone, dtype=dtype)(inputs))
        x = self.output_dropout(self.pooled_dense(x))
        super().__init__(inputs=inputs, outputs=self.output_dense(x), **kwargs)

        # === Configuration ===
        self.num_classes = num_classes
        self.label_names = None if label_names is None else list(label_names)
        self.activation = keras.activations.get(activation)
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.trim_padding = trim_padding
        self.multi_label = multi_label
        self.thresholds = None if thresholds is None else [float(one) for one in thresholds]

    @property
    def _has_logits(self) -> bool:
        return self.output_dense.activation is keras.activations.linear

    def default_losses(self) -> dict[str, Any]:
        if self.labels.is_regression:
            return {"loss": keras.losses.MeanSquaredError()}
        if self.labels.several:
            threshold = 0.0 if self._has_logits else 0.5
            return {
                "loss": keras.losses.BinaryCrossentropy(from_logits=self._has_logits),
                "metrics": [keras.metrics.BinaryAccuracy("accuracy", threshold=threshold)],
            }
        return {
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=self._has_logits),
            "metrics": [keras.metrics.SparseCategoricalAccuracy()],
        }

    def probabilities(self, outputs: Any) -> np.ndarray:
        """Converts outputs to probabilities.

        Args:
            outputs: [N, num_classes], what `predict()` returned.

        Returns:
            The probabilities of the classes, [N, num_classes] float32; they do not sum to 1 with
            `multi_label`.

        Example:
        ```python
        classifier.probabilities(classifier.predict(["Great!"]))
        ```
        """
        outputs = np.asarray(outputs, np.float32)
        if not self._has_logits:
            return outputs
        return np.array(
            tf.nn.sigmoid(outputs) if self.multi_label else tf.nn.softmax(outputs), np.float32
        )

    def assigned(self, outputs: Any) -> np.ndarray:
        """Decides which of several labels texts have, by `thresholds`.

        Args:
            outputs: [N, num_classes], what `predict()` returned.

        Returns:
            [N, num_classes] bool.

        Raises:
            ValueError: If the classifier has no `multi_label`.

        Example:
        ```python
        topics.assigned(topics.predict(["A dog saw a cat."]))
        ```
        """
        if not self.multi_label:
            raise ValueError("a text has one class: that is for multi_label=True.")
        thresholds = self.thresholds or [0.5] * self.num_classes
        return self.probabilities(outputs) >= np.float32(thresholds)

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild this model."""
        return super().get_config() | {"activation": keras.activations.serialize(self.activation)}

    @classmethod
    def _load(cls, preset: str, load_weights: bool, **kwargs: Any) -> Self:
        if "num_classes" in kwargs:
            # A new head has none of what the preset's configuration says of its classes.
            kwargs = {"label_names": None, "thresholds": None, "multi_label": False} | kwargs
            return super()._load(preset, load_weights, **kwargs)
        if head := converted_head(preset, "classifier"):
            kwargs["hidden_dim"], kwargs["num_classes"] = head["output.kernel"].shape
        classifier = super()._load(preset, load_weights, **kwargs)
        if head and load_weights:
            classifier.pooled_dense.set_weights([head["dense.kernel"], head["dense.bias"]])
            classifier.output_dense.set_weights([head["output.kernel"], head["output.bias"]])
        return classifier
