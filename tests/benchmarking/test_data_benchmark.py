"""That every contender does its job, and what is made of their times."""

import json
import random
from pathlib import Path

import pytest
from benchmarks import data as module
from benchmarks.alternation import Contender, Timings
from in_one_process import run_benchmark
from programs import Program

from cocolm_tf.costs.formatting import format_result
from cocolm_tf.data.shards import Manifest
from cocolm_tf.errors import UserError

benchmark_data = Program("benchmark_data.py")
SIZES = module.DataSizes(vocabulary_size=40, sequence_length=16, batch_size=4, num_batches=3)


def documents(count: int = 40) -> list[str]:
    generator = random.Random(1)
    words = ["model", "token", "learns", "reads", "sampled", "corrects", "the", "a"]
    return [" ".join(generator.choices(words, k=30)) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents()))
    return path


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """What would be timed: 2 s for SentencePiece, 4 for all else, 1 + 1 + 5 for shards."""
    contenders = []

    def alternate(given: list[Contender], rounds: int, warmup_calls: int = 1) -> dict[str, Timings]:
        contenders.extend(given)
        timings = {}
        for one in given:
            seconds, result = 4.0, None
            if one.name.startswith("sentencepiece"):
                seconds = 2.0
            elif one.name.startswith("build_shards"):
                seconds, result = 7.0, (1.0, 0)
            timings[one.name] = Timings(9.0, result, [seconds] * rounds, [result] * rounds, 0.0)
        return timings

    monkeypatch.setattr(module, "alternate", alternate)
    return contenders


def test_rates_are_of_the_text_and_beside_as_many_threads(timed: list[Contender]):
    result = module.measure_data(documents(), 32, SIZES, num_workers=[0, 1, 2], rounds=2)
    size = sum(len(one) for one in documents())
    assert result["text_bytes"] == size
    tokens = result["tokens"]
    assert list(tokens) == [
        "cocolm_tf",
        "sentencepiece, 1 thread",
        "sentencepiece, 2 threads",
        "tokenizers, 1 thread",
        "tokenizers, 2 threads",
        "build_shards, 0 workers",
        "build_shards, 1 worker",
        "build_shards, 2 workers",
    ]
    assert tokens["cocolm_tf"]["times"]["median"] == 2.0
    assert tokens["cocolm_tf"]["megabytes_per_second"] == size / 1e6 / 4
    shards = tokens["build_shards, 2 workers"]
    assert shards["start_seconds"]["median"] == 1.0
    assert shards["seconds"]["median"] == 5.0, "without either start"
    assert shards["times"]["median"] == 2.5
    assert result["vocabulary"]["cocolm_tf, 2 workers"]["times"]["median"] == 2.0
    assert result["pipeline"]["tokens_per_second"] == 3 * 4 * 16 / 4
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    environments = {one.name: one.environment for one in timed}
    assert environments["tokenizers, 2 threads"]["RAYON_NUM_THREADS"] == "2"
    lines = format_result(result, {"tokens": tokens}).splitlines()
    (row,) = [line for line in lines if line.startswith("build_shards, 2 workers")]
    assert "5 s (5 s to 5 s)" in row and "2.5 (2.5 to 2.5)" in row


@pytest.mark.usefixtures("timed")
def test_a_text_too_short_to_tell_is_said_to_be(monkeypatch: pytest.MonkeyPatch):
    timings = Timings(1.0, (2.0, 10), [3.0, 3.0], [(2.0, 10)] * 2, 0.0)
    row = module._row(timings, text_bytes=100, reference=[1.0, 1.0])
    assert row["start_seconds"]["median"] == 2.0
    assert row["seconds"] is row["megabytes_per_second"] is row["times"] is None
    assert "n/a" in format_result({}, {"tokens": {"build_shards, 2 workers": row}})


@pytest.mark.usefixtures("timed")
def test_no_more_text_is_taken_than_asked_for():
    result = module.measure_data(iter(documents()), 0.004, SIZES, num_workers=[1], rounds=1)
    longest = max(len(one) for one in documents())
    assert 4000 <= result["text_bytes"] < 4000 + longest


def test_too_little_text_is_the_users_mistake():
    with pytest.raises(UserError, match="the text has 3 documents, too few for 16 shards"):
        module.measure_data(documents(3), 32, SIZES, num_workers=[1], rounds=1)


@pytest.mark.slow
def test_every_contender_does_its_job(corpus: Path):
    lines, result = run_benchmark(
        "benchmark_data.py",
        f"--input={corpus}",
        "--vocabulary_size=40",
        "--sequence_length=16",
        "--batch_size=4",
        "--num_batches=3",
        "--num_workers=0",
        "--rounds=1",
    )
    assert result["source"]["input"] == str(corpus)
    assert result["text_bytes"] == sum(len(one) for one in documents())
    assert result["tokens"]["sentencepiece, 1 thread"]["times"]["median"] == 1.0
    assert result["tokens"]["build_shards, 0 workers"]["start_seconds"]["min"] > 0
    assert any(line.startswith("build_shards, 0 workers") for line in lines)


def test_documents_are_batched_and_built_as_they_are(tmp_path: Path):
    folder = str(tmp_path)
    module.write_corpus(documents(), 1e9, folder)
    assert "".join(sum(module._batches(folder), [])) == "".join(documents())
    module.our_vocabulary(folder, 40, 1)()
    seconds, size = module.our_shards(folder, 16, 0)()
    assert seconds > 0
    assert size == sum(len(one) for one in documents()[:16])
    data = module._data(folder, 0)
    assert Manifest.load(data).counts["documents"] == 40, "the whole text came last"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--docstrings"], "give one of --input, --tfds and --docstrings"),
        (["--num_workers=1,few"], "--num_workers has 'few'"),
        (["--num_workers="], "--num_workers is empty"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    corpus: Path, arguments: list[str], complaint: str
):
    (said,) = benchmark_data.mistakes_before_tensorflow(f"--input={corpus}", *arguments)
    assert complaint in said
