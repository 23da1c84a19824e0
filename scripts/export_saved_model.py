"""Exports a preset as a SavedModel that takes raw text, for TensorFlow Serving.

    export_saved_model.py --preset=runs/first/preset --signature=correct --signature=embed \
        --output_dir=exports/first

Writes the next version, as exports/first/1; TensorFlow Serving takes exports/first. See
docs/serving.md.
"""

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("preset", None, "Folder that pretraining or fine-tuning wrote.", required=True)
flags.DEFINE_multi_enum(
    "signature",
    None,
    ["embed", "correct", "classify", "answer", "tag"],
    "What to serve. Repeatable; the first is serving_default.",
    required=True,
)
flags.DEFINE_string(
    "output_dir", None, "Folder of all versions; its name is the model's.", required=True
)
flags.DEFINE_integer(
    "version", None, "The version to write, instead of the next one.", lower_bound=1
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "bfloat16"],
    "What the matrices are stored and multiplied in. The rest stays float32.",
)
flags.DEFINE_bool(
    "int8", False, "Store the matrices in 8 bits: a quarter of the memory, but slower."
)
flags.DEFINE_list(
    "buckets",
    ["32", "64", "128", "256"],
    "Lengths, in tokens, at which texts are encoded apart from shorter ones.",
)
flags.DEFINE_enum(
    "pooling",
    "",
    ["", "cls", "mean", "projection"],
    "embed: what becomes the vector: the hidden state of <s>, the mean of all, or <s> after the "
    "projection of the contrastive loss. By default what the preset's embedder was trained with, "
    "or cls.",
)
flags.DEFINE_integer(
    "dimension",
    0,
    "embed: how many numbers a vector has. By default as many as the preset's embedder was trained "
    "with, or all.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "corrections", 5, "correct: how many corrections each word gets.", lower_bound=1, upper_bound=50
)
flags.DEFINE_float(
    "min_probability",
    0.0,
    "correct: words that do not belong with a smaller probability get no corrections, which saves "
    "time.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "max_tokens",
    4096,
    "correct, tag, answer: the longest text or context; its end goes unread.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_bytes",
    1 << 16,
    "What is read of a text, in bytes; the rest goes unread. A request may have 64 times as much.",
    lower_bound=64,
)
flags.DEFINE_bool("pairs", False, "classify: serving_default takes pairs of texts.")

FLAGS = flags.FLAGS


def main() -> str:
    files.check_scheme(FLAGS.preset, "--preset")
    if not files.is_dir(FLAGS.preset):
        raise UserError(f"--preset={FLAGS.preset} is not a folder.")
    files.check_writable(FLAGS.output_dir, "--output_dir")
    buckets = _buckets(FLAGS.buckets)
    names = list(dict.fromkeys(FLAGS.signature))

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    from cocolm_tf.serving.export import Settings, export_preset

    settings = Settings(
        precision=FLAGS.precision,
        int8=FLAGS.int8,
        buckets=buckets,
        pooling=FLAGS.pooling,
        dimension=FLAGS.dimension,
        num_corrections=FLAGS.corrections,
        max_tokens=FLAGS.max_tokens,
        max_bytes=FLAGS.max_bytes,
        min_probability=FLAGS.min_probability,
        pairs=FLAGS.pairs,
    )
    return export_preset(FLAGS.preset, names, FLAGS.output_dir, FLAGS.version, settings)


def _buckets(texts: list[str]) -> tuple[int, ...]:
    try:
        buckets = tuple(int(text) for text in texts)
    except ValueError as error:
        raise UserError(f"--buckets={','.join(texts)}: {error}.") from error
    if any(bucket < 1 for bucket in buckets) or list(buckets) != sorted(set(buckets)):
        raise UserError(f"--buckets={','.join(texts)} must be positive and ascending.")
    return buckets


if __name__ == "__main__":
    program.run(main)
