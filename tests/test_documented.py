"""Docstrings are in full for what a package exports, and one line for all else."""

import ast
import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import cocolm_tf

PACKAGE = Path(cocolm_tf.__file__).parent
# Its methods are those of exported classes that derive from it.
BASES = {"RawTextTask"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def definitions(
    tree: ast.AST, exported: set[str], of_class: bool = False, is_public: bool = False
) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, bool]]:
    """Functions and classes, and whether they are exported: methods with their class."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from definitions(node, exported, of_class, is_public)
            continue
        public = is_public if of_class else node.name in exported
        yield node, public
        yield from definitions(node, exported, isinstance(node, ast.ClassDef), public)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_internal_names_have_one_line(path: Path):
    folders = ("cocolm_tf", *path.relative_to(PACKAGE).parts[:-1])
    packages = itertools.accumulate(folders, "{}.{}".format)
    names = (getattr(importlib.import_module(package), "__all__", ()) for package in packages)
    exported = BASES.union(*names)
    long = [
        f"{node.name}: {len(text.splitlines())} lines"
        for node, is_public in definitions(ast.parse(path.read_text()), exported)
        if not is_public and len((text := ast.get_docstring(node) or "").splitlines()) > 1
    ]
    assert not long, "neither exported nor of one line; say why in comments, or export them"
