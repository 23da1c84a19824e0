"""Suites: rows of a table that differ in what their models were pretrained by, as the paper's."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "definition": ["Row", "Suite", "load_suite"],
        "plan": ["Plan", "architectures", "glue_tasks", "pretraining_configs"],
        "runner": ["PretrainingInputs", "run_suite"],
    },
)
