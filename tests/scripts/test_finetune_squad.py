import json
import random
from pathlib import Path

import pytest
from programs import Program
from tiny_presets import BAD, CONTEXT_WORDS, GOOD, write_tiny_preset

from cocolm_tf import CocoLMQuestionAnswerer
from cocolm_tf.data.squad import Answer, Question, read_squad, to_official
from cocolm_tf.finetuning.tasks.question_answering import score_answers

finetune_squad = Program("finetune_squad.py", timeout=1800)


def write_questions(path: Path, count: int, seed: int) -> None:
    """Contexts whose one opinion is the answer; some have none, and one file lies once."""
    draw = random.Random(seed)
    questions = []
    for number in range(count):
        words = draw.choices(CONTEXT_WORDS.split(), k=draw.randrange(1, 20))
        answers = ()
        if draw.random() < 0.7:
            word = draw.choice((*GOOD, *BAD))
            words.append(word)
            answers = (Answer(word, len(" ".join(words)) - len(word)),)
        questions.append(Question(f"{seed}-{number}", "some dog saw", " ".join(words), answers))
    questions.append(Question("lie", "the rain", "a cat", (Answer("cat", 3),)))
    path.write_text(json.dumps({"version": "v2.0", "data": to_official(questions)}))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_preset(folder)
    write_questions(folder / "train.json", 80, seed=1)
    write_questions(folder / "dev.json", 20, seed=2)
    return folder


def flags(inputs: Path, output_dir: Path) -> list[str]:
    return [
        f"--preset={inputs}/preset",
        f"--train_file={inputs}/train.json",
        f"--dev_file={inputs}/dev.json",
        f"--output_dir={output_dir}",
    ]


@pytest.mark.slow
def test_fine_tunes_scores_and_saves(inputs: Path, tmp_path: Path):
    arguments = [
        *flags(inputs, tmp_path / "out"),
        "--params_override=trainer.epochs=6,trainer.batch_size=16,optimizer.learning_rate=1e-2",
        "--params_override=model.dropout=0.0",
        "--sequence_length=20",
        "--stride=5",
        "--max_question_length=6",
        "--max_answer_length=4",
        "--n_best=3",
    ]
    result = finetune_squad(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out" / "results.md")
    # What it saw, before it trains.
    assert "SQuAD 2.0:" in result.stderr
    assert f"train: 81 questions of {inputs}/train.json" in result.stderr
    assert "1 whose answer is not where the file says: not learned from" in result.stderr

    folder = tmp_path / "out" / "squad" / "seed_0"
    results = json.loads((folder / "results.json").read_text())
    report = results["data"]["train"]
    assert (report["questions"], report["misplaced"], report["without_window"]) == (81, 1, 0)
    assert report["windows"] > 81
    assert results["score"] > results["baseline"]["dev"]["f1"] + 0.3
    dev = read_squad(str(inputs / "dev.json"))
    answers = json.loads((folder / "predictions" / "predictions.json").read_text())
    assert score_answers(dev, answers) == results["official"]
    assert set(json.loads((folder / "predictions" / "null_odds.json").read_text())) == set(answers)
    assert all(
        len(entries) <= 4
        for entries in json.loads(
            (folder / "predictions" / "nbest_predictions.json").read_text()
        ).values()
    )
    answerer = CocoLMQuestionAnswerer.from_preset(folder / "preset")
    assert answerer.null_threshold == results["null_threshold"]
    assert (answerer.max_answer_length, answerer.n_best) == (4, 3)
    assert answerer.preprocessor.stride == 5
    texts = [question.question for question in dev], [question.context for question in dev]
    predictions = answerer.predict(texts, verbose=0)
    assert [prediction.answer for prediction in predictions] == list(answers.values())
    card = (folder / "preset" / "README.md").read_text()
    assert "question-answering" in card
    assert f"{results['official']['f1']:.4f}" in card
    table = json.loads((tmp_path / "out" / "results.json").read_text())
    assert table["experiments"][0]["dev"]["dev"]["f1"]["median"] == results["score"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir=out"], "--preset"),
        (["--preset=p", "--output_dir=out", "--train_file=a"], "go together"),
        (["--preset=p", "--output_dir=out", "--stride=0"], "--stride"),
        (["--preset=p", "--output_dir=out", "--train_file=a", "--dev_file=a"], "a does not exist"),
        (["--preset=p", "--output_dir=out", "--config_file=no.yaml"], "no.yaml does not exist"),
    ],
)
def test_mistakes_in_flags_answer_at_once(arguments: list[str], message: str):
    (said,) = finetune_squad.mistakes(*arguments)
    assert message in said


@pytest.mark.slow
def test_lengths_that_do_not_fit_are_one_line(inputs: Path, tmp_path: Path):
    *_, said = finetune_squad.mistakes(
        *flags(inputs, tmp_path / "out"), "--stride=9", "--max_answer_length=8"
    )
    assert said.startswith("error: SQuAD, seed 0: sequence_length=24 leaves 14 tokens")
    assert not (tmp_path / "out").exists()
