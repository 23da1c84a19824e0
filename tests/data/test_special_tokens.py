import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolm_tf.data.special_tokens import SpecialTokens


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
