"""The scores by which presets are chosen for a soup and compared with it."""

import tempfile
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from cocolm_tf.analysis.presets import load_pretrained
from cocolm_tf.data.augmentation import Augmentation, SpecialTokens
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.shards import Manifest
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.run import run_task
from cocolm_tf.finetuning.tasks.classification import ClassificationTask
from cocolm_tf.jobs import Reporter
from cocolm_tf.training.soup import Score

# Of the corrective language modeling loss (paper, section 3.3), and masked language modeling's.
_WEIGHTS = {"copy_loss": 50.0, "lm_loss": 1.0}
_MASKED_LM = {"mlm_loss": 1.0}


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
    names = set(_WEIGHTS | _MASKED_LM)
    for preset in presets:
        pretrainer, _ = load_pretrained(preset)
        losses = _MASKED_LM if hasattr(pretrainer, "model") else _WEIGHTS
        names &= losses.keys() & pretrainer.loss_weights.keys()
    if not names:
        raise UserError("--data: not all presets have a copy head, an LM head or a masked LM head.")
    manifest = Manifest.load(data)
    if manifest.vocabulary_fingerprint != tokenizer.fingerprint():
        raise UserError(
            f"--data={data} was built with another vocabulary than the presets': build it with "
            f"--vocabulary={presets[0]}."
        )
    if manifest.sequence_length > first.backbone.max_sequence_length:
        raise UserError(
            f"--data={data} has sequences of {manifest.sequence_length} tokens, more than the "
            f"{first.backbone.max_sequence_length} that the presets read."
        )
    augmentation = Augmentation(SpecialTokens(mask=tokenizer.mask_token_id))
    opened = PretrainingData.open(data, manifest.sequence_length, augmentation)
    size = min(batch_size, manifest.counts["sequences"])

    factors = _WEIGHTS | _MASKED_LM

    def loss(preset: str) -> float:
        pretrainer, _ = load_pretrained(preset)
        if first.auxiliary is not None:
            pretrainer.auxiliary = first.auxiliary

        @tf.function(autograph=False)
        def measure(batch: dict[str, tf.Tensor]) -> list[tuple[tf.Tensor, tf.Tensor]]:
            losses, _ = pretrainer.compute(batch, training=False)
            weights = pretrainer.denominators(batch)
            return [(losses[name] * weights[name], weights[name]) for name in sorted(names)]

        sums = [[0.0, 0.0] for _ in names]
        for batch in opened.validation_batches(size, batches):
            for total, found in zip(sums, measure(batch), strict=True):
                total[0] += float(found[0])
                total[1] += float(found[1])
        return sum(
            factors[name] * total / weight
            for name, (total, weight) in zip(sorted(names), sums, strict=True)
        )

    title = " + ".join(name.replace("_", " ") for name in sorted(names))
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
