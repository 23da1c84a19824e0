"""COCO-LM for TensorFlow 2 and Keras 3: pretrain, fine-tune and serve.

The public names load on first use, so that `import cocolm_tf` and the programs' `--help` do not
wait for TensorFlow.
"""

import os

from cocolm_tf import lazy

# Keras reads its backend when it is first imported.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "errors": ["UserError"],
        "finetuning.models.prompt_classifier": [
            "CocoLMPromptClassifier",
            "CocoLMPromptClassifierPreprocessor",
        ],
        "finetuning.models.question_answerer": [
            "CocoLMQuestionAnswerer",
            "CocoLMQuestionAnswererPreprocessor",
        ],
        "finetuning.models.text_classifier": [
            "CocoLMTextClassifier",
            "CocoLMTextClassifierPreprocessor",
        ],
        "finetuning.models.text_embedder": [
            "CocoLMTextEmbedder",
            "CocoLMTextEmbedderPreprocessor",
        ],
        "finetuning.models.token_classifier": [
            "CocoLMTokenClassifier",
            "CocoLMTokenClassifierPreprocessor",
        ],
        "losses": [],
        "modeling.backbone": ["CocoLMBackbone"],
        "modeling.pretrainer": ["CocoLMPretrainer"],
        "tokenization.tokenizer": ["CocoLMTokenizer"],
    },
)
__all__ += ["__version__"]
