"""Writes a preset as a folder that transformers and sentence-transformers load.

    export_transformers.py --preset=runs/first/preset --output_dir=folders/first

AutoModel.from_pretrained(DIR, trust_remote_code=True) loads the encoder,
SentenceTransformer(DIR, trust_remote_code=True) its vectors. See docs/conversion.md.
"""

import sys

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("preset", None, "Folder that pretraining or fine-tuning wrote.", required=True)
flags.DEFINE_string("output_dir", None, "The folder to write.", required=True)
flags.DEFINE_enum(
    "pooling",
    "",
    ["", "cls", "mean"],
    "What becomes the vector of a text. By default what the preset's embedder was trained with, or "
    "cls.",
)
flags.DEFINE_integer(
    "dimension",
    0,
    "How many numbers a vector has. By default as many as the preset's embedder was trained with, "
    "or all.",
    lower_bound=0,
)
flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")

FLAGS = flags.FLAGS


def main() -> str:
    if not files.is_dir(FLAGS.preset):
        raise UserError(f"--preset={FLAGS.preset} is not a folder.")
    files.check_output_folder(FLAGS.output_dir, FLAGS.overwrite)

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.conversion.transformers_folder import write_transformers_folder

    for note in write_transformers_folder(
        FLAGS.preset, FLAGS.output_dir, FLAGS.pooling, FLAGS.dimension, FLAGS.overwrite
    ):
        print(f"note: {note}", file=sys.stderr)
    return FLAGS.output_dir


if __name__ == "__main__":
    program.run(main)
