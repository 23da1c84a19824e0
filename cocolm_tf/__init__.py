"""COCO-LM for TensorFlow 2 and Keras 3: pretrain, fine-tune and serve.

The public names load on first use, so that `import cocolm_tf` and the programs' `--help` do not
wait for TensorFlow.
"""

import importlib
import os
from typing import Any

# Keras reads its backend when it is first imported.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

__version__ = "0.1.0"

_HOMES = {
    "CocoLMBackbone": "cocolm_tf.modeling.backbone",
    "CocoLMPretrainer": "cocolm_tf.modeling.pretrainer",
    "CocoLMPromptClassifier": "cocolm_tf.finetuning.prompt_classifier",
    "CocoLMPromptClassifierPreprocessor": "cocolm_tf.finetuning.prompt_classifier_preprocessor",
    "CocoLMQuestionAnswerer": "cocolm_tf.finetuning.question_answerer",
    "CocoLMQuestionAnswererPreprocessor": "cocolm_tf.finetuning.question_answerer_preprocessor",
    "CocoLMTextClassifier": "cocolm_tf.finetuning.text_classifier",
    "CocoLMTextClassifierPreprocessor": "cocolm_tf.finetuning.text_classifier_preprocessor",
    "CocoLMTokenizer": "cocolm_tf.tokenization.tokenizer",
    "UserError": "cocolm_tf.errors",
    "losses": None,
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if home is None:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
