"""Every command in the README, documentation, recipes and help texts is valid and runs as printed.

What the commands name, such as models on the Hub, lies in the working directory under the same names, as tiny models
that write a few tokens. Not run here are commands that train by a recipe of large models (`test_recipes.py` dry-runs
these recipes), that need GPUs or a server, the quickstarts (`cli/test_quickstart.py`) and the guides
(`test_guides.py`).
"""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import CodeGenConfig, CodeGenForCausalLM, RobertaConfig, RobertaForSequenceClassification

from tests import tiny
from tests.commands import argument_types
from tests.hub.fixtures import hub
from tests.printed import commands_of_page, printed_commands
from trl_akd.cli import COMMANDS, main
from trl_akd.cli.launching import is_launch_flag
from trl_akd.cli.parsing import RecipeParser, read_options
from trl_akd.cli.recipes import RECIPES, find_accelerate_config, find_recipe, read_recipe
from trl_akd.evaluation import benchmarks

__all__ = ["hub"]

ROOT = Path(__file__).parents[1]
WITHOUT_FIELDS = {"quickstart", "recipes", "completion", "--help", "--version"}
RUN = ("evaluate", "plans", "ranker", "judge", "recipes")  # the commands that run here as printed
SLOW = ("--plan_sampling", "plan_sampling", "--num_samples", "codeplan/evaluate.yaml", "ranker train", "judge train")


def sources() -> Iterator[tuple[Path, list[list[str]]]]:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), RECIPES / "README.md"):
        yield page, commands_of_page(page.read_text())
    for recipe in sorted(RECIPES.glob("*/*/*.yaml")):
        header = (line for line in recipe.read_text().splitlines(keepends=True) if line.startswith("#"))
        yield recipe, printed_commands("".join(header))
    for module in sorted((ROOT / "trl_akd" / "cli").glob("*.py")):
        yield module, commands_of_page(ast.get_docstring(ast.parse(module.read_text())) or "")


PRINTED = {" ".join(words): words for _, commands in sources() for words in commands}


def as_arguments(words: list[str]) -> tuple[str, list[str]]:
    """Return the name and the arguments of a command, including one that accelerate's launcher starts."""
    if words[0] == "trl-akd":
        return words[1], words[2:]
    module = words[words.index("-m") + 1]
    assert words[:2] == ["accelerate", "launch"] and module.startswith("trl_akd.cli.")
    config = words[words.index("--config_file") + 1]
    if config.startswith("$("):
        [name] = re.findall(r"^\$\(trl-akd recipes path (\w+)\)$", config)
        find_accelerate_config(name)
    else:
        assert (ROOT / config).is_file()
    return module.rpartition(".")[2], words[words.index(module) + 1 :]


def test_commands_are_found():
    found = {as_arguments(words)[0] for words in PRINTED.values()}
    assert found - {"--help", "--version"} == COMMANDS.keys(), "each command is shown somewhere"
    assert len(PRINTED) > 40


@pytest.mark.parametrize("text", PRINTED, ids=str)
def test_flags_exist_and_values_are_of_their_type(text: str):
    command, arguments = as_arguments(PRINTED[text])
    if command in WITHOUT_FIELDS or "--help" in arguments:
        return
    if not arguments[0].startswith("-"):
        word = arguments.pop(0)
        command = command if command in ("push", "report") else f"{command} {word}"  # the folder to push
    if command == "cache inspect":
        arguments = ["--cache_dir", *arguments]
    options, flags = read_options(arguments)
    if options.accelerate_config:
        find_accelerate_config(options.accelerate_config)
    parser = RecipeParser(argument_types(command), prog="trl-akd")
    known = parser._option_string_actions
    for flag in (word for word in flags if word.startswith("--") and word not in known):
        assert options.accelerate_config and is_launch_flag(flag), flag
        flags = flags[: flags.index(flag)] + flags[flags.index(flag) + 2 :]
    placeholders = (None, "...", "plans.yaml", "my_recipe.yaml")
    there = options.config not in placeholders and find_recipe(options.config).is_file()
    assert there or options.config in placeholders, f"{options.config} does not exist"
    parser.values(read_recipe(options.config) if there else read_recipe(None), flags)


def is_run(text: str) -> bool:
    command, arguments = as_arguments(PRINTED[text])
    elsewhere = (
        "--merge_adapter",
        "--backend openai",
        "recipes/micro/",
        "--config ...",
        "--prompt_template codeplan_code",
    )
    return command in RUN and bool(arguments) and not any(part in text for part in elsewhere)


RUNNABLE = dict.fromkeys(
    " ".join(words)
    for source, commands in sources()
    for words in commands
    if source.suffix != ".yaml" and source.parent.name != "guides" and is_run(" ".join(words))
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the commands name."""
    folder = tmp_path_factory.mktemp("made")
    save_writers(folder)
    save_rankers(folder)
    tests = "def check(candidate):\n    assert candidate(1) == 1\n"
    humaneval = [
        {"task_id": f"HumanEval/{n}", "prompt": "def f(x):\n", "entry_point": "f", "test": tests} for n in range(3)
    ]
    write(folder / "humaneval.jsonl", humaneval)
    write(folder / "train.jsonl", humaneval)
    write(folder / "outputs/quickstart/held_out.jsonl", humaneval)
    mbpp = [
        {"task_id": n, "text": "Write f.", "code": "def f(x): return x", "test_list": ["assert f(1) == 1"]}
        for n in (11, 12)
    ]
    write(folder / "mbpp.jsonl", mbpp)
    samples = [{"task_id": row["task_id"], "solution": "def f(x):\n    return x\n"} for row in humaneval]
    for name in ("others.jsonl", "samples.jsonl", "ranked.jsonl"):
        write(folder / name, samples)
    write(folder / "folder_of_samples" / "samples.jsonl", samples)
    write_apps(folder / "APPS")
    judgements = [
        {"instruction": f"Print {n}.", "answer": f"print({n})", "scores": [n % 3, 1, 0.5, 0, 0]} for n in range(12)
    ]
    write(folder / "judgements.jsonl", judgements)
    plans = (RECIPES / "qwen2.5-coder-7b-to-0.5b" / "codeplan" / "plans.yaml").read_text()
    (folder / "plans.yaml").write_text(plans)
    ranked = [
        {"id": str(n // 4), "problem": "f", "program": f"x = {n}", "label": ("wrong_answer", "correct")[n % 2]}
        for n in range(40)
    ]
    write(folder / "outputs" / "ranker" / "data.jsonl", ranked)
    write(folder / "outputs" / "plans" / "plans.jsonl", [{"id": "1", "problem": "f", "plans": ["1. Return x."]}])
    pair = {"kind": "pair", "cycle": 0, "id": "1", "correct": "x = 1", "faults": []}
    write(folder / "outputs" / "iterkd" / "ledger" / "items.jsonl", [pair])
    return folder


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def save_writers(folder: Path) -> None:
    """Save models that end their text after a few tokens: their logits do not depend on the input."""
    tokenizer = tiny.tokenizer()
    config = CodeGenConfig(
        vocab_size=len(tokenizer), n_positions=4096, n_embd=32, n_layer=1, n_head=4, rotary_dim=4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CodeGenForCausalLM(config)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight.mul_(0.1)
        model.lm_head.weight[tokenizer.eos_token_id] = 0.3
    names = ["student", "teacher", "outputs/student", "outputs/quickstart/student-akd"]
    names += ["outputs/qwen2.5-coder-0.5b-apps-codeplan"]
    names += [f"Qwen/Qwen2.5-Coder-{size}" for size in ("0.5B", "7B", "0.5B-Instruct", "7B-Instruct")]
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    for name in names:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        (folder / name / "README.md").write_text(f"# {name}\n")


def save_rankers(folder: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 512
    labels = {"id2label": {0: "incorrect", 1: "correct"}, "label2id": {"incorrect": 0, "correct": 1}}
    for name, more in (("microsoft/codebert-base", {}), ("outputs/ranker/model", labels)):
        config = RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=514, pad_token_id=tokenizer.pad_token_id, **more,
        )  # fmt: skip
        RobertaForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_apps(folder: Path) -> None:
    for split in ("train", "test"):
        for number in range(2):
            problem = folder / split / f"{number:04}"
            problem.mkdir(parents=True)
            (problem / "question.txt").write_text("Read a number and print it.")
            cases = json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["1\n", "2\n"]})
            (problem / "input_output.json").write_text(cases)
            (problem / "example_input_output.json").write_text(cases)
            (problem / "solutions.json").write_text(json.dumps(["print(input())\n"]))
            (problem / "plans.json").write_text(json.dumps(["1. Read the number.\n2. Print it."]))
            (problem / "metadata.json").write_text(json.dumps({"difficulty": "introductory", "url": ""}))


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder as working directory, from which the benchmarks of the Hub are loaded."""
    copy = tmp_path / "place"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def local(known, revision):
        if known.dataset == "codeparrot/apps":
            return benchmarks._local_rows(Path("APPS/test"))
        return benchmarks._local_rows(Path("mbpp.jsonl" if "mbpp" in known.dataset else "humaneval.jsonl"))

    monkeypatch.setattr(benchmarks, "_hub_rows", local)
    return copy


def prepare(text: str) -> None:
    """Run the commands that a command depends on."""
    evaluate = ["evaluate", "--allow_code_execution", "--model_name_or_path"]
    if "push outputs/evaluation" in text:
        assert main([*evaluate, "student", "--benchmark", "humaneval"]) == 0
    elif "--compare" in text:
        for model in ("teacher", "student"):
            assert main([*evaluate, model, "--benchmark", "humaneval"]) == 0
    elif "ranker data" in text and "/apps/" in text:
        assert (
            main(
                [
                    *evaluate,
                    "outputs/student",
                    "--benchmark",
                    "apps",
                    "--output_dir",
                    "outputs/evaluation/apps/student",
                ]
            )
            == 0
        )
    elif "ranker data" in text:
        assert (
            main([*evaluate, "student", "--benchmark", "train.jsonl", "--output_dir", "outputs/evaluation/train"]) == 0
        )
    elif "ranker rank" in text:
        assert main([*evaluate, "student", "--benchmark", "humaneval"]) == 0


@pytest.mark.parametrize(
    "text",
    [pytest.param(text, marks=[pytest.mark.slow] if any(part in text for part in SLOW) else []) for text in RUNNABLE],
    ids=str,
)
def test_commands_run_as_printed(text: str, place: Path, request: pytest.FixtureRequest):
    prepare(text)
    if text.startswith("trl-akd push"):
        request.getfixturevalue("hub")
    assert main(PRINTED[text][1:]) == 0
