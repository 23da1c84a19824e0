"""From a corpus to the batches of pretraining, and from tables to what fine-tuning reads."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "augmentation": ["Augmentation", "SpecialTokens"],
        "build": ["build_shards"],
        "cleaning": ["Cleaning", "Deduplication"],
        "mcl_augmentation": ["MCLAugmentation"],
        "pipeline": ["PretrainingData"],
        "shards": ["Manifest"],
        "sources": ["DocstringSource", "FileSource", "Source", "TfdsSource"],
        "text_pairs": ["Retrieval", "TextPairs", "read_pairs", "read_retrieval"],
    },
)
