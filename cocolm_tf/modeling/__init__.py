"""The encoder, its heads, the corruption of its input, and the pretraining objectives."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "backbone": ["CocoLMBackbone"],
        "corruption": ["SamplingTemperature"],
        "masked_lm": ["MaskedLMPretrainer", "MaskedLanguageModel"],
        "mcl": ["MCLPretrainer"],
        "pretrainer": ["CocoLMPretrainer"],
        "training_step": ["TrainingStep"],
    },
)
