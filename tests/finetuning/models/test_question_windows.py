from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_presets import CONTEXT_WORDS

from cocolm_tf.finetuning.models.question_answerer import (
    CocoLMQuestionAnswererPreprocessor,
)
from cocolm_tf.finetuning.models.question_windows import (
    NUM_SPECIAL_TOKENS,
    check_window_sizes,
    learning_batches,
    reading_batches,
    window_rows,
)

LONG = CONTEXT_WORDS
WORDS = LONG.split()


@pytest.fixture(scope="module")
def make(tiny_preset: str) -> Any:
    tokenizer = CocoLMQuestionAnswererPreprocessor.from_preset(tiny_preset).tokenizer

    def make(**lengths: int) -> CocoLMQuestionAnswererPreprocessor:
        return CocoLMQuestionAnswererPreprocessor(tokenizer, **lengths)

    return make


def test_a_short_context_is_one_window(make):
    preprocessor = make(sequence_length=32, stride=4, max_question_length=8)
    tokenizer = preprocessor.tokenizer
    question, context = "some dog", "a cat saw it"
    windows = preprocessor.windows([question], [context], [[2, 5]])
    first, second = tokenizer([question, context])
    row = [0, *first, 2, 2, *second, 2]
    assert windows.token_ids.numpy().tolist() == [row + [1] * (32 - len(row))]
    assert windows.padding_mask.numpy().sum() == len(row)
    (start,), (end,) = windows.start_positions.numpy(), windows.end_positions.numpy()
    assert context[windows.starts[0, start] : windows.ends[0, end]] == "cat"
    outside = [*range(len(first) + 3), *range(len(row) - 1, 32)]
    assert set(np.array(windows.starts)[0, outside]) == {-1}
    assert set(np.array(windows.ends)[0, outside]) == {-1}


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join),
            st.lists(st.sampled_from([*WORDS, "“it”", "½", "日"]), max_size=60).map("  ".join),
        ),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_windows_never_lose_an_answer_that_fits(make, texts, data):
    max_question_length = data.draw(st.integers(1, 6))
    max_answer_length = data.draw(st.integers(1, 6))
    stride = data.draw(st.integers(1, 12))
    spare = data.draw(st.integers(0, 5))
    room = stride + max_answer_length - 1 + spare
    preprocessor = make(
        sequence_length=room + max_question_length + NUM_SPECIAL_TOKENS,
        stride=stride,
        max_question_length=max_question_length,
    )
    check_window_sizes(preprocessor.sequence_length, stride, max_question_length, max_answer_length)
    questions, contexts = map(list, zip(*texts, strict=True))
    ids, starts, ends, _ = preprocessor.tokenizer.tokenize_with_offsets(contexts)
    answers, expected = [], []
    for row in range(len(contexts)):
        begins, stops = starts[row].numpy(), ends[row].numpy()
        visible = np.flatnonzero(begins < stops)
        if not len(visible):
            answers.append((0, 0))
            expected.append(None)
            continue
        first = data.draw(st.sampled_from(visible.tolist()))
        near = [i for i in visible.tolist() if first <= i < first + max_answer_length]
        last = data.draw(st.sampled_from(near))
        answers.append((int(begins[first]), int(stops[last])))
        expected.append(answers[-1])
    windows = preprocessor.windows(questions, contexts, answers)
    rows = windows.rows.numpy()
    for row, span in enumerate(expected):
        of_row = np.flatnonzero(rows == row)
        # Together the windows have every token of the context, in order, and nothing else.
        seen = {}
        for window in of_row:
            places = np.array(windows.starts)[window] >= 0
            pairs = (
                np.array(windows.starts)[window][places],
                np.array(windows.token_ids)[window][places],
            )
            for number, pair in enumerate(zip(*pairs, strict=True)):
                seen.setdefault((window - of_row[0]) * stride + number, set()).add(pair)
        tokens = list(zip(starts[row].numpy(), ids[row].numpy(), strict=True))
        assert seen == {number: {pair} for number, pair in enumerate(tokens)}
        found = {
            (int(windows.starts[w, s]), int(windows.ends[w, e]))
            for w in of_row
            for s, e in [(int(windows.start_positions[w]), int(windows.end_positions[w]))]
            if s
        }
        assert found == ({span} if span else set())


def test_says_which_sizes_lose_answers():
    check_window_sizes(384, 128, 64, 30)
    check_window_sizes(20, 5, 6, 6)
    for sizes in ((20, 6, 6, 6), (20, 5, 7, 6), (20, 5, 6, 7)):
        with pytest.raises(ValueError, match=r"leaves \d+ tokens .* need \d+"):
            check_window_sizes(*sizes)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        check_window_sizes(20, 0, 6, 6)


def test_too_little_room_is_refused(make):
    with pytest.raises(ValueError, match="leaves 4 tokens .* stride=5"):
        make(sequence_length=16, stride=5, max_question_length=8)


def test_long_questions_are_cut_off_and_counted(make):
    preprocessor = make(sequence_length=16, stride=4, max_question_length=3)
    rows = window_rows(preprocessor, [LONG, "a"], ["a dog", "a dog"])
    assert rows.tokens.truncated == 1
    assert rows.tokens.lengths.tolist()[0] == 3 + NUM_SPECIAL_TOKENS + len(
        preprocessor.tokenizer("a dog")
    )


def test_answers_that_are_none_are_none(make):
    preprocessor = make(sequence_length=16, stride=4, max_question_length=3)
    contexts = ["a dog", "a dog", "", "a  dog"]
    windows = preprocessor.windows(["a"] * 4, contexts, [[0, 0], [3, 3], [0, 9], [1, 3]])
    assert windows.start_positions.numpy().tolist() == [0, 0, 0, 0]
    assert len(windows.rows) == 4


def test_rows_are_the_windows_without_padding(make):
    preprocessor = make(sequence_length=16, stride=4, max_question_length=3)
    questions, contexts = ["a dog", "rain", "it"], [LONG, "a cat", ""]
    answers = [[6, 13], [2, 5], [0, 0]]
    rows = window_rows(preprocessor, questions, contexts, answers)
    windows = preprocessor.windows(questions, contexts, answers)
    assert rows.questions.tolist() == windows.rows.numpy().tolist()
    spans = {
        number: contexts[number][slice(*span)] for number, span in rows.learned_spans().items()
    }
    assert spans == {0: LONG[6:13], 1: "cat"}
    batches, order = reading_batches(rows, batch_size=2)
    assert len(batches) == -(-len(rows) // 2)
    seen = 0
    for features in batches:
        width = features["token_ids"].shape[1]
        for row, window in enumerate(order[seen : seen + 2]):
            for name in ("token_ids", "padding_mask", "starts", "ends"):
                expected = getattr(windows, name)[window, :width]
                assert features[name][row].numpy().tolist() == expected.numpy().tolist()
            seen += 1
    assert sorted(order) == list(range(len(rows)))

    batches, steps = learning_batches(rows, batch_size=2, seed=3, buckets=1)
    ends = [
        int(end)
        for _, labels, weights in batches.take(steps)
        for end, weight in zip(labels["end"], weights, strict=True)
        if weight
    ]
    assert sorted(ends) == sorted(windows.end_positions.numpy())
