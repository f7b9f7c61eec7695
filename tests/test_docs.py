"""Names and paths in the documentation exist, and its examples run."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

import trl_akd

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "trl_akd").rglob("[a-z]*.py")
)


def test_files_are_found():
    assert len(PAGES) > 8
    assert len(MODULES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"(?:recipes|tests|docs|trl_akd)/[\w./*-]+\w", re.sub(r"https?://\S+", "", text)):
        assert any(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_parse_and_use_existing_names(page: Path):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "trl_akd":
                assert {alias.name for alias in node.names} <= set(trl_akd.__all__)


def test_every_public_name_is_documented():
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in trl_akd.__all__ if name not in text] == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str):
    if name.endswith("triton_kernels"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in finder.find(module, name, globs=dict(vars(module))):
        runner.run(example)
    assert runner.failures == 0
