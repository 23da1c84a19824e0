"""SavedModels that take raw text: their signatures, their export, and a client for them."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "client": ["Export"],
        "correction": ["Corrector"],
        "export": ["export_preset"],
        "sequence_signatures": ["Classifier"],
        "signature": ["Settings"],
        "span_signatures": ["Answerer", "Tagger"],
    },
)
