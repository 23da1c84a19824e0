"""Which pass of the auxiliary model its replacements are sampled from; see `CocoLMPretrainer`."""

SAMPLING_MODES = ("eval", "train", "zero_dropout")
