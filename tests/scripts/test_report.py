import json
from pathlib import Path

import pytest
from programs import Program

report = Program("report.py")


def test_help_shows_the_flags():
    told = report.help()
    for flag in ("--model_dir", "--text", "--text_file", "--seed", "--output_dir"):
        assert flag in told


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model_dir=/nowhere", "--output_dir=out"], "--model_dir=/nowhere is not a folder."),
        (
            ["--model_dir=.", "--output_dir=out", "--text_file=/nowhere"],
            "--text_file=/nowhere: No such file",
        ),
        (
            ["--model_dir=.", "--output_dir=out", "--text_file=latin"],
            "latin:1 is not UTF-8",
        ),
        (["--model_dir=.", "--output_dir=out", "--text_file=blank"], "has no sentences"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
):
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    (tmp_path / "blank").write_text("\n \n")
    monkeypatch.chdir(tmp_path)
    (said,) = report.mistakes_before_tensorflow(*arguments)
    assert complaint in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_ends_with_the_path_of_the_report(tmp_path: Path):
    """Of a run that has only just started; the rest is tested with `write_report`."""
    model = tmp_path / "run"
    model.mkdir()
    (model / "config.yaml").write_text(
        "model: {vocabulary_size: 97, num_layers: 1, num_heads: 2, hidden_dim: 8, "
        "intermediate_dim: 16}\nauxiliary: {num_layers: 1}\n"
    )
    line = {"step": 100, "split": "train", "seconds": 9.5, "loss": 40.0}
    (model / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    done = report(f"--model_dir={model}", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    assert (tmp_path / "out" / "index.html").stat().st_size > 1000
