"""The English prose in the docstrings of Python modules, read from their source."""

import ast
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator

# Folders of little prose and much parsing.
_SKIPPED_FOLDERS = {"__pycache__", "test", "tests", "idle_test"}
# Where packages are installed below the standard library's own folder.
_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}

_WORD = re.compile(r"[\"'(\[]*[A-Za-z]+(?:['\-/][A-Za-z]+)*[\"')\]]*[.,;:!?]*[\"')\]]*")
_HAS_LETTER = re.compile(r"[^\W\d_]")
# Words that English can hardly do without and that Python code does not use.
_FUNCTION_WORD = re.compile(
    r"\b(?:an?|are|be|been|by|can|has|have|its?|may|must|of|on|that|the|their|these|they|this|"
    r"to|was|were|when|which|will|you|your)\b",
    re.IGNORECASE,
)
# The least share of a paragraph's tokens that are words: below it stand code and tables.
_MIN_WORD_SHARE = 0.65
# The name of the standard library among the packages: none of theirs has spaces.
_STANDARD_LIBRARY = "the standard library"


def installed_packages() -> list[str]:
    """The packages with Python modules: the standard library as one, then the others sorted."""
    names = {
        name.removesuffix(".py")
        for root in _site_folders()
        for name in os.listdir(root)
        if next(_modules(root, name), None)
    }
    return [_STANDARD_LIBRARY, *sorted(names)]


def package_modules(name: str) -> Iterator[str]:
    """Yields a package's `.py` files, tests left out, in an order that depends on names alone."""
    if name == _STANDARD_LIBRARY:
        for root in _standard_folders():
            yield from _modules(root)
        return
    for root in _site_folders():
        yield from _modules(root, name + ".py")
        yield from _modules(root, name)


def installed_modules() -> Iterator[str]:
    """Yields the `.py` files of all `installed_packages`, the standard library's first."""
    for name in installed_packages():
        yield from package_modules(name)


def _standard_folders() -> list[str]:
    return _folders("stdlib", "platstdlib")


def _site_folders() -> list[str]:
    return [root for root in _folders("purelib", "platlib") if root not in _standard_folders()]


def _folders(*names: str) -> list[str]:
    return list(dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in names))


def _modules(root: str, name: str = "") -> Iterator[str]:
    """Yields the `.py` files at or below a name in a folder, in an order of names alone."""
    top = os.path.join(root, name)
    if os.path.isfile(top) and name.endswith(".py"):
        yield top
    if name in _SKIPPED_FOLDERS:
        return
    for folder, subfolders, files in os.walk(top):
        skipped = _SKIPPED_FOLDERS | (_PACKAGE_FOLDERS if folder == top else set())
        # In place: os.walk then goes only there, in this order.
        subfolders[:] = sorted(set(subfolders) - skipped)
        for file in sorted(files):
            if file.endswith(".py"):
                yield os.path.join(folder, file)


def documents(paths: Iterable[str], min_words: int = 8) -> Iterator[str]:
    """Yields each module's prose, a paragraph a line, with each distinct docstring once."""
    # A file that cannot be read or parsed is passed over.
    seen = set()
    for path in paths:
        paragraphs = []
        for docstring in _docstrings(path):
            prose = prose_paragraphs(docstring)
            if sum(len(paragraph.split()) for paragraph in prose) < min_words:
                continue
            text = "\n".join(prose)
            if text not in seen:
                seen.add(text)
                paragraphs.append(text)
        if paragraphs:
            yield "\n".join(paragraphs)


def prose_paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a docstring that are English prose, each one line."""
    # Code (doctests, fenced blocks, anything with few words in it) and rules are dropped; the lines
    # of a paragraph are joined, and runs of white space become one space.
    paragraphs = [[]]
    fenced = doctest = False
    for line in inspect.cleandoc(docstring).split("\n"):
        line = line.strip()
        if line.startswith(("```", "~~~")):
            fenced = not fenced
            line = ""
        # A doctest's output ends where a blank line does.
        doctest = bool(line) and (doctest or line.startswith(">>>"))
        if fenced or doctest or not line:
            paragraphs.append([])
        elif _HAS_LETTER.search(line):
            paragraphs[-1].append(line)
    joined = (" ".join(" ".join(lines).split()) for lines in paragraphs)
    return [paragraph for paragraph in joined if _is_prose(paragraph)]


def _is_prose(paragraph: str) -> bool:
    if not _FUNCTION_WORD.search(paragraph):
        return False
    tokens = paragraph.split(" ")
    words = sum(_WORD.fullmatch(token) is not None for token in tokens)
    return words >= _MIN_WORD_SHARE * len(tokens)


def _docstrings(path: str) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            source = file.read()
        if b'"""' not in source and b"'''" not in source:
            return  # Parsing takes nearly all of the time; hardly any docstring is lost by this.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Invalid escapes in other people's strings.
            module = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from _docstrings_below(module)


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield docstring
    for child in ast.iter_child_nodes(node):
        # Definitions stand only among statements, and most of a tree is expressions.
        if isinstance(child, ast.stmt):
            yield from _docstrings_below(child)
