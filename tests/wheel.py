"""Install a wheel into an empty environment and use it there: `python -m tests.wheel WHEEL [REQUIREMENT ...]`.

The environment has no other packages, no home folder, no variables of this one but those of pip, and no connection to
the Hub; the working directory has no sources. The first command that fails ends the check. Needs the standard library
alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

RECIPE = "qwen2.5-coder-7b-to-0.5b/akd/config_full"
IMPORTS = "import trl_akd; print(*(getattr(trl_akd, name).__name__ for name in trl_akd.__all__))"
# Untrained models and a few tasks.
INPUTS = """
from pathlib import Path
from trl_akd.micro.models import new_model, student_config, teacher_config, train_tokenizer
from trl_akd.micro.tasks import sample_tasks, write_problems, write_rows

tasks = sample_tasks(64, split="train")
write_rows(tasks, "train.jsonl")
write_problems(tasks[:4], "problems.jsonl")
tokenizer = train_tokenizer([task.prompt + task.solution for task in tasks])
for name, config in (("teacher", teacher_config), ("student", student_config)):
    new_model(config(tokenizer, 128)).save_pretrained(name)
    tokenizer.save_pretrained(name)
"""
COMMANDS = (
    ("trl-akd", "--help"),
    ("trl-akd", "--version"),
    ("python", "-m", "trl_akd", "--version"),
    ("python", "-c", IMPORTS),
    ("trl-akd", "recipes", "list"),
    ("trl-akd", "recipes", "show", RECIPE),
    ("trl-akd", "recipes", "copy", RECIPE),
    ("trl-akd", "recipes", "path", "zero3"),
    ("trl-akd", "akd", "--config", "config_full.yaml", "--dry_run"),
    ("python", "-c", INPUTS),
    ("trl-akd", "akd", "--config", "micro/akd/config", "--model_name_or_path", "student",
     "--teacher_model_name_or_path", "teacher", "--dataset_name", "train.jsonl", "--max_steps", "4",
     "--per_device_train_batch_size", "8", "--output_dir", "distilled"),
    ("trl-akd", "evaluate", "--model_name_or_path", "distilled", "--benchmark", "problems.jsonl",
     "--max_new_tokens", "8", "--allow_code_execution", "--output_dir", "evaluation"),
)  # fmt: skip


def check(python: Path, folder: Path) -> None:
    """Run all commands with the interpreter `python` in the empty folder `folder`.

    Raises:
        subprocess.CalledProcessError: If a command fails; its output has been printed.
    """
    environment = {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    for command in COMMANDS:
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        print(f"{' '.join(command).partition(chr(10))[0]}: {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            print(done.stdout)
        done.check_returncode()
    for name in ("config_full.yaml", "distilled/model.safetensors", "evaluation/results.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"the commands did not write {name}")


def install(wheel: Path, folder: Path, requirements: Sequence[str] = ()) -> Path:
    """Create a virtual environment in `folder` with the wheel and `requirements`, and return its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder / "home"), **settings}

    def pip(*arguments: str | Path) -> str:
        command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.check_output(command, cwd=folder, env=environment, text=True)

    pip("install", "--quiet", wheel.resolve(), *requirements)
    kept = ("torch==", "transformers==", "trl==")
    print(wheel.name, *(line for line in pip("freeze").splitlines() if line.startswith(kept)), flush=True)
    return python


def main(argv: list[str] | None = None) -> int:
    """Return 0 if the wheel can be installed and every command succeeds, and 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.wheel", description=str(__doc__).partition(":")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("requirements", nargs="*", help="other packages to install, such as trl==1.9.2")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="trl_akd-wheel-") as scratch:
        used = Path(scratch) / "used"
        used.mkdir()
        try:
            check(install(options.wheel, Path(scratch) / "venv", options.requirements), used)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"failed: {error}")
            return 1
    print(f"{len(COMMANDS)} commands passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
