"""A small model with a vocabulary, its preset and its export, for all tests of the room."""

import functools
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving_texts import MAX_LENGTH

from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.finetuning.models.token_classifier import CocoLMTokenClassifier
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.serving.client import Export
from cocolm_tf.serving.encoder import Encoder, InferenceEncoder
from cocolm_tf.serving.export import export_preset
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import Settings
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.preset import save_preset

SENTENCES = [
    "The cat sat on the mat, and the dog (a big one) didn't like it; they'll fight!",
    "She said: \"I'm sure he's seen the other cats.\" The others weren't there...",
    "In 1984, 1,250 cats and 30.5% of the dogs lived there - or so they've told us?",
    "Some words repeat: the then there these those that this them they. On and on and on.",
    "Zebras, jackals & quick foxes walk by; every kind of vowel gives us something to merge.",
]
SETTINGS = Settings(buckets=(8, 16), num_corrections=3, max_tokens=300)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CocoLMTokenizer:
    folder = tmp_path_factory.mktemp("vocabularies") / "cased"
    return train_vocabulary(SENTENCES * 3, 150, folder, character_coverage=1.0)


def untrained(tokenizer: CocoLMTokenizer) -> CocoLMPretrainer:
    """A model with weights large enough for its answers to differ."""
    random.seed(0)
    config = PretrainingConfig()
    model = {
        "vocabulary_size": tokenizer.vocabulary_size(),
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "max_sequence_length": MAX_LENGTH,
        "relative_position_bins": 8,
        "relative_position_max_distance": 12,
    }
    config.override({"model": model, "auxiliary": {"replacements": "random"}})
    pretrainer = build_pretrainer(config, tokenizer.mask_token_id)
    rng = np.random.default_rng(0)
    for variable in pretrainer.trainable_variables:
        variable.assign(rng.normal(0.0, 0.3, variable.shape))
    return pretrainer


@pytest.fixture(scope="session")
def pretrainer(tokenizer: CocoLMTokenizer) -> CocoLMPretrainer:
    return untrained(tokenizer)


@pytest.fixture(scope="session")
def parts_in_bytes(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What of `ServedPreset` a corrector takes, of a vocabulary with byte fallback."""
    folder = tmp_path_factory.mktemp("vocabularies") / "bytes"
    tokenizer = train_vocabulary(SENTENCES, 390, folder, byte_fallback=True)
    model = untrained(tokenizer)
    heads = {"copy_head": model.copy_head, "lm_head": model.lm_head}
    return SimpleNamespace(tokenizer=tokenizer, backbone=model.backbone, head=heads.get)


@pytest.fixture(scope="session")
def preset(pretrainer: CocoLMPretrainer, tokenizer: CocoLMTokenizer, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("presets") / "pretrained"
    save_preset(pretrainer, tokenizer, str(folder))
    return folder


@pytest.fixture(scope="session")
def parts(preset: Path) -> ServedPreset:
    return ServedPreset(str(preset))


@pytest.fixture(scope="session")
def encoder(parts: ServedPreset) -> Encoder:
    return Encoder(InferenceEncoder(parts.backbone), SETTINGS.buckets)


@pytest.fixture(scope="session")
def exported(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an export's versions: `correct`, the default, and `embed`."""
    folder = tmp_path_factory.mktemp("exports") / "pretrained"
    export_preset(str(preset), ["correct", "embed"], str(folder), settings=SETTINGS)
    return folder


@pytest.fixture(scope="session")
def export(exported: Path) -> Export:
    return Export(str(exported))


def with_large_weights(*layers: Any) -> None:
    """Makes a fresh head's answers differ."""
    rng = np.random.default_rng(1)
    for layer in layers:
        layer.kernel.assign(rng.normal(0.0, 1.0, layer.kernel.shape))


@pytest.fixture(scope="session")
def classifier(preset: Path) -> CocoLMTextClassifier:
    names = ["bad", "neither", "good"]
    classifier = CocoLMTextClassifier.from_preset(preset, num_classes=3, label_names=names)
    with_large_weights(classifier.pooled_dense, classifier.output_dense)
    return classifier


@pytest.fixture(scope="session")
def rater(preset: Path) -> CocoLMTextClassifier:
    """A classifier that gives a number."""
    rater = CocoLMTextClassifier.from_preset(preset, num_classes=1)
    with_large_weights(rater.pooled_dense, rater.output_dense)
    return rater


@pytest.fixture(scope="session")
def answerer(preset: Path) -> CocoLMQuestionAnswerer:
    answerer = CocoLMQuestionAnswerer.from_preset(preset)
    with_large_weights(answerer.answer_logits)
    return answerer


@pytest.fixture(scope="session")
def tagger(preset: Path) -> CocoLMTokenClassifier:
    names = ["LOC", "PER"]
    tagger = CocoLMTokenClassifier.from_preset(preset, label_names=names, scheme="BIOES")
    with_large_weights(tagger.tag_logits)
    return tagger


@pytest.fixture(scope="session")
def exports(
    request: pytest.FixtureRequest, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folders of exports: `pretrained`, `classifier`, `rater`, `answerer` and `tagger`."""
    folders = {"pretrained": exported}
    for name, *signatures in (
        ("classifier", "classify", "embed"),
        ("rater", "classify"),
        ("answerer", "answer"),
        ("tagger", "tag"),
    ):
        folder = tmp_path_factory.mktemp("fine_tuned")
        request.getfixturevalue(name).save_to_preset(str(folder / "preset"))
        folders[name] = folder / name
        preset = str(folder / "preset")
        export_preset(preset, signatures, str(folders[name]), settings=SETTINGS)
    return folders


@pytest.fixture(scope="session")
def load(exports: dict[str, Path]) -> Callable[[str], Export]:
    """Loads a model's export, each of them once."""
    return functools.cache(lambda model: Export(str(exports[model])))
