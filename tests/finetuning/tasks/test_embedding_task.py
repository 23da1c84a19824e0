import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny_presets import opinions

from cocolm_tf import CocoLMTextEmbedder
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.tasks.embedding import EmbeddingTask

FAST = {
    "data": {"length_buckets": 1},
    "optimizer": {"learning_rate": 5e-3},
    "trainer": {"batch_size": 8, "epochs": 2, "micro_batches": 2},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, whose texts are similar where their opinions are, and a small collection."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, count, seed in (("train", 48, 1), ("dev", 16, 2)):
        pairs = zip(opinions(count, seed), opinions(count, seed + 10), strict=True)
        rows = "".join(f"{a}\t{b}\t{5.0 if x == y else 1.0}\n" for (a, x), (b, y) in pairs)
        (folder / f"{name}.tsv").write_text("first\tsecond\tscore\n" + rows)
    texts = [text for text, _ in opinions(12, seed=3)]
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "' + texts[4] + '"}\n')
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td4\t1\n")
    return folder


def make(tiny_preset, data_dir, data=None, **fields) -> EmbeddingTask:
    config = FinetuningConfig()
    config.override(FAST)
    data = {
        "name": "opinions",
        "train_file": f"{data_dir}/train.tsv",
        "columns": ["first", "second"],
    } | (data or {})
    return EmbeddingTask(preset=tiny_preset, config=config.as_dict(), data=data, **fields)


def test_similarities_from_a_table_to_a_preset(tiny_preset, data_dir, do_task, tmp_path):
    data = {"score_column": "score", "score_range": [0, 5], "dev_file": f"{data_dir}/dev.tsv"}
    task = make(tiny_preset, data_dir, data, dimensions=[16, 4], metric="pearson")
    results, _ = do_task(task, tmp_path)
    assert set(results["dev"]) == set(results["baseline"]) == {"dev", "dev at 4 dimensions"}
    assert results["metric"] == "pearson"
    assert results["score"] == results["dev"]["dev"]["pearson"]
    assert results["score"] != results["baseline"]["dev"]["pearson"]
    rows = np.loadtxt(tmp_path / "predictions" / "dev.tsv", skiprows=1)
    assert rows.shape == (16, 3)
    expected = stats.pearsonr(rows[:, 1], rows[:, 2]).statistic
    assert results["score"] == pytest.approx(expected, abs=1e-3)
    embedder = CocoLMTextEmbedder.from_preset(str(tmp_path / "preset"))
    assert (embedder.pooling_mode, embedder.dimensions) == ("mean", [16, 4])
    lines = Path(data_dir, "dev.tsv").read_text().splitlines()[1:]
    first, second, _ = zip(*(line.split("\t") for line in lines), strict=True)
    inputs = [embedder(embedder.preprocessor(list(texts))) for texts in (first, second)]
    np.testing.assert_allclose(np.sum(np.multiply(*inputs), axis=1), rows[:, 2], atol=1e-4)
    card = (tmp_path / "preset" / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card and "Before fine-tuning" in card


def test_pairs_are_measured_by_searches(tiny_preset, data_dir):
    task = make(tiny_preset, data_dir, {"retrieval_dir": str(data_dir)}, save_preset=False)
    config = FinetuningConfig()
    config.override(task.config)
    prepared = task.prepare(config)
    assert prepared.metric == "ndcg@10"
    # The query is a document's own text.
    assert prepared.measure()["retrieval"]["mrr@10"] == 1.0
    assert prepared.report["retrieval"]["source"].endswith(", 12 documents")
    batches, steps, rows = prepared.training()
    (x, y, weights), *_ = batches.take(1)
    assert (rows, steps) == (48, 6) and y is None and len(weights) == 8
    assert set(x) == {"queries", "documents"}
    assert {Path(path).name for path in task.files_read()} == {
        "train.tsv",
        "corpus.jsonl",
        "queries.jsonl",
        "test.tsv",
    }


def test_a_dev_set_is_split_off_and_rows_are_drawn(tiny_preset, data_dir):
    data = make(tiny_preset, data_dir, {"dev_fraction": 0.25}).read()
    assert len(data.train) == 36 and len(data.dev["dev"].queries) == 12
    task = make(tiny_preset, data_dir, {"dev_fraction": 0.25}, train_fraction=0.5)
    config = FinetuningConfig()
    assert task.prepare(config).report["train"]["rows"] == 18


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"metric": "pearson"}, "--metric=pearson: that of opinions is one of ndcg@10, recall@1"),
        ({"dimensions": [99]}, "--dimensions=99: vectors have 1 to 16 of them"),
        ({"data": {"columns": ["first", "third"]}}, "no column 'third'"),
    ],
)
def test_what_cannot_be_is_refused(tiny_preset, data_dir, fields, complaint):
    task = make(tiny_preset, data_dir, **fields)
    with pytest.raises(UserError, match=complaint):
        task.check()
