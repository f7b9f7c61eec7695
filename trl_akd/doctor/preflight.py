"""Checks of a recipe's tokenizers and data on a trainer: special tokens, lengths, and the targets of a real batch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch

from ..losses.reduction import IGNORE_INDEX

__all__ = ["Example", "Preflight", "inspect_trainer"]

_EXAMPLES = 2
_SHOWN = 1200
"""Maximum number of characters per segment that are shown."""


@dataclass(frozen=True)
class Example:
    """A row of a batch, as text.

    Args:
        segments (`Sequence[tuple[bool, str]]`):
            Text in its order, each with whether its tokens are targets.
        tokens (`int`):
            Number of tokens.
        targets (`int`):
            Number of target tokens.
    """

    segments: Sequence[tuple[bool, str]]
    tokens: int
    targets: int

    def __str__(self) -> str:
        """Return the text with a bar beside the lines of targets."""
        lines = [f"  {self.tokens} tokens, {self.targets} of them targets (marked by |):"]
        for is_target, text in self.segments:
            shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} [...] {text[-_SHOWN // 2 :]}"
            lines += [f"    {'|' if is_target else ' '} {line}" for line in shown.split("\n")]
        return "\n".join(lines)


@dataclass(frozen=True)
class Preflight:
    """Result of the checks.

    Args:
        facts (`Sequence[str]`):
            Vocabularies, special tokens and counts of rows.
        examples (`Sequence[Example]`, *optional*):
            Rows of a batch.
        warnings (`Sequence[str]`, *optional*):
            Probable mistakes.
        skipped (`Sequence[str]`, *optional*):
            Checks that were not possible, with the reason.
        num_rows (`int`, *optional*):
            Number of training rows.
        kept (`float`, *optional*, defaults to `1.0`):
            Fraction of them that is not dropped.
        longest (`int`, *optional*):
            Number of tokens of the longest row.
        mean_length (`float`, *optional*):
            Mean number of tokens per row.
        mean_targets (`float`, *optional*):
            Mean number of target tokens per row.
        student_nll (`float`, *optional*):
            Student's mean negative log-likelihood of a batch's targets in nats, measured with its weights.
        teacher_nll (`float`, *optional*):
            The teacher's.
    """

    facts: Sequence[str] = ()
    examples: Sequence[Example] = ()
    warnings: Sequence[str] = ()
    skipped: Sequence[str] = field(default_factory=list)
    num_rows: int | None = None
    kept: float = 1.0
    longest: int | None = None
    mean_length: float | None = None
    mean_targets: float | None = None
    student_nll: float | None = None
    teacher_nll: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the result as text."""
        lines = ["Models and data", *(f"  {fact}" for fact in self.facts)]
        if self.student_nll is not None:
            teacher = "" if self.teacher_nll is None else f", teacher {self.teacher_nll:.3f}"
            lines.append(f"  NLL per target of the first batch, in nats: student {self.student_nll:.3f}{teacher}")
        lines += [f"  Warning: {warning}" for warning in self.warnings]
        lines += [f"  Skipped: {skipped}" for skipped in self.skipped]
        return "\n".join([*lines, *(f"\n{example}" for example in self.examples)])


def inspect_trainer(trainer: Any, report: Any, num_rows: int, *, with_weights: bool) -> Preflight:
    """Return the result of the checks on the first rows of a dataset.

    Args:
        trainer (`AKDTrainer`):
            Trainer of these rows, with the real tokenizers.
        report (`TokenizationReport`, *optional*):
            Counts of truncated and dropped rows.
        num_rows (`int`):
            Number of rows of the whole dataset.
        with_weights (`bool`):
            Whether the trainer has the real models, whose likelihoods are measured.
    """
    tokenizer = trainer._tokenizer
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    lengths, targets = _lengths(trainer)
    facts = [*_tokens(trainer, tokenizer)]
    kept = 1.0
    if report is not None:
        facts.append(f"First {report.rows:,} of {num_rows:,} rows: {report.summary()}")
        kept = report.kept / report.rows
    student_nll = teacher_nll = None
    warnings: list[str] = []
    if lengths:
        facts.append(
            f"Tokens per row: mean {_mean(lengths):.0f}, maximum {max(lengths):,}; targets: mean {_mean(targets):.0f} "
            f"({sum(targets) / sum(lengths):.0%})."
        )
    if with_weights and bool((batch["labels"] != IGNORE_INDEX).any()):
        try:
            student_nll, teacher_nll = _likelihoods(trainer, batch)
        except FloatingPointError as error:
            warnings.append(str(error))
    return Preflight(
        facts,
        _examples(batch, tokenizer),
        warnings + _warnings(batch, tokenizer, report, student_nll, teacher_nll),
        num_rows=num_rows,
        kept=kept,
        longest=max(lengths, default=None),
        mean_length=_mean(lengths) if lengths else None,
        mean_targets=_mean(targets) if lengths else None,
        student_nll=student_nll,
        teacher_nll=teacher_nll,
    )


def _tokens(trainer: Any, tokenizer: Any) -> list[str]:
    def name(token: str) -> str:
        value = getattr(tokenizer, f"{token}_token")
        return "none" if value is None else f"{value!r} ({getattr(tokenizer, f'{token}_token_id')})"

    rows = trainer.model.config.get_text_config().vocab_size
    template = "has a chat template" if tokenizer.chat_template else "no chat template"
    return [
        f"Vocabulary: {len(tokenizer):,} tokens, {rows:,} rows in the student's LM head; both models share the ids "
        f"below {trainer.vocabulary_size:,}.",
        f"EOS {name('eos')}, padding {name('pad')}, BOS {name('bos')}; {template}.",
    ]


def _lengths(trainer: Any) -> tuple[list[int], list[int]]:
    """Return the number of tokens and of targets of each training row; none for rows of another format."""
    dataset = trainer.train_dataset
    if "input_ids" not in (getattr(dataset, "column_names", None) or ()):
        return [], []
    rows = dataset.with_format(None)
    lengths = [len(ids) for ids in rows["input_ids"]]
    if "labels" not in rows.column_names:
        return lengths, lengths
    return lengths, [sum(label != IGNORE_INDEX for label in labels[1:]) for labels in rows["labels"]]


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def _examples(batch: dict[str, Any], tokenizer: Any) -> list[Example]:
    ids, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
    mask = batch["attention_mask"].cpu().bool() if "attention_mask" in batch else torch.ones_like(ids).bool()
    found = []
    for row in range(min(_EXAMPLES, len(ids))):
        if ids.shape != labels.shape:  # an encoder-decoder
            pairs = [(False, token) for token in ids[row][mask[row]].tolist()]
            pairs += [(True, token) for token in labels[row].tolist() if token != IGNORE_INDEX]
        else:
            kept = mask[row]
            is_target = (labels[row] != IGNORE_INDEX)[kept].tolist()
            pairs = list(zip(is_target, ids[row][kept].tolist(), strict=True))
        segments = [
            (is_target, tokenizer.decode([token for _, token in group]))
            for is_target, group in groupby(pairs, key=lambda pair: pair[0])
        ]
        found.append(Example(segments, len(pairs), sum(is_target for is_target, _ in pairs)))
    return found


def _warnings(
    batch: dict[str, Any], tokenizer: Any, report: Any, student_nll: float | None, teacher_nll: float | None
) -> list[str]:
    found = []
    labels = batch["labels"]
    if tokenizer.eos_token_id is None:
        found.append("the tokenizer has no EOS, so that the student does not learn where a completion ends.")
    elif bool((labels != IGNORE_INDEX).any()) and not bool((labels == tokenizer.eos_token_id).any()):
        found.append("no target of the batch is EOS, so that the student does not learn where a completion ends.")
    if tokenizer.pad_token_id is None:
        found.append("the tokenizer has no padding token.")
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        found.append("padding is EOS; the attention mask and the labels tell them apart here, other programs may not.")
    if report is not None:
        dropped = report.rows - report.kept
        if dropped > 0.05 * report.rows:
            found.append(f"{dropped / report.rows:.0%} of the rows are dropped; raise `max_length`.")
        if report.truncated > 0.05 * report.kept:
            found.append(f"{report.truncated / report.kept:.0%} of the completions are truncated; raise `max_length`.")
    if student_nll is not None and teacher_nll is not None and teacher_nll > student_nll:
        found.append(
            f"the teacher's NLL of the targets, {teacher_nll:.3f} nats, is above the student's, {student_nll:.3f}; "
            "the teacher may expect another template, or be the weaker model."
        )
    return found


def _likelihoods(trainer: Any, batch: dict[str, Any]) -> tuple[float, float | None]:
    """Return the mean NLL of the targets under the student and, if there is one, the teacher.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, batch)
    metrics = trainer.distillation_metrics["eval"]
    metrics.check_finite(trainer.accelerator, trainer.state.global_step, trainer.args)
    means, _ = metrics.reduce(trainer.accelerator)
    weight = sum(mean.weight for mean in means)

    def pooled(name: str) -> float:
        return float(sum(mean.weight * mean.by_name[name] for mean in means) / weight)

    return pooled("student_nll"), pooled("teacher_nll") if trainer.args.uses_teacher else None
