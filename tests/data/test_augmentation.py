import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data.augmentation import (
    Augmentation,
    SpecialTokens,
    crop_sequences,
    mask_positions,
    shorten,
    word_starts,
)

MASK = 99
SPECIAL = SpecialTokens(mask=MASK)
SEED = tf.constant([3, 5])


def sequence(real: int, length: int) -> list[int]:
    """<s>, different ordinary tokens, </s>, padding; `real` counts the first three."""
    tokens = [0, *range(3, real + 1), 2][:real]
    return tokens + [1] * (length - real)


@st.composite
def batches(draw) -> np.ndarray:
    length = draw(st.integers(1, 24))
    reals = draw(st.lists(st.integers(0, length), min_size=1, max_size=5))
    batch = np.array([sequence(real, length) for real in reals], np.int32)
    # Documents end and masks stand anywhere.
    for row, column in draw(
        st.lists(st.tuples(st.integers(0, len(batch) - 1), st.integers(0, length - 1)), max_size=4)
    ):
        if batch[row, column] > 2:
            batch[row, column] = draw(st.sampled_from([2, MASK]))
    return batch


fractions = st.sampled_from([0.05, 0.15, 0.3, 0.5, 0.9])
numbers = st.integers(0, 1000)


# Masks.


@settings(max_examples=40)
@given(batches(), fractions, numbers)
def test_masks_are_distinct_ordinary_positions(batch, fraction, number):
    found = mask_positions(tf.constant(batch), fraction, SPECIAL, tf.constant([number, 1]))
    positions, weights = found["masked_positions"].numpy(), found["masked_weights"].numpy()
    slots = math.ceil(batch.shape[1] * fraction)
    assert positions.shape == weights.shape == (len(batch), slots)
    assert (positions.dtype, weights.dtype) == (np.int32, np.float32)
    assert set(weights.flat) <= {0, 1}
    assert ((positions >= 0) & (positions < batch.shape[1])).all()
    assert (np.diff(positions, axis=1) > 0).all()
    masked = np.take_along_axis(batch, positions, axis=1)[weights == 1]
    assert not set(masked) & {0, 1, 2, MASK}
    ordinary = (~np.isin(batch, [0, 1, 2, MASK])).sum(axis=1)
    chosen = weights.sum(axis=1)
    assert (chosen >= np.floor(ordinary * np.float32(fraction))).all()
    assert (chosen <= np.minimum(np.floor(ordinary * np.float32(fraction)) + 1, ordinary)).all()


@pytest.mark.parametrize("ordinary", [0, 1, 3, 7, 38])
def test_masks_meet_their_share_whatever_the_length(ordinary):
    rows = 8000
    batch = tf.constant([sequence(ordinary + 2, 40)] * rows)
    weights = mask_positions(batch, 0.15, SPECIAL, SEED)["masked_weights"].numpy()
    # Rounding up or down has a standard deviation of at most 1/2.
    expected = 0.15 * ordinary
    assert weights.sum(axis=1).mean() == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(rows))
    assert set(weights.sum(axis=1)) <= {math.floor(expected), math.ceil(expected)}


def test_masks_fall_on_all_positions_alike():
    batch = tf.constant([sequence(14, 16)] * 4000)
    found = mask_positions(batch, 0.15, SPECIAL, SEED)
    used = found["masked_positions"].numpy()[found["masked_weights"].numpy() == 1]
    counts = np.bincount(used, minlength=16)
    assert counts[[0, 13, 14, 15]].sum() == 0
    assert scipy.stats.chisquare(counts[1:13]).pvalue > 1e-4


def test_masks_have_slots_for_a_sequence_of_ordinary_tokens():
    batch = tf.fill([500, 20], 7)
    weights = mask_positions(batch, 0.15, SPECIAL, SEED)["masked_weights"]
    assert weights.shape == (500, 3)
    np.testing.assert_array_equal(weights, np.ones([500, 3]))


# Crops.


@settings(max_examples=40)
@given(batches(), fractions, numbers)
def test_crops_are_spans_behind_the_first_token(batch, fraction, number):
    found = crop_sequences(tf.constant(batch), fraction, SPECIAL, tf.constant([number, 1]))
    crops, masks = found["crop_token_ids"].numpy(), found["crop_padding_mask"].numpy()
    length = 1 + round((batch.shape[1] - 1) * fraction)
    assert crops.shape == masks.shape == (len(batch), length)
    assert (crops.dtype, masks.dtype) == (np.int32, bool)
    np.testing.assert_array_equal(masks, crops != SPECIAL.pad)
    for original, crop, mask in zip(batch, crops, masks, strict=True):
        others = original[original != SPECIAL.pad][1:]
        kept = round(len(others) * fraction)
        span = crop[1 : 1 + kept].tolist()
        assert crop[0] == original[0]
        assert mask[1:].sum() == kept
        assert not mask[1 + kept :].any()
        spans = [others[start : start + kept].tolist() for start in range(len(others) + 1 - kept)]
        assert not kept or span in spans


@settings(max_examples=20)
@given(batches(), numbers)
def test_the_whole_crop_is_the_original(batch, number):
    found = crop_sequences(tf.constant(batch), 1.0, SPECIAL, tf.constant([number, 1]))
    np.testing.assert_array_equal(found["crop_token_ids"], batch)


@pytest.mark.parametrize("real", [21, 16, 11])
def test_crops_start_anywhere_alike(real):
    batch = tf.constant([sequence(real, 21)] * 6000)
    crops = crop_sequences(batch, 0.6, SPECIAL, SEED)["crop_token_ids"].numpy()
    starts = crops[:, 1] - 3
    choices = real - 1 - round((real - 1) * 0.6) + 1
    counts = np.bincount(starts, minlength=choices)
    assert len(counts) == choices
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_padding_alone_does_no_harm():
    batch = tf.ones([3, 10], tf.int32)
    crop = crop_sequences(batch, 0.9, SPECIAL, SEED)
    assert not crop["crop_padding_mask"].numpy().any()
    masks = mask_positions(batch, 0.15, SPECIAL, SEED)
    assert not masks["masked_weights"].numpy().any()


# Both.


@pytest.mark.parametrize(("augment", "fraction"), [(mask_positions, 0.15), (crop_sequences, 0.6)])
def test_augmentations_are_a_function_of_the_seed(augment, fraction):
    batch = tf.constant([sequence(40, 40)] * 8)

    def run(*seed):
        values = augment(batch, fraction, SPECIAL, tf.constant(seed, tf.int64)).values()
        return [value.numpy() for value in values]

    for first, again in zip(run(3, 5), run(3, 5), strict=True):
        np.testing.assert_array_equal(first, again)
    for other in (run(3, 6), run(4, 5)):
        assert any((a != b).any() for a, b in zip(run(3, 5), other, strict=True))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_shapes_are_static_in_a_pipeline(batch_size):
    signature = [tf.TensorSpec([batch_size, 20], tf.int32)]
    both = tf.function(
        lambda batch: (
            mask_positions(batch, 0.15, SPECIAL, SEED) | crop_sequences(batch, 0.9, SPECIAL, SEED)
        ),
        input_signature=signature,
    )
    shapes = both.get_concrete_function().structured_outputs
    assert {name: shape.shape[1] for name, shape in shapes.items()} == {
        "masked_positions": 3,
        "masked_weights": 3,
        "crop_token_ids": 18,
        "crop_padding_mask": 18,
    }


# Whole words and spans.

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁cat", "▁dog", "s", "ing", ".", "▁", "'"] + ["x"] * 89


def text_of_words(rows: int, length: int, longest: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Rows of words of 1 to `longest` tokens, full; with the number of each token's word."""
    rng = np.random.default_rng(0)
    ids, words = np.full([rows, length], 2, np.int32), np.full([rows, length], -1)
    ids[:, 0] = 0
    for row in range(rows):
        place, word = 1, 0
        while place < length - 1:
            size = min(rng.integers(1, longest + 1), length - 1 - place)
            ids[row, place : place + size] = [4, *[6] * (size - 1)]
            words[row, place : place + size] = word
            place, word = place + size, word + 1
    return ids, words


def masked_of(augmentation: Augmentation, ids: np.ndarray, seed: int = 0) -> np.ndarray:
    """[B, S] bool."""
    batch = augmentation(tf.constant(ids), tf.constant([seed, 1]))
    positions, weights = (batch[f"masked_{name}"].numpy() for name in ("positions", "weights"))
    assert positions.shape == (len(ids), math.ceil(ids.shape[1] * augmentation.mask_fraction))
    assert (np.diff(positions, axis=1) > 0).all()
    masked = np.zeros(ids.shape, bool)
    np.put_along_axis(masked, positions, weights > 0, axis=1)
    return masked


def augmentation_of(masking: str, **changes) -> Augmentation:
    return Augmentation(SPECIAL, masking=masking, word_starts=word_starts(PIECES), **changes)


def test_words_begin_at_marks_and_punctuation():
    assert word_starts(PIECES)[4:11].tolist() == [True, True, False, False, True, True, True]


@pytest.mark.parametrize("masking", ["word", "span"])
@settings(max_examples=20, deadline=None)
@given(seed=numbers, fraction=st.sampled_from([0.15, 0.3, 0.5]))
def test_words_are_masked_whole(masking, seed, fraction):
    ids, words = text_of_words(6, 64)
    masked = masked_of(augmentation_of(masking, mask_fraction=fraction), ids, seed)
    assert not masked[words < 0].any()
    for row in range(len(ids)):
        for word in range(words[row].max() + 1):
            assert (
                masked[row][words[row] == word].all() or not masked[row][words[row] == word].any()
            )
    assert (masked.sum(axis=1) <= np.floor(62 * fraction) + 1).all()


@pytest.mark.parametrize(("masking", "missing"), [("token", 0.0), ("word", 0.01), ("span", 0.03)])
def test_every_masking_meets_its_share(masking, missing):
    ids, _ = text_of_words(1500, 128)
    share = masked_of(augmentation_of(masking), ids).sum() / (1500 * 126)
    assert 0.15 * (1 - missing) - 0.0005 <= share <= 0.15 + 0.0005


def test_spans_are_of_words_in_a_row():
    """Longer than words are, by how many words they have on average."""
    ids, words = text_of_words(800, 128, longest=1)

    def mean_run(augmentation: Augmentation) -> float:
        masked = masked_of(augmentation, ids)
        begins = masked[:, 1:] & ~masked[:, :-1]
        return masked.sum() / begins.sum()

    by_word, by_span = (
        mean_run(augmentation_of("word")),
        mean_run(augmentation_of("span", span_words=3.0)),
    )
    # Words that are chosen alone have neighbors with a chance of 0.15.
    assert by_word == pytest.approx(1 / 0.85, rel=0.03)
    assert 2.5 < by_span < 4.0


def test_long_words_are_taken_apart():
    """What has no spaces would else never be masked."""
    ids = np.full([400, 128], 6, np.int32)
    ids[:, 0], ids[:, -1] = 0, 2
    assert masked_of(augmentation_of("word"), ids).mean() > 0.12


@settings(max_examples=20, deadline=None)
@given(batches(), fractions, numbers, st.sampled_from(["word", "span"]))
def test_masks_of_units_are_distinct_ordinary_positions(batch, fraction, number, masking):
    masked = masked_of(augmentation_of(masking, mask_fraction=fraction), batch, number)
    assert not np.isin(batch[masked], [0, 1, 2, MASK]).any()


# Shorter sequences.


def test_a_share_of_the_sequences_is_made_shorter():
    batch = tf.constant([sequence(24, 24)] * 6000)
    short = shorten(batch, 0.05, SPECIAL, SEED).numpy()
    sizes = (short != SPECIAL.pad).sum(axis=1)
    for row, size in zip(short, sizes, strict=True):
        assert row[: size - 1].tolist() == batch[0, : size - 1].numpy().tolist()
        assert row[size - 1] == 2
    cut = sizes[sizes < 24]
    # One of the 20 lengths from 5 to 24 is the whole.
    assert len(cut) / 6000 == pytest.approx(0.05 * 19 / 20, abs=5 * math.sqrt(0.05 / 6000))
    assert set(cut) == set(range(5, 24))
    np.testing.assert_array_equal(shorten(batch, 0.0, SPECIAL, SEED), batch)


@settings(max_examples=30, deadline=None)
@given(batches(), numbers)
def test_shorter_sequences_are_sequences(batch, number):
    short = shorten(tf.constant(batch), 1.0, SPECIAL, tf.constant([number, 1])).numpy()
    for before, after in zip(batch, short, strict=True):
        real, kept = (int((row != 1).sum()) for row in (before, after))
        assert min(real, 5) <= kept <= real
        assert (after[kept:] == 1).all()
        assert kept == real or after[kept - 1] == 2


def test_augmentations_of_shortened_sequences_agree():
    batch = tf.constant([sequence(24, 24)] * 50)
    found = Augmentation(SPECIAL, short_fraction=1.0)(batch, SEED)
    np.testing.assert_array_equal(found["padding_mask"], found["token_ids"] != SPECIAL.pad)
    masked = tf.gather(found["token_ids"], found["masked_positions"], batch_dims=1).numpy()
    assert not np.isin(masked[found["masked_weights"].numpy() > 0], [0, 1, 2]).any()
    assert (found["crop_token_ids"].numpy() != 1).sum() < 50 * 20


# Special tokens.


def test_the_released_ids_are_the_defaults():
    special = SpecialTokens(mask=99)
    assert (special.start, special.pad, special.end, special.mask) == (0, 1, 2, 99)
    with pytest.raises(dataclasses.FrozenInstanceError):
        special.mask = 5


@settings(max_examples=40)
@given(st.lists(st.integers(0, 20), max_size=12), st.sampled_from([tf.int32, tf.int64]))
def test_contains_the_four_and_no_other(ids, dtype):
    special = SpecialTokens(mask=20, start=3, pad=0, end=7)
    found = special.contains(tf.constant(ids, dtype))
    assert found.dtype == tf.bool
    np.testing.assert_array_equal(found, [id_ in {20, 3, 0, 7} for id_ in ids])


def test_keeps_the_shape():
    assert SpecialTokens(mask=9).contains(tf.zeros([2, 3, 4], tf.int32)).shape == (2, 3, 4)
