"""Corrections: texts with mistakes, made or people's own; learning from them; scores."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "evaluation": ["evaluate", "judge"],
        "mistakes": ["MistakeMaker", "codespell_dictionary"],
        "scores": ["gleu"],
        "texts": ["Edit", "MarkedText"],
        "training": ["Examples", "finetune_correction"],
    },
)
