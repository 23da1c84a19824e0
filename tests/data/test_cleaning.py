import random
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.data import cleaning as cleaning_module
from cocolm_tf.data.cleaning import (
    Cleaning,
    Deduplication,
    DuplicateIndex,
    document_id,
    duplicates_in,
    split_document_id,
)
from cocolm_tf.errors import UserError


@pytest.fixture
def near() -> Deduplication:
    pytest.importorskip("datasketch", reason="finds near duplicates")
    return Deduplication("near", threshold=0.8, ngram=5)


@pytest.mark.parametrize(
    ("limits", "document", "fault"),
    [
        ({}, "", ""),
        ({"min_words": 3}, "only two", "too_short"),
        ({"min_words": 3}, "just  these\nthree", ""),
        ({"max_words": 3}, "these are four words", "too_long"),
        ({"max_words": 4}, "these are four words", ""),
        ({"min_letter_share": 0.5}, "ab 12", ""),
        ({"min_letter_share": 0.5}, "ab 123", "few_letters"),
        ({"min_letter_share": 1.0}, "Größe 文字", ""),
        ({"max_repeated_lines": 0.5}, "a\nb\n a\nb", ""),
        ({"max_repeated_lines": 0.49}, "a\nb\na\nb", "repeated_lines"),
        ({"max_repeated_lines": 0.0}, "a\nb\nc", ""),
    ],
)
def test_limits(limits: dict, document: str, fault: str):
    cleaning = Cleaning(**limits)
    assert cleaning.fault(document) == fault
    assert cleaning.describe() == limits
    kept, counts = cleaning([document])
    assert (kept, counts) == (([], Counter([fault])) if fault else ([document], Counter()))


def test_the_same_words_are_exact_duplicates_whatever_is_between_them():
    keys = Deduplication("exact").keys
    assert keys("The same words.") == keys("the  SAME\n— words") == keys("The same ｗords")
    assert keys("The same words.") != keys("The same word")
    assert keys("...") != keys("!!!")  # What has no words is compared as it is.
    assert keys("half a pair: \ud800") == keys("half a pair: \ud800")


def changed(words: list[str], count: int, seed: int) -> str:
    """A text in which some places have another word."""
    generator = random.Random(seed)
    words = list(words)
    for index in generator.sample(range(len(words)), count):
        words[index] = f"other{index}"
    return " ".join(words)


def test_near_duplicates_share_a_key_and_others_do_not(near: Deduplication):
    words = [f"word{number}" for number in range(1000)]
    text = " ".join(words)
    # Each change takes five of the n-grams away and adds five: at 4 of them, 0.96 are common.
    for seed in range(20):
        assert set(near.keys(text)) & set(near.keys(changed(words, 4, seed)))
        # At 100, 0.43 are.
        assert not set(near.keys(text)) & set(near.keys(changed(words, 100, seed)))
    assert near.keys("Fewer words.") == near.keys("fewer words")
    assert near.keys("Fewer words.") != near.keys("other words")
    assert near.keys("!!!") == near.keys("!!!")


def test_the_share_of_common_n_grams_is_jaccards(near: Deduplication):
    """A long text is hashed in parts, and its signature estimates the similarity."""
    words = [f"word{number}" for number in range(30_000)]
    texts = [" ".join(words[:20_000]), " ".join(words[10_000:])]
    signatures = []
    for text in texts:
        hashes = cleaning_module._ngram_hashes(text.split(), 5)
        assert len(hashes) == 20_000 - 4
        signature = cleaning_module._min_hash(0.8)[0].copy()
        for start in range(0, len(hashes), 999):
            signature.update_batch(hashes[start : start + 999].tolist())
        signatures.append(signature)
    assert signatures[0].jaccard(signatures[1]) == pytest.approx(1 / 3, abs=0.12)


def test_a_key_is_the_same_in_every_process(near: Deduplication):
    assert Deduplication("exact").keys("A few words.") == [9119899446215488]
    assert near.keys("A few words.")[0] == 8900791978581751207


def test_arguments_out_of_range_and_a_missing_package(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="--deduplicate=fuzzy must be one of exact, near"):
        Deduplication("fuzzy")
    monkeypatch.setitem(sys.modules, "datasketch", None)
    cleaning_module._min_hash.cache_clear()
    with pytest.raises(UserError, match=r"needs the package datasketch: pip install.*\[near\]"):
        Deduplication("near")


@given(
    st.lists(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5), max_size=3), max_size=4),
    st.integers(1, 9),
)
def test_all_but_the_first_of_the_same_are_duplicates(corpus, rows_in_memory):
    """Parts of chunks of documents, against what a dictionary finds."""
    deduplication = Deduplication("exact", cleaning=Cleaning(max_words=1))
    seen, expected = set(), {}
    with pytest.MonkeyPatch.context() as patch, DuplicateIndex() as index:
        patch.setattr(cleaning_module, "_ROWS_IN_MEMORY", rows_in_memory)
        rows = []
        for part, chunks in enumerate(corpus):
            for chunk, documents in enumerate(chunks):
                documents = [*documents, "too long"]
                rows.append(deduplication.chunk_keys(part, chunk, documents))
                expected[part, chunk] = [
                    number
                    for number, document in enumerate(documents[:-1])
                    if document in seen or seen.add(document)
                ]
        for some in reversed(rows):  # In which order they come does not matter.
            index.add(some)
        duplicates = index.duplicates()
    assert {chunk: duplicates_in(duplicates, *chunk) for chunk in expected} == expected
    assert len(duplicates) == sum(map(len, expected.values()))


def test_places():
    for numbers in ((0, 0, 0), (3, 2, 1), (2**19 - 1, 2**20 - 1, 2**24 - 1)):
        assert split_document_id(document_id(*numbers)) == numbers
        assert document_id(*numbers) < 2**63
    assert document_id(0, 1, 0) > document_id(0, 0, 9)
    with pytest.raises(UserError, match="put the text into fewer, larger files"):
        document_id(2**19, 0, 0)
    ids = np.array([document_id(1, 2, 3), document_id(1, 2, 5), document_id(1, 3, 0)], np.uint64)
    assert duplicates_in(ids, 1, 2) == [3, 5]
    assert duplicates_in(ids, 1, 4) == []
