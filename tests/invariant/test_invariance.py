"""Equal samples give equal losses, β, gradients and parameters for any split of the work, and after interruptions."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.akd import vllm_double
from tests.generation.server import Server, serving
from trl_akd.akd.on_policy import is_on_policy
from trl_akd.cli.mock_teacher import score

from .launch import Outcome, run

pytestmark = pytest.mark.distributed

Train = Callable[..., Outcome]

# 11 rows and a global batch of 4 for two epochs: six steps, β redrawn after the third.
SPLITS: dict[str, tuple[str, int, int]] = {
    "2 accumulated": ("single", 2, 2),
    "4 accumulated": ("single", 1, 4),
    "DDP": ("ddp", 2, 1),
    "DDP, 2 accumulated": ("ddp", 1, 2),
    "ZeRO-1": ("zero1", 2, 1),
    "ZeRO-2": ("zero2", 2, 1),
    "ZeRO-2, 2 accumulated": ("zero2", 1, 2),
    "ZeRO-3": ("zero3", 2, 1),
    "ZeRO-3, 2 accumulated": ("zero3", 1, 2),
}
COMPARED = (
    "loss",
    "grad_norm",
    "kd/beta",
    "kd/t",
    "kd/forward_kl",
    "kd/reverse_kl",
    "kd/divergence",
    "kd/student_nll",
    "kd/teacher_nll",
    "entropy",
    "num_tokens",
    "eval_loss",
    "eval_kd/forward_kl",
    "eval_kd/teacher_nll",
)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train once for each distinct set of arguments."""
    folder = tmp_path_factory.mktemp("invariance")
    student, teacher = tiny.save_pair(folder)

    @cache
    def once(backend: str = "single", batch: int = 4, accumulation: int = 1, **settings: Any) -> Outcome:
        name = "-".join(map(str, [backend, batch, accumulation, *settings.values()])).replace("/", "_")
        settings = {
            "num_train_epochs": 2,
            "save_steps": 4,
            "student": student,
            "teacher_model_name_or_path": teacher,
            "gradient_checkpointing": False,
            **settings,
        }
        return run(
            folder / name[-100:],
            backend,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **settings,
        )

    return once


def assert_same(found: Outcome, expected: Outcome, last: int | None = None) -> None:
    for key in COMPARED:
        whole = expected.series(key)
        reference = whole[-last:] if last and not key.startswith("eval") else whole
        assert found.series(key) == pytest.approx(reference, rel=2e-4, abs=1e-6), key
    assert found.record["beta"] == pytest.approx(expected.record["beta"], abs=1e-9)
    assert found.parameters.keys() == expected.parameters.keys()
    for name, parameter in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name], parameter, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_split_does_not_matter(train: Train, split: str) -> None:
    backend, batch, accumulation = SPLITS[split]
    found, expected = train(backend, batch, accumulation), train()
    assert found.record["world_size"] == (1 if backend == "single" else 2)
    assert found.record["sharded"] == (backend == "zero3")
    assert len(expected.series("loss")) == 6
    assert len(set(expected.series("kd/beta"))) == 6, "β must move, or the comparison says nothing about it"
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("backend", "batch", "accumulation"),
    [("single", 1, 4), ("ddp", 1, 2), pytest.param("zero3", 1, 2, marks=pytest.mark.slow)],
)
def test_split_does_not_matter_for_token_normalization(
    train: Train, backend: str, batch: int, accumulation: int
) -> None:
    settings = {"normalization": "token", "ce_weight": 0.5, "kd_temperature": 2.0}
    expected = train(**settings)
    assert expected.series("loss") != pytest.approx(train().series("loss"), rel=1e-3)
    assert_same(train(backend, batch, accumulation, **settings), expected)


@pytest.mark.parametrize("backend", ["ddp", "zero3", pytest.param("zero2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("seq_kd", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_split_does_not_matter_for_cross_entropy_beside_generated_text(
    train: Train, backend: str, seq_kd: bool
) -> None:
    """Each process orders its rows by length: one has generated text alone where the other has both kinds."""
    settings = {"lmbda": 0.5, "ce_weight": 0.5, "max_new_tokens": 8, "seq_kd": seq_kd, "save_strategy": "no"}
    settings |= {"rows": 19, "num_train_epochs": 1}  # two steps of two micro-batches, and a step of three rows
    draws = [[is_on_policy(0.5, seed=3, step=step, micro_batch=number) for number in range(2)] for step in range(3)]
    assert draws == [[False, True], [True, False], [True, True]]
    assert_same(train(backend, 2, 2, **settings), train("single", 4, 2, **settings))


@pytest.fixture(scope="module")
def server(train: Train) -> Iterator[Server]:
    """A server with the teacher's model."""
    teacher = tiny.model("qwen2", hidden=48, seed=2).eval()  # as `save_pair` saves it
    with serving() as server:
        server.answer = lambda path, body: score(teacher, tiny.tokenizer(), body)  # type: ignore[method-assign]
        yield server


@pytest.mark.parametrize("backend", ["ddp", pytest.param("zero3", marks=pytest.mark.slow)])
def test_split_does_not_matter_for_a_served_teacher(train: Train, server: Server, backend: str) -> None:
    settings = {"teacher_base_url": server.url, "teacher_top_k": tiny.VOCABULARY}
    expected = train(**settings)
    before = len(server.bodies)
    found = train(backend, 1, 2, **settings)
    assert_same(found, expected)
    assert_same(found, train(backend, 1, 2))
    if backend == "ddp":  # two epochs of 11 rows, an evaluation of 5 rows, each filled up, and a check per process
        assert len(server.bodies) - before <= 2 * 12 + 6 + 2
        return
    checkpoint = found.checkpoints / "checkpoint-4"
    resumed = train(backend, 1, 2, resume=str(checkpoint), save_strategy="no", **settings)
    assert_same(resumed, expected, last=2)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "batch", "accumulation"), [("ddp", 1, 2), ("zero3", 1, 2)])
def test_split_does_not_matter_for_a_divergence_by_autograd(
    train: Train, backend: str, batch: int, accumulation: int
) -> None:
    expected = train(divergence="jsd")
    assert expected.series("loss") == pytest.approx(expected.series("kd/divergence"))
    assert_same(train(backend, batch, accumulation, divergence="jsd"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "batch", "accumulation"), [("ddp", 1, 2), ("zero3", 1, 2)])
@pytest.mark.parametrize(
    ("knob", "settings"),
    [
        ("kd/t", {"divergence": "taid", "divergence_kwargs": '{"step_size": 0.3, "momentum": 0.5}'}),
        ("kd/beta", {"beta_strategy": "linear"}),
    ],
    ids=["t", "beta"],
)
def test_split_does_not_matter_for_a_knob_with_a_schedule(
    train: Train, knob: str, settings: dict[str, Any], backend: str, batch: int, accumulation: int
) -> None:
    expected = train(**settings)
    assert len(set(expected.series(knob))) == 6, "the knob must move"
    found = train(backend, batch, accumulation, **settings)
    assert_same(found, expected)
    checkpoint = found.checkpoints / "checkpoint-4"
    resumed = train(backend, batch, accumulation, resume=str(checkpoint), save_strategy="no", **settings)
    assert_same(resumed, expected, last=2)


@pytest.mark.parametrize(("backend", "batch"), [("single", 4), ("ddp", 2), ("zero2", 2), ("zero3", 2)])
def test_resumed_run_equals_the_uninterrupted_run(train: Train, backend: str, batch: int) -> None:
    unbroken = train(backend, batch)
    checkpoint = unbroken.checkpoints / "checkpoint-4"  # one step into the second epoch
    resumed = train(backend, batch, resume=str(checkpoint), save_strategy="no")
    assert len(resumed.series("loss")) == 2
    assert_same(resumed, unbroken, last=2)


def test_sharded_weights_load_without_deepspeed(train: Train) -> None:
    from transformers import AutoModelForCausalLM

    outcome = train("zero3", 2)
    model = AutoModelForCausalLM.from_pretrained(outcome.checkpoints / "checkpoint-6")
    for name, parameter in model.state_dict().items():
        if name in outcome.parameters:
            torch.testing.assert_close(parameter, outcome.parameters[name])


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven problems, an odd number for two ranks; a solution depends on each character of the program."""
    text = "assert sum(open('candidate.py', 'rb').read()) % 2\n"
    problems = ({"task_id": i, "prompt": "# solve\n" * i + "#", "test": text} for i in range(1, 8))
    path = tmp_path_factory.mktemp("benchmark") / "parity.jsonl"
    path.write_text("".join(f"{json.dumps(problem)}\n" for problem in problems))
    return str(path)


@pytest.mark.parametrize(
    "backend", ["zero3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "zero2"))]
)
def test_benchmark_scores_do_not_depend_on_the_split(train: Train, backend: str, parity: str) -> None:
    settings = {"benchmark": parity, "eval_strategy": "steps", "eval_steps": 2}
    expected = train(**settings)
    found = train(backend, 2, **settings)
    scores = expected.series("eval_pass@1")
    assert len(scores) >= 3 and all(0 < score < 1 for score in scores)
    assert found.series("eval_pass@1") == scores
    assert_same(found, expected)
    assert expected.series("loss") == train().series("loss"), "the benchmark changes nothing"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"lora": True},
        {"lora": True, "gradient_checkpointing": True},
        {"gradient_checkpointing": True},
        {"beta_strategy": "fixed", "beta": 0.0},
        {"lora": True, "teacher_model_name_or_path": None, "ce_weight": 1.0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_split_does_not_matter_for(train: Train, backend: str, settings: dict[str, Any]) -> None:
    assert_same(train(backend, 1, 2, **settings), train(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["single", "ddp", "zero2", "zero3"])
def test_policy_gradient_does_not_depend_on_the_split(train: Train, backend: str) -> None:
    settings = {"lmbda": 1.0, "temperature": 1.0, "max_new_tokens": 8}
    expected = train(divergence="minillm", **settings)
    found = train(backend, 1, 4 if backend == "single" else 2, divergence="minillm", **settings)
    on_policy = train(divergence="reverse_kl", **settings)
    assert expected.series("grad_norm") != pytest.approx(on_policy.series("grad_norm"), rel=1e-2)
    assert_same(found, expected)


@pytest.mark.skipif(not vllm_double.SUPPORTED, reason="vLLM needs TRL 1.11")
@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("ddp", {"vllm": "server"}),
        *(
            pytest.param(backend, {"vllm": "colocate", "lora": lora}, marks=pytest.mark.slow)
            for backend, lora in (("ddp", True), ("zero3", False), ("zero3", True))
        ),
    ],
)
def test_text_from_vllm_equals_that_of_one_process_without_it(
    train: Train, backend: str, settings: dict[str, Any]
) -> None:
    """With a double of vLLM, of which each process has its own if it is colocated."""
    on_policy = {"lmbda": 1.0, "max_new_tokens": 8}
    lora = {"lora": True} if settings.get("lora") else {}
    assert_same(train(backend, 1, 2, **on_policy, **settings), train(**on_policy, **lora))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
def test_text_of_a_mixture_is_generated_under(train: Train, backend: str) -> None:
    outcome = train(backend, 1, 2, divergence="minillm", lmbda=1.0, temperature=1.0, max_new_tokens=8)
    assert len(outcome.series("loss")) == 6
    assert all(loss > 0 for loss in outcome.series("loss"))


def test_checkpoints_contain_beta(train: Train) -> None:
    folder: Path = train().checkpoints / "checkpoint-4"
    state = torch.load(folder / "akd_state.pt", weights_only=True)
    assert state["beta"]["epoch"] == 1
