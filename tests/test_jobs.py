import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import tensorflow as tf
from programs import run_python

from cocolm_tf import jobs
from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.jobs import Job, JobRunner, leave_devices

# What a job's module is like. A job may wait for the company of others that have begun too.
MODULE = """
import os, sys, time
from cocolm_tf.errors import RestartableError, UserError
from cocolm_tf.jobs import serve

def begun(folder):
    with open(os.path.join(os.path.dirname(folder), "begun")) as file:
        return len(file.readlines())

def do(spec, folder, reporter, **options):
    print("chatter on standard output")
    reporter.say("all jobs say this")
    reporter.progress(0.5, "half")
    with open(os.path.join(os.path.dirname(folder), "begun"), "a") as file:
        file.write(spec["name"] + "\\n")
    if spec["name"] == "mistaken":
        raise UserError("the flag is wrong.")
    if spec["name"] == "stopped":
        raise RestartableError("stopped at step 3")
    if spec["name"] == "full":
        raise OSError(28, "No space left on device", "/x")
    if spec["name"] == "broken":
        raise ValueError("a defect")
    if spec["name"] == "killed":
        os.kill(os.getpid(), 9)
    deadline = time.monotonic() + spec.get("seconds", 0)
    while time.monotonic() < deadline and begun(folder) < spec.get("company", 99):
        time.sleep(0.02)
        reporter._last = 0
        reporter.progress(0.6, "waiting")
    return {
        "square": spec["number"] ** 2,
        "slot": sys.argv[2:4],
        "company": begun(folder),
        "headline": "done well",
        "options": options,
        **({"until": options["until"]} if "until" in options else {}),
    }

if __name__ == "__main__":
    serve(do)
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "jobs_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, **spec) -> Job:
        spec = {"name": name, "number": 3} | spec
        return Job(str(tmp_path / "runs" / name), spec, f"job {name}")

    (tmp_path / "runs").mkdir()
    return make


def runner(at_once: int = 1, total: int = 2) -> JobRunner:
    return JobRunner("jobs_module", at_once, total)


def begun(tmp_path: Path) -> list[str]:
    return (tmp_path / "runs" / "begun").read_text().split()


def test_results_come_in_order_and_are_printed(make, tmp_path: Path, capfd):
    with runner() as jobs:
        results = jobs.run_all([make("a"), make("b", number=5)])
    assert [result["square"] for result in results] == [9, 25]
    assert results[0]["slot"] == ["0", "1"]
    told = capfd.readouterr().err
    assert told.count("all jobs say this") == 1
    assert "job a: done well" in told and "job b: done well" in told
    assert (tmp_path / "runs" / "a" / "log.txt").read_text() == "chatter on standard output\n"


def test_what_is_done_is_not_done_again(make, tmp_path: Path):
    for _ in range(2):
        with runner() as jobs:
            (result,) = jobs.run_all([make("a")])
    assert result["square"] == 9 and begun(tmp_path) == ["a"]


def test_what_was_ended_halfway_is_done_anew(make, tmp_path: Path):
    with runner() as jobs:
        jobs.run_all([make("a")])
    (tmp_path / "runs" / "a" / "results.json").unlink()
    (tmp_path / "runs" / "a" / "left.over").touch()
    with runner() as jobs:
        jobs.run_all([make("a")])
    assert begun(tmp_path) == ["a", "a"]
    assert not (tmp_path / "runs" / "a" / "left.over").exists()


def test_a_resumed_job_finds_what_was_left(make, tmp_path: Path):
    for changes in ({}, {"resumes": True}):
        job = dataclasses.replace(make("a"), **changes)
        with runner() as jobs:
            jobs.run_all([job])
        (tmp_path / "runs" / "a" / "results.json").unlink()
        (tmp_path / "runs" / "a" / "left.over").touch()
    assert begun(tmp_path) == ["a", "a"]
    with runner() as jobs:
        jobs.run_all([job])
    assert (tmp_path / "runs" / "a" / "left.over").exists()
    chatter = "chatter on standard output\n"
    assert (tmp_path / "runs" / "a" / "log.txt").read_text() == 3 * chatter


def test_a_job_that_is_told_to_stop_stops_them_all(make, tmp_path: Path):
    with runner() as jobs, pytest.raises(RestartableError, match="^job stopped was stopped"):
        jobs.run_all([make("stopped"), make("after")])
    assert "stopped at step 3" in (tmp_path / "runs" / "stopped" / "log.txt").read_text()


def test_several_run_at_once(make):
    with runner(at_once=3, total=3) as jobs:
        results = jobs.run_all([make(name, seconds=60, company=3) for name in "abc"])
    assert sorted(result["slot"][0] for result in results) == ["0", "1", "2"]
    assert [result["company"] for result in results] == [3, 3, 3]


def test_a_folder_of_another_job_is_refused_before_any_work(make, tmp_path: Path):
    with runner() as jobs:
        jobs.run_all([make("a", config={"rate": {"peak": 1}})])
    other = make("a", config={"rate": {"peak": 2}})
    with runner() as jobs, pytest.raises(UserError, match=r"with config.rate.peak=1, not 2: give"):
        jobs.run_all([make("b"), other])
    assert begun(tmp_path) == ["a"]


def test_another_content_of_a_file_makes_another_job(make, tmp_path: Path):
    """It is known by more than its path, whose scores were another file's."""
    files = {"/data/dev.csv": "12", "/data/train.csv": "34"}
    with runner() as jobs:
        jobs.run_all([make("a", content_fingerprints=files)])
    edited = make("a", content_fingerprints=files | {"/data/train.csv": "56"})
    with pytest.raises(UserError, match="with other content of /data/train.csv: give another"):
        edited.results()
    shutil.copytree(tmp_path / "runs" / "a", tmp_path / "runs" / "b")
    before = json.loads((tmp_path / "runs" / "b" / "job.json").read_text())
    del before["content_fingerprints"]
    (tmp_path / "runs" / "b" / "job.json").write_text(json.dumps(before))
    older = Job(str(tmp_path / "runs" / "b"), edited.spec, "b")
    with pytest.raises(UserError, match="files of which it did not record what they held"):
        older.results()


def test_one_that_diverged_gives_way_to_other_settings(make, tmp_path: Path):
    """As the user is told to try them."""
    with runner() as jobs:
        jobs.run_all([make("a")])
    (tmp_path / "runs" / "a" / "results.json").write_text('{"diverged": true}')
    assert make("a").results() == {"diverged": True}
    with runner() as jobs:
        assert jobs.run(make("a", number=4))["square"] == 16


@pytest.mark.parametrize(
    ("name", "kind", "complaint"),
    [
        ("full", UserError, "^job full: No space left on device \\(/x\\): make room"),
        ("mistaken", UserError, "^job mistaken: the flag is wrong.$"),
        ("killed", UserError, "^job killed was killed by signal 9.*log.txt"),
        ("broken", RuntimeError, "(?s)log.txt ends:.*ValueError: a defect"),
    ],
)
def test_what_goes_wrong_in_a_process_is_reported(make, name, kind, complaint):
    with runner() as jobs, pytest.raises(kind, match=complaint):
        jobs.run_all([make(name), make("after")])


def test_a_mistake_leaves_nothing(make, tmp_path: Path):
    mistaken = make("mistaken")
    mistaken = Job(os.path.join(mistaken.folder, "search", "rate=1"), mistaken.spec, "job")
    (tmp_path / "runs" / "begun").touch()
    os.makedirs(tmp_path / "runs" / "mistaken" / "search")  # not ours
    with runner() as jobs, pytest.raises(UserError, match="the flag is wrong"):
        jobs.run(mistaken)
    left = {path.name for path in (tmp_path / "runs").rglob("*")}
    assert left == {"begun", "mistaken", "search"}


def test_a_job_that_was_never_done_may_become_another(make):
    first = make("broken")
    with runner() as jobs, pytest.raises(RuntimeError):
        jobs.run(first)
    with runner() as jobs:
        assert jobs.run(Job(first.folder, {"name": "a", "number": 2}, "a"))["square"] == 4


def test_a_process_ends_when_nobody_listens(make, tmp_path: Path):
    program = textwrap.dedent(f"""
        from cocolm_tf.jobs import Job, JobRunner, leave_devices
        spec = {{"name": "a", "number": 1, "seconds": 60}}
        job = Job({str(tmp_path / "runs" / "a")!r}, spec, "a")
        with JobRunner("jobs_module", 1, 1) as jobs:
            jobs.run_all([job])
    """)
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs" / "begun").exists():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    log = tmp_path / "runs" / "a" / "log.txt"
    while "BrokenPipeError" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "runs" / "a" / "results.json").exists()


@pytest.mark.parametrize("module", ["cocolm_tf.finetuning.run", "cocolm_tf.suite.job"])
def test_what_is_imported_before_a_fork_does_not_start_tensorflow(module: str):
    """Its threads would be missing in the fork, which would wait for them for ever."""
    said = run_python(f"""
import {module}
from tensorflow.python.eager import context
print(context.context()._context_handle)
""")
    assert said.splitlines()[-1] == "None"


class Config:
    """What of TensorFlow's configuration jobs ask for, on a machine of four GPUs."""

    def __init__(self, monkeypatch):
        self.visible, self.growing, gpus = [], [], ["a", "b", "c", "d"]
        config = tf.config
        monkeypatch.setattr(config, "list_physical_devices", lambda kind: gpus)
        monkeypatch.setattr(
            config, "set_visible_devices", lambda some, _: self.visible.append(some)
        )
        monkeypatch.setattr(
            config.experimental, "set_memory_growth", lambda gpu, _: self.growing.append(gpu)
        )
        monkeypatch.setattr(config.threading, "set_intra_op_parallelism_threads", lambda _: None)


def test_a_parent_takes_no_gpu(monkeypatch):
    config = Config(monkeypatch)
    leave_devices()
    assert config.visible == [[]]


@pytest.mark.parametrize(
    ("slot", "slots", "strategy", "gpus"),
    [
        (0, 1, "one_device", "a"),
        (0, 1, "mirrored", "abcd"),
        (1, 2, "one_device", "b"),
        (1, 2, "mirrored", "bd"),
        (5, 6, "mirrored", "b"),
    ],
)
def test_jobs_share_the_gpus(monkeypatch, slot, slots, strategy, gpus):
    config = Config(monkeypatch)
    jobs._take_share(slot, slots, strategy)
    assert config.visible == [list(gpus)] and config.growing == list(gpus)


def test_a_part_of_a_job_is_done_before_the_rest(make, tmp_path: Path):
    """And what the rest is resumed by stays, whatever else was left."""
    part = dataclasses.replace(make("a"), until=0.5, keeps=("left.over",), options={"tpu": "x"})
    with runner() as jobs:
        assert jobs.run(part)["options"] == {"tpu": "x", "until": 0.5}
    folder = tmp_path / "runs" / "a"
    (folder / "left.over").touch()
    (folder / "else").touch()
    for until, times in ((0.5, 1), (0.25, 1), (1.0, 2), (1.0, 2), (0.0, 3), (0.5, 3)):
        with runner() as jobs:
            jobs.run(dataclasses.replace(part, until=until))
        assert begun(tmp_path) == ["a"] * times
    assert (folder / "left.over").exists() and not (folder / "else").exists()


def test_what_a_job_is_resumed_by_outlives_an_interruption_but_no_mistake(make, tmp_path: Path):
    for name, is_left in (("killed", True), ("mistaken", False)):
        job = dataclasses.replace(make(name), keeps=("state",))
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "state").touch()
        with runner() as jobs, pytest.raises(UserError):
            jobs.run(job)
        assert (tmp_path / "runs" / name / "state").exists() == is_left
