"""A pretrained encoder that turns texts into vectors, similar ones for similar texts."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.models.pair_batches import pair_batches
from cocolm_tf.finetuning.models.raw_inputs import Columns, Labels, check_weights
from cocolm_tf.finetuning.models.raw_text import (
    PackingPreprocessor,
    check_row_length,
    raw_text_task,
)
from cocolm_tf.finetuning.models.steps import cut, part_of, sum_over_parts
from cocolm_tf.losses import cosine_regression_loss, in_batch_negatives_loss
from cocolm_tf.losses.replicas import sum_over_replicas
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

POOLING_MODES = ("cls", "mean")

PairFeatures = dict[str, dict[str, tf.Tensor]]
"""`token_ids` and `padding_mask` of `queries`, [B, S], and of `documents`, [B, 1 + K, T]."""

# The base of a polynomial hash of texts, modulo 2^64; any odd number does.
_HASH_BASE = 0x9E3779B97F4A7C15


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMTextEmbedderPreprocessor(
    PackingPreprocessor, keras_hub.models.TextEmbedderPreprocessor
):
    """Tokenizes texts and lays them out as `<s> A </s>`; what is too long is cut at its end.

    Args:
        tokenizer: Turns texts into tokens.
        sequence_length: S, the tokens of every row. `from_preset` takes as many as the model has
            positions.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        x: A text or a batch of texts, or a tuple with this alone. Strings or a string tensor.
        y: Labels, passed through.
        sample_weight: Weights of the labels, passed through.

    Returns:
        A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S] bool, [S] for a single text;
        in a tuple with `y` and `sample_weight` where these are given.

    Raises:
        ValueError: If a row has several texts.

    Example:
    ```python
    preprocessor = CocoLMTextEmbedderPreprocessor.from_preset("runs/first/preset")
    preprocessor(["The cat sat.", "It slept."])
    ```
    """

    max_columns = 1

    def __init__(
        self, tokenizer: CocoLMTokenizer, sequence_length: int = 512, **kwargs: Any
    ) -> None:
        super().__init__(tokenizer, sequence_length, **kwargs)


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMTextEmbedder(raw_text_task(keras_hub.models.TextEmbedder)):
    """Turns texts into vectors whose inner products say how similar they are.

    `fit()` fine-tunes it on raw strings. Without labels it learns from pairs of texts that belong
    together: each first text is to be nearer to its second than to the others of the batch, those
    of all replicas, and than to further columns, its hard negatives. With labels, these are the
    cosines that pairs are to have, from -1 to 1. A row of weight 0 is no negative either.

    `compile()` takes no loss and no metrics, as Keras's do not compare rows. With `micro_batches`
    a batch is encoded in parts, but compared as a whole: the memory of a small batch, the negatives
    of a large one, for one more forward pass (GradCache: Gao et al., 2021).

    Args:
        backbone: The encoder.
        preprocessor: Turns texts into the encoder's input; None where `fit()` gets tokens.
        pooling_mode: What becomes the vector: `"mean"`, the mean of all tokens' hidden states, or
            `"cls"`, the hidden state of `<s>`.
        dimensions: The numbers of leading dimensions that vectors may be cut to, each of which
            the loss includes (Matryoshka representations). Vectors have the greatest of them; None
            for all of the encoder's.
        temperature: Divides the cosines in the loss of pairs without labels.
        trim_padding: Whether `evaluate()` and `predict()` cut off the padding that all rows
            of a batch have in common, and `fit()` makes groups of like lengths.
        **kwargs: As for `keras_hub.models.TextEmbedder`.

    Call arguments:
        inputs: A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S].

    Returns:
        [B, D] float32, vectors of unit length.

    Raises:
        ValueError: If the arguments do not fit each other.

    Example:
    ```python
    embedder = CocoLMTextEmbedder.from_preset("runs/first/preset", dimensions=[256, 64])
    questions, answers = ["Who sat?", "Who flew?"], ["The cat sat.", "The bird flew."]
    embedder.fit((questions, answers), batch_size=2, epochs=3)
    embedder.fit((questions, answers, ["The dog ran.", "The cat sat."]))  # with hard negatives
    embedder.fit((questions, answers), [0.9, 0.8])  # with cosines
    embedder.similarity(embedder.encode_text("Who sat?"), embedder.encode_text(answers))
    embedder.save_to_preset("runs/embedder")
    short = CocoLMTextEmbedder.from_preset("runs/embedder", dimensions=[64])
    ```
    """

    preprocessor_cls = CocoLMTextEmbedderPreprocessor
    saved = ("pooling_mode", "dimensions", "temperature", "trim_padding")
    labels = Labels(num_classes=1, bounds=(-1, 1))
    needs_labels = False
    max_columns = sys.maxsize

    def __init__(
        self,
        backbone: CocoLMBackbone,
        preprocessor: CocoLMTextEmbedderPreprocessor | None = None,
        pooling_mode: str = "mean",
        dimensions: Sequence[int] | None = None,
        temperature: float = 0.05,
        trim_padding: bool = True,
        **kwargs: Any,
    ) -> None:
        dimensions = sorted(set(dimensions or [backbone.hidden_dim]), reverse=True)
        if pooling_mode not in POOLING_MODES:
            raise ValueError(
                f"pooling_mode={pooling_mode!r} is none of {', '.join(POOLING_MODES)}."
            )
        if dimensions[-1] < 1 or dimensions[0] > backbone.hidden_dim:
            raise ValueError(
                f"dimensions={dimensions}: hidden states have 1 to {backbone.hidden_dim} of them."
            )
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be more than 0.")
        check_row_length(preprocessor, backbone)

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor

        # === Functional model ===
        inputs = backbone.input
        states = backbone(inputs)
        pooled = states[:, 0] if pooling_mode == "cls" else _mean(states, inputs["padding_mask"])
        pooled = keras.ops.cast(pooled, "float32")[:, : dimensions[0]]
        super().__init__(inputs=inputs, outputs=keras.ops.normalize(pooled, axis=-1), **kwargs)

        # === Configuration ===
        self.pooling_mode = pooling_mode
        self.dimensions = dimensions
        self.temperature = temperature
        self.trim_padding = trim_padding

    def compile(
        self, optimizer: Any = "auto", loss: Any = "auto", *, metrics: Any = "auto", **kwargs: Any
    ) -> None:
        for name, value in (("loss", loss), ("metrics", metrics)):
            if value and value != "auto":
                raise ValueError(f"{name} is not to be given: it follows from what `fit()` gets.")
        super().compile(optimizer, **kwargs)

    def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> np.ndarray:
        """Embeds texts.

        Args:
            x: A list, array or column of strings, or a `tf.data.Dataset` of batches of these.
            batch_size: Texts of a batch; None for 32.
            **kwargs: As for `keras.Model.predict`.

        Returns:
            [N, D] float32, vectors of unit length, in the order of `x`.

        Raises:
            ValueError: Naming the first text that is wrong.
        """
        if len(self.texts_of(x) or ()) > 1:
            raise ValueError("texts are embedded one by one: give a list of texts, not pairs.")
        return super().predict(x, batch_size, **kwargs)

    def similarity(self, first: Any, second: Any) -> np.ndarray:
        """Compares vectors.

        Args:
            first: [N, D], what `encode_text` gave.
            second: [M, D].

        Returns:
            [N, M] float32, the cosines of all pairs.

        Example:
        ```python
        embedder.similarity(embedder.encode_text("A cat."), embedder.encode_text(["A cat."]))
        ```
        """
        return np.asarray(first) @ np.asarray(second).T

    def checked_labels(self, texts: Columns, y: Any, weights: Any) -> tuple[Any, Any]:
        if len(texts) < 2:
            raise ValueError("texts alone teach nothing: give pairs, (first, second).")
        if y is None:
            check_weights(weights, len(texts[0]))
            return None, weights
        return super().checked_labels(texts, y, weights)

    def text_batches(
        self, texts: Columns, labels: Any, weights: Any, batch_size: int, seed: int | None
    ) -> tuple[tf.data.Dataset, int]:
        tokens = [self.tokens_of((column,)) for column in texts]
        if seed is None:
            batch_size = min(batch_size, len(tokens[0]))
        return pair_batches(tokens, labels, batch_size, seed, self._buckets, weights)

    def preprocess_samples(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Tokenizes a batch of texts, or of pairs and hard negatives."""
        if self.preprocessor is None or not isinstance(x, tuple):
            return super().preprocess_samples(x, y, sample_weight)
        first, *others = map(as_string_tensor, x)
        queries = super().preprocess_samples(first)
        documents = super().preprocess_samples(tf.concat(others, axis=0))
        documents = {
            name: tf.stack(tf.split(feature, len(others)), axis=1)
            for name, feature in documents.items()
        }
        x = {"queries": queries, "documents": documents}
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # The model is built. Keras would call it with pairs to make sure.
        pass

    # How a step works.

    def _train(self, batch: Any, replica: tf.Tensor | int) -> None:
        x, y, weights = _unpacked(batch)

        def encode(part: PairFeatures, number: tf.Tensor | int) -> list[tf.Tensor]:
            with self._seeded(replica, number):
                return self._vectors(part, training=True)

        def objective(vectors: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            loss, share = self._pair_loss(vectors, x, y, weights)
            return self.optimizer.scale_loss(loss * share), loss

        loss, gradients = cached_gradients(
            encode,
            objective,
            x,
            self._signature(x),
            [variable.value for variable in self.trainable_variables],
            self._micro_batches,
        )
        self._loss_tracker.update_state(loss, tf.reduce_sum(weights))
        self._update(sum_over_replicas(gradients))

    def _test(self, batch: Any, replica: tf.Tensor | int) -> None:
        x, y, weights = _unpacked(batch)
        loss, _ = self._pair_loss(self._vectors(x, training=False), x, y, weights)
        self._loss_tracker.update_state(loss, tf.reduce_sum(weights))

    def _vectors(self, x: PairFeatures, training: bool) -> list[tf.Tensor]:
        """The vectors [B, H] of queries and [B, 1 + K, H] of documents, not normalized."""
        documents, width = x["documents"], self.backbone.hidden_dim
        per_row = documents["token_ids"].shape[1]
        flat = {
            name: tf.reshape(feature, [-1, feature.shape[2] or tf.shape(feature)[2]])
            for name, feature in documents.items()
        }
        found = self._pooled(flat, training)
        return [self._pooled(x["queries"], training), tf.reshape(found, [-1, per_row, width])]

    def _signature(self, x: PairFeatures) -> list[tf.TensorSpec]:
        """The shapes of what `_vectors` returns for a micro-batch."""
        rows, per_row, _ = x["documents"]["token_ids"].shape
        rows, width = rows and rows // self._micro_batches, self.backbone.hidden_dim
        return [tf.TensorSpec([rows, width]), tf.TensorSpec([rows, per_row, width])]

    def _pooled(self, features: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        if self.pooling_mode == "cls":
            token_ids = features["token_ids"]
            first = tf.zeros([token_ids.shape[0] or tf.shape(token_ids)[0], 1], tf.int32)
            # The last layer is computed for the first positions alone.
            pooled = self.backbone.states_at(features, first, training=training)[:, 0]
        else:
            pooled = _mean(self.backbone(features, training=training), features["padding_mask"])
        return tf.cast(pooled, tf.float32)

    def _pair_loss(
        self,
        vectors: list[tf.Tensor],
        x: PairFeatures,
        y: tf.Tensor | None,
        weights: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss, and the factor that makes it this replica's share of the whole batch's loss."""
        queries, documents = vectors
        if y is None:
            loss = in_batch_negatives_loss(
                queries,
                documents,
                self.temperature,
                weights,
                _keys(**x["documents"]),
                _keys(**x["queries"]),
                self.dimensions,
            )
            return loss, tf.constant(1 / self.distribute_strategy.num_replicas_in_sync)
        loss = cosine_regression_loss(queries, documents[:, 0], y, weights, self.dimensions)
        weight = tf.reduce_sum(weights)
        return loss, tf.math.divide_no_nan(weight, sum_over_replicas(weight))


def cached_gradients(
    encode: Callable[[Any, tf.Tensor | int], list[tf.Tensor]],
    objective: Callable[[list[tf.Tensor]], tuple[tf.Tensor, tf.Tensor]],
    batch: Any,
    signature: list[tf.TensorSpec],
    variables: list[tf.Variable],
    micro_batches: int,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The objective's second value, and gradients, in the memory of one part of the batch."""
    # GradCache (Gao et al., 2021): all vectors are computed first, then the gradients of the loss
    # by the vectors, then each part's vectors again, whose backward pass begins with those.
    # `encode` returns the vectors, each [rows, ...], of a part and its number, and must return the
    # same ones when it is called again. `objective` returns the value to differentiate, of all
    # vectors, and another to return. `signature` is that of a part's vectors. With one micro-batch
    # nothing is computed twice.
    zero = tf.UnconnectedGradients.ZERO
    if micro_batches == 1:
        with tf.GradientTape() as tape:
            value, wanted = objective(encode(batch, 0))
        gradients = tape.gradient(value, variables, unconnected_gradients=zero)
        return wanted, [tf.convert_to_tensor(gradient) for gradient in gradients]
    parts = cut(batch, micro_batches)

    def vectors_of(number: tf.Tensor) -> list[tf.Tensor]:
        return encode(part_of(parts, number), number)

    vectors = tf.map_fn(
        vectors_of,
        tf.range(micro_batches),
        parallel_iterations=1,
        fn_output_signature=signature,
    )
    rows = [tf.reshape(x, [-1, *x.shape[2:]]) for x in vectors]
    with tf.GradientTape() as tape:
        tape.watch(rows)
        value, wanted = objective(rows)
    slopes = tape.gradient(value, rows, unconnected_gradients=zero)
    slopes = [tf.reshape(slope, tf.shape(x)) for slope, x in zip(slopes, vectors, strict=True)]

    def gradients_of(number: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            found = vectors_of(number)
        return tape.gradient(
            found,
            variables,
            output_gradients=[slope[number] for slope in slopes],
            unconnected_gradients=zero,
        )

    return wanted, sum_over_parts(gradients_of, micro_batches, variables)


def _mean(states: Any, padding_mask: Any) -> Any:
    """The mean [B, H] float32 of the hidden states of real tokens."""
    mask = keras.ops.expand_dims(keras.ops.cast(padding_mask, "float32"), -1)
    total = keras.ops.sum(keras.ops.cast(states, "float32") * mask, axis=1)
    return total / keras.ops.maximum(keras.ops.sum(mask, axis=1), 1.0)


def _keys(token_ids: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
    """A hash of each text's tokens, the same whatever the padding is."""
    token_ids = tf.cast(token_ids + 1, tf.int64)
    real = tf.cast(padding_mask, tf.int64)
    base = tf.constant(_HASH_BASE - 2**64, tf.int64)
    powers = tf.math.cumprod(tf.fill([tf.shape(token_ids)[-1]], base))
    return tf.reduce_sum(token_ids * real * powers, axis=-1)


def _unpacked(data: Any) -> tuple[Any, tf.Tensor | None, tf.Tensor]:
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is None:
        weights = tf.ones(tf.shape(x["queries"]["token_ids"])[:1])
    return x, y, tf.cast(weights, tf.float32)
