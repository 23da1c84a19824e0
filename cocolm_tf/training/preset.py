"""The preset that pretraining ends in and may start from.

preset/
  config.json, model.weights.h5     the main model, as KerasHub saves a backbone
  tokenizer.json, assets/           its tokenizer
  pretraining_heads.npz             copy head, LM head, projection, masked LM head
  auxiliary/                        the auxiliary model, a preset of its own
"""

import os
import shutil

import keras
import numpy as np

from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

HEADS_FILENAME = "pretraining_heads.npz"
AUXILIARY_DIRECTORY = "auxiliary"

# What two models must have in common for one to take the other's weights.
_ARCHITECTURE = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "max_sequence_length",
    "relative_position_bins",
    "relative_position_max_distance",
    "embedding_dim",
)


def save_preset(pretrainer: CocoLMPretrainer, tokenizer: CocoLMTokenizer, directory: str) -> None:
    """Saves all that was pretrained, in one step.

    Args:
        pretrainer: the models.
        tokenizer: their tokenizer.
        directory: the preset; replaced if it is there.

    Example:
    ```python
    save_preset(pretrainer, tokenizer, "runs/first/preset")
    ```
    """
    unfinished = directory.rstrip("/") + ".tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    auxiliary = pretrainer.auxiliary and pretrainer.auxiliary.backbone
    write_models(unfinished, pretrainer.backbone, auxiliary, head_variables(pretrainer))
    tokenizer.save_to_preset(unfinished)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(unfinished, directory)


def write_models(
    directory: str,
    backbone: CocoLMBackbone,
    auxiliary: CocoLMBackbone | None,
    heads: dict[str, keras.Variable],
) -> None:
    """Writes the models of a preset.

    Args:
        directory: where to.
        backbone: the main model.
        auxiliary: the auxiliary model, if there is one.
        heads: the weights of the heads, as `head_variables` names them.

    Example:
    ```python
    write_models("converted", backbone, None, {})
    ```
    """
    backbone.save_to_preset(directory)
    if auxiliary is not None:
        auxiliary.save_to_preset(os.path.join(directory, AUXILIARY_DIRECTORY))
    arrays = {name: np.asarray(variable) for name, variable in heads.items()}
    np.savez(os.path.join(directory, HEADS_FILENAME), **arrays)


def load_preset(pretrainer: CocoLMPretrainer, directory: str) -> list[str]:
    """Starts a pretrainer from a preset: continued pretraining.

    What the preset lacks (an auxiliary model, a head, as other projects' checkpoints do) keeps
    its fresh weights; the auxiliary model then still has the main model's embeddings.

    Args:
        pretrainer: the models, just built.
        directory: the preset.

    Returns:
        The names of the parts that were not in the preset.

    Raises:
        UserError: if there is no preset, or one of another architecture.

    Example:
    ```python
    missing = load_preset(pretrainer, "runs/first/preset")
    ```
    """
    if not os.path.isfile(os.path.join(directory, "config.json")):
        raise UserError(f"--init_preset={directory} is not a preset: it has no config.json.")
    _load_backbone(pretrainer.backbone, directory, "model")
    missing = []
    auxiliary = os.path.join(directory, AUXILIARY_DIRECTORY)
    if pretrainer.auxiliary is not None:
        if os.path.isdir(auxiliary):
            _load_backbone(pretrainer.auxiliary.backbone, auxiliary, "auxiliary")
        else:
            missing.append(AUXILIARY_DIRECTORY)
    heads = os.path.join(directory, HEADS_FILENAME)
    saved = np.load(heads) if os.path.isfile(heads) else {}
    for name, variable in head_variables(pretrainer).items():
        if name not in saved:
            missing.append(name)
        elif saved[name].shape != tuple(variable.shape):
            raise UserError(
                f"{heads}: {name} has the shape {saved[name].shape}, not {tuple(variable.shape)}."
            )
        else:
            variable.assign(saved[name])
    return missing


def head_variables(pretrainer: CocoLMPretrainer) -> dict[str, keras.Variable]:
    """The weights that are neither of the two backbones', by name.

    Example:
    ```python
    list(head_variables(pretrainer))  # ["copy_head.kernel", "lm_head.bias", ...]
    ```
    """
    variables = {}
    if pretrainer.copy_head:
        variables["copy_head.kernel"] = pretrainer.copy_head.kernel
    if pretrainer.lm_head:
        variables["lm_head.bias"] = pretrainer.lm_head.bias
    transforms = {"projection": pretrainer.projection}
    if pretrainer.auxiliary is not None:
        transforms["masked_lm_head"] = pretrainer.auxiliary.head.transform
        variables["masked_lm_head.bias"] = pretrainer.auxiliary.head.projection.bias
    for name, transform in transforms.items():
        if transform:
            variables[f"{name}.dense.kernel"] = transform.dense.kernel
            variables[f"{name}.dense.bias"] = transform.dense.bias
            variables[f"{name}.norm.gamma"] = transform.norm.gamma
            variables[f"{name}.norm.beta"] = transform.norm.beta
    return variables


def read_backbone(directory: str, load_weights: bool = True) -> CocoLMBackbone:
    """Reads an encoder from a preset.

    Args:
        directory: the preset.
        load_weights: bool. Whether its weights are the preset's, or fresh.

    Returns:
        The encoder.

    Raises:
        UserError: if it is not the preset of one.

    Example:
    ```python
    main = read_backbone("runs/first/preset")
    auxiliary = read_backbone("runs/first/preset/auxiliary")
    ```
    """
    try:
        return CocoLMBackbone.from_preset(directory, load_weights=load_weights)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{os.path.join(directory, 'config.json')} does not describe a CocoLMBackbone."
        ) from error


def _load_backbone(backbone: CocoLMBackbone, directory: str, section: str) -> None:
    saved = read_backbone(directory, load_weights=False).get_config()
    wanted = backbone.get_config()
    for key in _ARCHITECTURE:
        if saved[key] != wanted[key]:
            raise UserError(
                f"{directory} has {key}={saved[key]}, the configuration's {section} has "
                f"{wanted[key]}: set the configuration to the preset's."
            )
    # KerasHub cuts what is large into several files.
    names = ("model.weights.h5", "model.weights.json")
    paths = [os.path.join(directory, name) for name in names]
    backbone.load_weights(next(filter(os.path.isfile, paths), paths[0]))
