"""The figures of docs/design.md show the existing modules and imports."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from .test_architecture import LEVELS, MODULES, PACKAGE, imports, package_of

DESIGN = PACKAGE.parent / "docs" / "design.md"
FIGURES = re.findall(
    r"^### (.+?)\n.*?```mermaid\nflowchart \w+\n(.*?)```", DESIGN.read_text(), re.DOTALL | re.MULTILINE
)
ARROW = re.compile(r"^\s*(\S+) --> (\S+)$", re.MULTILINE)
LABEL = re.compile(r"^\s*(\w+)\[(\S+)\]$", re.MULTILINE)
METHODS = ("AKD", "CodePLAN", "IterKD")


def figure(title: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the labels of the boxes of a figure, and its arrows between these labels."""
    [text] = [text for heading, text in FIGURES if heading == title]
    labels = dict(LABEL.findall(text))
    return labels, [(labels.get(start, start), labels.get(end, end)) for start, end in ARROW.findall(text)]


def reachable(start: str, arrows: list[tuple[str, str]]) -> set[str]:
    found, new = set(), {start}
    while new:
        found |= new
        new = {end for begin, end in arrows if begin in new} - found
    return found - {start}


@cache
def package_imports() -> set[tuple[str, str]]:
    found = set()
    for path in MODULES:
        own = package_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
        found |= {(own, package_of(name)) for name in imports(path) if not name.startswith("!")}
    named = {name for name in LEVELS if not name.startswith("__")}
    return {(own, other) for own, other in found if own != other and {own, other} <= named}


@cache
def file_imports(path: Path) -> set[Path]:
    """Return the files of this package from which a file imports names, directly or through an `__init__.py`."""
    here = ["trl_akd", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module])).removeprefix("trl_akd").strip(".")
            found |= {home for alias in node.names if (home := home_of(module, alias.name)) is not None}
    return found


def home_of(module: str, name: str) -> Path | None:
    folder = PACKAGE.joinpath(*filter(None, module.split(".")))
    for path in (folder / f"{name}.py", folder.with_suffix(".py")):
        if path.exists():
            return path
    package = folder / "__init__.py"
    for node in ast.walk(ast.parse(package.read_text())) if package.exists() else ():
        if isinstance(node, ast.ImportFrom) and node.level and any(alias.name == name for alias in node.names):
            inner = ".".join(filter(None, [module, node.module]))
            return home_of(inner, name)
    return None


def test_arrows_between_packages_are_imports():
    _, arrows = figure("Packages")
    assert set(arrows) <= package_imports()


def test_every_import_between_packages_is_in_the_figure():
    _, arrows = figure("Packages")
    assert {(start, end) for start, end in package_imports() if end not in reachable(start, arrows)} == set()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_at_most_twelve_files(method: str):
    labels, arrows = figure(method)
    files = [label for label in labels.values() if label.endswith(".py")]
    assert 8 <= len(files) <= 12
    for start, end in arrows:
        if start.endswith(".py") and end.endswith(".py"):
            assert PACKAGE / end in file_imports(PACKAGE / start), f"{start} does not import {end}"
    assert reachable("recipe.yaml", arrows) == set(files), "every file follows from the recipe"


def test_configurations_match_the_page():
    [table] = re.findall(r"^\*\*Configurations\.\*\*.*?\n\n(.*?)\n\n", DESIGN.read_text(), re.DOTALL | re.MULTILINE)
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert len(rows) > 5
    for names, files in rows:
        nodes = [
            node for file in re.findall(r"`(\S+)`", files) for node in ast.parse((PACKAGE / file).read_text()).body
        ]
        classes = {
            node.name: {ast.unparse(base) for base in node.bases} for node in nodes if isinstance(node, ast.ClassDef)
        }
        own, _, bases = names.partition("(")
        for name in re.findall(r"`(\w+)`", own):
            assert classes[name] == set(re.findall(r"`(\w+)`", bases)), name


def test_files_named_on_the_page_exist():
    found = set(re.findall(r"`([\w/]+/[\w]+\.py)`", DESIGN.read_text()))
    assert len(found) > 30
    roots = (PACKAGE, PACKAGE.parent)
    assert {name for name in found if not any((root / name).exists() for root in roots)} == set()
