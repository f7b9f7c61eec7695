"""The metrics as `evaluate` modules: loading, cards and examples."""

import doctest
import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import trl_akd.metrics
from trl_akd.metrics import load

FOLDER = Path(trl_akd.metrics.__file__).parent
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/README.md"))
HEADINGS = [
    "## Metric Description",
    "## How to Use",
    "### Inputs",
    "### Output Values",
    "#### Values from Popular Papers",
    "### Examples",
    "## Limitations and Bias",
    "## Citation",
    "## Further References",
]


def module_of(name: str) -> Any:
    return import_module(f"trl_akd.metrics.{name}.{name}")


def test_there_are_three() -> None:
    assert NAMES == ["accuracy_loss", "code_errors", "pass_at_k"]


@pytest.mark.parametrize("name", ["pass_at_1", "", "../pass_at_k"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"no metric .*; choose one of accuracy_loss, code_errors, pass_at_k"):
        load(name)


@pytest.mark.parametrize("name", NAMES)
def test_signature_has_no_variadic_arguments(name: str) -> None:
    parameters = inspect.signature(load(name)._compute).parameters.values()
    assert not [parameter for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_described(name: str) -> None:
    described = load(name).inputs_description.split("Returns:")[0]
    card = (FOLDER / name / "README.md").read_text().split("### Inputs")[1].split("### Output Values")[0]
    for parameter in inspect.signature(load(name)._compute).parameters:
        assert parameter in described
        assert f"**{parameter}**" in card


@pytest.mark.parametrize("name", NAMES)
def test_card(name: str) -> None:
    _, front_matter, text = (FOLDER / name / "README.md").read_text().split("---\n", 2)
    assert {"title", "tags", "description"} <= yaml.safe_load(front_matter).keys()
    assert [line for line in text.splitlines() if line in HEADINGS] == HEADINGS
    assert load(name).citation in text.replace("\n\n", "\n")


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_module(name: str) -> None:
    found = doctest.testmod(module_of(name))
    assert found.attempted > 2
    assert not found.failed


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_card(name: str) -> None:
    found = doctest.testfile(str(FOLDER / name / "README.md"), module_relative=False, encoding="utf-8")
    assert found.attempted > 2
    assert not found.failed


@pytest.mark.parametrize("module", ["", ".statistics", ".taxonomy"])
def test_examples_of_other_modules(module: str) -> None:
    found = doctest.testmod(import_module(f"trl_akd.metrics{module}"))
    assert found.attempted
    assert not found.failed


OFFLINE = """
import sys

def forbid(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        raise SystemExit(f"reached for the network: {event} {arguments}")

sys.addaudithook(forbid)
import trl_akd.metrics
heavy = {"evaluate", "datasets", "numpy", "torch"} & sys.modules.keys()
assert not heavy, heavy
import evaluate
for name, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    for metric in (trl_akd.metrics.load(name), evaluate.load(folder), evaluate.load(f"{folder}/{name}.py")):
        assert metric.name == name, metric.name
        arguments = (
            {"predictions": [20.0], "references": [40.0]}
            if name == "accuracy_loss"
            else {"predictions": [["x = 1"]], "references": ["assert x == 1"], "allow_code_execution": True}
        )
        print(metric.compute(**arguments))
"""


@pytest.mark.parametrize("offline", ["0", "1"])
def test_no_requests_to_the_hub(offline: str, tmp_path: Path) -> None:
    arguments = [text for name in NAMES for text in (name, str(FOLDER / name))]
    environment = {**os.environ, "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path), "HF_EVALUATE_OFFLINE": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", OFFLINE, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 9
    assert lines[0::3] == lines[1::3] == lines[2::3]
    assert not list(tmp_path.rglob("*.arrow"))
