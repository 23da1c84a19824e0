import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_reference import all_characters, odd_texts, reference_normalize

from cocolm_tf.tokenization.normalization import as_string_tensor, normalize


def normalized(text: str | bytes, lowercase: bool = False) -> str:
    return normalize(tf.constant(text), lowercase).numpy().decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\n ", ""),
        ("``Quoted''", '" Quoted "'),
        ("“Quoted” ‘too’", "\" Quoted \" ' too '"),
        ("long—dash–here", "long-dash-here"),
        ("a\u3000b\x85c\x1cd\xa0\xa0e", "a b c d e"),
        ("(really?!)", "( really ?!)"),
        ("...", "..."),
        ("a !? b", "a !? b"),
        ("U.S.A.", "U.S.A ."),
        ("don't", "don't"),
        ("he 'll", "he 'll"),
        ("he ' ll go", "he 'll go"),
        ("' s", "'s"),
        ("' sun", "' sun"),
        ("' sé", "' sé"),
        ("' s_", "'s _"),
        ("' t.", "'t ."),
        ("'LL-ish", "'LL -ish"),
        ("'ll-ish", "'ll-ish"),
        ("WE ' VE", "WE 'VE"),
        ("cats'", "cats '"),
        ("5$ a+b ¿qué?", "5 $ a+b ¿ qué ?"),
        ("€5", "€5"),
    ],
)
def test_prepares_as_the_released_tokenizer(text: str, expected: str):
    assert normalized(text) == expected
    assert reference_normalize(text) == expected


@settings(max_examples=50)
@given(st.lists(odd_texts(), min_size=1, max_size=30))
def test_equals_the_rules_written_in_python(texts: list[str]):
    results = [text.decode() for text in normalize(tf.constant(texts)).numpy()]
    assert results == [reference_normalize(text) for text in texts]
    assert all(text == " ".join(text.split()) for text in results)


def test_treats_every_character_as_python_does():
    texts = [f"{x} a{x}b {x}a. a' s{x}" for x in all_characters()]
    results = [text.decode() for text in normalize(tf.constant(texts)).numpy()]
    assert results == [reference_normalize(text) for text in texts]


@settings(max_examples=30)
@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_become_valid_utf8(data: bytes, lowercase: bool):
    assert normalized(data, lowercase) is not None


def test_replaces_invalid_bytes():
    assert normalized(b"(a\xff)") == "( a\ufffd )"


def test_lowercases_by_unicode_rules():
    assert normalized("ÉCOLE Straße ΣΑΣ", lowercase=True) == "école straße σας"


def test_lowercasing_keeps_what_follows_a_nul():
    assert normalized("A\x00B", lowercase=True).endswith("b")


def test_lowercases_before_rejoining_contractions():
    assert normalized("HE ' LL-X", lowercase=True) == "he 'll-x"


def test_keeps_the_shape():
    assert normalize(tf.constant([["a,", "b"], ["c", "d"]])).shape == [2, 2]


def test_string_tensor_of_half_a_surrogate_pair():
    assert normalize(as_string_tensor("a\ud800b")).numpy().decode().startswith("a\ufffd")
    assert as_string_tensor(["a", "\udfff"]).shape == [2]


@pytest.mark.parametrize("texts", [5, [1, 2], ["a", 1]])
def test_string_tensor_of_something_else(texts: object):
    with pytest.raises((ValueError, TypeError)):
        as_string_tensor(texts)
