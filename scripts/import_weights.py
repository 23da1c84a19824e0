"""Makes a preset of the weights that run_step.py --train wrote.

    import_weights.py --program=small.step --weights=trained/small --vocabulary=VOCAB \\
        --model_dir=RUN

RUN gets config.yaml, metrics.jsonl and preset/, as pretrain.py writes them.
"""

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("program", None, "The exported step that it was trained by.", required=True)
flags.DEFINE_string("weights", None, "What run_step.py was given as --weights.", required=True)
flags.DEFINE_string("vocabulary", None, "Folder of the tokens' vocabulary.", required=True)
flags.DEFINE_string("model_dir", None, "Folder of the run to write.", required=True)

FLAGS = flags.FLAGS


def main() -> str:
    if not files.is_file(FLAGS.program):
        raise UserError(f"--program={FLAGS.program} does not exist.")
    if not files.is_file(f"{FLAGS.weights}.jsonl"):
        raise UserError(f"--weights={FLAGS.weights}: there is no {FLAGS.weights}.jsonl.")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.costs.step_export import import_weights

    return import_weights(FLAGS.program, FLAGS.weights, FLAGS.vocabulary, FLAGS.model_dir)


if __name__ == "__main__":
    program.run(main)
