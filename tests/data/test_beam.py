"""The pipelines on Beam's DirectRunner, against what the processes of one machine make."""

import importlib.util
import json
import os
import random
import sys
from pathlib import Path

import pytest

from cocolm_tf import files
from cocolm_tf.data import beam, packing, processes
from cocolm_tf.data.cleaning import Cleaning, Deduplication
from cocolm_tf.data.shards import Manifest
from cocolm_tf.data.sources import FileSource
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.word_counts import count_corpus

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="runs pipelines: pip install 'cocolm-tf[beam]'",
)
ARGUMENTS = {
    "vocabulary_dir": "vocabulary",
    "sequence_length": 16,
    "num_shards": 3,
    "validation_fraction": 0.2,
    "cleaning": Cleaning(min_words=4),
    "deduplication": Deduplication("exact", cleaning=Cleaning(min_words=4)),
}
FOUR_THREADS = ["--direct_num_workers=4", "--direct_running_mode=multi_threading"]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> FileSource:
    """Files of several chunks each, in which some documents are twice and some lines are bad."""
    monkeypatch.setattr(beam, "chunks", processes.chunks)
    monkeypatch.setattr(packing, "_SMALL_BYTES", 1)
    generator = random.Random(0)
    words = [f"word{number}" for number in range(50)]
    documents = [generator.choices(words, k=generator.randrange(2, 30)) for _ in range(90)]
    for file in range(3):
        rows = [{"text": " ".join(words)} for words in documents[file * 25 : file * 25 + 40]]
        lines = [*map(json.dumps, rows), "no JSON"]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(lines))
    return FileSource.find(f"{tmp_path}/*.jsonl", jsonl_field="text", max_bad_share=0.1)


@pytest.fixture
def local(corpus: FileSource, tmp_path: Path, make_dataset) -> Manifest:
    return make_dataset(corpus, output_dir=str(tmp_path / "local"), **ARGUMENTS)


@needs_beam
@pytest.mark.parametrize("options", [[], FOUR_THREADS], ids=["here", "on a store"])
def test_a_pipeline_builds_the_same_bytes(
    corpus: FileSource, local: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options
):
    """With one worker, and with four that write to a store."""
    monkeypatch.setattr(beam, "_SORTED_BYTES", 500)  # So that a shard is sorted in parts.
    output_dir = "ram://beam/data" if options else str(tmp_path / "beam")
    built = beam.build_with_beam(
        corpus, output_dir=output_dir, runner="DirectRunner", options=options, **ARGUMENTS
    )
    assert built.shards == local.shards
    assert built.parameters == local.parameters
    assert built.cleaning == local.cleaning
    assert built.cleaning["bad_records"] == 3 and built.cleaning["duplicates"] > 20
    built.verify()
    held_out = [
        Manifest.load(manifest.directory.removesuffix("train") + "validation")
        for manifest in (built, local)
    ]
    assert held_out[0].shards == held_out[1].shards
    assert files.list_dir(output_dir) == ["train", "validation"]
    assert len(files.list_dir(built.directory)) == 4  # Three shards and the manifest.


@needs_beam
def test_words_are_counted_as_on_one_machine(corpus: FileSource, tmp_path: Path):
    expected, _ = count_corpus(corpus, True, 0, 1000)
    counts, characters = beam.count_words_with_beam(
        corpus, True, 10, str(tmp_path / "new" / "vocabulary"), "DirectRunner", FOUR_THREADS
    )
    assert not (tmp_path / "new").exists() or not os.listdir(tmp_path / "new")
    assert len(counts) == 10 and counts == {word: expected[word] for word in counts}
    assert min(counts.values()) >= max(expected[word] for word in expected.keys() - counts.keys())
    assert sum(characters.values()) == sum(
        len(word) * count for word, count in expected.items() if word not in counts
    )


@needs_beam
def test_what_fails_in_a_worker_is_one_line_and_leaves_nothing(
    corpus: FileSource, tmp_path: Path, make_dataset
):
    path = tmp_path / "1.jsonl"
    path.write_text(path.read_text() + "\nnone\n" * 9)
    for options in ([], FOUR_THREADS):
        with pytest.raises(UserError, match=r"^\S*1.jsonl:41 is not JSON: .* of 58 lines .*pass.$"):
            beam.build_with_beam(
                corpus,
                output_dir=str(tmp_path / "beam"),
                runner="DirectRunner",
                options=options,
                **ARGUMENTS,
            )
        assert not (tmp_path / "beam").exists()


@needs_beam
@pytest.mark.parametrize(
    ("runner", "options", "complaint"),
    [
        ("DirectRunner", ["--direct_num_worker=4"], "has no option --direct_num_worker"),
        ("DataflowRunner", [], "on other machines: give a gs:// path for vocabulary"),
    ],
)
def test_what_beam_cannot_do_is_named_first(
    corpus: FileSource, tmp_path: Path, runner: str, options: list[str], complaint: str
):
    with pytest.raises(UserError, match=complaint):
        beam.build_with_beam(
            corpus, output_dir=str(tmp_path / "beam"), runner=runner, options=options, **ARGUMENTS
        )


@needs_beam
@pytest.mark.exhaustive
def test_too_many_shards_are_named(corpus: FileSource, tmp_path: Path, make_dataset):
    with pytest.raises(UserError, match="do not fill the 500 shards of"):
        beam.build_with_beam(
            corpus,
            output_dir=str(tmp_path / "beam"),
            runner="DirectRunner",
            **(ARGUMENTS | {"num_shards": 500, "validation_fraction": 0.0}),
        )
    assert not (tmp_path / "beam").exists()


def test_a_missing_beam_is_named(
    corpus: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(UserError, match=r"SparkRunner needs Apache Beam: pip install .*\[beam\]"):
        beam.count_words_with_beam(corpus, True, 10, str(tmp_path / "new"), "SparkRunner")
