"""A preset that loads in a moment, as pretraining would leave it, and texts that it can read."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.preset import save_preset

WORDS = "a cat saw the red house on its hill and then some bird sang to a dog of rain"
# What contexts of questions are made of; an opinion among them is the answer.
CONTEXT_WORDS = "a cat saw the red house on its hill and some dog rain"
GOOD, BAD = ("good", "great", "fine"), ("bad", "awful", "poor")
SEQUENCE_LENGTH = 24


def write_tiny_preset(folder: Path, **objective: Any) -> str:
    """Writes a preset of a random model, whose pretraining had the given objective."""
    sentences = [sentence for sentence, _ in opinions(120)]
    tokenizer = train_vocabulary(sentences, 100, folder / "vocabulary")
    config = PretrainingConfig()
    config.override(
        {
            "model": {
                "vocabulary_size": tokenizer.vocabulary_size(),
                "num_layers": 2,
                "num_heads": 2,
                "hidden_dim": 16,
                "intermediate_dim": 16,
                "max_sequence_length": SEQUENCE_LENGTH,
                "relative_position_bins": 8,
                "relative_position_max_distance": 12,
                "initializer_range": 0.2,
            },
            "auxiliary": {"num_layers": 1},
            "objective": objective,
        }
    )
    pretrainer = build_pretrainer(config, tokenizer.mask_token_id)
    if pretrainer.lm_head:
        pretrainer.lm_head.bias.assign(np.random.default_rng(0).normal(size=100))
    save_preset(pretrainer, tokenizer, str(folder / "preset"))
    return str(folder / "preset")


def opinions(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Sentences of some words, one of which tells the class: 1 is good, 0 is bad."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS.split(), k=draw.randrange(2, 12))
        label = draw.randrange(2)
        words.insert(draw.randrange(len(words)), draw.choice((BAD, GOOD)[label]))
        rows.append((" ".join(words), label))
    return rows
