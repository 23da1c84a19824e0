"""Questions and their contexts to rows of a fixed length, in the graph.

A context that is too long for one row is cut into overlapping windows, each beside the whole
question, as BERT does it for SQuAD.
"""

from typing import NamedTuple

import tensorflow as tf

from cocolm_tf.tokenization.dictionary import END_TOKEN_ID, PAD_TOKEN_ID, START_TOKEN_ID
from cocolm_tf.tokenization.graph import TokenizerGraph
from cocolm_tf.tokenization.offsets import TokenOffsets

# `<s> question </s> </s> context </s>`
NUM_SPECIAL_TOKENS = 4
# The place of a token that is not the context's.
NOWHERE = -1


class Windows(NamedTuple):
    """Rows for a model, and where their tokens come from."""

    token_ids: tf.Tensor  # [W, S] int32
    padding_mask: tf.Tensor  # [W, S] bool, true at real tokens
    rows: tf.Tensor  # [W] int32, the question that each window belongs to
    # [W, S] int32, the character of the context that a token begins at; -1 at other tokens
    starts: tf.Tensor
    ends: tf.Tensor  # [W, S] int32, the character after its last; -1 at other tokens
    # [W] int32, the token that the answer begins with; 0, `<s>`, where the window does not have the
    # whole answer
    start_positions: tf.Tensor
    end_positions: tf.Tensor  # [W] int32, the token that it ends with, likewise


def make_windows(
    tokenizer: TokenizerGraph,
    questions: tf.Tensor,
    contexts: tf.Tensor,
    answers: tf.Tensor,
    *,
    sequence_length: int,
    stride: int,
    max_question_length: int,
) -> Windows:
    """Lays out questions and windows of contexts as `<s> question </s> </s> context </s>`."""
    # Windows are in the order of the questions, each of which has one at least. Windows of a
    # context begin `stride` tokens after each other, and the last one ends where the context does:
    # `check_window_sizes` says which answers are whole in one of them. `answers` are [B, 2], the
    # characters [start, end) of the context; an empty range where there is no answer, or it is not
    # known.
    return lay_out_windows(
        tokenizer.tokenize(questions),
        tokenizer.tokenize_with_offsets(contexts),
        answers,
        sequence_length=sequence_length,
        stride=stride,
        max_question_length=max_question_length,
    )


def lay_out_windows(
    questions: tf.RaggedTensor,
    context: TokenOffsets,
    answers: tf.Tensor,
    *,
    sequence_length: int,
    stride: int,
    max_question_length: int,
) -> Windows:
    """`make_windows` for the tokens of questions, [B, (N)], and of contexts."""
    questions = questions[:, :max_question_length]
    before = questions.row_lengths() + NUM_SPECIAL_TOKENS - 1
    room = sequence_length - before - 1
    lengths = context.ids.row_lengths()

    # Which windows there are: their question, and the context's tokens [first, last).
    counts = 1 + tf.maximum(-(-(lengths - room) // stride), 0)
    rows = tf.repeat(tf.range(tf.size(counts)), counts)
    first = tf.ragged.range(counts).flat_values * stride
    last = tf.minimum(first + tf.gather(room, rows), tf.gather(lengths, rows))
    offset = tf.gather(context.ids.row_starts(), rows)
    taken = tf.ragged.range(offset + first, offset + last)

    start, end = (tf.fill([tf.size(rows), 1], id) for id in (START_TOKEN_ID, END_TOKEN_ID))
    questions = tf.gather(questions, rows)
    ids = tf.ragged.map_flat_values(tf.gather, context.ids.flat_values, taken)
    token_ids = tf.concat([start, questions, end, end, ids, end], axis=1)
    before = tf.gather(before, rows)

    def places(of_context: tf.RaggedTensor) -> tf.Tensor:
        places = tf.ragged.map_flat_values(tf.gather, of_context.flat_values, taken)
        empty = tf.RaggedTensor.from_row_lengths(tf.fill([tf.reduce_sum(before)], NOWHERE), before)
        return tf.concat([empty, places], axis=1).to_tensor(NOWHERE, shape=[None, sequence_length])

    first_token, last_token = (tf.gather(x, rows) for x in _answer_tokens(context, answers))
    is_whole = (first <= first_token) & (first_token <= last_token) & (last_token < last)
    shift = before - first
    return Windows(
        token_ids=token_ids.to_tensor(PAD_TOKEN_ID, shape=[None, sequence_length]),
        padding_mask=tf.sequence_mask(token_ids.row_lengths(), sequence_length),
        rows=rows,
        starts=places(context.starts),
        ends=places(context.ends),
        start_positions=tf.cast(tf.where(is_whole, first_token + shift, 0), tf.int32),
        end_positions=tf.cast(tf.where(is_whole, last_token + shift, 0), tf.int32),
    )


def check_window_sizes(
    sequence_length: int, stride: int, max_question_length: int, max_answer_length: int
) -> None:
    """Raises `ValueError` unless a window holds every answer of up to `max_answer_length` whole."""
    for name, value in (
        ("stride", stride),
        ("max_question_length", max_question_length),
        ("max_answer_length", max_answer_length),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    room = sequence_length - max_question_length - NUM_SPECIAL_TOKENS
    needed = stride + max_answer_length - 1
    if needed > room:
        raise ValueError(
            f"sequence_length={sequence_length} leaves {room} tokens for the context beside "
            f"max_question_length={max_question_length} and {NUM_SPECIAL_TOKENS} special tokens, "
            f"but stride={stride} and max_answer_length={max_answer_length} need {needed}."
        )


def _answer_tokens(context: TokenOffsets, answers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The first and the last token, [B] int64, with a part of the answer; last < first if none."""
    starts, ends = context.starts.flat_values, context.ends.flat_values
    rows = context.starts.value_rowids()
    answers = tf.gather(tf.cast(answers, tf.int32), rows)
    # A lone "▁" has no characters, and is not part of an answer.
    is_part = tf.maximum(starts, answers[:, 0]) < tf.minimum(ends, answers[:, 1])
    positions = tf.ragged.range(context.starts.row_lengths()).flat_values
    first = tf.math.unsorted_segment_min(
        tf.where(is_part, positions, positions.dtype.max), rows, context.starts.nrows()
    )
    last = tf.math.unsorted_segment_max(
        tf.where(is_part, positions, -1), rows, context.starts.nrows()
    )
    return first, last
