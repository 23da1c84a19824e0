"""Words are counted by rules in Python, and tokens made by rules in a graph: they must be one."""

import collections
import sys
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_reference import odd_texts

from cocolm_tf.tokenization import word_counts
from cocolm_tf.tokenization.normalization import as_string_tensor, normalize
from cocolm_tf.tokenization.word_counts import CUT, count_corpus, count_words


def graph_words(texts: list[str], lowercase: bool = False) -> list[str]:
    prepared = normalize(as_string_tensor(texts), lowercase).numpy()
    return [word for text in prepared for word in text.decode().split()]


def whole(counts: collections.Counter[str]) -> collections.Counter[str]:
    """Of words that were cut only the first part."""
    return collections.Counter({w: n for w, n in counts.items() if not w.startswith(CUT)})


def check(texts: list[str], lowercase: bool) -> None:
    expected = graph_words(texts, lowercase)
    counts = count_words(texts, lowercase)
    parts = (part for word in expected for part in word_counts._cut(word))
    assert counts == collections.Counter(parts)
    assert whole(counts).total() == len(expected)


@settings(max_examples=300)
@given(st.lists(odd_texts(), min_size=1, max_size=30), st.booleans())
@example(["dogs' s, the dogs’\u3000ll go", "he '\n' s", "``' s", "he ' s' t' LL-X", "''' s"], False)
@example(["HE ' LL-X ΣΑΣ. a\x00B' S", "(x).", "x,", "x.'", "a..", "'s.", "\ud800a' \ud800"], True)
def test_are_those_of_the_graph(texts: list[str], lowercase: bool):
    check(texts, lowercase)


@pytest.mark.parametrize(
    ("template", "lowercase"), [("a{0}b {0}a. '{0}", False), ("a' s{0} (a{0}) {0}' d", True)]
)
def test_treats_every_character_as_the_graph_does(template: str, lowercase: bool):
    characters = map(chr, range(sys.maxunicode + 1))
    # Letters without case are many and all alike: some of them will do.
    check(
        [
            template.format(character)
            for character in characters
            if (category := unicodedata.category(character)) not in ("Cs", "Cn", "Co")
            and (category != "Lo" or ord(character) % 50 == 0)
        ],
        lowercase,
    )


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


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_and_workers_do_not_change_them(
    corpus: list[str], monkeypatch: pytest.MonkeyPatch, num_workers: int
):
    monkeypatch.setattr(word_counts, "_BATCH_CHARACTERS", 300)
    counts, forgotten = count_corpus(iter(corpus), True, num_workers, 1_000)
    assert counts == count_words(corpus, True)
    assert list(counts) == list(count_corpus(corpus, True, 1, 1_000)[0])
    assert not forgotten


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
    monkeypatch.setattr(word_counts.signal, "signal", word_counts.signal.raise_signal)
    monkeypatch.setattr(word_counts.signal, "SIG_IGN", None)
    with pytest.raises(word_counts.UserError, match="--num_workers"):
        count_corpus(corpus, False, 2, 1_000)
