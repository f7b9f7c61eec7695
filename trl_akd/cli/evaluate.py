r"""`trl-akd evaluate`: evaluate a model by running the programs that it writes.

```bash
trl-akd evaluate --model_name_or_path Qwen/Qwen2.5-Coder-0.5B --benchmark humaneval \
    --allow_code_execution
trl-akd evaluate --model_name_or_path outputs/student --benchmark mbpp --prompt_style template \
    --num_samples 10 --temperature 0.8 --k 1 10 --allow_code_execution
trl-akd evaluate --samples samples.jsonl --benchmark humaneval --allow_code_execution
trl-akd evaluate --model_name_or_path outputs/student --benchmark apps --plan_sampling \
    --num_samples 10 --temperature 0.6 --top_p 0.95 --allow_code_execution
trl-akd evaluate --update_card \
    --compare outputs/evaluation/humaneval/teacher outputs/evaluation/humaneval/student
```
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .command import Action, make_accelerator, require_one_process, start
from .errors import run

if TYPE_CHECKING:
    from ..codeplan.plan_config import PlanSamplingConfig
    from ..evaluation.evaluation_config import EvaluationConfig
    from ..evaluation.runner import Evaluation

__all__ = ["ACTIONS", "main"]

FIGURE = "errors.png"
PLAN_FIGURE = "plans.png"


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process."""
    start("evaluate", ACTIONS, argv)


def _argument_types() -> tuple[type, ...]:
    from ..codeplan.plan_config import PlanSamplingConfig
    from ..evaluation.evaluation_config import EvaluationConfig

    return EvaluationConfig, PlanSamplingConfig


def _run(config: "EvaluationConfig", planning: "PlanSamplingConfig") -> None:
    if config.compare:
        _compare(config)
        return
    if config.update_card:
        from ..evaluation.cards import check_card

        check_card(config.model_name_or_path or "")
    from ..evaluation.plan_sampling import PlanningSampler
    from ..evaluation.runner import evaluate

    if config.backend != "transformers":
        require_one_process(f"backend {config.backend!r}, which distributes its work itself,")
    sampler = PlanningSampler(config, planning) if planning.plan_sampling else None
    evaluation = evaluate(config, sampler, accelerator=make_accelerator())
    if evaluation is not None:
        _report(config, evaluation)
        if "plans" in evaluation.results:
            _report_plans(evaluation)
        _write_report(evaluation.folder)


def _compare(config: "EvaluationConfig") -> None:
    from ..evaluation.cards import card_comparison, card_scores, check_card, update_model_card
    from ..evaluation.report import compare, comparison_table
    from ..evaluation.results import read_results

    names = [folder.rstrip("/") for folder in config.compare or ()]
    runs = {name: read_results(name) for name in names}
    if len(runs) < len(names):
        raise ValueError(f"`compare` names a folder twice: {' '.join(names)}; give each once.")
    print("\n\n".join(comparison_table(compare(runs, k=k, seed=config.seed), k=k) for k in config.k))
    if not config.update_card:
        return
    last = runs[names[-1]]
    model = last["model"]["name"]
    check_card(model)
    place = update_model_card(
        model,
        card_scores(last, last["generation"]),
        card_comparison(runs, config.k, config.seed),
        revision=config.model_revision,
        folder=Path(names[-1]),
    )
    print(f"\nComparison added to the model card: {place}.")


def _report(config: "EvaluationConfig", evaluation: "Evaluation") -> None:
    from ..evaluation.report import results_table, warnings_about

    print(f"\n{results_table(config.model_name_or_path or str(config.samples), evaluation.results)}\n")
    for remark in warnings_about(evaluation.results):
        print(f"Note: {remark}")
    written = "Verdicts and results" if config.samples else "Samples, verdicts and results"
    print(f"{written}: {evaluation.folder}. {_draw(evaluation)}")
    _update_card(config, evaluation)


def _report_plans(evaluation: "Evaluation") -> None:
    from ..evaluation.report import plan_curve_table, plan_remarks, plot_plans

    plans = evaluation.results["plans"]
    print(f"\n{plan_curve_table(plans)}\n")
    for remark in plan_remarks(evaluation.results):
        print(f"Note: {remark}")
    try:
        plot_plans(plans, evaluation.folder / PLAN_FIGURE)
    except ImportError:
        return
    print(f"Effect of the number of plans: {evaluation.folder / PLAN_FIGURE}")


def _write_report(folder: Path) -> None:
    from ..report.writer import try_to_write_report

    if report := try_to_write_report(folder):
        print(f"Report: {report}")


def _update_card(config: "EvaluationConfig", evaluation: "Evaluation") -> None:
    """Add the scores to the model card, if there is one in the model's folder or `update_card` is on."""
    from ..evaluation.cards import card_scores, card_sections, find_card, update_model_card
    from ..hub.scores import FewerProblemsError

    model, results = config.model_name_or_path, evaluation.results
    if model is None or config.update_card is False or not (config.update_card or find_card(model)):
        return
    try:
        place = update_model_card(
            model,
            card_scores(results, results["generation"]),
            card_sections(results),
            revision=config.model_revision,
            folder=evaluation.folder,
        )
    except (OSError, ValueError) as error:
        if config.update_card and not isinstance(error, FewerProblemsError):
            raise
        print(f"Note: the scores were not added to the model card: {error}")
        return
    print(f"Scores added to the model card: {place}.")


def _draw(evaluation: "Evaluation") -> str:
    from ..evaluation.report import plot_errors

    try:
        plot_errors(evaluation.results, evaluation.folder / FIGURE)
    except ImportError:
        return "Install matplotlib to get a figure of the errors."
    return f"Outcomes of the programs: {evaluation.folder / FIGURE}"


ACTIONS: Mapping[str, Action] = {"": Action(_argument_types, _run)}

if __name__ == "__main__":
    raise SystemExit(run(main))
