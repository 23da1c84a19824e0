"""Formats an export's answers for a terminal."""

from collections.abc import Sequence

import numpy as np

Outputs = dict[str, np.ndarray]

_RESET, _BOLD, _DIM = "\x1b[0m", "\x1b[1m", "\x1b[2m"
_RED, _GREEN = "\x1b[31m", "\x1b[32m"
_BAR = 24


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
