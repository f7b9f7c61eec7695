"""Complete evaluations of a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.evaluation.conftest import ROOT, data, write_lines
from trl_akd.cli import main
from trl_akd.evaluation.benchmarks import load_benchmark
from trl_akd.evaluation.evaluation_config import EvaluationConfig
from trl_akd.evaluation.runner import evaluate, output_folder

SOLUTIONS = {"double": "    return 2 * x", "negate": "    return x", "one": "    return undefined"}


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def settings(benchmark_file: Path, tmp_path: Path, **values) -> EvaluationConfig:
    common = {"benchmark": str(benchmark_file), "output_dir": str(tmp_path / "out"), "allow_code_execution": True}
    return EvaluationConfig(**{**common, **values})


def test_given_samples(benchmark_file: Path, tmp_path: Path):
    rows = [{"task_id": task, "completion": text} for task, text in SOLUTIONS.items()]
    samples = write_lines(tmp_path / "samples.jsonl", rows)
    evaluation = evaluate(settings(benchmark_file, tmp_path, samples=str(samples)))
    assert [verdict.result.status for verdict in evaluation.verdicts] == ["passed", "failed", "failed"]
    assert [verdict.label.error_type for verdict in evaluation.verdicts] == [None, "wrong_answer", "NameError"]
    results = json.loads((evaluation.folder / "results.json").read_text())
    assert results["metrics"]["pass@1"] == 1 / 3
    assert results["execution"]["isolation"] == "namespace"
    assert not (evaluation.folder / "samples.jsonl").exists(), "the samples are someone else's"


def test_a_model(benchmark_file: Path, tmp_path: Path, model: str):
    evaluation = evaluate(settings(benchmark_file, tmp_path, model_name_or_path=model, max_new_tokens=5))
    lines = [json.loads(line) for line in (evaluation.folder / "samples.jsonl").read_text().splitlines()]
    assert {line["task_id"] for line in lines} == set(SOLUTIONS)
    assert all(line["solution"].startswith("def ") and line["num_tokens"] <= 5 for line in lines)
    assert evaluation.results["samples"]["samples"] == 3
    assert evaluation.results["generation"]["model"] == model


def test_more_samples_later(benchmark_file: Path, tmp_path: Path, model: str):
    sampled = {"model_name_or_path": model, "max_new_tokens": 5, "temperature": 1.0}
    first = evaluate(settings(benchmark_file, tmp_path, num_samples=2, **sampled))
    kept = (first.folder / "samples.jsonl").read_text()
    second = evaluate(settings(benchmark_file, tmp_path, num_samples=4, k=[1, 4], **sampled))
    grown = (second.folder / "samples.jsonl").read_text()
    assert grown.startswith(kept) and len(grown.splitlines()) == 12
    texts = [json.loads(line)["completion"] for line in grown.splitlines() if '"one"' in line]
    assert len(set(texts)) > 2, "samples that were added are new ones"
    again = evaluate(settings(benchmark_file, tmp_path, num_samples=2, **sampled))
    assert again.results["tasks"] == first.results["tasks"], "the first two, as before"


def test_a_prompt_beyond_the_models_positions(tmp_path: Path, model: str):
    rows = [
        {"task_id": "short", "prompt": "x = 1 #", "test": "assert x == 1"},
        {"task_id": "long", "prompt": "#" * 300 + "\nx = 1 #", "test": "assert x == 1"},
    ]
    file = write_lines(tmp_path / "two.jsonl", rows)
    with pytest.raises(ValueError, match="1 of 2 prompts, such as that of 'long', exceed the positions"):
        evaluate(settings(file, tmp_path, model_name_or_path=model, max_new_tokens=1))
    evaluation = evaluate(settings(file, tmp_path, model_name_or_path=model, max_new_tokens=1, long_prompts="fail"))
    by_task = {verdict.sample.task_id: verdict for verdict in evaluation.verdicts}
    assert by_task["short"].result.passed
    assert by_task["long"].sample.truncated and by_task["long"].sample.completion == ""


def test_models_are_identified_by_their_weights(benchmark_file: Path, tmp_path: Path, model: str, monkeypatch):
    evaluate(settings(benchmark_file, tmp_path, model_name_or_path=model, max_new_tokens=2))
    kept = (tmp_path / "out" / "samples.jsonl").read_text()
    monkeypatch.chdir(tmp_path)
    evaluate(settings(benchmark_file, tmp_path, model_name_or_path="./model", max_new_tokens=2))
    assert (tmp_path / "out" / "samples.jsonl").read_text() == kept


def test_a_retrained_model_needs_another_folder(benchmark_file: Path, tmp_path: Path, model: str):
    evaluate(settings(benchmark_file, tmp_path, model_name_or_path=model, max_new_tokens=2))
    tiny.model(seed=1).save_pretrained(model)
    with pytest.raises(ValueError, match="generated with weights="):
        evaluate(settings(benchmark_file, tmp_path, model_name_or_path=model, max_new_tokens=2))


def test_nothing_is_loaded_before_execution_is_allowed(benchmark_file: Path, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(PermissionError, match="HF_ALLOW_CODE_EVAL"):
        evaluate(settings(benchmark_file, tmp_path, model_name_or_path="no-such-model", allow_code_execution=False))


def test_a_lora_adapter(benchmark_file: Path, tmp_path: Path, model: str):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    tiny.tokenizer().save_pretrained(adapter)
    evaluation = evaluate(settings(benchmark_file, tmp_path, model_name_or_path=str(adapter), max_new_tokens=2))
    assert evaluation.results["samples"]["samples"] == 3


# The command line


def test_the_command_adds_its_scores_to_the_models_card(benchmark_file: Path, tmp_path: Path, model: str, capsys):
    from huggingface_hub import ModelCard

    card = Path(model) / "README.md"
    card.write_text("# Student\n")
    flags = ["--benchmark", str(benchmark_file), "--output_dir", str(tmp_path / "out"), "--max_new_tokens", "4"]
    for _ in range(2):
        assert main(["evaluate", "--model_name_or_path", model, *flags, "--allow_code_execution"]) == 0
        (score,) = ModelCard.load(card).data.eval_results
    assert (score.dataset_name, score.metric_value, score.metric_args["problems"]) == ("three", 0.0, 3)
    assert "Scores added to the model card" in capsys.readouterr().out
    card.write_text("---\nmodel-index: 3\n---\n")
    assert main(["evaluate", "--model_name_or_path", model, *flags, "--allow_code_execution"]) == 0, (
        "the results are there"
    )


def test_the_command_writes_a_table_and_a_figure(benchmark_file: Path, tmp_path: Path, model: str, capsys):
    flags = ["--benchmark", str(benchmark_file), "--output_dir", str(tmp_path / "out"), "--max_new_tokens", "4"]
    assert main(["evaluate", "--model_name_or_path", model, *flags, "--allow_code_execution"]) == 0
    out = capsys.readouterr().out
    assert "| model, benchmark" in out and "problems solved" in out
    assert (tmp_path / "out" / "errors.png").exists()


def test_the_command_compares(benchmark_file: Path, tmp_path: Path, capsys):
    folders = []
    for name, body in (("teacher", "    return 1"), ("student", "    return 2")):
        rows = [{"task_id": task, "completion": body} for task in SOLUTIONS]
        samples = write_lines(tmp_path / f"{name}.jsonl", rows)
        evaluate(settings(benchmark_file, tmp_path, samples=str(samples), output_dir=str(tmp_path / name)))
        folders.append(str(tmp_path / name))
    assert main(["evaluate", "--compare", *folders]) == 0
    assert "accuracy loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "m", "--benchmark", "humanevl"], "did you mean 'humaneval'"),
        (["--model_name_or_path", "m", "--benchmark", "none.jsonl"], "There is no file 'none.jsonl'"),
        (["--model_name_or_path", "m"], "`benchmark` is missing"),
        (["--model_name_or_path", "m", "--benchmark", "x.jsonl", "--temprature", "1"], "did you mean `--temperature`"),
        (["--compare", "here", "here/"], "There is no results.json in 'here'"),
        (["--samples", "{samples}", "--benchmark", "{file}", "--k", "2"], "has 1 samples, too few for pass@2"),
        (["--compare", "here", "there"], "There is no results.json in 'here'"),
        (["--samples", "none.jsonl", "--benchmark", "{file}"], "There is no file 'none.jsonl'"),
        (["--model_name_or_path", "./no-model", "--benchmark", "{file}"], "no-model"),
    ],
)
def test_errors_have_one_sentence(flags: list[str], message: str, benchmark_file: Path, tmp_path: Path, capsys):
    samples = write_lines(tmp_path / "samples.jsonl", [{"task_id": task, "solution": ""} for task in SOLUTIONS])
    named = {"{file}": str(benchmark_file), "{samples}": str(samples)}
    flags = [named.get(flag, flag) for flag in flags]
    assert main(["evaluate", *flags, "--output_dir", str(tmp_path / "out"), "--allow_code_execution"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("import pytest\nassert triple(1) == 3", "the test imports pytest"),
        ("import pytest\n@pytest.mark.skip\ndef test_it(): assert triple(1) == 3", "test_it in the test has a pytest"),
        ("def check(candidate):\n    assert candidate(1) == 3\n", "the test defines check and calls nothing"),
    ],
)
def test_tests_that_cannot_be_run_are_an_error_of_one_sentence(test: str, message: str, tmp_path: Path, capsys):
    file = write_lines(tmp_path / "tasks.jsonl", [{"task_id": "a", "prompt": "def triple(x):\n", "test": test}])
    samples = write_lines(tmp_path / "samples.jsonl", [{"task_id": "a", "completion": "    return x * 3\n"}])
    flags = ["--samples", str(samples), "--benchmark", str(file), "--output_dir", str(tmp_path / "out")]
    assert main(["evaluate", *flags, "--allow_code_execution"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trl-akd: 1 of 1 programs could not be run (test of the problem 'a')")
    assert message in error and "Traceback" not in error


@pytest.mark.slow
def test_two_processes_write_the_same_as_one(benchmark_file: Path, tmp_path: Path, model: str):
    written = []
    for name, launch in (("one", []), ("two", ["--accelerate_config", "ddp_cpu", "--num_processes", "2"])):
        flags = ["--benchmark", str(benchmark_file), "--output_dir", str(tmp_path / name), "--max_new_tokens", "4"]
        flags += ["--model_name_or_path", model, "--allow_code_execution"]
        subprocess.run([sys.executable, "-m", "trl_akd.cli.evaluate", *flags, *launch], cwd=ROOT, check=True)
        rows = [json.loads(line) for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()]
        written.append({row["task_id"]: row["completion"] for row in rows})
    assert written[0] == written[1]


# Real data


def test_reference_solutions_of_humaneval_pass(tmp_path: Path):
    import gzip

    path = data("humaneval/HumanEval.jsonl.gz")
    rows = [json.loads(line) for line in gzip.open(path)]
    samples = [{"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in rows]
    file = write_lines(tmp_path / "reference.jsonl", samples)
    evaluation = evaluate(settings(Path("humaneval"), tmp_path, benchmark_path=str(path), samples=str(file)))
    assert evaluation.results["metrics"]["pass@1"] == 1.0


@pytest.mark.end_to_end
def test_reference_solutions_of_apps_pass(tmp_path: Path):
    path = data("apps/test")
    rows = [
        {"task_id": home.name, "solution": solution}
        for home in sorted(path.iterdir())
        for solution in json.loads((home / "solutions.json").read_text())[1:2]
    ]
    file = write_lines(tmp_path / "reference.jsonl", rows)
    evaluation = evaluate(settings(Path("apps"), tmp_path, benchmark_path=str(path), samples=str(file)))
    assert evaluation.results["metrics"]["pass@1"] == 1.0


@pytest.mark.parametrize("kind", ["file", "gzipped", "folder", "folder_with_slash", "here"])
def test_names_with_dots_have_separate_folders(kind: str, tmp_path: Path, benchmark_file: Path, monkeypatch):
    """EvalPlus's names consist of model, size and temperature."""
    names = ["Qwen2.5-Coder-0.5B_temp_0.0", "Qwen2.5-Coder-0.5B_temp_0.8", "Qwen2.5-Coder-1.5B_temp_0.0"]
    benchmark = load_benchmark(str(benchmark_file))
    folders = []
    for name in names:
        written = {
            "file": f"in/{name}.jsonl",
            "gzipped": f"in/{name}.jsonl.gz",
            "folder": f"in/{name}",
            "folder_with_slash": f"in/{name}/",
            "here": ".",
        }[kind]
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        folders.append(output_folder(EvaluationConfig(benchmark="x.jsonl", samples=written), benchmark))
    assert [folder.name for folder in folders] == names
