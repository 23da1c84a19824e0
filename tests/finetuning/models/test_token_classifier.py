import random

import numpy as np
import pytest
import tensorflow as tf
from tiny_presets import BAD, GOOD, WORDS

from cocolm_tf import (
    CocoLMTextClassifier,
    CocoLMTokenClassifier,
    CocoLMTokenClassifierPreprocessor,
)
from cocolm_tf.data.tags import chunks
from cocolm_tf.finetuning.metrics import span_scores

OPINIONS = (*GOOD, *BAD)


def opinion_spans(count: int, seed: int) -> tuple[list[str], list[list[tuple[int, int, str]]]]:
    """Texts of up to some windows; opinions are their spans."""
    draw = random.Random(seed)
    texts, spans = [], []
    for _ in range(count):
        words, found = [], []
        for _ in range(draw.randrange(1, 30)):
            if draw.random() < 0.8:
                words.append(draw.choice(WORDS.split()))
                continue
            label, opinions = draw.choice((("GOOD", GOOD), ("BAD", BAD)))
            start = len(" ".join([*words, ""]))
            words.append(draw.choice(opinions))
            found.append((start, len(" ".join(words)), label))
        texts.append(" ".join(words))
        spans.append(found)
    return texts, spans


TEXTS, SPANS = opinion_spans(24, seed=5)
LABELS = ["BAD", "GOOD"]


@pytest.fixture(scope="module")
def tagger(tiny_preset: str) -> CocoLMTokenClassifier:
    """Fresh and untraced, with logits far enough apart to tell; tests leave it as it is."""
    random.seed(1)
    tagger = CocoLMTokenClassifier.from_preset(tiny_preset, label_names=LABELS)
    tagger.compile(run_eagerly=True)
    tagger.tag_logits.kernel.assign(np.random.default_rng(0).normal(size=[16, 5]))
    return tagger


@pytest.fixture(scope="module")
def learned(tiny_preset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The preset of a token classifier that has learned to find opinions."""
    random.seed(0)
    tagger = CocoLMTokenClassifier.from_preset(tiny_preset, label_names=LABELS, dropout=0.0)
    tagger.optimizer.learning_rate = 1e-2
    texts, spans = opinion_spans(100, seed=1)
    history = tagger.fit(
        texts, spans, batch_size=8, epochs=6, validation_data=(TEXTS, SPANS), verbose=0
    ).history
    assert history["val_accuracy"][-1] > 0.9
    assert history["val_loss"][-1] < history["val_loss"][0] / 2
    path = tmp_path_factory.mktemp("learned") / "preset"
    tagger.save_to_preset(path)
    return str(path)


def test_a_preset_finds_what_was_learned(learned):
    tagger = CocoLMTokenClassifier.from_preset(learned)
    tagger.compile(run_eagerly=True)
    assert (tagger.scheme, tagger.label_names) == ("BIO", LABELS)
    found = tagger.predict(TEXTS)
    assert any(len(text.split()) > 24 for text in TEXTS)
    places = [[span[:3] for span in spans] for spans in found]
    assert span_scores(SPANS, places)["f1"] > 0.8
    for text, spans in zip(TEXTS, found, strict=True):
        assert all(span.text == text[span.start : span.end] for span in spans)
        assert all(0 < span.score <= 1 for span in spans)
    # The same words, given as such, have the same spans.
    words = [text.split() for text in TEXTS]
    tags = tagger.predict(words)
    for text, row, spans in zip(words, tags, places, strict=True):
        starts = np.cumsum([0, *(len(word) + 1 for word in text)])
        expected = [(starts[a], starts[b] - 1, label) for a, b, label in chunks(row)]
        assert expected == spans


def test_a_new_head_on_a_preset_that_has_one(learned):
    tagger = CocoLMTokenClassifier.from_preset(learned, label_names=["X"], scheme="BIOES")
    assert tagger.tag_names == ["O", "B-X", "I-X", "E-X", "S-X"]
    old = CocoLMTokenClassifier.from_preset(learned)
    for new_weights, weights in zip(
        tagger.backbone.get_weights(), old.backbone.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(new_weights, weights)
    assert CocoLMTextClassifier.from_preset(learned, num_classes=2).num_classes == 2


def test_the_head_is_one_dense_layer(tagger):
    inputs = tagger.preprocessor(TEXTS[:3])
    hidden = np.array(tagger.backbone(inputs))
    logits = hidden @ np.array(tagger.tag_logits.kernel)
    mask = np.array(inputs["padding_mask"])
    outputs = tagger(inputs)
    assert outputs.dtype == "float32"
    np.testing.assert_allclose(np.array(outputs)[mask], logits[mask], rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_mean_over_words(tagger):
    words = [text.split() for text in TEXTS[:6]]
    tags = [["B-GOOD", *["O"] * (len(row) - 1)] for row in words]
    rows, labels = tagger.labeled_rows(words, tags)
    logits = tagger.unit_logits(rows)
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_shares[np.arange(len(labels)), labels].mean()
    loss, accuracy = tagger.evaluate(words, tags, batch_size=32, verbose=0)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == labels))


def test_windows_speak_for_every_word_once(tagger):
    rows = tagger.preprocessor.rows(TEXTS)
    assert len(rows.tokens) > len(TEXTS)
    spoken = rows.units[rows.units >= 0]
    assert sorted(spoken) == list(range(len(rows.starts)))
    assert rows.counts.tolist() == [len(text.split()) for text in TEXTS]


@pytest.mark.parametrize(
    "words",
    [
        [["(the", "cat's", "U.N."], ["a.", ".", "''"]],
        [["“cat”", "", "\x00", "cat"], [], ["½", "é", "a b"]],
        [["dog" * 30, "cat"] * 5],
    ],
)
def test_the_first_token_within_a_word_speaks_for_it(tagger, words):
    rows = tagger.preprocessor.rows(words)
    graph = tagger.preprocessor.tokenizer.graph_module()
    tokens = graph.tokenize_with_offsets(tf.constant([" ".join(row) for row in words]))
    expected = []
    for row, ids, starts in zip(words, tokens.ids.to_list(), tokens.starts.to_list(), strict=True):
        bounds = np.cumsum([0, *(len(word) + 1 for word in row)])
        for first, after in zip(bounds, bounds[1:], strict=False):
            own = [id for id, start in zip(ids, starts, strict=True) if first <= start < after]
            expected.append(own[0] if own else None)
    found = [None] * len(expected)
    for unit, id in zip(rows.units, rows.tokens.token_ids, strict=True):
        if unit >= 0:
            assert found[unit] is None
            found[unit] = id
    assert found == expected
    assert rows.counts.tolist() == [len(row) for row in words]
    assert [len(tags) for tags in tagger.predict(words)] == [len(row) for row in words]


def test_labels_of_spans(tagger):
    # "house," is two words; the second span begins within one; the last has no word of its own.
    text = "the red house, on hill"
    spans = [(4, 13, "GOOD"), (16, 22, "BAD")]
    _, labels = tagger.labeled_rows([text], [spans])
    names = [tagger.tag_names[number] for number in labels]
    assert names == ["O", "B-GOOD", "I-GOOD", "O", "B-BAD", "I-BAD"]
    _, labels = tagger.labeled_rows([text], [[(4, 6, "GOOD"), (6, 7, "BAD")]])
    assert [tagger.tag_names[number] for number in labels][:3] == ["O", "B-GOOD", "O"]


def test_tokens_as_units(tiny_preset):
    preprocessor = CocoLMTokenClassifierPreprocessor.from_preset(tiny_preset, unit="token")
    tagger = CocoLMTokenClassifier.from_preset(
        tiny_preset, label_names=LABELS, preprocessor=preprocessor
    )
    rows, labels = tagger.labeled_rows(["catdog"], [[(3, 6, "GOOD")]])
    inside = [
        tagger.tag_names[n] for n, start in zip(labels, rows.starts, strict=True) if start >= 3
    ]
    assert inside == ["B-GOOD", *["I-GOOD"] * (len(inside) - 1)]
    assert CocoLMTokenClassifierPreprocessor.from_config(preprocessor.get_config()).unit == "token"


def test_tags_in_any_scheme_are_the_same_labels(tagger):
    words = [["a", "cat", "saw"]]
    expected = tagger.labeled_rows(words, [["B-BAD", "I-BAD", "O"]])[1].tolist()
    for tags in (["B-BAD", "E-BAD", "O"], ["I-BAD", "I-BAD", "O"]):
        assert tagger.labeled_rows(words, [tags])[1].tolist() == expected


def test_single_words(tiny_preset):
    tagger = CocoLMTokenClassifier.from_preset(
        tiny_preset, label_names=["DET", "NOUN"], scheme="none"
    )
    tagger.compile(run_eagerly=True)
    tagger.fit([["the", "cat"]], [["DET", "NOUN"]], verbose=0)
    (tags,) = tagger.predict([["the", "cat", "saw"]])
    assert len(tags) == 3
    assert set(tags) <= {"DET", "NOUN"}
    (spans,) = tagger.predict(["the cat, saw"])
    assert [span.text for span in spans] == ["the", "cat", ",", "saw"]


def test_the_preprocessor_in_a_dataset(tagger):
    words = tf.ragged.constant([["the", "cat"], ["a"]])
    numbers = tf.ragged.constant([[1, 2], [3]])
    dataset = tf.data.Dataset.from_tensor_slices((words, numbers)).batch(2)
    features, labels, weights = next(iter(dataset.map(tagger.preprocessor)))
    assert features["token_ids"].shape == [2, 24]
    assert labels.numpy()[weights.numpy() > 0].tolist() == [1, 2, 3]
    eager = tagger.preprocessor([["the", "cat"], ["a"]], [[1, 2], [3]])
    np.testing.assert_array_equal(eager[1], labels)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("a cat", [[]], "texts come in batches"),
        ([], [], "there are no texts"),
        (["a cat", ["a"]], [[], []], "text 1 is .*: texts are all strings, or all lists of words"),
        (["a", 3], [[], []], "text 1 is 3"),
        ([["a", 3]], [["O", "O"]], "3 is no word"),
        (["a cat"], None, "1 texts, but nothing: y has, for each text, its spans"),
        (["a cat"], [[], []], "1 texts, but labels of 2"),
        (["a cat"], [[(0, 9, "BAD")]], r"text 0 has the span \(0, 9, 'BAD'\), which is not in"),
        (
            ["a cat"],
            [[(0, 3, "BAD"), (2, 4, "BAD")]],
            r"\(2, 4, 'BAD'\), which is not .* after 3",
        ),
        (["a cat"], [["O", "O"]], "text 0 has the spans"),
        (["a cat"], [[(0, 1, "UGLY")]], "text 0 has the label 'UGLY', none of BAD, GOOD"),
        ([["a", "cat"]], [["O"]], r"text 0 has 2 words and the labels \['O'\]"),
        ([["a"]], [["BAD"]], "text 0: 'BAD' is no tag of a chunk"),
        ([["a"]], [["B-UGLY"]], "text 0 has the label 'UGLY', none of BAD, GOOD"),
    ],
)
def test_what_is_wrong_is_named(tagger, x, y, message):
    with pytest.raises(ValueError, match=message):
        tagger.fit(x, y)


def test_arguments_that_do_not_fit(tagger, tiny_preset):
    for arguments, message in (
        ({"label_names": []}, "must be different labels"),
        ({"label_names": ["A", "A"]}, "must be different labels"),
        ({"label_names": ["A"], "scheme": "none"}, "must be different labels"),
        ({"label_names": ["A"], "scheme": "IOB"}, "scheme='IOB' is none of BIO, BIOES, none"),
    ):
        with pytest.raises(ValueError, match=message):
            CocoLMTokenClassifier(tagger.backbone, **arguments)
    for arguments in ({"unit": "letter"}, {"overlap": 22}, {"sequence_length": 2}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            CocoLMTokenClassifierPreprocessor.from_preset(tiny_preset, **arguments)
