"""Pretrains and fine-tunes the rows of a table, alike but for what each row changes.

    run_suite.py --suite=table3 --config_file=configs/pretrain/small.yaml --tokens=4000000 \\
        --train_data=data/train --validation_data=data/validation --vocabulary=vocabulary \\
        --data_dir=glue --tasks=cola,sst2,mrpc,stsb,rte --seeds=5 --output_dir=runs/table3

Suites: table3 and figure4 (the paper's), baselines, tasks, or a YAML file of your own; see
configs/suites. All rows read the same tokens in the same order. OUT gets results.md, the table,
from the first result on, results.json, and the pretrainings' curves.

Exit status: as pretrain.py's. Stopped at any moment, it resumes when started again with the same
flags: what is finished is not run again, and a pretraining resumes from its checkpoint.
"""

import os

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import STRATEGIES

flags.DEFINE_string(
    "suite",
    None,
    "The rows: baselines, fast_electra, figure4, mcl, table3, tasks or a YAML file.",
)
flags.DEFINE_string(
    "config_file", None, "YAML file that defines what the rows share; see configs/pretrain."
)
flags.DEFINE_multi_string(
    "params_override",
    [],
    "Changes to it for all rows: a.b=1,c.d=x, or a YAML file. Repeatable. What a row changes comes "
    "after them.",
)
flags.DEFINE_multi_string(
    "row_override", [], "Further changes to one row: ROW:a.b=1,c.d=x. Repeatable."
)
flags.DEFINE_integer(
    "train_steps", 0, "How many steps each row takes; 0 for as the configuration says.", 0
)
flags.DEFINE_integer("tokens", 0, "How many tokens each row reads, instead of --train_steps.", 0)
flags.DEFINE_string(
    "train_data",
    None,
    "Folder or glob of the shards to train on, or several with weights: wiki=0.7,books=0.3.",
)
flags.DEFINE_string("validation_data", "", "Folder or glob of shards to validate on.")
flags.DEFINE_string("vocabulary", None, "Folder of the vocabulary that the shards were built with.")
flags.DEFINE_list(
    "tasks",
    [],
    f"The tasks of GLUE to fine-tune on, of {', '.join(GLUE_TASKS)}; none for no fine-tuning.",
)
flags.DEFINE_string(
    "data_dir",
    "",
    "Folder of GLUE's official TSV files, with RTE/train.tsv and so on. Without it, TensorFlow "
    "Datasets.",
)
flags.DEFINE_string(
    "finetuning_config_file",
    "",
    "YAML file that defines a fine-tuning; see configs/finetune. By default the one there that "
    "suits the size of the model.",
)
flags.DEFINE_multi_string(
    "finetuning_override", [], "Changes to it: a.b=1,c.d=x, or a YAML file. Repeatable."
)
flags.DEFINE_integer(
    "seeds", 5, "How many fine-tunings to make of each row and task, with other random seeds.", 1
)
flags.DEFINE_integer(
    "processes", 1, "How many runs to do at a time, each a process of its own.", lower_bound=1
)
flags.DEFINE_enum(
    "distribution_strategy",
    "one_device",
    STRATEGIES,
    "The devices of each run, of the pretrainings and the fine-tunings: one of them, all GPUs, or "
    "a TPU.",
)
flags.DEFINE_string("tpu", "", "Address of the TPU, or local, for --distribution_strategy=tpu.")
flags.DEFINE_string(
    "output_dir", None, "Folder of the results. Runs that are in it already are not done again."
)
flags.mark_flags_as_required(["suite", "output_dir"])

FLAGS = flags.FLAGS
_FOR_PRETRAINING = ("config_file", "train_data", "vocabulary")
CONFIGS = os.path.join(os.path.dirname(os.path.dirname(files.absolute(__file__))), "configs")


def main() -> str:
    if FLAGS.train_steps and FLAGS.tokens:
        raise UserError("--train_steps and --tokens say the same in two ways: leave one out.")
    for flag in ("config_file", "finetuning_config_file"):
        if FLAGS[flag].value and not files.is_file(FLAGS[flag].value):
            raise UserError(f"--{flag}={FLAGS[flag].value} does not exist.")
    is_tpu = FLAGS.distribution_strategy == "tpu"
    if bool(FLAGS.tpu) != is_tpu:
        raise UserError("--distribution_strategy=tpu and --tpu=ADDRESS go together.")
    if is_tpu and FLAGS.processes > 1:
        raise UserError("a TPU does one run at a time: leave out --processes.")
    files.check_writable(FLAGS.output_dir, "--output_dir")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.suite.plan import (
        Plan,
        architectures,
        glue_tasks,
        load_suite,
        pretraining_configs,
        row_overrides,
    )
    from cocolm_tf.suite.runner import PretrainingInputs, run_suite

    suite = load_suite(FLAGS.suite, os.path.join(CONFIGS, "suites"))
    missing = [name for name in _FOR_PRETRAINING if not FLAGS[name].value]
    if missing and any(row.is_pretrained for row in suite.rows):
        raise UserError(f"--{missing[0]} is missing: rows of {FLAGS.suite} are pretrained.")
    budget = f"trainer.train_tokens={FLAGS.tokens}" if FLAGS.tokens else ""
    if FLAGS.train_steps:
        budget = f"trainer.train_steps={FLAGS.train_steps},trainer.train_tokens=0"
    configs = pretraining_configs(
        suite,
        FLAGS.config_file,
        FLAGS.output_dir,
        FLAGS.params_override,
        row_overrides(suite, FLAGS.row_override),
        budget,
    )
    tasks = glue_tasks(
        FLAGS.tasks,
        FLAGS.data_dir or None,
        architectures(suite, configs),
        FLAGS.finetuning_config_file,
        FLAGS.finetuning_override,
        os.path.join(CONFIGS, "finetune"),
    )
    return run_suite(
        Plan(suite, configs, tasks, FLAGS.seeds),
        PretrainingInputs(FLAGS.train_data, FLAGS.vocabulary, FLAGS.validation_data)
        if configs
        else None,
        FLAGS.output_dir,
        FLAGS.processes,
        {
            "distribution_strategy": FLAGS.distribution_strategy,
            **({"tpu": FLAGS.tpu} if FLAGS.tpu else {}),
        },
    )


if __name__ == "__main__":
    program.run(main)
