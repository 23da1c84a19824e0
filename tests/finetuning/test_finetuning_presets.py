import json
import shutil
from pathlib import Path

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.presets import backbone_config
from cocolm_tf.fingerprints import fingerprint


@pytest.fixture
def copy(tiny_preset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_preset, tmp_path / "preset"))


def test_the_architecture(tiny_preset):
    assert backbone_config(tiny_preset)["hidden_dim"] == 16


def test_the_fingerprint_is_that_of_the_weights_and_the_vocabulary(tiny_preset, copy: Path):
    assert fingerprint(str(copy)) == fingerprint(tiny_preset)
    (copy / "README.md").write_text("A card.")
    assert fingerprint(str(copy)) == fingerprint(tiny_preset)
    seen = {fingerprint(tiny_preset)}
    for name in ("model.weights.h5", "assets/tokenizer/dict.txt", "config.json"):
        with open(copy / name, "ab") as file:
            file.write(b"\n")
        assert fingerprint(str(copy)) not in seen
        seen.add(fingerprint(str(copy)))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", None, "is not a preset: it has no config.json"),
        ("config.json", "{", "config.json does not describe a model"),
        ("config.json", "[]", "config.json does not describe a model"),
        (
            "config.json",
            json.dumps({"registered_name": "keras_hub>BertBackbone", "config": {}}),
            "describes a keras_hub>BertBackbone, not a cocolm_tf>CocoLMBackbone",
        ),
        ("model.weights.h5", None, "has no weights"),
        ("tokenizer.json", None, "has no tokenizer"),
    ],
)
def test_what_is_no_preset_is_named(copy: Path, name, content, complaint):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        backbone_config(str(copy))
