"""Loading presets for analysis: the models of a run, and sentence vectors."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import load_config
from cocolm_tf.training.preset import (
    BACKBONE_FILENAME,
    HEADS_FILENAME,
    load_preset,
    load_pretrained,
)


def load_run(
    model_dir: str, changes: Sequence[str] = ()
) -> tuple[CocoLMPretrainer, CocoLMTokenizer]:
    """Loads the models and tokenizer of a finished run, in float32."""
    config_file = os.path.join(model_dir, "config.yaml")
    if not files.is_file(config_file):
        raise UserError(f"{model_dir} has no config.yaml: give the --model_dir of a run.")
    preset = os.path.join(model_dir, "preset")
    if not files.is_file(os.path.join(preset, BACKBONE_FILENAME)):
        raise UserError(f"{model_dir} has no preset yet: it is written when the run ends.")
    config = load_config(config_file, ["runtime.precision=float32", *changes])
    pretrainer = build_pretrainer(config, mask_token_id=config.model.vocabulary_size - 1)
    with files.local_copy(preset) as local:
        load_preset(pretrainer, local)
        return pretrainer, CocoLMTokenizer.from_preset(local)


class SentenceEncoder:
    """Gives sentences the vectors that they have without fine-tuning: the [CLS] states.

    Args:
        preset: a folder with a main model and its tokenizer.
        projected: Whether they pass the projection of contrastive learning, as they did
            when they were compared in pretraining; for presets that have one.

    Raises:
        UserError: if it is not such a preset, or has no projection.

    Example:
    ```python
    SentenceEncoder("runs/first/preset").encode(["A cat sat.", "It slept."])  # [2, H]
    ```
    """

    def __init__(self, preset: str, projected: bool = False) -> None:
        pretrainer, self.tokenizer = load_pretrained(preset)
        self.backbone = pretrainer.backbone
        self.projection = getattr(pretrainer, "projection", None) if projected else None
        if projected and not self.projection:
            raise UserError(f"--preset={preset} has no projection: {HEADS_FILENAME} lacks it.")

    def encode(self, texts: Sequence[str], batch_size: int = 32, name: str = "") -> np.ndarray:
        """The vectors of sentences, [N, H] float32; too long ones are truncated."""
        limit = self.backbone.max_sequence_length
        ids = [ids[: limit - 2] for ids in self.tokenizer(list(texts))]
        # Sorted by length, for little padding.
        order = np.argsort([len(row) for row in ids], kind="stable")
        vectors = np.zeros([len(ids), self.backbone.hidden_dim], np.float32)
        for start in tqdm(range(0, len(ids), batch_size), desc=name or "encoding", unit="batch"):
            chosen = order[start : start + batch_size]
            rows = [ids[i] for i in chosen]
            length = max(map(len, rows)) + 2
            inputs = self.tokenizer.pack(rows, sequence_length=length)
            mask = tf.cast(inputs["padding_mask"], tf.int32)
            vectors[chosen] = self._starts(inputs["token_ids"], mask).numpy()
        return vectors

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2, autograph=False)
    def _starts(self, token_ids: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
        positions = tf.zeros([tf.shape(token_ids)[0], 1], tf.int32)
        states = self.backbone.states_at(inputs, positions)[:, 0]
        return self.projection(states) if self.projection else states
