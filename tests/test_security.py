"""Promises of SECURITY.md outside the sandbox: remote code, pickles, keys, and names that become paths."""

import ast
import json
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests import tiny
from trl_akd.cli import main
from trl_akd.evaluation.benchmarks import load_benchmark

PACKAGE = Path(__file__).parents[1] / "trl_akd"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "micro" not in path.parts)  # `micro` loads what it made
LOADERS = ("from_pretrained", "from_config")
OWN_LOADERS = {
    "Ranker",
    "RegressionJudge",
    "PeftModel",
    "PeftConfig",
    "family",
}  # call the checked ones, or run no code
PICKLES = {"load", "loads", "Unpickler", "read_pickle"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield file, called name and call for every call of a method or function of a module."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield str(path.relative_to(PACKAGE)), ast.unparse(node.func), node


def test_every_load_decides_about_remote_code():
    """Without `trust_remote_code`, transformers asks on a terminal, and a pipe may answer."""
    found = 0
    for path, name, call in calls():
        owner, _, method = name.rpartition(".")
        if method not in LOADERS or owner in OWN_LOADERS:
            continue
        found += 1
        keywords = {keyword.arg for keyword in call.keywords}
        spread = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None]
        assert "trust_remote_code" in keywords or any("source" in each for each in spread), f"{path}: {name}"
    assert found > 10


def test_pickles_are_loaded_as_tensors_only():
    found = 0
    for path, name, call in calls():
        if name == "torch.load":
            found += 1
            assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}["weights_only"] == "True", (
                path
            )
        module, _, function = name.rpartition(".")
        if module in ("pickle", "dill", "joblib", "cloudpickle", "pd", "pandas") and function in PICKLES:
            assert (path, name) == ("distributed.py", "pickle.loads"), "of an error that this process pickled"
        assert name not in ("yaml.load", "yaml.unsafe_load", "np.load", "numpy.load", "marshal.loads"), path
    assert found >= 2


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that malicious code would create. Standard input agrees to everything."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("builtins.input", lambda *arguments: "y")
    return tmp_path / "executed"


@pytest.fixture
def pair(marker: Path) -> tuple[str, str]:
    return tiny.save_pair(marker.parent / "pair")


@pytest.fixture
def remote(marker: Path, pair: tuple[str, str]) -> str:
    """A folder like those of the Hub whose model and tokenizer need the code in it."""
    folder = marker.parent / "remote"
    folder.mkdir()
    for file in Path(pair[0]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: ...\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer")
    auto_map = dict.fromkeys(names, "own.Own")
    config = {"model_type": "own", "architectures": ["Own"], "auto_map": auto_map, "vocab_size": 320}
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def write_rows(folder: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    tests = "def check(candidate):\n    assert candidate(1) == 1\n"
    write("problems.jsonl", [{"task_id": "a/1", "prompt": "def f(x):\n", "entry_point": "f", "test": tests}])
    write("samples.jsonl", [{"task_id": "a/1", "solution": "def f(x):\n    return x\n"}])
    write(
        "rows.jsonl",
        [{"id": "1", "problem": "P", "solution": "print(1)", "solutions": ["print(1)"], "plan": "1. Print."}],
    )
    write("pairs.jsonl", [{"instruction": "Add.", "input": "", "output": "x"}] * 4)
    write(
        "ranks.jsonl",
        [
            {"id": str(n), "problem": "P", "program": f"x{n}", "label": ["correct", "NameError"][n % 2]}
            for n in range(4)
        ],
    )
    write(
        "judged.jsonl", [{"instruction": f"Print {n}.", "answer": "x", "scores": [1, 1, 0.5, 0, 0]} for n in range(4)]
    )


TRAIN = "--output_dir out --use_cpu true --max_steps 1 --report_to none"
DISTILL = f"akd --model_name_or_path MODEL --teacher_model_name_or_path TEACHER --dataset_name pairs.jsonl {TRAIN}"
LOADS = {
    "student": DISTILL,
    "teacher": DISTILL.replace("MODEL", "STUDENT").replace("TEACHER", "MODEL"),
    "dry run": f"{DISTILL} --dry_run",
    "codeplan": f"codeplan --model_name_or_path MODEL --dataset_name rows.jsonl {TRAIN}",
    "evaluate": "evaluate --model_name_or_path MODEL --benchmark problems.jsonl --allow_code_execution",
    "plans": "plans --model_name_or_path MODEL --dataset_name rows.jsonl",
    "train a ranker": f"ranker train --model_name_or_path MODEL --train_file ranks.jsonl {TRAIN}",
    "templates": "templates --model_name_or_path MODEL --dataset_name pairs.jsonl",
    "rank": "ranker rank --ranker MODEL --benchmark problems.jsonl --samples samples.jsonl --output o",
    "train a judge": f"judge train --model_name_or_path MODEL --train_file judged.jsonl --max_length 64 {TRAIN}",
}


@pytest.mark.parametrize("load", LOADS)
def test_code_of_a_model_is_not_run(load: str, remote: str, pair: tuple[str, str], marker: Path, capsys):
    write_rows(marker.parent)
    names = {"MODEL": remote, "STUDENT": pair[0], "TEACHER": pair[1]}
    assert main([names.get(word, word) for word in LOADS[load].split()]) == 2
    assert not marker.exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{remote} contains code of its own, which is not run" in error and "`trust_remote_code: true`" in error


OWN = """from transformers import Qwen2Config, Qwen2ForCausalLM

open(MARKER, "w").close()


class OwnConfig(Qwen2Config):
    model_type = "own"


class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""
TRUSTING = {
    "evaluate": LOADS["evaluate"],
    "plans": f"{LOADS['plans']} --prompt_style completion --max_new_tokens 4",
    "templates": "templates --model_name_or_path MODEL --dataset_name pairs.jsonl --dataset_train_split train",
}


@pytest.mark.parametrize("command", TRUSTING)
def test_code_of_a_trusted_model_is_run(command: str, marker: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(marker.parent / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    write_rows(marker.parent)
    tiny.model("qwen2", max_position_embeddings=2048).save_pretrained("own")
    tiny.tokenizer().save_pretrained("own")
    config = json.loads(Path("own/config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    Path("own/config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto_map}))
    Path("own/own.py").write_text(OWN.replace("MARKER", repr(str(marker))))
    arguments = TRUSTING[command].replace("MODEL", "own").split()
    assert main(arguments) == 2 and not marker.exists()
    assert main([*arguments, "--trust_remote_code", "true"]) == 0 and marker.exists()


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def test_a_pickled_model_is_not_executed(pair: tuple[str, str], marker: Path, capsys):
    """transformers also loads `pytorch_model.bin`, as tensors only."""
    write_rows(marker.parent)
    weights = Path(pair[0])
    state = AutoModelForCausalLM.from_pretrained(weights).state_dict()
    (weights / "model.safetensors").unlink()
    torch.save({**state, "more": Malicious(marker)}, weights / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        main([{"MODEL": pair[0]}.get(word, word) for word in LOADS["evaluate"].split()])
    assert not marker.exists()


@pytest.mark.end_to_end
def test_a_malicious_checkpoint_is_not_executed(pair: tuple[str, str], marker: Path):
    """Every pickle of a checkpoint, replaced by one that runs code when it is loaded without restriction."""
    write_rows(marker.parent)
    names = {"MODEL": pair[0], "TEACHER": pair[1]}
    command = [names.get(word, word) for word in DISTILL.split()]
    command += ["--gradient_checkpointing", "false", "--per_device_train_batch_size", "2"]
    assert main([*command, "--save_steps", "1"]) == 0
    [checkpoint] = (marker.parent / "out").glob("checkpoint-*")
    pickles = [path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
    assert {path.name for path in pickles} >= {"optimizer.pt", "scheduler.pt", "rng_state.pth", "akd_state.pt"}
    for path in pickles:
        before = path.read_bytes()
        torch.save(Malicious(marker), path)
        try:
            main([*command, "--max_steps", "2", "--resume_from_checkpoint", str(checkpoint)])
        except pickle.UnpicklingError:
            pass
        assert not marker.exists(), path.name
        path.write_bytes(before)


KEYS = {"OPENAI_API_KEY": "sk-marker-of-openai", "HF_TOKEN": "hf_markerofthehub", "OTHER_KEY": "marker-of-another"}


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """A server that repeats the key of each request in its errors, and refuses every second request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["Authorization"])
            choice = {"index": 0, "finish_reason": "stop", "text": "1. Print.", "message": {"content": "1. Print."}}
            if refuses:
                status, body = 401, {"error": {"message": f"Incorrect API key provided: {keys[-1]}"}}
            else:
                status, body = 200, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None: ...

    keys: list[str] = []
    refuses: list[bool] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        made.keys, made.refuses = keys, refuses  # type: ignore[attr-defined]
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def assert_no_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = capsys.readouterr()
    for key in KEYS.values():
        assert key not in printed.out + printed.err
        for path in folder.rglob("*"):
            assert not path.is_file() or key.encode() not in path.read_bytes(), path
            assert key not in path.name


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OTHER_KEY"])
def test_keys_of_servers_are_not_written(
    refuses: bool, variable: str, server: Any, marker: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Commands that use a server: answers, samples, verdicts, ledgers, reports, logs and errors."""
    write_rows(marker.parent)
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.refuses.extend([True] * refuses)
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    backend = ["--backend", "openai", "--base_url", url, "--model_name_or_path", "m", "--api_key_env", variable]
    for command in (
        ["plans", "--dataset_name", "rows.jsonl", "--output_dir", "made/plans"],
        ["evaluate", "--benchmark", "problems.jsonl", "--output_dir", "made/evaluation", "--allow_code_execution"],
    ):
        assert main([*command, *backend]) == (2 if refuses else 0)
    assert set(server.keys) == {f"Bearer {KEYS[variable]}"}
    assert refuses or len([path for path in (marker.parent / "made").rglob("*") if path.is_file()]) > 5
    assert_no_keys(marker.parent, capsys)


@pytest.mark.end_to_end
def test_keys_are_not_in_a_trained_model(pair: tuple[str, str], marker: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Model, card, checkpoint with the pickled arguments, and the logs of TensorBoard."""
    write_rows(marker.parent)
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    names = {"MODEL": pair[0], "TEACHER": pair[1]}
    command = [names.get(word, word) for word in DISTILL.split()]
    assert main([*command, "--gradient_checkpointing", "false", "--save_steps", "1"]) == 0
    assert len(list((marker.parent / "out").rglob("*"))) > 10
    assert_no_keys(marker.parent, capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"env": {"HF_TOKEN": "hf_x"}}, "sets HF_TOKEN, which looks like a key; set it in the shell instead"),
        ({"env": {"wandb_api_key": "x"}}, "sets wandb_api_key, which looks like a key"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "sets AWS_SECRET_ACCESS_KEY"),
        ({"hub_token": "hf_x"}, "`hub_token` is set, but keys are read from the environment only"),
        ({"model_init_kwargs": {"token": "hf_x"}}, "`model_init_kwargs.token` is set"),
        ({"teacher_model_init_kwargs": '{"use_auth_token": "hf_x"}'}, "`teacher_model_init_kwargs.use_auth_token`"),
        (["--hub_token", "hf_x"], "`hub_token` is set"),
        (["--model_init_kwargs", '{"token": "hf_x"}'], "`model_init_kwargs.token` is set"),
    ],
    ids=str,
)
def test_keys_in_recipes_and_flags_are_refused(content: Any, message: str, marker: Path, capsys):
    path = marker.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(content if isinstance(content, dict) else {"seed": 1}))
    flags = [] if isinstance(content, dict) else content
    assert main(["akd", "--config", str(path), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and "hf_x" not in error and error.count("\n") == 1


@pytest.mark.parametrize("variable", ["TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "KEYRING"])
def test_other_variables_are_accepted(variable: str, marker: Path, monkeypatch: pytest.MonkeyPatch):
    from trl_akd.cli.recipes import read_recipe

    monkeypatch.setenv(variable, "before")
    path = marker.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump({"env": {variable: "1"}}))
    read_recipe(str(path))
    assert os.environ[variable] == "1"


TRAVERSING = ["../../escaped", "/tmp/escaped", "..", "a/../../escaped", "..\\..\\escaped", "a\0b", "x" * 300]


def test_names_in_files_are_not_paths(pair: tuple[str, str], marker: Path):
    """Ids of a benchmark and of samples are never names of files, whatever they contain."""
    work = marker.parent / "a" / "b"
    work.mkdir(parents=True)
    os.chdir(work)
    tests = "def check(candidate):\n    assert candidate(1) == 1\n"
    problems = [{"task_id": name, "prompt": "def f(x):\n", "entry_point": "f", "test": tests} for name in TRAVERSING]
    samples = [{"task_id": name, "solution": "def f(x):\n    return x\n"} for name in TRAVERSING]
    for name, rows in (("problems", problems), ("samples", samples)):
        (work / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    before = {path for path in marker.parent.rglob("*") if work not in path.parents}
    assert (
        main(["evaluate", "--samples", "samples.jsonl", "--benchmark", "problems.jsonl", "--allow_code_execution"])
        == 0
    )
    assert {path for path in marker.parent.rglob("*") if work not in path.parents} == before
    [folder] = (work / "outputs/evaluation/problems").iterdir()
    verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert {row["task_id"] for row in verdicts} == set(TRAVERSING)


@pytest.mark.parametrize("name", ["../../escaped.jsonl", "sub/../../escaped.jsonl"])
def test_the_name_of_a_benchmark_is_one_component(name: str, marker: Path):
    work = marker.parent / "a" / "b"
    (work / "sub").mkdir(parents=True)
    os.chdir(work)
    row = {"task_id": "1", "prompt": "def f(x):\n", "entry_point": "f", "test": "def check(candidate): pass\n"}
    Path(name).write_text(json.dumps(row))
    assert load_benchmark(name).name == "escaped"


def test_a_dry_run_writes_into_its_folder_alone(marker: Path):
    """The tiny models have the names of the real ones, which may be relative paths."""
    from trl_akd.cli.tiny_models import build

    work = marker.parent / "a" / "b" / "c"
    work.mkdir(parents=True)
    names = ["../../student", "../student", str(marker.parent / "teacher")]
    for name in names:
        folder = (work / name).resolve()
        tiny.model().save_pretrained(folder)
    os.chdir(work)
    before = {path: path.read_bytes() for path in marker.parent.rglob("*") if path.is_file()}
    built = build(dict.fromkeys(names, "main"), work / "temporary", own_tokenizers=False)
    assert len({model.path for model in built.values()}) == 3
    assert all((work / "temporary") in Path(model.path).parents for model in built.values())
    assert {path: path.read_bytes() for path in before} == before
    made = {path for path in marker.parent.rglob("*") if path.is_file()} - before.keys()
    assert all(work / "temporary" in path.parents for path in made)
