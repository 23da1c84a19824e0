"""Scores which words of texts a preset finds wrong, and what it puts in their place.

    evaluate_corrections.py --preset=runs/first/preset --made_in='held_out/*.txt'
    evaluate_corrections.py --preset=runs/first/preset --table=essays.tsv
    evaluate_corrections.py --preset=runs/first/preset --m2=essays.m2 --output_file=corrected.txt

The mistakes are made in good text (--made_in), or people's own: a table with a column of texts and
one of corrected texts, or an M2 file, as ERRANT writes it. Prints a table and ends with a line of
JSON. See docs/corrections.md.
"""

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("preset", None, "Folder that pretraining or fine-tuning wrote.", required=True)
flags.DEFINE_string(
    "made_in",
    "",
    "Text files without mistakes, one or several comma-separated globs; mistakes are made in them.",
)
flags.DEFINE_float(
    "mistake_rate", 0.05, "--made_in: the share of the words that are mistaken.", 0.0, 1.0
)
flags.DEFINE_integer("passages", 2000, "--made_in: how many passages to take at most.", 2)
flags.DEFINE_integer("passage_words", 60, "--made_in: the longest passage, in words.", 4)
flags.DEFINE_string("table", "", "Table of texts and their corrected forms: .tsv, .csv or .jsonl.")
flags.DEFINE_string("text_column", "text", "--table: the column of the texts with mistakes.")
flags.DEFINE_string("corrected_column", "corrected", "--table: the column of what they should be.")
flags.DEFINE_string("m2", "", "M2 file of texts and their edits.")
flags.DEFINE_string("encoding", None, "Encoding of the files. By default UTF-8.")
flags.DEFINE_float(
    "threshold",
    None,
    "The probability from which on a word is flagged and corrected. By default it is chosen on a "
    "random half of the texts, and the scores are of the other half.",
    0.0,
    1.0,
)
flags.DEFINE_string("output_file", "", "File to write the corrected texts to, one a line.")
flags.DEFINE_integer("batch_size", 16, "How many texts to ask about at a time.", 1)
flags.DEFINE_integer("seed", 0, "Decides the mistakes that are made, and the halves.", 0)

FLAGS = flags.FLAGS


def main() -> None:
    given = [name for name in ("made_in", "table", "m2") if FLAGS[name].value]
    if len(given) != 1:
        raise UserError("give one of --made_in, --table and --m2.")
    files.check_scheme(FLAGS.preset, "--preset")
    if not files.is_dir(FLAGS.preset):
        raise UserError(f"--preset={FLAGS.preset} is not a folder.")
    texts = _texts(given[0])

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.corrections.evaluation import (
        as_json,
        evaluate,
        predict_corrections,
        report,
    )
    from cocolm_tf.corrections.texts import apply_edits

    with files.local_copy(FLAGS.preset) as local:
        words = predict_corrections(local, [marked.text for marked in texts], FLAGS.batch_size)
    try:
        found = evaluate(texts, words, FLAGS.threshold, FLAGS.seed)
    except ValueError as error:
        raise UserError(f"--{given[0]}={FLAGS[given[0]].value}: {error}.") from error
    if FLAGS.output_file:
        corrected = (
            apply_edits(marked.text, one.edits(marked.text, found["threshold"]))
            for marked, one in zip(texts, words, strict=True)
        )
        lines = "".join(" ".join(text.split()) + "\n" for text in corrected)
        files.write_text(FLAGS.output_file, lines)
    print(report(found))
    print(as_json(found))


def _texts(kind: str) -> list:
    from cocolm_tf.corrections import mistakes, texts

    if kind == "m2":
        return texts.read_m2(FLAGS.m2, FLAGS.encoding)
    if kind == "table":
        columns = FLAGS.text_column, FLAGS.corrected_column
        return texts.read_table_of_corrections(FLAGS.table, *columns, FLAGS.encoding)
    from cocolm_tf.data.sources import FileSource

    dictionary = mistakes.codespell_dictionary().part(held_out=True)
    source = FileSource.find(FLAGS.made_in, encoding=FLAGS.encoding or "")
    found = list(mistakes.passages(source, FLAGS.passage_words))
    if not found:
        raise UserError(f"--made_in={FLAGS.made_in} has no sentences.")
    words = mistakes.frequent_words(found)
    maker = mistakes.MistakeMaker(dictionary, words, FLAGS.mistake_rate)
    # Equally spaced.
    count = min(FLAGS.passages, len(found))
    chosen = [found[len(found) * number // count] for number in range(count)]
    return [maker(text, f"{FLAGS.seed} {number}") for number, text in enumerate(chosen)]


if __name__ == "__main__":
    program.run(main)
