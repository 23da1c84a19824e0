"""`cocolm-tf COMMAND`, from a checkout and from a wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cocolm_tf import command

ROOT = Path(__file__).parent.parent


def test_every_program_is_listed_with_what_it_does(capsys):
    command.main([])
    listed = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in listed] == sorted(p.stem for p in ROOT.glob("scripts/*.py"))
    assert all(len(line.split()) > 3 for line in listed)


def test_a_mistyped_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["pretrian"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == (
        "error: there is no command 'pretrian': did you mean pretrain?\n"
    )


@pytest.mark.slow
def test_a_wheel_has_the_programs_and_their_configurations(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # A copy: building leaves folders in the source.
    source = tmp_path / "source"
    listed = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, text=True).splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        names = archive.namelist()
    for name in (
        "py.typed",
        "analysis/templates/page.html",
        "serving/page.html",
        "scripts/pretrain.py",
    ):
        assert f"cocolm_tf/{name}" in names
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("cocolm_tf/**/*.py")}
    assert rooms <= {os.path.dirname(name) for name in names}

    flag = "--config_file=configs/pretrain/small.yaml"
    call = "from cocolm_tf.command import main; main()"
    run = [sys.executable, "-c", call, "estimate", flag, "--json"]
    outside = dict(os.environ, PYTHONPATH=str(tmp_path / "installed"))
    said = subprocess.run(run, cwd=tmp_path, env=outside, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    config_file = json.loads(said.stdout)["config_file"]
    assert config_file == str(tmp_path / "installed/cocolm_tf/configs/pretrain/small.yaml")
