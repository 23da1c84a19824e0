import json
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import write_tiny_preset

from cocolm_tf.analysis.runs import X_AXES

analyze = Program("analyze.py")
LINE = '{"step": %d, "split": "%s", "seconds": %d, "loss": 9.0, "positive_cosine": 0.5}\n'


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A run that still goes on."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text("trainer: {batch_size: 8}\n")
    lines = [LINE % (step, "train", step) for step in (5, 10)] + [LINE % (10, "validation", 11)]
    (path / "metrics.jsonl").write_text("".join(lines))
    return path


def test_help_names_every_axis():
    told = analyze.help()
    assert "|".join(X_AXES) in told.replace("\n", "").replace(" ", "")


@pytest.mark.slow
def test_a_preset_and_runs_are_analyzed(model_dir: Path, tmp_path: Path):
    preset = write_tiny_preset(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(
        '{"sentence1": "a cat saw rain", "sentence2": "a dog saw rain", "score": 5}\n'
        '{"sentence1": "the red house", "sentence2": "the house on its hill", "score": 5}\n'
    )
    (tmp_path / "mistakes.tsv").write_text(
        "original\tcorrupted\na cat saw the house\ta cat red the house\n"
    )
    (tmp_path / "minimal.jsonl").write_text(
        '{"sentence_good": "a cat saw the house", "sentence_bad": "a cat house the saw"}\n'
    )
    experiment = {"task": "RTE", "model": preset, "metric": "accuracy", "train_fraction": 1.0}
    experiment |= {"preset_fingerprint": "", "dev": {"dev": {"accuracy": {"values": [0.5, 0.6]}}}}
    few = experiment | {"train_fraction": 0.1}
    (tmp_path / "results.json").write_text(json.dumps({"experiments": [experiment, few]}))
    done = analyze(
        f"--preset=mine={preset}",
        f"--pairs={tmp_path / 'pairs.jsonl'}",
        f"--corrupted_texts={tmp_path / 'mistakes.tsv'}",
        f"--minimal_pairs={tmp_path / 'minimal.jsonl'}",
        f"--scores={tmp_path}",
        f"--model_dir={model_dir}",
        f"--model_dir=again={model_dir}",
        "--x_axis=hours",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "mine" in page and "again" in page
    figures = {file.stem for file in (tmp_path / "out").glob("*.png")}
    assert figures >= {"cosines", "map", "calibration_texts", "frequency_texts", "minimal_pairs"}
    assert figures >= {"scores_over_fractions", "loss", "cosine"} and "lm_loss" not in figures
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"spaces", "detection", "calibration", "minimal_pairs", "scores", "runs"}
    assert set(results["minimal_pairs"]["mine"]["all"]) == {"masked", "corrective", "detection"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output_dir=out"], "there is nothing to analyze"),
        (["--output_dir=out", "--preset=/nowhere"], "--preset=/nowhere is not a folder."),
        (["--output_dir=out", "--model_dir=a=/nowhere"], "--model_dir=/nowhere is not a folder."),
        (["--output_dir=out", "--preset=."], "--preset needs one of --pairs, --data"),
        (["--output_dir=out", "--preset=a=.", "--preset=a=.", "--pairs=p"], "two are called 'a'"),
        (["--output_dir=out", "--model_dir=.", "--pairs=p"], "--pairs is for presets"),
        (["--output_dir=out", "--scores=/nowhere"], "--scores=/nowhere is not a folder."),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
):
    monkeypatch.chdir(tmp_path)
    (said,) = analyze.mistakes_before_tensorflow(*arguments)
    assert complaint in said
    assert not (tmp_path / "out").exists()
