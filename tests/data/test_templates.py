"""The exact text of each template."""

import subprocess
import sys

import pytest

from trl_akd.data.templates import DEFAULT_TEMPLATE, PROMPT_TEMPLATES, get_template, render

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
)
INSTRUCT_EVAL = (
    "Please complete the following Python code without providing any additional tasks such as testing or "
    "explanations.\n"
)
GOLDEN = [
    ("starcoder", "[1]", "<fim_prefix>Sort it.\n[1]<fim_suffix><fim_middle>"),
    ("starcoder", "", "<fim_prefix>Sort it.\n<fim_suffix><fim_middle>"),
    ("instruct_eval", "[1]", INSTRUCT_EVAL + "Sort it.\n[1]"),
    ("instruct_eval", "", INSTRUCT_EVAL + "Sort it.\n"),
    (
        "alpaca",
        "[1]",
        PREAMBLE_WITH_INPUT + "\n\n### Instruction:\nSort it.\n\n### Input:\n[1]\n\n### Response:",
    ),
    ("alpaca", "", PREAMBLE + "\n\n### Instruction:\nSort it.\n\n### Response:"),
    ("alpaca_akd_paper", "[1]", PREAMBLE + "### Instruction:\nSort it.\n### Input:\n[1]\n### Response:"),
    ("alpaca_akd_paper", "", PREAMBLE + "### Instruction:\nSort it.\n### Input:\n\n### Response:"),
    ("codeplan_code", "[1]", "[GEN_CODE]\nQUESTION:\nSort it.\n[1]\n\nANSWER:\n"),
    ("codeplan_code", "", "[GEN_CODE]\nQUESTION:\nSort it.\n\nANSWER:\n"),
    ("codeplan_plan", "[1]", "[GEN_PLAN]\nQUESTION:\nSort it.\n[1]\n\nLet's think step by step:\n"),
    ("codeplan_plan", "", "[GEN_PLAN]\nQUESTION:\nSort it.\n\nLet's think step by step:\n"),
    (
        "codeplan_guided",
        "1. Sort.",
        "[GEN_CODE]\nQUESTION:\nSort it.\n\nLet's think step by step:\n1. Sort.\n\nANSWER:\n",
    ),
    ("comment", "", "# Sort it.\n"),
    ("comment", "1 2", "# Sort it.\n# 1 2\n"),
]


@pytest.mark.parametrize(("name", "task_input", "expected"), GOLDEN)
def test_wording(name: str, task_input: str, expected: str) -> None:
    assert render(name, "Sort it.", task_input) == expected


def test_every_template_has_golden_strings_and_a_source() -> None:
    assert {name for name, _, _ in GOLDEN} == set(PROMPT_TEMPLATES)
    assert all(template.source for template in PROMPT_TEMPLATES.values())
    assert DEFAULT_TEMPLATE in PROMPT_TEMPLATES


@pytest.mark.parametrize("name", PROMPT_TEMPLATES)
def test_braces_in_a_row_are_text(name: str) -> None:
    prompt = render(name, "f'{input}' and {instruction}", "{0} {input}")
    assert "f'{input}' and {instruction}" in prompt
    assert "{0} {input}" in prompt


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(ValueError, match=r"'alpacca' is unknown.*instruct_eval.*Did you mean 'alpaca'\?"):
        get_template("alpacca")
    with pytest.raises(ValueError, match=r"'zzz' is unknown") as caught:
        render("zzz", "Sort it.")
    assert "Did you mean" not in str(caught.value)


def test_import_needs_only_the_standard_library() -> None:
    heavy = "{'torch', 'datasets', 'transformers', 'trl', 'numpy'}"
    program = f"import sys, trl_akd.data.templates; print(sorted({heavy} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
