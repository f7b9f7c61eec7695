r"""`trl-akd plans`: generate plans for solutions with a teacher, as training data.

```bash
trl-akd plans --model_name_or_path Qwen/Qwen2.5-Coder-7B-Instruct --dataset_name APPS/train \
    --num_plans 2 --max_solutions 5
trl-akd plans --model_name_or_path gpt-x --backend openai --base_url https://example.com/v1 \
    --dataset_name mbpp.jsonl --max_requests 1000 --max_tokens 2000000
trl-akd plans --config plans.yaml --reasoning forward --output_dir outputs/plans-forward
trl-akd plans --import_plans APPS/train --dataset_name APPS/train
```
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ledger import read_json_lines, replace_text, write_json_lines
from .command import Action, check_output, make_accelerator, require_one_process, start
from .errors import run

if TYPE_CHECKING:
    from ..codeplan.plan_config import PlanGenerationConfig
    from ..codeplan.plan_generation import PlanReport
    from ..codeplan.plan_import import ImportReport
    from ..hub.datasets import DatasetContent

__all__ = ["ACTIONS", "main", "make_plans", "plans_content", "read_rows"]

ANSWERS = "answers.jsonl"
PLANS = "plans.jsonl"
REPORT = "report.json"
_ON_CARDS = ("temperature", "top_p", "max_new_tokens", "seed")
_NO_TESTS = {"inputs": [""], "outputs": [""]}  # some tests of APPS are missing or unusable, and a plan needs none


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process."""
    start("plans", ACTIONS, argv)


def make_plans(config: "PlanGenerationConfig") -> None:
    """Generate the missing plans, and write all plans with their problems and solutions.

    Raises:
        ValueError: If the dataset or a setting is wrong.
        GenerationError: If the teacher fails; its earlier answers are kept.
    """
    from ..codeplan.plan_checks import check_rows
    from ..codeplan.plan_generation import PlanGenerator
    from ..generation.loading import load_generator, weights_fingerprint
    from .models import check_generator

    assert config.dataset_name is not None
    check_output("output_dir", Path(config.output_dir) / PLANS, dataset_name=config.dataset_name)
    layout = config.layout()
    rows = read_rows(
        config.dataset_name, split=config.dataset_split, revision=config.dataset_revision, limit=config.limit
    )
    if config.import_plans is not None:
        _import_plans(config, rows)
        return
    assert config.model_name_or_path is not None
    check_rows(rows, need_solutions=config.reasoning == "backward")  # before a model is loaded
    if config.backend != "transformers":
        require_one_process(f"backend {config.backend!r}, which distributes its work itself,")
    check_generator(config)
    shared = make_accelerator()
    teacher = load_generator(config, chat=config.prompt_style == "chat", accelerator=shared)
    folder = Path(config.output_dir).expanduser()
    plans = PlanGenerator(
        teacher.generator,
        folder / ANSWERS,
        config.num_plans,
        config.reasoning,
        layout=layout,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        batch_size=teacher.batch_size,
        max_solutions=config.max_solutions,
        max_requests=config.max_requests,
        max_tokens=config.max_tokens,
        max_plan_chars=config.max_plan_chars,
        max_prompt_chars=config.max_prompt_chars,
        settings={**config.teacher, "weights": weights_fingerprint(config.model_name_or_path)},
        accelerator=shared,
    )
    found = plans.run(rows)
    assert plans.report is not None
    if shared is None or shared.is_main_process:
        _write(folder, found, plans.report)
        print(_summary(plans.report, folder))


def _import_plans(config: "PlanGenerationConfig", rows: list[dict[str, Any]]) -> None:
    """Write published plans with their problems and solutions."""
    from ..codeplan.plan_import import import_plans, read_plans

    require_one_process("`import_plans`, which uses no model,")
    found, report = import_plans(rows, read_plans(str(config.import_plans)), max_plan_chars=config.max_plan_chars)
    folder = Path(config.output_dir).expanduser()
    _write(folder, found, report)
    lines = [f"{report.plans} plans, {report.paired} of them paired with their own solution.", *_losses(report)]
    if report.unknown:
        lines.append(f"Problems with plans that are not in {config.dataset_name}: {report.unknown}.")
    print("\n".join([*lines, f"Problems, solutions and plans: {folder / PLANS}."]))


def _write(folder: Path, rows: Iterable[Mapping[str, Any]], report: Any) -> None:
    write_json_lines(folder / PLANS, (row for row in rows if row["plans"]))
    replace_text(folder / REPORT, json.dumps(asdict(report), indent=2) + "\n")


def plans_content(folder: Path) -> "DatasetContent":
    """Return the plans in a folder of `trl-akd plans` as a dataset.

    Raises:
        FileNotFoundError: If there are no plans.
        ValueError: If a line is malformed.
    """
    from ..hub import REPOSITORY
    from ..hub.datasets import DatasetContent
    from ..hub.private import public_path

    rows = [row for row, _ in read_json_lines(folder / PLANS)]
    file = (folder / ANSWERS).with_suffix(".settings.json")
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    report = json.loads((folder / REPORT).read_text(encoding="utf-8")) if (folder / REPORT).is_file() else {}
    teacher = settings.get("model")
    return DatasetContent(
        title=f"Plans for {len(rows)} problems",
        description="Plans for programming problems, with solutions, as training data of `trl-akd codeplan`; made by "
        f"`trl-akd plans` of [trl_akd]({REPOSITORY}).",
        tables={"plans": rows},
        facts={
            "Teacher": None if teacher is None else public_path(str(teacher)),
            **{name: settings.get(name) for name in _ON_CARDS},
            "Plans": report.get("plans"),
            "Problems without a plan, left out": report.get("without"),
        },
    )


def _argument_types() -> tuple[type, ...]:
    from ..codeplan.plan_config import PlanGenerationConfig

    return (PlanGenerationConfig,)


def _summary(report: "PlanReport", folder: Path) -> str:
    lines = [
        f"{report.plans} of {report.wanted} plans; {report.requests} requests and {report.tokens} tokens in this run.",
        *_losses(report),
    ]
    if report.stopped:
        lines.append(f"`{report.stopped}` is reached; run the command again to continue.")
    return "\n".join([*lines, f"Problems, solutions and plans: {folder / PLANS}. Answers: {folder / ANSWERS}."])


def _losses(report: "PlanReport | ImportReport") -> list[str]:
    """Return sentences about rejected plans and problems without a plan."""
    counts = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in report.rejected.items())
    lines = [f"Rejected: {counts}."] if counts else []
    return lines + ([f"Problems without a plan, left out: {report.without}."] if report.without else [])


def read_rows(
    path: str | Path, *, split: str = "train", revision: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Read problems and their solutions as rows `{id, problem, solutions}`.

    | columns | format |
    |---|---|
    | `id`, `problem`, `solutions` or `solution` | plain |
    | `question`, `solutions` | APPS |
    | `task_id`, `text` or `prompt`, `code`, `test_list` | MBPP |

    The problems of APPS and MBPP are worded as the `instruction` of an evaluation, so that training and evaluation use
    the same text.

    Args:
        path (`str` or `Path`):
            A file, a saved dataset or a name on the Hub, as in [`trl_akd.data.sources.load`], or APPS's folder of
            numbered folders.
        split (`str`, *optional*, defaults to `"train"`):
            Split, or a slice of one; APPS's folder has none.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        limit (`int`, *optional*):
            Read only the first N rows.

    Raises:
        FileNotFoundError: If there is no such file, folder or dataset.
        ValueError: If the columns fit no format, a file is not UTF-8, or a split or revision of a folder is given.
    """
    rows = islice(_rows(path, split, revision), limit)
    return [{name: _replace_surrogates(value) for name, value in _row(row, where).items()} for row, where in rows]


def _rows(path: str | Path, split: str, revision: str | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    questions = sorted(Path(path).expanduser().glob("*/question.txt"))
    if questions:
        for name, value, default in (("split", split, "train"), ("revision", revision, None)):
            if value != default:
                raise ValueError(
                    f"`dataset_{name}` is {value!r}, but {str(path)!r} is a folder of APPS's problems, which has no "
                    f"{name}s; leave it out, or use `limit` for the first problems."
                )
        return ((_apps_folder(question.parent), str(question.parent)) for question in questions)
    from ..data.sources import load

    rows: Iterable[Mapping[str, Any]] = load(path, split=split, revision=revision)
    return ((row, f"{path}, row {number}") for number, row in enumerate(rows))


def _row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read a row of any format, which its columns determine."""
    if "problem" in row and "id" in row:
        solutions = row.get("solutions")
        if solutions is None:
            solutions = [] if row.get("solution") is None else [row["solution"]]
        return {name: row[name] for name in row if name != "solution"} | {"solutions": _listed(solutions, where)}
    if "question" in row:
        untested = {name: value for name, value in row.items() if name != "example_input_output"}
        untested["input_output"] = {**_NO_TESTS, "fn_name": _function(row.get("input_output"))}
        return _benchmark_row(untested, _listed(row.get("solutions") or [], where), where)
    if "code" in row:
        from ..evaluation.formats import optional_text

        code = optional_text(row, "code", where)
        return _benchmark_row(row, [] if code is None else [code.replace("\r\n", "\n")], where)
    raise ValueError(
        f"{where} has the columns {', '.join(map(str, row))}; give rows {{id, problem, solutions}}, or those of APPS "
        "(question, solutions) or MBPP (task_id, text, code, test_list)."
    )


def _benchmark_row(row: Mapping[str, Any], solutions: Any, where: str) -> dict[str, Any]:
    from ..evaluation.formats import read_problem

    problem = read_problem(row, where)
    return {"id": problem.task_id, "problem": problem.instruction, "solutions": solutions}


def _function(tests: Any) -> str | None:
    """Return the function that tests of APPS call, also if they are unusable, such as with very long integers."""
    try:
        found = json.loads(tests, parse_int=str) if isinstance(tests, str) else tests
    except ValueError:
        return None
    name = found.get("fn_name") if isinstance(found, Mapping) else None
    return name if isinstance(name, str) else None


def _apps_folder(home: Path) -> dict[str, Any]:
    """Read a numbered folder of APPS's original distribution."""
    from ..codeplan.plan_import import read_utf8

    files = {
        "question": "question.txt",
        "solutions": "solutions.json",
        "input_output": "input_output.json",
        "starter_code": "starter_code.py",
    }
    texts = {name: read_utf8(home / file) for name, file in files.items() if (home / file).exists()}
    return {"task_id": home.name, **texts}


def _listed(solutions: Any, where: str) -> Any:
    """Return a list, decoded if it is a JSON string, as in APPS on the Hub."""
    if not isinstance(solutions, str):
        return solutions
    try:
        return json.loads(solutions)
    except ValueError as error:
        raise ValueError(f"`solutions` in {where} is {solutions!r:.80}; give a list of programs.") from error


def _replace_surrogates(value: Any) -> Any:
    """Replace lone surrogates in strings, also inside lists."""
    from ..data.schema import replace_lone_surrogates

    if isinstance(value, str):
        return replace_lone_surrogates(value)
    return [_replace_surrogates(item) for item in value] if isinstance(value, list) else value


ACTIONS: Mapping[str, Action] = {"": Action(_argument_types, make_plans)}

if __name__ == "__main__":
    raise SystemExit(run(main))
