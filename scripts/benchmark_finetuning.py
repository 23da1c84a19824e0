"""Measures what batches of like lengths are worth in fine-tuning on a task of GLUE.

    benchmark_finetuning.py --preset=runs/first/preset --task=sst2 --data_dir=glue_data

Times epochs with padding to the longest row that the model can read, to the longest row of each
batch, and to that of batches of like lengths. Prints a table and, as the last line, the same
numbers as JSON.
"""

import json
import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.cpus import available_cpus
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import define_glue_flags, suitable_config
from cocolm_tf.finetuning.presets import backbone_config

flags.DEFINE_string("preset", None, "Folder of the pretrained model.")
define_glue_flags()
flags.DEFINE_string(
    "config_file",
    "",
    "YAML file of settings. By default the one in configs/finetune that suits the size of the "
    "model.",
)
flags.DEFINE_multi_string(
    "params_override", [], "Changes to the settings: a.b=1,c.d=x, or a YAML file. Repeatable."
)
flags.DEFINE_integer("rows", 1024, "The number of training examples of an epoch.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "The number of epochs of each way to time.", lower_bound=1)
flags.DEFINE_integer(
    "threads", available_cpus(), "The number of threads that an epoch may use.", lower_bound=1
)
flags.mark_flag_as_required("preset")

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    if FLAGS.config_file and not files.is_file(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")
    width = backbone_config(FLAGS.preset)["hidden_dim"]
    config_file = FLAGS.config_file or suitable_config(
        width, os.path.join(ROOT, "configs", "finetune")
    )
    # On a GPU the contenders share its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.benchmarking.finetuning import format_bucketing, measure_bucketing
    from cocolm_tf.finetuning.config import load_finetuning_config
    from cocolm_tf.finetuning.tasks.classification import ClassificationTask

    config, _ = load_finetuning_config(config_file, FLAGS.task, FLAGS.params_override)
    data = {"glue": {"task": FLAGS.task, "data_dir": FLAGS.data_dir or None}}
    run = ClassificationTask(preset=FLAGS.preset, config=config.as_dict(), data=data)
    run.check()
    result = measure_bucketing(run, FLAGS.rows, FLAGS.rounds, FLAGS.threads)
    print(format_bucketing(result))
    return json.dumps({"preset": FLAGS.preset, "task": FLAGS.task} | result)


if __name__ == "__main__":
    program.run(main)
