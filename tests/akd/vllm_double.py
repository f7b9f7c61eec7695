"""Double of vLLM: the parts of its engine and of its server that TRL uses, with a tiny model on the CPU.

The uniform numbers behind a sampled text are those of `generate` in this package, so that both write the same text.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import trl
import trl.generation.vllm_client as client_module
import trl.generation.vllm_generation as generation_module
from packaging.version import Version
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.integrations import deepspeed
from trl.generation.vllm_client import VLLMClient

import trl_akd.akd.vllm_sampler as sampler_module
from trl_akd.generation.decoding import TokenChooser, uniform_draws

SUPPORTED = Version(trl.__version__) >= Version("1.11.0")
"""Whether the installed TRL can be used with vLLM."""


@dataclass
class SamplingParams:
    """The parameters of vLLM's class that are used here, with its defaults."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int = 16
    logprobs: int | None = None
    logit_bias: dict[int, float] | None = None


class Engine:
    """A model with the weights that were loaded last, which are at first those of its folder."""

    made: ClassVar[list["Engine"]] = []

    def __init__(self, folder: str) -> None:
        with pytest.MonkeyPatch.context() as patch:  # vLLM's model has no part in ZeRO-3
            patch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
            self.net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.parameters = SimpleNamespace(**dict(self.net.named_parameters()))
        self.loaded: set[str] = set()
        self.synced = 0
        self.seen: list[tuple[list[int], SamplingParams]] = []
        self._lock = Lock()
        Engine.made.append(self)

    def load(self, name: str, weights: Tensor) -> None:
        with torch.no_grad():
            vars(self.parameters)[name].copy_(weights)
        self.loaded.add(name)

    def finish_sync(self) -> None:
        assert self.loaded == set(vars(self.parameters)), "every weight is copied"
        self.synced += 1

    @torch.no_grad()
    def complete(self, prompt: list[int], params: SamplingParams) -> list[int]:
        assert type(prompt) is list
        assert (params.n, params.logprobs, params.seed is None) == (1, None, False)
        self.seen.append((prompt, params))
        draws = uniform_draws([params.seed], params.max_tokens, torch.device("cpu")) if params.temperature else None
        choose = LogitsProcessorList([TokenChooser(1.0, 1.0, draws)])
        if params.temperature:
            choose[:0] = [TemperatureLogitsWarper(params.temperature), TopPLogitsWarper(params.top_p)]
        tokens = torch.tensor([prompt])
        stops = {257, *(params.stop_token_ids or [])}  # vLLM reads the model's own EOS from its folder
        with self._lock:
            while tokens.shape[1] < len(prompt) + params.max_tokens:
                scores = self.net(tokens).logits[:, -1]
                for token, bias in (params.logit_bias or {}).items():
                    scores[:, int(token)] += bias
                tokens = torch.cat([tokens, choose(tokens, scores).argmax(-1, keepdim=True)], 1)
                if tokens[0, -1].item() in stops:
                    break
        return tokens[0, len(prompt) :].tolist()


class LLM:
    """vLLM's engine in the training process, which seeds all random numbers when it starts."""

    def __init__(self, model: str, *, seed: int, max_model_len: int | None, enable_sleep_mode: bool, **_: Any) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.engine = Engine(model)
        self.sleeping = {"weights": enable_sleep_mode, "kv_cache": enable_sleep_mode}
        limit = max_model_len or self.engine.net.config.max_position_embeddings
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=runner), model_config=SimpleNamespace(max_model_len=limit)
        )

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> None:
        assert not self.sleeping["weights"]
        for name, value in weights:
            self.engine.load(name, value)

    def reset_prefix_cache(self) -> None:
        self.engine.finish_sync()

    def sleep(self, level: int) -> None:
        self.sleeping = {"weights": True, "kv_cache": True}

    def wake_up(self, tags: list[str]) -> None:
        self.sleeping.update(dict.fromkeys(tags, False))

    def generate(
        self, prompts: list[dict[str, Any]], sampling_params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[Any]:
        assert not any(self.sleeping.values())
        torch.rand(1)
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[
                    SimpleNamespace(token_ids=self.engine.complete(prompt["prompt_token_ids"], params), logprobs=None)
                ],
            )
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]


SERVED: dict[str, Engine] = {}
"""Engines behind servers of this process, by URL."""


@contextmanager
def serving(folder: str) -> Iterator[tuple[str, Engine]]:
    """Serve the endpoints of `vllm serve` that TRL's client uses, except those for weights, which need CUDA."""
    engine, known = Engine(folder), {field.name for field in fields(SamplingParams)}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def answer(self, body: Any, status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            assert self.path in ("/health", "/v1/models")
            self.answer({"data": [{"id": "student"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            if self.path == "/reset_prefix_cache":
                engine.finish_sync()
                return self.answer({"success": True})
            assert self.path == "/v1/completions"
            params = SamplingParams(**{name: value for name, value in body.items() if name in known})
            if any(len(prompt) + params.max_tokens > 256 for prompt in body["prompt"]):
                return self.answer({"message": "the prompt is too long"}, 400)
            choices = [
                {"prompt_token_ids": prompt, "token_ids": engine.complete(prompt, params), "logprobs": None}
                for prompt in body["prompt"]
            ]
            return self.answer({"choices": choices})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    SERVED[url] = engine
    try:
        yield url, engine
    finally:
        server.shutdown()
        server.server_close()


class Client(VLLMClient):
    """TRL's client, which hands the weights to the engine of the same process."""

    def init_communicator(self, device: Any = 0) -> None: ...

    def update_named_params(self, metadata: Any, named_params: Any) -> None:
        for (name, dtype, shape), (found, weights) in zip(metadata, named_params, strict=True):
            assert (name, dtype, shape) == (found, str(weights.dtype).removeprefix("torch."), list(weights.shape))
            SERVED[self.base_url].load(name, weights)


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the double where TRL has imported vLLM, had it been installed."""
    for module in (client_module, generation_module, sampler_module):
        patch.setattr(module, "is_vllm_available", lambda *_: True)
    for name, value in {"LLM": LLM, "SamplingParams": SamplingParams, "VLLMClient": Client}.items():
        patch.setattr(generation_module, name, value, raising=False)
    patch.setattr(generation_module, "os", SimpleNamespace(environ={}))  # TRL sets the variables of `torchrun`
    patch.setattr(generation_module, "ensure_master_addr_port", lambda: None)
    patch.setattr(Engine, "made", [])
