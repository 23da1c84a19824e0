"""The scores by which presets are chosen for a soup and compared with it."""

import tempfile
from collections.abc import Sequence
from typing import Any

from cocolm_tf.analysis.runs import held_out_batches, mean_metrics
from cocolm_tf.data.shards import Manifest
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.run import run_task
from cocolm_tf.finetuning.tasks.classification import ClassificationTask
from cocolm_tf.jobs import Reporter
from cocolm_tf.modeling.masked_lm import MaskedLMPretrainer
from cocolm_tf.training.preset import load_pretrained
from cocolm_tf.training.soup import Score

# Of the corrective language modeling loss (paper, section 3.3), and masked language modeling's.
_CLM_WEIGHTS = {"copy_loss": 50.0, "lm_loss": 1.0}
_MLM_WEIGHTS = {"mlm_loss": 1.0}


class _NullReporter(Reporter):
    """A reporter that discards the messages of fine-tuning."""

    def _send(self, event: dict[str, Any]) -> None:
        pass


def held_out_score(presets: Sequence[str], data: str, batches: int, batch_size: int) -> Score:
    """A score by loss on held-out text, on the same corruptions for all presets."""
    # It is 50 times the copy loss plus the LM loss, as far as all presets have the heads; or the
    # masked LM loss of presets that were trained by it alone. The auxiliary model of the first
    # preset fills in the masks for all.
    first, tokenizer = load_pretrained(presets[0])
    weights = _CLM_WEIGHTS | _MLM_WEIGHTS
    for preset in presets:
        pretrainer, _ = load_pretrained(preset)
        usable = _MLM_WEIGHTS if isinstance(pretrainer, MaskedLMPretrainer) else _CLM_WEIGHTS
        common = weights.keys() & usable.keys() & pretrainer.loss_weights.keys()
        weights = {name: weights[name] for name in sorted(common)}
    if not weights:
        raise UserError("--data: not all presets have a copy head, an LM head or a masked LM head.")
    held_out = held_out_batches(data, presets[0], tokenizer, batches, batch_size)
    length, limit = Manifest.load(data).sequence_length, first.backbone.max_sequence_length
    if length > limit:
        raise UserError(
            f"--data={data} has sequences of {length} tokens, more than the {limit} that the "
            "presets read."
        )

    def loss(preset: str) -> float:
        pretrainer, _ = load_pretrained(preset)
        if first.auxiliary is not None:
            pretrainer.auxiliary = first.auxiliary
        means = mean_metrics(pretrainer, held_out)
        return sum(weight * means[name] for name, weight in weights.items())

    title = " + ".join(name.replace("_", " ") for name in weights)
    return Score(title.replace("copy loss", "50 copy loss"), f"held-out text {data}", loss)


def fine_tuned_score(config: dict[str, Any], data: dict[str, Any], seed: int = 0) -> Score:
    """A score by the dev set of a task, after fine-tuning on it."""
    name = ClassificationTask(preset="", config=config, data=data).check()

    def score(preset: str) -> float:
        task = ClassificationTask(
            preset=preset, config=config, data=data, seed=seed, save_preset=False
        )
        with tempfile.TemporaryDirectory() as folder:
            results = run_task(task.spec(), folder, _NullReporter())
        if results.get("diverged"):
            raise UserError(f"fine-tuning {preset} on {name} diverged.")
        return results["score"]

    return Score(f"{name} (dev)", f"{name}, dev set, seed {seed}", score, higher_is_better=True)
