"""Pretrains COCO-LM from shards, or resumes where an earlier run stopped.

Exit status: 0 when the preset is written; 1 for a mistake, in one line; 75 when SIGTERM or the
loss of another worker ended the run before its time. It then resumes from its last checkpoint when
started again with the same flags; after SIGTERM, from the very step that it had reached.
"""

import re

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("config_file", None, "YAML file that defines the run; see configs/pretrain.")
flags.DEFINE_multi_string(
    "params_override", [], "Changes to the configuration: a.b=1,c.d=x, or a YAML file. Repeatable."
)
flags.DEFINE_string(
    "train_data",
    None,
    "Folder or glob of the shards to train on, or several with weights: wiki=0.7,books=0.3.",
)
flags.DEFINE_string("validation_data", "", "Folder or glob of shards to validate on.")
flags.DEFINE_string("vocabulary", None, "Folder of the vocabulary that the shards were built with.")
flags.DEFINE_string(
    "model_dir", None, "Folder of the run. A run that is already there resumes from its checkpoint."
)
flags.DEFINE_string("init_preset", "", "Preset to start from: continued pretraining.")
flags.DEFINE_enum(
    "distribution_strategy",
    "one_device",
    ["one_device", "mirrored", "multi_worker_mirrored", "tpu"],
    "The devices to train on. multi_worker_mirrored: those of all hosts that TF_CONFIG names.",
)
flags.DEFINE_string("tpu", "", "Address of the TPU, or local.")
flags.DEFINE_string(
    "profile_steps", "", "First and last step, as 100,110, of a profile for TensorBoard's profiler."
)
flags.register_validator(
    "profile_steps",
    lambda text: not text or re.fullmatch(r"\d+,\d+", text),
    "must be the first and the last step of the profile, as 100,110",
)
flags.DEFINE_float(
    "worker_timeout", 600, "Seconds that multi_worker_mirrored waits for all workers.", 1
)
flags.mark_flags_as_required(["config_file", "train_data", "vocabulary", "model_dir"])

FLAGS = flags.FLAGS


def main() -> str:
    if not files.is_file(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")
    if FLAGS.distribution_strategy != "multi_worker_mirrored":  # of whose workers the chief writes
        files.check_writable(FLAGS.model_dir, "--model_dir")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.training.config import load_config
    from cocolm_tf.training.distribution import make_strategy
    from cocolm_tf.training.pretraining import pretrain

    return pretrain(
        load_config(FLAGS.config_file, FLAGS.params_override),
        FLAGS.train_data,
        FLAGS.vocabulary,
        FLAGS.model_dir,
        make_strategy(FLAGS.distribution_strategy, FLAGS.tpu, FLAGS.worker_timeout),
        FLAGS.validation_data,
        FLAGS.init_preset,
        profile_steps=[int(step) for step in FLAGS.profile_steps.split(",") if step],
    )


if __name__ == "__main__":
    program.run(main)
