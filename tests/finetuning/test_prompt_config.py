from pathlib import Path

import pytest

from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.prompt_config import PromptConfig, load_prompt_config

PROMPTS = str(Path(__file__).parents[2] / "configs" / "finetune" / "prompts.yaml")


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_every_task_of_glue_has_a_prompt(task: str):
    config, prompt = load_prompt_config(PROMPTS, task)
    assert config.learning_rates == [3e-6, 4e-6, 5e-6]
    assert (config.steps, config.batch_size, config.draws) == (1000, 8, 16)
    assert len(prompt.words) == len(GLUE_TASKS[task].label_names or "01")
    assert all(prompt.words) and "{mask}" in prompt.template


def test_the_words_are_lm_bffs_in_the_order_of_the_classes():
    _, prompt = load_prompt_config(PROMPTS, "mnli")
    assert [words[0] for words in prompt.words] == ["Yes", "Maybe", "No"]
    _, prompt = load_prompt_config(PROMPTS, "sst2")
    assert [words[0] for words in prompt.words] == ["terrible", "great"]


def test_overrides():
    config, _ = load_prompt_config(
        PROMPTS, "rte", ["steps=200,draws=2", "learning_rates=[1e-4]", "demonstrations=false"]
    )
    assert (config.steps, config.draws, config.demonstrations) == (200, 2, False)
    assert config.learning_rates == [1e-4]
    assert PromptConfig().steps == 1000


GOOD = "{template: '{first} {mask}', words: {negative: bad, positive: good}}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("settings: {step: 3}\ntasks: {sst2: " + GOOD + "}", "settings: step does not exist"),
        ("settings: {steps: 30}\ntasks: {sst2: " + GOOD + "}", "steps=30 must be a multiple of"),
        ("settings: {draws: 0}\ntasks: {sst2: " + GOOD + "}", "draws must be at least 1, not 0"),
        ("settings: {dropout: 1.0}\ntasks: {sst2: " + GOOD + "}", r"dropout must be in \[0, 1\)"),
        (
            "settings: {learning_rates: [a]}\ntasks: {sst2: " + GOOD + "}",
            "learning_rates is a list of positive numbers",
        ),
        ("tasks: {rte: " + GOOD + "}", "tasks has no sst2"),
        ("task: {}", "has `settings` and `tasks`"),
        ("tasks: {sst2: {template: '{first} {mask}'}}", "has a `template` and `words`"),
        (
            "tasks: {sst2: {template: '{first} {mask}', words: {bad: bad, good: good}}}",
            "sst2.words has the words of negative, positive",
        ),
        (
            "tasks: {sst2: {template: '{first} {mask}', words: {negative: No, positive: good}}}",
            "sst2.words.negative is a word or a list of words, not False: quote",
        ),
        (
            "tasks: {sst2: {template: '{first} {mask} {second}', words: {negative: a, "
            "positive: b}}}",
            r"template has 2 text\(s\), the task 1",
        ),
        (
            "tasks: {sst2: {template: '{first}', words: {negative: a, positive: b}}}",
            "must have {mask} once",
        ),
    ],
)
def test_mistakes_are_named(write, text: str, complaint: str):
    with pytest.raises(UserError, match=complaint):
        load_prompt_config(write("prompts.yaml", text), "sst2")
