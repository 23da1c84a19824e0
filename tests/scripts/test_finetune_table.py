import json
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import opinions, write_tiny_preset

finetune_table = Program("finetune_table.py", timeout=600)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_preset(folder)
    with open(folder / "reviews.jsonl", "w") as file:
        for text, label in opinions(60, seed=1):
            file.write(json.dumps({"review": text, "stars": ("one", "five")[label]}) + "\n")
    (folder / "new.csv").write_text('review\n"a cat, and a good dog"\n')
    return folder


def flags(inputs: Path, output_dir: Path) -> list[str]:
    return [
        f"--preset={inputs}/preset",
        f"--train_file={inputs}/reviews.jsonl",
        "--text_column=review",
        "--label_column=stars",
        f"--output_dir={output_dir}",
        "--params_override=trainer.epochs=1,trainer.batch_size=8,data.sequence_length=8",
    ]


@pytest.mark.slow
def test_a_table_of_ones_own(inputs: Path, tmp_path: Path):
    done = finetune_table(
        *flags(inputs, tmp_path), f"--test_file={inputs}/new.csv", "--dev_fraction=0.2"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/results.md"
    told = done.stderr
    assert told.index("train: 48 rows of") < told.index("reviews, seed 0: accuracy")
    assert "labels: five " in told and " truncated" in told
    results = json.loads((tmp_path / "reviews" / "results.json").read_text())
    assert results["data"]["dev"]["rows"] == 12
    assert results["data"]["train"]["tokens"]["longest"] == 8
    lines = (tmp_path / "reviews" / "seed_0" / "predictions" / "test.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and lines[1] in ("0\tone", "0\tfive")
    config = json.loads((tmp_path / "reviews" / "seed_0" / "preset" / "task.json").read_text())
    assert config["config"]["label_names"] == ["five", "one"]


@pytest.mark.slow
def test_a_mistake_is_one_line(inputs: Path, tmp_path: Path):
    *_, said = finetune_table.mistakes(*flags(inputs, tmp_path / "out"), "--label_column=star")
    assert said == (
        f"error: {inputs}/reviews.jsonl:1 has no field 'star': it has review, stars; there is no "
        "good row."
    )
    assert not (tmp_path / "out").exists()
