"""The example of planning with a student, for its model card and the quickstart."""

__all__ = ["planning_example"]

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
    """Return a program that loads a student, has it write a plan, and a program that follows the plan.

    Args:
        name (`str`):
            Folder, or name on the Hub, from which the student is loaded.
        plan_head (`bool`):
            Whether the student writes plans through a plan head.
        encoder_decoder (`bool`, *optional*, defaults to `False`):
            Whether the student has an encoder.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether the student is a PEFT adapter.
        problem (`str`, *optional*):
            The problem that it is asked to solve.
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
