import json
import os
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import write_tiny_preset

export_saved_model = Program("export_saved_model.py", timeout=600)
client = Program("cocolm_tf.serving", timeout=600)
TEXT = "a cat saw the red house on its hill"


@pytest.mark.slow
def test_versions_are_written_and_asked(tmp_path: Path):
    flags = [
        f"--preset={write_tiny_preset(tmp_path)}",
        "--signature=correct",
        f"--output_dir={tmp_path / 'first'}",
    ]
    done = export_saved_model(*flags, "--signature=embed", "--buckets=8,16", "--corrections=2")
    assert done.returncode == 0, done.stderr
    version = Path(done.stdout.splitlines()[-1])
    assert version == tmp_path / "first" / "1"
    assert (version / "saved_model.pb").is_file()
    # Nothing else, not even for a moment, is what a server would take for a version.
    assert os.listdir(tmp_path / "first") == ["1"]

    # The second has a byte that is no UTF-8, as Python hands it over.
    texts = [f"--text={TEXT}", "--text=caf\udce9"]
    done = client(str(tmp_path / "first"), *texts, "--threshold=0", "--color=always")
    assert done.returncode == 0, done.stderr
    assert "\x1b[31m" in done.stdout and "→" in done.stdout and "\ufffd" in done.stdout
    assert len(done.stdout.split("\n\n")[0].splitlines()) == 1 + len(TEXT.split())
    done = client(str(version), f"--text={TEXT}", f"--text={TEXT}", "--signature=embed")
    assert done.returncode == 0, done.stderr
    assert "1.000" in done.stdout and "\x1b" not in done.stdout
    texts, words = tmp_path / "texts.jsonl", tmp_path / "words.jsonl"
    texts.write_text(f"{json.dumps(TEXT)}\n" * 3)
    done = client(str(version), f"--input={texts}", f"--output={words}", "--batch_size=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(words)
    # Rounding depends on the batch; words do not.
    lines = [json.loads(line) for line in words.read_text().splitlines()]
    assert [line["words"] for line in lines] == [TEXT.split()] * 3


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--preset=/nowhere"], "--preset=/nowhere is not a folder."),
        (["--signature=translate"], "--signature"),
        (["--buckets=8,x"], "--buckets=8,x"),
        (["--buckets=16,8"], "--buckets=16,8 must be positive and ascending."),
        (["--version=0"], "--version"),
        (["--min_probability=2"], "--min_probability"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    tmp_path: Path, flags: list[str], complaint: str
):
    given = [f"--preset={tmp_path}", "--signature=embed", f"--output_dir={tmp_path / 'out'}"]
    (said,) = export_saved_model.mistakes_before_tensorflow(*given, *flags)
    assert complaint in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "there is nothing to ask: give a --text, --input or --page."),
        (["--input=texts.jsonl"], "--input and --output go together, and without --text."),
        (["--text=a", "--text=b", "--context=c"], "--context is given 1 times, but --text 2."),
    ],
    ids=str,
)
def test_a_question_that_is_none(tmp_path: Path, flags: list[str], complaint: str):
    (said,) = client.mistakes(str(tmp_path), *flags)
    assert complaint in said
