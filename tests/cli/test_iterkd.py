"""`trl-akd iterkd` from its arguments to its output files, with the teacher on a faulty server."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tests.generation.server import Fault, Server, serving
from tests.iterkd import cycle_world
from trl_akd.cli import iterkd as iterkd_command
from trl_akd.cli import main
from trl_akd.evaluation.benchmarks import load_benchmark
from trl_akd.generation.loading import GeneratorConfig, LoadedGenerator
from trl_akd.iterkd.cycle.teaching_config import TeachingConfig


@pytest.fixture
def iterkd(pair: tuple[str, str], tmp_path: Path) -> dict[str, Any]:
    """Keys and values of a recipe whose server does not exist."""
    cycle_world.prepare(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in cycle_world.questions()))
    problems = [
        # In other words than the questions, which would otherwise repeat the benchmark.
        {"task_id": question.id, "prompt": "Increase a number.", "test": question.tests}
        for question in cycle_world.held_out()
    ]
    (tmp_path / "problems.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in problems))
    return {
        **cycle_world.settings(tmp_path, tmp_path / "run", save_strategy="no"),
        "model_name_or_path": pair[0],
        "dataset_name": str(rows),
        "text_teacher_model_name_or_path": "adder",
        "backend": "openai",
        "base_url": "http://127.0.0.1:9/v1",
        "allow_code_execution": True,
        "workers": 1,
        "eval_benchmark": str(tmp_path / "problems.jsonl"),
    }


@pytest.fixture
def server() -> Iterator[Server]:
    def say(path: str, body: dict[str, Any]) -> dict[str, Any]:
        text = cycle_world.answer(body["messages"][0]["content"])
        message = {"role": "assistant", "content": text}
        return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": {}}

    with serving() as server:
        server.answer = say  # type: ignore[method-assign]
        yield server


@pytest.mark.end_to_end
def test_a_served_teacher_and_judge(iterkd: dict[str, Any], server: Server, recipe, tmp_path: Path):
    at_once = {"Retry-After": "0"}
    server.faults += [Fault(429, headers=at_once), Fault(500, headers=at_once), Fault(body="nonsense")]
    path = recipe({**iterkd, "base_url": server.url})
    assert main(["iterkd", "--config", path]) == 0
    run = tmp_path / "run"
    assert AutoModelForCausalLM.from_pretrained(run).num_parameters() > 0
    card = (run / "README.md").read_text()
    assert "IterKD" in card and "| problems | pass@1 |" in card and "Teacher that writes the answers" in card
    [first, second] = json.loads((run / "cycles.json").read_text())
    assert first["dropped"] == {"correct/refused": 1, "fault/none": 1}
    assert first["new"]["kept"] > 0 and set(second["origins"]) > {"seed"}
    assert set(first["held_out"]) == {"pass@1", "pass@1_low", "pass@1_high", "pass@1_tasks"}
    asked = [row for row in cycle_world.lines(run, "completions") if row["name"] != "student"]
    assert {row["name"] for row in asked} == {"teacher", "judge"}
    assert len(server.bodies) == len(asked) + 3, "three requests were repeated, and none else"
    assert main(["iterkd", "--config", path]) == 0
    assert len(server.bodies) == len(asked) + 3, "a run that is done asks nothing"


def usage(run: Path) -> dict[str, Any]:
    return json.loads((run / "usage.json").read_text())


@pytest.mark.end_to_end
def test_budget_applies_to_the_folder(iterkd: dict[str, Any], server: Server, recipe, capsys, tmp_path: Path):
    """The run ends with a student, reports, totals and a status, and continues only with a larger budget."""
    path, run = recipe({**iterkd, "base_url": server.url, "concurrency": 3}), tmp_path / "run"
    for limit, sent in ((5, 5), (5, 5), (20, 20)):
        assert main(["iterkd", "--config", path, "--max_requests", str(limit)]) == 3
        out = capsys.readouterr().out
        assert "Stopped: `max_requests` is reached; raise it, or leave it out, and run again to continue." in out
        assert "| cycle | questions |" in out and f"{run}/cycles.json" in out
        assert "Upper bound of the cost, with cycles=2: teacher: 40 requests" in out.partition("Cycle 1 of 2")[0]
        assert len(server.bodies) == sent
        assert AutoModelForCausalLM.from_pretrained(run).num_parameters() > 0
        assert usage(run)["total"]["requests"] == sent and usage(run)["stopped"] == "max_requests"
        trained = (run / "cycle-0" / "student").exists()
        assert ("No cycle was trained" in out) != trained
        assert (run / "README.md").exists() == trained
        assert json.loads((run / "cycles.json").read_text()) == [] and usage(run)["trained_cycles"] == trained
    assert trained
    assert main(["iterkd", "--config", path]) == 0
    assert "Stopped" not in capsys.readouterr().out and usage(run)["stopped"] is None
    assert len({json.dumps(body) for body in server.bodies}) == len(server.bodies) == usage(run)["total"]["requests"]
    assert usage(run)["total"]["requests"] == sum(usage(run)[name]["requests"] for name in ("teacher", "judge"))


def test_tokens_and_prices(iterkd: dict[str, Any], server: Server, recipe, capsys, tmp_path: Path):
    say = server.answer

    def tell(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**say(path, body), "usage": {"prompt_tokens": 100, "completion_tokens": 10}}

    server.answer = tell  # type: ignore[method-assign]
    prices = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 5.0}
    path = recipe({**iterkd, "base_url": server.url, "cycles": 1, "max_tokens": 1500, "concurrency": 2, **prices})
    assert main(["iterkd", "--config", path]) == 3
    first = usage(tmp_path / "run")["total"]
    assert 1390 <= first["prompt_tokens"] + first["completion_tokens"] < 1500 + 110 and not first["estimated"]
    assert first["cost"] == pytest.approx(first["requests"] * (200 + 50) / 1e6)
    assert ", at a price of 0.0" in capsys.readouterr().out
    assert main(["iterkd", "--config", path, "--max_tokens", "100000"]) == 0
    total = usage(tmp_path / "run")["total"]
    assert total["prompt_tokens"] == 100 * len(server.bodies) and total["requests"] == len(server.bodies)
    assert f"Spent so far: teacher: {first['requests']} requests" in capsys.readouterr().out


def test_time_budget_applies_to_the_folder(iterkd: dict[str, Any], server: Server, recipe, capsys, tmp_path: Path):
    path = recipe({**iterkd, "base_url": server.url, "max_seconds": 300.0})
    seconds = tmp_path / "run" / "ledger" / "spending.json"
    seconds.parent.mkdir(parents=True)
    seconds.write_text('{"seconds": 301.0, "requests": 0}')
    assert main(["iterkd", "--config", path]) == 3 and not server.bodies
    assert usage(tmp_path / "run")["seconds"] >= 301.0 and json.loads(seconds.read_text())["seconds"] >= 301.0
    seconds.write_text("{")
    assert main(["iterkd", "--config", path]) == 2
    assert "spending.json is damaged" in capsys.readouterr().err


def test_requests_without_an_answer_count_in_the_next_run(iterkd: dict[str, Any], server: Server, recipe, capsys):
    """A run that is restarted after server errors does not exceed its budget."""
    server.refuses = lambda body: Fault(500) if len(server.bodies) > 5 else None
    settings = {"base_url": server.url, "max_requests": 12, "max_retries": 2, "concurrency": 1}
    path = recipe({**iterkd, **settings})
    statuses = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("trl_akd.generation.json_client.time.sleep", lambda seconds: None)
        statuses += [main(["iterkd", "--config", path]) for _ in range(4)]
    assert statuses == [2, 2, 3, 3] and len(server.bodies) == 12
    assert "`max_requests` is reached" in capsys.readouterr().out


@pytest.mark.end_to_end
def test_refused_prompts(iterkd: dict[str, Any], server: Server, recipe, capsys, tmp_path: Path):
    """Refused prompts count as requests and are not sent again."""
    task = cycle_world.task(5)
    server.refuses = lambda body: Fault(400, "flagged") if task in body["messages"][0]["content"] else None
    path, run = recipe({**iterkd, "base_url": server.url, "cycles": 1}), tmp_path / "run"
    assert main(["iterkd", "--config", path, "--max_requests", "20"]) == 3
    assert main(["iterkd", "--config", path]) == 0
    [report] = json.loads((run / "cycles.json").read_text())
    assert report["dropped"] == {"correct/refused": 2, "fault/none": 1}
    sent = len(server.bodies)
    assert len({json.dumps(body) for body in server.bodies}) == sent
    server.refuses = lambda body: None
    (run / "cycle-0" / "student").rename(run / "cycle-0" / "away")
    (run / "ledger" / "items.jsonl").write_text("")  # as before the cycle's training
    assert main(["iterkd", "--config", path, "--retry_refused", "true"]) == 0
    [report] = json.loads((run / "cycles.json").read_text())
    assert report["dropped"] == {"correct/refused": 1, "fault/none": 1}
    again = [body["messages"][0]["content"] for body in server.bodies[sent:]]
    assert all(task in prompt for prompt in again) and sum("judge" not in prompt for prompt in again) == 2


def test_a_server_that_refuses_everything(iterkd: dict[str, Any], server: Server, recipe, capsys, tmp_path: Path):
    server.refuses = lambda body: Fault(400, "unknown model option")
    path = recipe({**iterkd, "base_url": server.url})
    assert main(["iterkd", "--config", path]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trl-akd")]
    assert "8 consecutive prompts were refused" in line and "unknown model option" in line
    assert not (tmp_path / "run" / "ledger" / "completions.jsonl").read_text()


def test_a_judge_on_another_server(iterkd: dict[str, Any], server: Server, recipe, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("JUDGE_KEY", "sk-judge")
    with serving() as judging:
        judging.answer = server.answer  # type: ignore[method-assign]
        judge = {"judge_base_url": judging.url, "judge_model_name_or_path": "jury", "judge_api_key_env": "JUDGE_KEY"}
        judge |= {"judge_extra_body": {"top_k": 3}, "judge_retries": 1, "extra_body": '{"min_p": 0.1}'}
        assert main(["iterkd", "--config", recipe({**iterkd, "base_url": server.url, "cycles": 1, **judge})]) == 0
        assert {body["model"] for body in judging.bodies} == {"jury"} and {
            body["model"] for body in server.bodies
        } == {"adder"}
        assert {headers["Authorization"] for headers in judging.headers} == {"Bearer sk-judge"}
        assert all(body["top_k"] == 3 and "min_p" not in body for body in judging.bodies)
        assert all(body["min_p"] == 0.1 for body in server.bodies)
        spent = usage(tmp_path / "run")
        assert (spent["teacher"]["requests"], spent["judge"]["requests"]) == (len(server.bodies), len(judging.bodies))
    text = "".join(path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*.json*"))
    assert "sk-judge" not in text


def test_resume_from_a_checkpoint_is_refused(iterkd: dict[str, Any], recipe, capsys):
    assert main(["iterkd", "--config", recipe(iterkd), "--resume_from_checkpoint", "checkpoint-5"]) == 2
    assert "`resume_from_checkpoint` is 'checkpoint-5'" in capsys.readouterr().err


def test_a_held_out_program_has_the_imports_of_its_problem(tmp_path: Path):
    problem = {"task_id": "first", "prompt": "from typing import List\n\ndef first(x: List[int]) -> int:\n"}
    tests = "def check(candidate):\n    assert candidate([3]) == 3\n"
    (tmp_path / "problems.jsonl").write_text(json.dumps({**problem, "entry_point": "first", "test": tests}) + "\n")
    benchmark = load_benchmark(str(tmp_path / "problems.jsonl"))
    [question] = iterkd_command._questions(benchmark)
    answer = "```python\ndef first(x: List[int]) -> int:\n    return x[0]\n```"
    program = iterkd_command._program_of(benchmark)(question, answer)
    exec(f"{program}\n{question.tests}", {})


def test_local_teacher_and_judge_use_the_same_loader(monkeypatch: pytest.MonkeyPatch):
    """Fields without a prefix configure the text teacher's generator, those with `judge_` the judge's."""
    loaded: list[tuple[GeneratorConfig, dict[str, Any]]] = []

    def load(config: GeneratorConfig, **settings: Any) -> LoadedGenerator:
        loaded.append((config, settings))
        return LoadedGenerator(cycle_world.RuleTeacher(), 16)

    monkeypatch.setattr("trl_akd.generation.loading.load_generator", load)
    monkeypatch.setattr(iterkd_command, "_is_classifier", lambda name, revision: False)
    args = SimpleNamespace(trust_remote_code=False)
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1), args=args)
    teaching = TeachingConfig(
        backend="vllm",
        text_teacher_model_name_or_path="coder",
        text_teacher_model_revision="v1",
        text_teacher_dtype="bfloat16",
        judge_model_name_or_path="jury",
        judge_model_revision="v2",
        generation_batch_size=4,
        request_timeout=7.0,
    )
    iterkd_command._text_teacher(teaching, trainer)
    iterkd_command._judge(teaching, trainer)
    (teacher, asked), (judge, judging) = loaded
    assert (teacher.model_name_or_path, teacher.model_revision, teacher.dtype) == ("coder", "v1", "bfloat16")
    assert (teacher.backend, teacher.generation_batch_size, asked["chat"]) == ("vllm", 4, True)
    assert (judge.model_name_or_path, judge.model_revision, judge.backend) == ("jury", "v2", "transformers")
    assert (judge.generation_batch_size, judge.request_timeout, judging["chat"]) == (4, 7.0, False)


def test_a_classifier_that_was_saved_with_an_adapter(tmp_path: Path):
    settings = {"base_model_name_or_path": "org/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert not iterkd_command._is_classifier(str(tmp_path), None)
    LlamaConfig(architectures=["LlamaForSequenceClassification"]).save_pretrained(tmp_path)
    assert iterkd_command._is_classifier(str(tmp_path), None)


def test_settings_of_ledgers_keep_their_names():
    """A run that started before fields were renamed or added continues."""
    old = {
        *("text_teacher", "text_backend", "extra_body", "text_prompt_style", "judge", "judge_model"),
        *("judge_extra_body", "eval_benchmark", "eval_benchmark_limit", "decontaminate", "program_timeout"),
    }
    local = TeachingConfig(text_teacher_model_name_or_path="coder", judge_model_name_or_path="outputs/judge").settings
    assert set(local) == old
    assert (local["text_teacher"], local["text_backend"], local["judge"], local["judge_model"]) == (
        *("coder", "transformers", "outputs/judge", None),
    )
    served = TeachingConfig(judge_base_url="http://h/v1", judge_model_name_or_path="jury").settings
    assert (served["judge"], served["judge_model"]) == ("teacher", "jury")
    assert TeachingConfig(judge_model_name_or_path="j", judge_model_revision="v1").settings["judge_model_revision"]


def test_a_model_in_judge_is_the_judge_model():
    with pytest.warns(FutureWarning, match="A model in `judge` is now given by `judge_model_name_or_path`"):
        config = TeachingConfig(judge="outputs/judge")
    assert (config.judge, config.judge_model_name_or_path) == ("teacher", "outputs/judge")


def test_missing_api_key(iterkd: dict[str, Any], recipe, capsys):
    assert main(["iterkd", "--config", recipe({**iterkd, "api_key_env": "NO_SUCH_KEY"})]) == 2
    message = "`api_key_env` is 'NO_SUCH_KEY', but no environment variable has that name; set it to the key of http"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_url": "localhost:8000/v1"}, "`base_url` is 'localhost:8000/v1'"),
        ({"concurrency": 0}, "`concurrency` is 0"),
        ({"request_timeout": -1.0}, "`request_timeout` is -1.0"),
        ({"judge_base_url": "judge.example", "judge_model_name_or_path": "judge"}, "`base_url` is 'judge.example'"),
        (
            {"judge_base_url": "http://h/v1", "judge_model_name_or_path": "judge", "judge_api_key_env": "NO_SUCH_KEY"},
            "`judge_api_key_env` is 'NO_SUCH_KEY'",
        ),
    ],
)
def test_servers_are_checked_before_models_are_loaded(
    iterkd: dict[str, Any], recipe, capsys, changed: dict[str, Any], message: str
):
    assert main(["iterkd", "--config", recipe({**iterkd, "model_name_or_path": "no/such-student", **changed})]) == 2
    assert message in capsys.readouterr().err


def test_unreachable_server(iterkd: dict[str, Any], recipe, capsys):
    assert main(["iterkd", "--config", recipe(iterkd), "--max_retries", "0"]) == 2
    assert "http://127.0.0.1:9/v1" in capsys.readouterr().err


def rows(**changed: Any) -> list[dict[str, Any]]:
    return [{**cycle_world.questions(1)[0], **changed}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_teacher_model_name_or_path": None, "backend": None, "base_url": None}, "no model writes answers"),
        ({"text_teacher_model_name_or_path": None}, "`text_teacher_model_name_or_path` is missing"),
        (
            {"text_teacher_model_name_or_path": None, "backend": "vllm", "base_url": None},
            "`text_teacher_model_name_or_path` is missing; give a name",
        ),
        ({"backend": None}, "`base_url` is 'http://127.0.0.1:9/v1'; give both the backend openai and an address"),
        ({"base_url": None}, "`base_url` is None; give both the backend openai and an address"),
        ({"dataset_name": None}, "`dataset_name` is not set"),
        ({"dataset_name": "missing.jsonl"}, "missing.jsonl"),
        ({"model_name_or_path": None}, "`model_name_or_path` is not set"),
        ({"cycles": 0}, "`cycles` is 0; give at least 1"),
        ({"max_requests": 0}, "`max_requests` is 0; give a number above 0"),
        ({"max_tokens": -1}, "`max_tokens` is -1; give a number above 0"),
        ({"max_seconds": 0.0}, "`max_seconds` is 0.0; give a number above 0"),
        ({"keep_students": 0}, "`keep_students` is 0; give at least 1"),
        ({"price_per_million_prompt_tokens": -1.0}, "`price_per_million_prompt_tokens` is -1.0"),
        ({"push_ledger_to_hub": True}, "`push_ledger_to_hub` is on without `push_to_hub`"),
        ({"judge_retries": -1}, "`judge_retries` is -1"),
        (
            {"judge_base_url": "http://a/v1"},
            "`judge_base_url` is 'http://a/v1' and `judge_model_name_or_path` is None",
        ),
        (
            {"judge_base_url": "http://a/v1", "judge": "outputs/judge"},
            "`judge` is 'outputs/judge' and `judge_base_url` is 'http://a/v1'",
        ),
        (
            {"judge_base_url": "http://a/v1", "judge_model_name_or_path": "j", "judge": "none"},
            "`judge` is 'none' and `judge_model_name_or_path` is 'j'",
        ),
        ({"judge_extra_body": "{}"}, "`judge_extra_body` is {}, which is for the judge's server"),
        ({"extra_body": "{top_k"}, "`extra_body` is '{top_k', which is not JSON"),
        ({"extra_body": "[1]"}, "`extra_body` is [1]; give a JSON object"),
        ({"fault_kinds": ["spelling"]}, "`fault_kinds` is ['spelling']; choose some of syntax, logical"),
        ({"faults_per_question": -1}, "`faults_per_question` is -1"),
        ({"novelty_threshold": 0.0}, "`novelty_threshold` is 0.0"),
        ({"eval_benchmark": "missing.jsonl"}, "missing.jsonl"),
        ({"cycels": 3}, "cycels"),
    ],
)
def test_wrong_settings_are_named_before_a_model_is_loaded(
    iterkd: dict[str, Any], recipe, capsys, monkeypatch, changed: dict[str, Any], message: str
):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    settings = {name: value for name, value in {**iterkd, **changed}.items() if value is not None}
    assert main(["iterkd", "--config", recipe(settings)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trl-akd")]
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows(instruction=" "), "`instruction` of row 0 is ' '; give a text. The row has the columns id, instruction"),
        ([{"question": "Add."}], "`instruction` of row 0 is None; give a text. The row has the columns question."),
        (rows(tests={"inputs": ["1"], "outputs": []}), "row 0 has 1 inputs and 0 outputs"),
        (rows(tests=7), "row 0 has tests of type int"),
        (rows(tests='["assert add(1, 2) == 3"]'), "row 0 has tests of type list"),
        (rows(answer=7), "`answer` of row 0 is 7; give a text"),
        ([*rows(), *rows(instruction="Another.")], "row 1 has the `id` 'add-1' of another question"),
    ],
)
def test_malformed_rows_are_named_before_a_model_is_loaded(
    iterkd: dict[str, Any], recipe, capsys, monkeypatch, tmp_path: Path, content: list[Any], message: str
):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
    assert main(["iterkd", "--config", recipe(iterkd)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layouts", "message"),
    [
        ({"faulty": "{instruction}"}, "`faulty` lacks the field {kind}; add it"),
        ({"correct": "{instruction} {language}"}, "`correct` has the unknown field {language}"),
        ({"corect": "{instruction}"}, "has a template 'corect'; the names are correct, faulty"),
        ({"correct": 7}, "does not map names to texts"),
    ],
)
def test_malformed_requests_are_named(
    iterkd: dict[str, Any], recipe, capsys, monkeypatch, tmp_path: Path, layouts: Any, message: str
):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    (tmp_path / "layouts.yaml").write_text(yaml.safe_dump(layouts))
    assert main(["iterkd", "--config", recipe(iterkd)]) == 2
    assert message in capsys.readouterr().err
