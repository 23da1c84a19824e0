"""The model card of a pretrained preset: what its run knows, and no more."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.costs.accelerators import describe_device, energy_text
from cocolm_tf.data.shards import Manifest
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.build import Pretrainer
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.identity import History, flat
from cocolm_tf.training.model_card import Facts, Result
from cocolm_tf.training.monitoring import METRICS_FILENAME, read_lines
from cocolm_tf.training.preset import AVERAGE_SUFFIX
from cocolm_tf.training.stages import Total, stages, tokens_per_step
from cocolm_tf.versions import own_versions, versions_line

_DESCRIPTIONS = {
    "coco_lm": (
        "A Transformer encoder, pretrained by COCO-LM: correcting tokens that an auxiliary model "
        "replaced, and contrasting text sequences."
    ),
    "mcl": (
        "A Transformer encoder, pretrained by MCL: detecting tokens that a generator put in the "
        "place of masked and of reordered ones and where there were none, and correcting mistakes."
    ),
    "masked_lm": "A Transformer encoder, pretrained by masked language modeling.",
}
_USE = (
    "Fine-tuning on a task of its own, such as classifying texts or finding answers in them. It "
    "was pretrained only: what it computes before that is of use for research."
)
_LIMITATIONS = (
    "It has seen no text but that of its training data, whose errors and prejudices it may have "
    "learned. Whether it has, nobody has measured for this card."
)
_USAGE = """\
from cocolm_tf import CocoLMBackbone, CocoLMTokenizer

tokenizer = CocoLMTokenizer.from_preset("{preset}")
backbone = CocoLMBackbone.from_preset("{preset}")
inputs = tokenizer.pack(tokenizer(["A sentence."]), sequence_length={length})
vectors = backbone(inputs)[:, 0]"""


def pretraining_facts(
    config: PretrainingConfig,
    pretrainer: Pretrainer,
    manifests: Mapping[str, Manifest],
    history: History,
    watts: float | None = None,
) -> Facts:
    """Gathers the facts that a finished run knows of itself."""
    model_dir = history.model_dir
    lines = read_lines(os.path.join(model_dir, METRICS_FILENAME))
    total = Total(config, tokens_per_step)
    hours, tokens = _seconds(lines, total) / 3600, total(config.trainer.train_steps)
    steps = ", then ".join(
        f"{stage.end - stage.begin:,} steps of {tokens_per_step(stage.config):,} tokens"
        for stage in stages(config)
    )
    speed = [f"{steps}, {tokens:,} in all, padding included."]
    if hours:
        speed.append(f"{tokens / hours / 3600:,.0f} tokens a second, validation aside.")
        speed.append(energy_text(hours, watts))
    if len(history.segments) > 1:
        segments = "; ".join(history.lines(config.trainer.train_steps))
        speed.append(f"The settings above are those it ended with; they changed: {segments}.")
    name = files.name(model_dir)
    usage = _USAGE.format(
        preset=os.path.join(model_dir, "preset"), length=config.data.sequence_length
    )
    return Facts(
        name,
        description=_DESCRIPTIONS[config.objective.name],
        model_type=describe_encoder(pretrainer.backbone),
        base_model=history.segments[0].inputs["--init_preset"].path,
        direct_use=_USE,
        limitations=_LIMITATIONS,
        usage=usage,
        training_data="\n".join(_data_lines(manifests)),
        settings=flat(config.as_dict()),
        speed=" ".join(speed),
        evaluation_data="\n".join(_data_lines(manifests, "validation")),
        results=_results(lines),
        hardware=_hardware(pretrainer.distribute_strategy),
        hours=hours or None,
        software=versions_line(own_versions()),
    )


def averaged_facts(facts: Facts, decay: float) -> Facts:
    """The facts of the preset with averaged weights, which no validation measured."""
    average = (
        f" Its weights are exponential moving averages, of decay {decay}, of those of a run that "
        "were validated."
    )
    return dataclasses.replace(
        facts,
        description=facts.description + average,
        usage=facts.usage.replace('/preset"', f'/preset{AVERAGE_SUFFIX}"'),
        results=[],
    )


def describe_encoder(backbone: CocoLMBackbone) -> str:
    """Describes an encoder by its sizes."""
    relative = backbone.relative_position_bins
    positions = f"{relative} relative position bins" if relative else "no relative positions"
    return (
        f"Transformer encoder of {backbone.num_layers} layers, {backbone.hidden_dim} wide, with "
        f"{backbone.num_heads} attention heads, feed-forward networks {backbone.intermediate_dim} "
        f"wide, {backbone.vocabulary_size:,} tokens, {backbone.max_sequence_length} positions and "
        f"{positions}: {backbone.count_params():,} parameters"
    )


def _seconds(lines: list[dict[str, Any]], tokens: Total) -> float:
    """The seconds of all training steps, over all starts of the run."""
    # By the logged rates: a process's clock knows only its own part.
    seconds, before = 0.0, 0
    for line in lines:
        if line["split"] == "train":
            rate = line.get("tokens_per_second")
            if rate:
                seconds += (tokens(line["step"]) - tokens(before)) / rate
            before = line["step"]
    return seconds


def _results(lines: list[dict[str, Any]]) -> list[Result]:
    """The results of the last validation."""
    validations = [line for line in lines if line["split"] == "validation"]
    if not validations:
        return []
    last = validations[-1]
    return [
        Result("fill-mask", f"validation data, step {last['step']}", name, value)
        for name, value in last.items()
        if name not in ("step", "split", "seconds")
    ]


def _data_lines(manifests: Mapping[str, Manifest], only: str = "") -> Iterator[str]:
    for purpose, manifest in manifests.items():
        if only not in ("", purpose):
            continue
        counts = manifest.counts
        source = json.dumps(manifest.parameters.get("source") or "not recorded")
        yield (
            f"- For {purpose}: {counts['documents']:,} documents of {counts['text_bytes']:,} bytes "
            f"of text, {counts['text_tokens']:,} tokens in {counts['sequences']:,} sequences of "
            f"up to {manifest.sequence_length}. Source, as given to `build_pretraining_data.py`: "
            f"`{source}`. Vocabulary: {manifest.vocabulary_size:,} tokens, "
            f"`{manifest.vocabulary_fingerprint[:12]}`."
        )


def _hardware(strategy: tf.distribute.Strategy) -> str:
    replicas = strategy.num_replicas_in_sync
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return f"TPU, {replicas} cores"
    return describe_device() if replicas == 1 else f"{replicas} replicas on {describe_device()}"
