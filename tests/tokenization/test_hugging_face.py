"""Vocabularies out to Hugging Face's tokenizers, whose ids must be ours, and back in."""

import copy
import itertools
import json
import pathlib
import re
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from tokenizer_reference import odd_texts

from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.hugging_face import from_hugging_face, to_hugging_face
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import train_vocabulary

tokenizers = pytest.importorskip("tokenizers")

KINDS = {
    "cased": {},
    "uncased": {"lowercase": True},
    "bytes": {"byte_fallback": True, "split_digits": True},
    "nfkc": {"normalization": "nfkc"},
    "casefolded": {"normalization": "nmt_nfkc_cf"},
    "identity": {"normalization": "identity"},
}
LINES = [
    "Don't stop -- it's “quoted” text—really!",
    "``Quotes'' and 'single' ones; he 'll go, we 're here, WE ' VE-left.",
    "U.S.A. (1990s) [brackets] {curly}: 3,000.50%  \t\u3000 ﬁ №5 ½ ™ …",
    "naïve café cafe\u0301 — Zürich’s €100 日本 ㋿ a～b \u200bzero\ufeff",
    # Clusters of a capital letter and a mark that it makes no one character with.
    "A\U0001f3fb B\u0301 X\u200dY Q\ufe0f \u0392\u0304",
    "",
    " ",
]


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, corpus: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[CocoLMTokenizer, Any]:
    options = KINDS[request.param]
    size = 390 if "byte_fallback" in options else 150
    ours = train_vocabulary(corpus, size, tmp_path_factory.mktemp("kind"), **options)
    return ours, read(to_hugging_face(ours)[0])


@pytest.fixture
def content(tokenizer: CocoLMTokenizer) -> dict[str, Any]:
    return to_hugging_face(tokenizer)[0]


def read(content: dict[str, Any]) -> Any:
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    theirs.encode_special_tokens = True
    return theirs


def test_ids_of_lines_are_equal(both: tuple[CocoLMTokenizer, Any], corpus):
    ours, theirs = both
    texts = [*LINES, *corpus]
    expected = ours(texts)
    assert [theirs.encode(text, add_special_tokens=False).ids for text in texts] == expected
    # Here a "▁" before punctuation is dropped, and so is the space that it stands for.
    said = [text.replace(" ", "") for text in ours.detokenize(expected)]
    known = [i for i, ids in enumerate(expected) if ours.unk_token_id not in ids]
    assert [theirs.decode(expected[i]).replace(" ", "") for i in known] == [said[i] for i in known]


@settings(max_examples=30)
@given(odd_texts())
def test_ids_are_equal(both: tuple[CocoLMTokenizer, Any], text: str):
    """But where a text has SentencePiece's own mark: see docs/vocabularies.md."""
    ours, theirs = both
    text = text.replace("▁", "")
    expected = ours(text).numpy().tolist()
    assert theirs.encode(text, add_special_tokens=False).ids == expected


def test_pairs_are_laid_out_as_models_take_them(tokenizer: CocoLMTokenizer, content):
    row = tokenizer.pack(*map(tokenizer, (["The cat"], ["sat"])), sequence_length=32)
    ids = read(content).encode("The cat", "sat").ids
    assert ids == row["token_ids"][0].numpy()[: len(ids)].tolist()
    assert row["padding_mask"].numpy().sum() == len(ids)


def test_comes_back_as_it_was(both: tuple[CocoLMTokenizer, Any], corpus):
    ours, theirs = both
    again, notes = from_hugging_face(json.loads(theirs.to_str()))
    assert notes == []
    assert again.get_vocabulary() == ours.get_vocabulary()
    assert again.lowercase == ours.lowercase
    texts = [*LINES, *corpus]
    assert again(texts) == ours(texts)


def test_what_a_dictionary_adds_or_lacks_is_noted(tokenizer: CocoLMTokenizer):
    pieces = [*tokenizer.get_vocabulary()[4:-2], "日", "日本"]
    other = CocoLMTokenizer(tokenizer.proto, pieces)
    content, notes = to_hugging_face(other)
    assert len(notes) == 2
    assert "1 pieces of the SentencePiece model are not in the dictionary" in notes[0]
    assert "2 pieces of the dictionary are not in the SentencePiece model" in notes[1]
    theirs = read(content)
    assert theirs.encode("日 the", add_special_tokens=False).ids == other("日 the").numpy().tolist()
    assert max(content["model"]["vocab"].values()) == other.vocabulary_size()


def test_a_unigram_model_has_no_merges(tmp_path: pathlib.Path, corpus: list[str]):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=60,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="no BPE model"):
        to_hugging_face(CocoLMTokenizer(tmp_path / "sp.model"))


def test_reads_what_was_converted_from_sentencepiece(tokenizer: CocoLMTokenizer, content):
    """As transformers does it: other ids and special tokens, its own way of marking words."""
    foreign = copy.deepcopy(content)
    names = {"<s>": "[CLS]", "</s>": "[SEP]", "<pad>": "[PAD]", "<mask>": "[MASK]"}
    vocabulary = {names.get(token, token): id for token, id in foreign["model"]["vocab"].items()}
    foreign["model"]["vocab"] = {token: 150 - id for token, id in vocabulary.items()}
    foreign["model"]["merges"] = [" ".join(merge) for merge in foreign["model"]["merges"]]
    for token in foreign["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    foreign["normalizer"] = {"type": "NFKC"}
    foreign["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always",
        "split": True,
    }
    again, notes = from_hugging_face(foreign)
    assert [note.split()[0] for note in notes] == ["texts", "ids"]
    assert set(again.get_vocabulary()) == set(tokenizer.get_vocabulary())
    text = "The cat sat on the mat"
    theirs = tokenizers.Tokenizer.from_str(json.dumps(foreign))
    tokens = [again.id_to_token(id) for id in again(text).numpy()]
    assert tokens == theirs.encode(text, add_special_tokens=False).tokens


def test_reads_what_their_trainer_made(corpus: list[str]):
    """Which lists one way to make each piece, where SentencePiece takes any."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True))
    theirs.normalizer = tokenizers.normalizers.NFKC()
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], show_progress=False
    )
    theirs.train_from_iterator([text + "\n" for text in corpus], trainer)
    again, notes = from_hugging_face(json.loads(theirs.to_str()))
    assert [note.split(maxsplit=1)[1][:6] for note in notes] == ["pieces", "are no", "are re"]
    texts = [" ".join(re.findall(r"\w+", text)) for text in corpus]
    texts += ["thethe tthhee andand oonnon", "sheathe hethen", "ththeth 日 xyz"]
    pieces = [[again.id_to_token(id) for id in row] for row in again(texts)]
    assert pieces == [theirs.encode(text).tokens for text in texts]


def test_overlapping_pieces_are_merged_as_theirs():
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=25, special_tokens=["<unk>"], show_progress=False
    )
    theirs.train_from_iterator(["abab aab abaab ba bab aaab"], trainer)
    again, _ = from_hugging_face(json.loads(theirs.to_str()))
    texts = ["".join(text) for n in range(1, 9) for text in itertools.product("ab", repeat=n)]
    pieces = [[again.id_to_token(id) for id in row] for row in again(texts)]
    assert pieces == [theirs.encode(text).tokens for text in texts]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c.clear(), "no tokenizer.json"),
        (lambda c: c["model"].update(type="Unigram", vocab=[["a", -1.0]]), "has a Unigram model"),
        (lambda c: c["model"].update(dropout=0.1), "dropout=0.1"),
        (lambda c: c["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix='</w>'"),
        (lambda c: c["model"].update(byte_fallback=True), "0 of the 256 bytes"),
        (lambda c: c["model"]["merges"].pop(0), "not all of them among its merges"),
        (lambda c: c["model"]["merges"].append(c["model"]["merges"][0]), "in several ways"),
        (lambda c: c.update(normalizer={"type": "StripAccents"}), "has StripAccents"),
        (
            lambda c: c["model"].update(vocab={"Ġa": 0, "a": 1}, merges=[]),
            "none of its pieces begins with '▁'",
        ),
    ],
)
def test_says_why_another_cannot_be_read(content, change, complaint: str):
    change(content)
    with pytest.raises(UserError, match=complaint):
        from_hugging_face(content)
