"""No text costs more than its length: twice the text, at most two and a half times the work.

Work is counted, not timed: the bytes that all operations of a signature put out, run one by one.
"""

import base64
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from serving_texts import signatures_of
from tensorflow.python.framework import op_callbacks

from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.finetuning.models.token_classifier import CocoLMTokenClassifier
from cocolm_tf.serving.correction import Corrector
from cocolm_tf.serving.encoder import Encoder, InferenceEncoder
from cocolm_tf.serving.sequence_signatures import Classifier, Embedder
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import Settings
from cocolm_tf.serving.span_signatures import Answerer, Tagger
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

SIZE = 6000
MOST = 2.5

TEXTS = {
    "words": "the cat sat " * SIZE,
    "base64": base64.b64encode(np.random.default_rng(0).bytes(SIZE)).decode(),
    "full-width": "０１２３４５６７８９，" * SIZE,
    "several for one": "½" * SIZE,
    "spaces to SentencePiece alone": "a\u200bb" * SIZE,
    "unknown": "日本" * SIZE,
    "control": "\x01" * SIZE,
}


@contextmanager
def counted_work() -> Iterator[Callable[[], int]]:
    total = 0

    def count(op_type: Any, inputs: Any, attrs: Any, outputs: Any, *rest: Any) -> None:
        nonlocal total
        for tensor in outputs:
            if tensor.dtype == tf.string:
                total += sum(map(len, tensor.numpy().ravel())) if tensor.shape.rank else 0
            if tensor.dtype not in (tf.resource, tf.variant):
                total += tensor.dtype.size * int(np.prod(tensor.shape))

    tf.config.run_functions_eagerly(True)
    op_callbacks.add_op_callback(count)
    try:
        yield lambda: total
    finally:
        op_callbacks.remove_op_callback(count)
        tf.config.run_functions_eagerly(False)


def growth(ask: Callable[[tf.Tensor], Any], text: str) -> float:
    works = []
    for size in (len(text) // 2, len(text)):
        with counted_work() as work:
            ask(tf.constant([text[:size]]))
        works.append(work())
    assert works[0] > len(text) // 2
    return works[1] / works[0]


@pytest.mark.parametrize("kind", TEXTS)
def test_tokens_and_their_places(tokenizer: CocoLMTokenizer, kind: str):
    ask = tokenizer.graph_module().tokenize_with_offsets
    assert growth(ask, TEXTS[kind][:SIZE]) <= MOST


@pytest.mark.slow
def test_signatures(
    parts: ServedPreset,
    classifier: CocoLMTextClassifier,
    answerer: CocoLMQuestionAnswerer,
    tagger: CocoLMTokenClassifier,
):
    encoder = Encoder(InferenceEncoder(parts.backbone))
    settings = Settings(num_corrections=3, max_tokens=60)
    corrector = Corrector(parts, encoder, settings)
    answer = signatures_of(Answerer, answerer, max_tokens=60).answer
    spans = signatures_of(Tagger, tagger, max_tokens=60)
    few = tf.constant(["The cat"])
    text = "".join(part[:SIZE] for part in TEXTS.values())
    for ask in (
        Embedder(parts, encoder, settings).embed,
        functools.partial(signatures_of(Classifier, classifier).classify_pairs, few),
        corrector.correct,
        corrector.correct_tsv,
        functools.partial(answer, few),
        spans.tag,
        spans.tag_tsv,
    ):
        assert growth(ask, text) <= MOST
