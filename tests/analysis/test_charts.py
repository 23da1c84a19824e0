import numpy as np
import pytest
from matplotlib import pyplot as plt

from cocolm_tf.analysis.charts import RANDOM, SIMILAR, draw_distributions
from cocolm_tf.analysis.figures import BLUE, ORANGE

GENERATOR = np.random.default_rng(0)


def test_each_model_has_a_panel_with_both_kinds():
    cosines = {
        name: {RANDOM: GENERATOR.normal(0.1, 0.1, 500), SIMILAR: GENERATOR.normal(0.8, 0.05, 200)}
        for name in ("first", "second")
    }
    figure = draw_distributions(cosines)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["first", "second"]
    for axes, kinds in zip(figure.axes, cosines.values(), strict=True):
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert [curve.get_color() for curve in curves] == [BLUE, ORANGE]
        for curve, values in zip(curves, kinds.values(), strict=True):
            x, y = curve.get_data()
            area = np.sum(y) * (x[1] - x[0])
            assert area == pytest.approx(1, abs=0.05)
            assert np.sum(x * y) * (x[1] - x[0]) / area == pytest.approx(values.mean(), abs=0.02)
        means = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
        assert means == pytest.approx([kinds[RANDOM].mean(), kinds[SIMILAR].mean()])
        # Both histograms are seen whole.
        assert axes.get_ylim()[1] >= max(patch.get_height() for patch in axes.patches)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [RANDOM, SIMILAR]
    plt.close(figure)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [-1.0, 1.0], [0.3, 0.3 + 1e-12]])
def test_odd_cosines_can_be_drawn(values: list[float]):
    figure = draw_distributions({"odd": {RANDOM: np.array(values), SIMILAR: np.array(values)}})
    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    assert -1 <= low < high <= 1
    plt.close(figure)
