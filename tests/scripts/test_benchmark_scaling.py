import json
from pathlib import Path

import pytest
from programs import Program

benchmark_scaling = Program("benchmark_scaling.py", timeout=600)

TINY = """
model: {vocabulary_size: 97, num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 16}
auxiliary: {num_layers: 1}
data: {sequence_length: 16}
trainer: {batch_size: 2}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.mark.slow
def test_a_size_is_measured_beside_its_double(config_file: Path):
    done = benchmark_scaling(
        f"--config_file={config_file}",
        "--axes=trainer.batch_size",
        "--factors=2",
        "--rounds=2",
        "--warmup_steps=0",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    one, two = result["axes"]["trainer.batch_size"]
    assert (one["value"], two["value"]) == (2, 4)
    assert two["time_growth"]["median"] > 0
    assert any(line.split()[:2] == ["trainer.batch_size", "4"] for line in table)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config_file=/nowhere.yaml"], "--config_file=/nowhere.yaml does not exist."),
        (["--factors=2,many"], "--factors has 'many'"),
        (["--factors=-1"], "--factors has '-1'"),
        (["--rounds=0"], "--rounds"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_told_before_tensorflow_starts(
    config_file: Path, arguments: list[str], complaint: str
):
    (said,) = benchmark_scaling.mistakes_before_tensorflow(
        f"--config_file={config_file}", *arguments
    )
    assert complaint in said


def test_help_names_every_axis():
    from cocolm_tf.benchmarking.scaling import AXES

    told = "".join(benchmark_scaling.help().split())  # which breaks lines within words
    for axis in AXES:
        assert axis in told
