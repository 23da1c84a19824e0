"""Learns a BPE vocabulary from a corpus.

    train_vocabulary.py --input='corpus/*.txt' --vocabulary_size=32768 --output_dir=VOCAB

The text comes from --input, --tfds or --docstrings. The folder gets SentencePiece's sp.model and
a dict.txt and is a KerasHub preset; the other programs take it as --vocabulary.
"""

from absl import flags

from cocolm_tf import program
from cocolm_tf.data import source_flags
from cocolm_tf.files import check_output_folder

FLAGS = flags.FLAGS

source_flags.define_source_flags()
flags.adopt_module_key_flags(source_flags)  # so that --help shows them
flags.DEFINE_integer(
    "vocabulary_size",
    None,
    "The number of ids, the five special tokens included.",
    required=True,
    lower_bound=7,
)
flags.DEFINE_string("output_dir", None, "The folder to write the vocabulary to.", required=True)
flags.DEFINE_bool("lowercase", False, "Make the vocabulary uncased.")
flags.DEFINE_float(
    "character_coverage",
    0.9995,
    "The share of the corpus's characters that get a piece; rarer characters become <unk>.",
    lower_bound=0.98,
    upper_bound=1.0,
)
flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")


def main() -> str:
    check_output_folder(FLAGS.output_dir, FLAGS.overwrite)
    source = source_flags.source_from_flags(FLAGS)

    # TensorFlow takes seconds to import: mistakes in the flags should not wait for it.
    from cocolm_tf.tokenization.vocabulary import train_vocabulary

    train_vocabulary(
        source,
        FLAGS.vocabulary_size,
        FLAGS.output_dir,
        lowercase=FLAGS.lowercase,
        character_coverage=FLAGS.character_coverage,
        overwrite=FLAGS.overwrite,
    )
    return FLAGS.output_dir


if __name__ == "__main__":
    program.run(main)
