"""What a suite runs on, small enough for a test: shards, a vocabulary, a task, a configuration."""

from pathlib import Path

from tiny_presets import opinions

from cocolm_tf.data.build import build_shards
from cocolm_tf.tokenization.vocabulary import train_vocabulary

TINY = """
model:
  vocabulary_size: 80
  num_layers: 1
  num_heads: 2
  hidden_dim: 16
  intermediate_dim: 16
  max_sequence_length: 16
  dropout: 0.0
auxiliary: {num_layers: 1}
data: {sequence_length: 16}
optimizer: {warmup_steps: 2}
trainer:
  batch_size: 4
  log_interval: 2
  validation_interval: 20
  validation_steps: 1
  checkpoint_interval: 2
"""
# ELECTRA's auxiliary model, in proportion.
NARROW = "auxiliary.num_layers=1,auxiliary.hidden_dim=8,auxiliary.num_heads=1"
FINETUNING = """
model: {dropout: 0.0}
optimizer: {learning_rate: 1e-2}
trainer: {batch_size: 16, epochs: 1}
"""


def write_suite_inputs(folder: Path) -> Path:
    """Writes `data/`, `vocabulary/`, `SST-2/`, `tiny.yaml` and `finetuning.yaml`."""
    sentences = [text for text, _ in opinions(150)]
    train_vocabulary(sentences, 80, folder / "vocabulary")
    build_shards(
        sentences,
        str(folder / "vocabulary"),
        sequence_length=16,
        num_shards=2,
        num_workers=0,
        output_dir=str(folder / "data"),
        validation_fraction=0.2,
    )
    (folder / "SST-2").mkdir()
    for name, count, seed in (("train", 32, 1), ("dev", 12, 2)):
        rows = "".join(f"{text}\t{label}\n" for text, label in opinions(count, seed))
        (folder / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "finetuning.yaml").write_text(FINETUNING)
    return folder
