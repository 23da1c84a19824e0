"""From the flags of each fine-tuning program to its results, within this process.

`test_finetune_glue.py` has the same with processes: for runs, their ends and their resumption.
"""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from in_process import InProcessRunner, call, without_fusion
from superglue_data import write_superglue
from tiny_presets import BAD, CONTEXT_WORDS, GOOD, opinions, write_tiny_preset

from cocolm_tf import CocoLMQuestionAnswerer
from cocolm_tf.data.squad import Answer, Question, read_squad, to_official
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning import experiment
from cocolm_tf.finetuning.tasks.question_answering import score_answers
from cocolm_tf.serving.export import export_preset

SHORT = "--params_override=trainer.epochs=1,trainer.batch_size=8,data.length_buckets=1"


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained preset; tests read it only."""
    return write_tiny_preset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True, scope="module")
def unfused():
    """Compiles nothing, as no operation runs often enough to earn it back."""
    with without_fusion():
        yield


@pytest.fixture
def finetune(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a program's experiment into `tmp_path / "out"`, and checks what it ends with."""
    monkeypatch.setattr(experiment, "JobRunner", InProcessRunner)

    def finetune(name: str, *arguments: str) -> Path:
        folders = [f"--preset={preset}", f"--output_dir={tmp_path}/out"]
        assert call(name, *folders, *arguments) == f"{tmp_path}/out/results.md"
        return tmp_path / "out"

    return finetune


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_table(finetune, tmp_path: Path, capsys):
    rows = [{"review": x, "stars": ("one", "five")[y]} for x, y in opinions(60, seed=1)]
    write_lines(tmp_path / "reviews.jsonl", rows)
    (tmp_path / "new.csv").write_text('review\n"a cat, and a good dog"\n')
    arguments = [f"--train_file={tmp_path}/reviews.jsonl", "--text_column=review"]
    with pytest.raises(UserError) as refused:
        finetune("finetune_table.py", *arguments, "--label_column=star")
    assert str(refused.value) == (
        f"{tmp_path}/reviews.jsonl:1 has no field 'star': it has review, stars; there is no good "
        "row."
    )
    assert not (tmp_path / "out").exists()
    arguments += [f"--test_file={tmp_path}/new.csv", "--dev_fraction=0.2"]
    cut = "--params_override=data.sequence_length=8"
    out = finetune("finetune_table.py", *arguments, "--label_column=stars", SHORT, cut)
    said = capsys.readouterr().err
    assert said.index("train: 48 rows of") < said.index("reviews, seed 0: accuracy")
    assert "labels: five " in said and " truncated" in said
    results = read(out / "reviews" / "results.json")
    assert results["data"]["dev"]["rows"] == 12
    assert results["data"]["train"]["tokens"]["longest"] == 8
    lines = (out / "reviews/seed_0/predictions/test.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and lines[1] in ("0\tone", "0\tfive")
    config = read(out / "reviews/seed_0/preset/task.json")
    assert config["config"]["label_names"] == ["five", "one"]


def test_triplets_to_vectors(finetune, tmp_path: Path):
    columns = ([text for text, _ in opinions(40, seed)] for seed in (1, 2, 3))
    keys = ("query", "document", "other")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
    write_lines(tmp_path / "triplets.jsonl", rows)
    arguments = [
        f"--train_file={tmp_path}/triplets.jsonl",
        "--first_column=query",
        "--second_column=document",
        "--negative_column=other",
        "--dimensions=16,8",
        SHORT,
    ]
    with pytest.raises(UserError, match="--negative_column goes without --score_column."):
        finetune("finetune_embedder.py", *arguments, "--score_column=x")
    out = finetune("finetune_embedder.py", *arguments)
    results = read(out / "triplets" / "results.json")
    assert results["metric"] == "ndcg@10" and "recall@10" in results["dev"]["dev at 8 dimensions"]
    assert read(out / "triplets/seed_0/preset/task.json")["config"]["dimensions"] == [16, 8]


def test_spans_from_a_file_to_an_export(finetune, tmp_path: Path, capsys):
    rows = []
    for text, label in opinions(40, seed=1):
        start = text.index(next(word for word in text.split() if word in (*GOOD, *BAD)))
        end = (text + " ").index(" ", start)
        rows.append({"note": text, "spans": [[start, end, ("BAD", "GOOD")[label]]]})
    write_lines(tmp_path / "notes.jsonl", rows)
    arguments = [f"--train_file={tmp_path}/notes.jsonl", f"--test_file={tmp_path}/notes.jsonl"]
    with pytest.raises(UserError) as refused:
        finetune("finetune_tokens.py", *arguments)
    assert str(refused.value) == (
        f"{tmp_path}/notes.jsonl:1 has neither 'text', a text, nor 'tokens', its words: it has "
        "note, spans; 40 of 40 texts are bad."
    )
    assert not (tmp_path / "out").exists()
    arguments += ["--text_field=note", "--scheme=BIOES", "--name=Notes", SHORT]
    run = finetune("finetune_tokens.py", *arguments) / "Notes" / "seed_0"
    assert "Notes, seed 0: f1 " in capsys.readouterr().err
    assert len((run / "predictions" / "test.jsonl").read_text().splitlines()) == 40
    export_preset(str(run / "preset"), ["tag"], str(tmp_path / "exports"))
    assert (tmp_path / "exports" / "1" / "saved_model.pb").exists()


def test_a_task_of_superglue(finetune, preset, tmp_path: Path):
    write_superglue(tmp_path / "superglue", repeat=4)
    arguments = ["--task=multirc", SHORT]
    with pytest.raises(UserError, match=f"--data_dir={preset} has no MultiRC/train.jsonl: it is"):
        finetune("finetune_superglue.py", *arguments, f"--data_dir={preset}")
    out = finetune("finetune_superglue.py", *arguments, f"--data_dir={tmp_path}/superglue")
    results = read(out / "superglue_multirc" / "results.json")
    assert set(results["dev"]["dev"]) == {"f1a", "em"}
    # The settings are those of the task, but for what the flag changes.
    assert results["config"]["trainer"]["epochs"] == 1
    (line,) = (out / "submission" / "MultiRC.jsonl").read_text().splitlines()
    assert json.loads(line)["passage"]["questions"][1]["idx"] == 5


PROMPTS = """
trainer: {steps: 2, validation_interval: 1, batch_size: 4}
prompt: {draws: 2}
search: {optimizer.learning_rate: [1e-2]}
prompts:
  sst2: {template: "{first} {mask} .", words: {negative: [awful, bad], positive: [good]}}
"""


@pytest.fixture
def prompts(tmp_path: Path) -> list[str]:
    """Flags of a few examples."""
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    return [f"--config_file={tmp_path}/prompts.yaml", "--shots=4"]


def test_prompts_over_splits(finetune, preset, prompts, tmp_path: Path):
    (tmp_path / "SST-2").mkdir()
    for name, count, seed in (("train", 40, 1), ("dev", 12, 2)):
        rows = "".join(f"{text}\t{label}\n" for text, label in opinions(count, seed))
        (tmp_path / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    arguments = [*prompts, "--task=sst2", f"--data_dir={tmp_path}", "--splits=2"]
    with pytest.raises(UserError, match="give either --task, one of GLUE, or --train_file"):
        finetune("finetune_prompt.py", *arguments, "--train_file=a.csv")
    headless = shutil.copytree(preset, tmp_path / "headless")
    (headless / "pretraining_heads.npz").unlink()
    with pytest.raises(UserError, match="has no language modeling head.* never learned to tell"):
        finetune("finetune_prompt.py", *arguments, f"--preset={headless}")
    assert not (tmp_path / "out").exists()
    out = finetune("finetune_prompt.py", *arguments)
    results = read(out / "sst2-prompts" / "results.json")
    assert len(results["test"]["dev"]["accuracy"]["values"]) == 2
    assert results["label_words"] == ["▁awful", "▁good"] and results["seeds"] == [13, 21]
    assert set(results["search"]) == {"13", "21"}
    assert "| SST-2 |" in (out / "results.md").read_text()


def test_prompts_of_a_table(finetune, tmp_path: Path):
    rows = "".join(f"{text},{('one', 'five')[label]}\n" for text, label in opinions(60, seed=1))
    (tmp_path / "reviews.csv").write_text("review,stars\n" + rows)
    (tmp_path / "short.yaml").write_text(
        "{trainer: {steps: 1, batch_size: 4}, prompt: {demonstrations: none}}"
    )
    out = finetune(
        "finetune_prompt.py",
        f"--train_file={tmp_path}/reviews.csv",
        "--text_column=review",
        "--label_column=stars",
        "--template={first} {mask} .",
        "--label_word=one=awful|bad",
        "--label_word=five=good",
        "--splits=1",
        "--shots=4",
        f"--config_file={tmp_path}/short.yaml",
    )
    results = read(out / "reviews-prompts" / "results.json")
    assert results["label_words"] == ["▁good", "▁awful"] and results["task"] == "reviews"


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


def test_questions(finetune, tmp_path: Path, capsys):
    write_questions(tmp_path / "train.json", 80, seed=1)
    write_questions(tmp_path / "dev.json", 20, seed=2)
    out = finetune(
        "finetune_squad.py",
        f"--train_file={tmp_path}/train.json",
        f"--dev_file={tmp_path}/dev.json",
        "--params_override=trainer.epochs=6,trainer.batch_size=16,optimizer.learning_rate=1e-2",
        "--params_override=model.dropout=0.0,data.length_buckets=1",
        "--sequence_length=20",
        "--stride=5",
        "--max_question_length=6",
        "--max_answer_length=4",
        "--n_best=3",
    )
    # What it saw, before it trains.
    said = capsys.readouterr().err
    assert "SQuAD 2.0:" in said and f"train: 81 questions of {tmp_path}/train.json" in said
    assert "1 whose answer is not where the file says: not learned from" in said

    folder = out / "squad" / "seed_0"
    results = read(folder / "results.json")
    report = results["data"]["train"]
    assert (report["questions"], report["misplaced"], report["without_window"]) == (81, 1, 0)
    assert report["windows"] > 81
    assert results["score"] > results["baseline"]["dev"]["f1"] + 0.3
    dev = read_squad(str(tmp_path / "dev.json"))
    answers = read(folder / "predictions" / "predictions.json")
    assert score_answers(dev, answers) == results["official"]
    assert set(read(folder / "predictions" / "null_odds.json")) == set(answers)
    n_best = read(folder / "predictions" / "nbest_predictions.json")
    assert all(len(entries) <= 4 for entries in n_best.values())
    answerer = CocoLMQuestionAnswerer.from_preset(folder / "preset")
    assert answerer.null_threshold == results["null_threshold"]
    assert (answerer.max_answer_length, answerer.n_best) == (4, 3)
    assert answerer.preprocessor.stride == 5
    texts = [question.question for question in dev], [question.context for question in dev]
    predictions = answerer.predict(texts, verbose=0)
    assert [prediction.answer for prediction in predictions] == list(answers.values())
    card = (folder / "preset" / "README.md").read_text()
    assert "question-answering" in card and f"{results['official']['f1']:.4f}" in card
    silent = results["baseline"]["dev"]
    assert (
        f"Always to answer nothing scores {100 * silent['exact']:.2f} exact and "
        f"{100 * silent['f1']:.2f} F1." in card
    )
    table = read(out / "results.json")
    assert table["experiments"][0]["dev"]["dev"]["f1"]["median"] == results["score"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--train_file=a"], UserError, "go together"),
        (["--stride=0"], flags.IllegalFlagValueError, "--stride"),
        (["--train_file=a", "--dev_file=a"], UserError, "a does not exist"),
        (["--config_file=no.yaml"], UserError, "no.yaml does not exist"),
    ],
)
def test_mistakes_in_the_flags_of_questions(finetune, arguments, error, message):
    with pytest.raises(error, match=message):
        finetune("finetune_squad.py", *arguments)


FEW_STEPS = (
    "--params_override=trainer.train_steps=4,trainer.log_interval=2,trainer.checkpoint_interval=2,"
    "trainer.validation_interval=4,optimizer.warmup_steps=1,trainer.batch_size=4,"
    "data.sequence_length=16"
)


@pytest.fixture
def essays(preset, tmp_path: Path) -> list[str]:
    """The flags of `finetune_correction.py` that name a preset, texts and a folder."""
    draw, rows = random.Random(0), []
    for text, _ in opinions(40, seed=1):
        words = text.split()
        words[draw.randrange(len(words))] = "dgo"
        rows.append({"text": " ".join(words), "corrected": text})
    write_lines(tmp_path / "essays.jsonl", rows)
    paths = {"preset": preset, "train_file": f"{tmp_path}/essays.jsonl"}
    return [f"--{flag}={path}" for flag, path in (paths | {"model_dir": tmp_path / "run"}).items()]


@pytest.mark.slow
def test_corrections_are_learned_and_scored(essays, tmp_path: Path, capsys):
    preset = tmp_path / "run" / "preset"
    assert call("finetune_correction.py", *essays, FEW_STEPS) == str(preset)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    heads = np.load(preset / "pretraining_heads.npz").files
    assert sorted(heads) == ["copy_head.kernel", "lm_head.bias"]
    assert "essays.jsonl" in (preset / "README.md").read_text()

    block = "S teh cat saw a dog\nA 0 1|||R:SPELL|||the|||REQUIRED|||-NONE-|||0\n\n"
    m2, corrected = tmp_path / "essays.m2", tmp_path / "corrected.txt"
    m2.write_text(block * 4)
    capsys.readouterr()
    arguments = [f"--preset={preset}", f"--m2={m2}", f"--output_file={corrected}"]
    call("evaluate_corrections.py", *arguments)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["texts"], found["words"], found["wrong_words"]) == (2, 10, 2)
    assert found["by_kind"].keys() == {"R:SPELL"}
    assert len(corrected.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--docstrings"], "give --train_file or one of --input, --tfds and --docstrings."),
        (
            ["--params_override=data.sequence_length=500"],
            "data.sequence_length=500 is more than the model's 24 positions.",
        ),
        (
            ["--params_override=data.sequence_length=16,objective.lm_weight=0"],
            "objective.copy_weight and objective.lm_weight must be more than 0",
        ),
        (["--corrected_column=right"], "has no field 'right'"),
        (
            ["--params_override=data.sequence_length=16"],
            "--model_dir=.* has a run with --preset=another",
        ),
    ],
)
def test_mistakes_in_learning_corrections(essays, tmp_path: Path, changed, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"--preset": "another"}))
    with pytest.raises(UserError, match=message):
        call("finetune_correction.py", *essays, *changed)


def test_mistakes_in_scoring_corrections(essays, preset, tmp_path: Path):
    with pytest.raises(UserError, match="give one of --made_in, --table and --m2."):
        call("evaluate_corrections.py", f"--preset={preset}")
    with pytest.raises(UserError, match="essays.jsonl:1 is no line of an M2 file"):
        call("evaluate_corrections.py", f"--preset={preset}", f"--m2={tmp_path}/essays.jsonl")
