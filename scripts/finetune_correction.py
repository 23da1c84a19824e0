"""Fine-tunes a preset to correct texts: which words do not belong, and what they should be.

    finetune_correction.py --preset=runs/first/preset --input='corpus/*.txt' --model_dir=RUN
    finetune_correction.py --preset=runs/first/preset --train_file=essays.tsv --model_dir=RUN

It learns from mistakes that are made in good text (--input, --tfds or --docstrings) while it
trains, or from people's own: tables of texts and their corrected forms, or M2 files. Writes
RUN/preset, for export_saved_model.py --signature=correct. Started again with the same flags, it
resumes. See docs/corrections.md.
"""

import itertools

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.data.source_flags import define_source_flags
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.flags import shipped_config

flags.DEFINE_string("preset", None, "Folder that pretraining wrote.", required=True)
flags.DEFINE_string("model_dir", None, "Folder of the run.", required=True)
flags.DEFINE_string("config_file", "", "YAML file; by default configs/finetune/correction.yaml.")
flags.DEFINE_multi_string(
    "params_override", [], "Changes of the configuration, as trainer.train_steps=1000. Repeatable."
)
define_source_flags()
flags.DEFINE_float(
    "mistake_rate", 0.1, "Of mistakes that are made: the share of the words.", 0.0, 1.0
)
flags.DEFINE_integer(
    "passages", 1_000_000, "How many passages of the text to take at most, from its beginning.", 1
)
flags.DEFINE_string(
    "train_file",
    "",
    "Texts and their corrected forms, instead of a source: a table (.tsv, .csv, .jsonl) with the "
    "columns --text_column, by default text, and --corrected_column; or an M2 file (.m2).",
)
flags.DEFINE_string("corrected_column", "corrected", "--train_file: what they should be.")

FLAGS = flags.FLAGS
# Words of a row of tokens: English has some 1.4 tokens a word, and mistakes have more.
WORDS_PER_TOKEN = 0.6


def main() -> str:
    files.check_scheme(FLAGS.preset, "--preset")
    if not files.is_dir(FLAGS.preset):
        raise UserError(f"--preset={FLAGS.preset} is not a folder.")
    files.check_writable(FLAGS.model_dir, "--model_dir")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.training.config import load_config

    config_file = FLAGS.config_file or shipped_config("correction.yaml")
    config = load_config(config_file, FLAGS.params_override)
    texts, maker, source = _texts(config.data.sequence_length)

    from cocolm_tf.corrections.training import Examples, finetune_correction

    examples = Examples(texts, maker, config.runtime.seed)
    with files.local_copy(FLAGS.preset) as local:
        return finetune_correction(config, local, examples, FLAGS.model_dir, source)


def _texts(sequence_length: int) -> tuple:
    """What to learn from, what makes mistakes in it, and what it is."""
    from cocolm_tf.corrections import mistakes, texts
    from cocolm_tf.data.source_flags import source_from_flags

    if FLAGS.train_file:
        if FLAGS.input or FLAGS.tfds or FLAGS.docstrings:
            raise UserError("give --train_file or one of --input, --tfds and --docstrings.")
        if FLAGS.train_file.endswith(".m2"):
            found = texts.read_m2(FLAGS.train_file, FLAGS.encoding)
        else:
            columns = FLAGS.text_column or "text", FLAGS.corrected_column
            found = texts.read_table_of_corrections(FLAGS.train_file, *columns, FLAGS.encoding)
        return found, None, files.name(FLAGS.train_file)
    source = source_from_flags()
    dictionary = mistakes.codespell_dictionary().part(held_out=False)
    passages = mistakes.passages(source, int(sequence_length * WORDS_PER_TOKEN))
    found = list(itertools.islice(passages, FLAGS.passages))
    if not found:
        raise UserError("the text has no sentences to make mistakes in.")
    maker = mistakes.MistakeMaker(dictionary, mistakes.frequent_words(found), FLAGS.mistake_rate)
    described = " ".join(f"{name}={value}" for name, value in source.describe().items())
    return found, maker, f"mistakes in {FLAGS.mistake_rate:.0%} of the words of {described}"


if __name__ == "__main__":
    program.run(main)
