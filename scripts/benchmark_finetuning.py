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
from cocolm_tf.costs.flags import check_config_file, define_rounds_flags
from cocolm_tf.data.glue import GLUE_TASKS
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
define_rounds_flags()
flags.mark_flags_as_required(["preset", "task"])

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(files.absolute(__file__)))


def main() -> str:
    check_config_file()
    width = backbone_config(FLAGS.preset)["hidden_dim"]
    config_file = FLAGS.config_file or suitable_config(
        width, os.path.join(ROOT, "configs", "finetune")
    )

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from benchmarks.finetuning import export_batches, measure_finetuning

    from cocolm_tf.costs.formatting import format_result
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
    result = {"preset": FLAGS.preset, "task": FLAGS.task} | result
    print(format_result(result, {"": result["ways"]}))
    return json.dumps(result)


if __name__ == "__main__":
    program.run(main)
