"""How well a search by vectors finds what it should."""

from collections.abc import Mapping, Sequence

import numpy as np

RANKS = (1, 10, 100)
RETRIEVAL_METRICS = ("ndcg@10", *(f"recall@{rank}" for rank in RANKS), "mrr@10")
# How many scores are there at a time.
_SCORES_AT_ONCE = 1 << 24


def nearest(queries: np.ndarray, documents: np.ndarray, count: int) -> np.ndarray:
    """Searches.

    Args:
        queries: [Q, D] float32, vectors of unit length.
        documents: [N, D].
        count: int. How many to find of each query's; all where there are fewer.

    Returns:
        [Q, count] the numbers of the documents with the greatest inner products, the greatest
        first, and of equal ones the first.

    Example:
    ```python
    nearest(np.eye(2, 3), np.eye(3), 1)  # [[0], [1]]
    ```
    """
    count = min(count, len(documents))
    found = np.empty([len(queries), count], np.int64)
    rows = max(1, _SCORES_AT_ONCE // len(documents))
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ documents.T
        # All that reach the last place's score, so that ties are not decided by the partition.
        least = np.partition(scores, len(documents) - count, axis=1)[:, len(documents) - count]
        for row, (one, bound) in enumerate(zip(scores, least, strict=True), start):
            places = np.flatnonzero(one >= bound)
            found[row] = places[np.argsort(-one[places], kind="stable")][:count]
    return found


def retrieval_scores(
    rankings: Mapping[str, Sequence[str]],
    relevance: Mapping[str, Mapping[str, int]],
    ranks: Sequence[int] = RANKS,
) -> dict[str, float]:
    """Scores rankings as `trec_eval` does, and BEIR with it.

    Args:
        rankings: For each query the ids of the documents that were found, the best first.
        relevance: For each query how relevant documents are, 1 or more; those not named are not.
        ranks: The numbers of first documents whose recall counts.

    Returns:
        `ndcg@10`, in which a document gains its relevance over log2(1 + its rank), and the whole is
        divided by the best possible; `recall@K`, the share of the relevant documents among the
        first K, for each of `ranks`; `mrr@10`, the inverse rank of the first relevant document, 0
        where it is not among the first 10. All are means over the queries.

    Example:
    ```python
    retrieval_scores({"q": ["b", "a"]}, {"q": {"a": 1}})["ndcg@10"]  # 1 / log2(3)
    ```
    """
    discounts = 1 / np.log2(np.arange(2, 12))
    rows = []
    for query, relevant in relevance.items():
        gains = np.array([relevant.get(document, 0) for document in rankings[query]], float)
        best = np.sort([*relevant.values()])[::-1][:10]
        is_found = gains[:10] > 0
        rows.append(
            [
                gains[:10] @ discounts[: len(gains[:10])] / (best @ discounts[: len(best)]),
                *((gains[:rank] > 0).sum() / len(relevant) for rank in ranks),
                1 / (1 + is_found.argmax()) if is_found.any() else 0.0,
            ]
        )
    names = ["ndcg@10", *(f"recall@{rank}" for rank in ranks), "mrr@10"]
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def search_scores(
    query_ids: Sequence[str],
    queries: np.ndarray,
    document_ids: Sequence[str],
    documents: np.ndarray,
    relevance: Mapping[str, Mapping[str, int]],
) -> dict[str, float]:
    """Searches and scores what is found.

    A document that has a query's own id is not found by it, as it is the query (BEIR's rule).

    Args:
        query_ids: [Q].
        queries: [Q, D] float32, their vectors, of unit length.
        document_ids: [N].
        documents: [N, D].
        relevance: As for `retrieval_scores`.

    Returns:
        What `retrieval_scores` does.

    Example:
    ```python
    search_scores(["q"], np.eye(1, 2), ["a", "b"], np.eye(2), {"q": {"a": 1}})
    ```
    """
    found = nearest(queries, documents, max(RANKS) + 1)
    rankings = {
        query: [document_ids[place] for place in places if document_ids[place] != query]
        for query, places in zip(query_ids, found, strict=True)
    }
    return retrieval_scores(rankings, relevance)
