import json
import random
from pathlib import Path

import numpy as np
import pytest
from programs import Program
from tiny_presets import opinions, write_tiny_preset

finetune_correction = Program("finetune_correction.py", timeout=600)
evaluate_corrections = Program("evaluate_corrections.py", timeout=600)
FEW_STEPS = (
    "trainer.train_steps=4,trainer.log_interval=2,trainer.checkpoint_interval=2,"
    "trainer.validation_interval=4,optimizer.warmup_steps=1,trainer.batch_size=4,"
    "data.sequence_length=16"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_preset(folder)
    draw = random.Random(0)
    with open(folder / "essays.jsonl", "w") as file:
        for text, _ in opinions(40, seed=1):
            words = text.split()
            words[draw.randrange(len(words))] = "dgo"
            file.write(json.dumps({"text": " ".join(words), "corrected": text}) + "\n")
    (folder / "essays.m2").write_text(
        "S teh cat saw a dog\nA 0 1|||R:SPELL|||the|||REQUIRED|||-NONE-|||0\n\n" * 4
    )
    return folder


def flags(inputs: Path, model_dir: Path) -> list[str]:
    return [
        f"--preset={inputs}/preset",
        f"--train_file={inputs}/essays.jsonl",
        f"--model_dir={model_dir}",
    ]


@pytest.mark.slow
def test_a_preset_learns_from_a_table_and_is_scored(inputs: Path, tmp_path: Path):
    done = finetune_correction(*flags(inputs, tmp_path / "run"), f"--params_override={FEW_STEPS}")
    assert done.returncode == 0, done.stderr
    preset = tmp_path / "run" / "preset"
    assert done.stdout.splitlines()[-1] == str(preset)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    assert sorted(np.load(preset / "pretraining_heads.npz").files) == [
        "copy_head.kernel",
        "lm_head.bias",
    ]
    assert "essays.jsonl" in (preset / "README.md").read_text()

    corrected = tmp_path / "corrected.txt"
    done = evaluate_corrections(
        f"--preset={preset}", f"--m2={inputs}/essays.m2", f"--output_file={corrected}"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["texts"], found["words"], found["wrong_words"]) == (2, 10, 2)
    assert found["by_kind"].keys() == {"R:SPELL"}
    assert len(corrected.read_text().splitlines()) == 4


@pytest.mark.slow
def test_another_run_is_not_gone_on_with(inputs: Path, tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"--preset": "another"}))
    short = "--params_override=data.sequence_length=16"
    *_, said = finetune_correction.mistakes(*flags(inputs, tmp_path), short)
    assert said.startswith(f"error: --model_dir={tmp_path} has a run with --preset=another")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--docstrings"], "give --train_file or one of --input, --tfds and --docstrings."),
        (
            ["--params_override=data.sequence_length=500"],
            "data.sequence_length=500 is more than the model's 24 positions.",
        ),
        (
            ["--params_override=data.sequence_length=16,objective.lm_weight=0"],
            "objective.copy_weight and objective.lm_weight must be more than 0",
        ),
        (["--corrected_column=right"], "has no field 'right'"),
    ],
)
def test_mistakes_in_finetuning_are_one_line(
    inputs: Path, tmp_path: Path, changed: list[str], said: str
):
    *_, told = finetune_correction.mistakes(*flags(inputs, tmp_path / "out"), *changed)
    assert said in told


def test_mistakes_in_scoring_are_one_line(inputs: Path):
    preset = f"--preset={inputs}/preset"
    *_, told = evaluate_corrections.mistakes(preset)
    assert told == "error: give one of --made_in, --table and --m2."
    *_, told = evaluate_corrections.mistakes(preset, f"--m2={inputs}/essays.jsonl")
    assert "essays.jsonl:1 is no line of an M2 file" in told
