import pytest
import tensorflow as tf

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.models.prompt_classifier import Part, Template, changed


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
