"""Plans from a scripted teacher: requested once, stored, checked and counted."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tests.codeplan.scripted import Scripted, data
from trl_akd.cli.plans import read_rows
from trl_akd.codeplan.plan_config import PlanGenerationConfig
from trl_akd.codeplan.plan_generation import PlanGenerator
from trl_akd.codeplan.plan_prompts import PLAN_PROMPTS, PLAN_STOP
from trl_akd.data.sources import load
from trl_akd.generation import Completion, GenerationError

ROWS = [
    {"id": "double", "problem": "Double it {please}.", "solutions": ["print(2 * x)", "print(x + x)", "print(2 * x)"]},
    {"id": "one", "problem": "Print one.", "solutions": ["print(1)"], "difficulty": "easy"},
]


def plan(*words: str) -> str:
    return "1. Begin.\n2. End" + " ".join(["", *words]) + "."


def teacher() -> Scripted:
    return Scripted(lambda prompt, number, seed: plan(prompt.split("### Program\n")[-1].splitlines()[0], str(number)))


def generator(tmp_path: Path, asked: Scripted, **settings) -> PlanGenerator:
    return PlanGenerator(asked, output=tmp_path / "answers.jsonl", progress=False, **settings)


# What is asked, and what comes of it


def test_backward_prompts_have_every_distinct_solution(tmp_path: Path):
    asked = teacher()
    rows = generator(tmp_path, asked, n=2).run(ROWS)
    assert rows[0]["plans"] == [plan(s, n) for s in ("print(2 * x)", "print(x + x)") for n in "01"]
    assert rows[0]["plan_solutions"] == [0, 0, 1, 1]
    assert rows[1] == {
        **ROWS[1],
        "plans": [plan("print(1)", "0"), plan("print(1)", "1")],
        "plan_solutions": [0, 0],
    }
    [prompts] = asked.calls
    assert all("Double it {please}." in prompt for prompt in prompts[:2])
    assert asked.settings[0]["stop"] == PLAN_STOP and asked.settings[0]["temperature"] == 0.2
    assert "plans" not in ROWS[0], "the caller's rows are left alone"


class Chat(Scripted):
    is_chat = True


@pytest.mark.parametrize(
    ("kind", "settings", "stop"),
    [(Scripted, {}, PLAN_STOP), (Chat, {}, ()), (Scripted, {"format_prompt": "<user>{}<model>".format}, ())],
)
def test_chat_models_may_write_headings(tmp_path: Path, kind, settings, stop):
    asked = kind(lambda *_: f"Here is the plan.\n\n### Plan\n{plan()}\n\n### Notes\nNone.")
    rows = generator(tmp_path, asked, **settings).run(ROWS[1:])
    assert asked.settings[0]["stop"] == stop
    assert rows[0]["plans"] == [plan()]


def test_forward_does_not_see_solutions(tmp_path: Path):
    asked = Scripted(lambda prompt, number, seed: plan())
    rows = generator(tmp_path, asked, reasoning="forward").run([{"id": 1, "problem": "P"}, *ROWS])
    assert [row["plans"] for row in rows] == [[plan()]] * 3
    assert not any("plan_solutions" in row for row in rows)
    assert not any("print(1)" in prompt or "print(2 * x)" in prompt for prompt in asked.calls[0])


@pytest.mark.parametrize("reasoning", ["backward", "forward"])
def test_rows_that_had_plans_already(tmp_path: Path, reasoning: str):
    before = {"plan": "1. Old.\n2. Plan.", "plans": ["1. Old.\n2. Plan."] * 3, "plan_solutions": [0, 0, 0]}
    rows = generator(tmp_path, Scripted(lambda *_: plan()), reasoning=reasoning).run([{**ROWS[1], **before}])
    assert rows[0]["plans"] == [plan()] and "plan" not in rows[0]
    assert rows[0].get("plan_solutions") == ([0] if reasoning == "backward" else None)


def test_prompts_have_one_example_and_end_before_the_plan():
    for prompt in PLAN_PROMPTS.values():
        text = prompt.render("PROBLEM", "SOLUTION")
        assert text.endswith("### Plan\n") and text.count("### Plan") == 2 and text.count("PROBLEM") == 1
        assert ("SOLUTION" in text) is (prompt.name == "backward")
        assert prompt.version.startswith(f"{prompt.name}-")
    assert PLAN_STOP[0] in PLAN_PROMPTS["forward"].layout


def test_plan_of_the_example_is_valid(tmp_path: Path):
    demo = PLAN_PROMPTS["backward"].layout.split("### Plan\n")[1].split("\n\n###")[0]
    rows = generator(tmp_path, Scripted(lambda *_: demo)).run(ROWS)
    assert rows[1]["plans"] == [demo]


def test_shortest_solutions(tmp_path: Path):
    asked = teacher()
    rows = [{"id": 1, "problem": "P", "solutions": ["print(111)", "print(1)", "print(11)"]}]
    [row] = generator(tmp_path, asked, max_solutions=2).run(rows)
    assert row["plans"] == [plan("print(1)", "0"), plan("print(11)", "0")]
    assert row["plan_solutions"] == [1, 2]


def test_rejected_answers_do_not_shift_plan_solutions(tmp_path: Path):
    asked = Scripted(lambda prompt, number, seed: "no plan" if "print(2 * x)" in prompt else plan())
    [row, _] = generator(tmp_path, asked).run(ROWS)
    assert (row["plans"], row["plan_solutions"]) == ([plan()], [1])


class Refusing(Scripted):
    """Refuse every prompt that contains a word."""

    def _complete(self, prompt, number, seed):
        if "please" in prompt:
            return Completion("", None, "refused", None, "content filter")
        return super()._complete(prompt, number, seed)


def test_only_the_refused_prompt_fails(tmp_path: Path):
    """The prompt is recorded with the server's message and not sent again; the others get plans."""
    asked = Refusing(lambda *_: plan())
    plans = generator(tmp_path, asked)
    rows = plans.run(ROWS)
    assert [row["plans"] for row in rows] == [[], [plan()]]
    assert plans.report.rejected == {"refused": 2} and plans.report.plans == 1
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["refusal"] for line in lines if line.get("finish_reason") == "refused"] == ["content filter"] * 2
    again = Refusing(lambda *_: plan())
    later = generator(tmp_path, again)
    assert later.run(ROWS) == rows and again.asked == 0 and later.report.rejected == {"refused": 2}


def test_file_of_an_earlier_version(tmp_path: Path):
    generator(tmp_path, teacher()).run(ROWS)
    file = tmp_path / "answers.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line.pop("refusal", None)
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    again = teacher()
    assert len(generator(tmp_path, again).run(ROWS)[0]["plans"]) == 2 and again.asked == 0


@pytest.mark.parametrize(("written", "kept"), [("\ud83d", "\ufffd"), ("\ud83d\ude00", "\U0001f600")])
def test_lone_surrogates_in_answers(tmp_path: Path, written: str, kept: str):
    rows = generator(tmp_path, Scripted(lambda *_: plan(written))).run(ROWS)
    assert rows[1]["plans"] == [plan(kept)]
    file = tmp_path / "plans.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert len(load(file)) == 2
    again = Scripted(lambda *_: pytest.fail("it is there"))
    assert generator(tmp_path, again).run(ROWS) == rows


@pytest.mark.parametrize("change", [{"problem": "\ud83d"}, {"solutions": ["print('\udc00')"]}])
def test_lone_surrogates_in_problems(tmp_path: Path, change: dict):
    with pytest.raises(ValueError, match=r"of row 'one' contains a lone surrogate"):
        generator(tmp_path, teacher()).run([ROWS[0], {**ROWS[1], **change}])


def test_the_teacher_s_template(tmp_path: Path):
    asked = teacher()
    generator(tmp_path, asked, format_prompt=lambda request: f"<user>{request}</user>").run(ROWS)
    assert all(prompt.startswith("<user>You help") and prompt.endswith("</user>") for prompt in asked.calls[0])


def test_custom_prompt(tmp_path: Path):
    asked = teacher()
    own = "Write {{steps}} for {problem}\n### Program\n{solution}\n"
    rows = generator(tmp_path, asked, layout=own).run(ROWS[1:])
    assert asked.calls == [["Write {steps} for Print one.\n### Program\nprint(1)\n"]]
    assert rows[0]["plans"] == [plan("print(1)", "0")]
    generator(tmp_path, asked).run(ROWS[1:])
    generator(tmp_path, asked, layout=own).run(ROWS[1:])
    assert asked.asked == 2, "the wording is part of what was asked"


@pytest.mark.parametrize(
    ("reasoning", "layout", "message"),
    [
        ("backward", "{problem}", "lacks the fields {solution}; backward reasoning takes {problem} and {solution}"),
        ("forward", "{problem} {solution}", "has unknown fields {solution}; forward reasoning takes {problem}"),
        ("forward", "{problem} {}", "unknown fields {}"),
        ("forward", "{problem} {", "is not a format string"),
    ],
)
def test_custom_prompt_with_wrong_fields(tmp_path: Path, reasoning: str, layout: str, message: str):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        generator(tmp_path, teacher(), reasoning=reasoning, layout=layout)
    file = tmp_path / "prompt.txt"
    file.write_text(layout)
    config = PlanGenerationConfig(
        model_name_or_path="teacher", dataset_name="problems", reasoning=reasoning, prompt_file=str(file)
    )
    with pytest.raises(ValueError, match=r"`prompt_file` .* cannot be used: `layout`"):
        config.layout()


def test_custom_prompt_in_a_file(tmp_path: Path):
    file = tmp_path / "prompt.txt"
    config = PlanGenerationConfig(
        model_name_or_path="teacher", dataset_name="problems", reasoning="forward", prompt_file=str(file)
    )
    with pytest.raises(ValueError, match="No such file"):
        config.layout()
    file.write_text("Plan {problem}:\n")
    assert config.layout() == "Plan {problem}:\n"
    assert PlanGenerationConfig(model_name_or_path="teacher", dataset_name="problems").layout() is None


# Rejects


def test_rejected_answers_are_counted_kept_and_not_requested_again(tmp_path: Path):
    answers = {"print(2 * x)": "no plan", "print(x + x)": "1. x = 1\n2. Print it.", "print(1)": plan()}

    def write(prompt: str, number: int, seed: int | None) -> str:
        return answers[prompt.split("### Program\n")[-1].splitlines()[0]]

    asked = Scripted(write)
    plans = generator(tmp_path, asked)
    rows = plans.run(ROWS)
    assert [row["plans"] for row in rows] == [[], [plan()]]
    assert plans.report.rejected == {"not_numbered": 1, "code": 1}
    assert (plans.report.wanted, plans.report.plans, plans.report.without) == (3, 1, 1)
    assert plans.report.plans + sum(plans.report.rejected.values()) == plans.report.wanted
    plans.run(ROWS)
    assert asked.asked == 3 and plans.report.rejected == {"not_numbered": 1, "code": 1}
    lenient = generator(tmp_path, asked, max_plan_chars=5)
    lenient.run(ROWS)
    assert lenient.report.rejected == {"not_numbered": 1, "too_long": 2} and asked.asked == 3, "checked again"


def test_truncated_plans_are_rejected(tmp_path: Path):
    class Cut(Scripted):
        def _complete(self, prompt, number, seed):
            return Completion(plan(), -0.5, "length", 512)

    plans = generator(tmp_path, Cut(None))
    assert plans.run(ROWS)[1]["plans"] == [] and plans.report.rejected == {"truncated": 3}


def test_prompts_that_are_too_long_are_left_out(tmp_path: Path):
    asked, plans = teacher(), None
    plans = generator(tmp_path, asked, max_prompt_chars=3000, n=2)
    rows = plans.run([*ROWS, {"id": "long", "problem": "P", "solutions": ["x = 1\n" * 1000]}])
    assert rows[2]["plans"] == [] and plans.report.rejected == {"prompt_too_long": 2} and asked.asked == 3
    assert plans.report.stopped is None


# Going on


def test_recorded_answers_are_not_requested_again(tmp_path: Path):
    asked = teacher()
    first = generator(tmp_path, asked).run(ROWS[:1])
    more = generator(tmp_path, asked).run(ROWS)
    assert more[0] == first[0] and asked.asked == 3
    assert [len(call) for call in asked.calls] == [2, 1]


def test_additional_plans_are_different(tmp_path: Path):
    asked = Scripted(lambda prompt, number, seed: plan(str(seed), str(number)))
    few = generator(tmp_path, asked, n=1).run(ROWS)
    many = generator(tmp_path, asked, n=3).run(ROWS)
    assert many[1]["plans"][0] == few[1]["plans"][0] and len(set(many[1]["plans"])) == 3
    assert [settings["n"] for settings in asked.settings] == [1, 2]
    assert generator(tmp_path, asked, n=1).run(ROWS) == few and len(asked.calls) == 2


def test_another_solution_or_prompt_is_a_new_request(tmp_path: Path):
    asked = teacher()
    generator(tmp_path, asked).run(ROWS[1:])
    changed = [{**ROWS[1], "solutions": ["print(0 + 1)"]}]
    assert generator(tmp_path, asked).run(changed)[0]["plans"] == [plan("print(0 + 1)", "0")]
    generator(tmp_path, asked, reasoning="forward").run(ROWS[1:])
    assert asked.asked == 3
    generator(tmp_path, asked, reasoning="forward").run([{**ROWS[1], "problem": "Print 1, please."}])
    assert asked.asked == 4, "another wording of the problem, too"
    keys = {tuple(json.loads(line)[name] for name in ("id", "shown", "prompt")) for line in lines(tmp_path)}
    assert len(keys) == 4


def lines(tmp_path: Path) -> list[str]:
    return (tmp_path / "answers.jsonl").read_text().splitlines()


def test_answers_of_another_teacher_are_refused(tmp_path: Path):
    generator(tmp_path, teacher(), settings={"model": "a"}).run(ROWS)
    with pytest.raises(ValueError, match="was generated with model='a', not 'b'; give another output"):
        generator(tmp_path, teacher(), settings={"model": "b"}).run(ROWS)
    with pytest.raises(ValueError, match=r"was generated with temperature=0\.2, not 0\.9"):
        generator(tmp_path, teacher(), settings={"model": "a"}, temperature=0.9).run(ROWS)


def test_file_of_another_tool_is_refused(tmp_path: Path):
    generator(tmp_path, teacher()).run(ROWS)
    (tmp_path / "answers.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match="line 1 is not an answer of this package"):
        generator(tmp_path, teacher()).run(ROWS)


def _ask_until_killed(tmp_path: Path) -> None:
    def write(prompt: str, number: int, seed: int | None) -> str:
        if "print(1)" in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        return plan()

    generator(tmp_path, Scripted(write), batch_size=1).run(ROWS)


def test_no_request_is_repeated_after_kill_9(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=_ask_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(lines(tmp_path)) == 2
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"id": "one", "solu')
    asked = Scripted(lambda *_: plan())
    rows = generator(tmp_path, asked).run(ROWS)
    assert [row["plans"] for row in rows] == [[plan()] * 2, [plan()]]
    assert asked.asked == 1 and "print(1)" in asked.calls[0][0]


def test_failure_keeps_recorded_answers(tmp_path: Path):
    class Failing(Scripted):
        def stream(self, prompts, sampling):
            found = self.generate(prompts, **vars(sampling))
            yield from [(1, found[1][:1]), (0, found[0][:1]), (1, found[1][1:])]
            raise GenerationError("the server is gone")

    failing = Failing(lambda prompt, number, seed: plan(str(seed), str(number)))
    with pytest.raises(GenerationError, match="the server is gone"):
        generator(tmp_path, failing, n=2).run(ROWS)
    assert len(lines(tmp_path)) == 3
    asked = Scripted(lambda prompt, number, seed: plan(str(seed), str(number)))
    rows = generator(tmp_path, asked, n=2).run(ROWS)
    assert [len(row["plans"]) for row in rows] == [4, 2]
    assert sorted((settings["n"], len(call)) for settings, call in zip(asked.settings, asked.calls, strict=True)) == [
        (1, 1),
        (2, 1),
    ]
    assert len(set(rows[0]["plans"][:2])) == 2, "the second half of an answer is another sample"


def test_error_names_the_refused_prompt(tmp_path: Path):
    class Short(Scripted):
        def generate(self, prompts, **settings):
            raise ValueError("`prompts[0]` exceeds the positions of the model.")

    with pytest.raises(ValueError, match=r"exceeds the positions.*those of the problems 'double', 'double', 'one'"):
        generator(tmp_path, Short(None)).run(ROWS)


# Budgets


@pytest.mark.parametrize(("limit", "asked_for"), [(1, 1), (2, 2), (3, 3), (100, 3)])
def test_max_requests(tmp_path: Path, limit: int, asked_for: int):
    asked = teacher()
    plans = generator(tmp_path, asked, batch_size=2, max_requests=limit)
    rows = plans.run(ROWS)
    assert asked.asked == plans.report.requests == asked_for
    assert plans.report.stopped == ("max_requests" if limit < 3 else None)
    assert sum(len(row["plans"]) for row in rows) == asked_for
    generator(tmp_path, asked, max_requests=100).run(ROWS)
    assert asked.asked == 3, "the rest, and no more"


def test_max_tokens(tmp_path: Path):
    asked = Scripted(lambda *_: plan("a", "b", "c", "d"))  # 8 tokens
    plans = generator(tmp_path, asked, batch_size=8, max_tokens=10, max_new_tokens=10)
    plans.run(ROWS)
    assert [len(call) for call in asked.calls] == [1, 1], "no more at a time than the budget can pay for"
    assert (plans.report.tokens, plans.report.stopped) == (16, "max_tokens")


def test_unreported_tokens_count_as_the_maximum(tmp_path: Path):
    class Silent(Scripted):
        def _complete(self, prompt, number, seed):
            return Completion(plan(), None, "stop", None)

    plans = generator(tmp_path, Silent(None), max_new_tokens=50)
    plans.run(ROWS)
    assert plans.report.tokens == 150


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "`n` is 0"),
        ({"n": 2, "temperature": 0.0}, "`n` is 2 at temperature 0"),
        ({"reasoning": "sideways"}, "`reasoning` is 'sideways'; choose one of backward, forward"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"max_solutions": 0}, "`max_solutions` is 0"),
        ({"max_requests": 0}, "`max_requests` is 0"),
        ({"max_tokens": -1}, "`max_tokens` is -1"),
    ],
)
def test_invalid_arguments(tmp_path: Path, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        generator(tmp_path, teacher(), **settings)


def test_bad_rows_are_refused_before_requests(tmp_path: Path):
    asked = teacher()
    with pytest.raises(ValueError, match="row 'two' has no solutions"):
        generator(tmp_path, asked).run([*ROWS, {"id": "two", "problem": "P", "solutions": []}])
    assert asked.calls == [] and not (tmp_path / "answers.jsonl").exists()


def test_full_disk_is_an_error_that_keeps_written_answers(tmp_path: Path, monkeypatch):
    import trl_akd.codeplan.plan_generation as module

    class Full(module.Ledger):
        appended = 0

        def append(self, rows):
            Full.appended += 1
            if Full.appended > 2:
                self._file.close()
                self._file = open("/dev/full", "r+b", buffering=0)
            super().append(rows)

    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with monkeypatch.context() as patch:
        patch.setattr(module, "Ledger", Full)
        with pytest.raises(
            OSError, match=r"answers\.jsonl cannot be extended \(No space left on device\); free some space"
        ):
            generator(tmp_path, teacher(), batch_size=2).run(ROWS)
    asked = teacher()
    generator(tmp_path, asked).run(ROWS)
    assert asked.asked == 1


# Real data


def test_the_authors_plans_for_apps(tmp_path: Path):
    rows = read_rows(data("apps/train"))
    plans = {
        solution: text
        for home in sorted(data("apps/train").iterdir())
        for solution, text in zip(
            json.loads((home / "solutions.json").read_text()),
            json.loads((home / "plans.json").read_text()),
            strict=False,
        )
    }

    def write(prompt: str, number: int, seed: int | None) -> str:
        program = prompt.split("### Program\n")[-1].split("\n\n### Plan")[0]
        return next((text for solution, text in plans.items() if solution.strip() == program), "none")

    made = generator(tmp_path, Scripted(write))
    found = made.run(rows)
    assert made.report.plans >= 100 and made.report.wanted == sum(len(set(row["solutions"])) for row in rows)
    assert set(made.report.rejected) <= {"not_numbered"}
    assert all(len(row["plans"]) >= 15 for row in found)
