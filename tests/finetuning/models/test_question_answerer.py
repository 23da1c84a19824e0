import random

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
from tiny_presets import BAD, CONTEXT_WORDS, GOOD

from cocolm_tf import CocoLMBackbone, CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.question_answerer import (
    CocoLMQuestionAnswererPreprocessor,
)
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier

OPINIONS = (*GOOD, *BAD)


def opinion_questions(
    count: int, seed: int
) -> tuple[tuple[list[str], list[str]], list[tuple[int, int]]]:
    """Contexts of up to some windows; the answer is the one opinion in it, if there is one."""
    draw = random.Random(seed)
    contexts, answers = [], []
    for _ in range(count):
        words = draw.choices(CONTEXT_WORDS.split(), k=draw.randrange(1, 20))
        answer, start = "", 0
        if draw.random() < 0.6:
            answer = draw.choice(OPINIONS)
            place = draw.randrange(len(words) + 1)
            start = len(" ".join(words[:place])) + (place > 0)
            words.insert(place, answer)
        contexts.append(" ".join(words))
        answers.append((start, start + len(answer)))
        assert contexts[-1][start : start + len(answer)] == answer
    return (["some dog saw"] * count, contexts), answers


TEXTS, ANSWERS = opinion_questions(12, seed=5)


@pytest.fixture(scope="module")
def answerer(tiny_preset: str) -> CocoLMQuestionAnswerer:
    """Fresh and untraced, with logits far enough apart to tell; tests leave it as it is."""
    random.seed(1)
    answerer = CocoLMQuestionAnswerer.from_preset(tiny_preset)
    answerer.compile(run_eagerly=True)
    answerer.answer_logits.kernel.assign(np.random.default_rng(0).normal(size=[16, 2]))
    return answerer


@pytest.fixture(scope="module")
def learned(tiny_preset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The preset of an answerer that has learned to find opinions."""
    random.seed(0)
    backbone = CocoLMBackbone.from_preset(tiny_preset, dropout=0.0)
    preprocessor = CocoLMQuestionAnswererPreprocessor.from_preset(tiny_preset)
    answerer = CocoLMQuestionAnswerer(backbone, preprocessor, n_best=3, null_threshold=0.5)
    answerer.optimizer.learning_rate = 1e-2
    texts, answers = opinion_questions(120, seed=1)
    validation = opinion_questions(8, seed=2)
    history = answerer.fit(
        texts, answers, batch_size=16, epochs=6, validation_data=validation, verbose=0
    ).history
    assert history["val_loss"][-1] < history["val_loss"][0] / 2
    path = tmp_path_factory.mktemp("learned") / "preset"
    answerer.save_to_preset(path)
    return str(path)


def test_the_head_is_one_dense_layer(answerer):
    inputs = answerer.preprocessor(x=TEXTS)
    hidden = np.array(answerer.backbone(inputs))
    logits = hidden @ np.array(answerer.answer_logits.kernel)
    outputs = answerer(inputs)
    mask = np.array(inputs["padding_mask"])
    for side, name in enumerate(("start", "end")):
        assert outputs[name].dtype == "float32"
        np.testing.assert_allclose(
            np.array(outputs[name])[mask], logits[..., side][mask], rtol=1e-4, atol=1e-4
        )
        # What is padding takes no share of the softmax.
        assert (tf.nn.softmax(outputs[name]).numpy()[~mask] == 0).all()


def test_the_loss_is_the_mean_of_both_cross_entropies(answerer):
    windows = answerer.preprocessor.windows(*TEXTS, ANSWERS)
    outputs = answerer({"token_ids": windows.token_ids, "padding_mask": windows.padding_mask})
    losses = [
        tf.keras.losses.sparse_categorical_crossentropy(labels, outputs[name], from_logits=True)
        for name, labels in (("start", windows.start_positions), ("end", windows.end_positions))
    ]
    expected = np.mean([np.mean(loss) for loss in losses])
    for batch_size in (5, 64):
        measured = answerer.evaluate(
            TEXTS, ANSWERS, batch_size=batch_size, verbose=0, return_dict=True
        )
        assert measured["loss"] == pytest.approx(expected, rel=1e-4)


def test_learns_from_raw_strings(learned):
    answerer = CocoLMQuestionAnswerer.from_preset(learned)
    answerer.compile(run_eagerly=True)
    texts, answers = opinion_questions(60, seed=9)
    predictions = answerer.predict(texts, verbose=0)
    found = [prediction.answer for prediction in predictions]
    wanted = [context[slice(*span)] for context, span in zip(texts[1], answers, strict=True)]
    assert np.mean([a == b for a, b in zip(found, wanted, strict=True)]) > 0.85
    unanswerable = [
        p.null_odds for p, answer in zip(predictions, wanted, strict=True) if not answer
    ]
    answerable = [p.null_odds for p, answer in zip(predictions, wanted, strict=True) if answer]
    assert np.median(unanswerable) > np.median(answerable)


def test_candidates_are_parts_of_the_context(answerer):
    contexts = ["“the  cat”\n saw ½ 日 the dog", "", "rain", *TEXTS[1]]
    predictions = answerer.predict((["a"] * len(contexts), contexts), verbose=0)
    assert len(predictions) == len(contexts)
    for context, prediction in zip(contexts, predictions, strict=True):
        assert bool(prediction.candidates) == bool(context)
        scores = [candidate.score for candidate in prediction.candidates]
        assert scores == sorted(scores, reverse=True)
        for candidate in prediction.candidates:
            assert candidate.text == context[candidate.start : candidate.end] != ""
    assert len({candidate.text for candidate in predictions[0].candidates}) > 5
    assert predictions[1].answer == ""


def test_every_way_to_ask_is_the_same(answerer):
    expected = answerer.predict(TEXTS, verbose=0)
    for batch_size in (3, 7):
        again = answerer.predict(TEXTS, batch_size=batch_size, verbose=0)
        for first, second in zip(expected, again, strict=True):
            assert first.candidates[0].text == second.candidates[0].text
            assert first.null_odds == pytest.approx(second.null_odds, abs=1e-4)
    questions, contexts = TEXTS
    frame = pandas.DataFrame({"question": questions, "context": contexts})
    others = [
        (np.array(questions), tf.constant(contexts)),
        ([text.encode() for text in questions], contexts),
        frame,
        frame.to_numpy(),
        list(TEXTS),
    ]
    for texts in others:
        assert answerer.predict(texts, verbose=0) == expected
    assert answerer.predict(([], []), verbose=0) == []
    with pytest.raises(ValueError, match="12 questions, 1 contexts"):
        answerer.predict((questions, contexts[:1]))


def test_learning_wants_answers(answerer):
    with pytest.raises(ValueError, match="y must say where the answers are"):
        answerer.fit(TEXTS)


def test_what_is_no_question_or_answer_is_said(answerer):
    questions, contexts = TEXTS
    for texts, complaint in (
        (("Who sat?", "The cat sat."), "texts come in batches"),
        ("Who sat?", "texts come in batches"),
        ((questions, [None, *contexts[1:]]), "text 0 is None, not a string"),
        ((questions, [float("nan"), *contexts[1:]]), "text 0 is nan, not a string"),
        (np.array(questions), "x must be the questions and their contexts"),
    ):
        with pytest.raises(ValueError, match=complaint):
            answerer.predict(texts)
    answers = [[0, 0]] * len(questions)
    for y, complaint in (
        (answers[1:], "there are 12 of them"),
        ([*answers[1:], [0, 10_000]], r"answer 11 is \[0, 10000\], of a context"),
        (["cat"] * len(questions), "characters"),
    ):
        for call in (answerer.fit, answerer.evaluate):
            with pytest.raises(ValueError, match=complaint):
                call(TEXTS, y)
    with pytest.raises(ValueError, match="there are 12 of them"):
        answerer.fit(TEXTS, answers, validation_data=(TEXTS, answers[1:]))


def test_logits_of_tokens(answerer):
    inputs = answerer.preprocessor(x=TEXTS)
    logits = answerer.predict(inputs, verbose=0)
    assert logits["start"].shape == logits["end"].shape == inputs["token_ids"].shape


def test_learns_from_a_dataset(tiny_preset):
    answerer = CocoLMQuestionAnswerer.from_preset(tiny_preset)
    answerer.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, ANSWERS)).batch(6)
    history = answerer.fit(dataset, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]


def test_preset_keeps_everything(learned):
    answerer = CocoLMQuestionAnswerer.from_preset(learned)
    assert (answerer.n_best, answerer.null_threshold) == (3, 0.5)
    assert answerer.max_answer_length == 8
    assert answerer.preprocessor.stride == 7
    other = CocoLMQuestionAnswerer.from_preset(learned, null_threshold=None)
    other.compile(run_eagerly=True)
    assert all(prediction.answer for prediction in other.predict(TEXTS, verbose=0))
    # Only the encoder is another task's.
    assert CocoLMTextClassifier.from_preset(learned, num_classes=2).output_shape == (None, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_answer_length": 9}, "max_answer_length=9 need 15"),
        ({"n_best": 0}, "n_best=0 must be at least 1"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(tiny_preset, arguments, message):
    with pytest.raises(ValueError, match=message):
        CocoLMQuestionAnswerer.from_preset(tiny_preset, **arguments)


def test_a_longer_row_than_the_model_is_refused(tiny_preset):
    preprocessor = CocoLMQuestionAnswererPreprocessor.from_preset(tiny_preset, sequence_length=25)
    with pytest.raises(ValueError, match="sequence_length=25 is more than .*=24"):
        CocoLMQuestionAnswerer.from_preset(tiny_preset, preprocessor=preprocessor)
