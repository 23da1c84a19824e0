"""A map of sentences on which like vectors lie near each other (paper, figure 6)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from cocolm_tf.analysis.figures import FAINT_INK, PALETTE, new_panels, styled
from cocolm_tf.analysis.similarity import unit_vectors

# How many pairs are marked, each by a shape and a color.
_SHAPES = "o^sDPv"
MARKED_PAIRS = len(_SHAPES) * 2

_PERPLEXITY = 30.0


def map_sentences(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places vectors in the plane by t-SNE, by their cosines.

    Args:
        vectors: [N, H] float, N at least 4.
        seed: int.

    Returns:
        [N, 2] float32, from 0 to 1 along the longer side.

    Source:
        van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 2008.

    Example:
    ```python
    map_sentences(np.random.default_rng(0).normal(size=[100, 16]))
    ```
    """
    units = unit_vectors(vectors)
    # Distances of unit vectors order as cosines do. The perplexity must be less than N.
    perplexity = min(_PERPLEXITY, (len(units) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(units)
    return (places - places.min(axis=0)) / (np.ptp(places, axis=0).max() or 1)


def draw_map(places: Mapping[str, np.ndarray], seed: int = 0) -> Figure:
    """Draws maps of pairs, a panel a model; some pairs are marked, alike in shape and color.

    Args:
        places: from the name of each model, [2N, 2]: the first sentences' places, then those of
            their partners.
        seed: int. Decides which pairs are marked, the same in each panel.

    Returns:
        The figure.

    Example:
    ```python
    draw_map({"COCO-LM": map_sentences(np.concatenate([first, second]))})
    ```
    """
    count = len(next(iter(places.values()))) // 2
    generator = np.random.default_rng(seed)
    marked = generator.choice(count, min(MARKED_PAIRS, count), replace=False)
    with styled():
        figure, panels = new_panels(list(places), "", "", height=3.6)
        for axes, of_model in zip(panels, places.values(), strict=True):
            axes.scatter(*of_model.T, s=6, color=FAINT_INK, alpha=0.35, linewidths=0)
            for number, pair in enumerate(marked):
                color = PALETTE[number % len(PALETTE)]
                shape = _SHAPES[(number + number // len(PALETTE)) % len(_SHAPES)]
                ends = of_model[[pair, pair + count]].T
                axes.plot(*ends, color=color, linewidth=0.8, alpha=0.6)
                axes.scatter(*ends, s=42, color=color, marker=shape, linewidths=0, zorder=3)
            # Places on the map mean nothing by themselves.
            axes.grid(visible=False)
            axes.spines[["left", "bottom"]].set_visible(False)
            axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
            axes.set_aspect("equal")
            axes.margins(0.04)
    return figure
