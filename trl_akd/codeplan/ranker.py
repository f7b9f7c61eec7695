"""A classifier that ranks programs without running them, similar to CodeRanker.

Inala et al., [Fault-Aware Neural Code Rankers](https://huggingface.co/papers/2206.03865): a sequence classifier reads
problem and program and predicts the result of running the program; programs are ranked by the predicted probability of
"correct". The classes are the error types of this package's executor (`trl_akd.metrics.taxonomy`), or two or three
coarser ones as in the paper. The paper's classes with the line of the error are not included.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..metrics.taxonomy import CAUSES, OWN_CAUSES
from ..text_pairs import LabeledPair, PairClassifier, load_classifier, make_pair_trainer

__all__ = [
    "CORRECT",
    "RANKER_LABELS",
    "LabelKind",
    "Ranker",
    "make_ranker_trainer",
    "program_text",
    "rank_samples",
    "ranker_label",
    "ranker_rows",
]

LabelKind: TypeAlias = Literal["binary", "ternary", "error_type"]

CORRECT = "correct"
_WRONG = "wrong_answer"

RANKER_LABELS: Mapping[LabelKind, tuple[str, ...]] = MappingProxyType(
    {
        "binary": (CORRECT, "incorrect"),
        "ternary": (CORRECT, _WRONG, "execution_error"),
        "error_type": (CORRECT, _WRONG, *dict.fromkeys([*CAUSES, *OWN_CAUSES])),
    }
)
"""The classes of each kind, `correct` first."""


def ranker_label(error_type: str | None, kind: LabelKind) -> str:
    """Return the class of a program by its error type, or by `None` for a correct one.

    Args:
        error_type (`str`, *optional*):
            Error type of [`trl_akd.metrics.taxonomy.ErrorLabel`].
        kind (`str`):
            `"binary"`, `"ternary"` or `"error_type"`.

    Raises:
        ValueError: If the error type is unknown.

    Example:

    ```python
    >>> [ranker_label("NameError", kind) for kind in RANKER_LABELS]
    ['incorrect', 'execution_error', 'NameError']

    ```
    """
    name = error_type or CORRECT
    if name not in RANKER_LABELS["error_type"]:
        raise ValueError(f"error type {name!r} is unknown; choose one of {', '.join(RANKER_LABELS['error_type'])}.")
    if name == CORRECT or kind == "error_type":
        return name
    if kind == "binary":
        return "incorrect"
    return _WRONG if name == _WRONG else "execution_error"


def program_text(program: str) -> str:
    """Return the text of a program that the ranker reads after the problem."""
    return f"\n\n# Program\n{program}"


class Ranker:
    """Score programs by their predicted probability of being correct.

    Args:
        model (`PreTrainedModel`):
            A sequence classifier with a class `correct`, on its device.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer, with a padding token; `model_max_length` limits the number of tokens per pair.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of programs per batch.

    Raises:
        ValueError: If the model has no class `correct`, or `batch_size` is below 1.

    Example:

    ```python
    >>> ranker = Ranker.from_pretrained("outputs/ranker")  # doctest: +SKIP
    >>> ranker.score("Double a number.", ["print(2 * int(input()))", "print(3)"])  # doctest: +SKIP
    [0.93, 0.02]

    ```
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 16) -> None:
        if CORRECT not in model.config.label2id:
            raise ValueError(
                f"the model has the classes {', '.join(model.config.label2id)}, but not {CORRECT!r}; train a ranker "
                "with `trl-akd ranker train`."
            )
        self._classifier = PairClassifier(model, tokenizer, batch_size)
        self._correct = int(model.config.label2id[CORRECT])

    @classmethod
    def from_pretrained(cls, path: str, *, batch_size: int = 16) -> Self:
        """Load a ranker that `trl-akd ranker train` saved, onto the GPU if there is one.

        Raises:
            OSError: If the model does not exist.
        """
        model, tokenizer = load_classifier(path)
        return cls(model, tokenizer, batch_size=batch_size)

    def score(self, problem: str, programs: Sequence[str]) -> list[float]:
        """Return the probability of being correct for each program of a problem."""
        logits = self._classifier.predict([problem] * len(programs), [program_text(program) for program in programs])
        scores: list[float] = logits.softmax(-1)[:, self._correct].tolist()
        return scores


def rank_samples(
    ranker: Ranker, problems: Mapping[str, str], samples: Iterable[Mapping[str, Any]], *, keep: int | None = None
) -> list[dict[str, Any]]:
    """Order the samples of each problem, the best first.

    Args:
        ranker ([`Ranker`]):
            Scores the samples.
        problems (`Mapping[str, str]`):
            Problem texts by `task_id`.
        samples (`Iterable[Mapping]`):
            Rows with `task_id` and `solution`, as in the `samples.jsonl` of `trl-akd evaluate`.
        keep (`int`, *optional*):
            Maximum number of samples to keep per problem; by default all.

    Returns:
        `list[dict]`: The samples with `ranker_score`, in the order of their problems.

    Raises:
        ValueError: If a sample belongs to none of the problems.
    """
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in samples:
        if str(row["task_id"]) not in problems:
            raise ValueError(f"a sample is for problem {row['task_id']!r}, which is not in the benchmark.")
        by_task.setdefault(str(row["task_id"]), []).append(row)
    ranked = []
    for task_id, several in by_task.items():
        scores = ranker.score(problems[task_id], [row["solution"] for row in several])
        scored = [{**row, "ranker_score": score} for row, score in zip(several, scores, strict=True)]
        ranked += sorted(scored, key=lambda row: -row["ranker_score"])[:keep]
    return ranked


def ranker_rows(
    problems: Mapping[str, str], samples: Iterable[Mapping[str, Any]], verdicts: Iterable[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Join programs and the results of running them into rows `{id, problem, program, label}`.

    Programs that could not be run and samples without a verdict are dropped; equal programs of a problem count once.

    Args:
        problems (`Mapping[str, str]`):
            Problem texts by `task_id`.
        samples (`Iterable[Mapping]`):
            Lines of `samples.jsonl`, with `task_id`, `sample` and `solution`.
        verdicts (`Iterable[Mapping]`):
            Lines of `verdicts.jsonl`, with `task_id`, `sample` and `label`.

    Returns:
        `list[dict]`: `label` is `correct` or an error type of [`trl_akd.metrics.taxonomy`].

    Raises:
        ValueError: If a verdict has no problem or sample, or no row is left.
    """
    programs: dict[tuple[str, int], str] = {}
    counts: Counter[str] = Counter()
    for row in samples:
        task_id = str(row["task_id"])
        programs[task_id, row.get("sample", counts[task_id])] = row["solution"]
        counts[task_id] += 1
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in verdicts:
        task_id, label = str(row["task_id"]), row["label"]
        if "error_type" not in label:
            raise ValueError(f"the verdict on a sample of problem {task_id!r} has the label {label}; evaluate again.")
        error_type = label["error_type"]
        if (task_id, row["sample"]) not in programs or task_id not in problems:
            raise ValueError(
                f"there is a verdict on sample {row['sample']} of problem {task_id!r}, but no such "
                f"{'sample' if task_id in problems else 'problem'}; give the files of one evaluation."
            )
        if error_type == "infra_error":
            continue
        program = programs[task_id, row["sample"]]
        rows[task_id, program] = {
            "id": task_id,
            "problem": problems[task_id],
            "program": program,
            "label": ranker_label(error_type, "error_type"),
        }
    if not rows:
        raise ValueError("there is no verdict on any program; give the files of an evaluation that ran programs.")
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
    """Return a trainer of a ranker with cross-entropy over the classes.

    Evaluation reports `eval_accuracy` over the classes and `eval_ranking_accuracy`, the fraction of pairs of a correct
    and an incorrect program of the same problem in which the correct one has the higher score.

    Args:
        model (`PreTrainedModel`):
            A sequence classifier with as many classes as `labels` has; their names are set here.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; EOS is the padding token if it has none.
        args (`TrainingArguments`):
            Training arguments.
        train_rows (`Sequence[Mapping]`), eval_rows (`Sequence[Mapping]`, *optional*):
            Rows from [`ranker_rows`], of different problems.
        labels (`str`, *optional*, defaults to `"error_type"`):
            Kind of the classes.
        max_length (`int`, *optional*, defaults to `1024`):
            Maximum number of tokens per pair of problem and program; saved with the tokenizer.

    Raises:
        ValueError: If the model has a different number of classes, or all programs belong to one class.
    """
    names = RANKER_LABELS[labels]

    def pairs(rows: Sequence[Mapping[str, Any]]) -> list[LabeledPair]:
        return [
            (row["problem"], program_text(row["program"]), names.index(ranker_label(row["label"], labels)))
            for row in rows
        ]

    train, held_out = pairs(train_rows), pairs(eval_rows or ())
    if len({label for _, _, label in train}) < 2:
        raise ValueError("all programs to train on belong to one class; sample more, or from another model.")
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
