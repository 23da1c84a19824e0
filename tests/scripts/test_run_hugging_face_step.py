import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

PROGRAM = Path(__file__).parents[2] / "scripts" / "run_hugging_face_step.py"
SIZES = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16}
CONFIG = {
    "model": SIZES
    | {
        "vocabulary_size": 97,
        "dropout": 0.1,
        "max_sequence_length": 16,
        "initializer_range": 0.02,
    },
    "auxiliary": {
        "num_layers": 1,
        "hidden_dim": 0,
        "num_heads": 0,
        "intermediate_dim": 0,
        "sampling": "zero_dropout",
    },
    "objective": {"lm_weight": 0.0, "scl_weight": 0.0},
    "optimizer": {
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "beta_1": 0.9,
        "beta_2": 0.98,
        "epsilon": 1e-6,
        "clip_norm": 2.0,
    },
}


def write(path: Path, **objective: float) -> Path:
    """A program's description and one batch; the program itself is not read."""
    described = {
        "format": 1,
        "arguments": [],
        "title": "tiny",
        "precision": "mixed_bfloat16",
        "batch_size": 4,
        "sequence_length": 16,
        "tokens": 64,
        "flops": 100,
        "peak_flops": {"cpu": 1e12},
        "config": CONFIG | {"objective": CONFIG["objective"] | objective},
    }
    arrays = {
        "batch0/token_ids": np.random.default_rng(0).integers(4, 96, [4, 16], np.int32),
        "batch0/padding_mask": np.ones([4, 16], bool),
        "batch0/masked_positions": np.tile(np.array([1, 5, 9], np.int32), [4, 1]),
        "batch0/masked_weights": np.tile(np.array([1, 1, 0], np.float32), [4, 1]),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("step.mlir", "")
        archive.writestr("step.json", json.dumps(described))
        archive.writestr("arrays.npz", buffer.getvalue())
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mask", [[], ["--no_mask"]], ids=str)
def test_it_says_what_run_step_says(tmp_path: Path, mask: list[str]):
    done = run(str(write(tmp_path / "electra.step")), "--steps=2", "--warmup=0", *mask)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    median = result["step_seconds"]["median"]
    assert result["tokens_per_second"] == pytest.approx(64 / median)
    assert result["share_of_peak"] == pytest.approx(100 / median / 1e12)
    # What an untrained model's losses are.
    assert result["first_losses"]["mlm_loss"] == pytest.approx(np.log(97), abs=0.1)
    assert result["first_losses"]["copy_loss"] == pytest.approx(np.log(2), abs=0.1)


def test_more_than_electra_is_refused(tmp_path: Path):
    done = run(str(write(tmp_path / "coco.step", scl_weight=1.0)))
    assert done.returncode == 1
    assert "does more than ELECTRA" in done.stderr.splitlines()[-1]
