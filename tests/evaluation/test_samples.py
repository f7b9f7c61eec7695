import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.conftest import ROWS, Scripted, write_lines
from trl_akd.evaluation.benchmarks import Benchmark, load_benchmark
from trl_akd.evaluation.prompts import Prompting
from trl_akd.evaluation.samples import Sample, SampleFile, Samples, read_samples
from trl_akd.evaluation.sampling import write_samples
from trl_akd.generation import GenerationError
from trl_akd.generation.protocol import SamplingParams

SETTINGS = {"model": "student", "temperature": 0.0}


def benchmark(problems, **facts) -> Benchmark:
    return Benchmark("three", tuple(problems), "three.jsonl", "x", **facts)


def program(problem, text: str) -> str:
    return problem.code_prompt + text


def test_humaneval_and_evalplus_formats(tmp_path: Path, problems):
    rows = [
        {"task_id": "double", "completion": "    return 2 * x"},
        {"task_id": "negate", "solution": "def negate(x): return -x", "_identifier": "evalplus"},
        {"task_id": "one", "completion": "    return 2"},
        {"task_id": "one", "solution": "def one(): return 1", "completion": "ignored"},
    ]
    found = read_samples(write_lines(tmp_path / "samples.jsonl", rows), benchmark(problems), program)
    assert [sample.solution for several in found.values() for sample in several] == [
        "def double(x):\n    return 2 * x",
        "def negate(x): return -x",
        "def one():\n    return 2",
        "def one(): return 1",
    ]
    assert [sample.sample for sample in found["one"]] == [0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": ""}, "line 1 has no `task_id`"),
        ({"task_id": "three", "completion": ""}, "line 1 is for the problem 'three', which is not among the 3"),
        ({"task_id": "one"}, "line 1 has neither `solution` nor `completion`"),
        ({"task_id": "one", "solution": 3}, "`solution` in .*line 1 is 3"),
        ({"task_id": "one", "solution": ""}, "no sample for 2 of 3 problems, such as 'double'"),
    ],
)
def test_read_samples_that_do_not_fit(row: dict, message: str, tmp_path: Path, problems):
    with pytest.raises(ValueError, match=message):
        read_samples(write_lines(tmp_path / "samples.jsonl", [row]), benchmark(problems), program)


def test_mbpp_as_evalplus_numbers_it(tmp_path: Path, problems):
    rows = [{"task_id": "Mbpp/11", "solution": "x = 1"}]
    problem = replace(problems[0], task_id="11")
    assert list(read_samples(write_lines(tmp_path / "s.jsonl", rows), benchmark([problem]), program)) == ["11"]


def test_samples_beyond_the_limit_are_skipped(tmp_path: Path, problems):
    rows = [{"task_id": problem.task_id, "solution": ""} for problem in problems]
    limited = benchmark(problems[:1], left_out=frozenset({"negate", "one"}))
    assert list(read_samples(write_lines(tmp_path / "s.jsonl", rows), limited, program)) == ["double"]


def test_a_solution_that_is_null_is_a_completion(tmp_path: Path, problems):
    rows = [{"task_id": "one", "solution": None, "completion": "    return 1"}]
    found = read_samples(write_lines(tmp_path / "s.jsonl", rows), benchmark(problems[2:]), program)
    assert found["one"][0].solution == "def one():\n    return 1"


def test_facts_are_stored_and_not_compared(tmp_path: Path):
    with SampleFile(tmp_path, SETTINGS) as file:
        file.append([Sample("a", "")])
        file.note(commit="abc")
    with SampleFile(tmp_path, SETTINGS) as file:
        assert file.facts == {**SETTINGS, "commit": "abc"}


def test_error_names_damaged_settings(tmp_path: Path):
    with SampleFile(tmp_path, SETTINGS) as file:
        file.append([Sample("a", "")])
    (tmp_path / "generation.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation\.json is damaged"):
        SampleFile(tmp_path, SETTINGS)


@pytest.mark.parametrize("line", ['{"what": 1}', '{"task_id": "a", "solution": 5}', '{"task_id": "a"}'])
def test_error_names_an_invalid_line(line: str, tmp_path: Path):
    with SampleFile(tmp_path, SETTINGS) as file:
        file.append([Sample("a", "1")])
    (tmp_path / "samples.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="line 1 is not a sample of this package"):
        SampleFile(tmp_path, SETTINGS)


def test_round_trip(tmp_path: Path):
    samples = [Sample("a", "x = 'é\ud800'", "é", 0, "length", -1.5, 3), Sample("b", "\x00")]
    with SampleFile(tmp_path, SETTINGS) as file:
        file.append(samples)
    with SampleFile(tmp_path, SETTINGS) as file:
        assert dict(file.by_task) == {"a": [samples[0]], "b": [samples[1]]}


def test_other_settings_are_refused(tmp_path: Path):
    with SampleFile(tmp_path, SETTINGS) as file:
        file.append([Sample("a", "")])
    with pytest.raises(ValueError, match=r"generated with temperature=0\.0, not 0\.8; give another output_dir"):
        SampleFile(tmp_path, {**SETTINGS, "temperature": 0.8})
    with SampleFile(tmp_path, SETTINGS) as file:
        assert len(file.by_task["a"]) == 1


def test_settings_may_change_while_there_are_no_samples(tmp_path: Path):
    SampleFile(tmp_path, SETTINGS).close()
    SampleFile(tmp_path, {**SETTINGS, "temperature": 0.8}).close()


def test_only_an_incomplete_last_line_is_dropped(tmp_path: Path):
    with SampleFile(tmp_path, SETTINGS) as file:
        file.append([Sample("a", "1"), Sample("b", "2")])
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes() + b'{"task_id": "c", "solu')
    with SampleFile(tmp_path, SETTINGS) as file:
        assert set(file.by_task) == {"a", "b"}
        file.append([Sample("c", "3")])
    assert [json.loads(line)["task_id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_second_process_is_refused(tmp_path: Path):
    with SampleFile(tmp_path, SETTINGS), pytest.raises(BlockingIOError, match="is being written by another process"):
        SampleFile(tmp_path, SETTINGS)
    SampleFile(tmp_path, SETTINGS).close()


def test_a_full_disk_loses_nothing(tmp_path: Path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with SampleFile(tmp_path, SETTINGS) as file:
        file.append([Sample("a", "1")])
    file = SampleFile(tmp_path, SETTINGS)
    file._ledger._file.close()
    file._ledger._file = open("/dev/full", "r+b", buffering=0)
    with pytest.raises(OSError, match="No space left"):
        file.append([Sample("b", "2")])
    assert "b" not in file.by_task
    file.close()
    with SampleFile(tmp_path, SETTINGS) as file:
        assert set(file.by_task) == {"a"}


# Generation


def test_every_problem_gets_its_samples_in_few_calls(problems):
    generator, samples = Scripted(lambda prompt, i: f"    return {i}"), Samples()
    write_samples(generator, problems, samples, Prompting(), SamplingParams(2, 1.0), batch_size=4)
    assert [len(call) for call in generator.calls] == [2, 1]
    assert [s.solution for s in samples["one"]] == ["def one():\n    return 0", "def one():\n    return 1"]
    assert [(s.sample, s.num_tokens, s.mean_logprob) for s in samples["one"]] == [(0, 3, -0.5), (1, 3, -0.5)]


def test_the_longest_prompts_come_first(problems):
    generator = Scripted(lambda prompt, i: "")
    write_samples(generator, problems, Samples(), Prompting(), batch_size=1)
    lengths = [len(prompt) for [prompt] in generator.calls]
    assert lengths == sorted(lengths, reverse=True)


def test_existing_samples_are_not_generated_again(problems):
    samples = Samples({"double": [Sample("double", "kept", sample=0)]})
    generator = Scripted(lambda prompt, i: "new")
    write_samples(generator, problems, samples, Prompting(), SamplingParams(2, 1.0))
    assert [s.solution for s in samples["double"]] == ["kept", "def double(x):\nnew"]
    assert [s.sample for s in samples["double"]] == [0, 1]
    assert sorted(map(len, generator.calls)) == [1, 2]
    assert len(set(generator.seeds)) == 2, "samples that are added are drawn with another seed"
    write_samples(generator, problems, samples, Prompting(), SamplingParams(2, 1.0))
    assert len(generator.calls) == 2


def _generate_until_killed(folder: Path, problems) -> None:
    def write(prompt: str, i: int) -> str:
        if "one" in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        return "    return 1"

    with SampleFile(folder, SETTINGS) as file:
        write_samples(Scripted(write), problems, file, Prompting(), batch_size=1, progress=False)


def test_continues_after_kill_9(tmp_path: Path, problems):
    process = multiprocessing.get_context("fork").Process(target=_generate_until_killed, args=(tmp_path, problems))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    generator = Scripted(lambda prompt, i: "    return 2")
    with SampleFile(tmp_path, SETTINGS) as file:
        write_samples(generator, problems, file, Prompting(), batch_size=1, progress=False)
        assert {task: several[0].completion for task, several in file.by_task.items()} == {
            "double": "    return 1",
            "negate": "    return 1",
            "one": "    return 2",
        }
    assert generator.calls == [["def one():\n"]]


def test_finished_samples_of_a_failing_backend_are_kept(problems):
    class Failing(Scripted):
        def stream(self, prompts, sampling):
            yield 1, self.generate(prompts, **vars(sampling))[1]
            raise GenerationError("the server is gone")

    samples = Samples()
    with pytest.raises(GenerationError, match="the server is gone"):
        write_samples(Failing(lambda prompt, i: "paid"), problems, samples, Prompting())
    assert [s.completion for several in samples.by_task.values() for s in several] == ["paid"]


def test_error_names_the_problem_of_a_refused_prompt(problems):
    def refuse(prompt: str, i: int) -> str:
        raise ValueError("`prompts[0]` is too long.")

    with pytest.raises(ValueError, match=r"too long\. \(The prompts are .*'double', 'negate', 'one'"):
        write_samples(Scripted(refuse), problems, Samples(), Prompting())


def test_stop_strings_of_each_style(problems):
    problem = problems[0].__class__("a", "def f():\n", "", stop=("\ndef ",))
    generator = Scripted(lambda prompt, i: "")
    write_samples(generator, [problem], Samples(), Prompting())
    write_samples(generator, [problem], Samples(), Prompting("template"))
    write_samples(generator, [problem], Samples(), Prompting(stops=["END"]))
    assert generator.stops == [("\ndef ",), (), ("END",)]


# A folder of samples


def found_in(folder: Path, benchmark_file: Path) -> list[tuple[str, str]]:
    found = read_samples(folder, load_benchmark(str(benchmark_file)), lambda problem, completion: completion)
    return [(sample.task_id, sample.solution) for several in found.values() for sample in several]


def test_folder_of_evalplus(tmp_path: Path):
    rows = [{**row, "task_id": f"Human_Eval/{n}"} for n, row in enumerate(ROWS[:2])]
    benchmark = write_lines(tmp_path / "benchmark.jsonl", rows)
    folder = tmp_path / "model_temp_0.8"
    for name, texts in {"Human_Eval/0": range(11), "Human_Eval/1": range(1)}.items():
        (folder / name.replace("/", "_")).mkdir(parents=True)
        for number in texts:
            (folder / name.replace("/", "_") / f"{number}.py").write_text(f"x = {number}")
    (folder / "Human_Eval_0" / "notes.txt").write_text("no program")
    wanted = [("Human_Eval/0", f"x = {n}") for n in range(11)] + [("Human_Eval/1", "x = 0")]
    assert found_in(folder, benchmark) == wanted


def test_a_folder_of_files(benchmark_file: Path, tmp_path: Path):
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, row in enumerate(ROWS):
        write_lines(folder / f"{number}.jsonl", [{"task_id": row["task_id"], "solution": str(number)}])
    assert found_in(folder, benchmark_file) == [("double", "0"), ("negate", "1"), ("one", "2")]
    write_lines(folder / "samples.jsonl", [{"task_id": row["task_id"], "solution": "x"} for row in ROWS])
    assert {text for _, text in found_in(folder, benchmark_file)} == {"x"}, "what this package wrote comes first"


def test_a_folder_without_samples(benchmark_file: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither .jsonl files nor \*/\*.py in the folder"):
        found_in(empty, benchmark_file)


def test_program_that_is_not_text(tmp_path: Path, benchmark_file: Path):
    (tmp_path / "samples" / "three_0").mkdir(parents=True)
    (tmp_path / "samples" / "three_0" / "0.py").write_bytes(b"# \xff\n")
    with pytest.raises(ValueError, match=r"0\.py is not UTF-8"):
        found_in(tmp_path / "samples", benchmark_file)
