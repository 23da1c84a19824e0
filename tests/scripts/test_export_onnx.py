import os
import re
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import write_tiny_preset

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

export_onnx = Program("export_onnx.py", timeout=600)
DOCS = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text()


@pytest.mark.slow
def test_the_docs_client_asks_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    preset, output = write_tiny_preset(tmp_path), tmp_path / "onnx"
    flags = [f"--preset={preset}", "--signature=embed", f"--output_dir={output}"]
    done = export_onnx(*flags, "--signature=correct", "--corrections=2")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(output)) == ["correct.onnx", "embed.onnx", "tokenizer.json"]
    (client,) = re.findall(r"```python\n(import numpy.*?)```", DOCS, re.DOTALL)
    client = client.replace("onnx/first", str(output)).replace("512", "16").replace("> 0.5", "> 0")
    exec(client, {})
    cosine, *words = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"cosine -?[01]\.\d{3}", cosine)
    assert words and all(" -> " in line for line in words)
    assert (
        "is not that of a CocoLMTextClassifier"
        in export_onnx.mistakes(
            f"--preset={preset}", "--signature=classify", f"--output_dir={tmp_path / 'none'}"
        )[-1]
    )
    assert not (tmp_path / "none").exists()


def test_what_is_there_stays(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("")
    given = [f"--preset={tmp_path}", "--signature=embed", f"--output_dir={tmp_path / 'out'}"]
    (said,) = export_onnx.mistakes_before_tensorflow(*given)
    assert "is not empty" in said
