"""Prompts of a student that plans, and an example of their use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.templates import render

__all__ = ["TaskPrompting", "planning_example"]

_NEXT_SECTION = ("\nQUESTION:", "\nANSWER:", "\n[GEN_")


@dataclass(frozen=True)
class TaskPrompting:
    r"""Prompts for plans and programs as in training with CodePLAN, and extraction of the program from a completion.

    The prompts are the templates `codeplan_plan`, `codeplan_guided` and, without a plan, `codeplan_code`. Subclass it
    for a model with other prompts, or one that answers in prose or code fences.

    Args:
        plan_stop (`tuple[str, ...]`, *optional*), code_stop (`tuple[str, ...]`, *optional*):
            Strings that end a plan or a program, for a student that does not generate EOS.

    Example:

    ```python
    >>> TaskPrompting().code({"id": "1", "problem": "Double a number."}, "1. Read it.")
    "[GEN_CODE]\nQUESTION:\nDouble a number.\n\nLet's think step by step:\n1. Read it.\n\nANSWER:\n"

    ```
    """

    plan_stop: tuple[str, ...] = _NEXT_SECTION
    code_stop: tuple[str, ...] = _NEXT_SECTION

    def plan(self, problem: Mapping[str, Any]) -> str:
        """Return the prompt for a plan."""
        return render("codeplan_plan", problem["problem"])

    def code(self, problem: Mapping[str, Any], plan: str | None) -> str:
        """Return the prompt for a program, with a plan if there is one."""
        if plan is None:
            return render("codeplan_code", problem["problem"])
        return render("codeplan_guided", problem["problem"], plan)

    def program(self, problem: Mapping[str, Any], completion: str) -> str:
        """Return the program in a completion."""
        return completion


_EXAMPLE = """\
{imports}
{planning_imports}from trl_akd.codeplan.task_prompts import TaskPrompting
from trl_akd.generation import TransformersGenerator

model = {auto_class}.from_pretrained({name!r})
tokenizer = AutoTokenizer.from_pretrained({name!r})
programs = TransformersGenerator(model, tokenizer)
{plans}
problem, prompts = {{"problem": {problem!r}}}, TaskPrompting()
[[plan]] = plans.generate([prompts.plan(problem)], max_new_tokens={max_new_tokens}, stop=prompts.plan_stop)
prompt = prompts.code(problem, plan.text)
[[program]] = programs.generate([prompt], max_new_tokens={max_new_tokens}, stop=prompts.code_stop)
print(plan.text)
print(program.text)"""


def planning_example(
    name: str,
    *,
    plan_head: bool,
    encoder_decoder: bool = False,
    adapter: bool = False,
    problem: str = "Read an integer and print its double.",
    max_new_tokens: int = 256,
) -> str:
    """Return a program that loads a student, generates a plan, and generates a program that follows the plan.

    Args:
        name (`str`):
            Folder of the student, or its name on the Hub.
        plan_head (`bool`):
            Whether the student has a plan head.
        encoder_decoder (`bool`, *optional*, defaults to `False`):
            Whether the student is an encoder-decoder.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether the student is a PEFT adapter.
        problem (`str`, *optional*):
            The problem in the example.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Maximum number of tokens of the plan, and of the program.

    Example:

    ```python
    >>> print(planning_example("student", plan_head=False).splitlines()[4])
    model = AutoModelForCausalLM.from_pretrained('student')

    ```
    """
    kind = "Seq2SeqLM" if encoder_decoder else "CausalLM"
    if adapter:
        auto_class = f"AutoPeftModelFor{kind}"
        imports = f"from peft import {auto_class}\nfrom transformers import AutoTokenizer"
    else:
        auto_class = f"AutoModelFor{kind}"
        imports = f"from transformers import {auto_class}, AutoTokenizer"
    through_plan_head = f"load_plan_head(model, {name!r})\nplans = PlanHeadGenerator(programs, model)\n"
    return _EXAMPLE.format(
        imports=imports,
        planning_imports="from trl_akd.codeplan.plan_head import PlanHeadGenerator, load_plan_head\n" * plan_head,
        auto_class=auto_class,
        name=name,
        problem=problem,
        max_new_tokens=max_new_tokens,
        plans=through_plan_head if plan_head else "plans = programs\n",
    )
