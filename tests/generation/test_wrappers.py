"""Wrappers of generators for chat templates and several processes."""

import pickle
from typing import Any

import pytest
from accelerate import Accelerator

from trl_akd.distributed import picklable_error
from trl_akd.generation import Completion, GenerationError
from trl_akd.generation.budget import BudgetedGenerator
from trl_akd.generation.json_client import RefusedRequest
from trl_akd.generation.protocol import GREEDY, SamplingParams, stream
from trl_akd.generation.wrappers import ChatGenerator, OnMainProcess, for_all_processes, is_shared, model_name


class Halting:
    """Yield completions, and fail after a number of them."""

    model_name = "halting"

    def __init__(self, until: int, is_shared: bool = False) -> None:
        self.until = until
        self.is_shared = is_shared

    def generate(self, prompts: list[str], **sampling: Any) -> list[list[Completion]]:
        raise NotImplementedError

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY):
        for index, prompt in enumerate(prompts):
            if index == self.until:
                raise GenerationError("gone")
            yield index, [Completion(prompt, None, "stop", 1)]


class Tokenizer:
    chat_template = "..."

    def apply_chat_template(self, messages: list[dict[str, str]], **settings: Any) -> str:
        return f"<{messages[0]['content']}>"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda generator: OnMainProcess(generator, Accelerator(cpu=True)),
        lambda generator: ChatGenerator(generator, Tokenizer()),
        lambda generator: BudgetedGenerator(generator, max_requests=9),
    ],
    ids=["on main", "chat", "budget"],
)
def test_completions_before_an_error_are_yielded(wrap: Any):
    found = []
    with pytest.raises(GenerationError, match="gone"):
        for _, [completion] in stream(wrap(Halting(2)), ["a", "b", "c"]):
            found.append(completion.text.strip("<>"))
    assert found == ["a", "b"]


@pytest.mark.parametrize("shared", [True, False])
def test_undistributed_generators_are_called_on_the_main_process(shared: bool):
    generator = BudgetedGenerator(ChatGenerator(Halting(0, shared), Tokenizer()), max_requests=1)  # type: ignore[arg-type]
    assert is_shared(generator) is shared
    assert isinstance(for_all_processes(generator, Accelerator(cpu=True)), OnMainProcess) is not shared


def test_models_are_named():
    assert model_name(ChatGenerator(Halting(0), Tokenizer())) == "halting"
    assert model_name(object()) == "object"


def test_refusal_on_other_processes():
    refusal = pickle.loads(pickle.dumps(picklable_error(RefusedRequest("no such model", 404, "excerpt"))))
    assert isinstance(refusal, RefusedRequest)
    assert (str(refusal), refusal.status, refusal.excerpt) == ("no such model", 404, "excerpt")
