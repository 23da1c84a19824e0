import json
from pathlib import Path

import numpy as np
import pytest

from cocolm_tf.analysis.pairs import SentencePairs, read_pairs
from cocolm_tf.errors import UserError

TABLE = 'index\tsentence1\tsentence2\tscore\n0\tA "cat.\tA dog.\t1.5\n1\tOne.\t Two. \t5.000\n'


def test_a_table_as_glue_has_it(tmp_path: Path):
    path = tmp_path / "dev.tsv"
    path.write_text(TABLE)
    pairs = read_pairs(str(path))
    assert pairs.first == ['A "cat.', "One."]
    assert pairs.second == ["A dog.", "Two."]
    assert pairs.scores.tolist() == [1.5, 5.0]
    assert len(pairs) == 2


def test_json_lines_without_scores(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"sentence1": "a", "sentence2": "b", "more": 1}, {"sentence1": "c", "sentence2": "d"}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    pairs = read_pairs(str(path))
    assert (pairs.first, pairs.second, pairs.scores) == (["a", "c"], ["b", "d"], None)
    assert pairs.most_similar() is pairs


def test_the_most_similar_have_the_highest_score():
    pairs = SentencePairs(list("abc"), list("xyz"), np.array([5.0, 2.0, 5.0])).most_similar()
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["a", "c"], ["x", "z"], [5, 5])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.tsv", "", "sentence1 among them"),
        ("p.tsv", "a\tb\n", "sentence1 among them"),
        ("p.tsv", "sentence1\tsentence2\n", "has no rows"),
        ("p.tsv", "sentence1\tsentence2\na\n", ":2 has 1 columns, the header 2"),
        ("p.tsv", "sentence1\tsentence2\na\t \n", ":2 has no sentence2"),
        ("p.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\n", ":2: score must be a number"),
        ("p.tsv", b"sentence1\tsentence2\n\xff\tb\n", "not UTF-8"),
        ("p.jsonl", "nonsense\n", ":1 is not JSON"),
        ("p.jsonl", "[1]\n", ":1 is not a JSON object"),
        ("p.jsonl", '{"sentence1": "a"}\n', ":1 has no sentence2"),
        ("p.jsonl", '{"sentence1": "a", "sentence2": 7}\n', ":1 has no sentence2"),
        (
            "p.jsonl",
            '{"sentence1": "a", "sentence2": "b"}\n'
            '{"sentence1": "a", "sentence2": "b", "score": 1}\n',
            ":2: either all pairs have a score, or none",
        ),
        ("p.jsonl", '{"sentence1": "a", "sentence2": "b", "score": NaN}\n', "must be a number"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, content: str | bytes, complaint: str):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_pairs(str(path))
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"--pairs=.*none\.tsv does not exist"):
        read_pairs(str(tmp_path / "none.tsv"))
