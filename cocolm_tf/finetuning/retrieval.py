"""How good the results of searches by vectors are."""

from collections.abc import Mapping, Sequence

import numpy as np

RANKS = (1, 10, 100)
RETRIEVAL_METRICS = ("ndcg@10", *(f"recall@{rank}" for rank in RANKS), "mrr@10")
# How many scores are in memory at a time.
_SCORES_AT_ONCE = 1 << 24


def nearest(queries: np.ndarray, documents: np.ndarray, count: int) -> np.ndarray:
    """The rows [Q, count] of documents [N, D] with the greatest products with queries [Q, D]."""
    # The greatest first, and of equal ones the first; all where there are fewer than `count`.
    count = min(count, len(documents))
    found = np.empty([len(queries), count], np.int64)
    rows = max(1, _SCORES_AT_ONCE // len(documents))
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ documents.T
        # All documents that reach the last place's score: the partition orders ties at random.
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
    """`ndcg@10`, `recall@K` for the ranks and `mrr@10` of ranked ids, means over the queries."""
    # By the definitions of `trec_eval` and BEIR. `rankings` has the ids of found documents, the
    # best first; `relevance` the documents that are relevant, from 1 up. In nDCG a document gains
    # its relevance over log2(1 + its rank), and the sum is divided by the best possible one. The
    # recall is the share of the relevant documents among the first K. MRR is the inverse rank of
    # the first relevant document, 0 where it is not among the first 10.
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
    """Searches documents [N, D] for queries [Q, D], unit vectors, and scores what is found."""
    # A document with the query's own id is the query itself, and is left out (BEIR's rule).
    found = nearest(queries, documents, max(RANKS) + 1)
    rankings = {
        query: [document_ids[place] for place in places if document_ids[place] != query]
        for query, places in zip(query_ids, found, strict=True)
    }
    return retrieval_scores(rankings, relevance)
