"""Measures how fast fine-tuning is, beside what it was without static shapes.

    benchmark_finetuning.py --preset=runs/first/preset --task=sst2 --data_dir=glue_data
    benchmark_finetuning.py --preset=runs/first/preset --task=squad --squad_file=train-v2.0.json

Times the same steps in turn, each way in a process of its own. Prints a table and, as the last
line, the same numbers as JSON. With `--export=FILE` it writes the batches instead, for
`run_hugging_face_finetuning.py`, which times a peer's steps on them.
"""

import json
import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.cpus import available_cpus
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import suitable_config
from cocolm_tf.finetuning.presets import backbone_config

flags.DEFINE_string("preset", None, "Folder of the pretrained model.")
flags.DEFINE_enum("task", None, [*GLUE_TASKS, "squad"], "The task.")
flags.DEFINE_string("data_dir", "", "Folder of GLUE's files; TFDS by default.")
flags.DEFINE_string("squad_file", "", "JSON file of SQuAD's format; TFDS by default.")
flags.DEFINE_string("export", "", "File to write the batches to, instead of timing them.")
flags.DEFINE_string(
    "config_file",
    "",
    "YAML file of settings. By default the one in configs/finetune that suits the size of the "
    "model.",
)
flags.DEFINE_multi_string(
    "params_override", [], "Changes to the settings: a.b=1,c.d=x, or a YAML file. Repeatable."
)
flags.DEFINE_integer("batches", 32, "The number of steps of a round.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "How often each way is timed.", lower_bound=1)
flags.DEFINE_integer(
    "threads", available_cpus(), "The number of threads that a step may use.", lower_bound=1
)
flags.mark_flags_as_required(["preset", "task"])

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
    from cocolm_tf.benchmarking.finetuning import (
        export_batches,
        format_finetuning,
        measure_finetuning,
    )
    from cocolm_tf.finetuning.config import load_finetuning_config
    from cocolm_tf.finetuning.tasks.classification import ClassificationTask
    from cocolm_tf.finetuning.tasks.question_answering import QuestionAnsweringTask

    config, _ = load_finetuning_config(config_file, FLAGS.task, FLAGS.params_override)
    start = {"preset": FLAGS.preset, "config": config.as_dict()}
    if FLAGS.task == "squad":
        parts = dict.fromkeys(("train", "dev"), FLAGS.squad_file) if FLAGS.squad_file else {}
        task = QuestionAnsweringTask(files=parts, **start)
    else:
        data = {"task": FLAGS.task, "data_dir": FLAGS.data_dir or None}
        task = ClassificationTask(data={"glue": data}, **start)
    task.check()
    if FLAGS.export:
        export_batches(task.spec(), FLAGS.batches, FLAGS.export)
        return FLAGS.export
    result = measure_finetuning(task.spec(), FLAGS.batches, FLAGS.rounds, FLAGS.threads)
    print(format_finetuning(result))
    return json.dumps({"preset": FLAGS.preset, "task": FLAGS.task} | result)


if __name__ == "__main__":
    program.run(main)
