import re
from pathlib import Path

import pytest

from cocolm_tf import files
from cocolm_tf.analysis import report
from cocolm_tf.analysis.curves import PLOTS
from cocolm_tf.analysis.report import write_report
from cocolm_tf.errors import UserError

TEXT = "the cat sat on a <mat>"


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch):
    """Drawing takes most of the time of a report."""
    monkeypatch.setattr(report, "plots_of", lambda metrics: [])


def test_a_finished_run_is_reported_with_its_demonstration(finished_run: Path, tmp_path: Path):
    output = tmp_path / "new" / "report"
    path, demonstration = write_report(str(finished_run), str(output), [TEXT])
    assert path == str(output / "index.html")
    expected = {f"{plot.name}.png" for plot in PLOTS} | {"index.html"}
    assert {file.name for file in output.iterdir()} == expected
    assert all((output / f"{plot.name}.png").read_bytes()[:4] == b"\x89PNG" for plot in PLOTS)

    written = Path(path).read_text(encoding="utf-8")
    assert written.count("<svg ") == len(PLOTS)
    # Nothing is fetched, and what the user wrote is text.
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", written)
    assert "<mat>" not in written and "mat" in written
    assert len(demonstration.corrupted) == len(demonstration.as_written) == 1
    assert "mixed_bfloat16" in written  # as the run was, not as it is demonstrated

    assert "The last validation, at step 40." in written
    assert ">0.525<" in written and ">52.5%<" in written
    assert "3.84 k" in written  # 40 steps of 4 sequences of 24 tokens


def test_run_and_report_may_lie_on_a_store(
    finished_run: Path, tmp_path: Path, to_store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(report, "plots_of", lambda metrics: PLOTS[:1])
    there, here = to_store(finished_run), str(tmp_path / "report")
    path, _ = write_report(there, f"{there}/report", [TEXT])
    write_report(str(finished_run), here, [TEXT])
    assert files.read_text(path) == files.read_text(f"{here}/index.html")
    image = f"{PLOTS[0].name}.png"
    assert files.read_bytes(f"{there}/report/{image}") == files.read_bytes(f"{here}/{image}")


@pytest.mark.usefixtures("without_plots")
def test_a_run_that_goes_on_has_no_demonstration_yet(model_dir: Path, tmp_path: Path):
    path, demonstration = write_report(str(model_dir), str(tmp_path / "out"))
    assert demonstration is None
    written = Path(path).read_text(encoding="utf-8")
    assert "auxiliary model" in written and "class='sentence'" not in written
    with pytest.raises(UserError, match="no preset yet"):
        write_report(str(model_dir), str(tmp_path / "other"), [TEXT])


@pytest.mark.usefixtures("without_plots")
def test_a_report_replaces_an_older_one(model_dir: Path, tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "index.html").write_text("old")
    (output / "notes.txt").write_text("mine")
    write_report(str(model_dir), str(output))
    assert (output / "index.html").read_text(encoding="utf-8") != "old"
    assert (output / "notes.txt").read_text() == "mine"


def test_nothing_is_written_for_a_text_that_cannot_be_read(finished_run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="the model reads"):
        write_report(str(finished_run), str(tmp_path / "out"), ["cat " * 50])
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder_is_named(model_dir: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output_dir="):
        write_report(str(model_dir), str(tmp_path / "file"))


def test_a_run_without_configuration_is_named(model_dir: Path, tmp_path: Path):
    (model_dir / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml"):
        write_report(str(model_dir), str(tmp_path / "out"))
