"""Sampling of on-policy text with vLLM, through TRL, which starts vLLM and copies the student's weights to it.

Tested with a double of vLLM's interface; never run with vLLM itself.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import trl
from accelerate import Accelerator
from accelerate.utils import gather_object
from packaging.version import Version
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GenerationConfig, PreTrainedTokenizerBase, TrainerCallback
from trl.import_utils import is_vllm_available

from ..distributed import raise_on_all
from ..generation.decoding import collect_eos_token_ids
from ..generation.protocol import GenerationError
from .akd_config import AKDConfig
from .on_policy import Prompt

_OLDEST_TRL = "1.11.0"  # before it, the server is not vLLM's own, and vLLM's sleep mode restores the initial weights
_MAX_BIASED_TOKENS = 1024
_CONCURRENT_REQUESTS = 64


def check_vllm(args: AKDConfig, student: str | None) -> None:
    """Refuse a machine, a number of processes or a student that vLLM cannot be used with.

    Args:
        args (`AKDConfig`):
            Configuration, in which `use_vllm` is on.
        student (`str`, *optional*):
            Name or path of the student.

    Raises:
        ImportError: If vLLM is not installed, or TRL is too old.
        ValueError: If the number of processes is not a multiple of `vllm_tensor_parallel_size`, or the student has no
            name or path from which a colocated engine can load it.
    """
    if Version(trl.__version__) < Version(_OLDEST_TRL):
        raise ImportError(
            f"`use_vllm` is on, but TRL {trl.__version__} is installed and {_OLDEST_TRL} or later is needed; upgrade "
            "it, or set use_vllm=False."
        )
    if not is_vllm_available():
        raise ImportError(
            '`use_vllm` is on, but vLLM is not installed; `pip install "trl[vllm]"`, or set use_vllm=False.'
        )
    if args.vllm_mode == "server":
        return
    if args.world_size % args.vllm_tensor_parallel_size:
        raise ValueError(
            f"`vllm_tensor_parallel_size` is {args.vllm_tensor_parallel_size}, but the run has {args.world_size} "
            "processes; choose a divisor of that number."
        )
    if not student:
        raise ValueError(
            "`use_vllm` is on, but the student was built in memory, and a colocated engine loads it by its name or "
            'path; save it and give its path, or set vllm_mode="server".'
        )


class VLLMSampler(TrainerCallback):
    """Sampler of the student's completions with vLLM.

    The student's weights are copied to vLLM before the first completions of a training run and after each optimizer
    step, when the next completions are sampled. Each prompt has its own seed.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The student.
        args (`AKDConfig`):
            Configuration.
        accelerator (`Accelerator`):
            Accelerator of the trainer.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the student.
        vocabulary_size (`int`):
            Number of leading token ids that both models share. No other ids are sampled.

    Raises:
        ValueError: If the student has more token ids that are not shared than vLLM can exclude.
    """

    def __init__(
        self,
        model: Any,
        args: AKDConfig,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocabulary_size: int,
    ) -> None:
        self._not_shared = range(vocabulary_size, model.config.get_text_config().vocab_size)
        if len(self._not_shared) > _MAX_BIASED_TOKENS:
            raise ValueError(
                f"`use_vllm` is on, but the student has {len(self._not_shared)} token ids that the teacher lacks, and "
                f"vLLM can exclude {_MAX_BIASED_TOKENS}; set use_vllm=False, or shrink the student's embeddings."
            )
        self._model = model
        self._args = args
        self._accelerator = accelerator
        self._is_outdated = True
        self._frozen_weights: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        with self._random_state_restored():
            self._vllm = self._start(tokenizer)

    def _start(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        from trl.generation.vllm_generation import VLLMGeneration  # imports vLLM

        args = self._args
        started = VLLMGeneration(
            model=self._model,
            accelerator=self._accelerator,
            processing_class=tokenizer,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            server_host=args.vllm_server_host,
            server_port=args.vllm_server_port,
            server_timeout=args.vllm_server_timeout,
            group_port=args.vllm_group_port,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            max_num_seqs=args.per_device_train_batch_size
            * args.vllm_tensor_parallel_size
            * args.gradient_accumulation_steps,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            model_impl=args.vllm_model_impl,
            trust_remote_code=args.trust_remote_code,
            logprobs=None,
        )
        if args.vllm_mode == "colocate":
            started.llm.generate = _seed_each_prompt(started.llm.generate)
        elif self._accelerator.is_main_process:
            started.vllm_client.generate = _request_each_prompt(started.vllm_client.generate)
        return started

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note that the weights may have changed since the last training run."""
        self._is_outdated, self._frozen_weights = True, None

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Note that the weights have changed."""
        self._is_outdated = True

    def sample(self, prompts: Sequence[Prompt], config: GenerationConfig) -> list[list[int]]:
        """Return one completion per prompt. All processes must call it, with equally many prompts.

        Args:
            prompts (`Sequence[Prompt]`):
                Prompts of this process.
            config (`GenerationConfig`):
                Sampling parameters.

        Raises:
            GenerationError: If a prompt leaves too little room for its completion, processes have different numbers of
                prompts, vLLM fails, or it returns tokens outside the shared vocabulary.
        """
        raise_on_all(lambda: self._check_prompts(prompts, config))
        self._check_numbers(len(prompts))
        self._configure(config)
        with self._random_state_restored(), self._frozen_weights_restored():
            if self._is_outdated:
                with _explained("the student's weights could not be copied to vLLM"):
                    self._vllm.sync_weights()
                self._is_outdated = False
            with _explained(f"vLLM could not complete {len(prompts)} prompts"):
                _, completions, _, _ = self._vllm.generate(
                    [_SeededTokens(prompt.tokens, prompt.seed) for prompt in prompts], images=None, num_generations=1
                )
        for completion in completions:
            if not_shared := [token for token in completion if token >= self._not_shared.start]:
                raise GenerationError(
                    f"vLLM returned the token ids {not_shared}, which the teacher lacks, although they were excluded; "
                    "set use_vllm=False."
                )
        return [list(completion) for completion in completions]

    def _check_prompts(self, prompts: Sequence[Prompt], config: GenerationConfig) -> None:
        """Check the lengths during training, in which a custom collator may give longer prompts than the data has."""
        try:
            self.check_length(max(len(prompt.tokens) for prompt in prompts), config)
        except ValueError as error:
            raise GenerationError(str(error)) from None

    def check_length(self, prompt_length: int, config: GenerationConfig) -> None:
        """Refuse a prompt length that leaves too little room for a completion.

        Raises:
            ValueError: If prompt and completion exceed the context of vLLM, as far as it is known.
        """
        limit = self._args.vllm_max_model_length
        if self._args.vllm_mode == "colocate":
            limit = self._vllm.llm.llm_engine.model_config.max_model_len
        if limit is not None and prompt_length + config.max_new_tokens > limit:
            raise ValueError(
                f"a prompt has {prompt_length} tokens, which with max_new_tokens={config.max_new_tokens} exceeds "
                f"vLLM's context of {limit} tokens; raise `vllm_max_model_length`, or lower `max_new_tokens` or "
                "`max_length`."
            )

    def _check_numbers(self, number: int) -> None:
        """Refuse different numbers of prompts on processes whose prompts vLLM completes together."""
        if self._accelerator.num_processes == 1 or (
            self._args.vllm_mode == "colocate" and self._args.vllm_tensor_parallel_size == 1
        ):
            return
        numbers = gather_object([number])
        if len(set(numbers)) > 1:
            raise GenerationError(
                f"the processes have different numbers of rows ({', '.join(map(str, numbers))}), and vLLM completes "
                "them together; give a `data_collator` that keeps every row."
            )

    def _configure(self, config: GenerationConfig) -> None:
        """Apply the sampling parameters, which may have changed since the last call."""
        vllm = self._vllm
        vllm.temperature = config.temperature if config.do_sample else 0.0
        vllm.top_p = 1.0 if config.top_p is None else config.top_p
        vllm.top_k = config.top_k or 0
        vllm.min_p = config.min_p or 0.0
        vllm.repetition_penalty = 1.0 if config.repetition_penalty is None else config.repetition_penalty
        vllm.max_completion_length = config.max_new_tokens
        vllm.generation_kwargs = {"stop_token_ids": collect_eos_token_ids(config)}
        if self._not_shared:
            vllm.generation_kwargs["logit_bias"] = dict.fromkeys(self._not_shared, -100.0)  # the least that vLLM adds

    @contextmanager
    def _random_state_restored(self) -> Iterator[None]:
        """Restore the random state that a colocated engine changes."""
        states, numpy_state = random.getstate(), np.random.get_state()
        device = self._accelerator.device
        has_states = device.type not in ("cpu", "mps")
        with torch.random.fork_rng([device] if has_states else [], device_type=device.type if has_states else "cuda"):
            yield
        random.setstate(states)
        np.random.set_state(numpy_state)

    @contextmanager
    def _frozen_weights_restored(self) -> Iterator[None]:
        """Restore the weights under adapters, which merging an adapter and subtracting it again changes by a rounding.

        ZeRO-3 discards that change itself.
        """
        if self._frozen_weights is None:
            weights = [
                module.get_base_layer().weight
                for module in self._model.modules()
                if isinstance(module, BaseTunerLayer)
            ]
            self._frozen_weights = [
                (weight, weight.detach().to("cpu", copy=True))
                for weight in weights
                if weight.is_floating_point() and not hasattr(weight, "ds_id")
            ]
        yield
        for weight, original in self._frozen_weights:
            weight.data.copy_(original)


@contextmanager
def _explained(failure: str) -> Iterator[None]:
    """Turn any error of vLLM or of TRL's connection to it into one sentence."""
    try:
        yield
    except GenerationError:
        raise
    except Exception as error:  # of many classes, some of them of vLLM
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise GenerationError(
            f"{failure} ({lines[0].rstrip('.')}); see the log of vLLM, lower `vllm_gpu_memory_utilization` if memory "
            "ran out, and resume from the last checkpoint, or set use_vllm=False."
        ) from error


class _SeededTokens(list[int]):
    """Tokens of a prompt with the seed of its completion, which TRL gathers from processes and passes on as a list."""

    def __init__(self, tokens: Sequence[int], seed: int) -> None:
        super().__init__(tokens)
        self.seed = seed


def _seed_each_prompt(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `generate` of vLLM's engine with one seed per prompt; TRL gives all prompts the same parameters."""

    def seeded(prompts: Sequence[dict[str, Any]], sampling_params: Any, **options: Any) -> Any:
        parameters = [deepcopy(sampling_params) for _ in prompts]
        for own, prompt in zip(parameters, prompts, strict=True):
            own.seed = prompt["prompt_token_ids"].seed
        plain = [{**prompt, "prompt_token_ids": list(prompt["prompt_token_ids"])} for prompt in prompts]
        return generate(plain, sampling_params=parameters, **options)

    return seeded


def _request_each_prompt(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `generate` of TRL's client with one request per prompt, since a request has a single seed."""

    def request(prompts: Sequence[_SeededTokens], generation_kwargs: dict[str, Any], **options: Any) -> dict[str, Any]:
        def complete(prompt: _SeededTokens) -> list[int]:
            own = {**generation_kwargs, "seed": prompt.seed}
            try:
                [completion] = generate(prompts=[list(prompt)], generation_kwargs=own, **options)["completion_ids"]
            except Exception as error:  # TRL's client raises no other class
                raise GenerationError(
                    f"vLLM's server did not complete a prompt of {len(prompt)} tokens ({error}); see the server's "
                    "log, and resume from the last checkpoint."
                ) from error
            return list(completion)

        with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
            completions = list(pool.map(complete, prompts))
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}

    return request
