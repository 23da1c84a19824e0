import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf import CocoLMPromptClassifierPreprocessor, CocoLMTokenizer
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.prompts import Part, Template, changed

TEMPLATE, WORDS = "{first} It was {mask} .", ["bad", ["nosuchword", "good"]]
GOOD = [["a great cat"], ["some fine rain"], ["a good dog"]]
BAD = [["an awful cat"], ["the poor rain"]]


@pytest.fixture(scope="module")
def tokenizer(tiny_preset) -> CocoLMTokenizer:
    return CocoLMTokenizer.from_preset(tiny_preset)


@pytest.fixture
def make(tokenizer):
    def make(**changes) -> CocoLMPromptClassifierPreprocessor:
        arguments = {
            "template": TEMPLATE,
            "label_words": WORDS,
            "sequence_length": 60,
        } | changes
        return CocoLMPromptClassifierPreprocessor(tokenizer, **arguments)

    return make


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text).numpy().tolist()


def row(features, number: int = 0) -> list[int]:
    mask = np.array(features["padding_mask"])[number]
    return np.array(features["token_ids"])[number][mask].tolist()


def test_a_prompt_has_the_mask_where_the_word_belongs(make, tokenizer):
    features = make()(["a cat saw", "the dog"])
    it_was, dot = ids(tokenizer, "It was"), ids(tokenizer, ".")
    mask = tokenizer.mask_token_id
    expected = [0, *ids(tokenizer, "a cat saw"), *it_was, mask, *dot, 2]
    assert row(features) == expected
    assert features["token_ids"].shape == (2, 60)
    single = make()("a cat saw")
    np.testing.assert_array_equal(single["token_ids"], features["token_ids"][0])


def test_pairs_and_their_changes(make, tokenizer):
    preprocessor = make(template="{first|open} ? {mask} , {second|lower}")
    features = preprocessor(x=(["a cat saw."], ["A dog."]))
    expected = [
        0,
        *ids(tokenizer, "a cat saw"),
        *ids(tokenizer, "?"),
        tokenizer.mask_token_id,
        *ids(tokenizer, ","),
        *ids(tokenizer, "a dog."),
        2,
    ]
    assert row(features) == expected


def test_label_words(make, tokenizer):
    found = make().label_word_ids
    assert [tokenizer.id_to_token(id) for id in found] == ["▁bad", "▁good"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([["bad"], ["nosuchword"]], "must be one token of the vocabulary, but 'nosuchword' is ▁ n"),
        ([["bad"], ["bad"]], "two classes have the same label word: ▁bad, ▁bad"),
    ],
)
def test_label_words_that_cannot_be(make, words, complaint):
    with pytest.raises(UserError, match=complaint):
        _ = make(label_words=words).label_word_ids


def demonstrated(tokenizer, text: str, label: int) -> list[int]:
    word = ids(tokenizer, ("bad", "good")[label])
    return [*ids(tokenizer, text), *ids(tokenizer, "It was"), *word, *ids(tokenizer, "."), 2]


def test_demonstrations_follow_with_their_words(make, tokenizer):
    preprocessor = make(demonstrations=[BAD, GOOD], sequence_length=90)
    texts = ["a cat saw", "the dog", "red house", "a hill"] * 2
    seen, plain = set(), make()(texts)
    for draw in range(4):
        features = preprocessor(texts, draw=draw)
        for number in range(4):
            tokens, prompt = row(features, number), row(plain, number)
            assert tokens[: len(prompt)] == prompt
            rest = tokens[len(prompt) :]
            matches = [
                (bad[0], good[0])
                for bad in BAD
                for good in GOOD
                if rest == demonstrated(tokenizer, bad[0], 0) + demonstrated(tokenizer, good[0], 1)
            ]
            assert len(matches) == 1
            seen.add(matches[0])
            # The same text gets the same ones, wherever it stands.
            assert row(features, number + 4) == tokens
    assert seen == {(bad[0], good[0]) for bad in BAD for good in GOOD}


def test_no_text_is_its_own_demonstration(make, tokenizer):
    preprocessor = make(demonstrations=[BAD, GOOD], sequence_length=90)
    own = demonstrated(tokenizer, GOOD[0][0], 1)
    for draw in range(6):
        tokens = row(preprocessor([GOOD[0][0]], draw=draw))
        assert tokens[-len(own) :] != own


def test_long_texts_are_cut_and_the_mask_stays(make, tokenizer):
    preprocessor = make(demonstrations=[BAD, GOOD], sequence_length=50)
    features = preprocessor(["a cat saw the red house on its hill " * 9, "dog"])
    for number in range(2):
        tokens = row(features, number)
        assert len(tokens) <= 50
        assert tokens.count(tokenizer.mask_token_id) == 1
        assert tokens.count(2) == 3 and tokens[-1] == 2
    long = make(template="{first} ? {mask} , {second}", sequence_length=24)(
        x=(["a cat " * 20], ["a dog " * 20])
    )
    assert len(row(long)) == 24 and tokenizer.mask_token_id in row(long)


def test_too_little_room_is_reported(make):
    with pytest.raises(UserError, match="20 tokens have no room for 3 times the template"):
        _ = make(demonstrations=[BAD, GOOD], sequence_length=20).room


def test_maps_over_a_dataset(make):
    preprocessor = make(demonstrations=[BAD, GOOD], sequence_length=90)
    dataset = tf.data.Dataset.from_tensor_slices((["a cat", "the dog"], [0, 1])).batch(2)
    ((x, y),) = dataset.map(lambda x, y: preprocessor(x, y, draw=tf.constant(3)))
    expected = preprocessor(["a cat", "the dog"], draw=3)
    np.testing.assert_array_equal(x["token_ids"], expected["token_ids"])
    assert list(y.numpy()) == [0, 1]


def test_config_round_trip(make, tokenizer):
    preprocessor = make(demonstrations=[BAD, GOOD], seed=3, sequence_length=90)
    config = preprocessor.get_config() | {"tokenizer": tokenizer}
    again = type(preprocessor)(**{k: v for k, v in config.items() if k != "config_file"})
    np.testing.assert_array_equal(again(["a"])["token_ids"], preprocessor(["a"])["token_ids"])


@pytest.mark.parametrize(
    ("demonstrations", "complaint"),
    [
        ([BAD], "some examples of each of the 2 classes"),
        ([BAD, []], "some examples of each of the 2 classes"),
        ([BAD, [["one", "two"]]], r"has 1 text\(s\): \['one', 'two'\]"),
    ],
)
def test_demonstrations_that_do_not_fit(make, demonstrations, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(demonstrations=demonstrations)


def test_texts_that_do_not_fit_the_template(make):
    with pytest.raises(ValueError, match=r"has 1 text\(s\), a row 2"):
        make()(x=(["a"], ["b"]))


def test_the_parts_of_a_template():
    template = Template("{first|open} ? {mask} , {second|lower}")
    assert template.parts == [
        Part(text=0, change="open"),
        Part(words="?"),
        Part(),
        Part(words=","),
        Part(text=1, change="lower"),
    ]
    assert [part.is_mask for part in template.parts] == [False, False, True, False, False]
    assert template.num_texts == 2 and Template("{mask} {first}").num_texts == 1


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{first} It was .", "must have {mask} once"),
        ("{first} {mask} {mask}", "must have {mask} once"),
        ("It was {mask}", "{first} once"),
        ("{second} {mask}", "{first} once"),
        ("{first} {first} {mask}", "{first} once"),
        ("{third} {mask}", "{third} is none of"),
        ("{first|short} {mask}", r"{first\|short} is none of"),
        ("{first} {mask|open}", r"{mask\|open} is none of"),
    ],
)
def test_what_is_no_template_is_refused(source: str, complaint: str):
    with pytest.raises(UserError, match=complaint):
        Template(source)


@pytest.mark.parametrize(
    ("change", "text", "expected"),
    [
        ("open", "It slept. ", "It slept"),
        ("open", "Did it?!", "Did it"),
        ("open", "no. 3 it is", "no. 3 it is"),
        ("lower", "Élan vital.", "élan vital."),
        ("lower", "\nA", "\nA"),
        ("lower", "", ""),
        ("", "As It Is.", "As It Is."),
    ],
)
def test_changes(change: str, text: str, expected: str):
    assert changed(tf.constant([text]), change).numpy()[0].decode() == expected
