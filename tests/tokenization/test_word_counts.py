import collections
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_reference import odd_texts

from cocolm_tf.tokenization import word_counts
from cocolm_tf.tokenization.normalization import as_string_tensor, normalize
from cocolm_tf.tokenization.word_counts import CUT, count_corpus, count_words


@settings(max_examples=100)
@given(st.lists(odd_texts(), min_size=1, max_size=30), st.booleans())
@example(["dogs' s, the dogs’\u3000ll go", "he '\n' s", "``' s", "he ' s' t' LL-X", "''' s"], False)
@example(["boys' Re-election, dogs' VE-x"], True)
@example(["HE ' LL-X ΣΑΣ. a\x00B' S", "(x).", "x,", "x.'", "a..", "'s.", "\ud800a' \ud800"], True)
def test_words_are_those_of_whole_texts(texts: list[str], lowercase: bool):
    """Although only what stands between spaces is prepared, once."""
    prepared = normalize(as_string_tensor(texts), lowercase).numpy()
    words = [word for text in prepared for word in text.decode().split()]
    counts = count_words(texts, lowercase)
    assert counts == collections.Counter(part for word in words for part in word_counts._cut(word))
    assert sum(n for word, n in counts.items() if not word.startswith(CUT)) == len(words)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("cat", ["cat"]),
        ("日" * 32, ["日" * 32]),
        ("日" * 70, ["日" * 32, CUT + "日" * 32, CUT + "日" * 6]),
        ("ไม่" * 9 + "，" + "か" * 9, ["ไม่" * 9, CUT + "，", CUT + "か" * 9]),
        ("a" * 20 + "12" + "b" * 20, ["a" * 20, CUT + "12", CUT + "b" * 20]),
        ("zebra▅cat", ["zebra", CUT + "▅", CUT + "cat"]),
    ],
)
def test_cuts_where_no_piece_would_reach_across(word: str, parts: list[str]):
    assert count_words([word]) == collections.Counter(parts)


def test_batches_do_not_change_them(corpus: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(word_counts, "_BATCH_CHARACTERS", 300)
    assert count_corpus(iter(corpus), True, 1, 1_000) == (count_words(corpus, True), {})


def test_forgets_the_rarest_and_of_equals_some_of_every_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(word_counts, "_BATCH_CHARACTERS", 1_000)
    rare = [f"{chr(0x4E00 + number)}" for number in range(8_000)]
    texts = [f"often {word}" for word in rare]
    counts, forgotten = count_corpus(texts, False, 1, 1_000)
    assert counts["often"] == 8_000
    assert counts.total() + forgotten.total() == 16_000
    kept = [rare.index(word) for word in counts if word != "often"]
    assert all(
        sum(start <= i < start + 2_000 for i in kept) > 50 for start in range(0, 8_000, 2_000)
    )


def test_a_worker_that_dies_is_reported(corpus: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(word_counts, "_BATCH_CHARACTERS", 300)
    monkeypatch.setattr(word_counts, "_set_up_process", os.abort)
    with pytest.raises(word_counts.UserError, match="--num_workers"):
        count_corpus(corpus, False, 2, 1_000)
