import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data.examples import Examples
from cocolm_tf.finetuning.batches import (
    Column,
    Tokens,
    batch_widths,
    describe_lengths,
    prediction_batches,
    tokenized,
    training_batches,
    trimmed,
)

LIMIT = 61


def random_tokens(rows: int, seed: int = 0) -> Tokens:
    """Rows that hold their own number over and over."""
    lengths = np.random.default_rng(seed).integers(3, LIMIT + 1, rows)
    return Tokens(np.repeat(np.arange(rows) + 10, lengths), lengths, LIMIT, 0)


def rows_of(x: dict) -> list[tuple[int, int]]:
    """The number and the length of each row of a batch, which is checked."""
    token_ids, mask = x["token_ids"].numpy(), x["padding_mask"].numpy()
    np.testing.assert_array_equal(mask, token_ids != 1)
    rows = []
    for ids, real in zip(token_ids, mask, strict=True):
        assert real[: real.sum()].all() and len(set(ids[real])) == 1
        rows.append((ids[0] - 10, real.sum()))
    return rows


@pytest.mark.parametrize("buckets", [0, 1, 4])
def test_an_epoch_has_every_row_once(buckets):
    tokens, labels = random_tokens(300), np.arange(300, dtype=np.int32)
    batches, steps = training_batches(tokens, labels, batch_size=8, seed=0, buckets=buckets)
    assert steps == 38
    epochs = [[], []]
    for number, (x, y, weights) in enumerate(batches.take(2 * steps)):
        rows = rows_of(x)
        assert len(rows) == len(y) == 8 and set(weights.numpy()) <= {0.0, 1.0}
        np.testing.assert_array_equal(y, [row for row, _ in rows])
        epochs[number // steps] += [row for row, w in zip(rows, weights, strict=True) if w]
    expected = sorted(zip(range(300), tokens.lengths, strict=True))
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_batches_have_few_shapes_which_save_padding():
    tokens, labels = random_tokens(1600), np.zeros(1600, np.int32)

    def cells(buckets: int) -> int:
        batches, steps = training_batches(tokens, labels, 8, seed=0, buckets=buckets)
        shapes = [x["token_ids"].shape for x, *_ in batches.take(steps)]
        widths = set(batch_widths(tokens.lengths, LIMIT, 8, buckets))
        assert {shape[1] for shape in shapes} == widths and len(widths) <= max(1, buckets)
        assert len(set(shapes)) == len(widths)
        return sum(np.prod(shape) for shape in shapes)

    whole, few, many = (cells(buckets) for buckets in (1, 2, 6))
    assert whole == 1600 * LIMIT > few > many >= tokens.lengths.sum()


def test_one_width_is_a_static_shape():
    batches, _ = training_batches(random_tokens(40), np.zeros(40, np.int32), 8, seed=0, buckets=0)
    assert all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(batches.element_spec))
    assert batches.element_spec[0]["token_ids"].shape == (8, LIMIT)


def test_several_widths_are_of_static_rows():
    batches, _ = training_batches(random_tokens(400), np.zeros(400, np.int32), 2, seed=0)
    assert {spec.shape[0] for spec in tf.nest.flatten(batches.element_spec)} == {2}


def test_labels_may_be_vectors_or_one_a_token():
    tokens = random_tokens(30)
    numbers = np.arange(30)
    vectors = np.stack([numbers, numbers % 2], axis=1).astype(np.float32)
    for x, y, weights in training_batches(tokens, vectors, 8, seed=0)[0].take(4):
        rows = np.array([row for row, _ in rows_of(x)])
        np.testing.assert_array_equal(y, vectors[rows])
        assert weights.shape == (8,)
    flat = np.arange(len(tokens.token_ids), dtype=np.int32)
    chosen = (flat % 3 > 0).astype(np.float32)
    starts = np.cumsum(tokens.lengths) - tokens.lengths
    total = 0
    for x, y, weights in training_batches(tokens, flat, 8, seed=0, weights=chosen)[0].take(4):
        assert y.shape == weights.shape == x["token_ids"].shape
        total += float(tf.reduce_sum(weights))
        for (row, length), labels, own in zip(rows_of(x), y.numpy(), weights.numpy(), strict=True):
            np.testing.assert_array_equal(labels[:length], starts[row] + np.arange(length))
            assert not labels[length:].any() and not own[length:].any()
            if own.any():  # else it fills the batch
                np.testing.assert_array_equal(own[:length], labels[:length] % 3 > 0)
    assert total == chosen.sum()
    with pytest.raises(ValueError, match="31 labels, where there are 30 rows"):
        training_batches(tokens, np.zeros(31), 8, seed=0)
    with pytest.raises(ValueError, match="30 labels, but 29 weights"):
        training_batches(tokens, np.zeros(30), 8, seed=0, weights=np.ones(29))


def test_the_order_is_the_seeds():
    def order(seed):
        batches, steps = training_batches(random_tokens(60), np.float32(range(60)), 8, seed)
        return np.concatenate([y for _, y, _ in batches.take(steps)])

    np.testing.assert_array_equal(order(0), order(0))
    assert not np.array_equal(order(0), order(1))


@settings(max_examples=40)
@given(
    st.lists(st.integers(2, LIMIT), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 5)
)
def test_no_widths_cost_less(lengths, batch_size, buckets):
    lengths = np.array(lengths)
    candidates = np.unique(np.minimum(-(-lengths // 8) * 8, LIMIT))

    def cost(widths) -> float:
        """The tokens of an epoch, and eight batches for each further width."""
        padded = np.array(widths)[np.searchsorted(widths, lengths)].sum()
        return padded + 8 * batch_size * lengths.mean() * (len(widths) - 1)

    found = batch_widths(lengths, LIMIT, batch_size, buckets)
    assert len(found) <= buckets and found[-1] == candidates[-1] and (np.diff(found) > 0).all()
    possible = (
        (*some, candidates[-1])
        for count in range(buckets)
        for some in itertools.combinations(candidates[:-1], count)
    )
    assert cost(found) == pytest.approx(min(map(cost, possible)))


def test_widths_of_like_lengths():
    assert batch_widths(np.arange(1, 1001), 1000, 16, 1).tolist() == [1000]
    assert batch_widths(np.full(1000, 7), LIMIT, 16, 4).tolist() == [8]
    assert batch_widths(np.full(1000, 7), LIMIT, 16, 0).tolist() == [LIMIT]
    assert batch_widths(np.repeat([8, LIMIT], 500), LIMIT, 4, 8).tolist() == [8, LIMIT]


def test_prediction_batches_are_sorted_and_can_be_put_back():
    tokens = random_tokens(50)
    batches, order = prediction_batches(tokens, 16, columns={"row": Column(np.arange(50))})
    rows, real = [], []
    for x, found in batches:
        rows += rows_of(x)
        real += [*found["real"].numpy()]
        np.testing.assert_array_equal(found["row"], [row for row, _ in rows[-16:]])
    assert len(rows) == 64 and real == [1.0] * 50 + [0.0] * 14
    assert rows[50:] == [rows[49]] * 14
    np.testing.assert_array_equal(order, [row for row, _ in rows[:50]])
    assert sorted(order) == list(range(50))
    assert [length for _, length in rows[:50]] == sorted(tokens.lengths)


@pytest.mark.parametrize(
    ("longest", "limit", "rows", "width"),
    [(1, 64, None, 8), (9, 64, None, 16), (60, 61, None, 61), (5, 512, None, 8), (5, 512, 2, 64)],
)
def test_trimmed_keeps_every_token(longest, limit, rows, width):
    token_ids = np.ones([2, limit], np.int32)
    token_ids[0, :longest] = 5
    token_ids[1, 0] = 6
    signature = tf.TensorSpec([rows, limit], tf.int32)

    @tf.function(input_signature=[{"token_ids": signature, "padding_mask": signature}])
    def cut(features):
        return trimmed(features)

    features = {"token_ids": token_ids, "padding_mask": np.int32(token_ids != 1)}
    for name, feature in cut(features).items():
        np.testing.assert_array_equal(feature, features[name][:, :width])


def test_tokenized_is_what_the_preprocessor_gives_without_padding(preprocessor):
    first = [
        "a cat",
        "",
        "the red house on its hill and then some bird sang to a dog of rain",
    ] * 400
    second = ["a dog", "bird", "some bird sang"] * 400
    for examples in (Examples(first), Examples(first, second)):
        tokens = tokenized(preprocessor, examples)
        texts = first[:3] if examples.second is None else (first[:3], second[:3])
        expected = preprocessor(x=texts)
        mask = np.array(expected["padding_mask"])
        np.testing.assert_array_equal(tokens.lengths, np.tile(mask.sum(1), 400))
        ends = np.cumsum(tokens.lengths)
        for row in (0, 1, 2, 1197, 1198, 1199):
            np.testing.assert_array_equal(
                tokens.token_ids[ends[row] - tokens.lengths[row] : ends[row]],
                np.array(expected["token_ids"])[row % 3][mask[row % 3]],
            )
        assert tokens.limit == preprocessor.sequence_length


def test_truncated_rows_are_counted(preprocessor):
    preprocessor = type(preprocessor)(preprocessor.tokenizer)
    tokenizer = preprocessor.tokenizer
    texts = ["a cat saw", "a cat saw the red house"]
    longest = max(len(tokenizer(text)) for text in texts)
    for limit, truncated in ((longest + 2, 0), (longest + 1, 1), (4, 2)):
        preprocessor.sequence_length = limit
        tokens = tokenized(preprocessor, Examples(texts))
        assert tokens.truncated == truncated and tokens.lengths.max() <= limit
    preprocessor.sequence_length = 2 * longest + 4
    assert tokenized(preprocessor, Examples(texts, texts)).truncated == 0
    preprocessor.sequence_length -= 1
    assert tokenized(preprocessor, Examples(texts, texts)).truncated == 1


def test_describe_lengths():
    tokens = Tokens(np.zeros(0), np.array([4] * 18 + [10, 30]), 64, 3)
    assert describe_lengths(tokens) == {
        "median": 4,
        "percentile_95": 11,
        "longest": 30,
        "truncated": 3,
    }
