"""Training and evaluation of judges on existing judgements."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer
from trl import SFTConfig, SFTTrainer

from ...generation import TransformersGenerator
from ...text_pairs import LabeledPair, make_pair_trainer
from .judges import GenerativeJudge, answer_text, nearest_judgement
from .prompts import JUDGE_PROMPT, JudgePrompt
from .reader import parse_judgement
from .rubric import RULES, Judgement, Unjudged, format_judgement

__all__ = [
    "JudgedAnswer",
    "judge_held_out",
    "judge_metrics",
    "make_generative_trainer",
    "make_regression_trainer",
    "read_judgements",
]

# Delimiters of question and answer in SODA's filled scoring prompts.
_QUESTION = ("Here is the programming question:", "#End of programming question#")
_ANSWER = ("Here is the code:", "#End of code#")


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """Answer to an instruction, with its judgement and the text of the judgement for generative judges."""

    instruction: str
    answer: str
    judgement: Judgement
    text: str


def read_judgements(rows: Iterable[Mapping[str, Any]]) -> tuple[list[JudgedAnswer], Counter[str]]:
    """Read rows `{instruction, answer, scores}`, or `{instruction, response}` in the format of SODA's release.

    In the first format, `scores` are five numbers, and `response` may contain a text of the judge with these scores.
    In the second one, `instruction` is a filled prompt, from which question and answer are extracted, and `response`
    is the text of a judge; rows whose text cannot be parsed are skipped.

    Returns:
        `tuple[list[JudgedAnswer], Counter]`: the judgements, and the number of skipped rows by reason.

    Raises:
        ValueError: If a row has neither format, or no row is left.
    """
    judged: list[JudgedAnswer] = []
    refused: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            found = _read(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"row {number} of the judgements cannot be used ({error}); give {{instruction, answer, scores}} with "
                "five scores, or {instruction, response} in SODA's format."
            ) from error
        if isinstance(found, Unjudged):
            refused[found.reason] += 1
        else:
            judged.append(found)
    if not judged:
        raise ValueError(f"no judgement can be parsed; the reasons are {dict(refused)}.")
    return judged, refused


def judge_metrics(judgements: Sequence[Judgement | Unjudged], references: Sequence[Judgement]) -> dict[str, float]:
    """Compare judgements with references.

    Returns:
        `dict[str, float]`: `unjudged`, the fraction of answers without a judgement; for the others, the
        `mean_absolute_error` of the total in points and Spearman's `rank_correlation`, with mean ranks for ties.
        Undefined metrics, such as the correlation of a constant, are omitted.

    Example:

    ```python
    >>> low, high = Judgement((0, 0, 0, 0, 0)), Judgement((2, 1, 1, 1, 1))
    >>> judge_metrics([low, Judgement((2, 1, 1, 0, 0)), Unjudged("no_scores"), low], [low, high, high, low])
    {'unjudged': 0.25, 'mean_absolute_error': 0.6666666666666666, 'rank_correlation': 1.0}

    ```
    """
    both = zip(judgements, references, strict=True)
    pairs = [(judgement.total, reference.total) for judgement, reference in both if isinstance(judgement, Judgement)]
    metrics = {"unjudged": 1 - len(pairs) / len(references)} if references else {}
    if pairs:
        totals, expected = np.array(pairs, dtype=np.float64).T
        metrics["mean_absolute_error"] = float(np.abs(totals - expected).mean())
        if len(set(totals)) > 1 and len(set(expected)) > 1:
            correlation = np.corrcoef(_mean_ranks(totals), _mean_ranks(expected))[0, 1]
            metrics["rank_correlation"] = round(float(correlation), 12)
    return metrics


def _read(row: Mapping[str, Any]) -> JudgedAnswer | Unjudged:
    if "scores" in row:
        judgement = Judgement(tuple(float(score) for score in row["scores"]))
        text = str(row.get("response") or format_judgement(judgement)).strip()
        if parse_judgement(text) != judgement:
            raise ValueError("`response` does not have the scores of `scores`")
        return JudgedAnswer(_text(row, "instruction"), _text(row, "answer"), judgement, text)
    filled, response = _text(row, "instruction"), _text(row, "response")
    parsed = parse_judgement(response)
    if isinstance(parsed, Unjudged):
        return parsed
    return JudgedAnswer(_between(filled, *_QUESTION), _between(filled, *_ANSWER), parsed, response.strip())


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise TypeError(f"`{column}` is not a text")
    return str(row[column])


def _between(text: str, opening: str, closing: str) -> str:
    _, found, rest = text.partition(opening)
    inside, ended, _ = rest.partition(closing)
    if not found or not ended:
        raise ValueError(f"`instruction` does not contain {opening!r} … {closing!r}")
    return inside.strip()


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return ranks


logger = logging.getLogger(__name__)


def make_regression_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: SFTConfig,
    train: Sequence[JudgedAnswer],
    held_out: Sequence[JudgedAnswer] = (),
) -> Trainer:
    """Return a trainer of a regression judge, a sequence classifier with five outputs.

    The loss is the mean squared error of the five scores, and evaluation reports `judge_metrics`. Pairs longer than
    `max_length` tokens lose the end of their longer text. Without a padding token, EOS is used.

    Raises:
        ValueError: If the model has another number of outputs, or `max_length` is missing.
    """
    if args.max_length is None:
        raise ValueError("`max_length` is missing; give the maximum number of tokens of instruction and answer.")
    references = [row.judgement for row in held_out]

    def compare(prediction: EvalPrediction) -> dict[str, float]:
        return judge_metrics([nearest_judgement(scores) for scores in prediction.predictions], references)

    return make_pair_trainer(
        model,
        tokenizer,
        args,
        _pairs(train),
        _pairs(held_out),
        names=[rule.name for rule in RULES],
        max_length=args.max_length,
        compute_metrics=compare,
        compute_loss=_squared_error,
    )


def make_generative_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: SFTConfig,
    train: Sequence[JudgedAnswer],
    held_out: Sequence[JudgedAnswer] = (),
    *,
    prompt: JudgePrompt = JUDGE_PROMPT,
) -> SFTTrainer:
    """Return an `SFTTrainer` of a generative judge, with cross-entropy on the judgement only.

    Judgements that exceed `max_length` together with their request are skipped, as the scores are at their end.

    Raises:
        ValueError: If all judgements are too long.
    """

    def rows(judged: Sequence[JudgedAnswer]) -> Dataset | None:
        pairs = [(prompt.render(row.instruction, row.answer), row.text) for row in judged]
        fitting = [
            {"prompt": request, "completion": text}
            for request, text in pairs
            if args.max_length is None or len(tokenizer(request + text)["input_ids"]) < args.max_length
        ]
        if judged and not fitting:
            raise ValueError(f"`max_length` is {args.max_length}, but every judgement is longer; raise it.")
        if skipped := len(judged) - len(fitting):
            logger.warning(f"Skipped {skipped} of {len(judged)} judgements longer than max_length={args.max_length}.")
        return Dataset.from_list(fitting) if fitting else None

    return SFTTrainer(model, args, train_dataset=rows(train), eval_dataset=rows(held_out), processing_class=tokenizer)


def judge_held_out(
    trainer: SFTTrainer,
    held_out: Sequence[JudgedAnswer],
    *,
    prompt: JudgePrompt = JUDGE_PROMPT,
    max_new_tokens: int = 512,
) -> dict[str, float]:
    """Evaluate a trained generative judge with `judge_metrics`; all processes must call this function."""
    generator = TransformersGenerator(
        trainer.model_wrapped,
        trainer.processing_class,
        batch_size=trainer.args.per_device_eval_batch_size,
        accelerator=trainer.accelerator,
    )
    judge = GenerativeJudge(generator, prompt=prompt, max_new_tokens=max_new_tokens)
    judgements = judge.judge([(row.instruction, row.answer) for row in held_out])
    return judge_metrics(judgements, [row.judgement for row in held_out])


def _squared_error(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the mean squared error over all scores of a step, including gradient accumulation."""
    errors: Tensor = (outputs.logits.float() - labels).square()
    return errors.mean() if num_items_in_batch is None else errors.sum() / num_items_in_batch


def _pairs(judged: Sequence[JudgedAnswer]) -> list[LabeledPair]:
    return [(row.instruction, answer_text(row.answer), row.judgement.scores) for row in judged]
