"""A client of an export: loads it as any program with TensorFlow Text can, and formats answers."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (its operations are in the graph)

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.normalization import as_string_tensor

SAVED_MODEL_FILENAME = "saved_model.pb"
# The signatures that take raw texts, and their inputs.
TEXT_INPUTS = {
    "embed": ("texts",),
    "correct": ("texts",),
    "correct_tsv": ("texts",),
    "classify": ("texts",),
    "classify_pairs": ("first", "second"),
    "answer": ("questions", "contexts"),
    "tag": ("texts",),
    "tag_tsv": ("texts",),
}

Outputs = dict[str, np.ndarray]

_RESET, _BOLD, _DIM = "\x1b[0m", "\x1b[1m", "\x1b[2m"
_RED, _GREEN = "\x1b[31m", "\x1b[32m"
_BAR = 24


class Export:
    """A SavedModel that `scripts/export_saved_model.py` wrote.

    Args:
        directory: The folder of all versions, of which the highest is loaded, as TensorFlow Serving
            does; or one version's.

    Raises:
        UserError: If there is no SavedModel.

    Example:
    ```python
    export = Export("exports/first")
    export("embed", texts=["A cat sat.", "A dog sat."])["embeddings"]
    ```
    """

    def __init__(self, directory: str) -> None:
        self.path = find_version(directory)
        try:
            self._model = tf.saved_model.load(self.path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path} cannot be loaded: {reason}") from error

    @property
    def signatures(self) -> list[str]:
        """The names of the signatures that take raw texts."""
        return [name for name in TEXT_INPUTS if name in self._model.signatures]

    @property
    def default(self) -> str:
        """The signature that is `serving_default`, as far as its inputs and outputs show."""
        default = self._model.signatures[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY]
        for name in self.signatures:
            signature = self._model.signatures[name]
            if (signature.structured_input_signature, signature.structured_outputs.keys()) == (
                default.structured_input_signature,
                default.structured_outputs.keys(),
            ):
                return name
        raise UserError(f"{self.path} has no signature that takes texts.")

    def __call__(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Asks a signature.

        Args:
            signature: Its name.
            **inputs: By name; lists of strings, or of ids for the signatures that take these.

        Returns:
            The outputs as arrays; strings are bytes.

        Raises:
            UserError: If there is no such signature.
        """
        if signature not in self._model.signatures:
            raise UserError(
                f"{self.path} has no signature {signature!r}, but {', '.join(self.signatures)}."
            )
        function = self._model.signatures[signature]
        specs = function.structured_input_signature[1]
        tensors = {
            name: as_string_tensor(value)
            if specs[name].dtype == tf.string
            else tf.constant(value, specs[name].dtype)
            for name, value in inputs.items()
        }
        return {name: value.numpy() for name, value in function(**tensors).items()}


def find_version(directory: str) -> str:
    """The folder of the SavedModel that `Export` loads; UserError if there is none."""
    if not files.is_dir(directory):
        raise UserError(f"{directory} is not a folder.")
    if files.is_file(os.path.join(directory, SAVED_MODEL_FILENAME)):
        return directory
    versions = [
        name
        for name in files.list_dir(directory)
        if name.isdecimal() and files.is_file(os.path.join(directory, name, SAVED_MODEL_FILENAME))
    ]
    if not versions:
        raise UserError(f"{directory} has no SavedModel, nor a version of one.")
    return os.path.join(directory, max(versions, key=int))


class Printer:
    """Formats answers; words are marked from a `threshold` of not belonging on."""

    def __init__(self, color: bool, threshold: float = 0.5) -> None:
        self._color = color
        self._threshold = threshold

    def correct(self, texts: Sequence[str], outputs: Outputs) -> str:
        """Texts with their suspicious words marked, each followed by its corrections."""
        return "\n\n".join(self._corrected(text, outputs, row) for row, text in enumerate(texts))

    def embed(self, texts: Sequence[str], outputs: Outputs) -> str:
        """The cosines of texts; of a single one, the beginning of its vector."""
        vectors = outputs["embeddings"]
        lines = []
        for row, text in enumerate(texts):
            lines += [f"{self._bold(f'[{row}]')} {text}", *self._truncated(outputs, row)]
        if len(texts) == 1:
            numbers = " ".join(f"{x:.4f}" for x in vectors[0, :8])
            return "\n".join([*lines, f"{vectors.shape[1]} dimensions: {numbers} ..."])
        lines += ["", "cosine  " + "".join(f"{f'[{row}]':>8}" for row in range(len(texts)))]
        for row, cosines in enumerate(vectors @ vectors.T):
            lines.append(f"{f'[{row}]':8}" + "".join(f"{cosine:8.3f}" for cosine in cosines))
        return "\n".join(lines)

    def classify(self, texts: Sequence[str], outputs: Outputs) -> str:
        """The classes of texts, the most probable first, or the predicted number."""
        blocks = []
        if "values" in outputs:
            for row, (text, value) in enumerate(zip(texts, outputs["values"], strict=True)):
                line = f"{self._bold(f'{value:8.3f}')}  {text}"
                blocks.append("\n".join([line, *self._truncated(outputs, row)]))
            return "\n".join(blocks)
        for row, text in enumerate(texts):
            names, probabilities = outputs["labels"][row], outputs["probabilities"][row]
            lines = [text, *self._truncated(outputs, row)]
            for index in np.argsort(-probabilities):
                bar = "█" * round(_BAR * float(probabilities[index]))
                name = names[index].decode("utf-8", "replace")
                is_said = "assigned" in outputs and outputs["assigned"][row, index]
                name = f"{self._bold(name)} ✓" if is_said else name
                lines.append(f"  {probabilities[index]:6.1%} {self._green(f'{bar:{_BAR}}')} {name}")
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def answer(self, texts: Sequence[str], outputs: Outputs) -> str:
        """Questions with their answers."""
        blocks = []
        for row, text in enumerate(texts):
            score, no_answer = outputs["scores"][row], outputs["no_answer_scores"][row]
            answer = outputs["answers"][row].decode("utf-8", "replace")
            place = f"characters {outputs['starts'][row]} to {outputs['ends'][row]}"
            is_answered = outputs["answerable"][row]
            verdict = self._green(answer) if is_answered else self._dim(f"none, or {answer}")
            scores = f"  score {score:.2f}, of no answer {no_answer:.2f}, {place}"
            lines = [text, f"  {verdict}", self._dim(scores), *self._truncated(outputs, row)]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def tag(self, texts: Sequence[str], outputs: Outputs) -> str:
        """Texts with their labeled spans, a line for each."""
        blocks = []
        for row, text in enumerate(texts):
            lines = [text, *self._truncated(outputs, row)]
            for index in range(outputs["num_spans"][row]):
                start, end = (int(outputs[side][row, index]) for side in ("starts", "ends"))
                label = outputs["labels"][row, index].decode("utf-8", "replace")
                score = f"{outputs['scores'][row, index]:4.0%}"
                place = self._dim(f"characters {start} to {end}")
                lines.append(
                    f"  {score} {self._bold(label)} {self._green(text[start:end])}  {place}"
                )
            if not outputs["num_spans"][row]:
                lines.append(self._dim("  Nothing has a label."))
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def _corrected(self, text: str, outputs: Outputs, row: int) -> str:
        marked, notes, end = [], [], 0
        for index in range(outputs["num_words"][row]):
            probability = float(outputs["probabilities"][row, index])
            if probability < self._threshold:
                continue
            start, next_end = int(outputs["starts"][row, index]), int(outputs["ends"][row, index])
            word = text[start:next_end]
            marked += [text[end:start], self._red(word) if self._color else f"[{word}]"]
            end = next_end
            found = zip(
                outputs["corrections"][row, index],
                outputs["correction_probabilities"][row, index],
                strict=True,
            )
            options = ", ".join(
                f"{self._green(option.decode('utf-8', 'replace') or '(nothing)')} {share:.0%}"
                for option, share in found
                if share > 0
            )
            notes.append(f"  {probability:4.0%} {self._red(word)} → {options}")
        lines = ["".join([*marked, text[end:]]), *notes]
        if outputs["num_words"][row] == 0:
            is_cut = outputs["truncated"][row]
            told = "The first word is too long to be read." if is_cut else "There is no word."
            return "\n".join([*lines, self._dim(f"  {told}")])
        if not notes:
            lines.append(self._dim("  Every word belongs."))
        return "\n".join([*lines, *self._truncated(outputs, row)])

    def _truncated(self, outputs: Outputs, row: int) -> list[str]:
        told = "  The text is too long: its end was not read."
        return [self._dim(told)] if outputs["truncated"][row] else []

    def _bold(self, text: str) -> str:
        return self._styled(text, _BOLD)

    def _dim(self, text: str) -> str:
        return self._styled(text, _DIM)

    def _red(self, text: str) -> str:
        return self._styled(text, _BOLD + _RED)

    def _green(self, text: str) -> str:
        return self._styled(text, _GREEN)

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{_RESET}" if self._color else text
