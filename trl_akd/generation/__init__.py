"""Text generation by transformers, vLLM or an OpenAI-compatible server, and parsing of models' answers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .answers import Answer, CodeBlock, parse_answer
from .protocol import Completion, GenerationError, TextGenerator

__all__ = [
    "Answer",
    "CodeBlock",
    "Completion",
    "GenerationError",
    "OpenAIGenerator",
    "TextGenerator",
    "TransformersGenerator",
    "VLLMGenerator",
    "parse_answer",
]

_HOME = {
    "OpenAIGenerator": "openai_generator",
    "TransformersGenerator": "transformers_generator",
    "VLLMGenerator": "vllm_generator",
}

if TYPE_CHECKING:
    from .openai_generator import OpenAIGenerator
    from .transformers_generator import TransformersGenerator
    from .vllm_generator import VLLMGenerator


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
