import dataclasses
import inspect
import re

import pytest

from trl_akd.evaluation.evaluation_config import GENERATION_FIELDS, EvaluationConfig
from trl_akd.generation.loading import GeneratorConfig


def config(**values) -> EvaluationConfig:
    return EvaluationConfig(**{"model_name_or_path": "m", "benchmark": "humaneval", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_name_or_path": None},
            "give one of `model_name_or_path`, `samples` and `compare` .* got none of them",
        ),
        ({"samples": "s.jsonl"}, "got `model_name_or_path` and `samples`"),
        ({"model_name_or_path": None, "compare": ["a"]}, "`compare` is .*two folders or more"),
        ({"benchmark": None}, "`benchmark` is missing"),
        ({"backend": "openai"}, "`base_url` is None"),
        ({"base_url": "http://localhost"}, "give both the backend openai and an address"),
        ({"backend": "tgi"}, "`backend` is 'tgi'; choose one of transformers, vllm, openai"),
        ({"prompt_style": "code"}, "`prompt_style` is 'code'; choose"),
        ({"prompt_template": "alpacca"}, "Did you mean 'alpaca'"),
        (
            {"prompt_template": "starcoder"},
            "`prompt_template` is 'starcoder', which has no effect with prompt_style='c",
        ),
        ({"isolation": "docker"}, "`isolation` is 'docker'; choose"),
        ({"num_samples": 0}, "`num_samples` is 0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"limit": 0}, "`limit` is 0"),
        ({"generation_batch_size": -1}, "`generation_batch_size` is -1"),
        ({"workers": 0}, "`workers` is 0"),
        ({"k": []}, r"`k` is \[\]"),
        ({"k": [0]}, r"`k` is \[0\]"),
        ({"k": [1, 10]}, "`k` asks for pass@10, but `num_samples` is 1"),
        ({"temperature": -1.0}, r"`temperature` is -1\.0"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"num_samples": 5}, "`num_samples` is 5 at temperature 0"),
        ({"top_p": 0.0}, r"`top_p` is 0\.0"),
        ({"confidence": 1.0}, r"`confidence` is 1\.0"),
        ({"program_timeout": 0.0}, r"`program_timeout` is 0\.0"),
        (
            {"model_name_or_path": None, "samples": "s.jsonl", "temperature": 0.8},
            "`temperature` .* has no effect on existing `samples`",
        ),
        ({"long_prompts": "cut"}, "`long_prompts` is 'cut'; choose"),
        ({"memory_mb": 0}, "`memory_mb` 0"),
    ],
)
def test_wrong_values_are_named(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_given_samples_allow_any_k():
    assert config(model_name_or_path=None, samples="s.jsonl", k=[1, 10]).k == [1, 10]


def test_every_field_is_documented():
    documented = re.findall(r"^    (\w+) \(`", inspect.getdoc(EvaluationConfig) or "", re.MULTILINE)
    inherited = [field.name for field in dataclasses.fields(GeneratorConfig)]
    assert [*inherited, *documented] == [field.name for field in dataclasses.fields(EvaluationConfig)]


def test_settings_of_samples():
    kept = set(config().generation_settings)
    assert kept == {*GENERATION_FIELDS, "model"} - {"model_name_or_path"}, "files of samples name the model so"
    assert not kept & {"num_samples", "k", "limit", "program_timeout", "isolation", "generation_batch_size"}


def test_old_names_of_fields():
    """Each with a warning; `timeout` is the limit of a program here and of a request elsewhere."""
    with pytest.warns(FutureWarning) as warned:
        found = EvaluationConfig(model="m", benchmark="humaneval", timeout=2.0, batch_size=4)  # type: ignore[call-arg]
    assert (found.model_name_or_path, found.program_timeout, found.generation_batch_size) == ("m", 2.0, 4)
    assert sorted(str(warning.message).split("`")[1] for warning in warned) == ["batch_size", "model", "timeout"]
    with pytest.raises(ValueError, match="`model` is the old name of `model_name_or_path`, and both are given"):
        config(model="n")
