import json
from pathlib import Path

import pytest
from programs import Program
from superglue_data import write_superglue
from tiny_presets import write_tiny_preset

finetune_superglue = Program("finetune_superglue.py", timeout=600)


@pytest.mark.slow
def test_a_task_of_superglue(tmp_path: Path):
    write_tiny_preset(tmp_path)
    write_superglue(tmp_path / "superglue", repeat=4)
    flags = [
        f"--preset={tmp_path}/preset",
        "--task=multirc",
        f"--output_dir={tmp_path}/out",
        "--params_override=trainer.epochs=1,trainer.batch_size=8",
    ]
    *_, said = finetune_superglue.mistakes(*flags, f"--data_dir={tmp_path}/preset")
    assert said.startswith(f"error: --data_dir={tmp_path}/preset has no MultiRC/train.jsonl: it is")
    done = finetune_superglue(*flags, f"--data_dir={tmp_path}/superglue")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "superglue_multirc"
    results = json.loads((folder / "results.json").read_text())
    assert set(results["dev"]["dev"]) == {"f1a", "em"}
    # The settings are those of the task, but for what the flag changes.
    assert results["config"]["trainer"]["epochs"] == 1
    (line,) = (tmp_path / "out" / "submission" / "MultiRC.jsonl").read_text().splitlines()
    assert json.loads(line)["passage"]["questions"][1]["idx"] == 5
