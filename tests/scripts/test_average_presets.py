import shutil
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import write_tiny_preset

average_presets = Program("average_presets.py")
TWO = ["--preset=a", "--preset=b", "--output_dir=soup"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset=a"], "--output_dir"),
        ([*TWO, "--weights=1,x"], "--weights=1,x must be numbers."),
        ([*TWO, "--weights=1,2", "--greedy"], "--weights and --greedy do not go together"),
        ([*TWO, "--greedy"], "--greedy needs --data or --task"),
        ([*TWO, "--data=x", "--task=rte"], "--data and --task do not go together"),
        (["--preset=a", "--preset=b", "--output_dir=a"], "--output_dir=a is one of the presets."),
    ],
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(
    arguments: list[str], complaint: str
):
    (said,) = average_presets.mistakes_before_tensorflow(*arguments)
    assert complaint in said


def test_it_averages_and_says_what_of(tmp_path: Path):
    source = write_tiny_preset(tmp_path)
    other = shutil.copytree(source, tmp_path / "other")
    arguments = [f"--preset={source}", f"--preset={other}", "--weights=3,1"]
    done = average_presets(*arguments, f"--output_dir={tmp_path / 'soup'}")
    assert done.returncode == 0, done.stderr
    assert f"0.750  {source}" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "soup")
    again = average_presets(*arguments, f"--output_dir={tmp_path / 'soup'}")
    assert again.returncode == 1 and "--overwrite" in again.stderr
