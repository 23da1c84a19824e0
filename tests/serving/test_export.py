import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from cocolm_tf import UserError, files
from cocolm_tf.serving import export as export_module
from cocolm_tf.serving.client import TEXT_INPUTS, Export, find_version
from cocolm_tf.serving.export import (
    BATCHING_FILENAME,
    MAX_BATCH_SIZE,
    WARMUP_FILENAME,
    export_preset,
    next_version,
)
from cocolm_tf.training.preset import HEADS_FILENAME

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "serving"


def test_a_version_has_all_that_a_server_looks_for(exported: Path):
    assert os.listdir(exported) == ["1"]
    for name in ("saved_model.pb", "variables", "assets", WARMUP_FILENAME, BATCHING_FILENAME):
        assert (exported / "1" / name).exists()
    parameters = (exported / "1" / BATCHING_FILENAME).read_text()
    assert f"max_batch_size {{ value: {MAX_BATCH_SIZE} }}" in parameters
    # The threads are all models', and read from the server's own file.
    assert "num_batch_threads" not in parameters
    assert "num_batch_threads" in (DEPLOYMENT / "batching.config").read_text()


def test_the_compose_file_is_pinned_and_of_this_machine_alone():
    (service,) = yaml.safe_load((DEPLOYMENT / "compose.yaml").read_text())["services"].values()
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", service["image"])
    assert service["ports"] and all(port.startswith("127.0.0.1:") for port in service["ports"])
    for volume in service["volumes"][1:]:
        assert (DEPLOYMENT / volume.split(":")[0]).is_file()


def test_the_description_of_rest_has_every_signature(export: Export):
    schemas = yaml.safe_load((DEPLOYMENT / "openapi.yaml").read_text())["components"]["schemas"]
    described = set(schemas["Signature"]["enum"])
    assert set(TEXT_INPUTS) < described
    assert set(sum(TEXT_INPUTS.values(), ())) < set(schemas["Inputs"]["properties"])
    for name in ("correct", "correct_tsv", "embed"):
        assert set(export(name, texts=["a"])) <= set(schemas["Answer"]["properties"])


def test_an_export_may_lie_on_a_store(preset: Path, tmp_path: Path, to_store):
    # Not on `ram://`, which takes assets.extra for a part of assets.
    output, copied = f"file://{tmp_path}/exports", to_store(preset)
    assert export_preset(copied, ["embed"], output) == f"{output}/1"
    assert next_version(output) == 2
    texts = ["A cat sat.", "It slept."]
    vectors = Export(output)("embed", texts=texts)["embeddings"]
    with files.local_copy(output) as copy:
        np.testing.assert_array_equal(Export(copy)("embed", texts=texts)["embeddings"], vectors)
    with pytest.raises(UserError, match=f"--preset={copied} has no copy_head"):
        files.remove(f"{copied}/{HEADS_FILENAME}")
        export_preset(copied, ["correct"], output)
    # What was being copied when its writer was killed is no version.
    files.make_dirs(f"{output}/2")
    files.write_text(f"{output}/2/fingerprint.pb", "")
    assert find_version(output) == f"{output}/1"


def test_versions_count_up(tmp_path: Path):
    assert next_version(str(tmp_path / "new")) == 1
    for name in ("2", "10", ".11.unfinished", "notes"):
        (tmp_path / name).mkdir()
    assert next_version(str(tmp_path)) == 11
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; the output must be a folder"):
        next_version(str(tmp_path / "file"))


def test_a_version_that_is_there_stays(exported: Path, preset: Path):
    before = (exported / "1" / "saved_model.pb").stat()
    with pytest.raises(UserError, match="--version=1 is in .* already"):
        export_preset(str(preset), ["embed"], str(exported), version=1)
    assert (exported / "1" / "saved_model.pb").stat() == before


def test_what_fails_leaves_nothing(preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(signatures: object, default: str, tokenizer: object, folder: str) -> None:
        Path(folder, "saved_model.pb").write_text("half of it")
        # Under this name no server would find it.
        assert not (tmp_path / "out" / "1").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "write_saved_model", fail)
    with pytest.raises(OSError, match="No space"):
        export_preset(str(preset), ["embed"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_preset_without_what_is_asked_for_leaves_nothing(preset: Path, tmp_path: Path):
    headless, output = tmp_path / "headless", str(tmp_path / "out")
    headless.mkdir()
    with pytest.raises(UserError, match="is not a preset: it has no config.json"):
        export_preset(str(headless), ["embed"], output)
    for path in preset.iterdir():
        if path.name != "pretraining_heads.npz":
            (headless / path.name).symlink_to(path)
    with pytest.raises(UserError, match="has no copy_head: it must be one that pretraining wrote"):
        export_preset(str(headless), ["correct"], output)
    with pytest.raises(UserError, match="is not that of a CocoLMTextClassifier: it must be one"):
        export_preset(str(headless), ["classify"], output)
    assert not (tmp_path / "out").exists()
