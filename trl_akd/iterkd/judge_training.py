"""From judgements to a trained judge."""

import logging
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer
from trl import SFTConfig, SFTTrainer

from ..generation import TransformersGenerator
from ..text_pairs import LabelledPair, make_pair_trainer
from .judge_data import JudgedAnswer, judge_metrics
from .judge_prompts import JUDGE_PROMPT, JudgePrompt
from .judges import GenerativeJudge, answer_text, nearest_judgement
from .judging import RULES

__all__ = ["judge_held_out", "make_generative_trainer", "make_regression_trainer"]

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
