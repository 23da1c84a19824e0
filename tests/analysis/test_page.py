import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from cocolm_tf.analysis.curves import PLOTS, draw
from cocolm_tf.analysis.figures import BLUE, FAINT_INK, GRID, INK, ORANGE, inline_svg
from cocolm_tf.analysis.metrics_log import Metrics
from cocolm_tf.analysis.page import page, table


@pytest.fixture(scope="module")
def svg() -> str:
    lines = [{"step": step, "loss": 1.0 / step, "copy_accuracy_replaced": 0.5} for step in (1, 2)]
    lines = [line | {"copy_accuracy_original": 0.6} for line in lines]
    plot = next(plot for plot in PLOTS if plot.name == "copy_accuracy")
    figure = draw(plot, Metrics({"train": lines, "validation": lines}))
    try:
        return inline_svg(figure, 'accuracy & "more"')
    finally:
        plt.close(figure)


class Text(HTMLParser):
    """Collects the text of an element."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self._tag, self._inside, self.found = tag, False, []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self._inside = tag == self._tag

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


@given(st.text(alphabet="<>&\"';/ aé中🙂", min_size=1))
def test_plain_text_is_shown_as_it_is(text: str):
    parser = Text("dd")
    parser.feed(page(text, {"fact": text}, {text: "content"}))
    assert "".join(parser.found) == text


def test_the_page_links_to_its_sections():
    written = page("run", {}, {"First": "1", "Second": "2"})
    for link in re.findall("href='#(.*?)'", written):
        assert f"id='{link}'" in written
    assert "--blue: " in written and "LIGHT" not in written and "DARK" not in written


def test_numbers_stand_at_the_right():
    element = ET.fromstring(table(["name", "value"], [["loss", "1.0"]], numeric=[1]))
    cells = [(cell.text, cell.get("class")) for cell in element.iter() if cell.tag in ("th", "td")]
    assert cells == [("name", None), ("value", "number"), ("loss", None), ("1.0", "number")]


def test_a_figure_takes_the_colors_of_the_page(svg: str):
    for color in (BLUE, FAINT_INK, GRID, INK, ORANGE):
        assert color not in svg
    for name in ("blue", "orange", "ink", "faint", "line"):
        assert f"var(--{name})" in svg


def test_a_figure_is_one_described_element_of_the_page_s_width(svg: str):
    root = ET.fromstring(svg)
    assert root.get("aria-label") == 'accuracy & "more"'
    assert root.get("width") is None and root.get("viewBox")
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Copy head's accuracy", "replaced", "original", "step"} <= texts
