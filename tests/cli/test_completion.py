"""The completion scripts, as shells run them; commands, fields and recipes in them are those of the package."""

import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from tests import commands
from trl_akd.cli import COMMANDS, main
from trl_akd.cli.recipes import shipped_files

COMPLETE = """
source completion.bash
while IFS= read -r line; do
  eval "COMP_WORDS=($line)"
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _shtab_trl_akd 2> /dev/null
  echo "${COMPREPLY[*]}"
done
"""
ANSWERS = {
    "ev": "evaluate",
    "ranker ''": "data train rank",
    "bench ''": "cycles plans models",
    "akd --learning_r": "--learning_rate",
    "akd --bf16 true --learning_r": "--learning_rate",
    "akd --no": "--normalization",  # no second spellings: `--no_bf16` is `--bf16 false`
    "akd --bf16 ''": "true false",
    "akd --beta_strategy ''": "akd m1 m2 fixed random_epoch linear",
    "akd --help ''": "all",
    "akd --config recipes/starcoder-7b-to-1b/akd/config_l": "recipes/starcoder-7b-to-1b/akd/config_lora.yaml",
    "akd --config compl": "completion.bash",
    "akd --dataset_name compl": "completion.bash",
    "akd --accelerate_config zero3": "zero3 zero3_cpu zero3_offload",
    "bench models --acc": "",
    "bench models --conf": "--config",
    "quickstart --method ''": "akd codeplan iterkd",
    "recipes sh": "show",
    "recipes copy ddp_": "ddp_cpu",
    "recipes copy ddp_cpu compl": "completion.bash",
    "completion ''": "bash zsh fish",
    "push runs": "runs-of-today",
    "push --run_dir runs": "runs-of-today",
    "push runs-of-today --priv": "--private",
    "report runs": "runs-of-today",
    "cache inspect runs": "runs-of-today",
}


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    from trl_akd.cli.completion import SHELLS, make_script

    return {shell: make_script(shell) for shell in SHELLS}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(scripts: dict[str, str], tmp_path: Path):
    (tmp_path / "completion.bash").write_text(scripts["bash"])
    (tmp_path / "runs-of-today").mkdir()
    (tmp_path / "runs.json").touch()
    lines = "".join(f"trl-akd {words}\n" for words in [*ANSWERS, "''"])
    command = ["bash", "--norc", "-c", COMPLETE]
    done = subprocess.run(command, cwd=tmp_path, input=lines, capture_output=True, text=True, check=True)
    *answers, every = done.stdout.splitlines()
    assert dict(zip(ANSWERS, answers, strict=True)) == ANSWERS
    assert set(every.split()) == COMMANDS.keys()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_the_script(scripts: dict[str, str]):
    subprocess.run(["zsh", "-n"], input=scripts["zsh"], text=True, check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_reads_the_script(scripts: dict[str, str]):
    subprocess.run(["fish", "--no-execute"], input=scripts["fish"], text=True, check=True)


def test_fields_and_recipes_are_complete(scripts: dict[str, str]):
    for command in commands.COMMANDS:
        flags = {
            f"--{entry.name}" for kind in commands.argument_types(command) for entry in fields(kind) if entry.init
        }
        name = command.replace(" ", "_")
        [line] = [
            row for row in scripts["bash"].splitlines() if row.startswith(f"_shtab_trl_akd_{name}_option_strings=")
        ]
        assert flags <= set(line.partition("=(")[2].rstrip(")").split()), command
    for script in scripts.values():
        assert all(name in script for files in shipped_files().values() for name in files)


def test_the_command_prints_the_script(scripts: dict[str, str], capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == f"{scripts['zsh']}\n"
    assert scripts["zsh"].startswith("#compdef trl-akd\n")
