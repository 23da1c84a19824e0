"""Kills pretraining at random moments, starts it again, and compares it with a run left alone.

A run is killed a few times, with SIGKILL or SIGTERM, while it starts, builds its input, takes
steps, saves or validates, and then left to end. Its weights, the optimizer's state and the logged
metrics must be those of the undisturbed run; on one device to the last bit. What was done and seen
goes to report.json and report.md of --output_dir; exit status 1 if anything differs.
"""

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from cocolm_tf import program
from cocolm_tf.errors import UserError

flags.DEFINE_integer("seed", 0, "Decides the moments.")
flags.DEFINE_integer("kills", 20, "How often to kill.", lower_bound=1)
flags.DEFINE_integer("kills_per_run", 5, "How often to kill the same run.", lower_bound=1)
flags.DEFINE_enum("strategy", "one_device", ["one_device", "mirrored"], "mirrored: two CPUs.")
flags.DEFINE_string("output_dir", None, "Folder for the runs and the report.", required=True)

FLAGS = flags.FLAGS

ROOT = Path(__file__).parents[1]
RESTARTABLE = program.RESTARTABLE
# Some checkpoints lie between two log lines, some fall on one and on a validation.
CONFIG = """
model: {vocabulary_size: 60, num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16}
auxiliary: {num_layers: 1}
data: {sequence_length: 16}
optimizer: {warmup_steps: 10}
trainer:
  train_steps: 960
  batch_size: 4
  log_interval: 8
  validation_interval: 48
  checkpoint_interval: 12
  max_checkpoints: 2
"""
ON_TWO_CPUS = """
import runpy, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.argv[0] = "scripts/pretrain.py"
runpy.run_path("scripts/pretrain.py", run_name="__main__")
"""
MOMENTS = ("start", "input", "steps", "save", "validation")


@dataclasses.dataclass
class Kill:
    """One kill and what came of it. Steps are those of the latest checkpoint."""

    run: int
    moment: str
    signal: str
    status: int = 0
    seconds: float = 0.0
    from_step: int = 0
    to_step: int = 0
    during_save: bool = False
    complaint: str = ""


@dataclasses.dataclass
class Durations:
    """How long the parts of the undisturbed run took, in seconds."""

    start: float
    input: float
    whole: float


class Attempt:
    """A process that pretrains."""

    def __init__(self, inputs: Path, run: Path, strategy: str) -> None:
        self.run = run
        self.log = run.with_suffix(".log")
        self.config = run / "config.yaml"
        self.config_before = self._config_time()
        self.lines_before = len(metrics_lines(run))
        code = ["-c", ON_TWO_CPUS] if strategy == "mirrored" else ["scripts/pretrain.py"]
        arguments = [
            f"--config_file={inputs}/config.yaml",
            f"--train_data={inputs}/data/train",
            f"--validation_data={inputs}/data/validation",
            f"--vocabulary={inputs}/vocabulary",
            f"--model_dir={run}",
            f"--distribution_strategy={strategy}",
        ]
        self.begin = time.monotonic()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *code, *arguments],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Returns whether the condition came true before the process ended."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.0005)
        return True

    def is_prepared(self) -> bool:
        """Whether its input and its step are being built."""
        return self._config_time() > self.config_before

    def has_stepped(self, lines: int = 1) -> bool:
        """Whether it has logged."""
        return len(metrics_lines(self.run)) >= self.lines_before + lines

    def is_saving(self) -> bool:
        return (self.run / "checkpoints" / "unfinished").exists()

    def _config_time(self) -> int:
        return self.config.stat().st_mtime_ns if self.config.exists() else 0


def main() -> str:
    folder = Path(FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = make_inputs(folder / "inputs")
    reference, durations = run_undisturbed(inputs, folder / "undisturbed")
    draw = random.Random(FLAGS.seed)
    kills: list[Kill] = []
    differences: list[str] = []
    run = 0
    while len(kills) < FLAGS.kills:
        path = folder / f"run-{run}"
        shutil.rmtree(path, ignore_errors=True)
        # Every moment comes up equally often, with either signal.
        for number in range(len(kills), min(len(kills) + FLAGS.kills_per_run, FLAGS.kills)):
            moment = MOMENTS[number % len(MOMENTS)]
            kind = (signal.SIGKILL, signal.SIGTERM)[(number + number // len(MOMENTS)) % 2]
            kill = kill_once(inputs, path, run, moment, kind, draw, durations)
            if kill.status == 0:
                print(f"run {run} ended before it was killed: does not count", file=sys.stderr)
                # The machine is less busy now than when it took the durations.
                durations = dataclasses.replace(durations, input=durations.input / 2)
                break
            kills.append(kill)
            print(f"{len(kills)}/{FLAGS.kills} {kill}", file=sys.stderr)
        finish(inputs, path)
        differences += [f"run {run}: {what}" for what in compare(path, reference)]
        run += 1
    report(folder, run, kills, differences, durations)
    if differences or any(kill.complaint for kill in kills):
        raise UserError(f"not all went as it should: see {folder / 'report.md'}.")
    return str(folder / "report.md")


def run_undisturbed(inputs: Path, path: Path) -> tuple[Path, Durations]:
    shutil.rmtree(path, ignore_errors=True)
    attempt = Attempt(inputs, path, FLAGS.strategy)
    attempt.wait_for(attempt.is_prepared)
    start = attempt.seconds
    attempt.wait_for(attempt.has_stepped)
    first_line = attempt.seconds
    end(attempt)
    return path, Durations(start, first_line - start, attempt.seconds)


def kill_once(
    inputs: Path,
    path: Path,
    run: int,
    moment: str,
    kind: signal.Signals,
    draw: random.Random,
    durations: Durations,
) -> Kill:
    kill = Kill(run, moment, kind.name, from_step=latest_step(path))
    attempt = Attempt(inputs, path, FLAGS.strategy)
    if moment == "start":
        time.sleep(draw.uniform(0, durations.start))
    elif moment == "input":
        attempt.wait_for(attempt.is_prepared)
        time.sleep(draw.uniform(0, durations.input))
    elif moment == "steps":
        lines = draw.randrange(1, 12)
        attempt.wait_for(lambda: attempt.has_stepped(lines))
        time.sleep(draw.uniform(0, 0.1))
    elif moment == "save":
        step = kill.from_step + draw.choice((0, 12, 24))
        attempt.wait_for(lambda: latest_step(path) >= step and attempt.is_saving())
        time.sleep(draw.uniform(0, 0.02))
    else:
        # The line of a validation's step is written just before it begins.
        attempt.wait_for(lambda: latest_validation(path) > kill.from_step)
        time.sleep(draw.uniform(0, 0.2 * durations.input))
    attempt.process.send_signal(kind)
    kill.status = attempt.process.wait()
    kill.seconds = round(attempt.seconds, 1)
    kill.to_step = latest_step(path)
    kill.during_save = attempt.is_saving()
    kill.complaint = "; ".join(complaints(kill, attempt))
    return kill


def complaints(kill: Kill, attempt: Attempt) -> Iterator[str]:
    """What must hold after every kill."""
    if kill.to_step < kill.from_step:
        yield "an older checkpoint than before"
    if kill.signal == "SIGKILL" and kill.status != -signal.SIGKILL:
        yield f"exit status {kill.status}"
    if kill.signal == "SIGTERM":
        # Before Python has got as far as to look out for it, the signal ends it by itself.
        allowed = [RESTARTABLE] + [-signal.SIGTERM] * (kill.moment == "start")
        if kill.status not in allowed:
            yield f"exit status {kill.status}"
        said = attempt.log.read_text().splitlines()[-1:]
        if kill.status == RESTARTABLE and not any("stopped by SIGTERM" in line for line in said):
            yield f"said {said}"
        if any("at step" in line for line in said):
            step = int(said[0].rpartition("at step ")[2].split(",")[0])
            if step != kill.to_step:
                yield f"said step {step} and saved {kill.to_step}"
    for line in metrics_lines(attempt.run):
        if "step" not in line:
            yield "a broken line of metrics"


def finish(inputs: Path, path: Path) -> None:
    end(Attempt(inputs, path, FLAGS.strategy))


def end(attempt: Attempt) -> None:
    if attempt.process.wait():
        raise UserError(f"a run that nobody disturbed failed: see {attempt.log}.")


def compare(path: Path, reference: Path) -> Iterator[str]:
    """How a run that was killed differs from the one that was not."""
    import numpy as np
    import tensorflow as tf

    found, expected = (
        tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run / "checkpoints")))
        for run in (path, reference)
    )
    names = found.get_variable_to_shape_map().keys()
    if names != expected.get_variable_to_shape_map().keys():
        yield "other variables"
    distance = 0.0
    for name in names:
        one, other = found.get_tensor(name), expected.get_tensor(name)
        if one.tobytes() != other.tobytes():
            distance = max(distance, float(np.abs(np.float64(one) - np.float64(other)).max()))
    if distance:
        yield f"values differ by up to {distance:.2g}"
    lines, expected_lines = (metrics_lines(run) for run in (path, reference))
    differing = [a for a, b in zip(lines, expected_lines, strict=False) if not is_same_line(a, b)]
    if differing or len(lines) != len(expected_lines):
        yield f"{len(differing)} of {len(lines)} lines of metrics differ: {differing[:1]}"
    heads = [np.load(run / "preset" / "pretraining_heads.npz") for run in (path, reference)]
    if any(heads[0][name].tobytes() != heads[1][name].tobytes() for name in heads[1]):
        yield "the presets differ"


def is_same_line(line: dict, expected: dict) -> bool:
    """To the last bit on one device.

    Of several, a checkpoint has the sum of what they have seen since the last line, and the rest
    is added to it in another order.
    """
    if FLAGS.strategy == "one_device" or line.keys() != expected.keys():
        return line == expected
    return all(
        line[key] == expected[key] or math.isclose(line[key], expected[key], rel_tol=1e-6)
        for key in line
    )


def metrics_lines(run: Path) -> list[dict]:
    """The log, less what the clock decides; a line that is being written is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines(keepends=True):
        if text.endswith("\n"):
            line = json.loads(text)
            lines.append({k: line[k] for k in line if k not in ("seconds", "tokens_per_second")})
    return lines


def latest_validation(run: Path) -> int:
    """The latest step that was logged and that a validation is due at."""
    steps = [line["step"] for line in metrics_lines(run)]
    return max((step for step in steps if step % 48 == 0), default=0)


def latest_step(run: Path) -> int:
    indices = (run / "checkpoints").glob("ckpt-*.index")
    return max((int(path.stem.removeprefix("ckpt-")) for path in indices), default=0)


def make_inputs(folder: Path) -> Path:
    from cocolm_tf.data.build import build_shards
    from cocolm_tf.tokenization.vocabulary import train_vocabulary

    if (folder / "config.yaml").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    words = "A cat saw the red house on its hill and then some bird sang to a dog of rain"
    draw = random.Random(0)
    sentences = [" ".join(draw.choices(words.split(), k=draw.randrange(3, 20))) for _ in range(400)]
    train_vocabulary(sentences, 60, folder / "vocabulary")
    build_shards(
        sentences,
        str(folder / "vocabulary"),
        sequence_length=16,
        num_shards=12,
        num_workers=0,
        output_dir=str(folder / "data"),
        validation_fraction=0.2,
    )
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def report(
    folder: Path, runs: int, kills: list[Kill], differences: list[str], durations: Durations
) -> None:
    found = {
        "seed": FLAGS.seed,
        "strategy": FLAGS.strategy,
        "undisturbed_seconds": dataclasses.asdict(durations),
        "kills": [dataclasses.asdict(kill) for kill in kills],
        "differences": differences,
    }
    (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    header = [field.name for field in dataclasses.fields(Kill)]
    rows = [[str(value) for value in dataclasses.astuple(kill)] for kill in kills]
    table = [header, ["---"] * len(header), *rows]
    outcome = "; ".join(differences) or f"all {runs} runs ended as the undisturbed one, to the bit"
    lines = [
        f"# {len(kills)} kills, {FLAGS.strategy}, seed {FLAGS.seed}",
        "",
        f"Outcome: {outcome}.",
        "",
        *(f"| {' | '.join(row)} |" for row in table),
    ]
    (folder / "report.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    program.run(main)
