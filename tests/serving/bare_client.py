"""Asks SavedModels with TensorFlow and TensorFlow Text alone, as any program may: run as one.

bare_client.py QUESTIONS ANSWERS, both JSON files. QUESTIONS is a list of a SavedModel's folder, a
signature and its inputs by name; ANSWERS one of the outputs by name. Strings are base64.
"""

import base64
import json
import os
import sys
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# These cannot be imported; Keras can, since TensorFlow Text does.
for absent in ("cocolm_tf", "keras_nlp", "keras_hub", "tf_keras"):
    sys.modules[absent] = None

import tensorflow as tf  # noqa: E402
import tensorflow_text  # noqa: E402, F401  (its operations are in the graph)

# What Grappler gains, graphs that run once do not earn back.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def main(questions: str, answers: str) -> None:
    with open(questions) as file:
        asked = json.load(file)
    models = {folder: tf.saved_model.load(folder) for folder, _, _ in asked}
    found = [answer(models[folder], *question) for folder, *question in asked]
    with open(answers, "w") as file:
        json.dump(found, file)


def answer(model: Any, signature: str, inputs: dict[str, list]) -> dict[str, list]:
    function = model.signatures[signature]
    specs = function.structured_input_signature[1]
    tensors = {}
    for name, values in inputs.items():
        if specs[name].dtype == tf.string:
            values = [base64.b64decode(value) for value in values]
        tensors[name] = tf.constant(values, specs[name].dtype)
    return {name: to_json(output.numpy().tolist()) for name, output in function(**tensors).items()}


def to_json(value: Any) -> Any:
    if isinstance(value, list):
        return [to_json(part) for part in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    main(*sys.argv[1:])
