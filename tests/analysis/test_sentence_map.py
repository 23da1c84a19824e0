import numpy as np
import pytest
from matplotlib import pyplot as plt

from cocolm_tf.analysis.charts import MARKED_PAIRS, draw_map
from cocolm_tf.analysis.sentence_space import map_sentences


def test_partners_lie_near_each_other():
    generator = np.random.default_rng(0)
    first = generator.normal(size=[40, 8])
    # Lengths do not matter, directions do.
    second = (first + 0.02 * generator.normal(size=[40, 8])) * generator.uniform(0.5, 2, [40, 1])
    places = map_sentences(np.concatenate([first, second]))
    assert places.shape == (80, 2)
    assert places.min() == pytest.approx(0) and places.max() == pytest.approx(1)
    apart = np.linalg.norm(places[:40, np.newaxis] - places[np.newaxis, 40:], axis=-1)
    assert np.mean(np.diag(apart) <= apart.min(axis=1) + 1e-9) > 0.9


def test_few_sentences_have_a_map_too():
    assert np.all(np.isfinite(map_sentences(np.eye(4))))


@pytest.mark.parametrize("pairs", [2, 60])
def test_the_same_pairs_are_marked_in_every_panel(pairs: int):
    generator = np.random.default_rng(0)
    places = {name: generator.uniform(size=[2 * pairs, 2]) for name in ("first", "second")}
    figure = draw_map(places)
    marked = []
    for axes, of_model in zip(figure.axes, places.values(), strict=True):
        assert len(axes.lines) == min(MARKED_PAIRS, pairs)
        ends = [np.transpose(line.get_data()) for line in axes.lines]
        marked.append([int(np.flatnonzero((of_model == end[0]).all(axis=1))[0]) for end in ends])
        for pair, end in zip(marked[-1], ends, strict=True):
            assert np.array_equal(end[1], of_model[pair + pairs])
    assert marked[0] == marked[1]
    styles = {
        (axes_marks.get_facecolor().tobytes(), axes_marks.get_paths()[0].vertices.tobytes())
        for axes_marks in figure.axes[0].collections[1:]
    }
    assert len(styles) == min(MARKED_PAIRS, pairs)  # no two are marked alike
    plt.close(figure)
