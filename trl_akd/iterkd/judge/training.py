"""Training and measuring judges on judgements that are already there."""

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
from ...text_pairs import LabelledPair, make_pair_trainer
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

# How SODA's filled scoring prompts show where question and answer begin and end.
_QUESTION = ("Here is the programming question:", "#End of programming question#")
_ANSWER = ("Here is the code:", "#End of code#")


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """Hold an answer and a judgement on it.

    Args:
        instruction (`str`):
            What was asked.
        answer (`str`):
            What was answered.
        judgement ([`Judgement`]):
            Its scores.
        text (`str`):
            The judgement as a generative judge shall write it.
    """

    instruction: str
    answer: str
    judgement: Judgement
    text: str


def read_judgements(rows: Iterable[Mapping[str, Any]]) -> tuple[list[JudgedAnswer], Counter[str]]:
    """Read rows `{instruction, answer, scores}`, or `{instruction, response}` as SODA's authors released them.

    In the second kind, `instruction` is a filled prompt of theirs, out of which question and answer are taken, and
    `response` a judge's text; where that cannot be read, the row is left out and counted.

    Args:
        rows (`Iterable[Mapping]`):
            Rows of either kind. Beside `scores`, five numbers, `response` may give the judge's words, with the same
            scores.

    Returns:
        `tuple[list[JudgedAnswer], Counter]`: the judgements, and the reasons for which others could not be read.

    Raises:
        ValueError: If a row is of neither kind, or none is left; the message has its number.
    """
    judged: list[JudgedAnswer] = []
    refused: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            found = _read(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"row {number} of the judgements is not to be used ({error}); give {{instruction, answer, scores}} "
                "with five scores, or {instruction, response} as SODA's."
            ) from error
        if isinstance(found, Unjudged):
            refused[found.reason] += 1
        else:
            judged.append(found)
    if not judged:
        raise ValueError(f"no judgement can be read; refused are {dict(refused)}.")
    return judged, refused


def judge_metrics(found: Sequence[Judgement | Unjudged], wanted: Sequence[Judgement]) -> dict[str, float]:
    """Compare a judge's judgements with those that it should have given.

    Args:
        found (`Sequence[Judgement | Unjudged]`):
            What the judge gave.
        wanted (`Sequence[Judgement]`):
            What it should have given.

    Returns:
        `dict[str, float]`: `unjudged`, the share of answers without a judgement; over the others
        `mean_absolute_error` of the total in points, and `rank_correlation`, Spearman's with mean ranks for ties. What
        is not defined, as the correlation of a constant, is left out.

    Example:

    ```python
    >>> low, high = Judgement((0, 0, 0, 0, 0)), Judgement((2, 1, 1, 1, 1))
    >>> judge_metrics([low, Judgement((2, 1, 1, 0, 0)), Unjudged("no_scores"), low], [low, high, high, low])
    {'unjudged': 0.25, 'mean_absolute_error': 0.6666666666666666, 'rank_correlation': 1.0}

    ```
    """
    pairs = [(got.total, due.total) for got, due in zip(found, wanted, strict=True) if isinstance(got, Judgement)]
    metrics = {"unjudged": 1 - len(pairs) / len(wanted)} if wanted else {}
    if pairs:
        got, due = np.array(pairs, dtype=np.float64).T
        metrics["mean_absolute_error"] = float(np.abs(got - due).mean())
        if len(set(got)) > 1 and len(set(due)) > 1:
            metrics["rank_correlation"] = round(float(np.corrcoef(_mean_ranks(got), _mean_ranks(due))[0, 1]), 12)
    return metrics


def _read(row: Mapping[str, Any]) -> JudgedAnswer | Unjudged:
    if "scores" in row:
        judgement = Judgement(tuple(float(score) for score in row["scores"]))
        text = str(row.get("response") or format_judgement(judgement)).strip()
        if parse_judgement(text) != judgement:
            raise ValueError("its response does not give its scores")
        return JudgedAnswer(_text(row, "instruction"), _text(row, "answer"), judgement, text)
    filled, response = _text(row, "instruction"), _text(row, "response")
    parsed = parse_judgement(response)
    if isinstance(parsed, Unjudged):
        return parsed
    return JudgedAnswer(_between(filled, *_QUESTION), _between(filled, *_ANSWER), parsed, response.strip())


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise TypeError(f"`{column}` is no text")
    return str(row[column])


def _between(text: str, opening: str, closing: str) -> str:
    _, found, rest = text.partition(opening)
    inside, ended, _ = rest.partition(closing)
    if not found or not ended:
        raise ValueError(f"its instruction has no {opening!r} … {closing!r}")
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
    """Return a trainer of a regression judge: the mean squared error of the five scores, in points.

    Its evaluation reports what `judge_metrics` does.

    Args:
        model (`PreTrainedModel`):
            A sequence classifier with five outputs.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; EOS pads where it has no padding token.
        args (`SFTConfig`):
            How to train; `max_length` is the most tokens of a pair, of which the longer text loses its end.
        train (`Sequence[JudgedAnswer]`), held_out (`Sequence[JudgedAnswer]`, *optional*):
            Judgements to train on and to evaluate on.

    Raises:
        ValueError: If the model has another number of outputs, or `max_length` is missing.
    """
    if args.max_length is None:
        raise ValueError("`max_length` is missing; give the most tokens of instruction and answer.")
    wanted = [row.judgement for row in held_out]

    def compare(prediction: EvalPrediction) -> dict[str, float]:
        return judge_metrics([nearest_judgement(scores) for scores in prediction.predictions], wanted)

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
    """Return a trainer of a generative judge: TRL's, with cross-entropy on the judgement alone.

    Judgements that do not fit into `max_length` behind their request are left out, as the scores stand at the end.

    Args:
        model (`PreTrainedModel`):
            A causal language model.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args (`SFTConfig`):
            How to train.
        train (`Sequence[JudgedAnswer]`), held_out (`Sequence[JudgedAnswer]`, *optional*):
            Judgements to train on and to evaluate on.
        prompt ([`JudgePrompt`], *optional*):
            What the judge is asked, here and later.

    Raises:
        ValueError: If no judgement fits.
    """

    def rows(judged: Sequence[JudgedAnswer]) -> Dataset | None:
        pairs = [(prompt.render(row.instruction, row.answer), row.text) for row in judged]
        fitting = [
            {"prompt": request, "completion": text}
            for request, text in pairs
            if args.max_length is None or len(tokenizer(request + text)["input_ids"]) < args.max_length
        ]
        if judged and not fitting:
            raise ValueError(f"`max_length` is {args.max_length}, into which no judgement fits; raise it.")
        if len(fitting) < len(judged):
            logger.warning(
                "%d of %d judgements do not fit into max_length=%d and are left out.",
                len(judged) - len(fitting),
                len(judged),
                args.max_length,
            )
        return Dataset.from_list(fitting) if fitting else None

    return SFTTrainer(model, args, train_dataset=rows(train), eval_dataset=rows(held_out), processing_class=tokenizer)


def judge_held_out(
    trainer: SFTTrainer,
    held_out: Sequence[JudgedAnswer],
    *,
    prompt: JudgePrompt = JUDGE_PROMPT,
    max_new_tokens: int = 512,
) -> dict[str, float]:
    """Let a trained generative judge judge answers, and compare, as `judge_metrics` does.

    Args:
        trainer (`SFTTrainer`):
            Its trainer. All processes must call.
        held_out (`Sequence[JudgedAnswer]`):
            Judgements that it has not seen.
        prompt ([`JudgePrompt`], *optional*):
            What it is asked.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Most tokens of a judgement.
    """
    generator = TransformersGenerator(
        trainer.model_wrapped,
        trainer.processing_class,
        batch_size=trainer.args.per_device_eval_batch_size,
        accelerator=trainer.accelerator,
    )
    judge = GenerativeJudge(generator, prompt=prompt, max_new_tokens=max_new_tokens)
    found = judge.judge([(row.instruction, row.answer) for row in held_out])
    return judge_metrics(found, [row.judgement for row in held_out])


def _squared_error(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the mean over all scores of a step; the model's own loss would be added up over accumulated batches."""
    errors: Tensor = (outputs.logits.float() - labels).square()
    return errors.mean() if num_items_in_batch is None else errors.sum() / num_items_in_batch


def _pairs(judged: Sequence[JudgedAnswer]) -> list[LabelledPair]:
    return [(row.instruction, answer_text(row.answer), row.judgement.scores) for row in judged]
