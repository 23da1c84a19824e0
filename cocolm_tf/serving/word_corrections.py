"""From probabilities of tokens to those of words and their corrections.

The main model predicts two things of each token x of its input (paper, section 3.3): p_copy, the
probability that x is the original, which every token trains; and a distribution softmax(LM) over
the tokens that may stand there instead. Together they give the probability of each original token,

    p(v) = 1(v = x) p_copy + (1 - p_copy) softmax(LM)[v],

for each token by itself: given the text, the model's tokens are independent of each other.

So for a word of the tokens x_1 ... x_n,

- it belongs if all of its tokens are original, with the probability p_copy_1 * ... * p_copy_n;
- the original was the word v_1 ... v_n with the probability p_1(v_1) * ... * p_n(v_n).

The second sums to one over all words of n tokens, the word itself included, which has at least the
first: the probabilities of all corrections together are at most the probability that the word does
not belong.

The corruption of pretraining replaces token by token, so that the original of a word has as many
tokens as the word. A model that was fine-tuned on people's mistakes (`cocolm_tf.corrections`) has
also learned that a token should be nothing: the original may have fewer tokens then, and where it
has none, the word should go. It never has more.
"""

import tensorflow as tf


def replaced_probability(
    copy_logits: tf.Tensor, word_numbers: tf.Tensor, num_words: tf.Tensor
) -> tf.Tensor:
    """The probability that a token of each word is not the original: [W] float32."""
    # `copy_logits` [T] float32; `word_numbers` [T], the word of each token, ascending.
    log_belongs = tf.math.segment_sum(tf.math.log_sigmoid(copy_logits), word_numbers)
    # Not 1 - exp(x): most words belong, and a float32 has no digits left for what is close to 1.
    return -tf.math.expm1(_padded(log_belongs, num_words))


def best_spellings(
    contents: tf.Tensor, log_probabilities: tf.Tensor, word_lengths: tf.Tensor, width: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The `width` likeliest spellings of each word and their log probabilities, [W, width]."""
    # The candidates of each of T tokens are `contents` and `log_probabilities` [T, C], -inf for
    # none; `word_lengths` [W] int64 are in tokens, at least 1. Results are in descending order,
    # -inf where there are fewer; the same spelling may occur several times. The tokens are
    # independent, so the best `width` beginnings of a word lead to its best `width` spellings:
    # nothing is missed that is spelled with the candidates.
    first_tokens = tf.cumsum(word_lengths, exclusive=True)
    num_words = tf.size(word_lengths)
    spelled = tf.fill([num_words, width], "")
    scores = tf.concat(
        [tf.zeros([num_words, 1]), tf.fill([num_words, width - 1], -float("inf"))], axis=1
    )

    def extend(
        place: tf.Tensor, spelled: tf.Tensor, scores: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        words = tf.where(word_lengths > place)[:, 0]
        tokens = tf.gather(first_tokens, words) + place
        choices = tf.shape(contents)[1]
        beginnings = tf.gather(scores, words)[:, :, tf.newaxis]
        all_scores = beginnings + tf.gather(log_probabilities, tokens)[:, tf.newaxis, :]
        best, index = tf.math.top_k(
            tf.reshape(all_scores, [-1, width * choices]), tf.minimum(width, width * choices)
        )
        longer = tf.strings.join(
            [
                tf.gather(tf.gather(spelled, words), index // choices, batch_dims=1),
                tf.gather(tf.gather(contents, tokens), index % choices, batch_dims=1),
            ]
        )
        words = words[:, tf.newaxis]
        return (
            place + 1,
            tf.tensor_scatter_nd_update(spelled, words, longer),
            tf.tensor_scatter_nd_update(scores, words, best),
        )

    longest = tf.reduce_max(tf.concat([word_lengths, [0]], 0))
    _, spelled, scores = tf.while_loop(
        lambda place, *_: place < longest,
        extend,
        (tf.constant(0, tf.int64), spelled, scores),
        parallel_iterations=1,
    )
    return spelled, scores


def best_corrections(
    spelled: tf.Tensor, scores: tf.Tensor, own: tf.Tensor, count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The `count` likeliest words other than the word itself, and their probabilities."""
    # [W, count] each; "" says that the word should go, and is followed by 0 where there are fewer.
    # `spelled` and `scores` [W, C] are from `best_spellings`, `own` [W] is what each word's own
    # tokens spell. Token sequences that spell the same word count together.
    is_same = tf.equal(spelled[:, :, tf.newaxis], spelled[:, tf.newaxis, :])
    together = tf.linalg.matvec(tf.cast(is_same, tf.float32), tf.exp(scores))
    is_first = tf.equal(
        tf.argmax(tf.cast(is_same, tf.int32), axis=2, output_type=tf.int32),
        tf.range(tf.shape(spelled)[1]),
    )
    is_other = spelled != own[:, tf.newaxis]
    probabilities = tf.where(is_first & is_other, tf.minimum(together, 1.0), 0.0)
    best, index = tf.math.top_k(probabilities, count)
    return tf.where(best > 0, tf.gather(spelled, index, batch_dims=1), ""), best


def _padded(rows: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.pad(rows, [[0, tf.cast(size, tf.int32) - tf.size(rows)]])
