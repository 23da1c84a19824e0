"""Tokenizes a corpus and packs it into the TFRecord shards that pretraining reads.

    build_pretraining_data.py --input='corpus/*.txt' --vocabulary=VOCAB --output_dir=DATA

    build_pretraining_data.py ... --runner=DirectRunner -- --direct_num_workers=4

The text comes from --input, --tfds or --docstrings. The sequences are in random order; the same
text and --seed give the same shards, whatever --num_workers is. A build that was stopped resumes
where it was with the same flags.
"""

import time

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.cpus import available_cpus
from cocolm_tf.data import source_flags

FLAGS = flags.FLAGS

source_flags.define_source_flags()
source_flags.define_cleaning_flags()
source_flags.define_runner_flag()
flags.adopt_module_key_flags(source_flags)  # so that --help shows them
flags.DEFINE_string("vocabulary", None, "The folder of the vocabulary.", required=True)
flags.DEFINE_string("output_dir", None, "The folder to write the dataset to.", required=True)
flags.DEFINE_integer(
    "sequence_length", 512, "The most tokens of a sequence, <s> and </s> included.", lower_bound=8
)
flags.DEFINE_integer(
    "num_shards", 16, "The number of files: at least as many as hosts that train.", lower_bound=1
)
flags.DEFINE_integer(
    "num_workers",
    available_cpus(),
    "The number of processes that tokenize, by default one for each CPU of the machine or "
    "container; 0 to tokenize in the program's own.",
    lower_bound=0,
)
flags.DEFINE_integer("seed", 0, "Decides which sequence goes where, and what is held out.")
flags.DEFINE_enum(
    "break",
    "word",
    ["token", "word", "document"],
    "Where a sequence may end though its document continues: after any token, between words, or "
    "between words with no second document in any sequence.",
)
flags.DEFINE_bool("compress", False, "Compress the shards with gzip.")
flags.DEFINE_float(
    "validation_fraction",
    0.0,
    "The share of the documents, drawn by a hash of their text, to hold out. If it is above 0, "
    "--output_dir gets two datasets, train/ and validation/, for --train_data and "
    "--validation_data of pretrain.py.",
    lower_bound=0.0,
    upper_bound=0.5,
)
flags.DEFINE_bool("overwrite", False, "Replace a finished dataset in --output_dir.")
flags.DEFINE_string(
    "spill_dir",
    None,
    "A local folder for what is done of a build, about as large as the text. By default one in "
    "--output_dir, or in the folder for temporary files if that is remote.",
)


def main(*beam_options: str) -> str:
    source_flags.check_runner(FLAGS.runner, beam_options)
    files.check_writable(FLAGS.output_dir, "--output_dir")
    cleaning, deduplication = source_flags.cleaning_from_flags()
    source = source_flags.source_from_flags()

    # TensorFlow takes seconds to import: mistakes in the flags should not wait for it.
    from cocolm_tf.data.build import build_shards
    from cocolm_tf.data.shards import Manifest

    started = time.perf_counter()
    names = ("output_dir", "sequence_length", "num_shards", "seed", "compress", "overwrite")
    arguments = {name: FLAGS[name].value for name in (*names, "validation_fraction")} | {
        "vocabulary_dir": FLAGS.vocabulary,
        "break_at": FLAGS["break"].value,
        "cleaning": cleaning,
        "deduplication": deduplication,
    }
    if FLAGS.runner == source_flags.LOCAL:
        manifest = build_shards(
            source, num_workers=FLAGS.num_workers, spill_dir=FLAGS.spill_dir, **arguments
        )
    else:
        from cocolm_tf.data.beam import build_with_beam

        manifest = build_with_beam(source, runner=FLAGS.runner, options=beam_options, **arguments)
    manifests = [manifest]
    seconds = time.perf_counter() - started
    if FLAGS.validation_fraction:
        manifests.append(Manifest.load(files.join(FLAGS.output_dir, "validation")))
    megabytes = sum(manifest.counts["text_bytes"] for manifest in manifests) / 1e6
    header = ("shards", "documents", "without text", "sequences", "tokens", "fill rate", "dataset")
    print("{:>6} {:>10} {:>12} {:>10} {:>13} {:>9}  {}".format(*header))
    for manifest in manifests:
        counts = manifest.counts
        print(
            f"{len(manifest.shards):6} {counts['documents']:10,} {counts['skipped_documents']:12,} "
            f"{counts['sequences']:10,} {counts['tokens']:13,} {manifest.fill_rate:9.1%}  "
            f"{manifest.directory}"
        )
    if manifest.cleaning:
        left_out = (f"{name} {count:,}" for name, count in manifest.cleaning.items())
        print(f"not in it: {', '.join(left_out)}")
    print(f"{megabytes:.1f} MB of text in {seconds:.1f} s: {megabytes / seconds:.2f} MB/s")
    return FLAGS.output_dir


if __name__ == "__main__":
    program.run(main, takes_more=True)
