"""The counts against models that are built."""

import pytest
from tiny_configs import VARIANTS, tiny

from cocolm_tf.costs.parameters import block_parameters, count_parameters
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig


def size(variables: list) -> int:
    return sum(int(variable.value.shape.num_elements()) for variable in variables)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_they_are_those_of_the_built_model(changes: dict):
    config = tiny(changes)
    pretrainer = build_pretrainer(config, mask_token_id=96)
    parts = count_parameters(config)
    assert sum(parts.values()) == size(pretrainer.trainable_variables)
    assert parts["embeddings"] + parts["main"] == size(pretrainer.backbone.trainable_variables)
    heads = {
        "copy_head": pretrainer.copy_head,
        "lm_head": pretrainer.lm_head,
        "projection": pretrainer.projection,
        "masked_lm_head": pretrainer.auxiliary and pretrainer.auxiliary.head,
    }
    table = config.model.vocabulary_size * config.model.hidden_dim
    for name, head in heads.items():
        tied = table if name in ("lm_head", "masked_lm_head") else 0
        assert (name in parts) == (head is not None)
        if head is not None:
            count = size(head.trainable_variables) - tied
            # MCL may have one for each of its three courses.
            more = name == "copy_head" and getattr(pretrainer, "insert_head", None)
            assert parts[name] == (3 * count if more else count)


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({}, 110.6),
        ({"vocabulary_size": 64_000, "relative_position_bins": 64}, 134.6),
        (
            {
                "vocabulary_size": 64_000,
                "num_layers": 24,
                "num_heads": 16,
                "hidden_dim": 1024,
                "intermediate_dim": 4096,
                "relative_position_bins": 128,
            },
            368.4,
        ),
    ],
    ids=["base", "base++", "large++"],
)
def test_the_paper_s_models(changes: dict, millions: float):
    """Table 1 has 110, 134 and 367 million, position tables left out."""
    config = PretrainingConfig()
    config.override({"model": changes})
    parts = count_parameters(config)
    assert (parts["embeddings"] + parts["main"]) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_block_of_bert_base():
    assert block_parameters(768, 3072) == 7_087_872
