"""Text to token ids and back: text preparation, the tokenizer, training a vocabulary."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "hugging_face": ["from_hugging_face", "to_hugging_face"],
        "offsets": ["TokenOffsets"],
        "tokenizer": ["CocoLMTokenizer"],
        "vocabulary": ["load_vocabulary", "train_vocabulary"],
    },
)
