import json
import shutil
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import opinions, write_tiny_preset

finetune_prompt = Program("finetune_prompt.py", timeout=900)

PROMPTS = """
trainer: {steps: 10, validation_interval: 5, batch_size: 4}
prompt: {draws: 2}
search: {optimizer.learning_rate: [1e-2]}
prompts:
  sst2: {template: "{first} {mask} .", words: {negative: [awful, bad], positive: [good]}}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_preset(folder)
    (folder / "SST-2").mkdir()
    for name, count, seed in (("train", 40, 1), ("dev", 12, 2)):
        rows = "".join(f"{text}\t{label}\n" for text, label in opinions(count, seed))
        (folder / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    (folder / "prompts.yaml").write_text(PROMPTS)
    return folder


def flags(inputs: Path, output_dir: Path) -> list[str]:
    return [
        f"--preset={inputs}/preset",
        "--task=sst2",
        f"--data_dir={inputs}",
        f"--config_file={inputs}/prompts.yaml",
        f"--output_dir={output_dir}",
        "--shots=4",
        "--splits=2",
    ]


@pytest.mark.slow
def test_prompts_over_splits(inputs: Path, tmp_path: Path):
    done = finetune_prompt(*flags(inputs, tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/results.md"
    results = json.loads((tmp_path / "sst2-prompts" / "results.json").read_text())
    assert len(results["test"]["dev"]["accuracy"]["values"]) == 2
    assert results["label_words"] == ["▁awful", "▁good"] and results["seeds"] == [13, 21]
    assert set(results["search"]) == {"13", "21"}
    assert "| SST-2 |" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_a_table_of_ones_own(inputs: Path, tmp_path: Path):
    rows = "".join(f"{text},{('one', 'five')[label]}\n" for text, label in opinions(60, seed=1))
    (tmp_path / "reviews.csv").write_text("review,stars\n" + rows)
    done = finetune_prompt(
        f"--preset={inputs}/preset",
        f"--train_file={tmp_path}/reviews.csv",
        "--text_column=review",
        "--label_column=stars",
        "--template={first} {mask} .",
        "--label_word=one=awful|bad",
        "--label_word=five=good",
        f"--config_file={inputs}/prompts.yaml",
        f"--output_dir={tmp_path}/out",
        "--shots=4",
        "--splits=1",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "reviews-prompts" / "results.json").read_text())
    assert results["label_words"] == ["▁good", "▁awful"] and results["task"] == "reviews"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--train_file=a.csv"], "give either --task, one of GLUE, or --train_file"),
    ],
)
def test_it_is_a_task_or_a_table(inputs: Path, tmp_path: Path, arguments, complaint):
    (said,) = finetune_prompt.mistakes(*flags(inputs, tmp_path / "out"), *arguments)
    assert complaint in said


def test_a_model_without_a_language_modeling_head_is_refused_at_once(inputs, tmp_path: Path):
    preset = shutil.copytree(inputs / "preset", tmp_path / "preset")
    (preset / "pretraining_heads.npz").unlink()
    (said,) = finetune_prompt.mistakes(*flags(inputs, tmp_path / "out"), f"--preset={preset}")
    assert "has no language modeling head" in said
    assert "never learned to tell which word belongs somewhere" in said
    assert not (tmp_path / "out").exists()


def test_help_is_instant():
    told = finetune_prompt.help()
    assert "--shots" in told and "--splits" in told
