"""Judges on the six-point rubric: models that write judgements, and classifiers that predict scores."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from transformers import PreTrainedTokenizerBase

from ...generation import OpenAIGenerator, TextGenerator
from ...text_pairs import PairClassifier, load_classifier
from .prompts import JSON_JUDGE_PROMPT, JUDGE_PROMPT, JUDGEMENT_SCHEMA, JudgePrompt
from .reader import parse_judgement
from .rubric import RULES, Judgement, Unjudged

__all__ = ["GenerativeJudge", "Judge", "RegressionJudge", "answer_text", "nearest_judgement", "requesting_json"]


@runtime_checkable
class Judge(Protocol):
    """Interface of judges on the six-point rubric."""

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement | Unjudged]:
        """Judge pairs of instruction and answer; an answer without a judgement gets an [`Unjudged`]."""


class GenerativeJudge:
    r"""Judge that prompts a model and parses its judgements.

    Equal pairs are judged once. A judgement that cannot be parsed is sampled again, with a seed that depends only on
    the attempt. If the last attempt fails as well, the reason is returned.

    Args:
        generator (`TextGenerator`):
            Generator of judgements: the teacher, a served model, or a judge trained by `trl-akd judge train`.
        prompt ([`JudgePrompt`], *optional*):
            Prompt template.
        format_prompt (`Callable`, *optional*):
            Function that converts the request to the prompt of the generator, as a chat template does.
        max_new_tokens (`int`, *optional*, defaults to `512`), stop (`Sequence[str]`, *optional*):
            Maximum number of tokens of a judgement, and strings that end it.
        temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of the first attempt.
        retries (`int`, *optional*, defaults to `0`), retry_temperature (`float`, *optional*, defaults to `0.7`):
            Number of attempts after the first one, and their temperature, above 0.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the first attempt; each further attempt adds 1.

    Raises:
        ValueError: If a number is outside its range.

    Example:

    ```python
    >>> from trl_akd.generation import Completion
    >>> class Stern:
    ...     def generate(self, prompts, **settings):
    ...         text = "Score:\n" + "\n".join(f"Rule {rule}: 0.5" for rule in range(1, 6))
    ...         return [[Completion(text, None, "stop", None)] for _ in prompts]
    >>> [judgement] = GenerativeJudge(Stern()).judge([("Double x.", "2 * x")])
    >>> judgement.total
    2.5

    ```
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        prompt: JudgePrompt = JUDGE_PROMPT,
        format_prompt: Callable[[str], str] | None = None,
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        retries: int = 0,
        retry_temperature: float = 0.7,
        seed: int = 0,
    ) -> None:
        if retries < 0:
            raise ValueError(f"`retries` is {retries}; give at least 0.")
        if retry_temperature <= 0:
            raise ValueError(f"`retry_temperature` is {retry_temperature}; sample above 0, or set retries=0.")
        self._generator = generator
        self._prompt = prompt
        self._format_prompt = format_prompt or str
        self._max_new_tokens = max_new_tokens
        self._stop = tuple(stop)
        self._temperatures = [temperature, *[retry_temperature] * retries]
        self._seed = seed

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement | Unjudged]:
        """Judge answers, see [`Judge`].

        Raises:
            GenerationError: If the generator fails.
        """
        prompts = [self._format_prompt(self._prompt.render(*pair)) for pair in pairs]
        found: dict[str, Judgement | Unjudged] = {}
        for attempt, temperature in enumerate(self._temperatures):
            pending = [prompt for prompt in dict.fromkeys(prompts) if not isinstance(found.get(prompt), Judgement)]
            if pending:
                written = self._generator.generate(
                    pending,
                    temperature=temperature,
                    max_new_tokens=self._max_new_tokens,
                    stop=self._stop,
                    seed=self._seed + attempt,
                )
                for prompt, [completion] in zip(pending, written, strict=True):
                    found[prompt] = parse_judgement(completion.text, truncated=completion.finish_reason == "length")
        return [found[prompt] for prompt in prompts]


class RegressionJudge:
    """Judge that predicts the scores with a sequence classifier; every answer gets a judgement.

    The five outputs are the scores of the five rules, rounded to the nearest half point within their ranges.

    The tokenizer has a padding token, and its `model_max_length` is the maximum number of tokens of a pair.

    Raises:
        ValueError: If the model is not such a classifier, or `batch_size` is below 1.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 16) -> None:
        names = model.config.id2label
        if names != {index: rule.name for index, rule in enumerate(RULES)}:
            raise ValueError(
                f"the model's outputs are {', '.join(names.values())}, not the rules of the rubric; train a judge "
                "with `trl-akd judge train --kind regression`."
            )
        self._model_name = str(getattr(model.config, "name_or_path", ""))
        self._classifier = PairClassifier(model, tokenizer, batch_size)

    @classmethod
    def from_pretrained(cls, path: str, *, revision: str | None = None, batch_size: int = 16) -> Self:
        """Load a judge from `trl-akd judge train --kind regression`, onto the GPU if there is one.

        Raises:
            OSError: If the model does not exist.
            ValueError: If it is not such a judge.
        """
        model, tokenizer = load_classifier(path, revision)
        return cls(model, tokenizer, batch_size=batch_size)

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self._model_name

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement | Unjudged]:
        """Judge answers, see [`Judge`]."""
        outputs = self._classifier.predict([first for first, _ in pairs], [answer_text(second) for _, second in pairs])
        return [nearest_judgement(scores) for scores in outputs.tolist()]


def requesting_json(generator: TextGenerator, prompt: JudgePrompt) -> tuple[TextGenerator, JudgePrompt]:
    """Return the generator of a server and its prompt such that it replies in JSON.

    A server that refuses `response_format` gets requests without it. Custom prompts and models in this process are
    returned unchanged.
    """
    if prompt != JUDGE_PROMPT or not isinstance(generator, OpenAIGenerator):
        return generator, prompt
    return generator.with_schema("judgement", JUDGEMENT_SCHEMA), JSON_JUDGE_PROMPT


def answer_text(answer: str) -> str:
    """Return an answer in the format for a regression judge."""
    return f"\n\n# Answer\n{answer}"


def nearest_judgement(scores: Sequence[float]) -> Judgement:
    """Return the judgement nearest to five numbers.

    Raises:
        ValueError: If one is NaN.

    Example:

    ```python
    >>> nearest_judgement([2.7, -0.1, 0.7, 0.6, 0.8]).scores
    (2.0, 0.0, 0.5, 0.5, 1.0)

    ```
    """
    if any(map(math.isnan, scores)):
        raise ValueError(
            "the judge predicts NaN, so its training diverged; train it again with a lower learning rate."
        )
    clipped = [min(max(score, 0.0), rule.maximum) for rule, score in zip(RULES, scores, strict=True)]
    return Judgement(tuple(round(2 * score) / 2 for score in clipped))
