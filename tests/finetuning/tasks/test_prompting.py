from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf import CocoLMPromptClassifier
from cocolm_tf.data.examples import Examples, TaskData, few_shot_split
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig, load_finetuning_config
from cocolm_tf.finetuning.tasks.prompting import (
    PromptingTask,
    build_prompt_classifier,
    prompt_batches,
    prompt_of_glue,
    prompt_of_table,
)

PROMPTS = str(Path(__file__).parents[3] / "configs" / "finetune" / "prompts.yaml")


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_every_task_of_glue_has_a_prompt(task: str):
    prompt = prompt_of_glue(PROMPTS, task)
    assert len(prompt["words"]) == len(GLUE_TASKS[task].label_names or "01")
    assert all(prompt["words"]) and "{mask}" in prompt["template"]


def test_the_words_are_lm_bffs_in_the_order_of_the_classes():
    prompt = prompt_of_glue(PROMPTS, "mnli")
    assert [words[0] for words in prompt["words"]] == ["Yes", "Maybe", "No"]
    prompt = prompt_of_glue(PROMPTS, "sst2")
    assert [words[0] for words in prompt["words"]] == ["terrible", "great"]


def test_the_settings_are_lm_bffs_and_the_papers():
    config, grid = load_finetuning_config(PROMPTS)
    trainer = config.trainer
    assert (trainer.steps, trainer.validation_interval, trainer.batch_size) == (1000, 100, 8)
    assert (config.prompt.demonstrations, config.prompt.draws) == ("random", 16)
    assert grid == {
        "optimizer.learning_rate": [3e-6, 4e-6, 5e-6],
        "trainer.batch_size": [2, 4, 8],
    }


GOOD = "{template: '{first} {mask}', words: {negative: bad, positive: good}}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prompts: {rte: " + GOOD + "}", "prompts has no sst2"),
        ("prompts: [sst2]", "prompts has no sst2"),
        ("prompts: {sst2: {template: '{first} {mask}'}}", "has a `template` and `words`"),
        (
            "prompts: {sst2: {template: '{first} {mask}', words: {bad: bad, good: good}}}",
            "sst2.words has the words of negative, positive",
        ),
        (
            "prompts: {sst2: {template: '{first} {mask}', words: {negative: No, positive: good}}}",
            "sst2.words.negative is a word or a list of words, not False: quote",
        ),
        (
            "prompts: {sst2: {template: '{first} {mask} {second}', words: {negative: a, "
            "positive: b}}}",
            r"template has 2 text\(s\), the task 1",
        ),
        (
            "prompts: {sst2: {template: '{first}', words: {negative: a, positive: b}}}",
            "must have {mask} once",
        ),
    ],
)
def test_mistakes_are_named(write, text: str, complaint: str):
    with pytest.raises(UserError, match=complaint):
        prompt_of_glue(write("prompts.yaml", text), "sst2")


FAST = {
    "model": {"dropout": 0.0},
    "optimizer": {"learning_rate": 1e-2, "warmup_fraction": 0.0, "weight_decay": 0.0},
    "trainer": {"batch_size": 4, "steps": 20, "validation_interval": 10},
    "prompt": {"demonstrations": "none", "draws": 2},
}


@pytest.fixture(scope="module")
def make(tiny_preset, sst2_dir):
    def make(**changes) -> tuple[PromptingTask, FinetuningConfig]:
        config = FinetuningConfig()
        for change in (FAST, changes):
            config.override(change)
        task = PromptingTask(
            preset=tiny_preset,
            config=config.as_dict(),
            data={"glue": {"task": "sst2", "data_dir": sst2_dir}},
            template="{first} {mask} .",
            words=[["bad"], ["good"]],
            shots=8,
        )
        return task, config

    return make


@pytest.fixture(scope="module")
def build(make):
    """Builds a classifier with demonstrations; also returns its training and its dev set."""

    def build(**prompt) -> tuple[CocoLMPromptClassifier, Examples, Examples]:
        task, config = make(prompt=prompt)
        data = task.read()
        train, dev = few_shot_split(data, task.shots, task.seed)
        return build_prompt_classifier(task, config, data, train), train, dev

    return build


@pytest.fixture(scope="module")
def random(build) -> tuple[CocoLMPromptClassifier, Examples, Examples]:
    return build(demonstrations="random", draws=3)


def test_a_run(make, do_task, tmp_path: Path):
    task, _ = make()
    results, listener = do_task(task, tmp_path)
    assert set(results["test"]["dev"]) == {"accuracy", "f1"}
    assert [evaluation["step"] for evaluation in results["epochs"]] == [10, 20]
    best = [evaluation["score"] for evaluation in results["epochs"]].index(results["score"])
    assert results["best_step"] == results["epochs"][best]["step"]
    assert set(results["dev"]) == {"few"}
    assert set(results["baseline"]["dev"].values()) <= {0, 0.5, 2 / 3} | {
        results["baseline"]["dev"]["accuracy"]
    }
    assert results["label_words"] == ["▁bad", "▁good"] and results["data"]["dev"]["rows"] == 20
    assert "16 examples to learn from" in listener.said[0]
    loaded = CocoLMPromptClassifier.from_preset(str(tmp_path / "preset"))
    dev = task.read().dev["dev"]
    found = loaded.predict(dev.first, verbose=0).argmax(1)
    assert (found == dev.labels).mean() == pytest.approx(results["test"]["dev"]["accuracy"])
    card = (tmp_path / "preset" / "README.md").read_text()
    assert "8 examples of each class" in card and "`{first} {mask} .`" in card


def test_every_epoch_has_every_example_and_other_demonstrations(random):
    classifier, train, _ = random
    batches = prompt_batches(classifier, train, batch_size=5, seed=0).take(8)
    rows = [
        tuple(ids)
        for x, _, weights in batches
        for ids in np.array(x["token_ids"])[weights.numpy() > 0].tolist()
    ]
    assert {spec.shape[0] for spec in tf.nest.flatten(batches.element_spec)} == {5}
    first, second = rows[:16], rows[16:]
    mask = classifier.mask_token_id

    def prompts(rows) -> list[tuple]:
        return sorted(row[: row.index(mask)] for row in rows)

    assert len(rows) == 32 and prompts(first) == prompts(second)
    assert sorted(first) != sorted(second)


def test_predictions_are_the_mean_over_draws_also_of_a_saved_preset(random, tmp_path):
    classifier, _, dev = random
    found = classifier.predict(dev.first, verbose=0)
    outputs = [classifier(classifier.preprocessor(list(dev.first), draw=draw)) for draw in range(3)]
    np.testing.assert_allclose(found, np.mean(outputs, axis=0), atol=1e-5)
    assert not np.allclose(outputs[0], outputs[1])
    classifier.save_to_preset(str(tmp_path / "preset"))
    loaded = CocoLMPromptClassifier.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(loaded.predict(dev.first, verbose=0), found, atol=1e-5)


def test_demonstrations_are_among_the_half_that_is_most_like_a_text(build):
    classifier, train, dev = build(demonstrations="similar", draws=2)
    candidates = classifier.candidates((dev.first,))
    assert [one.shape for one in candidates] == [(16, 4), (16, 4)]

    def vectors(texts):
        tokenizer = classifier.preprocessor.tokenizer
        rows = tokenizer.pack(tokenizer(list(texts)), sequence_length=24)
        found = np.array(classifier.backbone(rows))[:, 0]
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    of_texts = vectors(dev.first)
    for label, own in enumerate(candidates):
        examples = [example for (example,) in classifier.preprocessor.demonstrations[label]]
        likeness = of_texts @ vectors(examples).T
        for row, chosen in zip(likeness, own, strict=True):
            others = np.delete(row, chosen)
            assert row[chosen].min() >= others.max() - 1e-5
    # No text is a demonstration for itself.
    own = classifier.candidates((train.first,))[0]
    demonstrations = [example for (example,) in classifier.preprocessor.demonstrations[0]]
    pairs = zip(train.first, own, strict=True)
    assert all(text not in [demonstrations[number] for number in row] for text, row in pairs)
    # What is drawn is among them, whichever draw.
    one, other = (
        classifier.preprocessor(
            list(dev.first), draw=draw, candidates=[tf.constant(c[:, :1]) for c in candidates]
        )
        for draw in range(2)
    )
    np.testing.assert_array_equal(one["token_ids"], other["token_ids"])
    assert np.isfinite(classifier.predict(dev.first, verbose=0)).all()
    x, _, _ = next(iter(prompt_batches(classifier, train, 4, seed=0)))
    assert x["token_ids"].shape[0] == 4


def test_a_length_that_the_model_has_not_is_refused(make):
    task, config = make(data={"sequence_length": 25})
    data = task.read()
    with pytest.raises(UserError, match="sequence_length=25 is more than the model's 24 positions"):
        build_prompt_classifier(task, config, data, data.train)


def test_a_run_that_diverges_says_so(make, do_task, tmp_path: Path):
    task, _ = make(optimizer={"learning_rate": 1e30}, trainer={"steps": 4})
    assert do_task(task, tmp_path)[0]["diverged"] is True


TABLE = TaskData("T", ["1", "5"], Examples(["a", "b"], labels=np.int32([0, 1])), {}, {})


def test_flags_give_the_prompt_of_a_table():
    prompt = prompt_of_table("{first} {mask}", ["5=good|great", "1=bad"], TABLE)
    assert prompt == {"template": "{first} {mask}", "words": [["bad"], ["good", "great"]]}


@pytest.mark.parametrize(
    ("template", "words", "complaint"),
    [
        ("{first} {mask}", ["5=good"], "--label_word=1=... is missing"),
        ("{first} {mask}", ["5=good", "2=bad"], "--label_word=2=bad: give CLASS=WORD"),
        ("{first} {mask} {second}", ["5=good", "1=bad"], r"--template has 2 text\(s\), the task 1"),
    ],
)
def test_mistakes_in_them_are_named(template, words, complaint):
    with pytest.raises(UserError, match=complaint):
        prompt_of_table(template, words, TABLE)
