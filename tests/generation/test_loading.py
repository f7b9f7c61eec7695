"""The loader of generators: results for each configuration, and errors before anything is loaded."""

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from tests import tiny
from tests.generation.server import serving
from tests.generation.test_vllm_generator import LLM, SamplingParams
from trl_akd.generation import OpenAIGenerator, TransformersGenerator
from trl_akd.generation.loading import GeneratorConfig, generator_of_model, load_generator, max_new_tokens_for
from trl_akd.generation.protocol import too_long_prompts
from trl_akd.generation.wrappers import ChatGenerator

TEMPLATE = "<user>{{ messages[0]['content'] }}<model>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model with a chat template, and an adapter of it."""
    home = tmp_path_factory.mktemp("models")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    model = tiny.model()
    model.save_pretrained(home / "model")
    model.config._name_or_path = str(home / "model")
    adapter: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapter.peft_config["default"].base_model_name_or_path = str(home / "model")
    adapter.save_pretrained(home / "adapter")
    for name in ("model", "adapter"):
        tokenizer.save_pretrained(home / name)
    return {name: home / name for name in ("model", "adapter")}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.made = []
    return LLM


@pytest.mark.parametrize("name", ["model", "adapter"])
@pytest.mark.parametrize("chat", [False, True])
def test_transformers(folders: dict[str, Path], name: str, chat: bool):
    loaded = load_generator(GeneratorConfig(model_name_or_path=str(folders[name])), chat=chat)
    assert isinstance(loaded.generator, ChatGenerator if chat else TransformersGenerator)
    assert (loaded.batch_size, hasattr(loaded.model, "peft_config")) == (16, name == "adapter")
    [[completion]] = loaded.generator.generate(["Hello"], max_new_tokens=2)
    plain = generator_of_model(loaded.model, tiny.tokenizer(), chat=False)
    prompt = "<user>Hello<model>" if chat else "Hello"
    if not chat:
        assert plain.generate([prompt], max_new_tokens=2) == [[completion]]
    # a template takes room of its own
    room = tiny.model().config.max_position_embeddings - 8
    assert too_long_prompts(loaded.generator, ["Hello"], room) == ([0] if chat else [])


def test_arguments_of_vllm(folders: dict[str, Path], vllm: type[LLM]):
    config = GeneratorConfig(
        backend="vllm", model_name_or_path=str(folders["model"]), model_revision="main", dtype="bfloat16"
    )
    loaded = load_generator(config, chat=True, gpu_memory_utilization=0.5)
    assert (loaded.batch_size, loaded.model) == (128, None) and isinstance(loaded.generator, ChatGenerator)
    settings = vllm.made[0].settings
    assert (settings["revision"], settings["dtype"], settings["gpu_memory_utilization"]) == ("main", "bfloat16", 0.5)


@pytest.mark.parametrize("processes", [1, 2])
def test_options_not_supported_by_vllm(folders: dict[str, Path], vllm: type[LLM], processes: int):
    config = GeneratorConfig(backend="vllm", model_name_or_path=str(folders["adapter"]))
    message = {1: "has an adapter; merge it", 2: "`judge_backend` is 'vllm'.* there are several"}[processes]
    with pytest.raises(ValueError, match=message):
        load_generator(config, chat=False, accelerator=SimpleNamespace(num_processes=processes), prefix="judge_")
    assert vllm.made == []


def test_vllm_refuses_a_model_that_was_saved_with_an_adapter(
    folders: dict[str, Path], vllm: type[LLM], tmp_path: Path
):
    """It would load the model without the adapter, which transformers loads with it."""
    for folder in folders.values():
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="has an adapter; merge it"):
        load_generator(GeneratorConfig(backend="vllm", model_name_or_path=str(tmp_path)), chat=False)
    assert vllm.made == []


def test_requests_to_a_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    with serving() as server:
        config = GeneratorConfig(
            backend="openai",
            base_url=server.url,
            model_name_or_path="served",
            api_key_env="SOME_KEY",
            extra_body='{"top_k": 5}',
            concurrency=2,
            request_timeout=5.0,
        )
        loaded = load_generator(config, chat=True)
        assert isinstance(loaded.generator, OpenAIGenerator) and loaded.batch_size == 128
        loaded.generator.generate(["Hello"])
        [body] = server.bodies
    assert (body["model"], body["top_k"], body["messages"][0]["content"]) == ("served", 5, "Hello")
    with pytest.raises(ValueError, match="`judge_api_key_env` is 'NO_KEY', but no environment variable"):
        load_generator(
            GeneratorConfig(backend="openai", base_url="http://h/v1", model_name_or_path="m", api_key_env="NO_KEY"),
            chat=True,
            prefix="judge_",
        )
    assert max_new_tokens_for(config) == 512


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "tgi"}, "`backend` is 'tgi'; choose one of transformers, vllm, openai"),
        ({"base_url": "http://h"}, "give both the backend openai and an address"),
        ({"backend": "openai"}, "`base_url` is None"),
        ({"dtype": "int8"}, "`dtype` is 'int8'; choose one of auto"),
        ({"concurrency": 0}, "`concurrency` is 0; give at least 1"),
        ({"max_refusals": 0}, "`max_refusals` is 0"),
        ({"generation_batch_size": 0}, "`generation_batch_size` is 0"),
        ({"request_timeout": 0.0}, r"`request_timeout` is 0\.0"),
        ({"max_retries": -1}, "`max_retries` is -1"),
        ({"extra_body": {"a": 1}}, "`extra_body` is .* which is for the server; give `base_url`"),
        ({"api_key_env": "KEY"}, "`api_key_env` is 'KEY', which is for the server"),
        ({"extra_body": "{"}, "`extra_body` is '{', which is not JSON"),
        ({"extra_body": "[]"}, r"`extra_body` is \[\]; give a JSON object"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**values)


def test_a_chat_without_a_template():
    with pytest.raises(ValueError, match="`prompt_style` is 'chat', and the model's tokenizer has no chat template"):
        generator_of_model(tiny.model(), tiny.tokenizer(), chat=True)
