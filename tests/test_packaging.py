"""Declared dependencies are those that the package imports, and it can be imported without Unix-only modules."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_akd"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"yaml": "PyYAML"}  # where it is not the module's name
UNIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}


BASE = names(PROJECT["dependencies"])
EXTRAS = set().union(*map(names, PROJECT["optional-dependencies"].values())) - BASE


def third_party(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules = [node.module]
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "trl_akd":
                yield DISTRIBUTIONS.get(top, top).lower(), node.col_offset


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_declared(path: Path):
    """A base install has everything except extras, which are imported inside the functions that need them."""
    for distribution, indent in third_party(ast.parse(path.read_text())):
        assert distribution in BASE | EXTRAS, f"{distribution} is imported, but pyproject.toml does not name it"
        assert distribution in BASE or indent, f"{distribution} is an extra, but imported with the module"


def test_dependencies_are_used():
    used = {name for path in PACKAGE.rglob("*.py") for name, _ in third_party(ast.parse(path.read_text()))}
    assert BASE - used == set()


def test_only_the_sandbox_needs_unix_modules():
    """The processes of the sandbox are for Linux and macOS, and so are the modules that start them."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("[a-z]*.py")
        if "zygote" not in path.parts and path.stem not in ("pass_at_k", "code_errors", "accuracy_loss")
    )
    script = "\n".join(
        [
            "import sys, importlib",
            "import accelerate, datasets, datasketch, evaluate, filelock, peft, torch, transformers, trl",
            f"sys.modules.update(dict.fromkeys({UNIX_ONLY!r}))",
            f"for name in {modules!r}:",
            "    importlib.import_module(name)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
