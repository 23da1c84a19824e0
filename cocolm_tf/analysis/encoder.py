"""A preset's main model, as what turns sentences into vectors."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.heads import Transform
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME, CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.preset import HEADS_FILENAME, check_finite_weights


class SentenceEncoder:
    """Gives sentences the vectors that they have without fine-tuning: the [CLS] states.

    Args:
        preset: a folder with a main model and its tokenizer.
        projected: bool. Whether they pass the projection of contrastive learning, as they did
            when they were compared in pretraining; for presets that have one.

    Raises:
        UserError: if it is not such a preset, or has no projection.

    Example:
    ```python
    SentenceEncoder("runs/first/preset").encode(["A cat sat.", "It slept."])  # [2, H]
    ```
    """

    def __init__(self, preset: str, projected: bool = False) -> None:
        for name in ("config.json", CONFIG_FILENAME):
            if not files.is_file(os.path.join(preset, name)):
                raise UserError(f"--preset={preset} is not a preset: it has no {name}.")
        with files.local_copy(preset) as local:
            try:
                self.backbone = CocoLMBackbone.from_preset(local, dtype="float32")
            except (ValueError, TypeError, KeyError, OSError) as error:
                raise UserError(
                    f"--preset={local} cannot be loaded: {' '.join(str(error).split())}"
                ) from error
            check_finite_weights(self.backbone, local)
            self.projection = _load_projection(local, self.backbone) if projected else None
            self.tokenizer: CocoLMTokenizer = load_vocabulary(local)

    def encode(self, texts: Sequence[str], batch_size: int = 32, name: str = "") -> np.ndarray:
        """Computes vectors.

        Args:
            texts: sentences; what of them is longer than the model reads is cut off.
            batch_size: int. Sentences at a time.
            name: what to show beside the progress.

        Returns:
            [N, H] float32, in the order of the texts.
        """
        limit = self.backbone.max_sequence_length
        ids = [ids[: limit - 2] for ids in self.tokenizer(list(texts))]
        # Alike in length, so that little is padding.
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


def _load_projection(preset: str, backbone: CocoLMBackbone) -> Transform:
    projection = Transform(backbone.hidden_dim, backbone.layer_norm_epsilon)
    projection.build((None, backbone.hidden_dim))
    path = os.path.join(preset, HEADS_FILENAME)
    saved = np.load(path) if files.is_file(path) else {}
    variables = {
        "projection.dense.kernel": projection.dense.kernel,
        "projection.dense.bias": projection.dense.bias,
        "projection.norm.gamma": projection.norm.gamma,
        "projection.norm.beta": projection.norm.beta,
    }
    for name, variable in variables.items():
        if name not in saved:
            raise UserError(f"--preset={preset} has no projection: {HEADS_FILENAME} has no {name}.")
        variable.assign(saved[name])
    return projection
