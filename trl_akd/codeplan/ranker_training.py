"""From judged programs to a trained ranker."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..text_pairs import LabelledPair, make_pair_trainer
from .ranker import CORRECT, RANKER_LABELS, LabelKind, program_text, ranker_label

__all__ = ["make_ranker_trainer", "ranker_rows"]


def ranker_rows(
    problems: Mapping[str, str], samples: Iterable[Mapping[str, Any]], verdicts: Iterable[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Join programs with what came of running them, as rows `{id, problem, program, label}`.

    Programs that could not be judged are left out, and so are samples without a verdict; equal programs of a problem
    count once.

    Args:
        problems (`Mapping[str, str]`):
            Texts by `task_id`.
        samples (`Iterable[Mapping]`):
            Lines of `samples.jsonl`, with `task_id`, `sample` and `solution`.
        verdicts (`Iterable[Mapping]`):
            Lines of `verdicts.jsonl`, with `task_id`, `sample` and `label`.

    Returns:
        `list[dict]`: `label` is `correct` or an error type of [`trl_akd.metrics.taxonomy`].

    Raises:
        ValueError: If the three do not belong together, or nothing is left.
    """
    programs: dict[tuple[str, int], str] = {}
    counts: Counter[str] = Counter()
    for row in samples:
        task_id = str(row["task_id"])
        programs[task_id, row.get("sample", counts[task_id])] = row["solution"]
        counts[task_id] += 1
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in verdicts:
        task_id, error_type = str(row["task_id"]), row["label"]["error_type"]
        if (task_id, row["sample"]) not in programs or task_id not in problems:
            raise ValueError(
                f"the verdict on sample {row['sample']} of problem {task_id!r} has no "
                f"{'sample' if task_id in problems else 'problem'} that it is on; give files of one evaluation."
            )
        if error_type == "infra_error":
            continue
        program = programs[task_id, row["sample"]]
        label = ranker_label(error_type, "error_type")
        rows[task_id, program] = {"id": task_id, "problem": problems[task_id], "program": program, "label": label}
    if not rows:
        raise ValueError("no program has been judged; give the files of an evaluation that ran programs.")
    return list(rows.values())


def make_ranker_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    train_rows: Sequence[Mapping[str, Any]],
    eval_rows: Sequence[Mapping[str, Any]] | None = None,
    *,
    labels: LabelKind = "error_type",
    max_length: int = 1024,
) -> Trainer:
    """Return a trainer of a ranker: plain cross-entropy over the classes.

    It reports `eval_accuracy` over the classes, and `eval_ranking_accuracy`: among the pairs of a correct and another
    program of the same problem, the share in which the correct one scores higher.

    Args:
        model (`PreTrainedModel`):
            A sequence classifier of as many classes as `labels` has; they get their names here.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; EOS pads where it has no padding token.
        args (`TrainingArguments`):
            How to train.
        train_rows (`Sequence[Mapping]`), eval_rows (`Sequence[Mapping]`, *optional*):
            Rows of [`ranker_rows`], of different problems.
        labels (`str`, *optional*, defaults to `"error_type"`):
            Kind of the classes.
        max_length (`int`, *optional*, defaults to `1024`):
            Most tokens of problem and program; saved with the tokenizer.

    Raises:
        ValueError: If the model has another number of classes, or all programs are of one class.
    """
    names = RANKER_LABELS[labels]

    def pairs(rows: Sequence[Mapping[str, Any]]) -> list[LabelledPair]:
        return [
            (row["problem"], program_text(row["program"]), names.index(ranker_label(_error_type(row), labels)))
            for row in rows
        ]

    train, held_out = pairs(train_rows), pairs(eval_rows or ())
    if len({label for _, _, label in train}) < 2:
        raise ValueError("all programs to train on are of one class; sample more, or from another model.")
    groups = [row["id"] for row in eval_rows or ()]
    return make_pair_trainer(
        model,
        tokenizer,
        args,
        train,
        held_out,
        names=names,
        max_length=max_length,
        compute_metrics=lambda prediction: _metrics(prediction, groups, names.index(CORRECT)),
    )


def _error_type(row: Mapping[str, Any]) -> str | None:
    return None if row["label"] == CORRECT else str(row["label"])


def _metrics(prediction: EvalPrediction, groups: Sequence[str], correct: int) -> dict[str, float]:
    logits, labels = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    scores = (shifted / shifted.sum(-1, keepdims=True))[:, correct]
    metrics = {"accuracy": float((logits.argmax(-1) == labels).mean())}
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    wins = [
        np.heaviside(scores[right] - scores[wrong], 0.5)
        for several in members.values()
        for right in several
        for wrong in several
        if labels[right] == correct and labels[wrong] != correct
    ]
    if wins:
        metrics["ranking_accuracy"] = float(np.mean(wins))
    return metrics
