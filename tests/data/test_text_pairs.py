import gzip
import json

import numpy as np
import pytest

from cocolm_tf.data.text_pairs import (
    TextPairs,
    read_pairs,
    read_retrieval,
    retrieval_of_pairs,
)
from cocolm_tf.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(name, *rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return str(path)

    return write


@pytest.fixture
def collection(write, tmp_path):
    """A small corpus in BEIR's layout."""
    write(
        "corpus.jsonl",
        {"_id": "d1", "title": "Cats", "text": "A cat sat.", "metadata": {}},
        {"_id": "d2", "title": "", "text": "It rained."},
        {"_id": 3, "text": "A dog ran."},
    )
    write("queries.jsonl", {"_id": "q1", "text": "Who sat?"}, {"_id": "q2", "text": "Who ran?"})
    write("qrels/test.tsv", "query-id\tcorpus-id\tscore", "q1\td1\t2", "q1\td2\t0")
    write("qrels/dev.tsv", "query-id\tcorpus-id\tscore", "q2\t3\t1")
    return str(tmp_path)


def test_pairs_with_scores(write):
    path = write("sts.tsv", "a\tb\tscore", "one\ttwo\t5", "three\tfour\t1.25")
    pairs = read_pairs(path, ["a", "b"], "score", (0, 5))
    assert pairs.columns == (["one", "three"], ["two", "four"])
    assert pairs.scores.dtype == np.float32 and pairs.scores.tolist() == [1, 0.25]


def test_triplets(write):
    path = write("nli.jsonl", {"q": "one", "d": "two", "n1": "three", "n2": "four"})
    pairs = read_pairs(path, ["q", "d", "n2", "n1"])
    assert pairs.columns == (["one"], ["two"], ["four"], ["three"]) and pairs.scores is None


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("one\t \t1", "sts.tsv:3 has an empty text."),
        ("one\ttwo\t6", "sts.tsv:3 has the label '6', not a number from 0 to 5."),
        ("one\ttwo", "sts.tsv:3 has 2 columns, not 3."),
    ],
)
def test_a_bad_row_is_named_or_left_out(write, row, complaint):
    path = write("sts.tsv", "a\tb\tscore", "one\ttwo\t5", row)
    with pytest.raises(UserError) as caught:
        read_pairs(path, ["a", "b"], "score", (0, 5))
    assert str(caught.value).endswith(complaint)
    pairs = read_pairs(path, ["a", "b"], "score", (0, 5), max_bad_share=0.5)
    assert len(pairs) == 1 and len(pairs.left_out) == 1


def test_a_range_that_is_none(write):
    with pytest.raises(UserError, match="--score_range=5,0 must be ascending"):
        read_pairs("sts.tsv", ["a", "b"], "score", (5, 0))


def test_a_dev_set_has_no_first_text_of_the_training_pairs():
    firsts = [f"text {number // 3}" for number in range(60)]
    pairs = TextPairs((firsts, [str(n) for n in range(60)]), np.arange(60, dtype=np.float32))
    train, dev = pairs.split(0.2)
    assert len(train) == 48 and len(dev) == 12
    assert not set(train.columns[0]) & set(dev.columns[0])
    assert sorted([*train.scores, *dev.scores]) == [*range(60)]
    assert pairs.split(0.2)[1].columns == dev.columns
    for fraction in (0.0, 1.0):
        with pytest.raises(UserError, match="--dev_fraction"):
            pairs.split(fraction)
    with pytest.raises(UserError, match="too few to split"):
        TextPairs((["one"], ["two"])).split(0.5)


def test_a_collection_in_beirs_layout(collection):
    found = read_retrieval(collection)
    assert found.documents == {"d1": "Cats A cat sat.", "d2": "It rained.", "3": "A dog ran."}
    assert found.queries == {"q1": "Who sat?"} and found.relevance == {"q1": {"d1": 2}}
    assert read_retrieval(collection, "dev").relevance == {"q2": {"3": 1}}


def test_a_corpus_may_be_a_table_and_compressed(collection, tmp_path):
    expected = read_retrieval(collection).documents
    (tmp_path / "corpus.jsonl").unlink()
    with gzip.open(tmp_path / "corpus.csv.gz", "wt") as file:
        file.write("title,_id,text\nCats,d1,A cat sat.\n,d2,It rained.\n,3,A dog ran.\n")
    assert read_retrieval(collection).documents == expected


@pytest.mark.parametrize(
    ("name", "rows", "complaint"),
    [
        ("queries.csv", ["_id,text", "q1,Who?"], "has queries.csv, queries.jsonl of queries{"),
        ("qrels/test.tsv", ["query-id\tcorpus-id\tscore", "q1\tdx\t1"], "test.tsv:2 names the d"),
        ("qrels/test.tsv", ["query-id\tcorpus-id\tscore", "q9\td1\t1"], "names the query 'q9'"),
        ("qrels/test.tsv", ["query-id\tcorpus-id\tscore", "q1\td1\t-1"], "has the score '-1'"),
        ("qrels/test.tsv", ["query-id\tcorpus-id\tscore", "q1\td1\t0"], "no document that is"),
        ("qrels/test.tsv", ["query\tcorpus-id\tscore", "q1\td1\t0"], "no column 'query-id'"),
        ("queries.jsonl", ['{"_id": "q1"}', '{"_id": "q1", "text": ""}'], "queries.jsonl:1 has no"),
        (
            "queries.jsonl",
            ['{"_id": "q1", "text": "a"}'] * 2,
            "queries.jsonl:2 has the _id 'q1' fo",
        ),
    ],
)
def test_what_is_wrong_with_a_collection_is_named(collection, write, name, rows, complaint):
    write(name, *rows)
    with pytest.raises(UserError) as caught:
        read_retrieval(collection)
    assert complaint in str(caught.value)


def test_a_part_that_is_missing(collection):
    with pytest.raises(UserError, match="has none of qrels/train{.tsv,.csv,.jsonl}"):
        read_retrieval(collection, "train")


def test_pairs_are_searched_among_each_other():
    pairs = TextPairs((["a", "a", "b"], ["x", "y", "x"]))
    found = retrieval_of_pairs(pairs)
    by_text = {
        found.queries[query]: {found.documents[document] for document in relevant}
        for query, relevant in found.relevance.items()
    }
    assert by_text == {"a": {"x", "y"}, "b": {"x"}} and len(found.documents) == 2
