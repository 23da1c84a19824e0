"""Texts that belong together: pairs to learn embeddings from, and retrieval to measure them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cocolm_tf import files
from cocolm_tf.data.examples import SPLIT_SEED, check_dev_fraction, selected
from cocolm_tf.data.tables import FORMATS, Table, checked_rows, number_parser, read_table
from cocolm_tf.errors import UserError
from cocolm_tf.text_files import COMPRESSED_SUFFIXES

_CORPUS_COLUMNS, _TITLE = ("_id", "text"), "title"
_JUDGMENT_COLUMNS = ("query-id", "corpus-id", "score")


@dataclasses.dataclass(frozen=True)
class TextPairs:
    """Pairs of texts, with hard negatives or similarities where wanted.

    Args:
        columns: The first texts, the second texts, and any number of hard negatives.
        scores: [N] float32 from -1 to 1, how similar the two texts of a pair are; None where they
            belong together.
        source: Where the pairs come from, for people.
        left_out: A line for each kind of rows that were left out, for people.

    Example:
    ```python
    TextPairs((["Who sat?"], ["The cat sat."], ["The cat sang."]))
    ```
    """

    columns: tuple[Sequence[str], ...]
    scores: np.ndarray | None = None
    source: str = ""
    left_out: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.columns[0])

    def select(self, indices: Sequence[int] | np.ndarray) -> "TextPairs":
        """Some of the pairs, in the order wanted."""
        return dataclasses.replace(
            self,
            columns=tuple(selected(column, indices) for column in self.columns),
            scores=selected(self.scores, indices),
        )

    def split(self, fraction: float) -> tuple["TextPairs", "TextPairs"]:
        """Samples a share of the pairs, always the same; returns the rest and the share."""
        # No text is in both: pairs that share their first text stay together.
        check_dev_fraction(fraction)
        _, groups = np.unique(np.array(self.columns[0], object).astype(str), return_inverse=True)
        order = np.random.default_rng(SPLIT_SEED).permutation(groups.max() + 1)
        drawn = order[: round(fraction * len(order))]
        is_drawn = np.isin(groups, drawn)
        if not len(drawn) or is_drawn.all():
            raise UserError(
                f"{self.source} has {len(order)} different first texts, too few to split a dev set "
                "off: give a --dev_file."
            )
        return self.select(np.flatnonzero(~is_drawn)), self.select(np.flatnonzero(is_drawn))


def read_pairs(
    path: str,
    columns: Sequence[str],
    score_column: str = "",
    score_range: tuple[float, float] = (0.0, 1.0),
    max_bad_share: float = 0.0,
    encoding: str = "",
    delimiter: str = "",
) -> TextPairs:
    """Reads pairs from TSV, CSV or JSON lines.

    Args:
        path: The table, see `read_table`.
        columns: Its columns of the first and the second texts, and of hard negatives.
        score_column: The column that says how similar the texts are; none where they belong
            together.
        score_range: The scores of texts that have nothing in common, and of texts that mean the
            same: they become 0 and 1.
        max_bad_share: The share of the rows that may be left out, as their columns, scores
            or texts are missing or wrong.
        encoding: Of the file, see `text_lines`.
        delimiter: Between its columns, see `read_table`.

    Returns:
        The pairs.

    Raises:
        UserError: If the file or a column is missing, or a row is wrong.

    Example:
    ```python
    read_pairs("STS-B/train.tsv", ["sentence1", "sentence2"], "score", (0, 5))
    ```
    """
    low, high = score_range
    if not low < high:
        raise UserError(f"--score_range={low:g},{high:g} must be ascending.")
    names = [*columns, *filter(None, [score_column])]
    table = read_table(path, names, encoding=encoding, delimiter=delimiter)
    parse = number_parser((low, high)) if score_column else None
    texts, scores, _, left_out = checked_rows(table, len(columns), parse, max_bad_share)
    return TextPairs(
        tuple(map(list, zip(*texts, strict=True))),
        np.float32((np.array(scores) - low) / (high - low)) if score_column else None,
        path,
        left_out,
    )


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """A corpus to search, queries, and which documents answer them.

    Args:
        documents: The corpus, by the documents' ids.
        queries: Those that have judgments, by their ids.
        relevance: For each query the documents that are relevant, and how much: 1 or more.
        source: Where they come from, for people.

    Example:
    ```python
    Retrieval({"d1": "A cat sat."}, {"q1": "Who sat?"}, {"q1": {"d1": 1}})
    ```
    """

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]
    source: str = ""


def read_retrieval(folder: str, part: str = "test") -> Retrieval:
    """Reads a corpus, queries and judgments, laid out as BEIR's datasets are.

    - `corpus.jsonl`: `_id`, `text` and, where there are such, `title`, which comes before the text.
    - `queries.jsonl`: `_id`, `text`.
    - `qrels/PART.tsv`: `query-id`, `corpus-id`, `score`, a whole number; 0 is not relevant.

    All three may be `.jsonl`, `.tsv` or `.csv` with these columns, and compressed.

    Args:
        folder: Where they lie.
        part: The judgments to read, as `test` or `dev`. Queries without any are left out.

    Returns:
        The documents, the queries and their relevant documents.

    Raises:
        UserError: Naming the file and the line that is missing or wrong.

    Example:
    ```python
    read_retrieval("datasets/scifact").queries
    ```
    """
    documents = _texts(_table(folder, "corpus", _CORPUS_COLUMNS, [_TITLE]))
    queries = _texts(_table(folder, "queries", _CORPUS_COLUMNS))
    judgments = _table(folder, files.join("qrels", part), _JUDGMENT_COLUMNS)
    relevance: dict[str, dict[str, int]] = {}
    for line, (query, document, score) in zip(judgments.lines, judgments.rows, strict=True):
        where = f"{judgments.path}:{line}"
        for found, known, kind in ((query, queries, "query"), (document, documents, "document")):
            if found not in known:
                raise UserError(f"{where} names the {kind} {found!r}, which is not there.")
        if not score.strip().isdecimal():
            raise UserError(f"{where} has the score {score!r}, not a whole number from 0 up.")
        if int(score):
            relevance.setdefault(query, {})[document] = int(score)
    if not relevance:
        raise UserError(f"{judgments.path} has no document that is relevant to any query.")
    asked = {name: text for name, text in queries.items() if name in relevance}
    return Retrieval(documents, asked, relevance, folder)


def retrieval_files(folder: str, part: str) -> list[str]:
    """The paths of the files that `read_retrieval` reads."""
    return [_path(folder, name) for name in ("corpus", "queries", files.join("qrels", part))]


def retrieval_of_pairs(pairs: TextPairs) -> Retrieval:
    """The search for each first text's second texts among those of all pairs."""
    documents = {text: str(number) for number, text in enumerate(dict.fromkeys(pairs.columns[1]))}
    queries = {
        text: f"query {number}" for number, text in enumerate(dict.fromkeys(pairs.columns[0]))
    }
    relevance: dict[str, dict[str, int]] = {}
    for first, second in zip(*pairs.columns[:2], strict=True):
        relevance.setdefault(queries[first], {})[documents[second]] = 1
    return Retrieval(
        {name: text for text, name in documents.items()},
        {name: text for text, name in queries.items()},
        relevance,
        pairs.source,
    )


def _table(folder: str, name: str, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    table = read_table(_path(folder, name), columns, optional=optional)
    if table.bad_rows:
        line, reason = table.bad_rows[0]
        raise UserError(f"{table.path}:{line} {reason}.")
    return table


def _path(folder: str, name: str) -> str:
    endings = [kind + suffix for kind in FORMATS for suffix in ("", *COMPRESSED_SUFFIXES)]
    found = [path for end in endings if files.is_file(path := files.join(folder, name + end))]
    if len(found) != 1:
        shown = ", ".join(map(files.name, found)) or "none"
        raise UserError(
            f"{folder} has {shown} of {name}{{{','.join(FORMATS)}}}: it needs one of them."
        )
    return found[0]


def _texts(table: Table) -> dict[str, str]:
    texts: dict[str, str] = {}
    for line, (name, text, *title) in zip(table.lines, table.rows, strict=True):
        if name in texts:
            raise UserError(f"{table.path}:{line} has the _id {name!r} for the second time.")
        texts[name] = " ".join(filter(None, [*title, text])).strip()
    return texts
