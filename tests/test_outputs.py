"""Every program is told at once, and tells in a line, that its output cannot be written.

They run as forks of one process that has no TensorFlow: what is refused must be before it starts.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ROOT

# What each program takes beside its output, as far as it looks at that before.
PROGRAMS = {
    "train_vocabulary.py": ("--output_dir", ["--input={text}", "--vocabulary_size=60"]),
    "build_pretraining_data.py": ("--output_dir", ["--input={text}", "--vocabulary={folder}"]),
    "pretrain.py": (
        "--model_dir",
        ["--config_file={text}", "--train_data={folder}", "--vocabulary={folder}"],
    ),
    "precompute_replacements.py": (
        "--output_dir",
        ["--config_file={text}", "--train_data={folder}", "--vocabulary={folder}"],
    ),
    "convert_checkpoint.py": ("--preset", ["--official={folder}"]),
    "export_saved_model.py": ("--output_dir", ["--preset={folder}", "--signature=embed"]),
    "finetune_glue.py": ("--output_dir", ["--preset={folder}", "--task=rte"]),
    "finetune_squad.py": ("--output_dir", ["--preset={folder}"]),
    "finetune_prompt.py": ("--output_dir", ["--preset={folder}", "--task=rte"]),
    "finetune_table.py": (
        "--output_dir",
        ["--preset={folder}", "--train_file={text}", "--text_column=a", "--label_column=b"],
    ),
    "finetune_superglue.py": ("--output_dir", ["--preset={folder}", "--task=rte"]),
    "finetune_tokens.py": ("--output_dir", ["--preset={folder}", "--train_file={text}"]),
    "run_suite.py": (
        "--output_dir",
        ["--suite=tasks", "--config_file={text}", "--train_data={folder}", "--vocabulary={folder}"],
    ),
    "report.py": ("--output_dir", ["--model_dir={folder}"]),
    "average_presets.py": ("--output_dir", ["--preset={folder}/a", "--preset={folder}/b"]),
    "analyze.py": ("--output_dir", ["--scores={folder}"]),
}
# The folders that cannot be written, and what is said of them. Nobody may write to /proc.
OUTPUTS = {
    "a file": ("{text}", "is a file; the output must be a folder."),
    "in a file": ("{text}/deep/er", "cannot be made, as {text} is a file; the output must be"),
    "unwritable": ("/proc/1/task/new", "cannot be written to: "),
    "no scheme": ("gs:/bucket/new", "a scheme ends in two slashes, gs://."),
    "full": ("{folder}/new/er", "cannot be written to: File too large."),
}
FORKS = """
import json, os, resource, runpy, sys

sys.path.insert(0, sys.argv.pop(1))
import numpy, absl.app  # What takes a while and most need.

for command in json.load(sys.stdin):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        if "full" in command.pop("output"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        sys.argv = command["arguments"]
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, said]), flush=True)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("given")
    (folder / "text").write_text("{}")
    (folder / "folder").mkdir()
    return {"text": folder / "text", "folder": folder / "folder"}


@pytest.fixture(scope="module")
def answers(given: dict[str, Path]) -> dict[tuple[str, str], tuple[int, str]]:
    """The exit status and the words of every program, by its name and that of the output."""
    keys = [(name, output) for name in PROGRAMS for output in OUTPUTS]
    commands = []
    for name, output in keys:
        flag, others = PROGRAMS[name]
        flags = [f"{flag}={OUTPUTS[output][0]}", *others]
        arguments = [str(ROOT / "scripts" / name), *(one.format(**given) for one in flags)]
        commands.append({"arguments": arguments, "output": output})
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(ROOT)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(keys, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_output_that_cannot_be_written_is_reported(answers, given, name: str, output: str):
    status, said = answers[name, output]
    path, complaint = (text.format(**given) for text in OUTPUTS[output])
    assert status == 1, said
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert path in said and complaint in said
    assert not list(given["folder"].iterdir())
