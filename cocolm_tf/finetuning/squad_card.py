"""What the model card of a fine-tuned question answerer says."""

from typing import Any

from cocolm_tf.finetuning.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.squad_run import SquadRun
from cocolm_tf.training.model_card import Facts, Result

_TAG = "question-answering"


def answerer_facts(
    answerer: CocoLMQuestionAnswerer, run: SquadRun, results: dict[str, Any]
) -> Facts:
    """Gathers the facts.

    Args:
        answerer: The fine-tuned model.
        run: How it was fine-tuned.
        results: What `run_squad` found.

    Returns:
        The facts for `write_model_card`.

    Example:
    ```python
    write_model_card("runs/squad/seed_0/preset", answerer_facts(answerer, run, results))
    ```
    """
    backbone, preprocessor, task = answerer.backbone, answerer.preprocessor, results["task"]
    train, dev = results["data"]["train"], results["data"]["dev"]
    start = "random weights" if run.from_scratch else run.preset
    settings = {
        f"{section}.{key}": value
        for section, values in run.config.items()
        for key, value in values.items()
    }
    settings |= {
        "data.sequence_length": preprocessor.sequence_length,
        "stride": preprocessor.stride,
        "max_question_length": preprocessor.max_question_length,
        "max_answer_length": answerer.max_answer_length,
        "n_best": answerer.n_best,
        "null_threshold": answerer.null_threshold,
        "seed": run.seed,
    }
    baseline = results["always_unanswerable"]
    return Facts(
        name=f"COCO-LM on {task}",
        description=f"A COCO-LM text encoder, fine-tuned on {task} from {start}. It answers a "
        "question with a part of a text"
        + (", or says that the text has no answer." if task == "SQuAD 2.0" else "."),
        model_type=f"Transformer encoder, {backbone.num_layers} layers of {backbone.hidden_dim}, "
        f"{results['parameters']:,} parameters, with a question answering head",
        pipeline_tag=_TAG,
        base_model="none, its weights were random" if run.from_scratch else run.preset,
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
        settings=settings,
        speed=f"{results['examples_per_second']:.1f} windows a second; the best of "
        f"{len(results['epochs'])} epochs on the dev set is epoch {results['best_epoch']}.",
        evaluation_data=f"{dev['questions']:,} questions of {dev['source']}, "
        f"{dev['unanswerable']:,} of them unanswerable. Always to answer nothing scores "
        f"{baseline['exact']:.2f} exact and {baseline['f1']:.2f} F1.",
        results=[
            Result(_TAG, f"{task} (dev)", metric, value)
            for metric, value in results["official"].items()
            if not metric.endswith("total")
        ],
        hardware=results["device"],
        hours=results["seconds"] / 3600,
        software=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    )
