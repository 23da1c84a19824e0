"""A model from its corpus to its export, with nothing of it on this machine."""

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import ANY

import pytest
from programs import Program, run_python

from cocolm_tf import files

gs_store = pytest.importorskip(
    "gs_store", reason="needs gcp-storage-emulator and trustme: pip install 'cocolm-tf[test]'"
)

BUCKET = "gs://bucket"
WORDS = "A cat saw the red house on its hill and then some bird sang to a dog of rain"
CONFIG = """
model: {vocabulary_size: 60, num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16}
auxiliary: {num_layers: 1}
data: {sequence_length: 16}
optimizer: {warmup_steps: 10}
trainer:
  train_steps: 100
  batch_size: 4
  log_interval: 10
  validation_interval: 50
  checkpoint_interval: 10
  max_checkpoints: 2
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["gs_store.Store"]:
    """A store that TensorFlow asks, here and in what is started, and folders to stay empty."""
    for folder in ("here", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    with gs_store.serve(tmp_path, "bucket") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


def run(program: str, *flags: str) -> str:
    """Runs a program to its end, and returns the path that it says it has written."""
    done = Program(program)(*flags)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def text_of(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS.split(), k=rng.randrange(4, 20)))


@pytest.mark.exhaustive
def test_all_is_on_a_store(store: "gs_store.Store", tmp_path: Path):
    rng = random.Random(0)
    for number in range(2):
        documents = "\n\n".join(text_of(rng) for _ in range(150))
        files.write_text(f"{BUCKET}/corpus/{number}.txt", documents)
    files.write_text(f"{BUCKET}/tiny.yaml", CONFIG)
    for name in ("train", "dev"):
        rows = "".join(f"{i}\t{text_of(rng)}\t{text_of(rng)}\tentailment\n" for i in range(16))
        header = "index\tsentence1\tsentence2\tlabel\n"
        rows += rows.replace("\tentailment", "\tnot_entailment")
        files.write_text(f"{BUCKET}/glue/RTE/{name}.tsv", header + rows)

    corpus = f"--input={BUCKET}/corpus/*.txt"
    vocabulary = run(
        "train_vocabulary.py", corpus, "--vocabulary_size=60", f"--output_dir={BUCKET}/vocabulary"
    )
    assert vocabulary == f"{BUCKET}/vocabulary"
    run(
        "build_pretraining_data.py",
        corpus,
        f"--vocabulary={vocabulary}",
        "--sequence_length=16",
        "--num_shards=2",
        "--num_workers=2",
        "--validation_fraction=0.1",
        f"--output_dir={BUCKET}/data",
    )

    pretraining = (
        f"--config_file={BUCKET}/tiny.yaml",
        f"--vocabulary={vocabulary}",
        f"--train_data={BUCKET}/data/train",
        f"--validation_data={BUCKET}/data/validation",
        f"--model_dir={BUCKET}/run",
    )
    began = len(store.requests)
    with Program("pretrain.py").start(*pretraining) as killed:
        first = gs_store.Request("write", "run/checkpoints/ckpt-10.index", ANY)
        while first not in store.requests[began:]:
            assert killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    assert not files.exists(f"{BUCKET}/run/preset")
    resumed = Program("pretrain.py")(*pretraining)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stderr
    preset = resumed.stdout.splitlines()[-1]
    lines = files.read_text(f"{BUCKET}/run/metrics.jsonl").splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if line["split"] == "train"]
    assert steps == list(range(10, 101, 10))
    checkpoints = files.list_dir(f"{BUCKET}/run/checkpoints")
    assert [name for name in checkpoints if name.endswith(".index")] == [
        "ckpt-100.index",
        "ckpt-90.index",
    ]

    run(
        "finetune_glue.py",
        f"--preset={preset}",
        "--task=rte",
        f"--data_dir={BUCKET}/glue",
        f"--output_dir={BUCKET}/tasks",
        "--seeds=1",
        "--params_override=trainer.epochs=1,trainer.batch_size=8,data.sequence_length=16",
    )
    results = json.loads(files.read_text(f"{BUCKET}/tasks/results.json"))
    best = f"{BUCKET}/tasks/{results['experiments'][0]['best_run']}/preset"
    exported = run(
        "export_saved_model.py",
        f"--preset={best}",
        "--signature=classify",
        f"--output_dir={BUCKET}/export",
    )
    assert exported == f"{BUCKET}/export/1"

    # In a process of its own: what opens variables lets no other thread run, such as the store's.
    load = "import sys; from cocolm_tf.serving.client import Export\n"
    load += "print(Export(sys.argv[1]).default)"
    assert run_python(load, f"{BUCKET}/export").strip() == "classify"
    assert not list((tmp_path / "here").iterdir())
    # Of the process that was killed, one may be left. TensorFlow leaves files of its own.
    assert len(list((tmp_path / "temporary").glob("cocolm_tf*"))) <= 1
