import json

import pytest

from cocolm_tf.data.squad import Answer, Question, to_official
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.squad_run import SquadRun

GOOD = Question("1", "Who?", "a cat", (Answer("cat", 2),))
UNANSWERED = Question("1", "Who?", "a cat")
MISPLACED = Question("1", "Who?", "a cat", (Answer("cat", 3),))


@pytest.fixture
def run(write):
    def run(train: Question, dev: Question) -> SquadRun:
        files = {
            part: write(f"{part}.json", json.dumps({"data": to_official([question])}))
            for part, question in (("train", train), ("dev", dev))
        }
        return SquadRun(preset="preset", config={}, files=files)

    return run


def test_good_files_are_read(run):
    made = run(GOOD, GOOD)
    assert made.check() == "SQuAD" and made.read("dev") == [GOOD]
    assert made.source("dev") == made.files["dev"]
    assert SquadRun(preset="preset", config={}).source("dev") == "squad/v2.0 (validation)"


@pytest.mark.parametrize(
    ("train", "dev", "complaint"),
    [
        (GOOD, UNANSWERED, "dev.json: none of its 1 questions has an answer"),
        (MISPLACED, GOOD, "train.json: no answer is where its answer_start says"),
    ],
)
def test_files_without_answers_are_named(run, train, dev, complaint):
    with pytest.raises(UserError, match=complaint):
        run(train, dev).check()
