"""Fine-tunes a pretrained language model on a few examples of a GLUE task, by prompts."""

import os

from absl import flags

from cocolm_tf import program
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")

flags.DEFINE_string("preset", None, "Folder of the pretrained model to start from.")
flags.DEFINE_enum("task", None, list(GLUE_TASKS), "The task.")
flags.DEFINE_string(
    "data_dir",
    "",
    "Folder of GLUE's official TSV files, with RTE/train.tsv and so on. Without it, TensorFlow "
    "Datasets.",
)
flags.DEFINE_integer(
    "shots",
    16,
    "How many examples of each class to learn from, and as many to choose by.",
    lower_bound=1,
)
flags.DEFINE_integer("splits", 5, "How many draws of these.", lower_bound=1)
flags.DEFINE_string(
    "output_dir", None, "Folder of the results. Runs that are in it already are not done again."
)
flags.DEFINE_string(
    "config_file",
    os.path.join(CONFIGS, "finetune", "prompts.yaml"),
    "YAML file with the settings, templates and label words.",
)
flags.DEFINE_multi_string(
    "params_override", [], "Changes to the settings: a=1,b=x, or a YAML file. Repeatable."
)
flags.DEFINE_integer(
    "jobs", 1, "How many runs to do at a time, each a process of its own.", lower_bound=1
)
flags.mark_flags_as_required(["preset", "task", "output_dir"])

FLAGS = flags.FLAGS


def main() -> str:
    if os.path.exists(FLAGS.output_dir) and not os.path.isdir(FLAGS.output_dir):
        raise UserError(f"--output_dir={FLAGS.output_dir} is a file; it must be a folder.")
    # Imported once the flags are known, so that mistakes in them answer at once.
    from cocolm_tf.finetuning.presets import backbone_config, language_model_bias

    backbone_config(FLAGS.preset)
    language_model_bias(FLAGS.preset)

    from cocolm_tf.finetuning.prompt_config import load_prompt_config
    from cocolm_tf.finetuning.prompt_experiment import run_prompt_experiment

    config, prompt = load_prompt_config(FLAGS.config_file, FLAGS.task, FLAGS.params_override)
    return run_prompt_experiment(
        FLAGS.preset,
        FLAGS.task,
        os.path.abspath(FLAGS.data_dir) if FLAGS.data_dir else None,
        config,
        prompt,
        FLAGS.shots,
        FLAGS.splits,
        FLAGS.output_dir,
        FLAGS.jobs,
    )


if __name__ == "__main__":
    program.run(main)
