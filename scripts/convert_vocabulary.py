"""Converts vocabularies to and from the tokenizer.json of Hugging Face's tokenizers.

    convert_vocabulary.py --vocabulary=VOCAB --tokenizer_json=tokenizer.json
    convert_vocabulary.py --vocabulary=VOCAB --tokenizer_json=tokenizer.json --reverse

The first writes the file: the preparation of texts and BPE merges, with the same ids. With
--reverse the folder is written: of a tokenizer.json with a BPE model over characters in which words
begin with "\u2581", as SentencePiece has them. Words get the same pieces; texts are prepared as for
the released models: plain quotes and dashes, punctuation split off the words. What cannot be the
same is reported.
"""

import json
import sys

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "vocabulary",
    None,
    "The vocabulary: a folder of train_vocabulary.py, a preset, or a released one.",
    required=True,
)
flags.DEFINE_string("tokenizer_json", None, "The file of tokenizers.", required=True)
flags.DEFINE_bool("reverse", False, "Make the vocabulary of the file.")
flags.DEFINE_bool("overwrite", False, "Replace what is written.")


def main() -> str:
    if FLAGS.reverse:
        files.check_output_folder(FLAGS.vocabulary, FLAGS.overwrite, "--vocabulary")
    elif files.exists(FLAGS.tokenizer_json) and not FLAGS.overwrite:
        raise UserError(f"--tokenizer_json={FLAGS.tokenizer_json} exists; --overwrite replaces it.")

    # TensorFlow takes seconds to import: mistakes in the flags should not wait for it.
    from cocolm_tf.tokenization.hugging_face import from_hugging_face, to_hugging_face
    from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME
    from cocolm_tf.tokenization.vocabulary import load_vocabulary

    if FLAGS.reverse:
        try:
            tokenizer, notes = from_hugging_face(_read_json(FLAGS.tokenizer_json))
        except UserError as error:
            raise UserError(f"{FLAGS.tokenizer_json}: {error}") from error
        with files.new_folder(FLAGS.vocabulary, FLAGS.overwrite, last=CONFIG_FILENAME) as folder:
            tokenizer.save_to_preset(folder)
    else:
        content, notes = to_hugging_face(load_vocabulary(FLAGS.vocabulary))
        text = json.dumps(content, ensure_ascii=False, indent=1)
        files.write_text(FLAGS.tokenizer_json, text)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return FLAGS.vocabulary if FLAGS.reverse else FLAGS.tokenizer_json


def _read_json(path: str) -> object:
    try:
        return json.loads(files.read_text(path))
    except FileNotFoundError as error:
        raise UserError("there is no such file.") from error
    except ValueError as error:
        raise UserError("it is no JSON.") from error


if __name__ == "__main__":
    program.run(main)
