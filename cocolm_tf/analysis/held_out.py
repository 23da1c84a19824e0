"""What finished runs do on held-out text: all measures of training, also of tasks left out."""

import os

import keras
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf.analysis.demonstration import load_run
from cocolm_tf.data.manifest import Manifest
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.views import word_starts
from cocolm_tf.errors import UserError
from cocolm_tf.training.build import build_views
from cocolm_tf.training.config import load_config


def measure_run(model_dir: str, data: str, batches: int = 20, batch_size: int = 32) -> dict:
    """Measures a finished run's preset on shards.

    The cosines of the two views (paper, figures 7a and 7b) are measured of a run without
    contrastive learning too: of its [CLS] vectors as they are.

    Args:
        model_dir: the run's folder, with its `config.yaml` and `preset/`.
        data: folder or glob of shards, built with the run's vocabulary.
        batches: int. How many to measure on; fewer if there are not as many.
        batch_size: int. Sequences of each.

    Returns:
        The losses and measures by their names, means over the batches.

    Raises:
        UserError: if the run is not finished, or the shards are of another vocabulary.

    Example:
    ```python
    measure_run("runs/first", "data/validation")["positive_cosine"]
    ```
    """
    config = load_config(os.path.join(model_dir, "config.yaml"))
    changes = [] if config.objective.scl_weight else _CONTRAST_VECTORS_AS_THEY_ARE
    pretrainer, tokenizer = load_run(model_dir, changes)
    manifest = Manifest.load(data)
    if manifest.vocabulary_fingerprint != tokenizer.fingerprint():
        raise UserError(
            f"--data={data} was built with another vocabulary than {model_dir}'s: build it with "
            f"--vocabulary={os.path.join(model_dir, 'preset')}."
        )
    opened = PretrainingData.open(
        data,
        config.data.sequence_length,
        build_views(config, tokenizer.mask_token_id, word_starts(tokenizer.get_vocabulary())),
    )
    measured = opened.validation_batches(min(batch_size, manifest.counts["sequences"]), batches)
    means: dict[str, keras.metrics.Mean] = {}

    @tf.function(autograph=False)
    def measure(batch: dict[str, tf.Tensor]) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        losses, measures = pretrainer.compute(batch, training=False)
        weights = pretrainer.loss_weights(batch)
        return measures | {name: (loss, weights[name]) for name, loss in losses.items()}

    for batch in tqdm(measured, desc=os.path.basename(model_dir), unit="batch"):
        for name, (value, weight) in measure(batch).items():
            means.setdefault(name, keras.metrics.Mean(name=name)).update_state(value, weight)
    return {name: float(mean.result()) for name, mean in means.items()}


# No further weights come with these.
_CONTRAST_VECTORS_AS_THEY_ARE = ["objective.scl_weight=1", "objective.projection=false"]
