"""Configuration and loading of text generators: transformers or vLLM in this process, or a server."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from .protocol import TextGenerator

if TYPE_CHECKING:
    from .openai_generator import OpenAIGenerator

__all__ = [
    "DEFAULT_API_KEY_ENV",
    "Backend",
    "BackendConfig",
    "DType",
    "GeneratorConfig",
    "LoadedGenerator",
    "check_server_fields",
    "find_base_model",
    "generator_of_model",
    "hub_arguments",
    "load_generator",
    "load_model",
    "max_new_tokens_for",
    "path_in_repository",
    "read_json_object",
    "source_arguments",
    "weights_fingerprint",
    "without_source_arguments",
]

Backend: TypeAlias = Literal["transformers", "vllm", "openai"]
DType: TypeAlias = Literal["auto", "bfloat16", "float16", "float32"]

DEFAULT_API_KEY_ENV = "OPENAI_API_KEY"
_BATCH_SIZES = {"transformers": 16, "vllm": 128, "openai": 128}

# Files of weights, configuration and tokenizer.
_MODEL_FILES = ("*.safetensors", "*model*.bin", "*config.json", "tokenizer*", "*.jinja", "vocab*", "merges.txt")
# Arguments of `from_pretrained` that determine which files are read, and whether their code may run.
_HUB_ARGUMENTS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")
_SOURCE_ARGUMENTS = (*_HUB_ARGUMENTS, "trust_remote_code", "code_revision", "gguf_file")
_OF_ONE_REPOSITORY = ("revision", "subfolder", "code_revision", "gguf_file")

_PROBES = 64
_PROBE_SIZE = 1 << 16  # bytes; at most 4 MiB per file of any size


@dataclass
class BackendConfig:
    """
    Configuration of the backend that generates text.

    Args:
        backend (`str`, *optional*, defaults to `"transformers"`):
            Backend that runs the model: `"transformers"` or `"vllm"`, in this process, or `"openai"`, a server with
            OpenAI's interface.
        base_url (`str`, *optional*):
            Address of the server, such as `http://localhost:8000/v1`.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable with the server's API key.
        extra_body (`dict`, *optional*):
            Fields to add to each request, or to replace, as JSON; null removes a field.
        concurrency (`int`, *optional*, defaults to `8`):
            Maximum number of concurrent requests to the server.
        request_timeout (`float`, *optional*, defaults to `120.0`):
            Timeout of a request in seconds, until the whole response has arrived.
        max_retries (`int`, *optional*, defaults to `5`):
            Maximum number of retries of a failed request, with exponential backoff.
        max_refusals (`int`, *optional*, defaults to `8`):
            Number of consecutive prompts that the server may refuse without a reason before the run ends.
        device_map (`str`, *optional*):
            Placement of a transformers model on devices, such as `"auto"` or, in a recipe, a mapping from modules to
            devices. By default, the whole model is on one GPU if there is one.
        generation_batch_size (`int`, *optional*):
            Number of sequences generated together on each process. Defaults to 16 for transformers and to 128
            otherwise.

    Raises:
        ValueError: If a value is invalid, or if a field has no effect with this backend.
    """

    backend: Backend = "transformers"
    base_url: str | None = None
    api_key_env: str = DEFAULT_API_KEY_ENV
    extra_body: dict[str, Any] | str | None = None
    concurrency: int = 8
    request_timeout: float = 120.0
    max_retries: int = 5
    max_refusals: int = 8
    device_map: str | None = None
    generation_batch_size: int | None = None

    def __post_init__(self) -> None:
        self.extra_body = read_json_object("extra_body", self.extra_body)
        if self.backend not in get_args(Backend):
            raise ValueError(f"`backend` is {self.backend!r}; choose one of {', '.join(get_args(Backend))}.")
        if (self.backend == "openai") != (self.base_url is not None):
            raise ValueError(
                f"`backend` is {self.backend!r} and `base_url` is {self.base_url!r}; give both the backend openai "
                "and an address, or neither."
            )
        for name in ("concurrency", "max_refusals", "generation_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1, or leave it out.")
        if self.request_timeout <= 0 or self.max_retries < 0:
            raise ValueError(
                f"`request_timeout` is {self.request_timeout} and `max_retries` is {self.max_retries}; give more "
                "than 0 seconds, and 0 retries or more."
            )
        check_server_fields(self, "base_url", ("extra_body", "api_key_env"))


def check_server_fields(config: Any, url: str, names: tuple[str, ...], owner: str = "") -> None:
    """Raise a ValueError if a field for a server is set although there is no server."""
    if getattr(config, url) is not None:
        return
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in names and value != field.default:
            raise ValueError(
                f"`{field.name}` is {value!r}, which is for the {owner}server; give `{url}`, too, or leave it out."
            )


def read_json_object(name: str, value: Any) -> dict[str, Any] | None:
    """Return the value of a field that takes a JSON object, decoded if it is a string.

    Raises:
        ValueError: If it is not a JSON object.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(
                f"`{name}` is {value!r}, which is not JSON ({error}); give a JSON object, such as '{{\"key\": 1}}'."
            ) from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` is {value!r}; give a JSON object, such as '{{\"key\": 1}}'.")
    return value


@dataclass
class GeneratorConfig(BackendConfig):
    """
    Configuration of a model that generates text, and of its backend.

    Args:
        model_name_or_path (`str`, *optional*):
            Model: a folder, a name on the Hub or, for a server, its name on the server.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the model on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code in the model's repository, for architectures that transformers does not have. Read
            that code first.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights: `"auto"` (as saved), `"bfloat16"`, `"float16"` or `"float32"`.
    """

    model_name_or_path: str | None = None
    model_revision: str | None = None
    trust_remote_code: bool = False
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trust_remote_code and self.backend == "openai":
            raise ValueError(
                "`trust_remote_code` is true, but the backend openai loads no model; set it on the server, or leave "
                "it out."
            )
        if self.dtype not in get_args(DType):
            raise ValueError(f"`dtype` is {self.dtype!r}; choose one of {', '.join(get_args(DType))}.")


@dataclass(frozen=True)
class LoadedGenerator:
    """A text generator and properties of its model.

    Args:
        generator (`TextGenerator`):
            Generator. With a chat prompt style, prompts are sent as user messages.
        batch_size (`int`):
            Number of sequences generated together on each process.
        revision (`str`, *optional*):
            Commit of a model from the Hub.
        model (`PreTrainedModel`, *optional*):
            The model, if transformers runs it.
    """

    generator: TextGenerator
    batch_size: int
    revision: str | None = None
    model: Any = None


def load_generator(
    config: GeneratorConfig,
    *,
    chat: bool,
    accelerator: Any = None,
    prefix: str = "",
    **engine_args: Any,
) -> LoadedGenerator:
    """Load the model that a configuration names, or connect to its server.

    Args:
        config ([`GeneratorConfig`]):
            Model and backend.
        chat (`bool`):
            Whether prompts are sent as user messages, by the tokenizer's chat template or the server's chat interface.
        accelerator (`Accelerator`, *optional*):
            Distributes generation with transformers over its processes.
        prefix (`str`, *optional*, defaults to `""`):
            Prefix of the field names in messages, such as `"judge_"`.
        **engine_args:
            Arguments of `vllm.LLM`.

    Raises:
        OSError: If there is no such model. ValueError: If the model is not a language model, has no tokenizer, has no
        chat template although `chat` is set,
            or cannot be run by its backend.
        ImportError: If vLLM is not installed.
    """
    assert config.model_name_or_path is not None
    batch_size = config.generation_batch_size or _BATCH_SIZES[config.backend]
    if config.backend == "openai":
        return LoadedGenerator(_connect(config, chat=chat, prefix=prefix), batch_size)
    if config.backend == "vllm":
        return LoadedGenerator(_start_vllm(config, accelerator, chat=chat, prefix=prefix, **engine_args), batch_size)
    tokenizer, model = _load_tokenizer(config), _load_model(config, accelerator)
    return LoadedGenerator(
        generator_of_model(model, tokenizer, chat=chat, batch_size=batch_size, accelerator=accelerator),
        batch_size,
        getattr(model.config, "_commit_hash", None),
        model,
    )


def generator_of_model(
    model: Any, tokenizer: Any, *, chat: bool, batch_size: int = 16, accelerator: Any = None
) -> TextGenerator:
    """Return a generator for a transformers model in memory.

    Raises:
        ValueError: If the tokenizer has no chat template although `chat` is set.
    """
    from .transformers_generator import TransformersGenerator
    from .wrappers import ChatGenerator

    generator = TransformersGenerator(
        model, tokenizer, batch_size=batch_size, accelerator=accelerator, add_special_tokens=not chat
    )
    return ChatGenerator(generator, tokenizer) if chat else generator


def max_new_tokens_for(config: GeneratorConfig) -> int:
    """Return the default maximum number of tokens per completion, which depends on the model's positions.

    Raises:
        OSError: If there is no such model.
    """
    if config.backend == "openai":  # a server does not report its positions
        return 512
    from transformers import AutoConfig

    from .transformers_generator import default_max_new_tokens

    name, source = str(config.model_name_or_path), _source(config)
    name, source = find_base_model(name, source) or (name, source)
    return default_max_new_tokens(AutoConfig.from_pretrained(name, **source))


def source_arguments(init_kwargs: Mapping[str, Any] | str | None, **defaults: Any) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that determine which files of a model are read.

    Args:
        init_kwargs (`Mapping`, *optional*):
            Arguments of `from_pretrained`. Those of the source take precedence over the defaults, unless `None`.
        **defaults:
            Arguments from other fields, such as `revision`.

    Example:

    ```python
    >>> source_arguments({"subfolder": "step-100", "dtype": "bfloat16"}, revision="main")
    {'revision': 'main', 'subfolder': 'step-100'}

    ```
    """
    given = init_kwargs if isinstance(init_kwargs, Mapping) else {}
    return {**defaults, **{name: given[name] for name in _SOURCE_ARGUMENTS if given.get(name) is not None}}


def without_source_arguments(init_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the other arguments of `from_pretrained`, such as `dtype`."""
    return {name: value for name, value in init_kwargs.items() if name not in _SOURCE_ARGUMENTS}


def hub_arguments(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the source arguments that files of any kind are found by, such as those of an adapter."""
    return {name: value for name, value in source.items() if name in _HUB_ARGUMENTS}


def path_in_repository(name: str, source: Mapping[str, Any]) -> str:
    """Return the name or path of a model, with its subfolder if it is in one."""
    return "/".join(filter(None, [name, source.get("subfolder")]))


def find_base_model(name: str, source: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return name and source arguments of the base model of an adapter, or `None` if the model is not an adapter.

    As in transformers, a folder with a full model and an adapter of it is not an adapter: both are loaded from there.
    On the Hub, such a repository is one, whose full model is not read. Unlike transformers, which takes the revision
    and subfolder of the adapter for the base model as well, the revision is that in the adapter's configuration.

    Raises:
        OSError: If there is no such model.
        ValueError: If the adapter does not name its base model.
    """
    from transformers.utils import CONFIG_NAME

    adapter = _find_adapter_file(name, source)
    if adapter is None or Path(path_in_repository(name, source), CONFIG_NAME).is_file():
        return None
    settings = json.loads(Path(adapter).read_text(encoding="utf-8"))
    if not settings.get("base_model_name_or_path"):
        raise ValueError(
            f"{name!r} is an adapter that does not name its base model; set `base_model_name_or_path` in its "
            "adapter_config.json."
        )
    shared = {key: value for key, value in source.items() if key not in _OF_ONE_REPOSITORY}
    return settings["base_model_name_or_path"], {**shared, "revision": settings.get("revision") or "main"}


def load_model(
    name: str, source: Mapping[str, Any], *, autocast_adapter_dtype: bool = True, **init_kwargs: Any
) -> Any:
    """Load a language model, or an adapter on its base model.

    Args:
        name (`str`):
            Model or adapter: a folder, or a name on the Hub.
        source (`Mapping`):
            Arguments of `from_pretrained` that determine which files are read, as of [`source_arguments`].
        autocast_adapter_dtype (`bool`, *optional*, defaults to `True`):
            Whether the weights of an adapter in half precision are converted to float32.
        **init_kwargs:
            Other arguments of `from_pretrained`.

    Raises:
        OSError: If there is no such model.
        ValueError: If the adapter does not name its base model, or the model is not a language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    base = find_base_model(name, source)
    full, full_source = base or _in_own_folder(name, source)
    encoder_decoder = AutoConfig.from_pretrained(full, **full_source).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    # By default, transformers searches the root of the repository and the default cache for an adapter.
    model = kind.from_pretrained(full, **full_source, **init_kwargs, adapter_kwargs=hub_arguments(full_source))
    if base is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(
        model, name, autocast_adapter_dtype=autocast_adapter_dtype, **hub_arguments(source)
    )


def weights_fingerprint(model: str) -> str | None:
    """Return a digest of a model's files, by names, sizes and samples of their content; `None` for a name on the Hub.

    The digest changes if a model is retrained into the same folder or its tokenizer changes; a copy has the same
    digest.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _MODEL_FILES for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for offset in range(0, size, max(_PROBE_SIZE, size // _PROBES)):
                file.seek(offset)
                digest.update(file.read(_PROBE_SIZE))
    return digest.hexdigest()[:16]


def _connect(config: GeneratorConfig, *, chat: bool, prefix: str) -> "OpenAIGenerator":
    from .openai_generator import OpenAIGenerator

    assert config.base_url is not None and config.model_name_or_path is not None
    assert not isinstance(config.extra_body, str)
    if config.api_key_env != DEFAULT_API_KEY_ENV and config.api_key_env not in os.environ:
        raise ValueError(
            f"`{prefix}api_key_env` is {config.api_key_env!r}, but no environment variable has that name; set it "
            f"to the key of {config.base_url}."
        )
    return OpenAIGenerator(
        config.base_url,
        config.model_name_or_path,
        api_key=os.environ.get(config.api_key_env),
        chat=chat,
        concurrency=config.concurrency,
        timeout=config.request_timeout,
        max_retries=config.max_retries,
        max_refusals=config.max_refusals,
        extra_body=config.extra_body,
    )


def _start_vllm(
    config: GeneratorConfig, accelerator: Any, *, chat: bool, prefix: str, **engine_args: Any
) -> TextGenerator:
    from .vllm_generator import VLLMGenerator
    from .wrappers import ChatGenerator

    assert config.model_name_or_path is not None
    if accelerator is not None and accelerator.num_processes > 1:
        raise ValueError(
            f"`{prefix}backend` is 'vllm', which runs in this process, and there are several; serve the model with "
            "`vllm serve` and use the backend openai."
        )
    if _find_adapter_file(config.model_name_or_path, _source(config)) is not None:
        raise ValueError(
            f"`{prefix}backend` is 'vllm', but {config.model_name_or_path!r} has an adapter; merge it into its base "
            "model, or use the backend transformers."
        )
    tokenizer = _load_tokenizer(config)
    generator = VLLMGenerator(
        config.model_name_or_path,
        tokenizer=tokenizer,
        add_special_tokens=not chat,
        dtype=config.dtype,
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
        **engine_args,
    )
    return ChatGenerator(generator, tokenizer) if chat else generator


def _load_tokenizer(config: GeneratorConfig) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(config.model_name_or_path, **_source(config))


def _load_model(config: GeneratorConfig, accelerator: Any) -> Any:
    from ..distributed import default_device

    model = load_model(
        str(config.model_name_or_path), _source(config), dtype=config.dtype, device_map=config.device_map
    )
    if config.device_map is None:
        model = model.to(default_device() if accelerator is None else accelerator.device)
    return model.eval()


def _source(config: GeneratorConfig) -> dict[str, Any]:
    return {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}


def _find_adapter_file(name: str, source: Mapping[str, Any]) -> str | None:
    """Return the configuration file of a model's adapter, or `None`."""
    from transformers.utils import find_adapter_config_file

    path: str | None = find_adapter_config_file(name, **hub_arguments(source))
    return path


def _in_own_folder(name: str, source: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and source arguments of a model, without `subfolder` if that is a local folder.

    With `subfolder`, transformers searches the folder above it for the full model beside an adapter.
    """
    path = path_in_repository(name, source)
    if not Path(path).is_dir():
        return name, dict(source)
    return path, {key: value for key, value in source.items() if key != "subfolder"}
