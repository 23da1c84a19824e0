"""The folder is loaded by `transformers` itself, and its code compared with the backbone."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from conversion_backbones import make_backbone
from tiny_presets import write_tiny_preset

from cocolm_tf import (
    CocoLMBackbone,
    CocoLMQuestionAnswerer,
    CocoLMTextClassifier,
    CocoLMTextEmbedder,
    UserError,
)
from cocolm_tf.conversion.transformers_folder import write_transformers_folder
from cocolm_tf.modeling.transformer import relative_position_buckets

TEXTS = ["a cat saw the red house", "rain", "the dog sang to a bird " * 4]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_preset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def load(transformers, auto: str, folder: Path):
    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()


def outputs_of(transformers, model, folder: Path, *texts):
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(*texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return inputs, model(**inputs)


def test_the_encoder_is_the_backbone(transformers, preset, tmp_path):
    folder = tmp_path / "folder"
    write_transformers_folder(preset, str(folder))
    model = load(transformers, "AutoModel", folder)
    inputs, outputs = outputs_of(transformers, model, folder, TEXTS)
    backbone = CocoLMBackbone.from_preset(preset)
    ids, mask = (inputs[name].numpy() for name in ("input_ids", "attention_mask"))
    features = backbone_inputs(preset, TEXTS)
    np.testing.assert_array_equal(features["token_ids"][:, : ids.shape[1]], ids)
    expected = np.array(backbone({"token_ids": ids, "padding_mask": mask}))
    found = outputs.last_hidden_state.numpy()
    np.testing.assert_allclose(found[mask > 0], expected[mask > 0], atol=1e-5)


def backbone_inputs(preset: str, texts: list[str]) -> dict[str, np.ndarray]:
    embedder = CocoLMTextEmbedder.from_preset(preset)
    return {name: np.array(value) for name, value in embedder.preprocessor(texts).items()}


@pytest.mark.parametrize("bins", [0, 8])
def test_with_and_without_relative_positions(transformers, bins):
    import torch

    from cocolm_tf.conversion import modeling_cocolm
    from cocolm_tf.conversion.layout import configuration_of, encoder_entries, table_entries

    backbone = make_backbone(bins, positions=40)
    config = modeling_cocolm.CocoLMConfig(**configuration_of(backbone, None, need_pooler=False))
    model = modeling_cocolm.CocoLMModel(config).eval()
    entries = [*table_entries(backbone), *encoder_entries(backbone)]
    tensors = {
        name: torch.tensor(tensor) for entry in entries for name, tensor in entry.tensors().items()
    }
    model.load_state_dict(tensors)
    ids = np.random.default_rng(0).integers(5, 50, size=(3, 37))
    ids[1, 9:] = 1
    with torch.no_grad():
        found = model(torch.from_numpy(ids)).last_hidden_state.numpy()
        half = model.to(torch.bfloat16)(torch.from_numpy(ids)).last_hidden_state
    expected = np.array(backbone({"token_ids": ids.astype(np.int32), "padding_mask": ids != 1}))
    np.testing.assert_allclose(found[ids != 1], expected[ids != 1], atol=1e-5)
    assert torch.isfinite(half).all()


def test_buckets_are_the_backbones(transformers):
    from cocolm_tf.conversion.modeling_cocolm import _buckets

    for sizes in ((32, 128, 512), (64, 128, 512), (128, 256, 512), (8, 12, 24), (32, 128, 40)):
        np.testing.assert_array_equal(_buckets(*sizes), relative_position_buckets(*sizes))


def test_a_classifier_brings_its_head(transformers, preset, tmp_path):
    random.seed(0)
    classifier = CocoLMTextClassifier.from_preset(
        preset, num_classes=3, label_names=["bad", "fair", "good"]
    )
    classifier.save_to_preset(str(tmp_path / "preset"))
    write_transformers_folder(str(tmp_path / "preset"), str(tmp_path / "folder"))
    model = load(transformers, "AutoModelForSequenceClassification", tmp_path / "folder")
    _, outputs = outputs_of(transformers, model, tmp_path / "folder", TEXTS, TEXTS[::-1])
    expected = classifier.predict((TEXTS, TEXTS[::-1]), verbose=0)
    # One pair is longer than the model: the longer text is cut here and there alike.
    np.testing.assert_allclose(outputs.logits[:2], expected[:2], atol=1e-5)
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert not (tmp_path / "folder" / "modules.json").exists()


def test_a_question_answerer_brings_its_head(transformers, preset, tmp_path):
    answerer = CocoLMQuestionAnswerer.from_preset(preset)
    answerer.save_to_preset(str(tmp_path / "preset"))
    write_transformers_folder(str(tmp_path / "preset"), str(tmp_path / "folder"))
    model = load(transformers, "AutoModelForQuestionAnswering", tmp_path / "folder")
    inputs, outputs = outputs_of(transformers, model, tmp_path / "folder", ["a cat"], ["the rain"])
    features = {
        "token_ids": inputs["input_ids"].numpy(),
        "padding_mask": inputs["attention_mask"].numpy(),
    }
    expected = answerer(features)
    np.testing.assert_allclose(outputs.start_logits, expected["start"], atol=1e-5)
    np.testing.assert_allclose(outputs.end_logits, expected["end"], atol=1e-5)


@pytest.mark.parametrize("options", [{"pooling_mode": "mean"}, {"dimensions": [8, 4]}])
def test_sentence_transformers_gives_the_embedders_vectors(preset, tmp_path, options):
    library = pytest.importorskip("sentence_transformers")
    embedder = CocoLMTextEmbedder.from_preset(preset, **options)
    embedder.save_to_preset(str(tmp_path / "preset"))
    write_transformers_folder(str(tmp_path / "preset"), str(tmp_path / "folder"))
    model = library.SentenceTransformer(str(tmp_path / "folder"), trust_remote_code=True)
    expected = embedder.predict(TEXTS, verbose=0)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)


def test_the_folder_without_pytorch(preset, tmp_path):
    embedder = CocoLMTextEmbedder.from_preset(preset, pooling_mode="mean", dimensions=[4])
    embedder.save_to_preset(str(tmp_path / "preset"))
    assert write_transformers_folder(str(tmp_path / "preset"), str(tmp_path / "folder")) == []
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("folder/**/*"))
    assert [name.removeprefix("folder/") for name in names] == [
        "1_Pooling",
        "1_Pooling/config.json",
        "2_Dense",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modeling_cocolm.py",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    modules = json.loads((tmp_path / "folder" / "modules.json").read_text())
    assert [one["type"].rpartition(".")[2] for one in modules] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ]
    with pytest.raises(UserError, match="is not empty"):
        write_transformers_folder(str(tmp_path / "preset"), str(tmp_path / "folder"))
