import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cocolm_tf.data.tags import (
    SCHEMES,
    Chunk,
    TagCodes,
    TagColumns,
    chunks,
    chunks_of_numbers,
    converted,
    read_tag_task,
    read_tagged_texts,
    tag_names,
    tags_of_chunks,
)
from cocolm_tf.errors import UserError

NAMES = ["O", *(f"{prefix}-{label}" for prefix in "BIES" for label in ("X", "Y-1"))]
TAGS = st.lists(st.sampled_from(NAMES), max_size=9)


# What `seqeval.metrics.sequence_labeling.get_entities` says of the same tags.
@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-X I-X O B-Y", [(0, 2, "X"), (3, 4, "Y")]),
        ("B-X B-X I-X", [(0, 1, "X"), (1, 3, "X")]),
        ("I-X I-X O I-X", [(0, 2, "X"), (3, 4, "X")]),  # IOB1, or no beginning
        ("B-X I-Y I-Y", [(0, 1, "X"), (1, 3, "Y")]),
        ("S-X S-X B-X E-X", [(0, 1, "X"), (1, 2, "X"), (2, 4, "X")]),
        ("E-X E-X I-X", [(0, 1, "X"), (1, 2, "X"), (2, 3, "X")]),
        ("B-X O E-X", [(0, 1, "X"), (2, 3, "X")]),
        ("S-X I-X E-X", [(0, 1, "X"), (1, 3, "X")]),
        ("B-Y-1 I-Y-1", [(0, 2, "Y-1")]),
    ],
)
def test_chunks_are_those_of_seqeval(tags, found):
    assert chunks(tags.split()) == [Chunk(*chunk) for chunk in found]


@hypothesis.given(st.lists(TAGS, min_size=1, max_size=4))
def test_the_chunks_of_all_sequences_are_those_of_each(sequences):
    codes = TagCodes.of(NAMES)
    lengths = np.array([len(tags) for tags in sequences])
    numbers = np.array([NAMES.index(tag) for tags in sequences for tag in tags], int)
    expected = [
        [start + offset, end + offset, codes.labels.index(label)]
        for tags, offset in zip(sequences, np.cumsum(lengths) - lengths, strict=True)
        for start, end, label in chunks(tags)
    ]
    assert chunks_of_numbers(numbers, lengths, codes).tolist() == expected


@hypothesis.given(TAGS, st.sampled_from(list(SCHEMES)))
def test_a_scheme_keeps_the_chunks_and_has_its_own_tags(tags, scheme):
    written = converted(tags, scheme)
    assert chunks(written) == chunks(tags)
    assert set(written) <= set(tag_names(["X", "Y-1"], scheme))
    assert converted(written, scheme) == written


def test_schemes():
    found = [Chunk(0, 1, "X"), Chunk(1, 4, "Y")]
    assert tags_of_chunks(found, 5, "BIO") == ["B-X", "B-Y", "I-Y", "I-Y", "O"]
    assert tags_of_chunks(found, 5, "BIOES") == ["S-X", "B-Y", "I-Y", "E-Y", "O"]
    assert tag_names(["X", "Y"], "BIO") == ["O", "B-X", "I-X", "B-Y", "I-Y"]
    with pytest.raises(ValueError, match="a scheme is one of BIO, BIOES, not 'IOB'"):
        tag_names(["X"], "IOB")


@pytest.mark.parametrize("tag", ["", "NOUN", "B", "X-LOC", "B-", "b-LOC", "BI-LOC"])
def test_what_is_no_tag(tag):
    with pytest.raises(ValueError, match="is no tag of a chunk"):
        chunks(["O", tag])


# Files of texts with tags or spans.


CONLL = """-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O
# NN O

Peter NNP B-PER
Blackburn NNP I-PER
"""
CONLL_U = """# sent_id = 1
# text = Sue's cat sat
1-2\tSue's\t_\t_\t_\t_\t_\t_\t_\t_
1\tSue\t_\tPROPN\t_\t_\t_\t_\t_\t_
2\t's\t_\tPART\t_\t_\t_\t_\t_\t_
3\tcat\t_\tNOUN\t_\t_\t_\t_\t_\t_
3.1\tx\t_\tX\t_\t_\t_\t_\t_\t_

"""


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return str(tmp_path / name)

    return write


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_conll(write):
    texts = read_tagged_texts(write("a.conll", CONLL))
    assert texts.texts == [["EU", "rejects", "#"], ["Peter", "Blackburn"]]
    assert texts.labels == [["B-ORG", "O", "O"], ["B-PER", "I-PER"]]
    assert texts.has_words


def test_conll_u(write):
    columns = TagColumns(token_column=1, tag_column=3)
    texts = read_tagged_texts(write("a.conllu", CONLL_U), columns, single_words=True)
    assert texts.texts == [["Sue", "'s", "cat"]]
    assert texts.labels == [["PROPN", "PART", "NOUN"]]


def test_words_alone_are_a_file_to_predict(write):
    path = write("a.txt", "The\ncat\n\nsat\n")
    texts = read_tagged_texts(path, has_labels=None)
    assert (texts.texts, texts.labels) == ([["The", "cat"], ["sat"]], None)
    with pytest.raises(UserError, match=r"a.txt:1 has no labels; 2 of 2 texts are bad\."):
        read_tagged_texts(path)


def test_spans(write):
    rows = [
        {"text": "Ada met Bo.", "spans": [[8, 10, "PER"], {"start": 0, "end": 3, "label": "PER"}]},
        {"text": "Nobody came.", "spans": []},
    ]
    texts = read_tagged_texts(write("a.jsonl", json_lines(*rows)))
    assert texts.texts == ["Ada met Bo.", "Nobody came."]
    assert texts.labels == [[Chunk(0, 3, "PER"), Chunk(8, 10, "PER")], []]
    assert not texts.has_words


def test_words_in_json_lines(write):
    rows = [{"words": ["Ada", "sat"], "ner": ["B-PER", "O"]}]
    columns = TagColumns(tokens="words", tags="ner")
    texts = read_tagged_texts(write("a.jsonl", json_lines(*rows)), columns)
    assert texts.labels == [["B-PER", "O"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "is not a JSON object"),
        ({"texts": "x"}, "has neither 'text', a text, nor 'tokens', its words: it has texts"),
        ({"text": 3}, "has in 'text' no string: 3"),
        ({"text": "Ada"}, "has no labels"),
        ({"text": "Ada", "spans": {}}, "has no list of spans"),
        ({"text": "Ada", "spans": [[0, 3]]}, "has the span [0, 3], which is no"),
        ({"text": "Ada", "spans": [[0, 4, "P"]]}, "has the span 0 to 4 in a text of 3 characters"),
        ({"text": "Ada", "spans": [[1, 1, "P"]]}, "has the span 1 to 1 in a text of 3"),
        (
            {"text": "Ada B", "spans": [[0, 3, "P"], [2, 5, "P"]]},
            "has the spans 0 to 3 and 2 to 5, which overlap",
        ),
        (
            {"text": "é Ada", "spans": [{"start": 3, "end": 5, "label": "P", "text": "Ad"}]},
            "has the span 3 to 5, which is said to be 'Ad' and is 'da': places are counted in",
        ),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "has 1 words and 2 tags"),
        ({"tokens": ["a"], "tags": ["NOUN"]}, "has a tag that is none: 'NOUN' is no tag of"),
        ({"tokens": "a b"}, "has in 'tokens' no list of strings"),
    ],
)
def test_a_wrong_line_is_named(write, row, message):
    path = write("a.jsonl", json_lines({"text": "Bo", "spans": []}, row))
    with pytest.raises(UserError) as error:
        read_tagged_texts(path)
    assert str(error.value).startswith(f"{path}:2 {message}")


def test_a_broken_sentence_is_left_out_where_some_may_be(write):
    path = write("a.conll", "a O\nb\n\nc O\n")
    with pytest.raises(UserError, match=r"a.conll:2 has 1 columns, where lines before have 2\."):
        read_tagged_texts(path)
    texts = read_tagged_texts(path, max_bad_share=0.5)
    assert texts.texts == [["c"]]
    assert texts.left_out == ["line 2 has 1 columns, where lines before have 2"]


def test_a_task(write):
    train = write("train.conll", "\n\n".join(f"w{n} B-X" for n in range(10)) + "\n")
    task = read_tag_task(train, dev_fraction=0.3)
    assert (task.name, task.label_names) == ("train", ["X"])
    assert (len(task.train), len(task.dev["dev"])) == (7, 3)
    assert sorted([*task.train.texts, *task.dev["dev"].texts]) == [[f"w{n}"] for n in range(10)]
    assert read_tag_task(train, dev_fraction=0.3) == task
    dev = write("dev.conll", "w I-Y\n")
    with pytest.raises(UserError, match="has the label 'Y', which .*train.conll has not: it has X"):
        read_tag_task(train, dev)


def test_tags_of_single_words(write):
    path = write("a.conll", "a DET\ncat NOUN\n\nsat VERB\n")
    with pytest.raises(UserError, match="say --scheme=none"):
        read_tag_task(path)
    task = read_tag_task(path, dev_file=path, scheme="none")
    assert task.label_names == ["DET", "NOUN", "VERB"]
