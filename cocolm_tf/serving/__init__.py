"""SavedModels that take raw text: their signatures, their export, and a client for them."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "answering": ["Answerer"],
        "classification": ["Classifier"],
        "client": ["Export"],
        "correction": ["Corrector"],
        "export": ["Settings", "export_preset"],
        "tagging": ["Tagger"],
    },
)
