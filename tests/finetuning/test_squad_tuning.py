import dataclasses
import json
import random
from pathlib import Path

from tiny_presets import GOOD

from cocolm_tf.data.squad import Answer, Question, to_official
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.squad import run_squad
from cocolm_tf.finetuning.squad_run import SquadRun


class Listener:
    def progress(self, share, note=""):
        pass

    def say(self, text):
        self.said = text


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


def test_a_fraction_is_learned_from_and_guessing_is_told(tiny_preset, tmp_path: Path):
    files = {part: str(tmp_path / f"{part}.json") for part in ("train", "dev")}
    for part, count in (("train", 40), ("dev", 10)):
        write_questions(Path(files[part]), count)
    config = FinetuningConfig()
    config.override({"trainer": {"epochs": 1}, "data": {"sequence_length": 20}})
    run = SquadRun(
        preset=tiny_preset,
        config=config.as_dict(),
        files=files,
        stride=5,
        max_question_length=6,
        max_answer_length=4,
        train_fraction=0.25,
    )
    listener = Listener()
    spec = json.loads(json.dumps(dataclasses.asdict(run)))
    results = run_squad(spec, str(tmp_path), listener)
    assert json.loads(json.dumps(results)) == results
    train = results["data"]["train"]
    assert (train["questions"], train["unanswerable"]) == (10, 5)
    assert f"train: 10 questions of {files['train']}, 50.0% unanswerable" in listener.said
    assert results["baseline"]["dev"] == {"exact": 0.5, "f1": 0.5}
    # Never to answer is one of the thresholds that are tried.
    assert results["score"] >= 0.5
    card = (tmp_path / "preset" / "README.md").read_text()
    assert "Always to answer nothing scores 50.00 exact and 50.00 F1." in card
    assert "| train_fraction | 0.25 |" in card
