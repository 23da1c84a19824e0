import json
import pathlib

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import run_python
from tokenizer_reference import odd_texts, reference_normalize, reference_pieces

from cocolm_tf import CocoLMTokenizer
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.dictionary import Dictionary
from cocolm_tf.tokenization.vocabulary import load_vocabulary, train_vocabulary

TEXTS = ["The cat sat (there).", "", "“They'll” fight — 日本 !", "x"]


def reference_ids(tokenizer: CocoLMTokenizer, text: str) -> list[int]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.proto)
    return [
        tokenizer.token_to_id(piece)
        for piece in reference_pieces(processor, reference_normalize(text))
    ]


def train_sentencepiece(folder: pathlib.Path, corpus: list[str], **options: bool) -> pathlib.Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "sp"),
        model_type="bpe",
        vocab_size=150,
        minloglevel=2,
        **options,
    )
    return folder / "sp.model"


@settings(max_examples=40)
@given(st.lists(odd_texts(), min_size=1, max_size=30))
def test_ids_equal_the_rules_written_in_python(tokenizer: CocoLMTokenizer, texts: list[str]):
    assert tokenizer(texts) == [reference_ids(tokenizer, text) for text in texts]


def test_ids_use_the_dictionary_and_not_the_model(tokenizer: CocoLMTokenizer):
    pieces = ["cat", "▁cat", "日本", "▁the"]
    other = CocoLMTokenizer(tokenizer.proto, pieces)
    assert other.vocabulary_size() == 9
    # A piece that only the dictionary has is known: SentencePiece leaves unknown runs whole.
    ids = other("the cat日本").numpy().tolist()
    assert ids[0] == other.token_to_id("▁the") == 7
    assert ids[-1] == other.token_to_id("日本") == 6
    assert 3 in other("zebra").numpy()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("日", ["▁", "日"]), ("¡@x", ["¡@"]), ("a \x01¿", ["▁a"]), ("a ¿!", ["▁a"])],
)
def test_a_lone_space_before_punctuation_is_dropped(
    tokenizer: CocoLMTokenizer, text: str, expected: list[str]
):
    ids = tokenizer(text).numpy().tolist()
    assert ids[: len(expected)] == [tokenizer.token_to_id(piece) for piece in expected]


def test_a_lone_space_at_the_end_is_dropped(tmp_path: pathlib.Path, corpus: list[str]):
    # Only a model that keeps white space as it is ever leaves one there.
    path = train_sentencepiece(tmp_path, corpus, remove_extra_whitespaces=False)
    tokenizer = CocoLMTokenizer(path)
    texts = ["a ▁", "b", "▁"]
    space = tokenizer.token_to_id("▁")
    assert tokenizer(texts) == [reference_ids(tokenizer, text) for text in texts]
    assert tokenizer(texts)[2] == [space]


def test_a_text_has_the_same_ids_alone_and_in_a_batch(tokenizer: CocoLMTokenizer):
    assert tokenizer(TEXTS) == [tokenizer(text).numpy().tolist() for text in TEXTS]


def test_takes_strings_lists_and_tensors(tokenizer: CocoLMTokenizer):
    expected = tokenizer(TEXTS)
    assert tokenizer(tf.constant(TEXTS)) == expected
    assert tokenizer(np.array(TEXTS)) == expected
    assert tokenizer([text.encode() for text in TEXTS]) == expected
    assert tokenizer(tf.constant(TEXTS[0])).numpy().tolist() == expected[0]
    assert tokenizer(TEXTS[0]).dtype == tf.int32
    assert tokenizer([]) == []
    assert tokenizer([""]) == [[]]


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"a\xc3", "\x00", "\ud800", "\u200b", "▁", "a\x00b", "<s></s><mask>"]
)
def test_any_text_has_ids_of_no_special_token(tokenizer: CocoLMTokenizer, text: str | bytes):
    assert not {0, 1, 2, tokenizer.mask_token_id} & set(tokenizer(text).numpy().tolist())


def test_other_ranks_are_refused(tokenizer: CocoLMTokenizer):
    with pytest.raises(ValueError, match="a string or a batch of strings"):
        tokenizer(tf.constant([["a"]]))


def test_sequence_length_pads_and_truncates(tokenizer: CocoLMTokenizer):
    fixed = CocoLMTokenizer(tokenizer.proto, sequence_length=4)
    rows = tokenizer(TEXTS)
    expected = [(row + [1] * 4)[:4] for row in rows]
    assert fixed(TEXTS).numpy().tolist() == expected
    assert fixed(TEXTS[0]).numpy().tolist() == expected[0]


def test_runs_in_pipelines_and_functions(tokenizer: CocoLMTokenizer):
    expected = tokenizer(TEXTS)
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS)
    assert [ids.numpy().tolist() for ids in dataset.map(tokenizer)] == expected
    (batch,) = dataset.batch(len(TEXTS)).map(tokenizer)
    assert isinstance(batch, tf.RaggedTensor)
    assert batch.to_list() == expected

    @tf.function
    def function(texts: tf.Tensor) -> tf.RaggedTensor:
        return tokenizer(texts)

    assert function(tf.constant(TEXTS)).to_list() == expected


def test_special_tokens(tokenizer: CocoLMTokenizer):
    last = tokenizer.vocabulary_size() - 1
    assert tokenizer.special_tokens == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.special_token_ids == [0, 1, 2, 3, last]
    assert (tokenizer.start_token_id, tokenizer.pad_token_id) == (0, 1)
    assert (tokenizer.end_token_id, tokenizer.unk_token_id) == (2, 3)
    assert tokenizer.mask_token_id == last


def test_tokens_and_ids_are_inverse(tokenizer: CocoLMTokenizer):
    vocabulary = tokenizer.get_vocabulary()
    assert len(vocabulary) == tokenizer.vocabulary_size()
    assert [tokenizer.token_to_id(token) for token in vocabulary] == list(range(len(vocabulary)))
    assert [tokenizer.id_to_token(id) for id in range(len(vocabulary))] == vocabulary
    assert tokenizer.token_to_id("no such piece") == tokenizer.unk_token_id
    for id in (-1, len(vocabulary)):
        with pytest.raises(ValueError, match=f"id is {id}"):
            tokenizer.id_to_token(id)


def test_detokenize_gives_the_prepared_text(tokenizer: CocoLMTokenizer, corpus: list[str]):
    assert tokenizer.detokenize(tokenizer(corpus)) == [reference_normalize(t) for t in corpus]


def test_detokenize_takes_every_form(tokenizer: CocoLMTokenizer):
    ids = tokenizer("The cat").numpy().tolist()
    padded = [[0, *ids, 2, 1], [0, 1, tokenizer.mask_token_id, *ids]]
    assert tokenizer.detokenize(ids) == "The cat"
    assert tokenizer.detokenize([ids, []]) == ["The cat", ""]
    assert tokenizer.detokenize(np.array(padded)) == ["The cat"] * 2
    assert tokenizer.detokenize(tf.constant(padded, tf.int64)) == ["The cat"] * 2
    assert tokenizer.detokenize(tf.ragged.constant(padded)) == ["The cat"] * 2
    assert tokenizer.detokenize([*ids, 3, *ids]) == "The cat ⁇ The cat"
    (text,) = tf.data.Dataset.from_tensors(ids).map(tokenizer.detokenize)
    assert text.numpy() == b"The cat"


def test_pack_lays_out_pairs(tokenizer: CocoLMTokenizer):
    first, second = tokenizer(["The cat"]), tokenizer(["sat"])
    row = tokenizer.pack(first, second, sequence_length=32)["token_ids"][0].numpy().tolist()
    expected = [0, *first[0], 2, 2, *second[0], 2]
    assert row == expected + [1] * (32 - len(expected))


def test_lowercase(tokenizer: CocoLMTokenizer):
    uncased = CocoLMTokenizer(tokenizer.proto, lowercase=True)
    assert uncased(["The CAT"]) == tokenizer(["the cat"])


def test_fingerprint_changes_with_whatever_changes_ids(
    tokenizer: CocoLMTokenizer, tmp_path: pathlib.Path
):
    pieces = tokenizer.get_vocabulary()[4:-1]
    same = [
        CocoLMTokenizer(tokenizer.proto),
        CocoLMTokenizer(tokenizer.proto, pieces, sequence_length=8),
        CocoLMTokenizer(tokenizer.proto, Dictionary(tuple(pieces), tuple(range(len(pieces))))),
    ]
    assert {other.fingerprint() for other in same} == {tokenizer.fingerprint()}
    different = [
        tokenizer,
        CocoLMTokenizer(tokenizer.proto, lowercase=True),
        CocoLMTokenizer(tokenizer.proto, pieces[::-1]),
        CocoLMTokenizer(tokenizer.proto, pieces[:-1]),
    ]
    assert len({other.fingerprint() for other in different}) == len(different)


def test_preset_round_trip(tokenizer: CocoLMTokenizer, tmp_path: pathlib.Path):
    original = CocoLMTokenizer(
        tokenizer.proto, ["▁the", "日本"], lowercase=True, sequence_length=9, name="mine"
    )
    original.save_to_preset(tmp_path)
    loaded = CocoLMTokenizer.from_preset(tmp_path)
    assert loaded.fingerprint() == original.fingerprint()
    assert loaded.get_config() == original.get_config()
    assert CocoLMTokenizer.from_preset(tmp_path, sequence_length=3)(["The"]).shape == [1, 3]


@pytest.mark.slow
def test_saved_model_takes_raw_text_in_a_fresh_process(
    tokenizer: CocoLMTokenizer, tmp_path: pathlib.Path
):
    """Whether it holds the tokenizer or its graph."""

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph, self.layer = tokenizer.graph_module(), tokenizer

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        def serve(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
            rows = [self.graph.tokenize(text), self.layer.tokenize(text)]
            return {"ids": tf.stack([row.to_tensor(1) for row in rows])}

    module = Module()
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.serve})
    output = run_python(
        "import sys, json\n"
        "import tensorflow as tf, tensorflow_text\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "ids = model.signatures['serving_default'](tf.constant(sys.argv[2:]))['ids']\n"
        "print(json.dumps(ids.numpy().tolist()))",
        tmp_path,
        *TEXTS,
    )
    rows = tokenizer(TEXTS)
    longest = max(map(len, rows))
    assert json.loads(output) == [[row + [1] * (longest - len(row)) for row in rows]] * 2


def test_a_model_is_not_a_model(tmp_path: pathlib.Path):
    path = tmp_path / "sp.model"
    with pytest.raises(UserError, match="sp.model: No such file"):
        CocoLMTokenizer(path)
    for content in (b"garbage", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="sp.model is not a SentencePiece model"):
            CocoLMTokenizer(str(path))
        with pytest.raises(UserError, match="proto is not a SentencePiece model"):
            CocoLMTokenizer(content)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"split_by_whitespace": False}, "across a space"), ({"add_dummy_prefix": False}, "mark")],
)
def test_models_that_do_not_work_word_by_word_are_refused(
    tmp_path: pathlib.Path, corpus: list[str], option: dict[str, bool], message: str
):
    path = train_sentencepiece(tmp_path, corpus, **option)
    with pytest.raises(UserError, match=message):
        CocoLMTokenizer(path)


def test_string_output_is_refused(tokenizer: CocoLMTokenizer):
    with pytest.raises(ValueError, match="integer"):
        CocoLMTokenizer(tokenizer.proto, dtype="string")


def test_without_a_vocabulary_it_says_so():
    with pytest.raises(ValueError, match="No vocabulary"):
        CocoLMTokenizer()("text")


@pytest.fixture(scope="module")
def in_bytes(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> CocoLMTokenizer:
    folder = tmp_path_factory.mktemp("bytes") / "vocabulary"
    train_vocabulary(corpus, 390, folder, byte_fallback=True, split_digits=True)
    return load_vocabulary(folder)


@settings(max_examples=40)
@given(st.lists(odd_texts(), min_size=1, max_size=30))
def test_bytes_keep_every_text(in_bytes: CocoLMTokenizer, texts: list[str]):
    ids = in_bytes(texts)
    assert ids == [reference_ids(in_bytes, text) for text in texts]
    assert in_bytes.unk_token_id not in {id for row in ids for id in row}
    processor = sentencepiece.SentencePieceProcessor(model_proto=in_bytes.proto)
    # A "▁" before punctuation goes, and with it the space that it stands for.
    expected = [processor.normalize(reference_normalize(text)).replace("▁", "") for text in texts]
    assert [text.replace(" ", "") for text in in_bytes.detokenize(ids)] == expected


def test_bytes_are_pieces_of_the_vocabulary(in_bytes: CocoLMTokenizer):
    tokens = [in_bytes.id_to_token(id) for id in in_bytes("日 <0xE6>").numpy()]
    assert tokens[:4] == ["▁", "<0xE6>", "<0x97>", "<0xA5>"]
    assert "<0xE6>" not in tokens[4:]  # what a text says is no byte
    assert in_bytes.detokenize(in_bytes("the 日 日本")) == "the 日 日本"
    half = [in_bytes.token_to_id(piece) for piece in ("▁the", "<0xE6>", "<0x97>", "s")]
    assert in_bytes.detokenize(half) == "the\ufffds"


def test_digits_stand_alone(in_bytes: CocoLMTokenizer):
    tokens = [in_bytes.id_to_token(id) for id in in_bytes("In 1984").numpy()]
    assert tokens[-5:] == ["▁", "1", "9", "8", "4"]
    assert not any(
        len(token) > 1 and token[-1].isdigit() and token[-2].isdigit()
        for token in in_bytes.get_vocabulary()
    )


@pytest.mark.slow
def test_bytes_survive_a_saved_model(in_bytes: CocoLMTokenizer, tmp_path: pathlib.Path):
    tf.saved_model.save(in_bytes.graph_module(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    ids = loaded.tokenize(tf.constant(TEXTS))
    assert ids.to_list() == in_bytes(TEXTS)
    assert [t.decode() for t in loaded.detokenize(ids).numpy()] == in_bytes.detokenize(ids)


@pytest.mark.parametrize(
    ("normalization", "tokens"),
    [
        ("nmt_nfkc", ["A", "fi", "a"]),
        ("nfkc_cf", ["a", "fi", "a"]),
        ("identity", ["A", "ﬁ", "ａ"]),
    ],
)
def test_the_model_says_how_to_normalize(
    tmp_path: pathlib.Path, corpus: list[str], normalization: str, tokens: list[str]
):
    folder = tmp_path / "new"
    texts = [*corpus, "A ﬁ ａ", "A fi a"]
    train_vocabulary(texts, 170, folder, normalization=normalization, character_coverage=1.0)
    loaded = load_vocabulary(folder)
    assert loaded.detokenize(loaded("A ﬁ ａ")) == " ".join(tokens)
    with pytest.raises(UserError, match="normalization is 'nfd'"):
        train_vocabulary(corpus, 150, tmp_path / "other", normalization="nfd")
