import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.corrections.texts import Edit, MarkedText, differences
from cocolm_tf.corrections.training import CorrectionTrainer, Examples, Rows, aligned
from cocolm_tf.losses import copy_loss, corrective_lm_loss
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.serving.correction import NOTHING_ID
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import train_vocabulary

SENTENCES = ["The cat sat on the mat.", "The dog sat on a cat.", "A mat, a dog and the cats."]

tokens = st.lists(st.integers(4, 8), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CocoLMTokenizer:
    folder = tmp_path_factory.mktemp("vocabulary") / "small"
    return train_vocabulary(SENTENCES * 3, 45, folder, character_coverage=1.0)


@pytest.fixture(scope="module")
def rows(tokenizer: CocoLMTokenizer) -> Rows:
    return Rows(tokenizer, sequence_length=24, lm_slots=8)


@given(tokens, st.lists(st.integers(4, 8), max_size=6))
def test_what_is_aligned_spells_the_right_word(wrong: list[int], right: list[int]):
    found = aligned(np.array(wrong), np.array(right, int))
    if len(right) > len(wrong):
        assert found is None
    else:
        assert [token for token in found if token != NOTHING_ID] == right
        assert not right or found[0] != NOTHING_ID
        if wrong == right:
            assert found.tolist() == wrong


@pytest.mark.parametrize(
    ("wrong", "right", "expected"),
    [
        ([5, 6, 7, 8], [5, 9, 8], [5, 9, NOTHING_ID, 8]),
        ([5, 6, 7], [9], [9, NOTHING_ID, NOTHING_ID]),
        ([5, 6, 7], [9, 6, 7], [9, 6, 7]),
        ([5, 6], [], [NOTHING_ID, NOTHING_ID]),
    ],
)
def test_what_both_words_have_stays(wrong: list[int], right: list[int], expected: list[int]):
    assert aligned(np.array(wrong), np.array(right, int)).tolist() == expected


def row_of(rows: Rows, marked: MarkedText) -> dict[str, np.ndarray]:
    return {name: value[0] for name, value in rows([marked]).items()}


def by_difference(wrong: str, right: str) -> MarkedText:
    return MarkedText(wrong, (differences(wrong, right),))


def test_a_text_without_mistakes_is_what_it_should_be(rows: Rows, tokenizer: CocoLMTokenizer):
    row = row_of(rows, MarkedText("The cat sat.", ((),)))
    ids = [0, *tokenizer("The cat sat.").numpy(), 2]
    assert row["wrong_token_ids"][: len(ids)].tolist() == ids
    np.testing.assert_array_equal(row["wrong_token_ids"], row["token_ids"])
    assert row["padding_mask"].sum() == len(ids)
    assert not row["masked_weights"].any()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("The ctaa sat on it", "The cat sat on it"),  # more tokens than the right word
        ("Teh dgo, taht", "The dog, that"),
        ("The the cat", "The cat"),
        ("cat The sat", "The cat sat"),
    ],
)
def test_the_targets_are_the_right_tokens(
    rows: Rows, tokenizer: CocoLMTokenizer, wrong: str, right: str
):
    marked = by_difference(wrong, right)
    if wrong.startswith("cat"):
        marked = MarkedText(wrong, ((Edit(0, 7, "The cat", "order"),),))
    row = row_of(rows, marked)
    targets = row["token_ids"]
    kept = targets[row["padding_mask"] & (targets != NOTHING_ID)]
    assert kept.tolist() == [0, *tokenizer(right).numpy(), 2]
    changed = np.flatnonzero(row["wrong_token_ids"] != targets)
    used = row["masked_weights"] > 0
    assert row["masked_positions"][used].tolist() == changed[:8].tolist()


def test_what_no_token_can_say_is_only_found(rows: Rows, tokenizer: CocoLMTokenizer):
    row = row_of(rows, by_difference("a cat", "jackals cat"))
    assert row["token_ids"][1] == tokenizer.mask_token_id != row["wrong_token_ids"][1]
    assert not row["masked_weights"].any()
    missing = row_of(rows, by_difference("The sat", "The cat sat"))
    np.testing.assert_array_equal(missing["wrong_token_ids"], missing["token_ids"])


def test_what_is_too_long_is_cut(rows: Rows):
    row = row_of(rows, by_difference("The dgo " * 20, "The dog " * 20))
    assert row["padding_mask"].all() and row["token_ids"][-1] == 2
    assert row["masked_weights"].sum() == 8


def test_each_epoch_has_every_text_once_in_another_order():
    texts = [MarkedText(str(number), ((),)) for number in range(20)]
    examples = Examples(texts, seed=1)
    first, second = ([examples[i + start].text for i in range(20)] for start in (0, 20))
    assert sorted(first) == sorted(second) == sorted(one.text for one in texts)
    assert first != second
    again = Examples(texts, seed=1)
    assert [again[i].text for i in range(20, 40)] == second


def test_the_losses_are_those_of_pretraining_with_the_given_mistakes(
    rows: Rows, tokenizer: CocoLMTokenizer
):
    batch = rows([by_difference("The ctaa sat", "The cat sat"), by_difference("a dgo", "a dog")])
    backbone = CocoLMBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=16,
        max_sequence_length=24,
    )
    trainer = CorrectionTrainer(backbone, tokenizer.mask_token_id, copy_weight=50.0)
    batch = {name: tf.constant(value) for name, value in batch.items()}
    losses, _ = trainer.compute(batch, training=False)
    inputs = {"token_ids": batch["wrong_token_ids"], "padding_mask": batch["padding_mask"]}
    states = backbone(inputs)
    copied = trainer.copy_head(states)
    is_right = batch["wrong_token_ids"] == batch["token_ids"]
    np.testing.assert_allclose(
        losses["copy_loss"], copy_loss(copied, is_right, batch["padding_mask"]), rtol=1e-5
    )
    at = batch["masked_positions"]
    read, wanted, logits, chosen = (
        tf.gather(x, at, batch_dims=1)
        for x in (batch["wrong_token_ids"], batch["token_ids"], copied, states)
    )
    expected = corrective_lm_loss(
        trainer.lm_head(tf.reshape(chosen, [-1, 16])),
        *(tf.reshape(x, [-1]) for x in (logits, read, wanted, batch["masked_weights"])),
    )
    np.testing.assert_allclose(losses["lm_loss"], expected, rtol=1e-5)
    assert losses.keys() == {"copy_loss", "lm_loss"}
