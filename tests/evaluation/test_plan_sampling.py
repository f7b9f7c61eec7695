"""Evaluation with plan sampling."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests import tiny
from tests.evaluation.conftest import ROWS, data, write_lines
from tests.generation.server import serving
from tests.generation.test_vllm_generator import LLM, SamplingParams
from trl_akd.cli import main
from trl_akd.codeplan.plan_head import add_plan_head, save_plan_head
from trl_akd.codeplan.task_prompts import TaskPrompting
from trl_akd.generation import TransformersGenerator

FEW = ["--plan_sampling", "--num_plans", "3", "--num_samples", "2", "--temperature", "1", "--allow_code_execution"]
SHORT = ["--max_plan_tokens", "6", "--max_new_tokens", "6"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny.model(max_position_embeddings=8192).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "three.jsonl", [{**row, "public_test": row["test"]} for row in ROWS])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[LLM]:
    """Engines of a mock of vLLM."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM.made


def run(model: Path, benchmark: Path, out: Path, *flags: str) -> dict:
    where = ["--model_name_or_path", str(model), "--benchmark", str(benchmark), "--output_dir", str(out)]
    assert main(["evaluate", *where, *FEW, *SHORT, *flags]) == 0
    return json.loads((out / "results.json").read_text())


def test_the_command(model: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = run(model, benchmark, tmp_path / "out", "--k", "1", "2")
    out = capsys.readouterr().out
    assert "| plans" in out and "| no plan" in out and "| 3 plans" in out
    assert (tmp_path / "out" / "plans.png").exists() and (tmp_path / "out" / "errors.png").exists()
    curve = results["plans"]["curve"]
    assert list(curve) == ["0", "1", "2", "3"] and list(curve["3"]) == ["pass@1", "pass@2"]
    assert curve["3"]["pass@1"][0] == results["metrics"]["pass@1"]
    assert results["samples"]["samples"] == 6
    assert all(len(problem["scores"]) == 3 for problem in results["plans"]["problems"].values())
    for name in ("samples", "verdicts"):
        assert len((tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()) == 6


def test_interrupted_evaluation_continues(model: Path, benchmark: Path, tmp_path: Path, monkeypatch):
    first = run(model, benchmark, tmp_path / "out")
    lines = (tmp_path / "out" / "generated_programs.jsonl").read_text()
    monkeypatch.setattr(TransformersGenerator, "_write", lambda *_: pytest.fail("all of it was there"))
    second = run(model, benchmark, tmp_path / "out")
    assert second["plans"] == first["plans"] and second["tasks"] == first["tasks"]
    assert (tmp_path / "out" / "generated_programs.jsonl").read_text() == lines


def test_hidden_tests_do_not_affect_the_plan(model: Path, tmp_path: Path):
    found = []
    for number, test in enumerate(["pass", "raise ValueError"]):
        rows = [{**row, "public_test": row["test"], "test": test} for row in ROWS]
        file = write_lines(tmp_path / f"{number}.jsonl", rows)
        found.append(run(model, file, tmp_path / f"out{number}"))
    assert found[0]["plans"]["problems"] == found[1]["plans"]["problems"]


def test_plans_come_from_the_plan_head_and_programs_do_not(model: Path, benchmark: Path, tmp_path: Path, monkeypatch):
    """The paper's released decoding does not use the plan head."""
    net = tiny.model(max_position_embeddings=8192)
    head = add_plan_head(net)
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0))
    save_plan_head(net, model)
    written: list[tuple[bool, bool]] = []
    write = TransformersGenerator._write

    def spy(self, rows, request):
        plans = tiny.tokenizer().decode(rows[0].tokens).startswith("[GEN_PLAN]")
        written.append((plans, torch.equal(self._model.get_output_embeddings().weight, head.weight)))
        return write(self, rows, request)

    monkeypatch.setattr(TransformersGenerator, "_write", spy)
    run(model, benchmark, tmp_path / "out")
    assert set(written) == {(True, True), (False, False)}


def test_vllm_generates_programs_and_transformers_plans(
    model: Path, benchmark: Path, tmp_path: Path, monkeypatch, engines
):
    net = tiny.model(max_position_embeddings=8192)
    add_plan_head(net)
    net.save_pretrained(model)
    written: list[str] = []
    write = TransformersGenerator._write

    def spy(self, rows, request):
        written.extend(tiny.tokenizer().decode(row.tokens) for row in rows)
        return write(self, rows, request)

    monkeypatch.setattr(TransformersGenerator, "_write", spy)
    results = run(model, benchmark, tmp_path / "out", "--backend", "vllm")
    [engine] = engines
    programs = [tiny.tokenizer().decode(tokens) for tokens, _ in engine.asked]
    assert written and all(prompt.startswith("[GEN_PLAN]") for prompt in written)
    assert programs and all(prompt.startswith("[GEN_CODE]") for prompt in programs)
    assert engine.settings["gpu_memory_utilization"] < 0.9, "the plans' model needs a share"
    assert results["plans"]["written_by"] == "plan head"
    assert results["generation"]["backend"] == "vllm"


def test_vllm_generates_everything_without_a_plan_head(
    model: Path, benchmark: Path, tmp_path: Path, monkeypatch, engines
):
    monkeypatch.setattr(TransformersGenerator, "_write", lambda *_: pytest.fail("vLLM writes it all"))
    results = run(model, benchmark, tmp_path / "out", "--backend", "vllm")
    [engine] = engines
    assert "gpu_memory_utilization" not in engine.settings
    assert results["plans"]["written_by"] == "LM head"


@pytest.mark.parametrize("public", [True, False])
def test_results_name_the_settings_that_were_used(model: Path, tmp_path: Path, public: bool):
    rows = [{**row, "public_test": row["test"]} if public else row for row in ROWS]
    flags = [] if public else ["--without_public_tests", "logprob"]
    settings = run(model, write_lines(tmp_path / "three.jsonl", rows), tmp_path / "out", *flags)["generation"]
    assert {"prompt_style", "prompt_template"}.isdisjoint(settings)
    assert settings["prompt_templates"] == ["codeplan_plan", "codeplan_guided", "codeplan_code"]
    assert settings["stop"]["plan"] == settings["stop"]["program"] == list(TaskPrompting().plan_stop)
    assert settings["num_plans"] == 3 and settings["max_plan_tokens"] == 6
    assert settings.get("without_public_tests") == (None if public else "logprob")


def test_a_plan_head_that_is_declared_and_missing(model: Path, benchmark: Path, capsys: pytest.CaptureFixture[str]):
    net = tiny.model(max_position_embeddings=8192)
    add_plan_head(net)
    net.save_pretrained(model)
    (model / "plan_head.safetensors").unlink()
    capsys.readouterr()
    assert main(["evaluate", "--model_name_or_path", str(model), "--benchmark", str(benchmark), *FEW]) == 2
    error = capsys.readouterr().err
    assert "was trained with a plan head" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "0", "--num_samples", "1"], "`temperature` is 0, at which all plans are equal"),
        (["--prompt_style", "template"], "`prompt_style` is 'template'"),
        (["--num_plans", "0"], "`num_plans` is 0"),
        (["--k", "3"], "`k` asks for pass@3"),
        (["--backend", "vllm", "--long_prompts", "fail"], "the backend 'vllm' does not report the model's positions"),
        (["--benchmark", "{bare}"], "3 of 3 problems, such as 'double', have no public tests"),
    ],
)
def test_errors_before_loading(flags: list[str], message: str, benchmark: Path, benchmark_file: Path, capsys):
    flags = [flag.replace("{bare}", str(benchmark_file)) for flag in flags]
    assert main(["evaluate", "--model_name_or_path", "./none", "--benchmark", str(benchmark), *FEW, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_choice_by_difficulty(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr("trl_akd.evaluation.plan_sampling.program_of_answer", lambda problem, answer: "")
    levels = ["easy", "hard", "easy"]
    rows = [
        {**row, "public_test": "1", "difficulty": level, "test": "pass" if level == "easy" else "raise ValueError"}
        for row, level in zip(ROWS, levels, strict=True)
    ]
    results = run(model, write_lines(tmp_path / "three.jsonl", rows), tmp_path / "out")
    levels = results["plans"]["difficulties"]
    assert list(levels) == list(results["difficulties"]) == ["easy", "hard"]
    for level, value in (("easy", 1.0), ("hard", 0.0)):
        assert [metrics["pass@1"][0] for metrics in levels[level].values()] == [value] * 4
        assert levels[level]["3"]["pass@1"][0] == results["difficulties"][level]["pass@1"]
    out = capsys.readouterr().out
    assert out.count("|   easy") == out.count("|   hard") == 1 + len(results["plans"]["curve"])
    assert "Note: For" not in out, "public and hidden tests differ"


def test_warnings_about_plans(model: Path, benchmark: Path, tmp_path: Path, capsys):
    run(model, benchmark, tmp_path / "out")
    remark = "For 3 of 3 problems, the public tests, which select the plan, are also the hidden tests"
    assert remark in capsys.readouterr().out


def test_long_prompts_count_as_not_solved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The first problem is too long for a plan; the second only for a program after it."""
    net = tiny.model(max_position_embeddings=256)
    net.save_pretrained(tmp_path / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    tests = {"public_test": "pass", "test": "x"}
    rows = [
        {"task_id": "plan", "prompt": "p" * 250, **tests},
        {"task_id": "program", "prompt": "p" * (256 - 6 - len(TaskPrompting().plan({"problem": ""}))), **tests},
        {"task_id": "short", "prompt": "p", **tests},
    ]
    benchmark = write_lines(tmp_path / "three.jsonl", rows)
    flags = ["--model_name_or_path", str(tmp_path / "model"), "--benchmark", str(benchmark), *FEW, *SHORT]
    assert main(["evaluate", *flags, "--output_dir", str(tmp_path / "error")]) == 2
    assert "exceeds the 256 positions of the model" in capsys.readouterr().err
    results = run(tmp_path / "model", benchmark, tmp_path / "out", "--long_prompts", "fail")
    found = results["plans"]["problems"]
    assert [[score["too_long"] for score in found[name]["scores"]] for name in ("plan", "program", "short")] == [
        [True] * 3,
        [True] * 3,
        [False] * 3,
    ]
    assert {score["pass_fraction"] for name in ("plan", "program") for score in found[name]["scores"]} == {0.0}
    assert all(score["plan"] for score in found["program"]["scores"]), "its plans were written"
    assert results["plans"]["too_long"] == 6 and results["samples"]["empty"] >= 4
    assert [results["tasks"][name]["samples"] for name in ("plan", "program")] == [2, 2]
    assert "6 plans exceed the model's positions and count as not solved" in capsys.readouterr().out


def test_server_with_a_plan_head_is_refused(model: Path, benchmark: Path, capsys: pytest.CaptureFixture[str]):
    net = tiny.model(max_position_embeddings=8192)
    add_plan_head(net)
    save_plan_head(net, model)
    where = ["--backend", "openai", "--base_url", "http://127.0.0.1:9/v1", "--model_name_or_path", str(model)]
    assert main(["evaluate", *where, "--benchmark", str(benchmark), *FEW]) == 2
    assert "`backend` 'openai' does not support plan heads" in capsys.readouterr().err


def test_server_with_an_unknown_plan_head(benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with serving() as server:
        where = ["--backend", "openai", "--base_url", server.url]
        results = run(Path("tiny"), benchmark, tmp_path / "out", *where)
    assert results["plans"]["written_by"] == "server"
    assert "a plan head, if the model has one, is not used" in capsys.readouterr().out


def test_a_ranker_needs_plans(benchmark: Path, capsys):
    assert main(["evaluate", "--model_name_or_path", "m", "--benchmark", str(benchmark), "--ranker", "r"]) == 2
    assert "`ranker` is 'r' without `plan_sampling`" in capsys.readouterr().err


def test_option_for_problems_without_public_tests(model: Path, benchmark_file: Path, tmp_path: Path, capsys):
    results = run(model, benchmark_file, tmp_path / "out", "--without_public_tests", "logprob")
    assert (
        "3 of 3 problems have no public tests; for them, the most likely plan was selected" in capsys.readouterr().out
    )
    for problem in results["plans"]["problems"].values():
        likelihoods = [score["mean_logprob"] for score in problem["scores"]]
        assert problem["chosen"]["3"] == likelihoods.index(max(likelihoods))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apps", "mbpp"])
def test_real_benchmarks(name: str, model: Path, tmp_path: Path):
    path = data({"apps": "apps/test", "mbpp": "mbpp/mbpp.jsonl"}[name])
    results = run(model, Path(name), tmp_path / "out", "--benchmark_path", str(path), "--limit", "5")
    assert len(results["tasks"]) == 5 and list(results["plans"]["curve"]) == ["0", "1", "2", "3"]
