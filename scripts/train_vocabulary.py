"""Learns a BPE vocabulary from a corpus.

    train_vocabulary.py --input='corpus/*.txt' --vocabulary_size=32768 --output_dir=VOCAB

    train_vocabulary.py ... --runner=DirectRunner -- --direct_num_workers=4

The text comes from --input, --tfds or --docstrings. The folder is a KerasHub preset with
SentencePiece's model and a dict.txt in it; the other programs take it as --vocabulary, and
convert_vocabulary.py makes a tokenizer.json of it for Hugging Face's tokenizers.
"""

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.cpus import available_cpus
from cocolm_tf.data import source_flags
from cocolm_tf.errors import UserError

FLAGS = flags.FLAGS

source_flags.define_source_flags()
source_flags.define_runner_flag()
flags.adopt_module_key_flags(source_flags)  # so that --help shows them
flags.DEFINE_integer(
    "vocabulary_size",
    None,
    "The number of ids, the five special tokens included.",
    required=True,
    lower_bound=7,
)
flags.DEFINE_string(
    "output_dir",
    None,
    "The folder to write the vocabulary to, on this machine or a store such as gs://.",
    required=True,
)
flags.DEFINE_bool("lowercase", False, "Make the vocabulary uncased.")
flags.DEFINE_enum(
    "normalization",
    "nmt_nfkc",
    ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"],
    "SentencePiece's rule for the characters of words: Unicode's NFKC, with control characters and "
    "odd spaces gone (nmt), with upper and lower case made one (cf), or none.",
)
flags.DEFINE_float(
    "character_coverage",
    0.9995,
    "The share of the corpus's characters that get a piece; rarer ones become <unk>, or bytes.",
    lower_bound=0.98,
    upper_bound=1.0,
)
flags.DEFINE_bool(
    "byte_fallback",
    False,
    "Give each of the 256 bytes a piece, and write characters without a piece in UTF-8.",
)
flags.DEFINE_bool("split_digits", False, "Make every digit a piece of its own.")
flags.DEFINE_integer(
    "sample_bytes",
    None,
    "Learn from about so many bytes of text, of many files in turn; by default from all.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_distinct_words",
    10_000_000,
    "With more different words than this, the rarer half is left out, which is reported. A million "
    "take about 100 MB.",
    lower_bound=1000,
)
flags.DEFINE_integer(
    "num_workers",
    available_cpus(),
    "The number of processes that count words, by default one for each CPU of the machine or "
    "container; 0 to count in the program's own.",
    lower_bound=0,
)
flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")


def main(*beam_options: str) -> str:
    source_flags.check_runner(FLAGS.runner, beam_options)
    if FLAGS.runner != source_flags.LOCAL and FLAGS.sample_bytes is not None:
        raise UserError(f"--sample_bytes goes with --runner={source_flags.LOCAL}.")
    files.check_output_folder(FLAGS.output_dir, FLAGS.overwrite, "--output_dir")
    source = source_flags.source_from_flags()

    # TensorFlow takes seconds to import: mistakes in the flags should not wait for it.
    from cocolm_tf.tokenization.vocabulary import learn_vocabulary, train_vocabulary

    arguments = {
        "vocabulary_size": FLAGS.vocabulary_size,
        "output_dir": FLAGS.output_dir,
        "lowercase": FLAGS.lowercase,
        "normalization": FLAGS.normalization,
        "character_coverage": FLAGS.character_coverage,
        "byte_fallback": FLAGS.byte_fallback,
        "split_digits": FLAGS.split_digits,
        "overwrite": FLAGS.overwrite,
    }
    if FLAGS.runner == source_flags.LOCAL:
        train_vocabulary(
            source,
            sample_bytes=FLAGS.sample_bytes,
            max_distinct_words=FLAGS.max_distinct_words,
            num_workers=FLAGS.num_workers,
            **arguments,
        )
    else:
        from cocolm_tf.data.beam import count_words_with_beam

        counts, forgotten = count_words_with_beam(
            source,
            FLAGS.lowercase,
            FLAGS.max_distinct_words,
            FLAGS.output_dir,
            FLAGS.runner,
            beam_options,
        )
        learn_vocabulary(counts, forgotten=forgotten, **arguments)
    return FLAGS.output_dir


if __name__ == "__main__":
    program.run(main, takes_more=True)
