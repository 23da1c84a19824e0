import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data.examples import Examples
from cocolm_tf.finetuning.batches import (
    Tokens,
    bucket_boundaries,
    describe_lengths,
    prediction_batches,
    tokenized,
    training_batches,
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


@pytest.mark.parametrize("buckets", [1, 4])
def test_an_epoch_has_every_row_once(buckets):
    tokens, labels = random_tokens(300), np.arange(300, dtype=np.int32)
    batches, steps = training_batches(tokens, labels, batch_size=8, seed=0, buckets=buckets)
    epochs = [[], []]
    for number, (x, y) in enumerate(batches.take(2 * steps)):
        rows = rows_of(x)
        np.testing.assert_array_equal(y, [row for row, _ in rows])
        epochs[number // steps] += rows
    expected = sorted(zip(range(300), tokens.lengths, strict=True))
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_buckets_save_padding():
    tokens, labels = random_tokens(400), np.zeros(400, np.int32)

    def cells(**arguments) -> int:
        batches, steps = training_batches(tokens, labels, batch_size=8, seed=0, **arguments)
        shapes = [x["token_ids"].shape for x, _ in batches.take(steps)]
        assert all(shape[0] <= 8 and shape[1] <= LIMIT for shape in shapes)
        return sum(np.prod(shape) for shape in shapes)

    whole = cells(buckets=0)
    plain, few, many = (cells(buckets=buckets) for buckets in (1, 2, 6))
    assert whole == 400 * LIMIT > plain > few > many >= tokens.lengths.sum()


def test_equal_shapes_are_static():
    labels = np.zeros(40, np.int32)
    batches, _ = training_batches(random_tokens(40), labels, 8, seed=0, buckets=0)
    assert batches.element_spec[0]["token_ids"].shape.as_list() == [None, LIMIT]


def test_the_order_is_the_seeds():
    def order(seed):
        batches, steps = training_batches(random_tokens(60), np.float32(range(60)), 8, seed)
        return np.concatenate([y for _, y in batches.take(steps)])

    np.testing.assert_array_equal(order(0), order(0))
    assert not np.array_equal(order(0), order(1))


@settings(max_examples=100)
@given(
    st.lists(st.integers(2, 128), min_size=1, max_size=300), st.integers(1, 8), st.integers(1, 10)
)
def test_no_bucket_is_empty(lengths, batch_size, buckets):
    lengths = np.array(lengths)
    boundaries = bucket_boundaries(lengths, batch_size, buckets)
    assert len(boundaries) < buckets and boundaries == sorted(set(boundaries))
    sizes = np.bincount(
        np.searchsorted(boundaries, lengths, "right"), minlength=len(boundaries) + 1
    )
    assert (sizes > 0).all()
    assert len(boundaries) + 1 <= max(1, len(lengths) // (8 * batch_size))


def test_boundaries_cut_into_like_parts():
    assert bucket_boundaries(np.arange(1, 1001), batch_size=16, buckets=4) == [257, 505, 753]
    assert bucket_boundaries(np.arange(1, 1001), batch_size=16, buckets=1) == []
    assert bucket_boundaries(np.full(1000, 7), batch_size=16, buckets=4) == []


def test_prediction_batches_are_sorted_and_can_be_put_back():
    tokens = random_tokens(50)
    batches, order = prediction_batches(tokens, 16)
    rows = [row for x in batches for row in rows_of(x)]
    np.testing.assert_array_equal(order, [row for row, _ in rows])
    assert sorted(order) == list(range(50))
    assert [length for _, length in rows] == sorted(tokens.lengths)


def test_tokenized_is_what_the_preprocessor_gives_without_padding(preprocessor):
    first = [
        "a cat",
        "",
        "the red house on its hill and then some bird sang to a dog of rain",
    ] * 500
    second = ["a dog", "bird", "some bird sang"] * 500
    for examples in (Examples(first), Examples(first, second)):
        tokens = tokenized(preprocessor, examples)
        texts = first[:3] if examples.second is None else (first[:3], second[:3])
        expected = preprocessor(x=texts)
        mask = np.array(expected["padding_mask"])
        np.testing.assert_array_equal(tokens.lengths, np.tile(mask.sum(1), 500))
        ends = np.cumsum(tokens.lengths)
        for row in (0, 1, 2, 1497, 1498, 1499):
            np.testing.assert_array_equal(
                tokens.token_ids[ends[row] - tokens.lengths[row] : ends[row]],
                np.array(expected["token_ids"])[row % 3][mask[row % 3]],
            )
        assert tokens.limit == preprocessor.sequence_length


def test_truncated_rows_are_counted(preprocessor):
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
