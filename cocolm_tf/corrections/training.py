"""Fine-tuning on corrections: the objective of pretraining, with given mistakes.

The main model reads a text with its mistakes and learns, token by token, which do not belong (copy
head) and what should stand there (LM head). Instead of the auxiliary model, people make the
mistakes, or a `MistakeMaker`. These change the number of tokens, which replacements never do: a
misspelling has more of them than its word. So a wrong word's tokens are aligned with the right
one's; where the right one has fewer, the rest should be nothing, for which the LM head predicts
`<pad>` (`serving.correction.NOTHING_ID`). Where it has more, or one word should be several, the
tokens learn only that they do not belong; and what is missing has no token that could learn it.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.corrections.mistakes import MistakeMaker
from cocolm_tf.corrections.texts import MarkedText
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.presets import backbone_config
from cocolm_tf.fingerprints import fingerprint
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.measures import Measures
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.modeling.training_step import Batch, Losses
from cocolm_tf.serving.correction import NOTHING_ID
from cocolm_tf.tokenization.dictionary import END_TOKEN_ID, PAD_TOKEN_ID, START_TOKEN_ID
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import compile_pretrainer
from cocolm_tf.training.checkpoints import Checkpoints
from cocolm_tf.training.config import PretrainingConfig, save_config
from cocolm_tf.training.distribution import StopSignal, Workers, make_strategy, per_replica_batch
from cocolm_tf.training.identity import flat
from cocolm_tf.training.loop import train
from cocolm_tf.training.model_card import Facts
from cocolm_tf.training.preset import ARCHITECTURE, load_preset, save_preset
from cocolm_tf.training.stages import stages

_RUN_FILENAME = "run.json"


class CorrectionTrainer(CocoLMPretrainer):
    """`CocoLMPretrainer` with given replacements and without contrastive learning."""

    # A batch is a dict of `wrong_token_ids` [B, S] int32, the input; `token_ids` [B, S] int32, what
    # should stand in the place of each; `padding_mask` [B, S] bool; and where the LM head learns,
    # `masked_positions` [B, M] int32 and `masked_weights` [B, M] float32.

    def __init__(self, backbone: CocoLMBackbone, mask_token_id: int, **options: object) -> None:
        super().__init__(backbone, None, mask_token_id, scl_weight=0.0, **options)

    def _corrupt(self, batch: Batch, training: bool) -> tuple[tf.Tensor, Losses, Measures]:
        return batch["wrong_token_ids"], {}, {}


class Examples:
    """Texts with mistakes by number, without end: each epoch in another order.

    Args:
        texts: Texts with their mistakes; or good ones, in which `maker` makes mistakes.
        maker: Makes other mistakes in each epoch; None where the texts have theirs.
        seed: Decides order and mistakes.

    Example:
    ```python
    Examples(["He goes home."], MistakeMaker(codespell_dictionary(), {"he", "goes", "home"}))[0]
    ```
    """

    def __init__(
        self, texts: Sequence[MarkedText | str], maker: MistakeMaker | None = None, seed: int = 0
    ) -> None:
        self._texts, self._maker, self._seed = texts, maker, seed
        self._epoch, self._order = -1, np.arange(0)

    def __len__(self) -> int:
        return len(self._texts)

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the examples."""
        digest = hashlib.sha256(f"{self._seed} {self._maker}".encode())
        for text in self._texts:
            digest.update(f"{text}\n".encode("utf-8", "replace"))
        return digest.hexdigest()

    def __getitem__(self, number: int) -> MarkedText:
        epoch, place = divmod(number, len(self._texts))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self))
        text = self._texts[self._order[place]]
        return self._maker(text, f"{self._seed} {number}") if self._maker else text


class Rows:
    """Makes batches of texts with mistakes."""

    # Rows are cut to `sequence_length` S; `lm_slots` is M, the most tokens of a row that the LM
    # head learns from.

    def __init__(self, tokenizer: CocoLMTokenizer, sequence_length: int, lm_slots: int) -> None:
        self._tokenize = tokenizer.graph_module().tokenize_with_offsets
        # A token that no text has marks targets that are not known, or are several tokens.
        self._unknown = tokenizer.mask_token_id
        self._shape = sequence_length, lm_slots

    def __call__(self, texts: Sequence[MarkedText]) -> dict[str, np.ndarray]:
        """The batch that `CorrectionTrainer` takes."""
        length, slots = self._shape
        wrong = _rows(self._tokenize(tf.constant([marked.text for marked in texts])))
        right = _rows(self._tokenize(tf.constant([marked.corrected() for marked in texts])))
        read = np.full([len(texts), length], PAD_TOKEN_ID, np.int32)
        wanted = read.copy()
        positions = np.zeros([len(texts), slots], np.int32)
        weights = np.zeros([len(texts), slots], np.float32)
        for row, (marked, one, other) in enumerate(zip(texts, wrong, right, strict=True)):
            ids, targets = one[0], self._targets(marked, one, other)
            for array, values in ((read, ids), (wanted, targets)):
                kept = values[: length - 2]
                array[row, : len(kept) + 2] = [START_TOKEN_ID, *kept, END_TOKEN_ID]
            learned = read[row] != wanted[row]
            learned &= wanted[row] != self._unknown
            places = np.flatnonzero(learned)[:slots]
            positions[row, : len(places)] = places
            weights[row, : len(places)] = 1.0
        return {
            "wrong_token_ids": read,
            "token_ids": wanted,
            "padding_mask": read != PAD_TOKEN_ID,
            "masked_positions": positions,
            "masked_weights": weights,
        }

    def _targets(self, marked: MarkedText, wrong: "_Row", right: "_Row") -> np.ndarray:
        """The target of each token of a text, [T]."""
        targets, shift = wrong[0].copy(), 0
        for edit in marked.edits:
            start, end, correction = edit.of(marked.text)
            lead = len(edit.correction) - len(edit.correction.lstrip())
            begin = edit.start + shift + lead
            shift += len(edit.correction) - (edit.end - edit.start)
            words = _words_between(wrong, start, end)
            others = _words_between(right, begin, begin + len(correction))
            if not correction:
                others = [np.arange(0)] * len(words)
            known = len(words) == len(others)
            for index, tokens in enumerate(words):
                found = aligned(wrong[0][tokens], right[0][others[index]]) if known else None
                targets[tokens] = self._unknown if found is None else found
        return targets


# Ids, first characters, ends and words of a text's tokens, [T] each.
_Row = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _rows(offsets: Sequence[tf.RaggedTensor]) -> Iterator[_Row]:
    splits = offsets[0].row_splits.numpy()[1:-1]
    parts = [np.split(part.flat_values.numpy(), splits) for part in offsets]
    return zip(*parts, strict=True)


def _words_between(row: _Row, start: int, end: int) -> list[np.ndarray]:
    """The tokens of each word that has a character between two places."""
    _, starts, ends, words = row
    inside = words[(starts < end) & (ends > start)]
    return [np.flatnonzero(words == word) for word in np.unique(inside)]


def aligned(wrong: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """The target of each of a wrong word's N tokens, [N]; None if the right word has more."""
    # The tokens that both words begin and end with stay; those between are the right word's, in
    # order, and then `NOTHING_ID`.
    if len(right) > len(wrong):
        return None
    same = wrong[: len(right)] == right
    first = int(np.argmin(same)) if not same.all() else len(right)
    behind = wrong[::-1][: len(right) - first] == right[::-1][: len(right) - first]
    last = int(np.argmin(behind)) if not behind.all() else len(behind)
    if not first and len(right):
        last = min(last, len(right) - 1)  # A word begins with its first token.
    nothing = np.full(len(wrong) - len(right), NOTHING_ID, wrong.dtype)
    return np.concatenate([right[: len(right) - last], nothing, right[len(right) - last :]])


class _Feed:
    """The batches of a run, as the loop of pretraining takes them."""

    def __init__(
        self, config: PretrainingConfig, examples: Examples, rows: Rows, batch_size: int
    ) -> None:
        self.stages = stages(config)
        self._size, self._examples, self._rows = batch_size, examples, rows

    def training(self, step: int) -> tf.data.Dataset:
        """The batches from a step on."""
        size, batch = self._size, self._rows([self._examples[0]])
        shapes = {
            name: tf.TensorSpec([size, *value.shape[1:]], tf.as_dtype(value.dtype))
            for name, value in batch.items()
        }

        def batches() -> Iterator[dict[str, np.ndarray]]:
            for number in itertools.count(step):
                chosen = range(number * size, (number + 1) * size)
                yield self._rows([self._examples[i] for i in chosen])

        return tf.data.Dataset.from_generator(batches, output_signature=shapes).prefetch(4)

    def validation(self, step: int) -> None:
        """None, for no batches: `scripts/evaluate_corrections.py` scores the results."""

    def sequences_by_dataset(self) -> None:
        """None, as there is one dataset."""


def finetune_correction(
    config: PretrainingConfig,
    preset: str,
    examples: Examples,
    model_dir: str,
    source: str = "",
) -> str:
    """Fine-tunes a preset on corrections, or resumes where an earlier call stopped.

    Args:
        config: Of `objective`, `data`, `optimizer`, `trainer` and `runtime`, what pretraining takes
            from them; `data.mask_fraction` is the largest share of a row that the LM head learns
            from. The model is the preset's, but for `model.dropout`.
        preset: A local folder, with its heads or without.
        examples: What to learn from.
        model_dir: Gets `config.yaml`, `metrics.jsonl`, `checkpoints/` and, at the end, `preset/`,
            which has the main model, its tokenizer and its heads.
        source: Where the examples come from, for the model card.

    Returns:
        The path of the preset that was written.

    Raises:
        UserError: If the preset is none, or the run in `model_dir` is another.
        RestartableError: If SIGTERM ends the run; called again, it resumes.

    Example:
    ```python
    config = load_config("configs/finetune/correction.yaml", "data.sequence_length=64")
    examples = Examples(passages, maker)
    finetune_correction(config, "runs/first/preset", examples, "runs/corrector")
    ```
    """
    tokenizer = load_vocabulary(preset)
    sizes = backbone_config(preset)
    if config.data.sequence_length > sizes["max_sequence_length"]:
        raise UserError(
            f"data.sequence_length={config.data.sequence_length} is more than the model's "
            f"{sizes['max_sequence_length']} positions."
        )
    if not (config.objective.copy_weight and config.objective.lm_weight):
        raise UserError(
            "objective.copy_weight and objective.lm_weight must be more than 0: one head finds "
            "what is wrong, the other what is right."
        )
    if config.data.sequence_length_schedule:
        raise UserError("data.sequence_length_schedule: rows of corrections have one length.")
    if config.trainer.batch_size_schedule:
        raise UserError("trainer.batch_size_schedule: batches of corrections have one size.")
    of_preset = {key: sizes[key] for key in ARCHITECTURE if hasattr(config.model, key)}
    config.model.override(of_preset)
    _check_same_run(model_dir, config, preset, examples)
    strategy = make_strategy("one_device")
    size = per_replica_batch(config.trainer.batch_size, config.trainer.micro_batches, strategy)
    workers, stop = Workers(strategy), StopSignal()
    with stop:
        with strategy.scope():
            trainer = _build(config, preset, tokenizer)
        save_config(config, os.path.join(model_dir, "config.yaml"))
        folder = os.path.join(model_dir, "checkpoints")
        checkpoints = Checkpoints(folder, trainer, config.trainer.max_checkpoints, 0, workers)
        checkpoints.restore()
        slots = max(1, round(config.data.sequence_length * config.data.mask_fraction))
        rows = Rows(tokenizer, config.data.sequence_length, slots)
        feed = _Feed(config, examples, rows, size)
        with stop.deferred():
            train(trainer, config, model_dir, feed, checkpoints, workers, stop)
    written = os.path.join(model_dir, "preset")
    save_preset(trainer, tokenizer, written, _facts(config, preset, source, len(examples)))
    return written


def _build(config: PretrainingConfig, preset: str, tokenizer: CocoLMTokenizer) -> CorrectionTrainer:
    backbone = CocoLMBackbone.from_preset(
        preset,
        load_weights=False,
        dropout=config.model.dropout,
        dtype=config.runtime.precision,
        name="main",
    )
    objective, runtime = config.objective, config.runtime
    trainer = CorrectionTrainer(
        backbone,
        tokenizer.mask_token_id,
        copy_weight=objective.copy_weight,
        lm_weight=objective.lm_weight,
        use_copy=objective.use_copy,
        stop_gradient=objective.stop_gradient,
        seed=runtime.seed,
        logit_chunk_rows=runtime.logit_chunk_rows,
    )
    if missing := load_preset(trainer, preset):
        print(f"Not in {preset}, so initialized afresh: {', '.join(missing)}.")
    compile_pretrainer(trainer, config, config.trainer.steps_per_loop)
    return trainer


def _check_same_run(
    model_dir: str, config: PretrainingConfig, preset: str, examples: Examples
) -> None:
    """Refuses to resume a run that learned from something else, by the first difference."""
    now = {
        "--preset": fingerprint(preset),
        "the texts": examples.fingerprint(),
        "runtime.seed": config.runtime.seed,
        "trainer.batch_size": config.trainer.batch_size,
        "data.sequence_length": config.data.sequence_length,
    }
    path = os.path.join(model_dir, _RUN_FILENAME)
    if files.is_file(path):
        before = json.loads(files.read_text(path))
        for key, value in now.items():
            if before.get(key) != value:
                raise UserError(
                    f"--model_dir={model_dir} has a run with {key}={before.get(key)}, not "
                    f"{value}: give what it was begun with to go on, or another --model_dir."
                )
    else:
        files.make_dirs(model_dir)
        files.write_text(path, json.dumps(now, indent=2) + "\n")


def _facts(config: PretrainingConfig, preset: str, source: str, count: int) -> Facts:
    settings = flat(config.as_dict())
    shown = ("objective.copy_weight", "objective.lm_weight", "runtime.seed", "runtime.precision")
    sections = ("optimizer.", "trainer.", "data.sequence_length")
    return Facts(
        name=files.name(os.path.dirname(files.absolute(preset))) + " for corrections",
        description="COCO-LM's main model with its copy head and LM head, fine-tuned to say which "
        "words of a text do not belong, and what they should be.",
        pipeline_tag="token-classification",
        base_model=preset,
        direct_use="Correcting texts, by the signature `correct` of its export.",
        limitations="It corrects words, and takes words out; it puts none in, and makes none that "
        "has more tokens than what stands there. It has seen no mistakes but those it was trained "
        "on.",
        training_data=f"{count:,} texts: {source}.",
        settings={k: v for k, v in settings.items() if k in shown or k.startswith(sections)},
    )
