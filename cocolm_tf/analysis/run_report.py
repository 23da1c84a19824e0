"""The report of a run: its curves, and its models at work on a few sentences."""

import dataclasses
import os
import textwrap
from collections.abc import Container, Iterable, Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf import files
from cocolm_tf.analysis.figures import draw_curves, plots_of
from cocolm_tf.analysis.glossary import METRICS
from cocolm_tf.analysis.pages import OutputFolder, metric_rows
from cocolm_tf.analysis.runs import config_file, elapsed_seconds, load_run, read_run
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.data.augmentation import SpecialTokens
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.corruption import random_tokens, replace_tokens, sample_tokens
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.segmenter import WORD_START
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.preset import BACKBONE_FILENAME
from cocolm_tf.training.stages import Total, tokens_per_step
from cocolm_tf.units import duration, si

SENTENCES = (
    "Returns a list of the names of all files in the given directory.",
    "If the value is not a string, an error is raised.",
    "This class can be used to read and write data from one or more files.",
    "The teacher told the children that they would have to wait for the bus.",
    "After the war, most of the people in the town had no work and little money.",
)
# A sentence, the word of it that is wrong, and the right one.
MISTAKES = (
    ("Returns a list of can in the given order.", "can", "values"),
    ("The default value is will.", "will", "zero"),
    ("If the input is not a valid number, an error are raised.", "are", "is"),
    ("This function is called at the end for every step.", "for", "of"),
    ("The first element of the list have the smallest value.", "have", "has"),
)
# What the verdicts of a `Token` mean.
VERDICTS = {
    "corrected": "flagged, and the LM head's best guess is the original token",
    "found": "flagged, but the LM head's best guess is another token",
    "missed": "replaced, and not flagged",
    "kept": "the auxiliary model put the original token back, and it is not flagged",
    "false alarm": "flagged, though it is the original token",
}
_FLAGGED = 0.5


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of a demonstration, and what the models said of it."""

    piece: str  # as the main model reads it
    replaced: float  # the probability, by the copy head, that it is not the original token
    # the LM head's likeliest tokens with their probabilities, best first; empty where nothing is to
    # be said about the token, or the model has no LM head.
    guesses: tuple[tuple[str, float], ...] = ()
    original: str | None = None  # the token that belongs here; None where it is not known
    is_target: bool = False  # whether it was masked, or is a mistake

    @property
    def is_flagged(self) -> bool:
        """Whether the copy head says that the token was replaced."""
        return self.replaced > _FLAGGED

    @property
    def is_listed(self) -> bool:
        """Whether the token was masked, given as a mistake, or flagged."""
        return self.is_target or self.is_flagged

    @property
    def verdict(self) -> str:
        """How the model did at a target or flagged token, one of `VERDICTS`; empty elsewhere."""
        if self.original is None or not self.is_listed:
            return ""
        if self.piece == self.original:
            return "false alarm" if self.is_flagged else "kept"
        if not self.is_flagged:
            return "missed"
        is_right = bool(self.guesses) and self.guesses[0][0] == self.original
        return "corrected" if is_right else "found"


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """What trained models do with sentences, each as the tokens that the main model read."""

    # sentences some of whose tokens were masked and replaced.
    corrupted: tuple[tuple[Token, ...], ...]
    as_written: tuple[tuple[Token, ...], ...]  # sentences as they came

    def plain_text(self) -> str:
        """Formats the demonstration for a terminal."""
        lines = ["Masked, and replaced by the auxiliary model ([x]: flagged by the copy head)"]
        for sentence in self.corrupted:
            lines += ["", *_plain_text("masked", sentence), *_plain_text("read", sentence)]
            lines += [_plain_token(token) for token in sentence if token.is_listed]
        lines += ["", "Read as written ([x]: flagged by the copy head)"]
        for sentence in self.as_written:
            lines += ["", *_plain_text("read", sentence)]
            lines += [_plain_token(token) for token in sentence if token.is_listed]
        return "\n".join(lines)


def demonstrate(
    pretrainer: CocoLMPretrainer,
    tokenizer: CocoLMTokenizer,
    texts: Sequence[str] = (),
    mask_fraction: float = 0.15,
    seed: int = 0,
) -> Demonstration:
    """Shows the corruption and the main model's two heads at work (paper, section 3.3).

    Args:
        pretrainer: trained models, with a copy head.
        tokenizer: their tokenizer.
        texts: sentences to read, both corrupted and as they are; none for `SENTENCES` and
            `MISTAKES`.
        mask_fraction: The share of each sentence to mask; at least one token is.
        seed: Decides the masks and the samples.

    Returns:
        The demonstration.

    Raises:
        UserError: if a text has no tokens or more than the model reads, or the model has no copy
            head.

    Example:
    ```python
    pretrainer, tokenizer = load_run("runs/first")
    demonstrate(pretrainer, tokenizer, ["The cat sat on the mat."])
    ```
    """
    if pretrainer.copy_head is None:
        raise UserError("the run's objective has no copy head: there is nothing to demonstrate.")
    models = _Models(pretrainer, tokenizer)
    corrupted = tuple(
        models.read_corrupted(text, mask_fraction, seed=[seed, number])
        for number, text in enumerate(texts or SENTENCES)
    )
    if texts:
        return Demonstration(corrupted, tuple(models.read(models.ids(text)) for text in texts))
    return Demonstration(corrupted, tuple(models.read_mistake(*mistake) for mistake in MISTAKES))


class _Models:
    """The pretrained models, for one sentence at a time; `ids` are a sentence's, [1, S] int32."""

    def __init__(self, pretrainer: CocoLMPretrainer, tokenizer: CocoLMTokenizer) -> None:
        self._pretrainer = pretrainer
        self._tokenizer = tokenizer
        self._special = SpecialTokens(mask=tokenizer.mask_token_id)
        self._vocabulary = tokenizer.get_vocabulary()

    def ids(self, text: str) -> tf.Tensor:
        """Tokenizes a sentence."""
        ids = self._tokenizer(text)
        limit = self._pretrainer.backbone.max_sequence_length - 2
        if not 0 < len(ids) <= limit:
            shown = textwrap.shorten(text, 40, placeholder="...")
            raise UserError(f"text {shown!r} has {len(ids)} tokens: the model reads 1 to {limit}.")
        return self._tokenizer.pack(ids[tf.newaxis], sequence_length=len(ids) + 2)["token_ids"]

    def read_corrupted(
        self, text: str, mask_fraction: float, seed: Sequence[int]
    ) -> tuple[Token, ...]:
        """Masks, lets the auxiliary model replace, and reads the result."""
        ids = self.ids(text)
        ordinary = np.flatnonzero(~self._special.contains(ids)[0].numpy())
        # Training rounds at random; here no sentence shall go without a mask.
        count = max(1, round(len(ordinary) * mask_fraction))
        masked = np.random.default_rng(seed).choice(ordinary, count, replace=False)
        positions = tf.constant(np.sort(masked)[np.newaxis], tf.int32)
        replacements = self._sample(
            replace_tokens(ids, positions, self._special.mask), positions, seed
        )
        return self.read(replace_tokens(ids, positions, replacements), ids, set(masked))

    def read_mistake(self, text: str, wrong: str, right: str) -> tuple[Token, ...]:
        """Reads a sentence with a wrong word as if it replaced the right one."""
        ids = self.ids(text)
        wrong_ids, right_ids = self._tokenizer(wrong), self._tokenizer(right)
        if len(wrong_ids) != 1 or len(right_ids) != 1:
            return self.read(ids)  # no one token would be right
        is_wrong = ids == wrong_ids[0]
        targets = set(np.flatnonzero(is_wrong[0].numpy()))
        return self.read(ids, tf.where(is_wrong, right_ids[0], ids), targets)

    def read(
        self,
        ids: tf.Tensor,
        originals: tf.Tensor | None = None,
        targets: Container[int] = (),
    ) -> tuple[Token, ...]:
        """The main model's predictions at each ordinary token."""
        hidden = self._pretrainer.backbone(self._inputs(ids))
        replaced = tf.sigmoid(-self._pretrainer.copy_head(hidden))[0].numpy()
        tokens = []
        for position in range(1, ids.shape[1] - 1):
            token = Token(
                self._vocabulary[ids[0, position]],
                float(replaced[position]),
                original=None if originals is None else self._vocabulary[originals[0, position]],
                is_target=position in targets,
            )
            if token.is_listed:
                guesses = self._guess(hidden[:, position])
                token = dataclasses.replace(token, guesses=guesses)
            tokens.append(token)
        return tuple(tokens)

    def _sample(self, masked: tf.Tensor, positions: tf.Tensor, seed: Sequence[int]) -> tf.Tensor:
        seed = tf.constant(seed)
        if self._pretrainer.auxiliary is None:
            size, vocabulary_size = [positions.shape[1]], len(self._vocabulary)
            return random_tokens(tf.constant(size), vocabulary_size, seed)
        logits = self._pretrainer.auxiliary(self._inputs(masked), positions=positions)
        return sample_tokens(logits, seed)

    def _guess(self, hidden: tf.Tensor, count: int = 3) -> tuple[tuple[str, float], ...]:
        if self._pretrainer.lm_head is None:
            return ()
        best = tf.math.top_k(tf.nn.softmax(self._pretrainer.lm_head(hidden)[0]), count)
        pieces = [self._vocabulary[token_id] for token_id in best.indices.numpy()]
        return tuple(zip(pieces, map(float, best.values), strict=True))

    def _inputs(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"token_ids": ids, "padding_mask": tf.ones_like(ids)}


def split_piece(piece: str) -> tuple[str, str]:
    """The white space before a piece, and its text."""
    return " " * piece.startswith(WORD_START), piece.removeprefix(WORD_START)


def display(piece: str) -> str:
    """A piece of the vocabulary for display: with "##" where it continues a word."""
    space, word = split_piece(piece)
    return (word or piece) if space else f"##{word}"


def _plain_text(name: str, sentence: Sequence[Token]) -> list[str]:
    """The lines of a sentence as it was `masked` or as it was `read`."""
    text = ""
    for token in sentence:
        space, word = split_piece(token.original if name == "masked" else token.piece)
        if name == "masked" and token.is_target:
            word = "____"
        elif name == "read" and token.is_flagged:
            word = f"[{word}]"
        text += space + word
    indents = {"initial_indent": f"  {name:8}", "subsequent_indent": " " * 10}
    return textwrap.wrap(text.strip(), 100, **indents)


def _plain_token(token: Token) -> str:
    change = display(token.piece)
    if token.original not in (None, token.piece):
        change += f" (was {display(token.original)})"
    guesses = ", ".join(f"{display(piece)} {share:.2f}" for piece, share in token.guesses)
    line = f"    {change:28} replaced {token.replaced:.2f}  {token.verdict:12} {guesses}"
    return line.rstrip()


def write_report(
    model_dir: str, output_dir: str, texts: Sequence[str] = (), seed: int = 0
) -> tuple[str, Demonstration | None]:
    """Writes the report of a run: one page of HTML, and its plots as PNG files.

    The report of an unfinished run has no demonstration.

    Args:
        model_dir: the run's folder.
        output_dir: gets `index.html` and a PNG file for each plot.
        texts: sentences to demonstrate on; none for those at hand.
        seed: Decides what the demonstration masks and samples.

    Returns:
        The path of the page, and the demonstration.

    Raises:
        UserError: if the folder is not that of a run, or a text cannot be read by the model.

    Example:
    ```python
    path, demonstration = write_report("runs/first", "runs/first/report")
    ```
    """
    run = read_run(files.name(model_dir), model_dir)
    config, demonstration = run.config, None
    if texts or files.is_file(os.path.join(model_dir, "preset", BACKBONE_FILENAME)):
        pretrainer, tokenizer = load_run(model_dir)
        if pretrainer.copy_head or texts:
            fraction = config.data.mask_fraction
            demonstration = demonstrate(pretrainer, tokenizer, texts, fraction, seed)
    else:
        pretrainer = build_pretrainer(config, config.model.vocabulary_size - 1)
    output = OutputFolder(output_dir)
    plots = plots_of(run)
    for plot in tqdm(plots, desc="drawing", unit="plot"):
        output.add_figure(plot.name, draw_curves(plot, [run]), ["png"])
    step, planned, final = int(run.log["step"].max()), config.trainer.train_steps, run.final()
    headline = {
        "steps": f"{step:,}" if step == planned else f"{step:,} of {planned:,}",
        "tokens read": si(Total(config, tokens_per_step)(step)),
        "time": duration(elapsed_seconds(run.log).max()),
    }
    sections = {"results": "Results", "curves": "Curves", "models": "Model and configuration"}
    if demonstration:
        sections = {
            "corrupted": "Corruption and correction",
            "as_written": "Sentences as written",
            **sections,
        }
    path = output.add_page(
        "report.html",
        run.name,
        headline,
        sections,
        demonstration=demonstration,
        verdicts=VERDICTS,
        display=display,
        split_piece=split_piece,
        final=final,
        results=metric_rows(pd.DataFrame({"value": final}), METRICS),
        plots=plots,
        models=_model_rows(pretrainer),
        flops=si(sum(pretraining_flops(config).values()), "FLOP"),
        configuration=files.read_text(config_file(model_dir)),
    )
    return path, demonstration


def _model_rows(pretrainer: CocoLMPretrainer) -> list[list[str]]:
    """The sizes of the models, and the parameters that each does not share with those before it."""
    main = pretrainer.backbone
    rows = [_model_row("main model", main, main.trainable_variables)]
    counted = {id(variable) for variable in main.trainable_variables}
    if pretrainer.auxiliary is not None:
        auxiliary = pretrainer.auxiliary.backbone
        own = [v for v in auxiliary.weights if id(v) not in counted]
        rows.append(_model_row("auxiliary model", auxiliary, own))
        counted |= {id(variable) for variable in own}
    heads = [v for v in pretrainer.trainable_variables if id(v) not in counted]
    return [*rows, ["heads", "", "", "", "", f"{_count(heads):,}"]]


def _model_row(
    name: str, backbone: CocoLMBackbone, variables: Iterable[keras.Variable]
) -> list[str]:
    sizes = ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")
    return [name, *(f"{getattr(backbone, size):,}" for size in sizes), f"{_count(variables):,}"]


def _count(variables: Iterable[keras.Variable]) -> int:
    return sum(int(variable.value.shape.num_elements()) for variable in variables)
