import random

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.serving.encoder import Encoder, InferenceEncoder, concatenated

SIZES = {
    "vocabulary_size": 50,
    "num_layers": 3,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 40,
    "max_sequence_length": 20,
    "relative_position_bins": 8,
    "relative_position_max_distance": 12,
}
SHORT = [7, 20, 1, 4]


def make(**changes) -> CocoLMBackbone:
    random.seed(0)
    backbone = CocoLMBackbone(**SIZES | changes)
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(variable + rng.normal(0.0, 0.1, variable.shape))
    return backbone


def ids() -> tf.RaggedTensor:
    tokens = np.random.default_rng(1).integers(2, 50, sum(SHORT)).astype(np.int32)
    return tf.RaggedTensor.from_row_lengths(tokens, SHORT)


def expected(backbone: CocoLMBackbone) -> np.ndarray:
    mask = tf.sequence_mask(SHORT, 20)
    inputs = {"token_ids": ids().to_tensor(1, shape=[None, 20]), "padding_mask": mask}
    return tf.boolean_mask(backbone(inputs), mask).numpy()


@pytest.mark.parametrize("bins", [8, 0])
def test_it_computes_what_the_backbone_does(bins: int):
    backbone = make(relative_position_bins=bins)
    model = InferenceEncoder(backbone)
    states = expected(backbone)
    np.testing.assert_allclose(model(ids()), states, atol=1e-5)
    first = states[np.cumsum([0, *SHORT[:-1]])]
    np.testing.assert_allclose(model(ids(), first_only=True), first, atol=1e-5)


def test_logits_are_products_with_the_word_embeddings():
    backbone = make()
    states = np.random.default_rng(2).normal(size=[5, 16]).astype(np.float32)
    matrix = backbone.token_embedding.embeddings.numpy()
    logits = InferenceEncoder(backbone).token_logits(tf.constant(states))
    np.testing.assert_allclose(logits, states @ matrix.T, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "tolerance", "share"),
    [
        ({"precision": "bfloat16"}, 0.1, 0.5),
        ({"int8": True}, 0.2, 0.25),
        ({"int8": True, "precision": "bfloat16"}, 0.3, 0.25),
    ],
    ids=str,
)
def test_smaller_weights_give_about_the_same(
    arguments: dict[str, object], tolerance: float, share: float
):
    backbone = make()
    model = InferenceEncoder(backbone, **arguments)
    states = model(ids())
    assert states.dtype == tf.float32
    difference = np.abs(states - expected(backbone)).max()
    assert 1e-6 < difference < tolerance
    logits = model.token_logits(states)
    whole = InferenceEncoder(backbone).token_logits(states)
    assert 1e-6 < np.abs(logits - whole).max() < tolerance
    # Vectors stay what they are, and so do the tables of 20 positions and 39 distances.
    matrices = [v for v in model.variables if v.shape.rank == 2 and not {20, 39} & {*v.shape}]
    assert matrices
    for matrix in matrices:
        assert matrix.dtype.size == 4 * share


def test_an_untied_width_is_refused():
    with pytest.raises(ValueError, match="embedding_dim"):
        InferenceEncoder(make(embedding_dim=8))


# --- Batches of very different lengths ---


def rows(lengths: list[int], seed: int = 0) -> tf.RaggedTensor:
    ids = np.random.default_rng(seed).integers(4, 149, sum(lengths)).astype(np.int32)
    return tf.RaggedTensor.from_row_lengths(ids, np.int64(lengths))


def padded(ids: tf.RaggedTensor, width: int) -> dict[str, tf.Tensor]:
    token_ids = ids.to_tensor(1, shape=[None, width])
    return {"token_ids": token_ids, "padding_mask": token_ids != 1}


LENGTHS = [24, 3, 9, 1, 16, 8, 17, 5, 24, 2]


@pytest.mark.parametrize(
    ("buckets", "max_tokens"), [((), 1), ((8, 16), 30), ((16, 64), 10_000)], ids=str
)
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


# --- Loops ---

OUTPUTS = (tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, 2], tf.string))


@tf.function(input_signature=[tf.TensorSpec([], tf.int32)], autograph=False)
def counted(count: tf.Tensor) -> tuple[tf.Tensor, ...]:
    def function(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        numbers = tf.fill([number], number)
        return numbers, tf.fill([number, 2], tf.strings.as_string(number))

    return concatenated(function, count, OUTPUTS)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_joins_parts_of_different_sizes(count: int):
    numbers, strings = counted(count)
    expected = [number for number in range(count) for _ in range(number)]
    assert numbers.numpy().tolist() == expected
    assert strings.shape == (len(expected), 2)
    np.testing.assert_array_equal(strings[:, 1], [str(number).encode() for number in expected])
