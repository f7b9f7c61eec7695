"""Imports between packages: each package imports only packages of lower levels."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trl_akd"

LEVELS: dict[str, int] = {
    "losses": 0,
    "beta": 0,
    "execution": 0,
    "data.templates": 0,
    "distributed": 0,
    "ledger": 0,
    "charts": 0,
    "progress": 0,
    "deprecation": 0,
    "yaml_files": 0,
    "heads": 1,
    "hub": 1,
    "text_pairs": 1,
    "data": 2,
    "generation": 3,
    "metrics": 3,
    "teachers": 4,
    "akd": 5,
    "codeplan": 6,
    "iterkd": 6,
    "evaluation": 7,
    "doctor": 7,
    "bench": 8,
    "report": 8,
    "micro": 9,
    "cli": 10,
    "__main__": 11,
}
ONLY_TORCH = {"losses"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def package_of(module: str) -> str:
    return module if module in LEVELS else module.split(".")[0]


def imports(path: Path) -> set[str]:
    """Modules of this package that `path` imports, without the leading `trl_akd.`; others with a leading `!`."""
    here = ["trl_akd", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names] if module == base else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found.update(name.removeprefix("trl_akd.") if name.startswith("trl_akd") else f"!{name}" for name in names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_possessive_quantifiers_of_groups_are_written_as_atomic_groups(path: Path):
    """Python before 3.11.5 matches `(?:...)*+` wrongly (https://github.com/python/cpython/issues/106052)."""
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    found = [text for text in texts if isinstance(text, str) and re.search(r"(?<!\\)\)(?:[*+?]|\{[\d,]+\})\+", text)]
    assert not found, "write (?>(?:...)*) in place of (?:...)*+"


def test_files_are_found():
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_lower_levels(path: Path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    own = package_of(module)
    if own == "__init__":
        return
    for name in imports(path):
        if name.startswith("!"):
            allowed = {
                "torch",
                "__future__",
                "collections",
                "dataclasses",
                "math",
                "numbers",
                "typing",
                "functools",
                "inspect",
                "contextlib",
                "importlib",
                "os",
                "warnings",
                *({"triton"} if module == "losses.triton_kernels" else ()),
            }
            assert own not in ONLY_TORCH or name[1:].split(".")[0] in allowed, f"{module} imports {name[1:]}"
            continue
        other = package_of(name)
        if other in (own, "__version__", "trl_akd"):
            continue
        assert other in LEVELS, f"{module} imports {name}, which has no level"
        assert LEVELS[other] < LEVELS[own], f"{module} (level {LEVELS[own]}) imports {name} (level {LEVELS[other]})"
