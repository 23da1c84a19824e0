import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

PROGRAM = Path(__file__).parents[2] / "scripts" / "run_hugging_face_finetuning.py"
SIZES = {
    "vocabulary_size": 97,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "dropout": 0.1,
    "max_sequence_length": 16,
    "initializer_range": 0.02,
    "precision": "float32",
    "name": "tiny",
    "optimizer": {
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "beta_1": 0.9,
        "beta_2": 0.98,
        "epsilon": 1e-6,
    },
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "labels"), [(2, ["label"]), (0, ["start", "end"])])
def test_its_steps_are_timed(tmp_path: Path, classes, labels):
    arrays = {
        "batch0/token_ids": np.full([4, 16], 5, np.int32),
        "batch0/padding_mask": np.ones([4, 16], np.int32),
        "batch0/weights": np.ones(4, np.float32),
        **{f"batch0/{name}": np.array([0, 1, 1, 0], np.int32) for name in labels},
    }
    path = tmp_path / "batches.npz"
    np.savez(path, sizes=json.dumps(SIZES | {"classes": classes}), **arrays)
    done = run(str(path), "--rounds=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["rows"], result["tokens"]) == (4, 64)
    assert result["examples_per_second"] == pytest.approx(4 / result["seconds"])


def test_what_is_no_export_is_refused(tmp_path: Path):
    done = run(str(tmp_path / "none.npz"))
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
