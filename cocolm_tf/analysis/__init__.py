"""What presets and runs have learned: measures, detection, demonstration, curves, pages."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "comparison": ["write_comparison"],
        "detection": ["detect", "detect_in_texts"],
        "minimal_pairs": ["score_sentences"],
        "run_report": ["demonstrate", "write_report"],
        "runs": ["measure_run", "read_run"],
        "scores": ["read_scores"],
        "sentence_space": [
            "SentenceEncoder",
            "alignment",
            "describe_space",
            "load_pretrained",
            "uniformity",
        ],
    },
)
