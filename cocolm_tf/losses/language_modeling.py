"""The token-level losses: masked language modeling, copy loss, corrective language modeling."""

import tensorflow as tf

from cocolm_tf.ops.fusion import Gradient, fused, row_max, row_sum


def weighted_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Averages `values` with `weights`; no weight at all gives 0 with zero gradients.

    Args:
        values: float tensor of any shape.
        weights: float, integer or bool tensor of the same shape, not negative.

    Returns:
        float32 scalar, `sum(values * weights) / sum(weights)`.

    Raises:
        ValueError: If the two shapes differ, which broadcasting would otherwise hide.

    Example:
    ```python
    weighted_mean(tf.constant([2.0, 4.0, 9.0]), tf.constant([True, True, False]))  # 3.0
    ```
    """
    values = tf.cast(values, tf.float32)
    weights = tf.cast(weights, tf.float32)
    values.shape.assert_is_compatible_with(weights.shape)
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights), tf.reduce_sum(weights))


def masked_lm_loss(logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Cross entropy of the vocabulary softmax at the masked positions (paper, section 3.1).

    The pretrainers average its terms, `label_cross_entropy`, computed a chunk of rows at a time.

    Args:
        logits: `[N, V]` float16, bfloat16 or float32, one row per masked position.
        labels: `[N]` int32, the original tokens.
        weights: `[N]` float or bool, 0 for the rows that pad the batch to N.

    Returns:
        float32 scalar, the weighted mean in nats.

    Raises:
        ValueError: If the shapes do not match.

    Example:
    ```python
    masked_lm_loss(tf.zeros([2, 8]), tf.constant([3, 5]), tf.constant([1.0, 0.0]))  # log(8)
    ```
    """
    return weighted_mean(label_cross_entropy(logits, labels, weights), weights)


def copy_loss(copy_logits: tf.Tensor, is_original: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Binary cross entropy of "this token is the original one" (paper, equation 2).

    Args:
        copy_logits: `[B, S]` float16, bfloat16 or float32; a positive one says "original".
        is_original: `[B, S]` bool or 0/1 numbers, true where the corrupted sequence has the
            original token, also where that token was sampled.
        mask: `[B, S]` float or bool, true at the real tokens, false at the padding.

    Returns:
        float32 scalar, the mean over the real tokens in nats.

    Raises:
        ValueError: If the shapes do not match.

    Example:
    ```python
    copy_loss(tf.zeros([1, 2]), tf.constant([[True, False]]), tf.ones([1, 2]))  # log(2)
    ```
    """
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.cast(is_original, tf.float32), logits=tf.cast(copy_logits, tf.float32)
    )
    return weighted_mean(losses, mask)


def corrective_lm_loss(
    lm_logits: tf.Tensor,
    copy_logits: tf.Tensor,
    input_ids: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor,
    use_copy: bool = True,
    stop_gradient: bool = True,
) -> tf.Tensor:
    """Negative log likelihood of the original token under copy mechanism and LM head together.

    The model either copies its input, with probability p_copy, or draws from the vocabulary
    softmax, so the original token has the likelihood
    `(input == label) * p_copy + (1 - p_copy) * softmax(lm_logits)[label]`
    (paper, section 3.3, the LM loss below equation 2).

    The pretrainers average its terms, `copy_or_label_cross_entropy`, a chunk of rows at a time.

    Args:
        lm_logits: `[N, V]` float16, bfloat16 or float32, one row per position to predict.
        copy_logits: `[N]` float, the copy head's logits at these positions.
        input_ids: `[N]` int32, the tokens that the main model read, sampled ones included.
        labels: `[N]` int32, the original tokens.
        weights: `[N]` float or bool, 0 for the rows that pad the batch to N.
        use_copy: False leaves the copy mechanism out: cross entropy of the softmax alone.
        stop_gradient: True keeps this loss from training the copy head, which then learns from
            `copy_loss` alone.

    Returns:
        float32 scalar, the weighted mean in nats.

    Raises:
        ValueError: If the shapes do not match.

    Example:
    ```python
    corrective_lm_loss(
        lm_logits=tf.zeros([2, 8]),
        copy_logits=tf.constant([4.0, -4.0]),
        input_ids=tf.constant([3, 7]),
        labels=tf.constant([3, 5]),
        weights=tf.constant([1.0, 1.0]),
    )
    ```
    """
    if not use_copy:
        return weighted_mean(label_cross_entropy(lm_logits, labels, weights), weights)
    losses = copy_or_label_cross_entropy(
        lm_logits, copy_logits, input_ids, labels, weights, stop_gradient
    )
    return weighted_mean(losses, weights)


def copy_or_label_cross_entropy(
    lm_logits: tf.Tensor,
    copy_logits: tf.Tensor,
    input_ids: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor,
    stop_gradient: bool = True,
) -> tf.Tensor:
    """Each row's term of `corrective_lm_loss` with the copy mechanism: [N] float32."""
    log_p_lm = -label_cross_entropy(lm_logits, labels, weights)
    copy_logits = tf.cast(copy_logits, tf.float32)
    copy_logits.shape.assert_is_compatible_with(log_p_lm.shape)
    if stop_gradient:
        copy_logits = tf.stop_gradient(copy_logits)
    log_p_copied = tf.math.log_sigmoid(copy_logits)
    log_p_generated = tf.math.log_sigmoid(-copy_logits) + log_p_lm
    log_p_either = tf.reduce_logsumexp(tf.stack([log_p_copied, log_p_generated]), axis=0)
    # Selecting between two finite branches, instead of adding log(0) for a replaced token, keeps
    # infinities and so NaN out of the gradients.
    is_original = tf.equal(tf.cast(input_ids, tf.int32), tf.cast(labels, tf.int32))
    return -tf.where(is_original, log_p_either, log_p_generated)


def label_cross_entropy(logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """`-log softmax(logits)[label]` of each row: [N] float32."""
    logits, labels = tf.convert_to_tensor(logits), tf.cast(labels, tf.int32)
    labels.shape.assert_is_compatible_with(logits.shape[:1])
    # Looking up a label outside the vocabulary fails (CPU) or gives 0 (GPU).
    labels = tf.where(tf.cast(weights, tf.bool), labels, 0)

    @tf.custom_gradient
    def compute(logits: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        normalizers = log_normalizers(logits)
        chosen = tf.cast(tf.gather(logits, labels, batch_dims=1), tf.float32)
        # From the logits again: nothing of their size is kept for the backward pass.
        return normalizers - chosen, lambda upstream: _cross_entropy_gradient(
            logits, normalizers, labels, upstream
        )

    return compute(logits)


@fused
def log_normalizers(logits: tf.Tensor) -> tf.Tensor:
    """The logarithm of each row's sum of exponentials, which `log softmax` subtracts."""
    logits = tf.cast(logits, tf.float32)
    largest = row_max(logits)
    return tf.squeeze(largest + tf.math.log(row_sum(tf.exp(logits - largest))), -1)


@fused
def _cross_entropy_gradient(
    logits: tf.Tensor, normalizers: tf.Tensor, labels: tf.Tensor, upstream: tf.Tensor
) -> tf.Tensor:
    probabilities = tf.exp(tf.cast(logits, tf.float32) - normalizers[:, tf.newaxis])
    is_label = tf.equal(tf.range(tf.shape(logits)[1]), labels[:, tf.newaxis])
    slope = probabilities - tf.cast(is_label, tf.float32)
    return tf.cast(slope * upstream[:, tf.newaxis], logits.dtype)
