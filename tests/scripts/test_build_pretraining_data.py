import os
import subprocess
import time
from pathlib import Path

import pytest
from programs import Program

from cocolm_tf.data.build import SPILL_FOLDER
from cocolm_tf.data.shards import FILE_NAME, Manifest
from cocolm_tf.tokenization.vocabulary import train_vocabulary

build_pretraining_data = Program("build_pretraining_data.py", timeout=120)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    text = "\n\n".join(f"Document {index} says this.\nAnd that." for index in range(100))
    (folder / "corpus.txt").write_text(text)
    train_vocabulary(text.split("\n\n"), 50, folder / "vocabulary")
    return folder


def flags(corpus: Path, output_dir: Path) -> list[str]:
    return [
        f"--input={corpus}/corpus.txt",
        f"--vocabulary={corpus}/vocabulary",
        "--sequence_length=32",
        "--num_shards=2",
        f"--output_dir={output_dir}",
    ]


@pytest.mark.slow
def test_it_builds_and_says_what(corpus: Path, tmp_path: Path):
    done = build_pretraining_data(
        *flags(corpus, tmp_path / "data"), "--num_workers=0", "--validation_fraction=0.2"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == str(tmp_path / "data")
    assert "MB/s" in lines[-2]
    for line, name in zip(lines[1:3], ("train", "validation"), strict=True):
        manifest = Manifest.load(str(tmp_path / "data" / name))
        manifest.verify()
        assert str(manifest.counts["documents"]) in line.split()
        assert manifest.parameters["source"]["input"] == f"{corpus}/corpus.txt"
    assert "building" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_build_leaves_no_dataset_and_no_process(corpus: Path, tmp_path: Path):
    pipe, output_dir = tmp_path / "endless.txt", tmp_path / "data"
    os.mkfifo(pipe)
    arguments = [*flags(corpus, output_dir), f"--input={pipe}", "--num_workers=1"]
    build = build_pretraining_data.start(*arguments, stderr=subprocess.PIPE)
    # The build waits for the end of the pipe, and so is killed before its own.
    with build, open(pipe, "w") as file:
        file.write("Some text.\n\n" * 3000)
        file.flush()
        seen = b""
        while b"building" not in seen:
            seen += build.stderr.read1(1000)
            assert build.poll() is None, seen
        children = Path(f"/proc/{build.pid}/task/{build.pid}/children").read_text().split()
        build.kill()
        build.wait()
    assert children
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list((output_dir / SPILL_FOLDER).iterdir())
    assert not (output_dir / FILE_NAME).exists()

    done = build_pretraining_data(*flags(corpus, output_dir), "--num_workers=0")
    assert done.returncode == 0, done.stderr
    Manifest.load(str(output_dir)).verify()
    assert not (output_dir / SPILL_FOLDER).exists()


def test_help_is_instant():
    assert "--validation_fraction" in build_pretraining_data.help()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("--input=/nowhere/*.txt", "error: no file matches '/nowhere/*.txt'."),
        ("--break=line", "--break=line"),
        ("again", "error: unexpected argument 'again'"),
    ],
)
def test_a_mistake_gets_one_line_before_tensorflow_starts(
    corpus: Path, tmp_path: Path, change: str, complaint: str
):
    given = [*flags(corpus, tmp_path / "data"), change]
    (said,) = build_pretraining_data.mistakes_before_tensorflow(*given)
    assert complaint in said
    assert not (tmp_path / "data").exists()
