"""Configurations that differ in every part that a step's costs depend on."""

from cocolm_tf.training.config import PretrainingConfig

VOCABULARY_SIZE = 97

# No two widths, lengths or numbers of rows are the same.
TINY = {
    "model": {
        "vocabulary_size": VOCABULARY_SIZE,
        "num_layers": 2,
        "num_heads": 3,
        "hidden_dim": 12,
        "intermediate_dim": 22,
        "max_sequence_length": 32,
        "relative_position_bins": 16,
    },
    "auxiliary": {"num_layers": 2},
    "data": {"sequence_length": 26},
    "trainer": {"batch_size": 5},
}

VARIANTS = (
    {},
    {"auxiliary": {"sampling": "train"}, "objective": {"lm_weight": 0.0}},
    {
        "auxiliary": {"sampling": "zero_dropout", "shared": "token_position_norm"},
        "objective": {
            "scl_weight": 0.0,
            "use_copy": False,
            "weighted_lm": True,
            "copy_head_bias": True,
        },
    },
    {
        "auxiliary": {"hidden_dim": 8, "num_heads": 2, "intermediate_dim": 18, "num_layers": 1},
        "objective": {"projection": False},
        "data": {"mask_fraction": 0.3, "crop_fraction": 0.5},
    },
    {
        "auxiliary": {"replacements": "random"},
        "objective": {"copy_weight": 0.0, "all_token_lm": True, "stop_gradient": False},
        "model": {"relative_position_bins": 0},
    },
    {
        "auxiliary": {"shared": "token"},
        "model": {"dropout": 0.0},
        "objective": {"copy_weight": 0.0, "use_copy": False},
    },
    {"objective": {"copy_weight": 0.0, "lm_weight": 0.0}, "auxiliary": {"num_layers": 1}},
    {"auxiliary": {"replacements": "frozen", "num_layers": 1}},
    {"objective": {"name": "masked_lm"}},
    {"objective": {"name": "mcl"}, "mcl": {"swap_fraction": 0.3, "insert_fraction": 0.3}},
    {
        "objective": {"name": "mcl"},
        "auxiliary": {"sampling": "zero_dropout"},
        "mcl": {"slm_weight": 0.0, "re_slm_weight": 0.0, "re_rtd_weight": 0.0, "shared_head": True},
    },
)


def tiny(*changes: dict) -> PretrainingConfig:
    config = PretrainingConfig()
    for part in (TINY, *changes):
        config.override(part)
    return config
