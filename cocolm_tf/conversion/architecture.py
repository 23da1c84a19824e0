"""A model's architecture: the released `config.json` and `CocoLMBackbone`'s arguments."""

import os
from typing import Any

from cocolm_tf import files
from cocolm_tf.conversion.checkpoint import Checkpoint
from cocolm_tf.conversion.layout import (
    AUXILIARY,
    POSITIONS,
    RELATIVE_POSITIONS,
    WORDS,
)
from cocolm_tf.conversion.tensor_files import read_json
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone

FILENAME = "config.json"

_INTERMEDIATE = "encoder.layer.0.intermediate.dense.bias"

# The released classes' defaults for what config.json omits.
_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_type": "post",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "rel_pos_bins": 0,
    "max_rel_pos": 0,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "need_pooler": False,
}
_WHOLE_NUMBERS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "rel_pos_bins",
    "max_rel_pos",
)
_NUMBERS = ("hidden_dropout_prob", "layer_norm_eps", "initializer_range")
# The only values of these settings that our model supports.
_ONLY = {"hidden_act": "gelu", "layer_norm_type": "post"}


def read_configuration(folder: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads the architecture of a checkpoint's model."""
    path = os.path.join(folder, FILENAME)
    given = read_json(path) if files.is_file(path) else None
    if checkpoint.is_fairseq:
        configuration = _fairseq_configuration(checkpoint) | (given or {})
    elif given is None:
        raise UserError(f"{folder} has no {FILENAME} beside the weights.")
    else:
        configuration = given
    configuration = _DEFAULTS | configuration
    for keys, kind, wanted in (
        (_WHOLE_NUMBERS, int, "a whole number"),
        (_NUMBERS, int | float, "a number"),
    ):
        for key in keys:
            if not isinstance(configuration.get(key), kind):
                value = configuration.get(key)
                raise UserError(f"{path}: {key} must be {wanted}, not {value!r}.")
    for key, value in _ONLY.items():
        if configuration[key] != value:
            raise UserError(f"{path}: {key} is {configuration[key]!r}; COCO-LM's is {value!r}.")
    if "embeddings.token_type_embeddings.weight" in checkpoint:
        raise UserError(
            f"{checkpoint.path}: token_type_embeddings are of a model with segment embeddings, "
            "which COCO-LM does not have."
        )
    other = configuration.get("attention_probs_dropout_prob", configuration["hidden_dropout_prob"])
    if other != configuration["hidden_dropout_prob"]:
        checkpoint.notes.append(
            f"dropout is {configuration['hidden_dropout_prob']} everywhere, not {other} on the "
            "attention probabilities"
        )
    return configuration


def read_label_names(
    configuration: dict[str, Any], classes: int, notes: list[str]
) -> list[str] | None:
    """Reads the names of a classifier's classes."""
    given = configuration.get("id2label")
    if not isinstance(given, dict):
        return None
    numbers = [str(number) for number in range(classes)]
    if set(given) != set(numbers) or len(set(map(str, given.values()))) != classes:
        notes.append(f"id2label does not name the {classes} classes of the head: it is left out")
        return None
    names = [str(given[number]) for number in numbers]
    return None if names == [f"LABEL_{number}" for number in numbers] else names


def backbone_arguments(configuration: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `CocoLMBackbone` for a `config.json`."""
    return {
        "vocabulary_size": configuration["vocab_size"],
        "num_layers": configuration["num_hidden_layers"],
        "num_heads": configuration["num_attention_heads"],
        "hidden_dim": configuration["hidden_size"],
        "intermediate_dim": configuration["intermediate_size"],
        "dropout": configuration["hidden_dropout_prob"],
        "max_sequence_length": configuration["max_position_embeddings"],
        "relative_position_bins": configuration["rel_pos_bins"],
        "relative_position_max_distance": configuration["max_rel_pos"],
        "layer_norm_epsilon": configuration["layer_norm_eps"],
        "initializer_range": configuration["initializer_range"],
    }


def auxiliary_arguments(configuration: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments of `CocoLMBackbone` for the auxiliary model, by its tensors."""
    given = configuration.get("auxiliary", {})
    relative = f"{AUXILIARY}{RELATIVE_POSITIONS}"
    bins = checkpoint.read(relative).shape[0] if relative in checkpoint else 0
    # After the projection, where there is one.
    output = f"{AUXILIARY}encoder.layer.0.output.LayerNorm.weight"
    return backbone_arguments(configuration) | {
        "num_layers": checkpoint.layers(AUXILIARY),
        "num_heads": given.get("num_attention_heads", configuration["num_attention_heads"]),
        "hidden_dim": len(checkpoint.read(output)),
        "intermediate_dim": len(checkpoint.read(f"{AUXILIARY}{_INTERMEDIATE}")),
        "dropout": given.get("hidden_dropout_prob", configuration["hidden_dropout_prob"]),
        "relative_position_bins": bins,
        "embedding_dim": len(checkpoint.read(f"{AUXILIARY}embeddings.LayerNorm.weight")),
    }


def configuration_of(
    backbone: CocoLMBackbone, auxiliary: CocoLMBackbone | None, need_pooler: bool
) -> dict[str, Any]:
    """The architecture of an encoder as the released classes read it."""
    if backbone.embedding_dim != backbone.hidden_dim:
        raise UserError(
            f"the model's embeddings are {backbone.embedding_dim} wide and its hidden states "
            f"{backbone.hidden_dim}: the released classes know one width."
        )
    configuration = {
        "model_type": "cocolm",
        "vocab_size": backbone.vocabulary_size,
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.intermediate_dim,
        "hidden_act": "gelu",
        "hidden_dropout_prob": backbone.dropout,
        "attention_probs_dropout_prob": backbone.dropout,
        "cls_dropout_prob": backbone.dropout,
        "max_position_embeddings": backbone.max_sequence_length,
        "type_vocab_size": 0,
        "initializer_range": backbone.initializer_range,
        "layer_norm_eps": backbone.layer_norm_epsilon,
        "layer_norm_type": "post",
        "rel_pos_bins": backbone.relative_position_bins,
        "max_rel_pos": backbone.relative_position_max_distance,
        "need_pooler": need_pooler,
    }
    if auxiliary is not None:
        configuration["auxiliary"] = {
            "num_attention_heads": auxiliary.num_heads,
            "hidden_dropout_prob": auxiliary.dropout,
        }
    return configuration


def _fairseq_configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    settings = checkpoint.settings
    vocabulary_size, hidden_size = checkpoint.read(WORDS).shape
    rows = len(checkpoint.read(POSITIONS))
    bins, heads = 0, settings.get("encoder_attention_heads")
    if RELATIVE_POSITIONS in checkpoint:
        bins, heads = checkpoint.read(RELATIVE_POSITIONS).shape
    if bins and "max_rel_pos" not in settings:
        checkpoint.notes.append("max_rel_pos is not in the file: 128, as fairseq would take it")
    zero_dropout = settings.get("generator_sample_mode") == "zero-dropout"
    dropout = settings.get("dropout", _DEFAULTS["hidden_dropout_prob"])
    auxiliary_dropout = 0.0 if zero_dropout else dropout
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": checkpoint.layers(),
        "num_attention_heads": heads,
        "intermediate_size": len(checkpoint.read(_INTERMEDIATE)),
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": settings.get("attention_dropout", dropout),
        # The table's rows are two more than the positions where nothing says how many these are.
        "max_position_embeddings": settings.get("max_positions") or rows - 2,
        "rel_pos_bins": bins,
        "max_rel_pos": settings.get("max_rel_pos", 128),
        "layer_norm_eps": 1e-5,
        "auxiliary": {"hidden_dropout_prob": auxiliary_dropout},
    }
