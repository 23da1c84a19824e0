"""From start and end logits to spans of the context, in the graph."""

from typing import NamedTuple

import tensorflow as tf

from cocolm_tf.finetuning.models.windows import NOWHERE


class Spans(NamedTuple):
    """The best spans of each window, best first.

    Where a window has fewer spans than were asked for, the logits of the others are -inf.

    Attributes:
        starts: `[W, K]` int32, the first character of the context.
        ends: `[W, K]` int32, the one after the last.
        start_logits: `[W, K]` float32, of the span's first token.
        end_logits: `[W, K]` float32, of its last token. The sum of both ranks the spans.
        no_answer_logits: `[W, 2]` float32, the two of `<s>`, which stands for no answer.
    """

    starts: tf.Tensor
    ends: tf.Tensor
    start_logits: tf.Tensor
    end_logits: tf.Tensor
    no_answer_logits: tf.Tensor


def best_spans(
    start_logits: tf.Tensor,
    end_logits: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
    *,
    max_answer_length: int,
    n_best: int,
) -> Spans:
    """Finds the spans of the context with the highest sums of a start and an end logit.

    All spans are looked at, not only those of the best starts and the best ends.

    Args:
        start_logits: `[W, S]`.
        end_logits: `[W, S]`.
        starts: `[W, S]` int32, from `Windows`.
        ends: `[W, S]` int32, from `Windows`.
        max_answer_length: The longest span, in tokens.
        n_best: K, how many spans of each window to find.

    Returns:
        The spans. Each covers a character at least.

    Example:
    ```python
    best_spans(logits["start"], logits["end"], windows.starts, windows.ends,
               max_answer_length=30, n_best=20)
    ```
    """
    start_logits, end_logits = (tf.cast(x, tf.float32) for x in (start_logits, end_logits))
    width = tf.shape(starts)[1]
    lengths = tf.range(max_answer_length)

    # [W, S, L]: what lies 0 to L - 1 tokens after each token.
    last = tf.minimum(tf.range(width)[:, tf.newaxis] + lengths, width - 1)
    is_inside = tf.range(width)[:, tf.newaxis] + lengths < width
    span_ends = tf.gather(ends, last, axis=1)
    is_span = (
        is_inside & (starts != NOWHERE)[..., tf.newaxis] & (span_ends > starts[..., tf.newaxis])
    )
    scores = start_logits[..., tf.newaxis] + tf.gather(end_logits, last, axis=1)
    scores = tf.reshape(tf.where(is_span, scores, -float("inf")), [-1, width * max_answer_length])

    found = tf.minimum(n_best, width * max_answer_length)
    top_scores, top = tf.math.top_k(scores, found)
    first = top // max_answer_length
    final = tf.minimum(first + top % max_answer_length, width - 1)
    is_found = top_scores > -float("inf")

    def at(values: tf.Tensor, places: tf.Tensor, otherwise: float) -> tf.Tensor:
        values = tf.where(is_found, tf.gather(values, places, batch_dims=1), otherwise)
        padding = [[0, 0], [0, n_best - found]]
        return tf.ensure_shape(tf.pad(values, padding, constant_values=otherwise), [None, n_best])

    return Spans(
        starts=at(starts, first, NOWHERE),
        ends=at(ends, final, NOWHERE),
        start_logits=at(start_logits, first, -float("inf")),
        end_logits=at(end_logits, final, -float("inf")),
        no_answer_logits=tf.stack([start_logits[:, 0], end_logits[:, 0]], axis=1),
    )
