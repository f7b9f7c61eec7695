"""Generator for vLLM in this process, tested only with a mock of vLLM's documented interface."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..data.encoding import encode_prompts
from .protocol import (
    GREEDY,
    Arrival,
    Completion,
    GenerationError,
    SamplingParams,
    StreamingGenerator,
    Usage,
    check_prompts,
    sample_offsets,
    truncate_at_stop,
)

__all__ = ["VLLMGenerator"]


class VLLMGenerator(StreamingGenerator):
    r"""Generate with vLLM, which loads the model.

    Prompts are tokenized as in training (`trl_akd.data.encoding`) and passed as tokens. Of the model's generation
    settings vLLM uses only the end-of-sequence ids. Log-probabilities are those before temperature and `top_p`.

    The project's tests have not run this backend on a GPU; they use a mock of vLLM's documented interface.

    Args:
        model_name_or_path (`str`):
            Name on the Hub or folder.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of the prompts. Defaults to the model's.
        tensor_parallel_size (`int`, *optional*, defaults to `1`):
            Number of GPUs that share each layer.
        add_special_tokens (`bool`, *optional*, defaults to `True`):
            Whether the tokenizer adds BOS; `False` for prompts from a chat template, which contain it.
        **engine_args:
            Other arguments of `vllm.LLM`, such as `dtype`, `revision`, `max_model_len`, `gpu_memory_utilization`.

    Raises:
        ImportError: If vLLM is not installed.

    Example:

    ```python
    >>> from trl_akd.generation import VLLMGenerator
    >>> generator = VLLMGenerator("Qwen/Qwen2.5-Coder-0.5B", max_model_len=4096)  # doctest: +SKIP
    >>> generator.generate(["def add(a, b):\n"], max_new_tokens=32, stop=["\ndef"])  # doctest: +SKIP

    ```
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tensor_parallel_size: int = 1,
        add_special_tokens: bool = True,
        **engine_args: Any,
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ImportError('vLLM is not installed; `pip install "trl_akd[vllm]"`.') from error
        engine_args = {"logprobs_mode": "raw_logprobs", **engine_args}
        self._vllm = vllm
        self._engine = vllm.LLM(model=model_name_or_path, tensor_parallel_size=tensor_parallel_size, **engine_args)
        self._tokenizer = tokenizer or AutoTokenizer.from_pretrained(
            model_name_or_path,
            revision=engine_args.get("revision"),
            trust_remote_code=engine_args.get("trust_remote_code", False),
        )
        self._add_special_tokens = add_special_tokens

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield the completions of all prompts once vLLM has finished them.

        Raises:
            ValueError: If an argument is outside its range, or vLLM finds a prompt too long.
            GenerationError: If vLLM aborts a prompt.
        """
        check_prompts(prompts)
        if not prompts:
            return
        encoded = encode_prompts(self._tokenizer, prompts, add_special_tokens=self._add_special_tokens)
        outputs = self._engine.generate(
            [{"prompt_token_ids": tokens} for tokens in encoded],
            [
                self._vllm.SamplingParams(**sampling_arguments(sampling, prompt, first))
                for prompt, first in zip(prompts, sample_offsets(prompts, sampling.n), strict=True)
            ],
            use_tqdm=False,
        )
        for index, (output, tokens) in enumerate(zip(outputs, encoded, strict=True)):
            yield index, read_output(output, sampling, len(tokens))


def sampling_arguments(sampling: SamplingParams, prompt: str, first: int) -> dict[str, Any]:
    """Return the arguments of `vllm.SamplingParams` for a prompt whose samples are numbered from `first`."""
    return {
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "stop": list(sampling.stop),
        "seed": sampling.sample_seed(prompt, first),
        "logprobs": 0,  # only of the chosen token
    }


def read_output(output: Any, sampling: SamplingParams, prompt_tokens: int) -> list[Completion]:
    """Return the completions of a `vllm.RequestOutput` to a prompt of `prompt_tokens` tokens.

    Raises:
        GenerationError: If vLLM aborted them.
    """
    first, *others = [_completion(choice, sampling.stop) for choice in output.outputs]
    usage = Usage(0, prompt_tokens, sum(completion.num_tokens or 0 for completion in (first, *others)))
    return [replace(first, usage=usage), *others]


def _completion(choice: Any, stop: Sequence[str]) -> Completion:
    if choice.finish_reason not in ("stop", "length"):
        raise GenerationError(
            f"vLLM aborted a prompt with finish_reason={choice.finish_reason!r}; see its log for the cause."
        )
    count = len(choice.token_ids)
    mean = choice.cumulative_logprob / count if count and choice.cumulative_logprob is not None else None
    text, _ = truncate_at_stop(choice.text, stop)
    return Completion(text, mean, choice.finish_reason, count)
