"""Presets of the checkpoints that a run has kept: what it had learned on the way."""

import os
from collections.abc import Iterator, Sequence

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import build_pretrainer, compile_pretrainer
from cocolm_tf.training.checkpoints import Checkpoints, checkpoint_steps
from cocolm_tf.training.config import load_config
from cocolm_tf.training.preset import save_preset

PRESETS_DIRECTORY = "presets"


def save_checkpoint_presets(
    model_dir: str, vocabulary: str = "", steps: Sequence[int] = ()
) -> Iterator[str]:
    """Makes presets of checkpoints, which `trainer.keep_checkpoint_interval` has a run keep."""
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
    if not vocabulary and not files.is_file(os.path.join(preset, "config.json")):
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
