import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.commands import argument_types
from tests.printed import printed_commands
from trl_akd.cli import main
from trl_akd.cli.launching import Launcher
from trl_akd.cli.parsing import RecipeParser, read_options
from trl_akd.cli.recipes import RECIPES, find_accelerate_config, find_recipe, read_recipe

NAME = "recipes/starcoder-7b-to-1b/akd/config_full.yaml"


def test_recipe_by_path(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.touch()
    assert find_recipe(str(path)) == path


def test_recipe_of_the_package_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    short = NAME.removeprefix("recipes/")
    for name in (NAME, short, NAME.removesuffix(".yaml"), short.removesuffix(".yaml")):
        assert find_recipe(name) == RECIPES.parent / NAME


def test_local_file_precedes_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = tmp_path / NAME
    own.parent.mkdir(parents=True)
    own.touch()
    monkeypatch.chdir(tmp_path)
    assert find_recipe(NAME).resolve() == own


@pytest.mark.parametrize("name", [NAME, "recipes/micro/codeplan/plans.yaml"])
def test_missing_recipe_suggests_a_close_one(name: str):
    with pytest.raises(FileNotFoundError, match=f"did you mean '{name}'"):
        find_recipe(name.replace(".yaml", ".yam"))


def test_missing_recipe_without_a_suggestion():
    with pytest.raises(FileNotFoundError, match=r"'zzz\.yml', but there is no such file; check the path, or see"):
        find_recipe("zzz.yml")


def test_folder_is_not_a_recipe(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="which is a folder; name a YAML file"):
        find_recipe(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="which is a folder; name a YAML file"):
        find_recipe("micro/akd")


def test_accelerate_config_by_path_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.touch()
    assert find_accelerate_config(str(path)) == path
    for name in ("zero3", "accelerate_configs/zero3", "recipes/accelerate_configs/zero3.yaml"):
        assert find_accelerate_config(name) == RECIPES / "accelerate_configs" / "zero3.yaml"


def test_missing_accelerate_config_lists_the_names():
    with pytest.raises(
        FileNotFoundError, match=r"neither a file nor one of ddp, .*zero3_offload; did you mean 'zero3'\?"
    ):
        find_accelerate_config("zeor3")


def names() -> list[str]:
    files = [path.relative_to(RECIPES.parent).as_posix() for path in RECIPES.rglob("*") if path.is_file()]
    return [name for name in files if not name.endswith("README.md")]


def test_list_shows_every_file_with_a_description(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    entries = {line.strip(): after.strip() for line, after in pairwise(lines)}
    for name in names():
        shown = Path(name).stem if "accelerate_configs" in name else name
        assert len(entries[shown]) > 20, f"{name} begins with a comment that describes it"


@pytest.mark.parametrize(
    ("text", "expected", "other"), [("codet5", "codet5-770m", "starcoder"), ("ZERO", "zero2", "ddp")]
)
def test_list_of_names_with_a_text(text: str, expected: str, other: str, capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", "list", text]) == 0
    out = capsys.readouterr().out
    assert expected in out and other not in out


@pytest.mark.parametrize(
    "name", [NAME, "starcoder-7b-to-1b/akd/config_full", "zero3", "accelerate_configs/zero3.yaml"]
)
def test_show_and_path(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "path", name]) == 0
    path = Path(capsys.readouterr().out.removesuffix("\n"))
    assert path.is_absolute() and path.is_file()
    assert main(["recipes", "show", name]) == 0
    assert capsys.readouterr().out == path.read_text()


@pytest.mark.parametrize("name", names())
def test_every_file_can_be_copied(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", name]) == 0
    assert (tmp_path / Path(name).name).read_bytes() == (RECIPES.parent / name).read_bytes()
    assert main(["recipes", "copy", name, "made/here/copy"]) == 0
    assert (tmp_path / "made/here/copy").is_file()
    (tmp_path / "made/here/copy").write_text("mine")
    assert main(["recipes", "copy", name, "made/here/copy"]) == 2
    assert "exists; give another name" in capsys.readouterr().err
    assert (tmp_path / "made/here/copy").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["path", "zeor3"], "no file 'zeor3'; did you mean 'zero3'?"),
        (["show", "starcoder-7b-to-1b/akd/config_ful.yaml"], f"did you mean '{NAME}'?"),
        (["copy", "../pyproject.toml"], "no file '../pyproject.toml'"),
        (["copy", "/etc/hostname"], "no file '/etc/hostname'"),
        (["show", "recipes/micro/akd"], "is a folder; `trl-akd recipes list recipes/micro/akd` lists its files"),
        (["list", "no such thing"], "no name or description contains 'no such thing'"),
        (["lst"], "invalid choice: 'lst'"),
        (["show"], "the following arguments are required: NAME"),
        (["list", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_refusals_are_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_path_is_printed_alone_and_without_torch(tmp_path: Path):
    """As in `accelerate launch --config_file "$(trl-akd recipes path zero3)"`, from any folder."""
    program = (
        "import sys, trl_akd.cli as cli; cli.main(['recipes', 'path', 'zero3']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(Path(done.stdout.strip()).read_text())["deepspeed_config"]["zero_stage"] == 3


def assert_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Check the arguments of a training or evaluation, and return those of accelerate's launcher."""
    command, *arguments = words
    options, flags = read_options(arguments)
    parser = RecipeParser(argument_types(command), prog="trl-akd")
    launch_flags: list[str] = []
    if options.accelerate_config:
        monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
        monkeypatch.setattr("trl_akd.cli.launching.require_deepspeed", lambda **settings: None)
        launch_flags, flags = Launcher(find_accelerate_config(options.accelerate_config)).split(flags, parser)
    parser.values(read_recipe(options.config), flags)
    return launch_flags


def test_dockerfile(monkeypatch: pytest.MonkeyPatch):
    """Known instructions, and commands in its header that parse."""
    text = (RECIPES / "docker" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    instructions = [line.split()[0] for line in lines if line]
    assert set(instructions) == {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "CMD"} and instructions[0] == "FROM"
    assert json.loads(next(line for line in lines if line.startswith("CMD")).removeprefix("CMD")) == [
        "trl-akd",
        "--help",
    ]
    header = re.sub(r"\s*\\\n#\s*", " ", text)
    commands = [shlex.split(words) for words in re.findall(r"^#.* trl_akd (trl-akd .*)$", header, re.MULTILINE)]
    assert [words[1] for words in commands] == ["akd", "evaluate"]
    for words in commands:
        assert_parses(words[1:], monkeypatch)


FAKES = {
    "scontrol": "echo node-a; sleep 0.1; echo node-b",
    "srun": 'shift; for rank in 0 1; do SLURM_NODEID=$rank SLURM_GPUS_ON_NODE=4 "$@"; done',
    "trl-akd": 'python3 -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"',
}


def test_slurm_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each node starts the launcher with its own rank, with Slurm's commands and `trl-akd` replaced."""
    for name, script in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    script = RECIPES / "slurm" / "train.sbatch"
    [words] = [words for words in printed_commands(script.read_text()) if words[1] == "recipes"]
    assert words[2:] == ["copy", "slurm/train.sbatch"]
    runs = re.findall(r"sbatch train\.sbatch (akd .*)$", script.read_text(), re.MULTILINE)
    assert len(runs) == 2
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2"}
    for run in runs:
        done = subprocess.run(["bash", script, *run.split()], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        started = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(started) == 2
        for rank, arguments in enumerate(started):
            assert arguments[: len(run.split())] == run.split()
            expected = ["--num_machines", "2", "--num_processes", "8", "--machine_rank", str(rank)]
            expected += ["--main_process_ip", "node-a", "--main_process_port", "29500"]
            assert assert_parses(arguments, monkeypatch) == expected
