"""The report of a run, and the demonstration of its models."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.analysis import run_report
from cocolm_tf.analysis.figures import PLOTS
from cocolm_tf.analysis.run_report import (
    VERDICTS,
    Demonstration,
    Token,
    demonstrate,
    display,
    write_report,
)
from cocolm_tf.analysis.runs import load_run
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig

MARKUP = "the cat sat on a <mat>"
TEXT = "the cat sat on a mat and the dog ran to its house"
Loaded = tuple[CocoLMPretrainer, CocoLMTokenizer]


def pieces(sentence: tuple[Token, ...], originals: bool = False) -> list[str]:
    return [token.original if originals else token.piece for token in sentence]


@pytest.mark.parametrize(
    ("token", "verdict"),
    [
        (Token("▁a", 0.9, (("▁b", 0.8),), "▁b", True), "corrected"),
        (Token("▁a", 0.9, (("▁c", 0.8), ("▁b", 0.1)), "▁b", True), "found"),
        # Tokens that look alike are not the same.
        (Token("▁a", 0.9, (("b", 0.8),), "▁b", True), "found"),
        (Token("▁a", 0.9, (), "▁b", True), "found"),
        (Token("▁a", 0.2, (("▁b", 0.8),), "▁b", True), "missed"),
        (Token("▁a", 0.5, (), "▁b", True), "missed"),
        (Token("▁a", 0.2, (), "▁a", True), "kept"),
        (Token("▁a", 0.9, (), "▁a", True), "false alarm"),
        (Token("▁a", 0.9, (), "▁a", False), "false alarm"),
        (Token("▁a", 0.2, (), "▁a", False), ""),
        (Token("▁a", 0.9, (("▁b", 0.8),), None, False), ""),
    ],
)
def test_verdicts(token: Token, verdict: str):
    assert token.verdict == verdict
    assert verdict in VERDICTS or not verdict


def test_a_piece_within_a_word_is_shown_as_such():
    assert (display("▁cat"), display("s"), display("▁")) == ("cat", "##s", "▁")


def test_masked_tokens_are_replaced_by_the_auxiliary_model_s(loaded: Loaded):
    pretrainer, tokenizer = loaded
    (sentence,) = demonstrate(pretrainer, tokenizer, [TEXT], mask_fraction=0.3).corrupted
    ids = tokenizer(TEXT).numpy()
    assert pieces(sentence, originals=True) == [tokenizer.id_to_token(id) for id in ids]
    assert sum(token.is_target for token in sentence) == round(0.3 * len(ids))
    changed = [token for token in sentence if token.piece != token.original]
    assert changed and all(token.is_target for token in changed)


def test_the_auxiliary_model_sees_the_mask_and_its_word_counts(finished_run: Path):
    pretrainer, tokenizer = load_run(str(finished_run))
    # In float32, with what was trained.
    assert pretrainer.compute_dtype == pretrainer.backbone.compute_dtype == "float32"
    np.testing.assert_array_equal(pretrainer.copy_head.kernel, np.arange(16))
    # A bias that leaves no choice.
    wanted = tokenizer.token_to_id("▁dog")
    bias = np.zeros(len(tokenizer.get_vocabulary()), np.float32)
    bias[wanted] = 1e4
    pretrainer.auxiliary.head.projection.bias.assign(bias)
    seen = []
    backbone = pretrainer.auxiliary.backbone
    forward = backbone.states_at
    backbone.states_at = lambda inputs, *args: seen.append(inputs) or forward(inputs, *args)
    (sentence,) = demonstrate(pretrainer, tokenizer, [TEXT], 0.3).corrupted
    assert {token.piece for token in sentence if token.is_target} == {"▁dog"}
    masked = seen[0]["token_ids"].numpy()[0, 1:-1] == tokenizer.mask_token_id
    assert masked.tolist() == [token.is_target for token in sentence]


def test_probabilities_are_those_of_the_heads(loaded: Loaded):
    pretrainer, tokenizer = loaded
    (sentence,) = demonstrate(pretrainer, tokenizer, [TEXT]).as_written
    inputs = tokenizer.pack(tokenizer([TEXT]), sequence_length=24)
    hidden = pretrainer.backbone(inputs)
    length = len(sentence)
    replaced = 1 - tf.sigmoid(pretrainer.copy_head(hidden))[0, 1 : length + 1].numpy()
    # The demonstration does not pad.
    np.testing.assert_allclose([token.replaced for token in sentence], replaced, atol=1e-5)
    probabilities = tf.nn.softmax(pretrainer.lm_head(hidden[0, 1 : length + 1])).numpy()
    flagged = [i for i, token in enumerate(sentence) if token.is_flagged]
    assert flagged and len(flagged) < length
    for i in flagged:
        best = np.argsort(-probabilities[i])[:3]
        expected = {tokenizer.id_to_token(id): probabilities[i, id] for id in best}
        assert dict(sentence[i].guesses) == pytest.approx(expected, abs=1e-5)
        assert sentence[i].guesses[0][1] == max(share for _, share in sentence[i].guesses)
    assert all(token.guesses == () for token in sentence if not token.is_flagged)


def test_the_seed_decides(loaded: Loaded):
    first, again, other = (demonstrate(*loaded, [TEXT] * 3, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.corrupted != other.corrupted
    assert first.as_written == other.as_written
    # Each sentence has masks of its own.
    assert len({tuple(token.is_target for token in s) for s in first.corrupted}) > 1


def test_short_sentences_get_a_mask_too(loaded: Loaded):
    (sentence,) = demonstrate(*loaded, ["cat"]).corrupted
    assert [token.is_target for token in sentence] == [True]


def test_mistakes_count_as_replacements(loaded: Loaded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_report, "SENTENCES", (TEXT,))
    monkeypatch.setattr(
        run_report,
        "MISTAKES",
        (("the cat sat on a dog", "dog", "mat"), ("the xyzzy cat sat", "xyzzy", "dog")),
    )
    known, unknown = demonstrate(*loaded).as_written
    assert [(t.piece, t.original) for t in known if t.is_target] == [("▁dog", "▁mat")]
    assert all(token.original == token.piece for token in known if not token.is_target)
    # No one token stands for the right word.
    assert all(token.original is None for token in unknown)


def test_the_default_sentences_can_be_read(loaded: Loaded):
    # A vocabulary that spells them out needs more positions than this model has.
    words = [*run_report.SENTENCES, *(sentence for sentence, _, _ in run_report.MISTAKES)]
    assert all(len(sentence.split()) < 24 for sentence in words)
    for sentence, wrong, right in run_report.MISTAKES:
        assert sentence.rstrip(".").replace(",", "").split().count(wrong) == 1
        assert right != wrong


@pytest.mark.parametrize("text", ["", "  ", "cat " * 23], ids=["empty", "blank", "long"])
def test_a_text_that_cannot_be_read_is_named(loaded: Loaded, text: str):
    with pytest.raises(UserError, match="the model reads 1 to 22"):
        demonstrate(*loaded, ["a cat", text])


@pytest.mark.parametrize("number", [1, 22])
def test_the_longest_text_and_the_shortest_can_be_read(loaded: Loaded, number: int):
    assert len(demonstrate(*loaded, ["cat " * number]).as_written[0]) == number


def build(config: PretrainingConfig, **changes: dict) -> CocoLMPretrainer:
    config = PretrainingConfig(**config.as_dict())
    config.override(changes)
    return build_pretrainer(config, config.model.vocabulary_size - 1)


def test_objectives_without_parts(config: PretrainingConfig, preset: Path):
    changes = {"auxiliary": {"replacements": "random"}, "objective": {"lm_weight": 0.0}}
    pretrainer = build(config, **changes)
    tokenizer = CocoLMTokenizer.from_preset(str(preset))
    shown = demonstrate(pretrainer, tokenizer, [TEXT], 0.5)
    assert any(token.piece != token.original for token in shown.corrupted[0])
    assert all(token.guesses == () for token in shown.corrupted[0])
    assert "replaced" in shown.plain_text()


def test_an_objective_without_a_copy_head_is_reported(config: PretrainingConfig, preset: Path):
    pretrainer = build(config, objective={"copy_weight": 0.0, "use_copy": False})
    with pytest.raises(UserError, match="no copy head"):
        demonstrate(pretrainer, CocoLMTokenizer.from_preset(str(preset)), [TEXT])


def test_plain_text():
    sentence = (
        Token("▁The", 0.1, original="▁The"),
        Token("▁dog", 0.93, (("▁cat", 0.61), ("▁dogs", 0.2)), "▁cat", True),
        Token("s", 0.2, original="s"),
        Token("▁ran", 0.05, (("▁ran", 0.9),), "▁ran", True),
        Token(".", 0.01, original="."),
    )
    lines = Demonstration((sentence,), (sentence[:2],)).plain_text().splitlines()
    squeezed = [" ".join(line.split()) for line in lines]
    assert squeezed[2:6] == [
        "masked The ____s ____.",
        "read The [dog]s ran.",
        "dog (was cat) replaced 0.93 corrected cat 0.61, dogs 0.20",
        "ran replaced 0.05 kept ran 0.90",
    ]
    assert squeezed[-2] == "read The [dog]"


@pytest.fixture(autouse=True)
def _few_plots(monkeypatch: pytest.MonkeyPatch):
    """Drawing takes most of the time of a report."""
    monkeypatch.setattr(run_report, "plots_of", lambda run: PLOTS[:2])


def test_a_finished_run_is_reported_with_its_demonstration(
    finished_run: Path, tmp_path: Path, to_store
):
    output = tmp_path / "new" / "report"
    path, demonstration = write_report(str(finished_run), str(output), [MARKUP])
    assert path == str(output / "index.html")
    images = [f"{plot.name}.png" for plot in PLOTS[:2]]
    assert {file.name for file in output.iterdir()} == {"index.html", *images}
    assert all((output / image).read_bytes()[:4] == b"\x89PNG" for image in images)

    written = Path(path).read_text(encoding="utf-8")
    assert written.count("<svg ") == len(images)
    # Nothing is fetched, and what the user wrote is text.
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", written)
    assert "<mat>" not in written and "mat" in written
    assert re.search(r'<span class="label">masked</span> ?\S', written)
    assert '<span class="mask"></span>' in written and 'class="token' in written
    assert len(demonstration.corrupted) == len(demonstration.as_written) == 1
    assert "mixed_bfloat16" in written  # as the run was, not as it is demonstrated
    assert "The last validation, at step 40." in written
    assert ">0.525<" in written and ">52.5%<" in written
    assert "3.84 k" in written  # 40 steps of 4 sequences of 24 tokens

    # Run and report may lie on a store.
    there = to_store(finished_run)
    path, _ = write_report(there, f"{there}/report", [MARKUP])
    assert files.read_text(path) == written
    assert files.read_bytes(f"{there}/report/{images[0]}") == (output / images[0]).read_bytes()


def test_a_run_that_has_not_ended_has_no_demonstration_yet(model_dir: Path, tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "index.html").write_text("old")
    (output / "notes.txt").write_text("mine")
    path, demonstration = write_report(str(model_dir), str(output))
    assert demonstration is None
    written = Path(path).read_text(encoding="utf-8")
    assert "auxiliary model" in written and 'class="sentence"' not in written
    assert (output / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="no preset yet"):
        write_report(str(model_dir), str(tmp_path / "other"), [MARKUP])


def test_nothing_is_written_for_a_text_that_cannot_be_read(finished_run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="the model reads"):
        write_report(str(finished_run), str(tmp_path / "out"), ["cat " * 50])
    assert not (tmp_path / "out").exists()
