"""A preset with all of its heads, whatever run it comes from."""

import os

import numpy as np

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.masked_language_model import MaskedLanguageModel
from cocolm_tf.modeling.masked_lm_pretrainer import MaskedLMPretrainer
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME, CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import Pretrainer
from cocolm_tf.training.preset import AUXILIARY_DIRECTORY, HEADS_FILENAME, load_preset


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
        return _load(local, precision)


def _load(
    preset: str, precision: str
) -> tuple[CocoLMPretrainer | MaskedLMPretrainer, CocoLMTokenizer]:
    tokenizer = load_vocabulary(preset)
    auxiliary = None
    auxiliary_preset = os.path.join(preset, AUXILIARY_DIRECTORY)
    if files.is_dir(auxiliary_preset):
        auxiliary = MaskedLanguageModel(_build(auxiliary_preset, precision), name="auxiliary_model")
    path = os.path.join(preset, HEADS_FILENAME)
    heads = set(np.load(path).files) if files.is_file(path) else set()
    main = _build(preset, precision)
    if "main_masked_lm_head.bias" in heads:
        model = MaskedLanguageModel(main, name="masked_language_model")
        pretrainer = MaskedLMPretrainer(model, tokenizer.mask_token_id)
        load_preset(pretrainer, preset)
        return pretrainer, tokenizer
    pretrainer = CocoLMPretrainer(
        main,
        auxiliary,
        tokenizer.mask_token_id,
        copy_weight=float("copy_head.kernel" in heads),
        lm_weight=float("lm_head.bias" in heads),
        scl_weight=float("projection.dense.kernel" in heads),
        use_copy="copy_head.kernel" in heads,
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
