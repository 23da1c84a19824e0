"""What the model cards of fine-tuned models say."""

from typing import Any

import keras
import tensorflow as tf

import cocolm_tf
from cocolm_tf.data.examples import TaskData
from cocolm_tf.finetuning.best_epoch import Scores
from cocolm_tf.finetuning.classification_run import ClassificationRun
from cocolm_tf.finetuning.prompt_run import PromptRun
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.model_card import Facts, Result

_TAG = "text-classification"


def versions() -> dict[str, str]:
    """The versions of what trains.

    Example:
    ```python
    versions()["keras"]
    ```
    """
    return {
        "cocolm_tf": cocolm_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def classifier_facts(
    run: ClassificationRun, data: TaskData, results: dict[str, Any], backbone: CocoLMBackbone
) -> Facts:
    """Gathers the facts of a fine-tuned classifier.

    Args:
        run: how it was fine-tuned.
        data: what on.
        results: what `run_classification` found.
        backbone: its encoder.

    Returns:
        The facts for `write_model_card`.

    Example:
    ```python
    write_model_card("runs/rte/seed_0/preset", classifier_facts(run, data, results, backbone))
    ```
    """
    rows = results["data"]
    start = "random weights" if run.from_scratch else run.preset
    settings = {
        f"{section}.{key}": value
        for section, values in run.config.items()
        for key, value in values.items()
    }
    return Facts(
        name=f"COCO-LM on {data.name}",
        description=f"A COCO-LM text encoder, fine-tuned on {data.name} from {start}. "
        + _answers(data),
        base_model="none, its weights were random" if run.from_scratch else run.preset,
        usage=_usage("CocoLMTextClassifier", data),
        training_data=f"{rows['train']['rows']:,} rows of {rows['train']['source']}.",
        settings=settings | {"train_fraction": run.train_fraction, "seed": run.seed},
        speed=f"{results['examples_per_second']:.1f} examples a second; the best of "
        f"{len(results['epochs'])} epochs on the dev set is epoch {results['best_epoch']}.",
        evaluation_data="; ".join(
            f"{part}: {rows[part]['rows']:,} rows of {rows[part]['source']}"
            for part in results["dev"]
        ),
        results=_results(data.name, results["dev"]),
        **_shared(data, results, backbone, "a classification head", "glue" in run.data),
    )


def prompt_facts(
    run: PromptRun, data: TaskData, results: dict[str, Any], backbone: CocoLMBackbone
) -> Facts:
    """Gathers the facts of a prompt classifier.

    Args:
        run: how it was fine-tuned.
        data: what on.
        results: what `run_prompting` found.
        backbone: its encoder.

    Returns:
        The facts for `write_model_card`.

    Example:
    ```python
    write_model_card("runs/sst2/preset", prompt_facts(run, data, results, backbone))
    ```
    """
    return Facts(
        name=f"COCO-LM prompted for {data.name}",
        description=f"A COCO-LM language model, fine-tuned by prompts on a few examples of "
        f"{data.name} from {run.preset}. {_answers(data)}",
        base_model=run.preset,
        usage=_usage("CocoLMPromptClassifier", data),
        training_data=f"{run.shots} examples of each class of {data.train.source}, in the prompt "
        f"`{run.template}` with the words {', '.join(results['label_words'])}.",
        settings=run.config | {"learning_rate": run.learning_rate, "seed": run.seed},
        speed=f"{results['examples_per_second']:.1f} examples a second; the best step on "
        f"{run.shots} further examples of each class is {results['best_step']}.",
        evaluation_data="; ".join(
            f"{part}: {len(examples):,} rows of {examples.source}"
            for part, examples in data.dev.items()
        ),
        results=_results(data.name, results["test"]),
        **_shared(data, results, backbone, "the language modeling head at the mask", True),
    )


def _shared(
    data: TaskData, results: dict[str, Any], backbone: CocoLMBackbone, head: str, is_glue: bool
) -> dict[str, Any]:
    verb = "Rating" if data.label_names is None else "Classifying"
    return {
        "model_type": f"Transformer encoder, {backbone.num_layers} layers of "
        f"{backbone.hidden_dim}, {results['parameters']:,} parameters, with {head}",
        "pipeline_tag": _TAG,
        "languages": ("en",) if is_glue else (),
        "datasets": ("nyu-mll/glue",) if is_glue else (),
        "direct_use": f"{verb} texts like those of {data.name}.",
        "hardware": results["device"],
        "hours": results["seconds"] / 3600,
        "software": ", ".join(f"{name} {one}" for name, one in results["versions"].items()),
    }


def _answers(data: TaskData) -> str:
    if data.label_names is None:
        return "It predicts a number."
    return f"Its classes: {', '.join(data.label_names)}."


def _usage(name: str, data: TaskData) -> str:
    is_pairs = data.train.second is not None
    texts = '(["A text."], ["Its second text."])' if is_pairs else '["A text."]'
    return (
        f"from cocolm_tf import {name}\n\n"
        f'classifier = {name}.from_preset("path/of/this/folder")\n'
        f"classifier.predict({texts})"
    )


def _results(task: str, scores: Scores) -> list[Result]:
    return [
        Result(_TAG, f"{task} ({part})", metric, value)
        for part, metrics in scores.items()
        for metric, value in metrics.items()
    ]
