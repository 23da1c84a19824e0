import collections
import itertools
import pathlib
import random
import shutil

import pytest
from corpus_parts import Parts

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization import vocabulary, word_counts
from cocolm_tf.tokenization.dictionary import Dictionary
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary, train_vocabulary

MODEL, DICTIONARY = "assets/tokenizer/vocabulary.spm", "assets/tokenizer/dict.txt"


def names(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_has_the_size_asked_for(vocabulary_dir: pathlib.Path, tokenizer: CocoLMTokenizer):
    assert tokenizer.vocabulary_size() == 150
    assert len(Dictionary.read(vocabulary_dir / DICTIONARY).pieces) == 145


def test_writes_a_preset_and_nothing_twice(vocabulary_dir: pathlib.Path):
    assert names(vocabulary_dir) == {"tokenizer.json", MODEL, DICTIONARY}
    loaded = [
        load_vocabulary(vocabulary_dir),
        CocoLMTokenizer.from_preset(vocabulary_dir),
        CocoLMTokenizer(vocabulary_dir / MODEL, vocabulary_dir / DICTIONARY),
        CocoLMTokenizer(vocabulary_dir / MODEL),
    ]
    assert len({tokenizer.fingerprint() for tokenizer in loaded}) == 1


@pytest.mark.parametrize(("released", "own"), [("sp.model", MODEL), ("dict.txt", DICTIONARY)])
def test_two_copies_must_be_equal(
    tmp_path: pathlib.Path, vocabulary_dir: pathlib.Path, released: str, own: str
):
    """Earlier versions wrote both; whoever edits one of them means it."""
    folder = tmp_path / "vocabulary"
    shutil.copytree(vocabulary_dir, folder)
    shutil.copy(folder / own, folder / released)
    expected = load_vocabulary(vocabulary_dir).fingerprint()
    assert load_vocabulary(folder).fingerprint() == expected
    with open(folder / released, "ab") as file:
        file.write("▁more 1\n".encode())
    with pytest.raises(UserError, match=f"{folder}: {released} and {own} differ"):
        load_vocabulary(folder)


def test_knows_every_character_of_its_corpus(tokenizer: CocoLMTokenizer, corpus: list[str]):
    assert tokenizer.unk_token_id not in {id for ids in tokenizer(corpus) for id in ids}


def test_counts_are_those_of_the_corpus(
    vocabulary_dir: pathlib.Path, tokenizer: CocoLMTokenizer, corpus: list[str]
):
    dictionary = Dictionary.read(vocabulary_dir / DICTIONARY)
    seen = collections.Counter(id for ids in tokenizer(corpus) for id in ids)
    for piece, count in zip(dictionary.pieces, dictionary.counts, strict=True):
        if piece != "▁":
            assert count == seen[tokenizer.token_to_id(piece)], piece


def test_is_deterministic_and_ignores_the_order_of_texts(
    tmp_path: pathlib.Path, tokenizer: CocoLMTokenizer, corpus: list[str]
):
    again = train_vocabulary(corpus[::-1], 150, tmp_path / "new", character_coverage=1.0)
    assert again.fingerprint() == tokenizer.fingerprint()


def test_batches_do_not_change_it(
    tmp_path: pathlib.Path,
    tokenizer: CocoLMTokenizer,
    corpus: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(word_counts, "_BATCH_CHARACTERS", 100)
    monkeypatch.setattr(vocabulary, "_WORDS_AT_A_TIME", 10)
    again = train_vocabulary(iter(corpus), 150, tmp_path / "new", character_coverage=1.0)
    assert again.fingerprint() == tokenizer.fingerprint()


def test_uncased_stays_uncased(tmp_path: pathlib.Path, corpus: list[str]):
    train_vocabulary(corpus, 120, tmp_path / "new", lowercase=True, character_coverage=1.0)
    loaded = load_vocabulary(tmp_path / "new")
    assert loaded.lowercase
    assert loaded("THE CAT").numpy().tolist() == loaded("the cat").numpy().tolist()
    assert not any(character.isupper() for piece in loaded.get_vocabulary() for character in piece)


def test_forgets_the_rarest_words_first(tmp_path: pathlib.Path):
    texts = ["common frequent", "common frequent", "common zzz qqq"]
    tokenizer = train_vocabulary(texts, 20, tmp_path / "new", max_distinct_words=3)
    assert "z" not in tokenizer.get_vocabulary()
    assert "m" in tokenizer.get_vocabulary()


def test_rare_characters_are_left_to_unknown(tmp_path: pathlib.Path, corpus: list[str]):
    texts = corpus * 20 + ["日"]
    tokenizer = train_vocabulary(texts, 150, tmp_path / "new", character_coverage=0.999)
    assert tokenizer.unk_token_id in tokenizer("日").numpy()


@pytest.mark.parametrize("size", [200_000, 8])
def test_says_which_sizes_are_possible(tmp_path: pathlib.Path, corpus: list[str], size: int):
    with pytest.raises(UserError, match=f"vocabulary_size is {size}") as error:
        train_vocabulary(corpus, size, tmp_path / "new", character_coverage=1.0)
    assert list(tmp_path.iterdir()) == []
    (possible,) = (
        int(word.strip(";.")) for word in str(error.value).split()[3:] if word[0].isdigit()
    )
    tokenizer = train_vocabulary(corpus, possible, tmp_path / "new", character_coverage=1.0)
    assert tokenizer.vocabulary_size() == possible


@pytest.mark.parametrize("texts", [[], ["", " \n "]])
def test_an_empty_corpus(tmp_path: pathlib.Path, texts: list[str]):
    with pytest.raises(UserError, match="the corpus is empty"):
        train_vocabulary(texts, 100, tmp_path / "new")


def test_odd_texts_do_no_harm(tmp_path: pathlib.Path, corpus: list[str]):
    odd = ["\x00", "\ud800", "a\tb\x85c", "▁ ▁a", "x" * 100_000, "\ufeff\u200b", "1\t2"]
    tokenizer = train_vocabulary(corpus + odd, 150, tmp_path / "new")
    assert tokenizer.vocabulary_size() == 150


@pytest.mark.parametrize("coverage", [99, 0.5])
def test_coverage_is_a_share(tmp_path: pathlib.Path, corpus: list[str], coverage: float):
    with pytest.raises(UserError, match=f"character_coverage is {coverage}; it must be in "):
        train_vocabulary(corpus, 150, tmp_path / "new", character_coverage=coverage)


@pytest.mark.parametrize("repeats", [200, 20_000])
def test_words_without_spaces_are_learned(tmp_path: pathlib.Path, capsys, repeats: int):
    """However long: SentencePiece drops those of over 4,192 bytes, or aborts."""
    texts = ["the cat sat on the mat", "いろはにほへと" * repeats]
    tokenizer = train_vocabulary(texts, 60, tmp_path / "new", character_coverage=1.0)
    assert tokenizer.unk_token_id not in tokenizer("いろはにほへと").numpy()
    assert "いろ" in "".join(tokenizer.get_vocabulary())
    assert "covers 100.0000% of the characters" in capsys.readouterr().err


def chinese(length: int, seed: int) -> str:
    """Sentences of a few frequent words of two characters and many rare ones."""
    rng = random.Random(seed)
    frequent = ["我们", "中国", "一个", "没有", "什么"]
    rare = [chr(rng.randrange(0x4E00, 0x4F00)) for _ in range(length)]
    parts = (rng.choice(frequent) if rng.random() < 0.5 else rng.choice(rare) for _ in rare)
    return "，".join(["".join(itertools.islice(parts, 40)) for _ in range(40)])[:length]


def test_a_line_without_spaces_is_enough(tmp_path: pathlib.Path, capsys):
    line = chinese(1_500, seed=0)
    tokenizer = train_vocabulary([line], 400, tmp_path / "new", character_coverage=1.0)
    assert tokenizer.unk_token_id not in tokenizer(line).numpy()
    assert {"我们", "中国", "一个"} <= set(tokenizer.get_vocabulary())
    assert "covers 100.0000% of the characters" in capsys.readouterr().err


def test_every_part_of_a_corpus_without_spaces_counts(
    tmp_path: pathlib.Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    """Although all its words differ, and there is room for few of them."""
    monkeypatch.setattr(word_counts, "_BATCH_CHARACTERS", 3_000)
    first, last = ([chinese(1_500, seed) for seed in range(s, s + 20)] for s in (0, 20))
    last = [text.replace("我们", "他们").replace("中国", "日本") for text in last]
    texts = ["the cat sat on the mat", *first, *last]
    tokenizer = train_vocabulary(texts, 600, tmp_path / "new", max_distinct_words=300)
    assert {"我们", "中国", "他们", "日本"} <= set(tokenizer.get_vocabulary())
    told = capsys.readouterr().err
    assert "warning: there were so many different words that the rarest" in told


def test_workers_may_read_the_parts_themselves():
    expected = word_counts.count_corpus(list(Parts()), False, 1, 100)
    for num_workers in (1, 2):
        counts = word_counts.count_corpus(Parts(), False, num_workers, 100)
        assert counts == expected


def test_a_sample_comes_from_many_parts():
    texts = list(vocabulary._sample(Parts(), 20 * 40))
    assert 800 <= sum(map(len, texts)) < 820
    assert len({text.split()[0] for text in texts}) == 40
    assert list(vocabulary._sample(Parts(), 1 << 30)) != list(Parts())
    assert sorted(vocabulary._sample(Parts(), 1 << 30)) == sorted(Parts())
    assert list(vocabulary._sample(["abc", "de", "f"], 4)) == ["abc", "de"]


def test_folders_may_be_remote(tmp_path: pathlib.Path, corpus: list[str]):
    path = "ram://vocabularies/cased"
    written = train_vocabulary(corpus, 150, path, lowercase=True)
    assert sorted(files.list_dir(path)) == ["assets", "tokenizer.json"]
    loaded = load_vocabulary(path)
    assert loaded.fingerprint() == written.fingerprint()
    with pytest.raises(UserError, match=f"{path} is not empty"):
        train_vocabulary(corpus, 150, path)
    files.write_text(f"{path}/dict.txt", "the 3\n")
    with pytest.raises(UserError, match=f"{path}: dict.txt and {DICTIONARY} differ"):
        load_vocabulary(path)
    files.remove(f"{path}/{MODEL}")
    files.remove(f"{path}/dict.txt")
    with pytest.raises(UserError, match=f"{path}.*vocabulary.spm"):
        load_vocabulary(path)
    with pytest.raises(UserError, match="s4://bucket"):
        load_vocabulary("s4://bucket/vocabulary")


def test_what_the_vocabulary_lacks_is_reported(tmp_path: pathlib.Path, capsys, corpus: list[str]):
    """As the character that SentencePiece keeps for itself, whose words it would drop."""
    tokenizer = train_vocabulary([*corpus, "zebra▅zebra " * 50], 150, tmp_path / "new")
    told = capsys.readouterr().err
    assert "warning: the vocabulary covers 9" in told and "▅ become <unk>" in told
    assert tokenizer.unk_token_id not in tokenizer("zebra").numpy()
    assert tokenizer.unk_token_id in tokenizer("▅").numpy()


def test_does_not_overwrite_unasked(tmp_path: pathlib.Path, corpus: list[str]):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        train_vocabulary(corpus, 150, tmp_path)
    assert names(tmp_path) == {"mine.txt"}
    train_vocabulary(corpus, 150, tmp_path, overwrite=True)
    assert "mine.txt" not in names(tmp_path)


def test_loads_a_released_folder(tmp_path: pathlib.Path, vocabulary_dir: pathlib.Path):
    shutil.copy(vocabulary_dir / MODEL, tmp_path / "sp.model")
    with pytest.raises(UserError, match=f"{tmp_path} has no dict.txt"):
        load_vocabulary(tmp_path)
    (tmp_path / "dict.txt").write_text("▁the 3\n▁cat 2\n", encoding="utf-8")
    assert load_vocabulary(tmp_path).vocabulary_size() == 7
    (tmp_path / "sp.model").unlink()
    with pytest.raises(UserError, match=f"{tmp_path} has no sp.model"):
        load_vocabulary(tmp_path)


def test_names_a_missing_folder(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="nothing is not a folder"):
        load_vocabulary(tmp_path / "nothing")


@pytest.mark.parametrize("missing", ["vocabulary.spm", "dict.txt"])
def test_names_a_missing_asset(tmp_path: pathlib.Path, vocabulary_dir: pathlib.Path, missing: str):
    folder = tmp_path / "preset"
    shutil.copytree(vocabulary_dir, folder)
    (folder / "assets" / "tokenizer" / missing).unlink()
    with pytest.raises(UserError, match=missing):
        load_vocabulary(folder)


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "{}",
        "[]",
        '{"version": "1.0", "model": {"type": "BPE"}, "pre_tokenizer": null}',
        '{"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}, '
        '"registered_name": null}',
    ],
)
def test_names_a_preset_of_something_else(tmp_path: pathlib.Path, content: str):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path}.*CocoLMTokenizer"):
        load_vocabulary(tmp_path)
