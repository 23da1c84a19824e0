"""Corrections: texts with mistakes, made or people's own; learning from them; scores."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "evaluation": ["evaluate", "gleu", "predict_corrections"],
        "mistakes": ["MistakeMaker", "codespell_dictionary"],
        "texts": ["Edit", "MarkedText"],
        "training": ["Examples", "finetune_correction"],
    },
)
