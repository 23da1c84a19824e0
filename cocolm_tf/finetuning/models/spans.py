"""From start and end logits to spans of the context, in the graph."""

from typing import NamedTuple

import tensorflow as tf

from cocolm_tf.finetuning.models.windows import NOWHERE


class Spans(NamedTuple):
    """The best spans of each window, best first."""

    # Where a window has fewer spans than were asked for, the logits of the others are -inf.

    starts: tf.Tensor  # [W, K] int32, the first character of the context
    ends: tf.Tensor  # [W, K] int32, the character after the last
    start_logits: tf.Tensor  # [W, K] float32, of the span's first token
    # [W, K] float32, of its last token. The sum of both ranks the spans.
    end_logits: tf.Tensor
    no_answer_logits: tf.Tensor  # [W, 2] float32, those of `<s>`, which stands for no answer


def best_spans(
    start_logits: tf.Tensor,
    end_logits: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
    *,
    max_answer_length: int,
    n_best: int,
) -> Spans:
    """The `n_best` spans of each context with the highest sums of start and end logits, [W, S]."""
    # All spans of up to `max_answer_length` tokens compete, not only those of the best starts and
    # the best ends. Each has a character at least.
    start_logits, end_logits = (tf.cast(x, tf.float32) for x in (start_logits, end_logits))
    width = tf.shape(starts)[1]
    lengths = tf.range(max_answer_length)

    # [W, S, L]: the tokens that are 0 to L - 1 tokens after each token.
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
