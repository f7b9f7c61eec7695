"""Sections of the report of a run, each from what is known of it; a section without content is left out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from ..akd.metrics import METRICS
from ..charts import SMALL, Series, bar_chart, interval_chart, line_chart
from ..evaluation.cards import effective_settings
from ..evaluation.report import error_counts, plan_remarks, warnings_about
from ..evaluation.results import evaluation_command
from ..hub.model_card import RECIPE_FILE
from ..hub.private import public_settings
from ..hub.scores import not_measured
from ..iterkd.cycle.records import LEVELS
from ..iterkd.cycle.report import HEADER, cycle_cells
from .page import Block, Bullets, Code, Facts, Figure, Program, Prose, Section, Table, Text
from .sources import AFTER, BEFORE, TEACHER, Evaluated, Log, Run

__all__ = ["make_sections"]

_PASSED, _PER_CLASS = 3, 2  # number of programs shown that passed, and of those of each class of failures
_TEXTS = 3  # number of pairs, and of answers by level, that are shown
_STEP = "optimizer step"
_NATS = "nats per target token"
_CURVES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Loss": (_NATS, {"loss": "training", "eval_loss": "evaluation"}),
    "KL divergences between teacher and student": (
        _NATS,
        {"kd/forward_kl": "forward KL", "kd/reverse_kl": "reverse KL"},
    ),
    "Losses of CodePLAN's tasks": (
        _NATS,
        {f"codeplan/{task}_loss": name for task, name in (("code", "code"), ("plan", "plan"), ("guided", "guided"))},
    ),
    "Losses on correct answers and against faulty ones": (
        _NATS,
        {"iterkd/supervised_loss": "supervised", "iterkd/contrastive_loss": "contrastive"},
    ),
    "Share of pairs whose correct answer has a higher reward than every faulty one": (
        "share",
        {"iterkd/accuracy": ""},
    ),
    "Entropy of the student": (_NATS, {"entropy": ""}),
    "pass@1 during training": ("pass@1", {"eval_pass@1": ""}),
}
_KNOB, _BETA = "kd/", "β, the weight of reverse KL"


def make_sections(run: Run) -> list[Section]:
    """Return the sections of the report. A failure in one of them is stated in the section on what is not shown."""
    makers = {
        "Scores": _scores,
        "Cycles": _cycles,
        "Training": _training,
        "Plans": _plans,
        "Outcomes of the programs": _outcomes,
        "Sample programs": _programs,
        "Sample answers of IterKD": _answers,
        "Method and settings": _settings,
        "Not measured": _limits,
        "Reproduce": _reproduction,
    }
    sections = []
    for title, make in makers.items():
        try:
            sections.append(Section(title, list(make(run))))
        except Exception as error:  # of any kind, as files may be damaged in any way
            run.problems.append(f"The section “{title}” could not be made: {type(error).__name__}: {error}.")
    return [*sections, Section("Not shown", [Bullets(run.problems)] if run.problems else [])]


def _scores(run: Run) -> Iterator[Block]:
    found = [(each.model, each.benchmark, score, each) for each in _compared(run) for score in each.scores]
    known = {(benchmark, score.metric_type) for model, benchmark, score, _ in found if model == AFTER}
    on_card = [(AFTER, score.dataset_name, score, None) for score in run.card if _has_interval(score)]
    rows = [*found, *(row for row in on_card if (row[1], row[2].metric_type) not in known)]
    for benchmark, metric in dict.fromkeys((row[1], row[2].metric_type) for row in rows):
        points = {
            f"{model}{_variant(score)}": (score.metric_value, *score.metric_args["interval"])
            for model, name, score, _ in rows
            if (name, score.metric_type) == (benchmark, metric)
        }
        level = next(score.metric_args.get("confidence", 0.95) for _, name, score, _ in rows if name == benchmark)
        title = f"{metric} on {benchmark}"
        chart = interval_chart(title, metric, points, SMALL[0])
        yield Figure(chart, f"{title}, with {level:.0%} confidence intervals.")
    if rows:
        yield Table(
            ["model", "benchmark", "metric", "score", "interval", "problems solved"],
            [
                [model, benchmark, _metric(score), f"{score.metric_value:.3f}", _interval(score), _solved(evaluated)]
                for model, benchmark, score, evaluated in rows
            ],
        )
    for each in run.evaluations:
        levels = each.results.get("difficulties") or {}
        if levels and each is run.subject:
            names = [name for name in next(iter(levels.values())) if name.startswith("pass@") and "_" not in name]
            yield Table(
                [f"difficulty, {each.model}", *names],
                [[level, *(f"{found[name]:.3f}" for name in names)] for level, found in levels.items()],
            )


def _training(run: Run) -> Iterator[Block]:
    logged = {name for log in run.logs for name in log if name.startswith(_KNOB)} - set(METRICS.values())
    knobs = {name: name.removeprefix(_KNOB) for name in sorted(logged)}
    changed = {_BETA if knob == "beta" else knob: (knob, {name: ""}) for name, knob in knobs.items()}
    label = f"{_STEP}, of all cycles" if run.cycles else _STEP
    first, *others = _CURVES.items()
    curves: Mapping[str, Any] = {**dict([first]), **changed, **dict(others)}
    for title, (unit, names) in curves.items():
        series = [
            Series(names[name], points, style)
            for style, name in enumerate(names)
            if len(points := _points(run.logs, name)) > 1
        ]
        if series:
            yield Figure(line_chart(title, label, "β" if unit == "beta" else unit, series, SMALL), f"{title}.")


def _points(logs: Sequence[Log], name: str) -> list[tuple[float, float]]:
    return [(log["step"], log[name]) for log in logs if name in log]


def _outcomes(run: Run) -> Iterator[Block]:
    for benchmark in dict.fromkeys(each.benchmark for each in _compared(run)):
        found = {each.model: error_counts(each.results) for each in _compared(run) if each.benchmark == benchmark}
        counts = {model: {name: count for name, count in of.items() if count} for model, of in found.items()}
        totals = {model: sum(of.values()) for model, of in counts.items() if of}
        if not totals:
            continue
        title = f"Outcomes of the programs, {benchmark}"
        shares = {model: {name: n / totals[model] for name, n in counts[model].items()} for model in totals}
        yield Figure(bar_chart(title, "share of the programs", shares, SMALL[0]), f"{title}.")
        yield Table(
            [f"outcome, {benchmark}", *totals],
            [
                [name, *(f"{counts[model].get(name, 0)} ({shares[model].get(name, 0):.1%})" for model in totals)]
                for name in dict.fromkeys(name for of in counts.values() for name in of)
            ],
        )
    remarks = [f"{each.model}: {remark}" for each in _compared(run) for remark in warnings_about(each.results)]
    if remarks:
        yield Bullets(remarks)


def _compared(run: Run) -> list[Evaluated]:
    """Return the evaluations to compare: without those at the steps between the first and the last."""
    return [each for each in run.evaluations if not each.model.startswith("student at step")]


def _programs(run: Run) -> Iterator[Block]:
    if run.subject is None:
        return
    rows = run.samples(run.subject)
    passed: list[Mapping[str, Any]] = [row for row in rows if row["status"] == "passed"]
    classes: dict[str, list[Mapping[str, Any]]] = {}
    for failed in rows:
        if failed["status"] != "passed":
            classes.setdefault(_outcome(failed), []).append(failed)
    if rows:
        yield Text(f"{run.subject.model}: the first programs that passed, and the first of each class of failures.")
    shown = _first_of_each_problem(passed, _PASSED)
    for _, several in sorted(classes.items(), key=lambda item: -len(item[1])):
        shown += _first_of_each_problem(several, _PER_CLASS)
    for number, row in enumerate(shown):
        yield Program(
            f"{row['task_id']}, sample {row['sample'] + 1}",
            _outcome(row),
            row["status"] == "passed",
            [
                ("Program", row["solution"]),
                *([("Message", row["message"])] if row.get("message") else []),
                *([("Completion", row["completion"])] if row["completion"] not in row["solution"] else []),
            ],
            shown=number == 0,
        )


def _first_of_each_problem(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    return list({row["task_id"]: row for row in reversed(rows)}.values())[::-1][:count]


def _outcome(row: Mapping[str, Any]) -> str:
    """Return the outcome of a program, such as `"passed"` or `"NameError: missing import"`."""
    label = row.get("label") or {}
    kind, cause = label.get("error_type"), label.get("cause")
    if kind is None:
        return str(row["status"])
    name = kind.replace("_", " ")
    return name if cause in (None, kind) else f"{name}: {cause.replace('_', ' ')}"


def _cycles(run: Run) -> Iterator[Block]:
    if not run.cycles:
        return
    numbers = [report.cycle + 1 for report in run.cycles]
    feedback = [(number, report.feedback["score"]) for number, report in zip(numbers, run.cycles, strict=True)]
    held_out = [
        (number, report.held_out["pass@1"])
        for number, report in zip(numbers, run.cycles, strict=True)
        if report.held_out
    ]
    series = [Series("mean feedback", feedback, 0), *([Series("held-out pass@1", held_out, 1)] if held_out else [])]
    if len(numbers) > 1:
        yield Figure(
            line_chart("Scores by cycle", "cycle", "fraction", series, SMALL),
            "Mean feedback on the questions of each cycle, and pass@1 on the held-out questions.",
        )
    if held_out:
        points = {
            f"cycle {report.cycle + 1}": tuple(
                report.held_out[name] for name in ("pass@1", "pass@1_low", "pass@1_high")
            )
            for report in run.cycles
            if report.held_out
        }
        yield Figure(
            interval_chart("Held-out pass@1", "pass@1", points, SMALL[0]),  # type: ignore[arg-type]
            "pass@1 on the held-out questions, with 95% confidence intervals.",
        )
    levels: dict[str, dict[str, float]] = {
        f"cycle {report.cycle + 1}": {level: report.feedback[level] for level in LEVELS} for report in run.cycles
    }
    yield Figure(
        bar_chart("Difficulty", "share of the questions", levels, SMALL[0]),
        "Difficulty of the questions for the student, by its answers.",
    )
    yield Table(HEADER, [cycle_cells(report) for report in run.cycles])
    dropped = sum((Counter(report.dropped) for report in run.cycles), Counter[str]())
    faults = sum((Counter(report.faults) for report in run.cycles), Counter[str]())
    counts = [*((f"fault: {name}", count) for name, count in faults.most_common())]
    counts += [(f"dropped: {name}", count) for name, count in dropped.most_common()]
    if counts:
        yield Table(["answers of the teacher", "number"], [[name, str(count)] for name, count in counts])
    yield from _usage(run.usage)


def _usage(usage: Mapping[str, Any]) -> Iterator[Block]:
    rows = [
        [
            model,
            *(f"{used[name]:,}" for name in ("requests", "prompt_tokens", "completion_tokens")),
            "" if used["cost"] is None else f"{used['cost']:.2f}",
        ]
        for model, used in usage.items()
        if isinstance(used, dict)
    ]
    if rows:
        yield Table(["model", "requests", "prompt tokens", "completion tokens", "cost"], rows)
    if usage.get("stopped"):
        yield Bullets([f"The run was ended by a budget: {usage['stopped']}."])


def _answers(run: Run) -> Iterator[Block]:
    """Yield pairs of the last cycle that has any, and answers of the student by level."""
    shown = [item for item in run.items if item["kind"] in ("pair", "feedback")]
    if not shown:
        return
    last = max(item["cycle"] for item in shown)
    items = [item for item in shown if item["cycle"] == last]
    questions = {item["id"]: item["instruction"] for item in run.items if item["kind"] == "question"}
    pairs = [item for item in items if item["kind"] == "pair" and item["faults"]]
    if pairs:
        yield Text(f"Correct and faulty answers of the teacher in cycle {last + 1}:")
    for item in pairs[:_TEXTS]:
        faults = [(f"Faulty answer ({fault['kind'] or 'of the student'})", fault["text"]) for fault in item["faults"]]
        parts = [("Question", questions.get(item["id"], "")), ("Correct answer", item["correct"]), *faults]
        yield Program(item["id"], "1 fault" if len(faults) == 1 else f"{len(faults)} faults", None, parts)
    answers = [item for item in items if item["kind"] == "feedback"]
    if answers:
        yield Text(f"Answers of the student in cycle {last + 1}, by the difficulty of the question:")
    for level in LEVELS:
        for item in [each for each in answers if each["level"] == level][:_TEXTS]:
            passed = item["tests_passed"]
            tests = "" if passed is None else f", {passed:.0%} of the tests passed"
            yield Program(
                item["id"],
                f"{level}, score {item['score']:.2f}{tests}",
                None if passed is None else passed == 1,
                [("Question", questions.get(item["id"], "")), ("Answer", item["answer"])],
            )


def _plans(run: Run) -> Iterator[Block]:
    for each in run.evaluations:
        plans = each.results.get("plans")
        if not plans:
            continue
        curve: Mapping[str, Mapping[str, Sequence[float]]] = plans["curve"]
        names = list(next(iter(curve.values())))
        series = [
            Series(name, [(float(number), found[name][0]) for number, found in curve.items()], style)
            for style, name in enumerate(names)
        ]
        if len(curve) > 1:
            title = f"{each.model}: scores by the number of plans"
            yield Figure(line_chart(title, "plans", "fraction", series, SMALL), f"{title}.")
        yield Table(
            ["plans", *names],
            [
                [number, *("{:.3f} ({:.3f} to {:.3f})".format(*found[name][:3]) for name in names)]
                for number, found in curve.items()
            ],
        )
        if remarks := plan_remarks(each.results):
            yield Bullets(remarks)
        for task_id, problem in list(plans["problems"].items())[:_TEXTS]:
            chosen = list(problem["chosen"].values())[-1]
            yield Program(
                f"Plans for {task_id}",
                f"{len(problem['scores'])} plans",
                None,
                [
                    (f"Plan {index + 1}{', selected' if index == chosen else ''}{_fraction(score)}", score["plan"])
                    for index, score in enumerate(problem["scores"])
                ],
            )


def _fraction(score: Mapping[str, Any]) -> str:
    fraction = score["pass_fraction"]
    return "" if fraction is None else f", {fraction:.0%} of the public tests passed"


def _settings(run: Run) -> Iterator[Block]:
    if run.facts:
        rows = [("Method", str(run.facts["method"]))]
        rows += [(row["name"], _at(row["value"], row["revision"])) for row in run.facts["facts"]]
        yield Facts(rows)
        if run.facts["explanation"]:
            yield Prose(run.facts["explanation"])
    for each in run.evaluations:
        if each is run.subject:
            yield Text(f"Evaluation of: {each.model}.")
            yield Facts(_evaluation_facts(each))


def _evaluation_facts(evaluated: Evaluated) -> list[tuple[str, str]]:
    results = evaluated.results
    benchmark = results["benchmark"]
    settings = {
        "benchmark": benchmark["dataset"] or benchmark["name"],
        "revision": benchmark["revision"] or benchmark["fingerprint"],
        "problems": benchmark["problems"],
        **effective_settings(results.get("generation") or {}),
        **(results.get("execution") or {}),
        **{f"seconds of {name}": value for name, value in results.get("seconds", {}).items()},
    }
    return [(name, str(value)) for name, value in public_settings(settings).items() if value is not None]


def _at(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}, at revision {revision}"


def _limits(run: Run) -> Iterator[Block]:
    models = {each.model for each in run.evaluations}
    measured = bool(run.evaluations or run.card or any(report.held_out for report in run.cycles))
    yield Bullets(
        not_measured(
            is_measured=measured, is_compared=bool(models & {BEFORE, TEACHER}), with_teacher=TEACHER in models
        )
    )


def _reproduction(run: Run) -> Iterator[Block]:
    command = run.facts.get("command")
    if command:
        yield Code(str(command))
        yield Text(f"{RECIPE_FILE} in the folder of the run has all settings that differ from the defaults.")
    elif run.facts:
        yield Text("The run was started from Python; the settings of the objective are listed above.")
    elif run.subject is not None and (command := evaluation_command(run.subject.results)):
        yield Code(command)
    versions = run.facts.get("versions") or (run.subject.results.get("versions") if run.subject else None) or {}
    if versions:
        yield Facts([(name, str(number)) for name, number in versions.items()])


def _has_interval(score: EvalResult) -> bool:
    return len((score.metric_args or {}).get("interval") or ()) == 2


def _metric(score: EvalResult) -> str:
    return str(score.metric_name or score.metric_type)


def _variant(score: EvalResult) -> str:
    """Return the variant of a score, such as `", with plans"`, or nothing."""
    variant = _metric(score).removeprefix(score.metric_type).strip()
    return f", {variant}" if variant else ""


def _interval(score: EvalResult) -> str:
    low, high = score.metric_args["interval"]
    return f"{low:.3f} to {high:.3f}"


def _solved(evaluated: Evaluated | None) -> str:
    if evaluated is None:
        return ""
    tasks = evaluated.results["tasks"].values()
    return f"{sum(task['correct'] > 0 for task in tasks)} of {len(tasks)}"
