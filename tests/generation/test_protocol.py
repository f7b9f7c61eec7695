"""Common behavior of all backends: refused arguments, seeds, and the cost of imports."""

import subprocess
import sys
from typing import Any

import pytest

from trl_akd.generation import Completion
from trl_akd.generation.protocol import GREEDY, SamplingParams, check_prompts, sample_offsets, truncate_at_stop


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"n": 0}, "`n` is 0; give at least 1"),
        ({"temperature": -0.1}, "`temperature` is -0.1"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"temperature": float("inf")}, "`temperature` is inf"),
        ({"top_p": 0.0}, "`top_p` is 0.0"),
        ({"top_p": 1.01}, "`top_p` is 1.01"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"stop": "\n"}, r"`stop` is the string '\\n'; give a list, such as \['\\n'\]"),
        ({"stop": ["a", ""]}, "`stop` is .* non-empty"),
        ({"stop": [3]}, "`stop` is "),
        ({"n": 2}, "`n` is 2 and `temperature` 0, .* set `temperature` above 0 to sample, or n=1"),
    ],
)
def test_request_out_of_range(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SamplingParams(**change)


@pytest.mark.parametrize(("prompts", "complaint"), [("text", "give a list"), (["a", None], r"`prompts\[1\]`")])
def test_prompts_of_another_kind(prompts: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_prompts(prompts)


def test_seeds_depend_on_seed_prompt_and_number() -> None:
    first, second = SamplingParams(seed=1), SamplingParams(seed=2)
    seeds = {
        request.sample_seed(prompt, number) for request in (first, second) for prompt in "ab" for number in range(2)
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert first.sample_seed("a", 0) == SamplingParams(seed=1).sample_seed("a", 0)
    unseeded = GREEDY
    assert unseeded.sample_seed("a", 0) != unseeded.sample_seed("a", 0)


def test_equal_prompts_are_numbered_through() -> None:
    assert sample_offsets(["a", "b", "a", "a"], 3) == [0, 0, 3, 6]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("abcabc", ["ca", "b"], ("a", True)),
        ("abc", ["abcd"], ("abc", False)),
        ("abc", [], ("abc", False)),
        ("abc", ["a"], ("", True)),
    ],
)
def test_until_stop(text: str, stop: list[str], expected: tuple[str, bool]) -> None:
    assert truncate_at_stop(text, stop) == expected


def test_completions_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Completion("", None, "stop", None).text = "x"  # type: ignore[misc]


def test_import_is_light() -> None:
    heavy = ("torch", "transformers", "requests", "vllm")
    code = f"import sys, trl_akd.generation; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_public_names() -> None:
    import trl_akd.generation as room

    assert room.__all__ == sorted(room.__all__)
    assert [getattr(room, name).__name__ for name in room.__all__] == room.__all__
    with pytest.raises(AttributeError, match="Nothing"):
        room.Nothing  # noqa: B018
