"""Averages presets of one architecture and vocabulary into one: a model soup.

    average_presets.py --preset=runs/a/preset --preset=runs/b/preset --output_dir=runs/soup

Of equal shares, or of those in --weights; or greedy: the best one, and each of the others, the next
best first, that does not make the soup worse. What is best is measured on held-out text (--data) or
by fine-tuning (--task), and reported in the model card, for each preset and the soup. For the
checkpoints of one run, make presets of them with export_checkpoints.py.
"""

import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError

flags.DEFINE_multi_string("preset", None, "Folder of a preset. Repeatable.", required=True)
flags.DEFINE_string("output_dir", None, "Folder of the preset to write.", required=True)
flags.DEFINE_bool("overwrite", False, "Whether to replace an output folder that is not empty.")
flags.DEFINE_list("weights", [], "The share of each, in any unit: 2,1,1. By default equal ones.")
flags.DEFINE_bool("greedy", False, "Whether to leave out what makes the soup worse.")
flags.DEFINE_string("data", "", "Shards of held-out text to measure the loss on.")
flags.DEFINE_integer("batches", 50, "How many batches of them to read.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Sequences of a batch.", lower_bound=1)
flags.DEFINE_enum("task", "", ["", *GLUE_TASKS], "Task of GLUE to fine-tune on and measure.")
flags.DEFINE_string(
    "data_dir", "", "Folder of GLUE's official TSV files. Without it, TensorFlow Datasets."
)
flags.DEFINE_string(
    "config_file", "", "Settings of the fine-tuning. By default those that suit the size."
)
flags.DEFINE_multi_string("params_override", [], "Changes to them. Repeatable.")
flags.DEFINE_integer("seed", 0, "Of the fine-tuning.")

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    try:
        weights = [float(weight) for weight in FLAGS.weights]
    except ValueError:
        raise UserError(f"--weights={','.join(FLAGS.weights)} must be numbers.") from None
    if FLAGS.greedy and weights:
        raise UserError("--weights and --greedy do not go together: greedy shares are equal.")
    if FLAGS.data and FLAGS.task:
        raise UserError("--data and --task do not go together: give one to measure by.")
    if FLAGS.greedy and not (FLAGS.data or FLAGS.task):
        raise UserError("--greedy needs --data or --task to measure by.")
    if files.absolute(FLAGS.output_dir) in map(files.absolute, FLAGS.preset):
        raise UserError(f"--output_dir={FLAGS.output_dir} is one of the presets.")
    files.check_output_folder(FLAGS.output_dir, FLAGS.overwrite, "--output_dir")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.training.soup import average_presets, check_presets

    check_presets(FLAGS.preset, weights)
    soup = average_presets(FLAGS.preset, FLAGS.output_dir, weights, FLAGS.greedy, _score())
    for preset in FLAGS.preset:
        measured = f"{soup.scores[preset]:.4f}" if soup.scores else ""
        print(f"{soup.weights.get(preset, 0.0):.3f} {measured} {preset}")
    if soup.score is not None:
        print(f"the soup: {soup.score:.4f}")
    return FLAGS.output_dir


def _score():
    """What presets are measured by, if anything."""
    if FLAGS.data:
        from cocolm_tf.analysis.soups import held_out_score

        return held_out_score(FLAGS.preset, FLAGS.data, FLAGS.batches, FLAGS.batch_size)
    if FLAGS.task:
        from cocolm_tf.analysis.soups import fine_tuned_score
        from cocolm_tf.finetuning.config import load_finetuning_config
        from cocolm_tf.finetuning.flags import suitable_config
        from cocolm_tf.finetuning.presets import backbone_config

        width = backbone_config(FLAGS.preset[0])["hidden_dim"]
        configs = os.path.join(ROOT, "configs", "finetune")
        config_file = FLAGS.config_file or suitable_config(width, configs)
        config, _ = load_finetuning_config(config_file, FLAGS.task, FLAGS.params_override)
        data_dir = files.absolute(FLAGS.data_dir) if FLAGS.data_dir else None
        data = {"glue": {"task": FLAGS.task, "data_dir": data_dir}}
        return fine_tuned_score(config.as_dict(), data, FLAGS.seed)
    return None


if __name__ == "__main__":
    program.run(main)
