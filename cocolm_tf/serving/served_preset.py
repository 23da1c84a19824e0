"""A preset's models, loaded for serving."""

import functools
import os
from typing import Any

import keras

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.finetuning.models.text_embedder import CocoLMTextEmbedder
from cocolm_tf.finetuning.models.token_classifier import CocoLMTokenClassifier
from cocolm_tf.finetuning.presets import converted_head, load_task, task_name
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import Pretrainer
from cocolm_tf.training.preset import HEADS_FILENAME, check_finite_weights, load_pretrained

# By task model: the name of its head in a converted checkpoint, and the program that trains it.
_TASKS = {
    CocoLMTextClassifier: ("classifier", "finetune_glue.py"),
    CocoLMQuestionAnswerer: ("question_answerer", "finetune_squad.py"),
    CocoLMTextEmbedder: ("", "finetune_embedder.py"),
    CocoLMTokenClassifier: ("", "finetune_tokens.py"),
}


class ServedPreset:
    """The parts of a preset, each loaded when it is first used; UserError for missing ones."""

    def __init__(self, directory: str) -> None:
        if not files.is_file(os.path.join(directory, "config.json")):
            raise UserError(f"--preset={directory} is not a preset: it has no config.json.")
        self.directory = directory

    @functools.cached_property
    def tokenizer(self) -> CocoLMTokenizer:
        """The tokenizer."""
        return load_vocabulary(self.directory)

    @property
    def backbone(self) -> CocoLMBackbone:
        """The encoder."""
        return (self._task or self._pretrained).backbone

    def task(self, kind: type[keras.Model]) -> Any:
        """The fine-tuned model, with its head."""
        if isinstance(self._task, kind):
            return self._task
        head, program = _TASKS[kind]
        if head and converted_head(self.directory, head):
            return kind.from_preset(self.directory, dtype="float32")
        raise UserError(
            f"--preset={self.directory} is not that of a {kind.__name__}: it must be one that "
            f"{program} wrote."
        )

    def head(self, name: str) -> Any:
        """A head of pretraining: `copy_head`, `lm_head` or `projection`."""
        head = getattr(self._pretrained, name, None)
        if head is None:
            raise UserError(
                f"--preset={self.directory} has no {name}: it must be one that pretraining wrote, "
                f"with that part of the objective (see its {HEADS_FILENAME})."
            )
        return head

    def embedding(self, pooling: str = "", dimension: int = 0) -> tuple[str, int]:
        """The pooling and the dimension of vectors, 0 for all."""
        # What is left open, "" or 0, is as the preset's embedder was trained, or "cls" and all.
        width = self.backbone.hidden_dim
        if dimension > width:
            raise UserError(f"--dimension={dimension} is more than the {width} of a vector.")
        embedder = self._task if isinstance(self._task, CocoLMTextEmbedder) else None
        if embedder is None or pooling not in ("", embedder.pooling_mode):
            return pooling or "cls", dimension
        if dimension and dimension not in embedder.dimensions:
            trained = ", ".join(map(str, embedder.dimensions))
            raise UserError(f"--dimension={dimension}: the vectors were trained at {trained}.")
        return embedder.pooling_mode, dimension or embedder.dimensions[0]

    @functools.cached_property
    def _task(self) -> Any:
        """The fine-tuned model with its head; None if the preset is only pretrained."""
        if not task_name(self.directory):
            return None
        task = load_task(self.directory, list(_TASKS), dtype="float32")
        check_finite_weights(task, self.directory)
        return task

    @functools.cached_property
    def _pretrained(self) -> Pretrainer:
        """The main model with the heads of pretraining that the preset has."""
        return load_pretrained(self.directory, with_auxiliary=False)[0]
