"""The encoder, its heads, the corruption of its input, and the pretraining objectives."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "backbone": ["CocoLMBackbone"],
        "masked_language_model": ["MaskedLanguageModel"],
        "masked_lm_pretrainer": ["MaskedLMPretrainer"],
        "mcl": ["MCLPretrainer"],
        "pretrainer": ["CocoLMPretrainer"],
        "sampling": ["SamplingTemperature"],
        "training_step": ["TrainingStep"],
    },
)
