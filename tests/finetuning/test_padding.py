import numpy as np
import pytest

from cocolm_tf.finetuning.padding import batch_width, trimmed


@pytest.mark.parametrize(
    ("longest", "limit", "width"), [(1, 64, 8), (8, 64, 8), (9, 64, 16), (60, 61, 61), (0, 64, 0)]
)
def test_widths_are_multiples_within_the_limit(longest, limit, width):
    assert int(batch_width(np.int32(longest), limit)) == width


def test_trimmed_keeps_every_token():
    token_ids = np.int32([[0, 5, 2] + [1] * 17, [0] + [7] * 8 + [2] + [1] * 10])
    features = {"token_ids": token_ids, "padding_mask": token_ids != 1}
    found = trimmed(features)
    for name, feature in features.items():
        np.testing.assert_array_equal(found[name], feature[:, :16])
