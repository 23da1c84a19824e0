import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cocolm_tf.serving.signature import LONGEST_TEXTS_OF_REQUEST, Reader
from cocolm_tf.tokenization.segment_packing import pack_ragged, pack_segments
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

MAX_BYTES = 6


@pytest.fixture(scope="module")
def reader(tokenizer: CocoLMTokenizer) -> Reader:
    return Reader(tokenizer, limit=8, max_bytes=MAX_BYTES)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=12) | st.text(max_size=12).map(str.encode), max_size=4))
@example(
    ["abcdé".encode(), "ab\U0001f600".encode(), b"\xf0\x9f\x98\x80" + b"\x80" * 5, b"\x80" * 9]
)
def test_texts_are_cut_between_characters(reader: Reader, texts: list[bytes]):
    (found,), is_cut = reader.texts(tf.constant(texts, tf.string, [len(texts)]))
    assert is_cut.numpy().tolist() == [len(text) > MAX_BYTES for text in texts]
    for text, cut, read in zip(texts, is_cut.numpy(), found.numpy(), strict=True):
        whole, read = text.decode(errors="replace"), read.decode()
        assert whole.startswith(read)
        assert cut or read == whole
        if cut:
            # Nothing goes that was there to be read whole.
            assert len(text[:MAX_BYTES].decode(errors="replace")) - len(read) <= 3


def test_a_request_has_a_bound(reader: Reader):
    most = LONGEST_TEXTS_OF_REQUEST * MAX_BYTES // 16
    rows, _ = reader.rows(tf.constant([""] * most))
    assert rows.nrows() == most
    with pytest.raises(tf.errors.InvalidArgumentError, match="a request may have 384 bytes"):
        reader.rows(tf.constant([""] * (most + 1)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="a request may have 384 bytes"):
        reader.rows_of_ids(tf.zeros([2, 60], tf.int32))


def test_pairs_and_single_texts_in_one_batch():
    rng = np.random.default_rng(0)
    first, second = (
        tf.ragged.constant([list(rng.integers(4, 99, n)) for n in sizes], tf.int32)
        for sizes in ([0, 3, 9, 20, 20], [2, 0, 20, 1, 20])
    )
    is_pair = np.array([True, False, True, False, True])
    rows = pack_ragged(first, second, tf.constant(is_pair), sequence_length=12).to_tensor(1)
    pairs = pack_segments(first, second, sequence_length=12)["token_ids"]
    alone = pack_segments(first, sequence_length=12)["token_ids"]
    np.testing.assert_array_equal(rows, np.where(is_pair[:, np.newaxis], pairs, alone))
