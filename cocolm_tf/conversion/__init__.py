"""Released checkpoints in and out."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "convert": ["Conversion", "convert_to_official", "convert_to_preset"],
        "transformers_folder": ["write_transformers_folder"],
    },
)
