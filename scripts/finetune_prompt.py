"""Fine-tunes a pretrained language model on a few examples, by prompts.

Of a task of GLUE:

    finetune_prompt.py --preset=runs/base/preset --task=sst2 --data_dir=glue --output_dir=runs/few

Of a table of one's own:

    finetune_prompt.py --preset=runs/base/preset --train_file=reviews.csv --text_column=review \\
        --label_column=stars --template="{first} It was {mask} ." --label_word=1=terrible \\
        --label_word="5=great|good" --output_dir=runs/few
"""

from absl import flags

from cocolm_tf import program
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import (
    benchmark_from_flags,
    check_start_flags,
    define_benchmark_flags,
    define_start_flags,
    define_table_flags,
    run_from_flags,
    shipped_config,
    table_from_flags,
)

# LM-BFF's, whose splits they draw.
SEEDS = (13, 21, 42, 87, 100)

define_start_flags(search_reduction=1)
define_benchmark_flags(GLUE_TASKS, "TSV files of GLUE, with RTE/train.tsv and so on")
define_table_flags()
flags.DEFINE_string(
    "template",
    "",
    "Of a table: a sentence with {first} and {second} for the texts and {mask} for the label word.",
)
flags.DEFINE_multi_string(
    "label_word",
    [],
    "Of a table: CLASS=WORD, or CLASS=WORD|WORD to take the first that is one token; for every "
    "class, low and high of a regression. Repeatable.",
)
flags.DEFINE_integer(
    "shots",
    16,
    "How many examples of each class to learn from, and as many to choose by.",
    lower_bound=1,
)
flags.DEFINE_integer("splits", 5, "How many draws of these.", lower_bound=1)

FLAGS = flags.FLAGS


def main() -> str:
    check_start_flags()
    # Imported once the flags are known, so that mistakes in them answer at once.
    from cocolm_tf.finetuning.presets import language_model_bias

    language_model_bias(FLAGS.preset)

    if bool(FLAGS.task) == bool(FLAGS.train_file):
        raise UserError("give either --task, one of GLUE, or --train_file, a table of your own.")
    if FLAGS.train_file and not FLAGS.template:
        raise UserError("--template is missing: '{first} It was {mask} .' or the like.")

    from cocolm_tf.data.table_task import read_table_task
    from cocolm_tf.finetuning.tasks.prompting import prompt_of_glue, prompt_of_table

    config_file = shipped_config("prompts.yaml")
    if FLAGS.task:
        name, data = FLAGS.task, {"glue": benchmark_from_flags()}
        prompt = prompt_of_glue(FLAGS.config_file or config_file, FLAGS.task)
    else:
        table = table_from_flags()
        name, data = table["name"], {"table": table}
        prompt = prompt_of_table(FLAGS.template, FLAGS.label_word, read_table_task(**table))
    return run_from_flags(
        f"{name}-prompts",
        "prompting",
        {"data": data, **prompt, "shots": FLAGS.shots},
        settings=FLAGS.task or "",
        config_file=config_file,
        seeds=[*SEEDS, *range(SEEDS[-1] + 1, SEEDS[-1] + FLAGS.splits)][: FLAGS.splits],
    )


if __name__ == "__main__":
    program.run(main)
