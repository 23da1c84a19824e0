import numpy as np
import pandas
import pytest
import tensorflow as tf

from cocolm_tf.finetuning.models.raw_inputs import (
    Labels,
    answer_spans,
    as_model_input,
    check_dataset,
    check_weights,
    explain_label_errors,
    text_columns,
)

ONE, TWO = ["a", "b", "c"], ["x", "y", "z"]
NAMES = ["bad", "good"]


@pytest.mark.parametrize(
    "texts",
    [
        ONE,
        np.array(ONE),
        np.array(ONE, object),
        np.array([ONE]).T,
        pandas.Series(ONE, index=[7, 8, 9]),
        pandas.Series(ONE, dtype="category"),
        pandas.Series(ONE, dtype="string"),
        pandas.DataFrame({"text": ONE}),
        (ONE,),
    ],
    ids=str,
)
def test_texts_in_every_form(texts):
    assert text_columns(texts) == (ONE,)
    assert as_model_input(text_columns(texts)).tolist() == ONE


@pytest.mark.parametrize(
    "pairs",
    [
        (ONE, TWO),
        (np.array(ONE), pandas.Series(TWO)),
        np.array([ONE, TWO]).T,
        pandas.DataFrame({"first": ONE, "second": TWO}),
        [*zip(ONE, TWO, strict=True)],
        [list(pair) for pair in zip(ONE, TWO, strict=True)],
    ],
    ids=lambda pairs: type(pairs).__name__,
)
def test_pairs_in_every_form(pairs):
    assert text_columns(pairs) == (ONE, TWO)
    assert [column.tolist() for column in as_model_input(text_columns(pairs))] == [ONE, TWO]


def test_tensors_and_bytes_stay_bytes():
    assert text_columns(tf.constant(ONE)) == ([b"a", b"b", b"c"],)
    assert text_columns([b"a", "b"]) == ([b"a", "b"],)


def test_tokens_and_datasets_are_no_texts():
    assert text_columns({"token_ids": [[1]]}) is None
    assert text_columns(tf.data.Dataset.from_tensor_slices(ONE)) is None
    assert text_columns(iter(ONE)) is None


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ("a text", "texts come in batches: give a list of texts instead of 'a text'"),
        (("a text", "another"), "texts come in batches"),
        (tf.constant("a text"), "texts come in batches"),
        ((ONE, TWO[:2]), "3 first texts, 2 second texts: each row has one of both"),
        ((ONE, TWO, ONE), "not 3 texts"),
        ([ONE, TWO], "not 3 texts: give the columns of pairs as a tuple"),
        (["a", None], "text 1 is None, not a string: leave out the rows"),
        (pandas.Series(["a", None, "b"]), "text 1 is "),
        (pandas.Series(["a", float("nan")], dtype=object), "text 1 is nan"),
        ([1, 2], "text 0 is 1, not a string"),
        (np.zeros([3, 2]), "text 0 is 0.0, not a string"),
    ],
)
def test_what_is_no_text_is_named(texts, complaint):
    with pytest.raises(ValueError, match=complaint):
        text_columns(texts)


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 1],
        np.array([1.0, 0.0, 1.0]),
        np.array([[1], [0], [1]]),
        [True, False, True],
        pandas.Series([1, 0, 1], index=[5, 6, 7]),
        pandas.Series([1, 0, 1], dtype="Int64"),
        tf.constant([1, 0, 1]),
        ["good", "bad", "good"],
        [b"good", b"bad", b"good"],
        pandas.Series(["good", "bad", "good"], dtype="category"),
        tf.constant(["good", "bad", "good"]),
    ],
    ids=str,
)
def test_labels_in_every_form(labels):
    found = Labels(2, NAMES).checked(labels, 3)
    assert found.dtype == np.int32 and found.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "complaint"),
    [
        ([1, 0], None, "3 texts, but 2 labels: each text has one. Rows that were left out"),
        ([1, 0, 1, 0], None, "3 texts, but 4 labels"),
        (1, None, "3 texts, but 1 labels"),
        (None, None, "there are no labels: give y."),
        (["good", "bad", "good"], None, "labels are strings: say .* label_names"),
        (["good", "bad", "fine"], NAMES, "label 2 is 'fine', none of bad, good"),
        (["good", None, "bad"], NAMES, "label 1 is None, none of bad, good"),
        ([1, 2, 1], None, "label 1 is 2, but the 2 classes are 0 to 1: count them from 0."),
        ([0, 1, 5], NAMES, "label 2 is 5, but the 2 classes are 0 to 1."),
        ([0, -1, 1], None, "label 1 is -1"),
        ([0, 0.5, 1], None, "label 1 is 0.5"),
        ([0, float("nan"), 1], None, "label 1 is nan, not a finite number"),
        ([0, None, 1], None, "label 1 is None, not a finite number"),
        (pandas.Series([0, None, 1], dtype="Int64"), None, "label 1 is (<NA>|nan), not a"),
        (np.eye(2)[[0, 1, 1]], None, r"not \[3, 2\]: .*CategoricalCrossentropy"),
        ([[0], [0, 1], [1]], None, "one number or name for each text"),
    ],
)
def test_a_label_that_is_no_class_is_named(labels, names, complaint):
    with pytest.raises(ValueError, match=complaint):
        Labels(2, names).checked(labels, 3)


def test_another_loss_takes_other_labels():
    shares = np.eye(2)[[0, 1, 1]]
    assert Labels(2).checked(shares, 3, strict=False) is shares
    with pytest.raises(ValueError, match="4 texts, but 3 labels"):
        Labels(2).checked(shares, 4, strict=False)


def test_numbers():
    found = Labels(1).checked(pandas.Series([1, 2.5, None]).dropna(), 2)
    assert found.dtype == np.float32 and found.tolist() == [1.0, 2.5]
    assert Labels(1, bounds=(0, 5)).checked([[1], [2]], 2).tolist() == [1.0, 2.0]
    assert Labels(1).checked(np.ones([2, 3]), 2).shape == (2, 3)
    for labels, complaint in (
        ([1, float("inf")], "label 1 is inf, not a finite number"),
        ([1, "2"], "label 1 is '2', not a finite number"),
        ([None, 2], "label 0 is None"),
        ([1], "2 texts, but 1 labels"),
        (np.array([[1, 2], [3, np.nan]]), "label 1 is "),
    ):
        with pytest.raises(ValueError, match=complaint):
            Labels(1).checked(labels, 2)
    with pytest.raises(ValueError, match="label 1 is 6, not a number from 0 to 5"):
        Labels(1, bounds=(0, 5)).checked([1, 6], 2)


def test_weights_are_counted():
    check_weights(None, 3)
    check_weights(np.ones(3), 3)
    with pytest.raises(ValueError, match="3 texts, but 2 sample weights"):
        check_weights([1, 1], 3)


def test_datasets_that_cannot_work_are_refused():
    def dataset(*parts):
        return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0])

    check_dataset(dataset(ONE).batch(2), None, has_labels=False)
    check_dataset(dataset(ONE, [0, 1, 1]).batch(2), None, has_labels=True)
    check_dataset(dataset(ONE, NAMES + ["bad"]).batch(2), NAMES, has_labels=True)
    check_dataset(dataset({"token_ids": [[1]]}, [0]), None, has_labels=True)
    for bad, complaint in (
        (dataset(ONE, [0, 1, 1]), r"one text at a time: make batches, dataset.batch\(32\)"),
        (dataset(ONE).batch(2), "gives texts alone"),
        (dataset(ONE, TWO).batch(2), "labels are strings"),
    ):
        with pytest.raises(ValueError, match=complaint):
            check_dataset(bad, None, has_labels=True)


@pytest.mark.parametrize(
    ("labels", "names", "shown"),
    [([0, 2, 1], None, "0 to 1"), ([0, 0.5], None, "0 to 1"), (["bad", "x"], NAMES, "bad, good")],
)
def test_labels_of_a_dataset_are_seen_when_it_runs(labels, names, shown):
    dataset = tf.data.Dataset.from_tensor_slices(labels).batch(2)
    dataset = dataset.map(lambda y: Labels(2, names).in_graph(y, strict=True))
    complaint = f"^the dataset has a label that is no class: the 2 classes are {shown}.$"
    with pytest.raises(ValueError, match=complaint), explain_label_errors():
        list(dataset)
    good = dataset.take(0) if names is None else tf.data.Dataset.from_tensors(["good", "bad"])
    found = good.map(lambda y: Labels(2, names).in_graph(y, strict=True) if names else y)
    assert [y.numpy().tolist() for y in found] == ([[1, 0]] if names else [])


def test_answers_lie_in_their_contexts():
    contexts = ["The cat sat.", "😀"]
    assert answer_spans([[4, 7], [0, 1]], contexts).tolist() == [[4, 7], [0, 1]]
    assert answer_spans(pandas.DataFrame([[0, 0], [1, 1]]), contexts).dtype == np.int32
    for answers, complaint in (
        (None, "y must say where the answers are"),
        (["The cat", "cat"], r"y must say where the answers are: \[N, 2\]"),
        ([[4, 7]], "there are 2 of them"),
        ([[4, 7, 1], [0, 1, 1]], "there are 2 of them"),
        ([[4, 7], [0, 2]], r"answer 1 is \[0, 2\], of a context of 1"),
        ([[7, 4], [0, 1]], r"answer 0 is \[7, 4\]"),
        ([[-1, 4], [0, 1]], r"answer 0 is \[-1, 4\]"),
        ([[0.5, 4], [0, 1]], "answer 0 is"),
        ([[0, 4], [0, float("nan")]], "answer 1 is"),
    ):
        with pytest.raises(ValueError, match=complaint):
            answer_spans(answers, contexts)
