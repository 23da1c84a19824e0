"""Signatures to a SavedModel that needs nothing but TensorFlow and TensorFlow Text to load."""

from collections.abc import Iterable

import tensorflow as tf

from cocolm_tf.serving.signature import Signature
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


def write_saved_model(
    signatures: dict[str, Signature], default: str, tokenizer: CocoLMTokenizer, directory: str
) -> None:
    """Writes a SavedModel.

    Args:
        signatures: by name.
        default: the one that is `serving_default` too.
        tokenizer: the one that the signatures use.
        directory: an empty folder.

    Example:
    ```python
    signatures = embedding_signatures(Encoder(backbone), tokenizer)
    write_saved_model(signatures, "embed", tokenizer, "/tmp/embed")
    ```
    """
    functions = {name: signature.concrete() for name, signature in signatures.items()}
    module = tf.Module()
    # Of the models only what the functions read goes along.
    module.weights = _variables(functions.values())
    module.tokenizer = tokenizer.graph_module()
    tf.saved_model.save(
        module,
        directory,
        signatures=functions | {DEFAULT_SIGNATURE: functions[default]},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    methods = {name: signature.method for name, signature in signatures.items()}
    _set_methods(directory, methods | {DEFAULT_SIGNATURE: methods[default]})


def _variables(functions: Iterable[tf.types.experimental.ConcreteFunction]) -> list[tf.Variable]:
    variables = {id(v): v for function in functions for v in function.graph.variables}
    return list(variables.values())


def _set_methods(directory: str, methods: dict[str, str]) -> None:
    """Says which of TensorFlow Serving's interfaces each signature is for.

    `tf.saved_model.save` makes every one of them for Predict.
    """
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(directory)
    for name, method in methods.items():
        updater.replace_method_name(name, method)
    updater.save()
