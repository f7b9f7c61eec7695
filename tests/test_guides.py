"""The guides run as written, in page order, with tiny models under the names of the large ones.

A training command runs two steps on a CPU unless it sets its own; a command for several processes is dry-run in one;
the address of a server becomes that of a local one, and the Hub that of a loopback server; commands of other programs
are not run. Blocks of text are expected output.
"""

import ast
import re
import textwrap
import threading
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.commands import METHODS, argument_types
from tests.generation.server import Server, serving
from tests.hub.fixtures import hub
from tests.printed import printed_commands
from trl_akd.cli import main
from trl_akd.cli.mock_teacher import score
from trl_akd.cli.parsing import RecipeParser
from trl_akd.cli.recipes import Recipe
from trl_akd.evaluation import benchmarks
from trl_akd.execution import CodeExecutor, IsolationError
from trl_akd.losses import divergences

__all__ = ["hub"]

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
FAST = ("own_data", "evaluate_safely", "add_divergence")
NOT_RUN = ("pip install ", "vllm serve ", "trl sft ", "accelerate launch ", "export ", "hf ")
SMALL = {"--use_cpu": "true", "--report_to": "none", "--max_steps": "2", "--test_size": "1"}
BLOCK = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^\1```", re.M | re.S)
ADDRESS = "http://localhost:8000/v1"
LOADING = threading.Lock()


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return language, title and content of the blocks of a page."""
    found = BLOCK.findall(page.read_text())
    assert len(found) == page.read_text().count("```") // 2
    return [(language, title, textwrap.dedent(content)) for _, language, title, content in found]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models and data that lie where the names on the pages lead."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    for size, hidden in (("0.5B", 32), ("7B", 48)):
        model = tiny.model("qwen2", hidden=hidden, seed=hidden, max_position_embeddings=2048)
        with torch.no_grad():
            model.lm_head.weight[tokenizer.eos_token_id] *= 10  # texts end soon
        model.save_pretrained(folder / f"Qwen/Qwen2.5-Coder-{size}")
        tokenizer.save_pretrained(folder / f"Qwen/Qwen2.5-Coder-{size}")
    row = {"instruction": "Double x.", "input": "", "output": "def double(x):\n    return 2 * x\n"}
    (folder / "sahil2801" / "CodeAlpaca-20k").mkdir(parents=True)
    Dataset.from_list([row] * 8).to_json(folder / "sahil2801" / "CodeAlpaca-20k" / "train.jsonl")
    test = "def check(candidate):\n    assert candidate(1) == 1\n"
    humaneval = [
        {"task_id": f"HumanEval/{n}", "prompt": "def f(x):\n", "entry_point": "f", "test": test} for n in range(2)
    ]
    Dataset.from_list(humaneval).to_json(folder / "humaneval.jsonl")
    samples = [{"task_id": row["task_id"], "completion": "    return x\n"} for row in humaneval]
    Dataset.from_list(samples).to_json(folder / "samples.jsonl")
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Enter a working directory with these models, and yield the address of a server of text and log-probabilities."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "HF_ALLOW_CODE_EVAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        benchmarks, "_hub_rows", lambda known, revision: benchmarks._local_rows(Path("humaneval.jsonl"))
    )
    monkeypatch.setattr(Server, "answer", answer)
    # without rules that doctests in the same process registered
    built_in = {name: rule for name, rule in divergences._RULES.items() if hasattr(divergences, name)}
    monkeypatch.setattr(divergences, "_RULES", built_in)
    with serving() as server:
        yield server.url


@cache
def load(folder: str) -> tuple:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def answer(server: Server, path: str, body: dict) -> dict:
    """Score a prompt with the model of the given name, or write a plan."""
    if "prompt_logprobs" in body:
        with LOADING:
            served = load(str(Path(body["model"]).resolve()))
        return score(*served, body)
    text = "1. Read the input.\n2. Print the result."
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 9}}


def run_command(words: list[str]) -> None:
    """Run a command in one process; a training is short, and one on several processes a dry run."""
    program, command, *arguments = words
    assert program == "trl-akd"
    if "--accelerate_config" in arguments:
        start = arguments.index("--accelerate_config")
        arguments = [*arguments[:start], "--dry_run"]
    elif command in (*METHODS, "cache") and arguments[0] != "inspect" and "--dry_run" not in arguments:
        missing = {name: value for name, value in SMALL.items() if name not in arguments}
        arguments += chain.from_iterable(missing.items())
    assert main([command, *arguments]) == 0, words


def check_fields(snippet: str) -> None:
    """Check a part of a recipe: its keys are fields of AKD, and its values are of their types."""
    parser = RecipeParser(argument_types("akd"), prog="trl-akd akd")
    parser.values(Recipe(Path("snippet.yaml"), yaml.safe_load(snippet)), ["--output_dir", "out"])


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.lengthy if page.stem in FAST else pytest.mark.end_to_end], id=page.stem)
        for page in GUIDES
    ],
)
def test_guide_runs_as_written(
    page: Path,
    place: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
):
    # without rules that doctests in the same process registered
    built_in = {name: rule for name, rule in divergences._RULES.items() if hasattr(divergences, name)}
    monkeypatch.setattr(divergences, "_RULES", built_in)
    if "--allow_code_execution" in page.read_text():
        try:
            CodeExecutor(1, allow_code_execution=True).close()
        except IsolationError as error:
            pytest.skip(str(error))
    if page.stem == "push":
        request.getfixturevalue("hub")
    names: dict = {"__name__": "guide"}
    for language, title, content in blocks(page):
        content = content.replace(ADDRESS, place)
        if language == "text":
            printed = " ".join(capsys.readouterr().out.split())
            for line in content.splitlines():
                assert " ".join(line.split()) in printed
        elif title:
            Path(title).write_text(content)
        elif language == "python":
            exec(compile(content, f"{page.name}", "exec"), names)
        elif language == "yaml":
            check_fields(content)
        else:
            assert language == "bash"
            lines = re.sub(r"\s*\\\n\s*", " ", content).splitlines()
            assert [line for line in lines if not line.startswith(("trl-akd ", *NOT_RUN))] == []
            for words in printed_commands("\n".join(line for line in lines if line.startswith("trl-akd "))):
                run_command(words)


def test_guides_are_short_and_listed():
    index = (ROOT / "docs" / "guides" / "index.md").read_text()
    site = (ROOT / "mkdocs.yml").read_text()
    for page in GUIDES:
        assert len(page.read_text().splitlines()) <= 120 or page.name == "troubleshooting.md", page.name
        assert f"guides/{page.name}" in site
        assert page.name == "index.md" or f"]({page.name})" in index
        assert page.name in ("index.md", "troubleshooting.md") or "\n## Next\n" in page.read_text(), page.name


@cache
def messages_of_package() -> list[str]:
    """Return the strings of the package that are not docstrings, with a zero byte for each inserted value."""
    found = []
    for path in (ROOT / "trl_akd").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(node.value)
    return found


def contains_in_order(text: str, parts: list[str]) -> bool:
    position = 0
    for part in parts:
        position = text.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


OTHERS = {"CUDA out of memory"}  # messages of PyTorch
QUOTED = re.findall(r"^> (`+) ?(.*?) ?\1$", (ROOT / "docs" / "guides" / "troubleshooting.md").read_text(), re.M)


def test_troubleshooting_quotes_many_messages():
    assert 25 <= len(QUOTED) <= 45
    assert len({message for _, message in QUOTED}) == len(QUOTED)
    assert [message for fence, message in QUOTED if fence in message] == [], "longer fences for text with backticks"
    page = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()
    assert page.count("\n> ") == len(QUOTED)


@pytest.mark.parametrize("message", [message for _, message in QUOTED if message not in OTHERS])
def test_quoted_message_exists(message: str):
    parts = [part for part in message.split("…") if part]
    assert sum(map(len, parts)) > 12
    assert any(contains_in_order(text, parts) for text in messages_of_package())
