"""Speed side by side: contenders in alternation, sizes, ways to fine-tune, exports under load."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "alternation": ["Contender", "Timings", "alternate"],
        "finetuning": ["export_batches", "measure_finetuning"],
        "scaling": ["measure_scaling"],
        "serving": ["compare_serving"],
    },
)
