"""Fine-tunes a pretrained language model on a few examples of a GLUE task, by prompts."""

import os
from typing import Any

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.finetuning.flags import (
    check_start_flags,
    define_glue_flags,
    define_start_flags,
    run_from_flags,
)

# LM-BFF's, whose splits they draw.
SEEDS = (13, 21, 42, 87, 100)

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
CONFIGS = os.path.join(ROOT, "configs", "finetune")
CONFIG_FILE = os.path.join(CONFIGS, "prompts.yaml")


def main() -> str:
    check_start_flags()
    # Imported once the flags are known, so that mistakes in them answer at once.
    from cocolm_tf.finetuning.presets import language_model_bias

    language_model_bias(FLAGS.preset)

    def make_task(**fields: Any) -> Any:
        from cocolm_tf.finetuning.tasks.prompting import PromptingTask, prompt_of_glue

        prompt = prompt_of_glue(FLAGS.config_file or CONFIG_FILE, FLAGS.task)
        data_dir = files.absolute(FLAGS.data_dir) if FLAGS.data_dir else None
        return PromptingTask(
            data={"glue": {"task": FLAGS.task, "data_dir": data_dir}},
            template=prompt.template,
            words=prompt.words,
            shots=FLAGS.shots,
            **fields,
        )

    return run_from_flags(
        f"{FLAGS.task}-prompts",
        make_task,
        CONFIGS,
        settings=FLAGS.task,
        config_file=CONFIG_FILE,
        seeds=[*SEEDS, *range(SEEDS[-1] + 1, SEEDS[-1] + FLAGS.splits)][: FLAGS.splits],
    )


if __name__ == "__main__":
    program.run(main)
