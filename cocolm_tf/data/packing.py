"""Documents of any length into sequences of one length."""

from collections.abc import Sequence


class SequencePacker:
    """Cuts a stream of documents into sequences that are as full as can be.

    A sequence is `<s> content </s>`. Inside it `</s>` stands between two documents, and a document
    that does not fit goes on in the next sequence, so that every token of every document is in
    exactly one sequence and in its order. (A `</s>` that would fall on the last place for content
    is left out, and that sequence is one token short.)

    Args:
        sequence_length: The most tokens of a sequence, `<s>` and `</s>` included; at least 3.
        start_token_id: The id of `<s>`.
        end_token_id: The id of `</s>`.

    Example:
    ```python
    packer = SequencePacker(sequence_length=6, start_token_id=0, end_token_id=2)
    packer.add([11, 12])  # []
    packer.add([21, 22, 23])  # [[0, 11, 12, 2, 21, 2]]
    packer.flush()  # [[0, 22, 23, 2]]
    ```
    """

    def __init__(self, sequence_length: int, start_token_id: int, end_token_id: int):
        self._start, self._end = [start_token_id], [end_token_id]
        self._full = sequence_length - 1  # What remains is for the last `</s>`.
        self._open = list(self._start)

    def add(self, document: Sequence[int]) -> list[list[int]]:
        """Adds one document.

        Args:
            document: Its token ids, without special tokens.

        Returns:
            The sequences that it filled, none for most short documents.
        """
        filled = []
        if document and len(self._open) > 1:
            if len(self._open) + 1 < self._full:
                self._open += self._end
            else:
                filled += self.flush()
        position = 0
        while position < len(document):
            room = self._full - len(self._open)
            self._open += document[position : position + room]
            position += room
            if len(self._open) == self._full:
                filled += self.flush()
        return filled

    def flush(self) -> list[list[int]]:
        """Closes the sequence under way.

        Returns:
            That sequence, or nothing if it has no content yet.
        """
        closed = [self._open + self._end] if len(self._open) > 1 else []
        self._open = list(self._start)
        return closed
