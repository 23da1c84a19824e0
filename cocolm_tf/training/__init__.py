"""The pretraining run: configuration, optimizer, devices, checkpoints, the loop, its preset."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "build": ["build_pretrainer"],
        "config": ["PretrainingConfig", "load_config"],
        "distribution": ["make_strategy"],
        "preset": ["load_preset", "load_pretrained", "save_preset"],
        "pretraining": ["pretrain"],
        "soup": ["Score", "Soup", "average_presets"],
    },
)
