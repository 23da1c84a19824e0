"""What the model cards of fine-tuned models say."""

from typing import Any

from cocolm_tf.data.examples import TaskData
from cocolm_tf.finetuning.classification_run import ClassificationRun
from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.prompt_run import PromptRun
from cocolm_tf.finetuning.results import Scores
from cocolm_tf.finetuning.run import Run
from cocolm_tf.finetuning.squad_run import SquadRun
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.model_card import Facts, Result
from cocolm_tf.versions import versions_line

_CLASSIFICATION, _ANSWERING = "text-classification", "question-answering"


def classifier_facts(
    run: ClassificationRun, data: TaskData, results: dict[str, Any], backbone: CocoLMBackbone
) -> Facts:
    """Gathers the facts of a fine-tuned classifier.

    Args:
        run: How it was fine-tuned.
        data: What on.
        results: What `run_classification` found.
        backbone: Its encoder.

    Returns:
        The facts for `write_model_card`.

    Example:
    ```python
    write_model_card("runs/rte/seed_0/preset", classifier_facts(run, data, results, backbone))
    ```
    """
    rows = results["data"]
    evaluated = (
        f"{part}: {rows[part]['rows']:,} rows of {rows[part]['source']}" for part in results["dev"]
    )
    return Facts(
        name=f"COCO-LM on {data.name}",
        description=f"A COCO-LM text encoder, fine-tuned on {data.name} from {run.start}. "
        + _answers(data),
        base_model=_base_model(run),
        usage=_usage("CocoLMTextClassifier", data),
        training_data=f"{rows['train']['rows']:,} rows of {rows['train']['source']}.",
        settings=_settings(run),
        speed=f"{results['examples_per_second']:.1f} examples a second; {_best_epoch(results)}",
        evaluation_data=f"{'; '.join(evaluated)}. {_guesses(results['baseline'], data)}",
        results=_results(_CLASSIFICATION, data.name, results["dev"]),
        **_of_texts(data, "glue" in run.data),
        **_shared(results, backbone, "a classification head"),
    )


def prompt_facts(
    run: PromptRun, data: TaskData, results: dict[str, Any], backbone: CocoLMBackbone
) -> Facts:
    """Gathers the facts of a prompt classifier.

    Args:
        run: How it was fine-tuned.
        data: What on.
        results: What `run_prompting` found.
        backbone: Its encoder.

    Returns:
        The facts for `write_model_card`.

    Example:
    ```python
    write_model_card("runs/sst2-prompts/preset", prompt_facts(run, data, results, backbone))
    ```
    """
    evaluated = (
        f"{part}: {len(examples):,} rows of {examples.source}"
        for part, examples in data.dev.items()
    )
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
        evaluation_data=f"{'; '.join(evaluated)}. {_guesses(results['baseline'], data)}",
        results=_results(_CLASSIFICATION, data.name, results["test"]),
        **_of_texts(data, True),
        **_shared(results, backbone, "the language modeling head at the mask"),
    )


def answerer_facts(
    run: SquadRun, answerer: CocoLMQuestionAnswerer, results: dict[str, Any]
) -> Facts:
    """Gathers the facts of a fine-tuned question answerer.

    Args:
        run: How it was fine-tuned.
        answerer: The model.
        results: What `run_squad` found.

    Returns:
        The facts for `write_model_card`.

    Example:
    ```python
    write_model_card("runs/squad/seed_0/preset", answerer_facts(run, answerer, results))
    ```
    """
    preprocessor, task = answerer.preprocessor, results["task"]
    train, dev = results["data"]["train"], results["data"]["dev"]
    silent = results["baseline"]["dev"]
    return Facts(
        name=f"COCO-LM on {task}",
        description=f"A COCO-LM text encoder, fine-tuned on {task} from {run.start}. It answers a "
        "question with a part of a text"
        + (", or says that the text has no answer." if task == "SQuAD 2.0" else "."),
        pipeline_tag=_ANSWERING,
        base_model=_base_model(run),
        direct_use="Finding the part of a text that answers a question on it.",
        limitations="It knows nothing but the text that it is given, and it was measured on "
        f"{task}'s kind of texts only. Answers of more than {answerer.max_answer_length} tokens "
        "are not found. The threshold above which a question counts as unanswerable was chosen on "
        "the data that it was measured on.",
        usage="from cocolm_tf import CocoLMQuestionAnswerer\n\n"
        'answerer = CocoLMQuestionAnswerer.from_preset("path/of/this/folder")\n'
        '(prediction,) = answerer.predict((["A question?"], ["A text that answers it."]))\n'
        "prediction.answer",
        training_data=f"{train['questions']:,} questions of {train['source']}, "
        f"{train['unanswerable']:,} of them unanswerable, in {train['windows']:,} windows.",
        settings=_settings(run)
        | {
            "data.sequence_length": preprocessor.sequence_length,
            "stride": preprocessor.stride,
            "max_question_length": preprocessor.max_question_length,
            "max_answer_length": answerer.max_answer_length,
            "n_best": answerer.n_best,
            "null_threshold": answerer.null_threshold,
        },
        speed=f"{results['examples_per_second']:.1f} windows a second; {_best_epoch(results)}",
        evaluation_data=f"{dev['questions']:,} questions of {dev['source']}, "
        f"{dev['unanswerable']:,} of them unanswerable. Always to answer nothing scores "
        f"{100 * silent['exact']:.2f} exact and {100 * silent['f1']:.2f} F1.",
        results=[
            Result(_ANSWERING, f"{task} (dev)", metric, value)
            for metric, value in results["official"].items()
            if not metric.endswith("total")
        ],
        **_shared(results, answerer.backbone, "a question answering head"),
    )


def _shared(results: dict[str, Any], backbone: CocoLMBackbone, head: str) -> dict[str, Any]:
    return {
        "model_type": f"Transformer encoder, {backbone.num_layers} layers of "
        f"{backbone.hidden_dim}, {results['parameters']:,} parameters, with {head}",
        "hardware": results["device"],
        "hours": results["seconds"] / 3600,
        "software": versions_line(results["versions"]),
    }


def _of_texts(data: TaskData, is_glue: bool) -> dict[str, Any]:
    verb = "Rating" if data.label_names is None else "Classifying"
    return {
        "pipeline_tag": _CLASSIFICATION,
        "languages": ("en",) if is_glue else (),
        "datasets": ("nyu-mll/glue",) if is_glue else (),
        "direct_use": f"{verb} texts like those of {data.name}.",
    }


def _base_model(run: Run) -> str:
    return "none, its weights were random" if run.from_scratch else run.preset


def _settings(run: Run) -> dict[str, Any]:
    configured = {
        f"{section}.{key}": value
        for section, values in run.config.items()
        for key, value in values.items()
    }
    return configured | {"train_fraction": run.train_fraction, "seed": run.seed}


def _best_epoch(results: dict[str, Any]) -> str:
    return (
        f"the best of {len(results['epochs'])} epochs on the dev set is epoch "
        f"{results['best_epoch']}."
    )


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


def _guesses(baseline: Scores, data: TaskData) -> str:
    scores = (
        f"{metric} {value:.4f} ({part})"
        for part, metrics in baseline.items()
        for metric, value in metrics.items()
    )
    guess = "mean" if data.label_names is None else "commonest class"
    return f"Always to predict the {guess} of the training rows scores {', '.join(scores)}."


def _results(tag: str, task: str, scores: Scores) -> list[Result]:
    return [
        Result(tag, f"{task} ({part})", metric, value)
        for part, metrics in scores.items()
        for metric, value in metrics.items()
    ]
