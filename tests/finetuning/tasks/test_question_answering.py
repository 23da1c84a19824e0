import json
import random
from pathlib import Path

import pytest
from official.nlp.tools import squad_evaluate_v2_0
from tiny_presets import GOOD

from cocolm_tf.data.squad import Answer, Question, to_official
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.models.answers import Candidate, Prediction
from cocolm_tf.finetuning.tasks.question_answering import (
    QuestionAnsweringTask,
    choose_null_threshold,
    score_answers,
    write_squad_files,
)

ANSWERED = Question("1", "Who?", "a cat", (Answer("cat", 2),))
UNANSWERED = Question("1", "Who?", "a cat")
MISPLACED = Question("1", "Who?", "a cat", (Answer("cat", 3),))


@pytest.fixture
def run(write):
    def run(train: Question, dev: Question) -> QuestionAnsweringTask:
        files = {
            part: write(f"{part}.json", json.dumps({"data": to_official([question])}))
            for part, question in (("train", train), ("dev", dev))
        }
        return QuestionAnsweringTask(preset="preset", config={}, files=files)

    return run


def test_good_files_are_read(run):
    made = run(ANSWERED, ANSWERED)
    assert made.check() == "SQuAD 1.1" and made.read().dev == [ANSWERED]
    assert made.source("dev") == made.files["dev"]
    of_tfds = QuestionAnsweringTask(preset="preset", config={})
    assert of_tfds.source("dev") == "squad/v2.0 (validation)"


@pytest.mark.parametrize(
    ("train", "dev", "complaint"),
    [
        (ANSWERED, UNANSWERED, "dev.json: none of its 1 questions has an answer"),
        (MISPLACED, ANSWERED, "train.json: no answer is where its answer_start says"),
    ],
)
def test_files_without_answers_are_named(run, train, dev, complaint):
    with pytest.raises(UserError, match=complaint):
        run(train, dev).check()


def write_questions(path: Path, count: int) -> None:
    draw = random.Random(0)
    questions = []
    for number in range(count):
        words = draw.choices(["a", "cat", "saw", "the", "dog"], k=draw.randrange(1, 20))
        answers = ()
        if number % 2:
            words.append(draw.choice(GOOD))
            answers = (Answer(words[-1], len(" ".join(words[:-1])) + 1),)
        questions.append(Question(str(number), "the dog saw", " ".join(words), answers))
    path.write_text(json.dumps({"data": to_official(questions)}))


def test_a_fraction_is_learned_from_and_guessing_is_reported(tiny_preset, tmp_path: Path):
    files = {part: str(tmp_path / f"{part}.json") for part in ("train", "dev")}
    for part, count in (("train", 40), ("dev", 10)):
        write_questions(Path(files[part]), count)
    config = FinetuningConfig()
    config.override({"data": {"sequence_length": 20, "length_buckets": 1}})
    task = QuestionAnsweringTask(
        preset=tiny_preset,
        config=config.as_dict(),
        files=files,
        stride=5,
        max_question_length=6,
        max_answer_length=4,
        train_fraction=0.25,
    )
    prepared = task.prepare(config)
    train = prepared.report["train"]
    assert (train["questions"], train["unanswerable"]) == (10, 5)
    assert f"train: 10 questions of {files['train']}; tokens: " in prepared.summary
    assert "50.0% unanswerable" in prepared.summary
    # Never to answer is one of the thresholds that are tried.
    assert prepared.measure()["dev"]["f1"] >= 0.5
    assert prepared.artifacts(str(tmp_path))["baseline"]["dev"] == {"f1": 0.5, "exact": 0.5}


def question(id: str, *answers: str) -> Question:
    return Question(id, "?", "context", tuple(Answer(answer, 0) for answer in answers))


# References, what was answered, and what the official script gives it by hand: exact and F1.
CASES = [
    ((), "", 1, 1),
    ((), "a cat", 0, 0),
    (("the cat",), "", 0, 0),
    (("the cat",), "The Cat!", 1, 1),
    (("the cat",), "cat", 1, 1),
    (("an A, the",), "", 1, 1),  # nothing but articles is as good as nothing
    (("black cat",), "the cat sat", 0, 1 / 2),
    (("a dog", "black cat", "cat"), "a black cat", 1, 1),
    (("dog", "the black cat"), "cat", 0, 2 / 3),
    (("1,200",), "1200", 1, 1),
    (("U.S.A.",), "USA", 1, 1),
    (("rain  fall",), " rain\nfall ", 1, 1),
    (("rain rain",), "rain", 0, 2 / 3),
]


def test_scores_are_the_official_ones():
    questions = [question(str(n), *case[0]) for n, case in enumerate(CASES)]
    answers = {str(n): case[1] for n, case in enumerate(CASES)}
    scores = score_answers(questions, answers)
    assert scores["exact"] == pytest.approx(100 * sum(case[2] for case in CASES) / len(CASES))
    assert scores["f1"] == pytest.approx(100 * sum(case[3] for case in CASES) / len(CASES))
    assert (scores["total"], scores["HasAns_total"], scores["NoAns_total"]) == (13, 11, 2)
    assert scores["NoAns_f1"] == 50
    official = squad_evaluate_v2_0.evaluate(to_official(questions), answers)
    assert {name: official[name] for name in scores} == scores


def test_questions_of_one_kind_have_no_scores_of_the_other():
    assert set(score_answers([question("1", "cat")], {"1": "cat"})) == {
        *("exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total")
    }


def prediction(text: str, null_odds: float) -> Prediction:
    best = Candidate(text, 0, len(text), 0.0, 0.0)
    return Prediction(text, (best,), Candidate("", 0, 0, null_odds, 0.0), null_odds)


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_scores_higher(seed: int):
    draw = random.Random(seed)
    questions, predictions = [], []
    for number in range(12):
        answer = draw.choice([(), (), ("cat",), ("black cat",)])
        questions.append(question(str(number), *answer))
        # Far apart, so that probabilities would all be 0 or 1.
        odds = draw.randrange(-500, 500) - 300 * bool(answer)
        predictions.append(prediction(draw.choice(["cat", "dog"]), odds + number / 100))
    questions.append(question("answerable", "cat"))
    predictions.append(prediction("cat", draw.randrange(-500, 500) + 0.5))
    questions.append(question("unanswerable"))
    predictions.append(prediction("cat", draw.randrange(-500, 500) + 0.6))

    def f1(threshold: float | None) -> float:
        pairs = zip(questions, predictions, strict=True)
        answers = {q.id: p.with_threshold(threshold).answer for q, p in pairs}
        return score_answers(questions, answers)["f1"]

    best = choose_null_threshold(questions, predictions)
    odds = [prediction.null_odds for prediction in predictions]
    assert f1(best) == pytest.approx(max(f1(other) for other in [-1000.0, *odds]))


def test_the_threshold_may_be_below_all():
    questions = [question("1"), question("2"), question("3", "cat")]
    predictions = [prediction("dog", odds) for odds in (-5.0, 3.0, 2.0)]
    threshold = choose_null_threshold(questions, predictions)
    assert all(not p.with_threshold(threshold).answer for p in predictions)


def test_questions_that_all_have_answers_are_all_answered():
    assert choose_null_threshold([question("1", "cat")], [prediction("dog", 7.0)]) is None


def test_files_are_in_the_official_formats(tmp_path: Path):
    questions = [question("1", "cat"), question("2")]
    predictions = [prediction("cat", -2.0), prediction("dög", 3.0).with_threshold(0.0)]
    write_squad_files(str(tmp_path), questions, predictions)

    def read(name: str) -> dict:
        return json.loads((tmp_path / name).read_text(encoding="utf-8"))

    assert read("predictions.json") == {"1": "cat", "2": ""}
    assert read("null_odds.json") == {"1": -2.0, "2": 3.0}
    n_best = read("nbest_predictions.json")
    assert [entry["text"] for entry in n_best["1"]] == ["cat", ""]
    assert [entry["text"] for entry in n_best["2"]] == ["", "dög"]
    for entries in n_best.values():
        assert sum(entry["probability"] for entry in entries) == pytest.approx(1)
        assert set(entries[0]) == {"text", "probability", "start_logit", "end_logit"}
    scores = squad_evaluate_v2_0.evaluate(to_official(questions), read("predictions.json"))
    assert scores["exact"] == 100
