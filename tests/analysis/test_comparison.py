import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocolm_tf.analysis import comparison
from cocolm_tf.analysis.comparison import Findings, write_comparison
from cocolm_tf.analysis.detection import Detections
from cocolm_tf.analysis.figures import PLOTS
from cocolm_tf.analysis.pages import OutputFolder
from cocolm_tf.analysis.runs import read_run
from cocolm_tf.analysis.scores import Score
from cocolm_tf.analysis.sentence_space import SentenceSpace
from cocolm_tf.data.tables import read_table
from cocolm_tf.errors import UserError


@pytest.fixture
def space() -> SentenceSpace:
    generator = np.random.default_rng(0)
    first = generator.normal(size=[12, 4]).astype(np.float32)
    return SentenceSpace(
        random_cosines=generator.uniform(-1, 1, 30),
        similar_cosines=generator.uniform(0.5, 1, 12),
        first=first,
        second=first + 0.1,
        measures={"similar_cosine": 0.75, "uniformity": -2.5, "variance_1": 0.25},
    )


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_everything_is_written(
    space: SentenceSpace,
    found: Detections,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(comparison, "plots_of", lambda *runs: PLOTS[:1])  # as the others
    runs = [read_run("<one>", str(model_dir)), read_run("two", str(model_dir))]
    output = tmp_path / "out"
    held_out = {"<one>": {"loss": 1.25, "copy_accuracy_replaced": 0.5}, "two": {"loss": 1.5}}
    minimal_pairs = {"<first>": {"all": {"masked": 0.625}, "<agreement>": {"masked": 0.75}}}
    score = Score("<first>", "RTE", "accuracy", (0.55, 0.65))
    few = dataclasses.replace(score, train_fraction=0.1)
    findings = Findings(
        {"<first>": space},
        {"texts": {"<first>": found}},
        minimal_pairs,
        held_out,
        runs,
        [score, few],
    )
    path = write_comparison(str(output), findings, "tokens")
    assert path == str(output / "index.html")
    pictures = {file.stem for file in output.glob("*.png")}
    assert (
        pictures
        == {file.stem for file in output.glob("*.svg")}
        >= {"cosines", "map", "calibration_texts", "frequency_texts", "minimal_pairs", "loss"}
    )
    assert "scores_over_fractions" in pictures and "scores_over_crops" not in pictures
    assert not list(output.glob("*.tmp"))

    written = Path(path).read_text(encoding="utf-8")
    assert written.count("<svg ") == len(pictures)
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", written)  # nothing is fetched
    assert "&lt;first&gt;" in written and "<first>" not in written and "<one>" not in written
    for link in re.findall('href="#(.*?)"', written):
        assert f'id="{link}"' in written
    assert "--blue: #" in written and 'aria-label="A map of the similar pairs"' in written
    for shown in (">0.750<", ">-2.500<", ">25.0%<", ">1.250<", ">50.0%<", ">62.5%<", ">75.0%<"):
        assert shown in written

    cosines = rows(output / "cosines.csv")
    assert len(cosines) == 42
    assert float(cosines[0]["cosine"]) == pytest.approx(space.random_cosines[0], abs=1e-6)
    assert len(rows(output / "map.csv")) == 24
    assert rows(output / "held_out.csv")[1] == {
        "measure": "copy_accuracy_replaced",
        "<one>": "0.5",
        "two": "",
    }
    curves = rows(output / "curves.csv")
    loss = next(row for row in curves if row["measure"] == "loss" and row["split"] == "validation")
    assert float(loss["value"]) == 0.55 and float(loss["tokens"]) == 20 * 4 * 24
    results = json.loads((output / "results.json").read_text())
    assert results["spaces"]["<first>"] == space.measures
    assert results["held_out"] == held_out
    assert results["detection"]["texts"]["<first>"] == found.measures()
    bins = [[0.05, 0, 2], [0.25, 1, 1], [0.75, 0.5, 2], [0.95, 1, 1]]
    assert results["calibration"]["texts"]["<first>"] == [pytest.approx(one) for one in bins]
    calibration = rows(output / "calibration_texts.csv")
    assert [row["tokens"] for row in calibration] == ["2", "1", "2", "1"]
    assert calibration[-1]["said"] == "0.95" and calibration[-1]["preset"] == "<first>"
    assert results["minimal_pairs"] == minimal_pairs
    assert rows(output / "minimal_pairs.csv")[1]["<first>, masked"] == "0.75"
    assert results["runs"]["two"]["step"] == 40
    assert [score["mean"] for score in results["scores"]] == [pytest.approx(0.6)] * 2
    scores = rows(output / "scores.csv")
    assert [(row["train_fraction"], row["value"]) for row in scores][1:3] == [
        ("1.0", "0.65"),
        ("0.1", "0.55"),
    ]


def test_only_what_was_given_is_shown(model_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(comparison, "plots_of", lambda *runs: [])
    path = write_comparison(str(tmp_path / "out"), Findings(runs=[read_run("one", str(model_dir))]))
    written = Path(path).read_text(encoding="utf-8")
    assert "Training" in written and "Sentence vectors" not in written
    assert not (tmp_path / "out" / "cosines.csv").exists()


def test_an_output_that_is_no_folder_is_reported(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output_dir="):
        write_comparison(str(tmp_path / "file"), Findings())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]))] * 2), min_size=1))
def test_numbers_are_read_back_as_written(tmp_path: Path, written):
    frame = pd.DataFrame(written, columns=["x", "y"])
    OutputFolder(str(tmp_path)).add_table("a.csv", frame)
    assert read_table(str(tmp_path / "a.csv"), ["x", "y"]).rows == written


class Text(HTMLParser):
    """Collects the text of an element."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self._tag, self._inside, self.found = tag, False, []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self._inside = tag == self._tag

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def test_plain_text_is_shown_as_it_is(tmp_path: Path):
    text = "<a href=\"x\">&amp; 'b'</a>; é中🙂 {{ 1 }}"
    path = OutputFolder(str(tmp_path)).add_page("page.html", text, {"fact": text}, {})
    for tag in ("title", "h1", "dd"):
        parser = Text(tag)
        parser.feed(Path(path).read_text(encoding="utf-8"))
        assert parser.found[0] == text
