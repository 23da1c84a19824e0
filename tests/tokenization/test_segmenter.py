"""Changing TensorFlow's seed is harmful to what other tests hold, so it is done elsewhere."""

import io
import json
import pathlib

import pytest
import sentencepiece
from programs import run_python

from cocolm_tf.tokenization.segmenter import Segmenter
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

TEXT = "The cat sat (there)."
PROGRAM = """
import gc, sys
import keras, tensorflow as tf
from cocolm_tf import CocoLMTokenizer

def load():
    return CocoLMTokenizer.from_preset(sys.argv[1])

def ids(tokenizer):
    return tokenizer.graph_module().tokenize(tf.constant([sys.argv[3]])).to_list()

class Module(tf.Module):
    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer.graph_module()

tokenizer = load()
pipeline = tf.data.Dataset.from_tensors([sys.argv[3]]).map(tokenizer)
expected = ids(tokenizer)
keras.utils.set_random_seed(1)
assert ids(tokenizer) == expected, "after set_random_seed"
assert next(iter(pipeline)).to_list() == expected, "in a pipeline made before set_random_seed"
tf.saved_model.save(Module(tokenizer), sys.argv[2])
first, second = (tf.saved_model.load(sys.argv[2]) for _ in range(2))
del first, tokenizer, pipeline
gc.collect()
tf.random.set_seed(2)
texts = tf.constant([sys.argv[3]])
assert second.tokenizer.tokenize(texts).to_list() == expected, "after others were deleted"
assert ids(load()) == expected, "loaded again"
print(expected)
"""


@pytest.mark.slow
def test_outlives_a_change_of_seed_and_other_owners(
    vocabulary_dir: pathlib.Path, tokenizer: CocoLMTokenizer, tmp_path: pathlib.Path
):
    output = run_python(PROGRAM, vocabulary_dir, tmp_path, TEXT)
    assert json.loads(output) == tokenizer([TEXT])


def test_different_models_are_kept_apart(tokenizer: CocoLMTokenizer, corpus: list[str]):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=60, minloglevel=2
    )
    for proto in (tokenizer.proto, model.getvalue()):
        expected = sentencepiece.SentencePieceProcessor(model_proto=proto).encode(
            TEXT, out_type=str
        )
        (pieces,) = Segmenter(proto).tokenize([TEXT]).to_list()
        assert [piece.decode() for piece in pieces] == expected
