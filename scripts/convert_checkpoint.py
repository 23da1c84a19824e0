"""Makes a preset of a released COCO-LM checkpoint, or writes a preset as one.

    convert_checkpoint.py --official=DIR --preset=DIR
    convert_checkpoint.py --official=DIR --preset=DIR --reverse

--official is a folder in the released Hugging Face-style format (config.json, model.safetensors,
weights.npz or pytorch_model.bin, sp.model, dict.txt) or in fairseq's (model.pt), or the file of
weights in it. PyTorch's files take `pip install 'cocolm-tf[convert]'`.
"""

from absl import flags

from cocolm_tf import files, program
from cocolm_tf.errors import UserError

flags.DEFINE_string("official", None, "Folder of the released checkpoint.", required=True)
flags.DEFINE_string("preset", None, "Folder of the preset.", required=True)
flags.DEFINE_bool("reverse", False, "Write --preset as a released checkpoint to --official.")
flags.DEFINE_enum(
    "weights_format",
    None,
    ["bin", "safetensors", "npz"],
    "What --reverse writes the weights as: bin, which the released classes load, by default where "
    "PyTorch is installed, and safetensors where it is not.",
)
flags.DEFINE_bool("overwrite", False, "Replace what is in the folder to be written.")

FLAGS = flags.FLAGS


def main() -> str:
    source, target = ("preset", "official") if FLAGS.reverse else ("official", "preset")
    if not files.exists(FLAGS[source].value):
        raise UserError(f"--{source}={FLAGS[source].value} does not exist.")
    files.check_output_folder(FLAGS[target].value, FLAGS.overwrite)
    if FLAGS.weights_format and not FLAGS.reverse:
        raise UserError("--weights_format is of what --reverse writes.")

    # TensorFlow takes seconds to import: mistakes in the flags should not wait for it.
    from cocolm_tf.conversion.convert import convert_to_official, convert_to_preset

    if FLAGS.reverse:
        conversion = convert_to_official(
            FLAGS.preset, FLAGS.official, FLAGS.weights_format or "", FLAGS.overwrite
        )
    else:
        conversion = convert_to_preset(FLAGS.official, FLAGS.preset, FLAGS.overwrite)
    print(conversion.text())
    return FLAGS[target].value


if __name__ == "__main__":
    program.run(main)
