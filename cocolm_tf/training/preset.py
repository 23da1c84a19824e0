"""The preset that pretraining ends in and may start from.

preset/
  config.json, model.weights.h5     the main model, as KerasHub saves a backbone
  tokenizer.json, assets/           its tokenizer
  pretraining_heads.npz             copy head, LM head, projection, the auxiliary model's masked
                                    LM head; or the main model's masked LM head; MCL's heads
  auxiliary/                        the auxiliary model, a preset of its own
  README.md                         the model card
"""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.errors import UserError, refusal
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.heads import Transform
from cocolm_tf.modeling.masked_lm import MaskedLanguageModel, MaskedLMPretrainer
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME, CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import Pretrainer, build_pretrainer, compile_pretrainer
from cocolm_tf.training.checkpoints import Checkpoints, checkpoint_steps
from cocolm_tf.training.config import load_config
from cocolm_tf.training.model_card import Facts, write_model_card

# Written last: a folder that has it is a whole preset.
BACKBONE_FILENAME = "config.json"
HEADS_FILENAME = "pretraining_heads.npz"
AUXILIARY_DIRECTORY = "auxiliary"
# A run's folder of the presets that are made of its checkpoints.
PRESETS_DIRECTORY = "presets"
# Ends the name of the preset beside another that has moving averages of its weights.
AVERAGE_SUFFIX = "_ema"

# What two models must share for one to take the other's weights.
ARCHITECTURE = (
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


def save_preset(
    pretrainer: Pretrainer,
    tokenizer: CocoLMTokenizer,
    directory: str,
    facts: Facts | None = None,
) -> None:
    """Saves all that was pretrained, atomically.

    Args:
        pretrainer: The models.
        tokenizer: Their tokenizer.
        directory: The preset; replaced if it is there.
        facts: What its model card says; None for no card.

    Example:
    ```python
    save_preset(pretrainer, tokenizer, "runs/first/preset")
    ```
    """
    auxiliary = pretrainer.auxiliary and pretrainer.auxiliary.backbone
    heads = head_variables(pretrainer)
    write_preset(directory, pretrainer.backbone, auxiliary, heads, tokenizer, facts)


def write_preset(
    directory: str,
    backbone: CocoLMBackbone,
    auxiliary: CocoLMBackbone | None,
    heads: Mapping[str, keras.Variable | np.ndarray],
    tokenizer: CocoLMTokenizer,
    facts: Facts | None = None,
) -> None:
    """Writes a whole preset, atomically."""
    with files.new_folder(directory, overwrite=True, last=BACKBONE_FILENAME) as unfinished:
        write_models(unfinished, backbone, auxiliary, heads)
        tokenizer.save_to_preset(unfinished)
        if facts:
            write_model_card(unfinished, facts)


def write_models(
    directory: str,
    backbone: CocoLMBackbone,
    auxiliary: CocoLMBackbone | None,
    heads: Mapping[str, keras.Variable | np.ndarray],
) -> None:
    """Writes the models of a preset; `heads` as `head_variables` names them."""
    backbone.save_to_preset(directory)
    if auxiliary is not None:
        auxiliary.save_to_preset(os.path.join(directory, AUXILIARY_DIRECTORY))
    arrays = {name: np.asarray(variable) for name, variable in heads.items()}
    np.savez(os.path.join(directory, HEADS_FILENAME), **arrays)


def load_preset(pretrainer: Pretrainer, directory: str) -> list[str]:
    """Starts a pretrainer from a preset: continued pretraining.

    What the preset lacks (an auxiliary model, a head, as other projects' checkpoints do) keeps
    its fresh weights; the auxiliary model then still has the main model's embeddings.

    Args:
        pretrainer: The models, just built.
        directory: The preset.

    Returns:
        The names of the parts that were not in the preset.

    Raises:
        UserError: If there is no preset, or one of another architecture.

    Example:
    ```python
    missing = load_preset(pretrainer, "runs/first/preset")
    ```
    """
    check_is_preset("--init_preset", directory, BACKBONE_FILENAME)
    with files.local_copy(directory) as local:
        _check_architecture(pretrainer.backbone, local, "model")
        missing = []
        auxiliary = os.path.join(local, AUXILIARY_DIRECTORY)
        if pretrainer.auxiliary is not None:
            if files.is_dir(auxiliary):
                _check_architecture(pretrainer.auxiliary.backbone, auxiliary, "auxiliary")
                _load_weights(pretrainer.auxiliary.backbone, auxiliary)
            else:
                missing.append(AUXILIARY_DIRECTORY)
        # After the auxiliary model's: tables that are shared are the main model's.
        _load_weights(pretrainer.backbone, local)
        return missing + _load_heads(head_variables(pretrainer), local)


def load_pretrained(
    directory: str, precision: str = "float32", with_auxiliary: bool = True
) -> tuple[Pretrainer, CocoLMTokenizer]:
    """Loads the models of a preset, with the heads that it has.

    Args:
        directory: The preset.
        precision: What to compute in, as `runtime.precision` of a run.
        with_auxiliary: Whether to load the auxiliary model.

    Returns:
        The pretrainer and its tokenizer. It has no auxiliary model, copy head, LM head or
        projection where the preset has none; it is a `MaskedLMPretrainer` where that is what the
        preset was trained by.

    Raises:
        UserError: If the folder is no preset, or anything in it is damaged.

    Example:
    ```python
    pretrainer, tokenizer = load_pretrained("runs/first/preset")
    ```
    """
    check_is_preset("--preset", directory, BACKBONE_FILENAME, CONFIG_FILENAME)
    with files.local_copy(directory) as local:
        try:
            return _load_pretrained(local, precision, with_auxiliary)
        except (ValueError, TypeError, KeyError, OSError) as error:
            if refusal(error):  # refused by the system, not a fault of the preset
                raise
            raise UserError(
                f"--preset={directory} cannot be loaded: {' '.join(str(error).split())}"
            ) from error


def check_is_preset(flag: str, directory: str, *names: str) -> None:
    """Refuses a folder that lacks files which a preset has."""
    for name in names:
        if not files.is_file(files.join(directory, name)):
            raise UserError(f"{flag}={directory} is not a preset: it has no {name}.")


def _load_pretrained(
    directory: str, precision: str, with_auxiliary: bool
) -> tuple[Pretrainer, CocoLMTokenizer]:
    tokenizer, heads = load_vocabulary(directory), saved_heads(directory)
    main, auxiliary = read_backbone(directory, load_weights=False, dtype=precision), None
    if tokenizer.vocabulary_size() != main.vocabulary_size:
        raise UserError(
            f"--preset={directory} has a model of {main.vocabulary_size} tokens and a tokenizer of "
            f"{tokenizer.vocabulary_size()}."
        )
    if "main_masked_lm_head.bias" in heads:
        model = MaskedLanguageModel(main, name="masked_language_model")
        pretrainer = MaskedLMPretrainer(model, tokenizer.mask_token_id)
    else:
        path = os.path.join(directory, AUXILIARY_DIRECTORY)
        if with_auxiliary and "masked_lm_head.bias" in heads and files.is_dir(path):
            backbone = read_backbone(path, load_weights=False, dtype=precision)
            auxiliary = MaskedLanguageModel(backbone, name="auxiliary_model")
        has_copy = "copy_head.kernel" in heads
        pretrainer = CocoLMPretrainer(
            main,
            auxiliary,
            tokenizer.mask_token_id,
            copy_weight=float(has_copy),
            lm_weight=float("lm_head.bias" in heads),
            scl_weight=float("projection.dense.kernel" in heads),
            use_copy=has_copy,
            copy_head_bias="copy_head.bias" in heads,
        )
    if missing := load_preset(pretrainer, directory):
        raise UserError(f"--preset={directory} lacks {', '.join(missing)}.")
    return pretrainer, tokenizer


def load_frozen_auxiliary(auxiliary: MaskedLanguageModel, directory: str) -> None:
    """Loads the weights of the auxiliary model of another run's preset, to sample from."""
    if not files.is_dir(os.path.join(directory, AUXILIARY_DIRECTORY)):
        raise UserError(f"auxiliary.preset={directory} has no {AUXILIARY_DIRECTORY}/ in it.")
    with files.local_copy(directory) as local:
        saved = os.path.join(local, AUXILIARY_DIRECTORY)
        _check_architecture(auxiliary.backbone, saved, "auxiliary")
        _load_weights(auxiliary.backbone, saved)
        missing = _load_heads(_masked_lm_variables(auxiliary, "masked_lm_head"), local)
    if missing:
        raise UserError(f"auxiliary.preset={directory} lacks {', '.join(missing)}.")


def head_variables(pretrainer: Pretrainer) -> dict[str, keras.Variable]:
    """The weights that are neither of the two backbones', by name: `copy_head.kernel`."""
    if isinstance(pretrainer, MaskedLMPretrainer):
        return _masked_lm_variables(pretrainer.model, "main_masked_lm_head")
    variables = {}
    # MCL's copy head detects replaced tokens; MCL has two more heads.
    for name in ("copy_head", "swap_head", "insert_head"):
        if head := getattr(pretrainer, name, None):
            variables[f"{name}.kernel"] = head.kernel
            if head.bias is not None:
                variables[f"{name}.bias"] = head.bias
    if pretrainer.lm_head:
        variables["lm_head.bias"] = pretrainer.lm_head.bias
    if pretrainer.projection:
        variables |= _transform_variables(pretrainer.projection, "projection")
    if pretrainer.auxiliary is not None:
        variables |= _masked_lm_variables(pretrainer.auxiliary, "masked_lm_head")
    return variables


def saved_heads(directory: str) -> dict[str, np.ndarray]:
    """Reads the weights of the heads that a preset has, as `head_variables` names them."""
    path = files.join(directory, HEADS_FILENAME)
    if not files.is_file(path):
        return {}
    try:
        with files.open_read(path) as file:
            return dict(np.load(file))
    except (ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def save_checkpoint_presets(
    model_dir: str, vocabulary: str = "", steps: Sequence[int] = ()
) -> Iterator[str]:
    """Makes presets of the checkpoints that a run kept (`trainer.keep_checkpoint_interval`)."""
    config_file = os.path.join(model_dir, "config.yaml")
    if not files.is_file(config_file):
        raise UserError(f"{model_dir} has no config.yaml: give the --model_dir of a run.")
    directory = os.path.join(model_dir, "checkpoints")
    kept = checkpoint_steps(directory)
    if not kept:
        raise UserError(f"{directory} has no checkpoints.")
    for step in steps:
        if step not in kept:
            have = ", ".join(map(str, kept))
            raise UserError(f"--step={step}: {directory} has checkpoints of {have} only.")
    preset = os.path.join(model_dir, "preset")
    if not vocabulary and not files.is_file(os.path.join(preset, BACKBONE_FILENAME)):
        raise UserError(f"{model_dir} has no preset yet: give the run's --vocabulary.")
    tokenizer = load_vocabulary(vocabulary or preset)
    config = load_config(config_file)
    if tokenizer.vocabulary_size() != config.model.vocabulary_size:
        raise UserError(
            f"--vocabulary={vocabulary} has {tokenizer.vocabulary_size()} tokens, the run "
            f"{config.model.vocabulary_size}."
        )
    pretrainer = build_pretrainer(config, tokenizer.mask_token_id)
    compile_pretrainer(pretrainer, config, steps_per_execution=1)
    checkpoints = Checkpoints(directory, pretrainer, config.trainer.max_checkpoints)
    for step in steps or kept:
        checkpoints.restore(step)
        path = os.path.join(model_dir, PRESETS_DIRECTORY, f"step_{step}")
        save_preset(pretrainer, tokenizer, path)
        yield path
        if config.trainer.ema_decay:
            with pretrainer.averaged_weights():
                save_preset(pretrainer, tokenizer, path + AVERAGE_SUFFIX)
            yield path + AVERAGE_SUFFIX


def read_backbone(directory: str, load_weights: bool = True, **changes: Any) -> CocoLMBackbone:
    """Reads an encoder from a preset, the main one or that of its folder `auxiliary`."""
    with files.local_copy(directory) as local:
        try:
            backbone = CocoLMBackbone.from_preset(local, load_weights=load_weights, **changes)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{os.path.join(local, BACKBONE_FILENAME)} does not describe a CocoLMBackbone."
            ) from error
        if load_weights:
            check_finite_weights(backbone, local)
        return backbone


def check_finite_weights(model: keras.Model, directory: str) -> None:
    """Raises `UserError`, naming the preset, unless all of its weights are finite."""
    for variable in model.weights:
        value = tf.convert_to_tensor(variable)
        if value.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(value)):
            raise UserError(
                f"{directory}: {variable.path} has values that are NaN or infinite, as after a "
                "training that diverged: take another preset."
            )


def _masked_lm_variables(model: MaskedLanguageModel, name: str) -> dict[str, keras.Variable]:
    variables = _transform_variables(model.head.transform, name)
    return variables | {f"{name}.bias": model.head.projection.bias}


def _transform_variables(transform: Transform, name: str) -> dict[str, keras.Variable]:
    return {
        f"{name}.dense.kernel": transform.dense.kernel,
        f"{name}.dense.bias": transform.dense.bias,
        f"{name}.norm.gamma": transform.norm.gamma,
        f"{name}.norm.beta": transform.norm.beta,
    }


def _load_heads(variables: dict[str, keras.Variable], directory: str) -> list[str]:
    """Loads weights of heads by their names, and returns the names that the preset lacks."""
    heads, saved = os.path.join(directory, HEADS_FILENAME), saved_heads(directory)
    unbiased = "copy_head.kernel" in variables and "copy_head.bias" not in variables
    if unbiased and "copy_head.bias" in saved:
        raise UserError(f"{heads} has a copy_head.bias: set objective.copy_head_bias=true.")
    missing = []
    for name, variable in variables.items():
        if name not in saved:
            missing.append(name)
        elif saved[name].shape != tuple(variable.shape):
            raise UserError(
                f"{heads}: {name} has the shape {saved[name].shape}, not {tuple(variable.shape)}."
            )
        elif not np.isfinite(saved[name]).all():
            raise UserError(f"{heads}: {name} has values that are NaN or infinite.")
        else:
            variable.assign(saved[name])
    return missing


def _check_architecture(backbone: CocoLMBackbone, directory: str, section: str) -> None:
    saved = read_backbone(directory, load_weights=False).get_config()
    wanted = backbone.get_config()
    for key in ARCHITECTURE:
        if saved[key] != wanted[key]:
            raise UserError(
                f"{directory} has {key}={saved[key]}, the configuration's {section} has "
                f"{wanted[key]}: set the configuration to the preset's."
            )


def _load_weights(backbone: CocoLMBackbone, directory: str) -> None:
    # KerasHub splits large weights into several files.
    names = ("model.weights.h5", "model.weights.json")
    paths = [os.path.join(directory, name) for name in names]
    backbone.load_weights(next(filter(files.is_file, paths), paths[0]))
    check_finite_weights(backbone, directory)
