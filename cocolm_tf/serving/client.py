"""A client of an export: asks it about texts and files of texts, and formats its answers.

It loads an export as any program with TensorFlow Text can.
"""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (its operations are in the graph)
from tqdm import tqdm

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
# Ends the name of a file of answers that is not complete.
UNFINISHED = ".unfinished"

# An answer to one text, in types of JSON.
Answer = dict[str, Any]

_RESET = "\x1b[0m"
_STYLES = {"bold": "\x1b[1m", "dim": "\x1b[2m", "red": "\x1b[1m\x1b[31m", "green": "\x1b[32m"}
_BAR_WIDTH = 24


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

    def answers(self, signature: str, **inputs: Any) -> Iterator[Answer]:
        """Asks a signature as a call does, and gives its outputs text by text, as JSON has them.

        Args:
            signature: Its name.
            **inputs: By name.

        Returns:
            For each text its outputs by name, without padding and without the number of words or
            spans, which is their length then.
        """
        outputs = self(signature, **inputs)
        widths = outputs.pop("num_words", outputs.pop("num_spans", None))
        columns = {}
        for name, values in outputs.items():
            if values.dtype == object:
                decode = np.vectorize(lambda x: x.decode("utf-8", "replace"), otypes=[object])
                values = decode(values)
            elif values.dtype.kind == "f":
                # The shortest decimals that are this float32.
                values = values.astype(str).astype(np.float64)
            columns[name] = values
        for row in range(len(outputs["truncated"])):
            width = None if widths is None else int(widths[row])
            yield {
                # A slice, since an element of strings has no `item`.
                name: values[row, :width].tolist() if values.ndim > 1 else values[row:][:1].item()
                for name, values in columns.items()
            }


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


# --- Files of texts ---


def answer_file(
    export: Export, signature: str, input_path: str, output_path: str, batch_size: int = 32
) -> int:
    """Answers a file of JSON lines, one line for each, in constant memory; returns their number."""
    # Input lines are JSON strings, or objects with the signature's inputs, whose other keys are
    # copied to the answer, such as an id. Output lines are objects of the signature's outputs,
    # without padding. The output has another name until the last answer is there; when interrupted,
    # the same call resumes after the last whole line.
    if not files.is_file(input_path):
        raise UserError(f"--input={input_path} is not a file.")
    if files.is_remote(output_path):
        raise UserError(f"--output={output_path} must be a local file: it grows line by line.")
    if files.exists(output_path):
        raise UserError(f"--output={output_path} is there already: give another name.")
    partial = output_path + UNFINISHED
    identity_path = f"{partial}.json"
    identity = {
        "export": files.absolute(export.path),
        "signature": signature,
        "input": files.absolute(input_path),
        "input_bytes": files.size(input_path),
    }
    done = 0
    if files.exists(partial):
        _check_identity(partial, identity_path, identity)
        done = _whole_lines(partial)
    else:
        files.write_text(identity_path, json.dumps(identity))
    with (
        files.open_read(input_path) as lines,
        files.open_append(partial) as output,
        tqdm(total=files.size(input_path), unit="B", unit_scale=True, desc=signature) as progress,
    ):
        numbered = enumerate(lines, 1)
        for _, line in itertools.islice(numbered, done):
            progress.update(len(line))
        while batch := list(itertools.islice(numbered, batch_size)):
            rows = [_parsed(input_path, number, line, signature) for number, line in batch]
            inputs = {name: [row.pop(name) for row in rows] for name in TEXT_INPUTS[signature]}
            answers = export.answers(signature, **inputs)
            written = [
                json.dumps(row | answer, ensure_ascii=False) + "\n"
                for row, answer in zip(rows, answers, strict=True)
            ]
            # A key that goes to the answer as it is may have half a pair, which is no UTF-8.
            output.write("".join(written).encode("utf-8", "replace").decode())
            output.flush()
            done += len(batch)
            progress.update(sum(len(line) for _, line in batch))
        os.fsync(output.fileno())
    files.rename(partial, output_path)
    files.remove(identity_path)
    return done


def _parsed(path: str, number: int, line: bytes, signature: str) -> dict[str, Any]:
    names = TEXT_INPUTS[signature]
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error}).") from error
    if isinstance(row, str) and len(names) == 1:
        return {names[0]: row}
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
        wanted = " and ".join(map(repr, names))
        alone = "a string, or " if len(names) == 1 else ""
        raise UserError(
            f"{path}, line {number}: {signature} takes {alone}an object with the text(s) {wanted}."
        )
    return row


def _check_identity(partial: str, path: str, identity: dict[str, Any]) -> None:
    begun = json.loads(files.read_text(path)) if files.exists(path) else {}
    for name, value in identity.items():
        if begun.get(name) != value:
            raise UserError(
                f"{partial} was begun with {name} {begun.get(name)}, and this is {value}: "
                "remove it to begin anew."
            )


def _whole_lines(path: str) -> int:
    """Counts the lines of a file, and cuts off what follows the last line feed."""
    count = end = 0
    with files.open_read(path) as file:
        for line in file:
            if line.endswith(b"\n"):
                count += 1
                end += len(line)
    os.truncate(path, end)
    return count


# --- Answers for a terminal ---


class Printer:
    """Formats answers; words are marked from a `threshold` of not belonging on."""

    def __init__(self, color: bool, threshold: float = 0.5) -> None:
        self._color = color
        self._threshold = threshold

    def __call__(self, kind: str, texts: Sequence[str], answers: Sequence[Answer]) -> str:
        """Formats the answers of `embed`, `correct`, `classify`, `answer` or `tag`."""
        format_one = getattr(self, f"_{kind}")
        blocks = []
        for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            heading = f"{self._styled('bold', f'[{number}]')} {text}" if kind == "embed" else text
            lines = format_one(heading, answer)
            if answer["truncated"]:
                lines.append(self._styled("dim", "  The text is too long: its end was not read."))
            blocks.append("\n".join(lines))
        if kind == "embed":
            return "\n".join([*blocks, *self._cosines(answers)])
        return ("\n" if "values" in answers[0] else "\n\n").join(blocks)

    def _embed(self, heading: str, answer: Answer) -> list[str]:
        return [heading]

    def _cosines(self, answers: Sequence[Answer]) -> list[str]:
        """The cosines of all texts; of a single one, the beginning of its vector."""
        vectors = np.array([answer["embeddings"] for answer in answers])
        if len(vectors) == 1:
            numbers = " ".join(f"{x:.4f}" for x in vectors[0, :8])
            return [f"{vectors.shape[1]} dimensions: {numbers} ..."]
        lines = ["", "cosine  " + "".join(f"{f'[{row}]':>8}" for row in range(len(vectors)))]
        for row, cosines in enumerate(vectors @ vectors.T):
            lines.append(f"{f'[{row}]':8}" + "".join(f"{cosine:8.3f}" for cosine in cosines))
        return lines

    def _classify(self, text: str, answer: Answer) -> list[str]:
        """The classes, the most probable first, or the predicted number."""
        if "values" in answer:
            value = self._styled("bold", f"{answer['values']:8.3f}")
            return [f"{value}  {text}"]
        lines, probabilities = [text], np.array(answer["probabilities"])
        for index in np.argsort(-probabilities):
            bar = "█" * round(_BAR_WIDTH * probabilities[index])
            name = answer["labels"][index]
            if "assigned" in answer and answer["assigned"][index]:
                name = f"{self._styled('bold', name)} ✓"
            bar = self._styled("green", f"{bar:{_BAR_WIDTH}}")
            lines.append(f"  {probabilities[index]:6.1%} {bar} {name}")
        return lines

    def _answer(self, text: str, answer: Answer) -> list[str]:
        found = answer["answers"]
        verdict = self._styled("dim", f"none, or {found}")
        if answer["answerable"]:
            verdict = self._styled("green", found)
        scores = (
            f"  score {answer['scores']:.2f}, of no answer {answer['no_answer_scores']:.2f}, "
            f"characters {answer['starts']} to {answer['ends']}"
        )
        return [text, f"  {verdict}", self._styled("dim", scores)]

    def _tag(self, text: str, answer: Answer) -> list[str]:
        """The labeled spans, a line for each."""
        lines = [text]
        columns = (answer[name] for name in ("starts", "ends", "labels", "scores"))
        for start, end, label, score in zip(*columns, strict=True):
            span = self._styled("green", text[start:end])
            place = self._styled("dim", f"characters {start} to {end}")
            lines.append(f"  {score:4.0%} {self._styled('bold', label)} {span}  {place}")
        return lines if len(lines) > 1 else [text, self._styled("dim", "  Nothing has a label.")]

    def _correct(self, text: str, answer: Answer) -> list[str]:
        """The text with its suspicious words marked, followed by their corrections."""
        marked, notes, end = [], [], 0
        for word in words_of(answer):
            if word["probability"] < self._threshold:
                continue
            written = text[word["start"] : word["end"]]
            in_red = self._styled("red", written)
            marked += [text[end : word["start"]], in_red if self._color else f"[{written}]"]
            end = word["end"]
            options = ", ".join(
                f"{self._styled('green', option or '(nothing)')} {share:.0%}"
                for option, share in word["corrections"]
            )
            notes.append(f"  {word['probability']:4.0%} {in_red} → {options}")
        if not answer["words"]:
            is_cut = answer["truncated"]
            note = "The first word is too long to be read." if is_cut else "There is no word."
            notes = [self._styled("dim", f"  {note}")]
        elif not notes:
            notes = [self._styled("dim", "  Every word belongs.")]
        return ["".join([*marked, text[end:]]), *notes]

    def _styled(self, style: str, text: str) -> str:
        return f"{_STYLES[style]}{text}{_RESET}" if self._color else text


def words_of(answer: Answer) -> Iterator[dict[str, Any]]:
    """The words of an answer of `correct`, each with its corrections and their probabilities."""
    names = ("starts", "ends", "probabilities", "corrections", "correction_probabilities")
    for start, end, probability, options, shares in zip(*map(answer.get, names), strict=True):
        corrections = [(x, share) for x, share in zip(options, shares, strict=True) if share > 0]
        yield {
            "start": start,
            "end": end,
            "probability": probability,
            "corrections": corrections,
        }
