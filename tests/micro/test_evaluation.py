import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from trl_akd.micro.evaluation import PassAt1, pass_at_1, passes, write_programs
from trl_akd.micro.models import new_model, student_config, train_tokenizer
from trl_akd.micro.world import Task, sample_tasks

TESTS = "assert solve(2) == 4\nassert solve(3) == 6\n"


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return sample_tasks(24, split="held_out")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(sample_tasks(500, split="train"))


class Reciter(nn.Module):
    """Stands in for a model: writes the reference solutions, wrong ones where told to."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, tasks: list[Task], wrong: set[str]) -> None:
        super().__init__()
        self.tokenizer, self.device = tokenizer, torch.device("cpu")
        self.answers = {
            task.prompt: "def solve(value):\n    return None\n" if task.task_id in wrong else task.solution
            for task in tasks
        }
        self.batch_sizes: list[int] = []

    def generate(self, input_ids, attention_mask, **kwargs):
        assert not self.training
        self.batch_sizes.append(len(input_ids))
        prompts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        answers = self.tokenizer(
            [self.answers[prompt] + self.tokenizer.eos_token for prompt in prompts],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )["input_ids"]
        return torch.cat([input_ids, answers], dim=1)


@pytest.mark.parametrize("wrong", [0, 5, 24])
def test_pass_at_1_counts_the_programs_that_pass(tokenizer, tasks: list[Task], wrong: int):
    model = Reciter(tokenizer, tasks, {task.task_id for task in tasks[:wrong]})
    assert pass_at_1(model, tokenizer, tasks, batch_size=7) == PassAt1(24 - wrong, 24)
    assert model.batch_sizes == [7, 7, 7, 3]
    assert model.training, "the mode of the model is left as it was"


def test_programs_come_back_in_the_order_of_the_tasks(tokenizer, tasks: list[Task]):
    model = Reciter(tokenizer, tasks, set())
    assert write_programs(model, tokenizer, tasks, batch_size=5) == [task.solution for task in tasks]


def test_batching_and_padding_change_no_program(tokenizer, tasks: list[Task]):
    model = new_model(student_config(tokenizer))
    alone = write_programs(model, tokenizer, tasks[:6], batch_size=1)
    assert write_programs(model, tokenizer, tasks[:6], batch_size=6) == alone


def test_no_tasks_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="at least one task"):
        pass_at_1(Reciter(tokenizer, [], set()), tokenizer, [])


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def solve(n):\n    return n * 2\n", True),
        ("def solve(n):\n    print('noise')\n    return n + n", True),
        ("def solve(n):\n    return 4\n", False),
        ("def solve(n):\n    return\n", False),
        ("def solve(n:\n", False),
        ("def other(n):\n    return n * 2\n", False),
        ("raise SystemExit(0)", False),
        ("import os\nos._exit(0)", False),
        ("", False),
    ],
)
def test_a_program_passes_only_behind_all_its_tests(program: str, verdict: bool):
    assert passes(program, TESTS) is verdict


def test_an_endless_program_is_stopped_with_its_children(tmp_path):
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    program = (
        "import os, time\n"
        f"alive = os.open({str(alive)!r}, os.O_WRONLY)\n"
        "os.write(alive, b'started')\n"
        "if os.fork() == 0:\n"
        "    time.sleep(20)\n"
        "    os.write(alive, b', survived')\n"
        "while True: pass\n"
    )
    assert not passes(program, TESTS, timeout=2.0)
    os.set_blocking(reader, True)
    with open(reader, encoding="utf-8") as stream:
        assert stream.read() == "started", "reading ends once nobody holds the pipe"


def test_the_user_s_python_settings_do_not_reach_a_program(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert subprocess.run([sys.executable, "-c", "import helper"]).returncode == 0
    assert not passes("import helper\ndef solve(n):\n    return n * 2\n", TESTS)
