import collections
import errno
import os
import resource
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_stand_ins import Lists, WordTokenizer, some_documents

from cocolm_tf.data import build, packing, shuffle
from cocolm_tf.data.cleaning import Cleaning, Deduplication
from cocolm_tf.data.packing import Recipe, chunk_sequences
from cocolm_tf.data.shards import (
    FILE_NAME,
    Manifest,
    compression,
    parse,
    resolve_shards,
    write_shard,
)
from cocolm_tf.data.sources import FileSource
from cocolm_tf.errors import UserError, refusal


def rows_of(path: str, sequence_length: int) -> list[list[int]]:
    records = tf.data.TFRecordDataset(path, compression_type=compression(path)).batch(100)
    return [row for batch in records for row in parse(batch, sequence_length).numpy().tolist()]


def text_ids(manifest: Manifest) -> list[int]:
    """All ids of a dataset but the special tokens'."""
    rows = [row for path in manifest.paths for row in rows_of(path, manifest.sequence_length)]
    return [id for row in rows for id in row if id > 3]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def is_resumable(folder: Path) -> bool:
    return any(path.suffix == ".run" for path in folder.rglob("*"))


@pytest.mark.parametrize("break_at", ["token", "word", "document"])
def test_no_token_is_lost(make_dataset, tokenizer, small_chunks, break_at: str):
    manifest = make_dataset(["", " \n ", *some_documents()], break_at=break_at)
    expected = tokenizer(tf.constant(some_documents())).flat_values.numpy().tolist()
    assert collections.Counter(text_ids(manifest)) == collections.Counter(expected)
    counts = manifest.counts
    assert counts["documents"] == 62
    assert counts["skipped_documents"] == 2
    assert counts["text_tokens"] == len(expected)
    assert counts["text_bytes"] == sum(map(len, some_documents())) + 3
    manifest.verify(tokenizer)


def test_shards_are_balanced(make_dataset: Callable[..., Manifest], small_chunks):
    manifest = make_dataset(some_documents(300), num_shards=4)
    sizes = [shard.sequences for shard in manifest.shards]
    assert max(sizes) - min(sizes) <= 0.05 * sum(sizes)


def test_every_shard_gets_an_even_share_of_few_chunks(make_dataset):
    """Also where chunks are as small as a sequence: the system's files, for instance."""
    source = Lists.of(*([f"document {index}"] for index in range(60)))
    sizes = [shard.sequences for shard in make_dataset(source, num_shards=20).shards]
    assert sum(sizes) == 60 and min(sizes) >= 1 and max(sizes) <= 5


def test_order_does_not_follow_the_input(make_dataset, small_chunks):
    """Two corpora one after the other are mixed as the balls of an urn are."""
    first, second = (["the same old words " * 5] * 300, ["something quite different " * 5] * 300)
    manifest = make_dataset(Lists.of(first, second), num_shards=2, sequence_length=20)
    marker = ids_of("different")[0]
    rows = [row for path in manifest.paths for row in rows_of(path, 20)]
    is_second = np.array([marker in row for row in rows])
    ranks = np.flatnonzero(is_second) + 1
    n, m = len(ranks), len(rows) - len(ranks)
    mean, deviation = n * (n + m + 1) / 2, (n * m * (n + m + 1) / 12) ** 0.5
    assert min(n, m) > 200
    assert abs(ranks.sum() - mean) < 4 * deviation
    changes = np.count_nonzero(is_second[1:] != is_second[:-1])
    expected = 2 * n * m / (n + m)
    assert abs(changes - expected) < 4 * expected**0.5


@pytest.mark.parametrize("compress", [False, True])
def test_the_seed_decides_the_bytes(make_dataset, tmp_path: Path, compress: bool):
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        make_dataset(output_dir=str(tmp_path / name), seed=seed, compress=compress)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    shard = "data-00000-of-00003.tfrecord" + (".gz" if compress else "")
    assert contents(tmp_path / "a")[shard] != contents(tmp_path / "c")[shard]


def test_the_manifest_says_what_made_it(make_dataset: Callable[..., Manifest]):
    manifest = make_dataset(seed=3, source={"input": "a.txt"})
    assert (manifest.vocabulary_size, manifest.vocabulary_fingerprint[:5]) == (100, "words")
    assert manifest.parameters["seed"] == 3
    assert manifest.parameters["source"] == {"input": "a.txt"}


def test_held_out_documents_are_a_dataset_of_their_own(make_dataset, tmp_path: Path, tokenizer):
    documents = some_documents(400)
    manifest = make_dataset(documents, num_shards=8, validation_fraction=0.25)
    assert manifest.directory == str(tmp_path / "data" / "train")
    validation = Manifest.load(str(tmp_path / "data" / "validation"))
    assert len(manifest.shards) == 8 and len(validation.shards) == 2
    assert manifest.counts["documents"] + validation.counts["documents"] == 400
    assert 60 < validation.counts["documents"] < 140
    expected = tokenizer(tf.constant(documents)).flat_values.numpy().tolist()
    assert sorted(text_ids(manifest) + text_ids(validation)) == sorted(expected)
    assert not (tmp_path / "data" / FILE_NAME).exists()


def test_what_is_held_out_depends_on_the_text_alone(make_dataset, tmp_path: Path):
    """Duplicates are on one side, and more text moves nobody to the other."""

    def build_with(*lists: list[str]) -> tuple[set[int], set[int]]:
        manifest = make_dataset(
            Lists.of(*lists), num_shards=4, validation_fraction=0.25, overwrite=True
        )
        return tuple(
            set(text_ids(Manifest.load(manifest.directory + where)))
            for where in ("", "/../validation")
        )

    # A word a document, and all of them of different ids.
    words = {int(id): word for word in map(str, range(90)) for id in ids_of(word)}
    documents = sorted(words.values())
    train, validation = build_with(documents)
    assert len(validation) > 5 and not train & validation
    more = build_with(["other " * 20] * 4, [f" {text}\n" for text in documents], documents)
    other = set(ids_of("other"))
    assert (more[0] - other, more[1] - other) == (train - other, validation - other)


def ids_of(text: str) -> list[int]:
    return WordTokenizer()(tf.constant([text]))[0].numpy().tolist()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sequence_length": 7}, "--sequence_length must be at least 8, not 7"),
        ({"num_shards": 0}, "--num_shards must be at least 1, not 0"),
        ({"num_workers": -1}, "--num_workers must be at least 0, not -1"),
        ({"validation_fraction": 1.0}, "--validation_fraction must be"),
        ({"break_at": "line"}, "--break must be one of token, word, document, not line"),
        ({"documents": Lists.of([])}, "no documents"),
        (
            {"documents": Lists.of(some_documents(9)), "validation_fraction": 1e-9},
            "of the 9 documents of the input, none is to hold out with --validation_fraction=1e-09",
        ),
        ({"documents": []}, "no documents"),
        ({"documents": ["a", "b", "", ""]}, "2 documents with text .and 2 without.*3 shards"),
        ({"documents": some_documents(9), "validation_fraction": 1e-9}, "data/validation"),
    ],
)
def test_what_makes_no_dataset_is_refused(make_dataset, tmp_path, changes: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        make_dataset(**changes)
    assert contents(tmp_path) == {}


def test_a_finished_dataset_is_kept(make_dataset: Callable[..., Manifest], tmp_path: Path):
    make_dataset()
    before = contents(tmp_path)
    for changes in ({}, {"validation_fraction": 0.5}):
        with pytest.raises(UserError, match="data is a finished dataset: give --overwrite"):
            make_dataset(**changes)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_another_dataset_within_is_left_alone(make_dataset, tmp_path: Path, fraction: float):
    """Built by itself where a build that holds documents out has its validation data."""
    other = tmp_path / "data" / "validation"
    make_dataset(output_dir=str(other))
    before = contents(other)
    if fraction:
        for overwrite in (False, True):
            with pytest.raises(UserError, match="data/validation is a dataset of its own"):
                make_dataset(validation_fraction=fraction, overwrite=overwrite)
    else:
        make_dataset()
        make_dataset(overwrite=True)
    assert contents(other) == before


def test_a_dataset_with_its_validation_is_one(make_dataset, tmp_path: Path):
    make_dataset(validation_fraction=0.4)
    with pytest.raises(UserError, match="data/train is a finished dataset: give --overwrite"):
        make_dataset()
    # What a build leaves that was killed at its very end is not in the way of its repetition.
    (tmp_path / "data" / "train" / "manifest.json").unlink()
    make_dataset(validation_fraction=0.4)
    # But it is of another.
    (tmp_path / "data" / "train" / "manifest.json").unlink()
    for fraction in (0.0, 0.5):
        with pytest.raises(UserError, match="data/validation is a finished dataset"):
            make_dataset(validation_fraction=fraction)


@pytest.mark.parametrize("of_shards", [False, True])
def test_a_failed_build_leaves_no_folder(make_dataset, tmp_path, small_chunks, of_shards: bool):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system then refuses files beyond a size, as on a full disk: more than the probe's, and of
    # shards also more than a chunk's.
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    documents = some_documents(400) if of_shards else ["many words " * 9000]
    try:
        with pytest.raises((OSError, tf.errors.OpError)) as caught:
            make_dataset(documents, output_dir=str(tmp_path / "new" / "data"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    where = "data-0000" if of_shards else ".build/000000"
    assert refusal(caught.value).startswith(f"File too large ({tmp_path}/new/data/{where}")
    assert not (tmp_path / "new").exists()


def test_too_little_room_is_reported_before_the_work(make_dataset, tmp_path, monkeypatch, capsys):
    (tmp_path / "corpus.txt").write_text("Some text.\n\n" * 100)
    source = FileSource.find(str(tmp_path / "corpus.txt"))

    def free(number: int) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=number)
        monkeypatch.setattr(build.shutil, "disk_usage", lambda folder: usage)

    free(200)
    with pytest.raises(UserError, match=r"take about .* MB in .*/data/.build, and 0 MB are free"):
        make_dataset(source)
    free(1000)
    make_dataset(source)
    assert "warning: 0 MB of input take about" in capsys.readouterr().err


def test_overwriting_leaves_nothing_of_the_old_dataset(make_dataset, tmp_path: Path):
    make_dataset(num_shards=5, compress=True)
    (tmp_path / "data" / "notes.txt").write_text("not ours")
    make_dataset(num_shards=3, validation_fraction=0.4, overwrite=True)
    make_dataset(overwrite=True)
    assert sorted(contents(tmp_path / "data")) == [
        *(f"data-0000{index}-of-00003.tfrecord" for index in range(3)),
        "manifest.json",
        "notes.txt",
    ]


def test_a_folder_may_be_called_like_a_glob(make_dataset, tmp_path: Path):
    folder = str(tmp_path / "data[1]")
    make_dataset(num_shards=5, output_dir=folder)
    manifest = make_dataset(num_shards=3, output_dir=folder, overwrite=True)
    assert len(contents(tmp_path / "data[1]")) == 3 + 1
    assert resolve_shards(manifest.paths[1])[0] == manifest.paths[1:2]


def test_a_failed_build_leaves_what_was_there(make_dataset, tmp_path: Path):
    make_dataset()
    before = contents(tmp_path)

    def interrupted() -> Iterator[str]:
        yield from some_documents(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dataset(interrupted(), overwrite=True)
    assert contents(tmp_path) == before


def test_a_failing_worker_ends_the_build(make_dataset, tmp_path: Path, monkeypatch, small_chunks):
    def failing(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(build, "chunk_sequences", failing)
    # Endless: only the worker's failure can end it.
    with pytest.raises(OSError, match="disk full"):
        make_dataset(iter(lambda: "some text", None))
    assert contents(tmp_path) == {}


class Ended(Lists):
    """A source that somebody ends within a part."""

    def documents(self, part: str, counts: collections.Counter[str] | None = None) -> Iterator[str]:
        for document in super().documents(part, counts):
            if document == "end":
                raise KeyboardInterrupt
            yield document


def test_an_ended_build_resumes(make_dataset, tmp_path: Path, monkeypatch, small_chunks, capsys):
    lists = [some_documents(40)[start::3] for start in range(3)]
    expected = make_dataset(Lists.of(*lists), output_dir=str(tmp_path / "whole"))
    asked = []

    def counted(recipe: Recipe, part: int, chunk: int, *more: object) -> object:
        asked.append((part, chunk))
        return chunk_sequences(recipe, part, chunk, *more)

    monkeypatch.setattr(build, "chunk_sequences", counted)
    ended = [lists[0], lists[1][:9] + ["end"] + lists[1][9:], lists[2]]
    with pytest.raises(KeyboardInterrupt):
        make_dataset(Ended.of(*ended))
    assert "what is done is kept" in capsys.readouterr().err
    done, asked[:] = list(asked), []
    assert done and is_resumable(tmp_path / "data") and not list(tmp_path.glob("data/*"))[1:]
    make_dataset(Lists.of(*lists))
    assert asked and not set(asked) & set(done)
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert expected.counts == Manifest.load(str(tmp_path / "data")).counts


def test_a_build_that_ended_while_it_wrote_shards_tokenizes_nothing_again(
    make_dataset, tmp_path: Path, monkeypatch, small_chunks
):
    source = Lists.of(some_documents(30))
    make_dataset(source, output_dir=str(tmp_path / "whole"))
    with monkeypatch.context() as full_disk:

        def failing(path: str, *arguments: object) -> None:
            if "00001-of" in path:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return write_shard(path, *arguments)

        full_disk.setattr(build, "write_shard", failing)
        with pytest.raises(OSError, match="No space left"):
            make_dataset(source)
    assert os.listdir(tmp_path / "data") == [build.SPILL_FOLDER]
    monkeypatch.setattr(build, "chunk_sequences", None)
    make_dataset(source)
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


@pytest.mark.parametrize("changes", [{"seed": 1}, {"break_at": "token"}, {"num_shards": 2}])
def test_a_build_of_another_recipe_starts_anew(make_dataset, tmp_path, small_chunks, changes):
    with pytest.raises(KeyboardInterrupt):
        make_dataset(Ended.of(some_documents(30), ["end"]))
    assert is_resumable(tmp_path / "data")
    make_dataset(Lists.of(some_documents(30), ["more"]), **changes)
    make_dataset(
        Lists.of(some_documents(30), ["more"]), output_dir=str(tmp_path / "new"), **changes
    )
    assert contents(tmp_path / "data") == contents(tmp_path / "new")


def test_a_file_that_was_changed_is_read_again(make_dataset, tmp_path, monkeypatch, small_chunks):
    monkeypatch.setattr(packing, "_SMALL_BYTES", 1)  # Each is a part of its own.
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in "ab":
        (corpus / f"{name}.jsonl").write_text('{"text": "Some text that is old."}\n' * 50)
    source = FileSource.find(f"{corpus}/*.jsonl", jsonl_field="text")
    with open(corpus / "b.jsonl", "a") as file:
        file.write("{bad")
    with pytest.raises(UserError, match="b.jsonl:51 is not JSON"):
        make_dataset(source)
    assert is_resumable(tmp_path / "data")
    (corpus / "b.jsonl").write_text('{"text": "Some text that is new and good."}\n' * 50)
    make_dataset(source)
    make_dataset(source, output_dir=str(tmp_path / "new"))
    assert contents(tmp_path / "data") == contents(tmp_path / "new")


def test_duplicates_and_what_is_cleaned_are_counted(make_dataset, small_chunks):
    source = Lists.of(some_documents(30), ["short"], some_documents(30)[::-1])
    manifest = make_dataset(
        source, cleaning=Cleaning(min_words=2), deduplication=Deduplication("exact")
    )
    assert manifest.counts["documents"] == 30
    assert manifest.cleaning == {"duplicates": 30, "too_short": 1}
    assert manifest.parameters["cleaning"] == {"min_words": 2, "deduplicate": "exact"}
    assert Manifest.load(manifest.directory) == manifest


def test_memory_does_not_grow_with_the_text(make_dataset, tmp_path, monkeypatch, small_chunks):
    monkeypatch.setattr(shuffle, "_MOST_OPEN", 4)  # Each has a buffer.

    def peak(number: int) -> int:
        documents = (text for _ in range(number) for text in some_documents(50))
        tracemalloc.start()
        make_dataset(documents, output_dir=str(tmp_path / str(number)), num_shards=2)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak(1)
    assert peak(12) < 1.5 * peak(3)


def test_chunks_may_be_kept_elsewhere(make_dataset, tmp_path: Path, small_chunks):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("not ours")
    source = Ended.of(some_documents(30), ["end"])
    with pytest.raises(KeyboardInterrupt):
        make_dataset(source, spill_dir=str(elsewhere), output_dir="ram://elsewhere")
    assert is_resumable(elsewhere)
    source = Lists.of(some_documents(30), ["more"])
    make_dataset(source, spill_dir=str(elsewhere), output_dir="ram://elsewhere")
    manifest = make_dataset(source)
    assert Manifest.load("ram://elsewhere").fingerprint() == manifest.fingerprint()
    assert list(contents(elsewhere)) == ["notes.txt"]


def test_what_a_killed_build_left_is_cleared(make_dataset, tmp_path: Path):
    (tmp_path / "data").mkdir()
    for name in ("data-00007-of-00009.tfrecord.gz.tmp", "manifest.json.tmp", "mine.tmp"):
        (tmp_path / "data" / name).write_text("half")
    make_dataset()
    names = sorted(path for path in contents(tmp_path / "data") if path.endswith(".tmp"))
    assert names == ["mine.tmp"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    from cocolm_tf.tokenization.vocabulary import train_vocabulary

    folder = str(tmp_path_factory.mktemp("vocabularies") / "vocabulary")
    train_vocabulary(some_documents(), 40, folder)
    return folder


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path, vocabulary: str):
    # Only one of them is fast enough to read, and the other helps.
    source = Lists.of(some_documents(200), ["another text "] * 9)
    for workers in (0, 2):
        build.build_shards(
            source,
            vocabulary,
            sequence_length=16,
            num_shards=3,
            num_workers=workers,
            output_dir=str(tmp_path / str(workers)),
        )
    assert contents(tmp_path / "0") == contents(tmp_path / "2")
