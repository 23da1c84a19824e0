"""How every program ends; each test runs one in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
from absl import flags
from cocolm_tf import program
from cocolm_tf.errors import RestartableError, UserError

flags.DEFINE_string("name", None, "What to greet.", required=True)
flags.DEFINE_integer("times", 1, "How often.", lower_bound=1)


def main():
    name = flags.FLAGS.name
    if name == "mistake":
        raise UserError("--name=mistake is not a name.")
    if name == "preemption":
        try:
            raise RestartableError("start again")
        except Exception:
            pass
    if name == "disk":
        with open("/dev/full", "w") as file:
            file.write("more than nothing")
    if name == "defect":
        raise ValueError("unforeseen")
    if name == "interruption":
        raise KeyboardInterrupt
    if name == "nothing":
        return None
    print("working")
    return "path/of/" + name


program.run(main)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_last_line_is_what_was_written():
    done = run("--name=result")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "working\npath/of/result\n"


def test_nothing_written_is_nothing_printed():
    done = run("--name=nothing")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--name=mistake"], "error: --name=mistake is not a name.\n"),
        ([], "flag --name=None: "),
        (["--name=a", "--nmae=b"], "Unknown command line flag 'nmae'"),
        (["--name=a", "--times=0"], "flag --times=0: "),
        (["--name=a", "--times=few"], "flag --times=few: "),
        (["--name=a", "again"], "unexpected argument 'again'"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_status_1(arguments: list[str], complaint: str):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_full_disk_is_one_line_and_status_1():
    done = run("--name=disk")
    said = "error: No space left on device: make room and start again.\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_defect_keeps_its_traceback():
    done = run("--name=defect")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ValueError: unforeseen" in done.stderr


def test_what_can_be_started_again_has_its_status():
    """And is not caught by who catches exceptions on its way."""
    done = run("--name=preemption")
    assert (done.returncode, done.stderr, done.stdout) == (75, "start again\n", "")


def test_an_interruption_has_its_status():
    done = run("--name=interruption")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("flag", ["--help", "--helpfull", "--helpshort", "-?"])
def test_help_is_no_failure(flag: str):
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert "What to greet." in done.stdout
