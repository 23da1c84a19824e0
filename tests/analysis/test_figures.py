from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from cocolm_tf.analysis.figures import (
    PALETTE,
    new_figure,
    new_panels,
    save_figure,
    styled,
    styles_of,
)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (5, 2), (7, 3)])
def test_panels_are_named_and_share_their_axes(count: int, rows: int):
    titles = [f"panel {number}" for number in range(count)]
    figure, panels = new_panels(titles, "across", "up")
    assert [axes.get_title(loc="left") for axes in panels] == titles
    assert len(figure.axes) == count
    assert panels[0].get_subplotspec().get_gridspec().nrows == rows
    panels[0].set_xlim(3, 7)
    assert all(axes.get_xlim() == (3, 7) for axes in panels)
    named_up = [axes for axes in panels if axes.get_ylabel()]
    named_across = [axes for axes in panels if axes.get_xlabel()]
    assert len(named_up) == rows
    assert len(named_across) == panels[0].get_subplotspec().get_gridspec().ncols
    plt.close(figure)


def test_the_same_figure_is_the_same_file(tmp_path: Path):
    written = []
    for name in ("one", "two"):
        with styled():
            figure, axes = new_figure("Title", "across", "up")
            axes.plot([1, 2], [3, 4], color=PALETTE[0])
        (tmp_path / name).mkdir()
        save_figure(figure, str(tmp_path / name), "figure", ["png", "svg"])
        plt.close(figure)
        files = sorted((tmp_path / name).iterdir())
        assert [file.name for file in files] == ["figure.png", "figure.svg"]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]


def test_no_two_of_many_look_the_same():
    assert len(set(PALETTE)) == len(PALETTE) == 6
    names = [f"preset {number}" for number in range(20)]
    found = styles_of(names)
    assert list(found) == names and [look.color for look in found.values()][:6] == list(PALETTE)
    assert len({(look.color, look.marker) for look in found.values()}) == 20
    assert len({(look.color, look.hatch) for look in found.values()}) == 20
