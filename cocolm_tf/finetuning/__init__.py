"""Fine-tuning: Keras models whose `fit()` takes raw text, and experiments that measure them."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "config": ["FinetuningConfig", "load_finetuning_config"],
        "experiment": ["Experiment", "run_experiment"],
        "models.answers": ["Candidate", "Prediction"],
        "models.prompt_classifier": [
            "CocoLMPromptClassifier",
            "CocoLMPromptClassifierPreprocessor",
        ],
        "models.question_answerer": [
            "CocoLMQuestionAnswerer",
            "CocoLMQuestionAnswererPreprocessor",
        ],
        "models.text_classifier": ["CocoLMTextClassifier", "CocoLMTextClassifierPreprocessor"],
        "models.text_embedder": ["CocoLMTextEmbedder", "CocoLMTextEmbedderPreprocessor"],
        "models.token_classifier": [
            "CocoLMTokenClassifier",
            "CocoLMTokenClassifierPreprocessor",
            "TaggedSpan",
        ],
        "run": ["run_task"],
        "tasks.classification": ["ClassificationTask", "SuperGlueClassificationTask"],
        "tasks.embedding": ["EmbeddingTask", "read_embedding_data"],
        "tasks.prompting": ["PromptingTask"],
        "tasks.question_answering": ["QuestionAnsweringTask"],
        "tasks.task": ["Prepared", "Task"],
        "tasks.tokens": ["TokensTask"],
    },
)
