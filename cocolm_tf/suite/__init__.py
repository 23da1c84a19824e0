"""Suites: rows of a table that differ in what their models were pretrained by, as the paper's."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "plan": [
            "Plan",
            "Row",
            "Suite",
            "architectures",
            "glue_tasks",
            "load_suite",
            "pretraining_configs",
        ],
        "runner": ["PretrainingInputs", "run_suite"],
    },
)
