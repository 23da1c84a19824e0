"""Makes presets of the checkpoints of a run, to fine-tune what it had learned on the way.

    export_checkpoints.py --model_dir=runs/first --step=20000 --step=40000

RUN gets presets/step_20000 and so on; every program takes them as it takes RUN/preset. A run keeps
its last checkpoints, and those of the multiples of trainer.keep_checkpoint_interval.
"""

import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("model_dir", None, "Folder of the run.", required=True)
flags.DEFINE_multi_integer(
    "step", [], "Step of a checkpoint. Repeatable; without it, all there are."
)
flags.DEFINE_string(
    "vocabulary", "", "Folder of the run's vocabulary, for a run that has not ended yet."
)

FLAGS = flags.FLAGS


def main() -> str:
    if not files.is_dir(FLAGS.model_dir):
        raise UserError(f"--model_dir={FLAGS.model_dir} is not a folder.")
    files.check_writable(FLAGS.model_dir, "--model_dir")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.training.preset import PRESETS_DIRECTORY, save_checkpoint_presets

    for path in save_checkpoint_presets(FLAGS.model_dir, FLAGS.vocabulary, FLAGS.step):
        print(path)
    return os.path.join(FLAGS.model_dir, PRESETS_DIRECTORY)


if __name__ == "__main__":
    program.run(main)
