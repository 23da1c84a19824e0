import json
from pathlib import Path

import pytest
from programs import Program

from cocolm_tf.training.config import PRECISIONS

benchmark = Program("benchmark.py")

TINY = """
model: {vocabulary_size: 97, num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 16}
auxiliary: {num_layers: 1}
data: {sequence_length: 32}
trainer: {batch_size: 8}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.mark.slow
def test_it_ends_with_the_numbers_of_its_table(config_file: Path):
    done = benchmark(
        f"--config_file={config_file}",
        "--steps=2",
        "--warmup_steps=0",
        "--mixed_precision",
        "--batch_size=4",
        "--sequence_length=16",
        "--compiled_costs",
        "--params_override=runtime.jit_compile=true",
        # The main model alone, which is soon compiled.
        "--params_override=auxiliary.replacements=random,objective.scl_weight=0",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result["config_file"] == str(config_file)
    assert result["precision"] == "mixed_bfloat16"
    assert (result["batch_size"], result["sequence_length"], result["steps"]) == (4, 16, 2)
    median = result["step_seconds"]["median"]
    assert result["tokens_per_second"] == pytest.approx(4 * 16 / median)
    table = "\n".join(table)
    assert "tokens_per_second" in table
    assert result["device"] in table
    assert "timing" in done.stderr
    # XLA's program is whole, and of the FLOPs that the configuration gives. Sums as products with
    # ones, which are next to nothing in a larger model, come to it.
    compiled = result["compiled"]
    assert compiled["host_transfers"] == 0
    assert 1 <= compiled["product_flops"] / result["flops_per_step"] < 1.3
    assert compiled["bytes_accessed"] > 3 * 4 * result["parameters"]
    assert f"kernels {compiled['kernels']:,}" in table


def test_a_step_that_is_not_compiled_cannot_be_counted(config_file: Path):
    (said,) = benchmark.mistakes(
        f"--config_file={config_file}",
        "--compiled_costs",
        "--params_override=runtime.jit_compile=false",
    )
    assert "runtime.jit_compile=true" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config_file=/nowhere.yaml"], "--config_file=/nowhere.yaml does not exist."),
        (["--mixed_precision", "--precision=float32"], "--mixed_precision means"),
        (["--precision=float8"], "--precision"),
        (["--batch_size=-1"], "--batch_size"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    config_file: Path, arguments: list[str], complaint: str
):
    (said,) = benchmark.mistakes_before_tensorflow(f"--config_file={config_file}", *arguments)
    assert complaint in said


def test_help_names_every_precision():
    told = benchmark.help()
    for name in (*PRECISIONS, "--steps", "--warmup_steps", "--batch_size", "--sequence_length"):
        assert name in told
