"""Fine-tunes a pretrained model on SQuAD 2.0 or 1.1, and scores it on the dev set."""

import os

from absl import flags

from cocolm_tf import program
from cocolm_tf.errors import UserError

flags.DEFINE_string("preset", None, "Folder of the pretrained model to start from.")
flags.DEFINE_string(
    "train_file",
    "",
    "JSON file to learn from, in the format of SQuAD 2.0 or 1.1. Without it, TensorFlow Datasets' "
    "squad/v2.0.",
)
flags.DEFINE_string("dev_file", "", "JSON file to score on; it goes with --train_file.")
flags.DEFINE_string(
    "output_dir", None, "Folder of the results. Runs that are in it already are not done again."
)
flags.DEFINE_string(
    "config_file",
    "",
    "YAML file that defines a run; see configs/finetune. By default the one there that suits the "
    "size of the model.",
)
flags.DEFINE_multi_string(
    "params_override",
    [],
    "Changes to the configuration: a.b=1,c.d=x, or a YAML file. Repeatable.",
)
flags.DEFINE_integer(
    "sequence_length",
    None,
    "Tokens of a window with its question. By default 384, or what the model has positions for.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "stride",
    None,
    "Tokens from the beginning of one window of a context to that of the next. By default 128, or "
    "half of the context's room where that is less.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_question_length",
    None,
    "Tokens after which a question is cut off. By default 64, or a quarter of the window where "
    "that is less.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_answer_length",
    None,
    "Tokens of the longest answer. By default 30, or what windows are sure to hold where that is "
    "less.",
    lower_bound=1,
)
flags.DEFINE_integer("n_best", 20, "How many candidates to write for each question.", lower_bound=1)
flags.DEFINE_integer(
    "seeds", 1, "How many runs to make that differ in their random seeds only.", lower_bound=1
)
flags.DEFINE_bool(
    "from_scratch",
    False,
    "Start from random weights in the preset's architecture, for comparison.",
)
flags.DEFINE_integer(
    "jobs", 1, "How many runs to do at a time, each a process of its own.", lower_bound=1
)
flags.mark_flags_as_required(["preset", "output_dir"])

FLAGS = flags.FLAGS
CONFIGS_DIRECTORY = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs", "finetune"
)
# The narrowest encoders that the released settings are for, and those settings.
CONFIGS = ((1024, "large_pp.yaml"), (768, "base_pp.yaml"), (0, "small.yaml"))


def main() -> str:
    files = {"train": FLAGS.train_file, "dev": FLAGS.dev_file}
    if bool(FLAGS.train_file) != bool(FLAGS.dev_file):
        raise UserError("--train_file and --dev_file go together: give both, or neither for TFDS.")
    for name, path in files.items():
        if path and not os.path.isfile(path):
            raise UserError(f"--{name}_file={path} does not exist.")

    if os.path.exists(FLAGS.output_dir) and not os.path.isdir(FLAGS.output_dir):
        raise UserError(f"--output_dir={FLAGS.output_dir} is a file; it must be a folder.")
    if FLAGS.config_file and not os.path.isfile(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.finetuning.config import load_finetuning_config, with_values
    from cocolm_tf.finetuning.presets import backbone_config
    from cocolm_tf.finetuning.squad_experiment import NAME, run_squad_experiment
    from cocolm_tf.finetuning.squad_run import SquadRun

    width = backbone_config(FLAGS.preset)["hidden_dim"]
    suits = next(file for narrowest, file in CONFIGS if width >= narrowest)
    config_file = FLAGS.config_file or os.path.join(CONFIGS_DIRECTORY, suits)
    config, _ = load_finetuning_config(config_file, NAME, FLAGS.params_override)
    if FLAGS.sequence_length:
        length = {"data.sequence_length": FLAGS.sequence_length}
        config = with_values(config, length, "--sequence_length")
    run = SquadRun(
        preset=FLAGS.preset,
        config=config.as_dict(),
        files={part: os.path.abspath(path) for part, path in files.items() if path},
        stride=FLAGS.stride,
        max_question_length=FLAGS.max_question_length,
        max_answer_length=FLAGS.max_answer_length,
        n_best=FLAGS.n_best,
        from_scratch=FLAGS.from_scratch,
    )
    return run_squad_experiment(run, FLAGS.output_dir, FLAGS.seeds, FLAGS.jobs)


if __name__ == "__main__":
    program.run(main)
