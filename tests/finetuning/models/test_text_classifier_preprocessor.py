import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf import CocoLMTextClassifierPreprocessor

FIRST, SECOND = ["a cat saw", "red house on its hill"], ["the dog", "a good bird sang"]


def test_single_texts(preprocessor, sequence_length):
    features = preprocessor(FIRST)
    expected = preprocessor.tokenizer.pack(
        preprocessor.tokenizer(FIRST), sequence_length=sequence_length
    )
    assert features["token_ids"].shape == (2, sequence_length)
    for name in ("token_ids", "padding_mask"):
        np.testing.assert_array_equal(features[name], expected[name])
    np.testing.assert_array_equal(preprocessor(FIRST[0])["token_ids"], expected["token_ids"][0])


def test_pairs_are_laid_out_as_the_released_models_want(preprocessor):
    tokenizer = preprocessor.tokenizer
    token_ids = preprocessor(x=(FIRST, SECOND))["token_ids"]
    for row, first, second in zip(token_ids, FIRST, SECOND, strict=True):
        wanted = [0, *tokenizer(first).numpy(), 2, 2, *tokenizer(second).numpy(), 2]
        np.testing.assert_array_equal(row[: len(wanted)], wanted)
        assert set(np.array(row[len(wanted) :])) <= {1}


@pytest.mark.parametrize(
    "pairs",
    [
        [[first, second] for first, second in zip(FIRST, SECOND, strict=True)],
        np.array([FIRST, SECOND]).T,
    ],
    ids=["lists", "array"],
)
def test_pairs_may_be_rows_of_two(preprocessor, pairs):
    np.testing.assert_array_equal(
        preprocessor(pairs)["token_ids"], preprocessor(x=(FIRST, SECOND))["token_ids"]
    )


def test_labels_and_weights_pass_through(preprocessor):
    x, y = preprocessor(FIRST, [0, 1])
    assert set(x) == {"token_ids", "padding_mask"} and list(np.array(y)) == [0, 1]
    _, y, weights = preprocessor(FIRST, [0, 1], [0.5, 1.0])
    assert list(np.array(weights)) == [0.5, 1.0]


def test_maps_over_a_dataset(preprocessor):
    dataset = tf.data.Dataset.from_tensor_slices(((FIRST, SECOND), [0, 1])).batch(2)
    ((x, y),) = dataset.map(preprocessor)
    np.testing.assert_array_equal(x["token_ids"], preprocessor(x=(FIRST, SECOND))["token_ids"])
    assert list(y.numpy()) == [0, 1]


def test_the_length_is_the_models_unless_said(tiny_preset, sequence_length):
    assert CocoLMTextClassifierPreprocessor.from_preset(tiny_preset).sequence_length == (
        sequence_length
    )
    short = CocoLMTextClassifierPreprocessor.from_preset(tiny_preset, sequence_length=7)
    token_ids = short(["a cat saw the red house on its hill"])["token_ids"]
    assert token_ids.shape == (1, 7) and token_ids[0, -1] == 2


def test_config_round_trip(preprocessor):
    again = type(preprocessor).from_config(preprocessor.get_config())
    assert again.sequence_length == preprocessor.sequence_length


def test_what_it_does_not_take(preprocessor):
    with pytest.raises(ValueError, match="not 3 texts"):
        preprocessor(x=(FIRST, FIRST, SECOND))
    with pytest.raises(ValueError, match="truncate='waterfall'"):
        type(preprocessor)(preprocessor.tokenizer, truncate="waterfall")
