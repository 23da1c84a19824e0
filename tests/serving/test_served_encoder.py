import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.serving.encoder import Encoder
from cocolm_tf.serving.inference import InferenceEncoder


def rows(lengths: list[int], seed: int = 0) -> tf.RaggedTensor:
    ids = np.random.default_rng(seed).integers(4, 149, sum(lengths)).astype(np.int32)
    return tf.RaggedTensor.from_row_lengths(ids, np.int64(lengths))


def padded(ids: tf.RaggedTensor, width: int) -> dict[str, tf.Tensor]:
    token_ids = ids.to_tensor(1, shape=[None, width])
    return {"token_ids": token_ids, "padding_mask": token_ids != 1}


LENGTHS = [24, 3, 9, 1, 16, 8, 17, 5, 24, 2]


@pytest.mark.parametrize("max_tokens", [1, 30, 10_000])
@pytest.mark.parametrize("buckets", [(), (8, 16), (16, 64)])
def test_states_are_those_of_the_padded_batch(
    pretrainer: CocoLMPretrainer, buckets: tuple[int, ...], max_tokens: int
):
    backbone, ids = pretrainer.backbone, rows(LENGTHS)
    encoder = Encoder(InferenceEncoder(backbone), buckets, max_tokens)
    expected = backbone(padded(ids, 24)).numpy()
    states = encoder.states(ids)
    assert states.row_lengths().numpy().tolist() == LENGTHS
    for row, state in enumerate(states):
        np.testing.assert_allclose(state, expected[row, : LENGTHS[row]], atol=1e-5)
    np.testing.assert_allclose(encoder.first_states(ids), expected[:, 0], atol=1e-5)


def test_no_rows_at_all(pretrainer: CocoLMPretrainer):
    encoder = Encoder(InferenceEncoder(pretrainer.backbone))
    assert encoder.first_states(rows([])).shape == (0, 16)
    assert encoder.states(rows([])).flat_values.shape == (0, 16)


class Recorder:
    """In a model's place, says how many rows it was given at once, and how long the longest is."""

    max_sequence_length, hidden_dim = 100, 2

    def __call__(self, ids: tf.RaggedTensor, first_only: bool) -> tf.Tensor:
        assert first_only
        shape = tf.cast(ids.bounding_shape(), tf.float32)
        return tf.tile(shape[tf.newaxis], [ids.nrows(), 1])


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5], [(1, 5)]),
        # Groups end at 16 and 32.
        ([3, 100, 16, 17, 32], [(2, 16), (1, 100), (2, 16), (2, 32), (2, 32)]),
        # 64 tokens at once: 4 rows of the first group, 2 of the second, 1 of the last.
        ([16] * 5, [(4, 16)] * 4 + [(1, 16)]),
        ([20] * 3, [(2, 20)] * 2 + [(1, 20)]),
        ([90, 33], [(1, 90), (1, 33)]),
    ],
    ids=str,
)
def test_groups_and_parts(lengths: list[int], expected: list[tuple[int, int]]):
    encoder = Encoder(Recorder(), buckets=(16, 32), max_tokens_at_once=64)
    shapes = encoder.first_states(rows(lengths)).numpy().tolist()
    assert [tuple(map(int, shape)) for shape in shapes] == expected
