"""Fine-tunes a pretrained language model on a few examples of a GLUE task, by prompts."""

import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.finetuning.prompt_run import PromptRun
from cocolm_tf.finetuning.run_flags import check_start_flags, define_glue_flags, define_start_flags

define_start_flags()
define_glue_flags()
flags.DEFINE_integer(
    "shots",
    16,
    "How many examples of each class to learn from, and as many to choose by.",
    lower_bound=1,
)
flags.DEFINE_integer("splits", 5, "How many draws of these.", lower_bound=1)

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))
CONFIG_FILE = os.path.join(ROOT, "configs", "finetune", "prompts.yaml")


def main() -> str:
    check_start_flags()
    # Imported once the flags are known, so that mistakes in them answer at once.
    from cocolm_tf.finetuning.presets import language_model_bias

    language_model_bias(FLAGS.preset)

    from cocolm_tf.finetuning.prompt_config import load_prompt_config
    from cocolm_tf.finetuning.prompt_experiment import run_prompt_experiment

    config, prompt = load_prompt_config(
        FLAGS.config_file or CONFIG_FILE, FLAGS.task, FLAGS.params_override
    )
    run = PromptRun(
        preset=FLAGS.preset,
        config=config.as_dict(),
        task=FLAGS.task,
        template=prompt.template,
        words=prompt.words,
        data_dir=files.absolute(FLAGS.data_dir) if FLAGS.data_dir else None,
        shots=FLAGS.shots,
    )
    return run_prompt_experiment(run, FLAGS.output_dir, FLAGS.splits, FLAGS.jobs)


if __name__ == "__main__":
    program.run(main)
