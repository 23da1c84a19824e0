import itertools
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from cocolm_tf.data import docstrings

SENTENCE = "This sentence is long enough to be taken for the prose that it is."


@pytest.fixture
def read(write_modules: Callable) -> Callable[[dict[str, str]], list[str]]:
    """Returns the documents of modules, given by name and source."""

    def documents(modules: dict[str, str]) -> list[str]:
        write_modules(modules)
        return list(docstrings.documents(docstrings.installed_modules()))

    return documents


def docstring(text: str) -> str:
    return f'"""{text}"""\n'


def test_modules_classes_functions_and_methods_are_read(read):
    source = docstring(SENTENCE + " 1.")
    source += "class A:\n    " + docstring(SENTENCE + " 2.")
    source += "    async def f(self):\n        " + docstring(SENTENCE + " 3.")
    source += "if True:\n  def g():\n    " + docstring(SENTENCE + " 4.")
    (document,) = read({"a.py": source})
    assert document.split("\n") == [f"{SENTENCE} {number}." for number in (1, 2, 3, 4)]


def test_the_order_is_that_of_the_names(read):
    modules = {
        name: docstring(f"{SENTENCE} {name}") for name in ("z.py", "a.py", "p/b.py", "b/z.py")
    }
    order = [document.split()[-1] for document in read(modules)]
    assert order == ["a.py", "z.py", "b/z.py", "p/b.py"]


def test_a_docstring_counts_once(read):
    modules = {"a.py": docstring(SENTENCE), "b.py": docstring("\n  " + SENTENCE + "\n")}
    assert read(modules) == [SENTENCE]


def test_tests_and_what_is_not_python_are_left_out(read):
    modules = {"tests/a.py": docstring(SENTENCE), "__pycache__/b.py": docstring(SENTENCE)}
    assert read(modules | {"c.txt": docstring(SENTENCE)}) == []


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_parsed_is_passed_over(read):
    modules = {
        "a.py": "print 'old'\n" + docstring(SENTENCE),
        "b.py": docstring(SENTENCE) + "\0",
        "c.py": docstring(SENTENCE) + "(" * 5000,
        "d.py": b'"""\xff\xfe"""',
        "e.py": docstring(SENTENCE) + r"'\d'",
    }
    assert read(modules) == [SENTENCE]


def test_modules_are_not_run(read):
    assert read({"a.py": docstring(SENTENCE) + "raise SystemExit"}) == [SENTENCE]


def test_short_docstrings_are_dropped(read):
    assert read({"a.py": docstring("This is the short one.")}) == []


def test_prose_is_unwrapped_and_code_dropped():
    text = """Return the sum of
    two numbers.

    Args:
        x: The first of the numbers.

    >>> add(1, 2)
    3
    ... and the output of the example

    ```python
    this is the code that has been fenced
    ```

        result = add(x=1, y=[2]) if x else {}  # the sum

    Notes
    -----
    It is fast.
    """
    assert docstrings.prose_paragraphs(text) == [
        "Return the sum of two numbers.",
        "Args: x: The first of the numbers.",
        "Notes It is fast.",
    ]


@pytest.mark.parametrize(
    "text", ["", "----", "Gibt die Summe zweier Zahlen aus.", "x = a[i] + b[i] for the", "42 1.5"]
)
def test_other_than_prose_is_dropped(text: str):
    assert docstrings.prose_paragraphs(text) == []


def test_packages_are_the_standard_library_and_those_that_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In folders where one is within the other, as in a virtual environment they are not."""
    names = ["a.py", "z/a.py", "site-packages/b/a.py", "site-packages/b/tests/b.py"]
    for name in [*names, "site-packages/c.py", "site-packages/c-1.0/METADATA"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    site = str(tmp_path / "site-packages")
    paths = {"purelib": site, "platlib": site}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: paths.get(name, str(tmp_path)))
    modules = {
        package: [
            str(Path(path).relative_to(tmp_path)) for path in docstrings.package_modules(package)
        ]
        for package in docstrings.installed_packages()
    }
    assert modules == {
        "the standard library": ["a.py", "z/a.py"],
        "b": ["site-packages/b/a.py"],
        "c": ["site-packages/c.py"],
    }
    assert len(list(docstrings.installed_modules())) == 4


def test_the_standard_library_has_prose():
    modules = list(itertools.islice(docstrings.installed_modules(), 50))
    assert all(Path(path).is_relative_to(sysconfig.get_path("stdlib")) for path in modules)
    documents = list(docstrings.documents(modules))
    assert sum(len(document.split()) for document in documents) > 10_000
    assert documents[:3] == list(itertools.islice(docstrings.documents(modules), 3))
