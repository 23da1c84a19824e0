"""Draws the replacements of masked tokens before a run, which then needs no auxiliary model.

    precompute_replacements.py --config_file=YAML --params_override=configs/ablations/... \\
        --train_data=DATA/train --vocabulary=VOCAB --output_dir=DRAWN

The configuration is that of a run with a frozen auxiliary model (auxiliary.replacements=frozen,
auxiliary.preset): what that would read and sample in each of its steps, at the temperature of the
step, is written to --output_dir/train. pretrain.py trains on it with the same configuration and
auxiliary.replacements=stored. A draw that was stopped resumes with the same flags.
"""

import functools

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("config_file", None, "YAML file that defines the run; see configs/pretrain.")
flags.DEFINE_multi_string(
    "params_override", [], "Changes to the configuration: a.b=1,c.d=x, or a YAML file. Repeatable."
)
flags.DEFINE_string(
    "train_data",
    None,
    "Folder or glob of the shards to train on, or several with weights: wiki=0.7,books=0.3.",
)
flags.DEFINE_string("validation_data", "", "Folder or glob of shards to validate on.")
flags.DEFINE_string("vocabulary", None, "Folder of the vocabulary that the shards were built with.")
flags.DEFINE_string("output_dir", None, "Folder to write train/ and validation/ to.")
flags.DEFINE_integer("num_shards", 16, "The number of files in train/.", lower_bound=1)
flags.mark_flags_as_required(["config_file", "train_data", "vocabulary", "output_dir"])

FLAGS = flags.FLAGS


def main() -> str:
    if not files.is_file(FLAGS.config_file):
        raise UserError(f"--config_file={FLAGS.config_file} does not exist.")
    files.check_writable(FLAGS.output_dir, "--output_dir")

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.training.config import load_config
    from cocolm_tf.training.pretraining import matching_vocabulary, open_data
    from cocolm_tf.training.replacements import precompute_replacements

    config = load_config(FLAGS.config_file, FLAGS.params_override)
    tokenizer = matching_vocabulary(FLAGS.vocabulary, config)
    written = precompute_replacements(
        config,
        FLAGS.train_data,
        tokenizer,
        FLAGS.output_dir,
        functools.partial(
            open_data, tokenizer=tokenizer, config=config, checksums=config.data.verify_checksums
        ),
        FLAGS.validation_data,
        FLAGS.num_shards,
    )
    for manifest in written:
        counts, facts = manifest.counts, manifest.replacements
        print(
            f"{facts['steps']:,} steps of {facts['batch_size']:,} sequences, "
            f"{counts['tokens']:,} tokens: {manifest.directory}"
        )
    return FLAGS.output_dir


if __name__ == "__main__":
    program.run(main)
