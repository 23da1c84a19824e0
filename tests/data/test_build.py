import collections
import functools
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf
from data_stand_ins import WordTokenizer, some_documents

from cocolm_tf.data import build
from cocolm_tf.data.manifest import FILE_NAME, Manifest, resolve_shards
from cocolm_tf.data.shards import OpenFiles, compression, parse
from cocolm_tf.errors import UserError, refusal


def text_ids(manifest: Manifest) -> list[int]:
    """All ids of a dataset but the special tokens'."""
    rows = []
    for path in manifest.paths:
        records = tf.data.TFRecordDataset(path, compression_type=compression(path)).batch(100)
        rows += [parse(batch, manifest.sequence_length).numpy() for batch in records]
    return [id for row in rows for id in row.flatten().tolist() if id > 3]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_no_token_is_lost(make_dataset: Callable[..., Manifest], tokenizer: WordTokenizer):
    manifest = make_dataset(["", " \n ", *some_documents()])
    expected = tokenizer(tf.constant(some_documents())).flat_values.numpy().tolist()
    assert collections.Counter(text_ids(manifest)) == collections.Counter(expected)
    counts = manifest.counts
    assert counts["documents"] == 62
    assert counts["skipped_documents"] == 2
    assert counts["text_tokens"] == len(expected)
    assert counts["text_bytes"] == sum(map(len, some_documents())) + 3
    manifest.verify(tokenizer)


def test_shards_are_balanced(make_dataset: Callable[..., Manifest]):
    manifest = make_dataset(some_documents(300), num_shards=4)
    sizes = [shard.text_bytes for shard in manifest.shards]
    assert max(sizes) - min(sizes) <= max(map(len, some_documents(300)))


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


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sequence_length": 7}, "--sequence_length must be at least 8, not 7"),
        ({"num_shards": 0}, "--num_shards must be at least 1, not 0"),
        ({"num_workers": -1}, "--num_workers must be at least 0, not -1"),
        ({"validation_fraction": 1.0}, "--validation_fraction must be"),
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
        with pytest.raises(UserError, match="data/validation is a finished dataset: give --over"):
            make_dataset(validation_fraction=fraction)
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


def test_more_shards_than_may_be_open(make_dataset, tmp_path: Path, monkeypatch):
    make_dataset(num_shards=6, compress=True)
    monkeypatch.setattr(build, "OpenFiles", functools.partial(OpenFiles, 2))
    opened = []

    class Writer(tf.io.TFRecordWriter):
        def __init__(self, *arguments: object):
            opened.append(self)
            super().__init__(*arguments)

        def close(self) -> None:
            opened.remove(self)
            assert len(opened) < 3
            super().close()

    monkeypatch.setattr(tf.io, "TFRecordWriter", Writer)
    make_dataset(num_shards=6, compress=True, output_dir=str(tmp_path / "few"))
    assert contents(tmp_path / "few") == contents(tmp_path / "data") and not opened


def test_a_failed_build_leaves_no_folder(make_dataset, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system then refuses files beyond a size, as on a full disk: more than the probe's.
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(tf.errors.OpError) as caught:
            make_dataset(some_documents(2000), output_dir=str(tmp_path / "new" / "data"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refusal(caught.value).startswith(f"File too large ({tmp_path}/new/data/data-0000")
    assert not (tmp_path / "new").exists()


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


def test_a_failing_worker_ends_the_build(make_dataset, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build, "_BATCH_BYTES", 100)

    def failing(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(build.ShardWriter, "add", failing)
    # Endless: only the worker's failure can end it.
    with pytest.raises(OSError, match="disk full"):
        make_dataset(iter(lambda: "some text", None))
    assert contents(tmp_path) == {}


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
    for workers in (0, 2):
        build.build_shards(
            some_documents(200),
            vocabulary,
            sequence_length=16,
            num_shards=3,
            num_workers=workers,
            output_dir=str(tmp_path / str(workers)),
        )
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


@pytest.mark.slow
def test_a_killed_worker_ends_the_build(tmp_path: Path, vocabulary: str):
    def documents() -> Iterator[str]:
        yield from some_documents()
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        while True:
            yield "some more text " * 1000

    with pytest.raises(UserError, match="a worker process ended unexpectedly"):
        build.build_shards(documents(), vocabulary, 16, 3, 1, str(tmp_path / "data"))
    assert contents(tmp_path) == {}


@pytest.mark.slow
def test_a_users_mistake_reaches_them_from_a_worker(tmp_path: Path):
    with pytest.raises(UserError, match="vocabulary /nowhere is not a folder"):
        build.build_shards(some_documents(), "/nowhere", 16, 3, 1, str(tmp_path / "data"))
    assert contents(tmp_path) == {}
