"""What breaks under a run, what its user is told, and what is lost: nothing before the last step
that was saved."""

import json
import shutil
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from pretraining_runs import assert_same_run, metrics

from cocolm_tf.errors import RestartableError, UserError


@pytest.fixture
def data(corpus, tmp_path: Path) -> Path:
    """A copy of the training data, to be damaged."""
    return Path(shutil.copytree(corpus.train, tmp_path / "data"))


def shard_of(data: Path, number: int = 1) -> Path:
    return sorted(data.glob("*.tfrecord"))[number]


def cut(path: Path) -> int:
    """Takes the end away, and returns the number of the record that it was in."""
    records = sum(1 for _ in tf.data.TFRecordDataset(str(path)))
    path.write_bytes(path.read_bytes()[:-5])
    return records - 1


def flip(path: Path, place: float = 0.5) -> int:
    """Changes a bit, and returns the number of the record that it is in."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(bytes(content))
    count = 0
    with pytest.raises(tf.errors.DataLossError):
        for _ in tf.data.TFRecordDataset(str(path)):
            count += 1
    return count


# Shards.


@pytest.mark.parametrize("checksums", [False, True])
def test_a_truncated_shard(refused, tiny, data: Path, checksums: bool):
    record = cut(shard_of(data))
    config = tiny(data={"verify_checksums": checksums})
    complaint = refused(config, train_data=str(data))
    assert complaint.startswith(f"{shard_of(data)} is truncated or corrupt at record {record} (of ")
    assert complaint.endswith("leave out what cannot be read with data.skip_corrupt=true.")


def test_a_flipped_bit(refused, data: Path):
    record = flip(shard_of(data))
    assert f"is truncated or corrupt at record {record} (of " in refused(train_data=str(data))


def test_a_missing_shard(refused, data: Path):
    shard = shard_of(data)
    shard.unlink()
    assert refused(train_data=str(data)).startswith(f"{shard} is missing, though manifest.json")


@pytest.mark.slow
def test_damaged_shards_are_skipped_and_counted_when_asked(
    tiny, pretrain_on, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    manifest = json.loads((data / "manifest.json").read_text())
    sizes = [shard["sequences"] for shard in manifest["shards"]]
    kept = [cut(shard_of(data, 0)), flip(shard_of(data, 1)), 0]
    shard_of(data, 2).unlink()
    left_out = [size - count for size, count in zip(sizes, kept, strict=True)]
    config = tiny(data={"skip_corrupt": True, "verify_checksums": False})
    pretrain_on(config, tmp_path / "run", train_data=str(data), validation_data="")
    told = capsys.readouterr().err
    for number, lost in enumerate(left_out):
        assert f"data-{number:05d}-of-00003.tfrecord is " in told
        assert f": {lost} sequences left out.\n" in told
    assert f"{data}: {sum(left_out)} of {sum(sizes)} sequences are left out.\n" in told
    assert metrics(tmp_path / "run")[-1]["step"] == 10


def test_nothing_left_to_read_is_reported(refused, tiny, data: Path):
    for number in range(3):
        shard_of(data, 0).unlink()
        assert len(list(data.glob("*.tfrecord"))) == 2 - number
    config = tiny(data={"skip_corrupt": True})
    assert f"{data} has no sequences that can be read" in refused(config, train_data=str(data))


@pytest.mark.slow
def test_a_shard_that_is_damaged_later_ends_the_run_with_its_name(
    finished, pretrain_on, data: Path, tmp_path: Path
):
    """A run that goes on looks at the shards' sizes only; the damage is found on reading."""
    run = Path(shutil.copytree(finished.model_dir, tmp_path / "run"))
    for path in run.glob("checkpoints/ckpt-10.*"):
        path.unlink()
    records = {shard: flip(shard) for shard in sorted(data.glob("*.tfrecord"))}
    with pytest.raises(UserError) as caught:
        pretrain_on(finished.config, run, train_data=str(data))
    complaint = str(caught.value)
    name = complaint.split(" ")[0]
    assert f"{name} is truncated or corrupt at record {records[Path(name)]} (from 0)" in complaint
    assert "\n" not in complaint
    pretrain_on(finished.config, run)
    assert_same_run(run, finished.model_dir, step=10)


@pytest.mark.slow
def test_a_shard_that_cannot_be_read_for_a_while(finished, pretrain_on, corpus, tmp_path: Path):
    """The run ends, to be started again, and becomes the one that it would have been."""
    shard = shard_of(Path(corpus.train))

    class Lost(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            if int(self.model.optimizer.iterations) == 7:
                raise tf.errors.UnavailableError(None, None, f"{shard}; connection reset")

    with pytest.raises(RestartableError, match=f"{shard} could not be read .*start again with"):
        pretrain_on(finished.config, tmp_path / "run", callbacks=[Lost()])
    pretrain_on(finished.config, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished.model_dir, step=10)


# Checkpoints.


@pytest.mark.slow
def test_a_damaged_newest_checkpoint(finished, pretrain_on, tmp_path: Path, capsys):
    run = Path(shutil.copytree(finished.model_dir, tmp_path / "run"))
    path = run / "checkpoints" / "ckpt-10.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert pretrain_on(finished.config, run) == str(run / "preset")
    told = capsys.readouterr().err
    assert f"{run}/checkpoints/ckpt-10 is damaged (" in told
    assert "The run goes back to step 8." in told
    assert_same_run(run, finished.model_dir, step=10)


@pytest.mark.slow
def test_a_full_disk(finished, pretrain_on, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save = tf.raw_ops.SaveV2

    def save_until_full(prefix: str, **arguments) -> None:
        if prefix.endswith("ckpt-6"):
            raise tf.errors.ResourceExhaustedError(
                None, None, f"{prefix}.data-00000-of-00001; No space left on device"
            )
        save(prefix=prefix, **arguments)

    monkeypatch.setattr(tf.raw_ops, "SaveV2", save_until_full)
    run = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        pretrain_on(finished.config, run)
    complaint = str(caught.value)
    assert f"the checkpoint of step 6 could not be written into {run}/checkpoints (" in complaint
    assert "No space left on device" in complaint
    assert "those up to step 4 are whole: make room and start again with the same" in complaint
    assert {path.stem for path in run.glob("checkpoints/ckpt-*")} == {"ckpt-2", "ckpt-4"}
    monkeypatch.undo()
    pretrain_on(finished.config, run)
    assert_same_run(run, finished.model_dir, step=10)
