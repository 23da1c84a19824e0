import json
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import opinions, write_tiny_preset

from cocolm_tf.serving.export import export_preset

finetune_tokens = Program("finetune_tokens.py", timeout=600)


@pytest.mark.slow
def test_spans_from_a_file_to_an_export(tmp_path: Path):
    write_tiny_preset(tmp_path)
    with open(tmp_path / "notes.jsonl", "w") as file:
        for text, label in opinions(40, seed=1):
            start = text.index(next(word for word in text.split() if word in _OPINIONS))
            end = (text + " ").index(" ", start)
            row = {"note": text, "spans": [[start, end, ("BAD", "GOOD")[label]]]}
            file.write(json.dumps(row) + "\n")
    flags = [
        f"--preset={tmp_path}/preset",
        f"--train_file={tmp_path}/notes.jsonl",
        f"--test_file={tmp_path}/notes.jsonl",
        f"--output_dir={tmp_path}/out",
        "--params_override=trainer.epochs=1,trainer.batch_size=8",
    ]
    *_, said = finetune_tokens.mistakes(*flags)
    assert said == (
        f"error: {tmp_path}/notes.jsonl:1 has neither 'text', a text, nor 'tokens', its words: it "
        "has note, spans; 40 of 40 texts are bad."
    )
    assert not (tmp_path / "out").exists()
    done = finetune_tokens(*flags, "--text_field=note", "--scheme=BIOES", "--name=Notes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/out/results.md"
    assert "Notes, seed 0: f1 " in done.stderr
    run = tmp_path / "out" / "Notes" / "seed_0"
    lines = (run / "predictions" / "test.jsonl").read_text().splitlines()
    assert len(lines) == 40
    export_preset(str(run / "preset"), ["tag"], str(tmp_path / "exports"))
    assert (tmp_path / "exports" / "1" / "saved_model.pb").exists()


_OPINIONS = ("good", "great", "fine", "bad", "awful", "poor")
