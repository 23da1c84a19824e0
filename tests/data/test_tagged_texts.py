import json

import pytest

from cocolm_tf.data.tagged_texts import TagColumns, read_tag_task, read_tagged_texts
from cocolm_tf.data.tags import Chunk
from cocolm_tf.errors import UserError

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
