"""Shows what a training step is on a GPU or a TPU that is not at hand.

    compile_step.py --config_file=configs/pretrain/base.yaml --target=h100 --rows=20 \\
        --params_override=trainer.batch_size=32

Exports the step, compiles it for the device by XLA's own compiler, and prints memory, kernels and
the least time that they can take; the last line is the same as JSON. --program keeps the exported
step, for run_step.py on a machine that has the device; without --target that is all.
"""

import json
import os
import tempfile
from pathlib import Path

from absl import flags

from cocolm_tf import program
from cocolm_tf.costs import flags as shared
from cocolm_tf.errors import UserError

shared.define_config_flags(required=False)
flags.DEFINE_enum(
    "target",
    None,
    ["h100", "h200", "a100", "v4", "v5e", "v5p", "v6e"],
    "The device to compile for; without it, the step is exported alone.",
)
flags.DEFINE_string("program", None, "Where to keep the exported step, or where it is.")
flags.DEFINE_bool(
    "from_tokens",
    False,
    "Export a step that masks and crops sequences itself, so that run_step.py can train by it.",
)
flags.DEFINE_string("train_data", "", "Folder or glob of the shards whose sequences --tokens gets.")
flags.DEFINE_string("tokens", "", "Where to write them, .npy, for run_step.py --train.")
flags.DEFINE_string("optimized", "", "Where to keep what XLA made of it for a GPU.")
flags.DEFINE_string(
    "measured",
    None,
    "What run_step.py --profile=FILE wrote on the device: nothing is compiled then, but set beside "
    "the kernels of --optimized, which the same run wrote, of --program.",
)
flags.DEFINE_integer("rows", 0, "How many groups of kernels to list, the heaviest first.", 0)
flags.DEFINE_multi_string("xla_option", [], "An option of XLA, NAME=VALUE. Repeatable.")
flags.DEFINE_string(
    "targets_python",
    "",
    "The interpreter of the environment with the compilers, instead of the one that "
    "COCOLM_TARGETS_PYTHON names or `make targets` makes.",
)

FLAGS = flags.FLAGS
_RUNNER = Path(__file__).with_name("run_step.py")


def main() -> str:
    if not FLAGS.config_file and not FLAGS.program:
        raise UserError("--config_file is missing: give it, or --program of an exported step.")
    shared.check_config_file()
    if FLAGS.config_file and not FLAGS.program and not FLAGS.target:
        raise UserError("--target is missing: give it, or --program to export the step alone.")
    if bool(FLAGS.train_data) != bool(FLAGS.tokens) or (FLAGS.tokens and not FLAGS.config_file):
        raise UserError("--train_data, --tokens and --config_file go together.")
    if not FLAGS.config_file and not os.path.isfile(FLAGS.program):
        raise UserError(f"--program={FLAGS.program} does not exist.")
    if not FLAGS.config_file and not FLAGS.target:
        raise UserError("--target is missing: it says what --program is to be compiled for.")
    for name in ("program", "optimized", "measured") if FLAGS.measured else ():
        if not os.path.isfile(FLAGS[name].value or ""):
            raise UserError(f"--{name}={FLAGS[name].value} does not exist: --measured needs it.")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.costs import step_export
    from cocolm_tf.costs.formatting import format_result

    if FLAGS.measured:
        seconds = json.loads(Path(FLAGS.measured).read_text())
        result = step_export.compare_with_measured(
            FLAGS.program, FLAGS.target, FLAGS.optimized, seconds
        )
    else:
        # Looked for before the step is exported, which takes a while.
        python = step_export.targets_python(FLAGS.targets_python) if FLAGS.target else ""
        with tempfile.TemporaryDirectory() as folder:
            path = FLAGS.program or str(Path(folder, "exported.step"))
            if FLAGS.config_file:
                _export(path, "TPU" if FLAGS.target in step_export.TPUS else "GPU")
            if not FLAGS.target:
                return path
            result = step_export.compile_for(
                path, FLAGS.target, _RUNNER, python, FLAGS.optimized, options=FLAGS.xla_option
            )
    result["groups"] = result.get("groups", [])[: FLAGS.rows]
    rows = {one["name"]: one | {"shape": one["shape"][:60]} for one in result["groups"]}
    for row in rows.values():
        del row["name"]
    print(format_result(result, {"kernels of": rows} if rows else {}))
    return json.dumps(shared.described_configuration() | result)


def _export(path: str, kind: str) -> None:
    from cocolm_tf.costs.step_export import export_step, export_tokens
    from cocolm_tf.training.config import load_config

    config = load_config(FLAGS.config_file, FLAGS.params_override)
    if FLAGS.tokens:
        export_tokens(FLAGS.train_data, config.data.sequence_length, FLAGS.tokens)
    export_step(config, path, shared.configuration_name(), kind, FLAGS.from_tokens)
    print(f"{'configuration':24}{shared.configuration_name()}")


if __name__ == "__main__":
    program.run(main)
