import json
import random
from pathlib import Path

import pytest
from programs import Program

benchmark_data = Program("benchmark_data.py", timeout=600)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    generator = random.Random(1)
    words = ["model", "token", "learns", "reads", "sampled", "corrects", "the", "a"]
    documents = [" ".join(generator.choices(words, k=30)) for _ in range(40)]
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents))
    return path


@pytest.mark.slow
def test_text_becomes_batches_and_times(corpus: Path):
    done = benchmark_data(
        f"--input={corpus}",
        "--vocabulary_size=40",
        "--sequence_length=16",
        "--batch_size=4",
        "--num_batches=3",
        "--num_workers=0",
        "--rounds=1",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result["source"]["input"] == str(corpus)
    assert result["text_bytes"] == sum(len(one) for one in corpus.read_text().split("\n\n"))
    assert result["tokens"]["sentencepiece, 1 thread"]["times"]["median"] == 1.0
    assert result["tokens"]["build_shards, 0 workers"]["start_seconds"]["min"] > 0
    assert f"{result['pipeline']['tokens_per_second']:,.0f} tokens/s" in "\n".join(table)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--docstrings"], "give one of --input, --tfds and --docstrings"),
        (["--num_workers=1,few"], "--num_workers has 'few'"),
        (["--num_workers="], "--num_workers is empty"),
        (["--rounds=0"], "--rounds"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_told_before_tensorflow_starts(
    corpus: Path, arguments: list[str], complaint: str
):
    (said,) = benchmark_data.mistakes_before_tensorflow(f"--input={corpus}", *arguments)
    assert complaint in said
