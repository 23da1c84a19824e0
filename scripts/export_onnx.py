"""Exports a preset as ONNX models, from token ids to what the signatures of serving give.

    export_onnx.py --preset=runs/first/preset --signature=correct --signature=embed \\
        --precision=int8 --output_dir=onnx/first

Writes one file for each signature, as onnx/first/embed.onnx, and tokenizer.json, by which Hugging
Face's tokenizers make the ids. See docs/serving.md.
"""

import json
import os
import sys

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("preset", None, "Folder that pretraining or fine-tuning wrote.", required=True)
flags.DEFINE_multi_enum(
    "signature",
    None,
    ["embed", "correct", "classify", "answer"],
    "What to export. Repeatable.",
    required=True,
)
flags.DEFINE_string("output_dir", None, "The folder to write.", required=True)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "float16", "int8"],
    "What the matrices are stored and multiplied in; int8 is dynamic quantization.",
)
flags.DEFINE_enum(
    "pooling",
    "",
    ["", "cls", "mean"],
    "embed: what becomes the vector. By default what the preset's embedder was trained with, or "
    "cls.",
)
flags.DEFINE_integer(
    "dimension",
    0,
    "embed: how many numbers a vector has. By default as many as the preset's embedder was trained "
    "with, or all.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "corrections", 5, "correct: how many each token gets.", lower_bound=1, upper_bound=50
)
flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")

FLAGS = flags.FLAGS


def main() -> str:
    if not files.is_dir(FLAGS.preset):
        raise UserError(f"--preset={FLAGS.preset} is not a folder.")
    files.check_output_folder(FLAGS.output_dir, FLAGS.overwrite)

    # Imported once the flags are known, so that --help and mistakes in them answer at once.
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'cocolm-tf[onnx]'.") from error

    from cocolm_tf import CocoLMQuestionAnswerer, CocoLMTextClassifier
    from cocolm_tf.conversion import onnx_model
    from cocolm_tf.serving.correction import NOTHING_ID
    from cocolm_tf.serving.served_preset import ServedPreset
    from cocolm_tf.tokenization.hugging_face import to_hugging_face

    with files.local_copy(FLAGS.preset) as local:
        parts = ServedPreset(local)
        models = {
            "embed": lambda: onnx_model.embedding_model(
                parts.backbone, *parts.embedding(FLAGS.pooling, FLAGS.dimension)
            ),
            "classify": lambda: onnx_model.classification_model(parts.task(CocoLMTextClassifier)),
            "answer": lambda: onnx_model.answering_model(parts.task(CocoLMQuestionAnswerer)),
            "correct": lambda: onnx_model.correction_model(
                parts.backbone,
                parts.head("copy_head"),
                parts.head("lm_head"),
                [id for id in parts.tokenizer.special_token_ids if id != NOTHING_ID],
                FLAGS.corrections,
            ),
        }
        made = {
            name: onnx_model.with_precision(models[name](), FLAGS.precision)
            for name in dict.fromkeys(FLAGS.signature)
        }
        content, notes = to_hugging_face(parts.tokenizer)
    with files.new_folder(FLAGS.output_dir, FLAGS.overwrite, last="tokenizer.json") as folder:
        for name, model in made.items():
            onnx.save(model, os.path.join(folder, f"{name}.onnx"))
        files.write_text(
            os.path.join(folder, "tokenizer.json"), json.dumps(content, ensure_ascii=False)
        )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return FLAGS.output_dir


if __name__ == "__main__":
    program.run(main)
