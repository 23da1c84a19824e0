"""Loading presets for analysis: models with all heads, those of a run, sentence vectors."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.errors import UserError, refusal
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.masked_language_model import MaskedLanguageModel
from cocolm_tf.modeling.masked_lm_pretrainer import MaskedLMPretrainer
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME, CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import Pretrainer, build_pretrainer
from cocolm_tf.training.config import load_config
from cocolm_tf.training.preset import (
    AUXILIARY_DIRECTORY,
    BACKBONE_FILENAME,
    HEADS_FILENAME,
    load_preset,
    saved_heads,
)


def load_pretrained(preset: str, precision: str = "float32") -> tuple[Pretrainer, CocoLMTokenizer]:
    """Loads the models of a preset, with the heads that it has.

    Args:
        preset: the folder.
        precision: what to compute in, as `runtime.precision` of a run.

    Returns:
        The pretrainer and its tokenizer. It has no auxiliary model, copy head, LM head or
        projection where the preset has none; it is a `MaskedLMPretrainer` where that is what the
        preset was trained by.

    Raises:
        UserError: if the folder is no preset.

    Example:
    ```python
    pretrainer, tokenizer = load_pretrained("runs/first/preset")
    ```
    """
    for name in ("config.json", CONFIG_FILENAME):
        if not files.is_file(os.path.join(preset, name)):
            raise UserError(f"--preset={preset} is not a preset: it has no {name}.")
    with files.local_copy(preset) as local:
        try:
            return _load(local, precision)
        except (ValueError, TypeError, KeyError, OSError) as error:
            if refusal(error):  # refused by the system, not a fault of the preset
                raise
            raise UserError(
                f"--preset={preset} cannot be loaded: {' '.join(str(error).split())}"
            ) from error


def _load(preset: str, precision: str) -> tuple[Pretrainer, CocoLMTokenizer]:
    tokenizer = load_vocabulary(preset)
    heads = saved_heads(preset)
    main, auxiliary = _build(preset, precision), None
    if "main_masked_lm_head.bias" in heads:
        model = MaskedLanguageModel(main, name="masked_language_model")
        pretrainer = MaskedLMPretrainer(model, tokenizer.mask_token_id)
    else:
        path = os.path.join(preset, AUXILIARY_DIRECTORY)
        if files.is_dir(path):
            auxiliary = MaskedLanguageModel(_build(path, precision), name="auxiliary_model")
        pretrainer = CocoLMPretrainer(
            main,
            auxiliary,
            tokenizer.mask_token_id,
            copy_weight=float("copy_head.kernel" in heads),
            lm_weight=float("lm_head.bias" in heads),
            scl_weight=float("projection.dense.kernel" in heads),
            use_copy="copy_head.kernel" in heads,
            copy_head_bias="copy_head.bias" in heads,
        )
    load_preset(pretrainer, preset)
    return pretrainer, tokenizer


def _build(preset: str, precision: str) -> CocoLMBackbone:
    try:
        return CocoLMBackbone.from_preset(preset, load_weights=False, dtype=precision)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{os.path.join(preset, 'config.json')} does not describe a CocoLMBackbone."
        ) from error


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
