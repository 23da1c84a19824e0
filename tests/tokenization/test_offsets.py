import io
import pathlib
import re

import pytest
import sentencepiece
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_reference import all_characters, odd_texts, reference_normalize, reference_pieces

from cocolm_tf.tokenization.normalization import normalize
from cocolm_tf.tokenization.offsets import TokenOffsets, character_offsets
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import train_vocabulary

ODD = [
    "x½y ™ oﬃce №5 ﬁnd …",
    "a¨b ´e e\u0301a ¨",
    "\u200bcat\u200b\u200bsat\ufffd a\x7f\x01b\x01 \x01",
    "he ' ll go''' ' s ``''`` '' '",
    "İstanbul ΣΑΣ DŽ",
    "日本 the日本cat ▁ ▁▁a▁b",
    "\ufeffa \x00b\x00 \U0001f600\u200d\U0001f525",
]


KINDS = {
    "in bytes": {"byte_fallback": True},
    "casefolded": {"normalization": "nmt_nfkc_cf"},
    "nfkc": {"normalization": "nfkc"},
    "as it is, in bytes": {"normalization": "identity", "byte_fallback": True},
}


@pytest.fixture(scope="module", params=["cased", "uncased", *KINDS])
def either(
    request: pytest.FixtureRequest,
    tokenizer: CocoLMTokenizer,
    corpus: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> CocoLMTokenizer:
    if request.param in ("cased", "uncased"):
        return CocoLMTokenizer(tokenizer.proto, lowercase=request.param == "uncased")
    options = KINDS[request.param]
    size = 390 if options.get("byte_fallback") else 150
    return train_vocabulary(corpus, size, tmp_path_factory.mktemp("kind"), **options)


def slices(tokenizer: CocoLMTokenizer, text: str) -> list[tuple[str, str, int]]:
    """Every token with the characters it covers and the number of its word."""
    offsets = tokenizer.tokenize_with_offsets(text)
    return [
        (tokenizer.id_to_token(id), text[start:end], word)
        for id, start, end, word in zip(*(part.numpy().tolist() for part in offsets), strict=True)
    ]


class Reference:
    """What a text says once it is prepared and SentencePiece has normalized it, spaces aside."""

    def __init__(self, tokenizer: CocoLMTokenizer) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.proto)
        self.lowercase = tokenizer.lowercase

    def prepared(self, text: str) -> str:
        if self.lowercase:
            text = text.replace("\x00", "\ufffd").lower()
        return reference_normalize(text)

    def said(self, prepared: str) -> str:
        return b"".join(map(content, self.processor.encode(prepared, out_type=str)))

    def pieces(self, text: str) -> list[str]:
        """The pieces of its ids, those that the vocabulary lacks too."""
        normalized = normalize(tf.constant(text), self.lowercase).numpy().decode()
        return list(reference_pieces(self.processor, normalized))


def content(piece: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[1:-1], 16)])
    # A sigma is lowercased by what follows it, which a part of a text does not tell.
    return piece.replace("▁", "").replace("ς", "σ").encode()


def check(reference: Reference, text: str, *offsets: list[int]) -> None:
    covered, by_word = set(), {}
    last_start = last_end = last_word = 0
    for piece, start, end, word in zip(reference.pieces(text), *offsets, strict=True):
        assert 0 <= start <= end <= len(text)
        assert start >= last_start
        assert end >= last_end
        assert word >= last_word
        assert (end > start) == bool(content(piece))
        assert content(piece) in reference.said(reference.prepared(text[start:end]))
        if shared := text[start:last_end]:
            # What two pieces both cover is one character that is written as several, or in bytes:
            # with what has become part of it, accents or what is left out.
            assert len(shared) == 1 or len(reference.said(reference.prepared(shared)).decode()) == 1
            assert len(reference.said(reference.prepared(shared))) > 1
        covered |= set(range(start, end))
        by_word[word] = by_word.get(word, b"") + content(piece)
        # What covers nothing may stand between two parts of one character, behind both.
        last_start = max(last_start, start if end > start else 0)
        last_end, last_word = end, word
    for index in set(range(len(text))) - covered:
        assert not reference.said(reference.prepared(text[index]))
    words = [reference.said(word) for word in reference.prepared(text).split()]
    assert [by_word.get(number, b"") for number in range(len(words))] == words


@settings(max_examples=25)
@given(st.lists(odd_texts(), min_size=1, max_size=10))
@example(ODD)
@example(["ﷺ"])
def test_covers_the_text_in_order(either: CocoLMTokenizer, texts: list[str]):
    offsets = either.tokenize_with_offsets(texts)
    assert offsets.ids.to_list() == either(texts)
    reference = Reference(either)
    for text, _, *places in zip(texts, *(part.to_list() for part in offsets), strict=True):
        check(reference, text, *places)


def test_places_every_character(either: CocoLMTokenizer):
    offsets = either.tokenize_with_offsets([f"a{character}b" for character in all_characters()])
    assert tf.reduce_all(offsets.starts[:, :1].flat_values == 0)
    assert tf.reduce_all(offsets.ends[:, -1:].flat_values == 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t", []),
        ("“The” cat", [("“", 0), ("The", 1), ("”", 2), ("cat", 3)]),
        ("``The''  cat", [("``", 0), ("The", 1), ("''", 2), ("cat", 3)]),
        ("cat'''", [("cat", 0), ("''", 1), ("'", 1)]),
        ("\u200bthe\u200bcat\ufffd the", [("the", 0), ("cat", 0), ("the", 1)]),
        ("日 the", [("", 0), ("日", 0), ("the", 1)]),
        ("½ the", [("½", 0), ("½", 0), ("½", 0), ("the", 1)]),
        ("the½", [("the", 0), ("½", 0), ("½", 0), ("½", 0)]),
    ],
)
def test_slices(tokenizer: CocoLMTokenizer, text: str, expected: list[tuple[str, int]]):
    covered = []
    for piece, characters, word in slices(tokenizer, text):
        # This vocabulary is so small that it cuts words into letters.
        if piece.isalpha():
            covered[-1] = (covered[-1][0] + characters, word)
        else:
            covered.append((characters, word))
    assert covered == expected


def test_a_piece_with_half_a_character_covers_it():
    # "oﬃce" is written "office", and cut in two within that one character.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["off off off ice"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=14,
        minloglevel=2,
    )
    tokenizer = CocoLMTokenizer(model.getvalue())
    covered = slices(tokenizer, "oﬃce")
    assert covered == [("▁off", "oﬃ", 0), ("i", "ﬃ", 0), ("ce", "ce", 0)]


def test_a_character_that_lowercases_to_two(tokenizer: CocoLMTokenizer):
    starts, ends = character_offsets(tf.constant(["İx", "aİ"]), lowercase=True)
    assert starts.numpy().tolist() == [0, 0, 1, 0, 1, 1]
    assert ends.numpy().tolist() == [1, 1, 2, 1, 2, 2]


@pytest.mark.parametrize("text", [b"the\xff\xfecat\xc3", "the\ud800\udc00cat\udfff"])
def test_what_is_no_text_counts_as_it_decodes(tokenizer: CocoLMTokenizer, text: str | bytes):
    starts, ends = (part.numpy() for part in tokenizer.tokenize_with_offsets(text)[1:3])
    assert (starts[0], ends[-1]) == (0, 8)
    assert len(starts) == len(tokenizer(text))


def test_runs_in_pipelines_functions_and_saved_models(
    tokenizer: CocoLMTokenizer, tmp_path: pathlib.Path
):
    expected = [part.to_list() for part in tokenizer.tokenize_with_offsets(ODD)]
    dataset = tf.data.Dataset.from_tensor_slices(ODD)
    (batch,) = dataset.batch(len(ODD)).map(tokenizer.tokenize_with_offsets)
    assert isinstance(batch, TokenOffsets)
    assert [part.to_list() for part in batch] == expected
    one_by_one = zip(*dataset.map(tokenizer.tokenize_with_offsets), strict=True)
    assert [[part.numpy().tolist() for part in parts] for parts in one_by_one] == expected

    tf.saved_model.save(tokenizer.graph_module(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    parts = loaded.tokenize_with_offsets(tf.constant(ODD))
    assert [part.to_list() for part in parts] == expected


def test_other_ranks_are_refused(tokenizer: CocoLMTokenizer):
    with pytest.raises(ValueError, match="a string or a batch of strings"):
        tokenizer.tokenize_with_offsets(tf.constant([["a"]]))
