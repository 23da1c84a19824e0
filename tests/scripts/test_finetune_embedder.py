import json
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import opinions, write_tiny_preset

finetune_embedder = Program("finetune_embedder.py", timeout=600)


@pytest.mark.slow
def test_triplets_to_vectors(tmp_path: Path):
    preset = write_tiny_preset(tmp_path)
    with open(tmp_path / "triplets.jsonl", "w") as file:
        columns = ([text for text, _ in opinions(40, seed)] for seed in (1, 2, 3))
        for query, document, other in zip(*columns, strict=True):
            file.write(json.dumps({"query": query, "document": document, "other": other}) + "\n")
    flags = [
        f"--preset={preset}",
        f"--train_file={tmp_path}/triplets.jsonl",
        "--first_column=query",
        "--second_column=document",
        "--negative_column=other",
        "--dimensions=16,8",
        f"--output_dir={tmp_path}/out",
        "--params_override=trainer.epochs=1,trainer.batch_size=8",
    ]
    done = finetune_embedder(*flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/out/results.md"
    results = json.loads((tmp_path / "out" / "triplets" / "results.json").read_text())
    assert results["metric"] == "ndcg@10" and "recall@10" in results["dev"]["dev at 8 dimensions"]
    task = json.loads(
        (tmp_path / "out" / "triplets" / "seed_0" / "preset" / "task.json").read_text()
    )
    assert task["config"]["dimensions"] == [16, 8]
    *_, said = finetune_embedder.mistakes(*flags, "--score_column=x")
    assert said == "error: --negative_column goes without --score_column."
