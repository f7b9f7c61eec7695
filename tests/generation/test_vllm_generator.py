"""Tests with a mock of vLLM's documented interface, since vLLM needs a GPU."""

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import pytest

from tests import tiny
from trl_akd.generation import Completion, GenerationError, VLLMGenerator


@dataclass
class SamplingParams:
    """The arguments of vLLM's class that are used here, with its defaults."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = 16
    stop: list[str] = field(default_factory=list)
    seed: int | None = None
    logprobs: int | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    finish_reason: str | None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


class LLM:
    """Return `abc` for each sample, truncated at `max_tokens`, with log-probability -0.5 per token."""

    made: ClassVar[list["LLM"]] = []

    def __init__(self, model: str, *, tensor_parallel_size: int = 1, **engine_args: Any) -> None:
        self.settings = {"model": model, "tensor_parallel_size": tensor_parallel_size, **engine_args}
        self.asked: list[tuple[list[int], SamplingParams]] = []
        self.finish_reason: str | None = None
        LLM.made.append(self)

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert len(prompts) == len(sampling_params) > 0
        tokens = [prompt["prompt_token_ids"] for prompt in prompts]
        self.asked += list(zip(tokens, sampling_params, strict=True))
        return [
            RequestOutput(ids, [self._sample(index, sampling) for index in range(sampling.n)])
            for ids, sampling in zip(tokens, sampling_params, strict=True)
        ]

    def _sample(self, index: int, sampling: SamplingParams) -> CompletionOutput:
        assert sampling.max_tokens is not None
        ids = list(range(4))[: sampling.max_tokens]
        logprob = None if sampling.logprobs is None else -0.5 * len(ids)
        reason = self.finish_reason or ("stop" if len(ids) == 4 else "length")
        return CompletionOutput(index, "abc"[: sampling.max_tokens], ids, logprob, reason)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM


def test_greedy(vllm: type[LLM]) -> None:
    tokenizer = tiny.tokenizer()
    made = VLLMGenerator("m", tokenizer=tokenizer, tensor_parallel_size=2, dtype="bfloat16")
    outputs = made.generate(["x", "yy"], max_new_tokens=9, stop=["\n"])
    assert outputs == [[Completion("abc", -0.5, "stop", 4)]] * 2
    [engine] = vllm.made
    assert engine.settings == {
        "model": "m", "tensor_parallel_size": 2, "dtype": "bfloat16", "logprobs_mode": "raw_logprobs"
    }  # fmt: skip
    assert [ids for ids, _ in engine.asked] == tokenizer(["x", "yy"])["input_ids"]
    assert {(asked.n, asked.temperature, asked.max_tokens, *asked.stop) for _, asked in engine.asked} == {
        (1, 0.0, 9, "\n")
    }


def test_samples(vllm: type[LLM]) -> None:
    made = VLLMGenerator("m", tokenizer=tiny.tokenizer())
    outputs = made.generate(["x", "x"], n=3, temperature=0.7, top_p=0.9, max_new_tokens=2, seed=1)
    assert outputs == [[Completion("ab", -0.5, "length", 2)] * 3] * 2
    [(_, first), (_, second)] = vllm.made[0].asked
    assert (first.n, first.temperature, first.top_p) == (3, 0.7, 0.9)
    assert first.seed != second.seed
    made.generate(["y", "x", "x"], n=3, temperature=0.7, seed=1)
    assert [asked.seed for _, asked in vllm.made[0].asked[3:]] == [first.seed, second.seed]


def test_text_after_an_earlier_stop_string_is_removed(vllm: type[LLM]) -> None:
    assert VLLMGenerator("m", tokenizer=tiny.tokenizer()).generate(["x"], stop=["c", "b"])[0][0].text == "a"


def test_aborted_prompt(vllm: type[LLM]) -> None:
    made = VLLMGenerator("m", tokenizer=tiny.tokenizer())
    vllm.made[0].finish_reason = "abort"
    with pytest.raises(GenerationError, match="finish_reason='abort'"):
        made.generate(["x"])


def test_arguments_are_checked_before_the_engine_is_called(vllm: type[LLM]) -> None:
    made = VLLMGenerator("m", tokenizer=tiny.tokenizer())
    with pytest.raises(ValueError, match="`n` is 2 and `temperature` 0"):
        made.generate(["x"], n=2)
    assert made.generate([]) == []
    assert vllm.made[0].asked == []


def test_missing_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r'pip install "trl_akd\[vllm\]"'):
        VLLMGenerator("m")
