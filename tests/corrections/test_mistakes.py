import collections
import random

import pytest

from cocolm_tf.corrections.mistakes import (
    WEIGHTS,
    Dictionary,
    MistakeMaker,
    codespell_dictionary,
    frequent_words,
    parse_codespell,
    passages,
)

WORDS = "the cats have been walking to their house in a large garden because they liked it there"
DICTIONARY = Dictionary(
    {"because": ["becuase", "becasue"], "their": ["thier"]}, {"house": ["hose"]}
)


def make_texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS.split(), k=20)).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="module")
def maker() -> MistakeMaker:
    words = {*WORDS.split(), "cat", "walk", "like", "likes", "gardens"}
    return MistakeMaker(DICTIONARY, words, rate=0.2)


def test_a_dictionary_is_turned_around():
    lines = [
        "recieve->receive",
        "aer->are, air,",
        "clas->class, disabled because of a name",
        "alot->a lot",
        "C++->cpp",
    ]
    expected = {"receive": ["recieve"], "are": ["aer"], "air": ["aer"], "class": ["clas"]}
    assert parse_codespell(lines) == expected


def test_no_misspelling_is_both_learned_and_held_out():
    spelling = {"word": [f"w{number}" for number in range(500)]}
    whole = Dictionary(spelling, {})
    learned, held_out = (set(whole.part(x).spelling["word"]) for x in (False, True))
    assert not learned & held_out
    assert learned | held_out == set(spelling["word"])
    assert 20 < len(held_out) < 100


def test_the_dictionary_of_codespell():
    pytest.importorskip("codespell_lib")
    dictionary = codespell_dictionary()
    assert "recieve" in dictionary.spelling["receive"]
    assert sum(map(len, dictionary.spelling.values())) > 40_000
    assert dictionary.confusion


def test_the_edits_take_every_mistake_back(maker: MistakeMaker):
    for number, text in enumerate(make_texts(200)):
        marked = maker(text, number)
        assert marked.corrected() == text
        for edit in marked.edits:
            assert marked.text[edit.start : edit.end] != edit.correction


def test_the_seed_decides(maker: MistakeMaker):
    (text,) = make_texts(1)
    assert maker(text, 5) == maker(text, 5)
    assert len({maker(text, seed).text for seed in range(20)}) > 10


def test_every_kind_is_made_as_often_as_asked(maker: MistakeMaker):
    texts = make_texts(400)
    made = [edit for number, text in enumerate(texts) for edit in maker(text, number).edits]
    counts = collections.Counter(edit.kind for edit in made)
    assert counts.keys() == WEIGHTS.keys()
    assert len(made) == pytest.approx(0.2 * 20 * len(texts), rel=0.1)
    alone = MistakeMaker(DICTIONARY, (), rate=0.2, weights={"article": 1.0, "doubling": 0.0})
    marked = [alone(text, number) for number, text in enumerate(texts)]
    assert {edit.kind for one in marked for edit in one.edits} == {"article"}


def test_a_mistake_has_the_capital_of_its_word():
    maker = MistakeMaker(DICTIONARY, (), rate=1.0, weights={"spelling": 1.0})
    found = {maker("Their", seed).text for seed in range(3)}
    assert found == {"Thier"}
    assert maker("THEIR", 0).text == "THIER"


def test_slips_make_no_words():
    maker = MistakeMaker(DICTIONARY, {"form", "from"}, rate=1.0, weights={"slip": 1.0})
    made = {maker("from", seed).text for seed in range(100)}
    assert "form" not in made and "fom" in made and len(made) > 5


def test_passages_are_whole_sentences():
    document = "One is here. Two was there. Three ran away.\nFour is last."
    assert list(passages([document], longest=6, shortest=1)) == [
        "One is here. Two was there.",
        "Three ran away. Four is last.",
    ]
    assert list(passages([document], longest=1, shortest=3))[:2] == [
        "One is here.",
        "Two was there.",
    ]
    assert list(passages(["Too short."], longest=9)) == []


def test_words_that_occur_often():
    assert frequent_words(["The cat, the CAT", "a dog"], least=2) == {"the", "cat"}
