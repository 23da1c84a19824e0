"""Presets to folders that `transformers` and `sentence-transformers` load."""

import os
from typing import Any

import numpy as np

from cocolm_tf import files
from cocolm_tf.conversion.convert import label_names_of, preset_heads
from cocolm_tf.conversion.layout import (
    CONFIG_FILENAME,
    configuration_of,
    configured_labels,
    encoder_entries,
    head_entries,
    released_tensors,
    table_entries,
)
from cocolm_tf.conversion.tensor_files import write_json, write_tensors
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.tokenization.dictionary import (
    END_TOKEN,
    END_TOKEN_ID,
    MASK_TOKEN,
    PAD_TOKEN,
    PAD_TOKEN_ID,
    START_TOKEN,
    START_TOKEN_ID,
    UNKNOWN_TOKEN,
)
from cocolm_tf.tokenization.hugging_face import to_hugging_face

# The code that the folder brings along, and where it stands here.
MODELING_FILENAME = "modeling_cocolm.py"
_MODELING_PATH = os.path.join(os.path.dirname(__file__), MODELING_FILENAME)

# By the head of a task: the class of the code, and the class that loads it.
_ARCHITECTURES = {
    "": ("CocoLMModel", "AutoModel"),
    "classifier": ("CocoLMForSequenceClassification", "AutoModelForSequenceClassification"),
    "question_answerer": ("CocoLMForQuestionAnswering", "AutoModelForQuestionAnswering"),
}
_TOKENIZER_CONFIGURATION = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": START_TOKEN,
    "cls_token": START_TOKEN,
    "eos_token": END_TOKEN,
    "sep_token": END_TOKEN,
    "pad_token": PAD_TOKEN,
    "unk_token": UNKNOWN_TOKEN,
    "mask_token": MASK_TOKEN,
    "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False,
}
# The names by which every version of sentence-transformers knows its modules.
_MODULES = "sentence_transformers.models"


def write_transformers_folder(
    preset: str, folder: str, pooling: str = "", dimension: int = 0, overwrite: bool = False
) -> list[str]:
    """Writes a preset as a folder that `AutoModel.from_pretrained` loads.

    It has `config.json`, `model.safetensors` under the released checkpoints' names, the code
    `modeling_cocolm.py`, `tokenizer.json` and `tokenizer_config.json`. A classifier and a question
    answerer bring their heads, for `AutoModelForSequenceClassification` and
    `AutoModelForQuestionAnswering`. For all others the folder is one of `sentence-transformers`
    too: `modules.json` says how vectors are pooled, cut and normalized.

    Args:
        preset: What pretraining or fine-tuning wrote.
        folder: Appears when it is complete.
        pooling: `"cls"` or `"mean"`; `""` for what the preset's embedder was trained with, and
            `"cls"` where there is none.
        dimension: How many numbers a vector has; 0 for as many as the embedder was trained
            with, or all.
        overwrite: Whether to replace `folder` if it is not empty.

    Returns:
        Where `tokenizer.json` cannot be exact, a line each.

    Raises:
        UserError: If the preset is none, or the format cannot hold such a model.

    Example:
    ```python
    write_transformers_folder("runs/first/preset", "folders/first")
    transformers.AutoModel.from_pretrained("folders/first", trust_remote_code=True)
    ```
    """
    files.check_output_folder(folder, overwrite)
    with files.local_copy(preset) as local:
        parts = ServedPreset(local)
        backbone = parts.backbone
        pooling, dimension = parts.embedding(pooling, dimension)
        heads, _ = preset_heads(local)
        task = next((head for head in _ARCHITECTURES if head in heads), "")
        kept = [head for head in ("projection", task) if head in heads]
        configuration = _configuration(backbone, kept, task)
        if task == "classifier":
            inner, classes = heads[task]["output.kernel"].shape
            if inner != backbone.hidden_dim:
                raise UserError(
                    f"the classifier's hidden_dim={inner} is not the {backbone.hidden_dim} of the "
                    "encoder."
                )
            names = label_names_of(local) or [f"LABEL_{number}" for number in range(classes)]
            configuration |= configured_labels(names)
        entries = [*table_entries(backbone), *encoder_entries(backbone)]
        for head in kept:
            entries += head_entries(head, heads[head])
        tensors = released_tensors(entries)
        tokenizer, notes = to_hugging_face(parts.tokenizer)
        with files.new_folder(folder, overwrite, CONFIG_FILENAME) as unfinished:
            write_tensors(os.path.join(unfinished, "model.safetensors"), tensors)
            write_json(os.path.join(unfinished, "tokenizer.json"), tokenizer)
            write_json(
                os.path.join(unfinished, "tokenizer_config.json"),
                _TOKENIZER_CONFIGURATION | {"model_max_length": backbone.max_sequence_length},
            )
            files.copy(_MODELING_PATH, os.path.join(unfinished, MODELING_FILENAME))
            if not task:
                _write_sentence_transformers(unfinished, backbone, pooling, dimension)
            write_json(os.path.join(unfinished, CONFIG_FILENAME), configuration)
    return notes


def _configuration(backbone: CocoLMBackbone, heads: list[str], task: str) -> dict[str, Any]:
    code = MODELING_FILENAME.removesuffix(".py")
    classes = {"AutoConfig": "CocoLMConfig"}
    classes |= {auto: name for name, auto in (_ARCHITECTURES[""], _ARCHITECTURES[task])}
    return {
        **configuration_of(backbone, None, need_pooler="projection" in heads),
        "architectures": [_ARCHITECTURES[task][0]],
        "auto_map": {auto: f"{code}.{name}" for auto, name in classes.items()},
        "bos_token_id": START_TOKEN_ID,
        "pad_token_id": PAD_TOKEN_ID,
        "eos_token_id": END_TOKEN_ID,
        "dtype": "float32",
    }


def _write_sentence_transformers(
    folder: str, backbone: CocoLMBackbone, pooling: str, dimension: int
) -> None:
    """What makes of the folder one of `sentence-transformers`: the steps behind the encoder."""
    if pooling not in ("cls", "mean"):
        raise UserError(f"--pooling={pooling} has no place in sentence-transformers.")
    width = backbone.hidden_dim
    pooled = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "include_prompt": True,
    }
    steps: list[tuple[str, dict[str, Any]]] = [("Transformer", {}), ("Pooling", pooled)]
    if 0 < dimension < width:
        # Before the vectors are made of unit length, which its own `truncate_dim` is not.
        cut = {
            "in_features": width,
            "out_features": dimension,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        steps.append(("Dense", cut))
    steps.append(("Normalize", {}))
    modules = []
    for number, (kind, settings) in enumerate(steps):
        path = f"{number}_{kind}" if number else ""
        modules.append(
            {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{kind}"}
        )
        if settings:
            files.make_dirs(os.path.join(folder, path))
            write_json(os.path.join(folder, path, CONFIG_FILENAME), settings)
        if kind == "Dense":
            weights = {"linear.weight": np.eye(dimension, width, dtype=np.float32)}
            write_tensors(os.path.join(folder, path, "model.safetensors"), weights)
    write_json(os.path.join(folder, "modules.json"), modules)
    write_json(
        os.path.join(folder, "sentence_bert_config.json"),
        {"max_seq_length": backbone.max_sequence_length, "do_lower_case": False},
    )
    write_json(
        os.path.join(folder, "config_sentence_transformers.json"),
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
