"""A small model that tells correct programs from others by reading them, in the manner of CodeRanker.

Inala et al., [Fault-Aware Neural Code Rankers](https://huggingface.co/papers/2206.03865): a sequence classifier reads
problem and program and predicts how running it would end; programs are ranked by the probability that it gives to
"correct". The classes here are the error types of this package's own executor (`trl_akd.metrics.taxonomy`), or two or
three coarser ones as in the paper. Its classes that name the line of the error are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias

from transformers import PreTrainedTokenizerBase

from ..metrics.taxonomy import CAUSES, OWN_CAUSES
from ..text_pairs import PairReader, load_reader

__all__ = ["CORRECT", "RANKER_LABELS", "LabelKind", "Ranker", "program_text", "rank_samples", "ranker_label"]

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
"""The classes of each kind; the first is that of correct programs."""


def ranker_label(error_type: str | None, kind: LabelKind) -> str:
    """Return the class of a program that ended in an error type, or in none.

    Args:
        error_type (`str`, *optional*):
            That of [`trl_akd.metrics.taxonomy.ErrorLabel`].
        kind (`str`):
            `"binary"`, `"ternary"` or `"error_type"`.

    Raises:
        ValueError: If there is no such error type.

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
    """Return a program as a ranker reads it behind its problem."""
    return f"\n\n# Program\n{program}"


class Ranker:
    """Score programs by the probability of being correct.

    Args:
        model (`PreTrainedModel`):
            A sequence classifier with a class `correct`, on its device.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer, with a padding token; its `model_max_length` is the most tokens of a pair.
        batch_size (`int`, *optional*, defaults to `16`):
            Programs to read at a time.

    Raises:
        ValueError: If the model has no such class, or `batch_size` is below 1.

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
                f"the model's classes are {', '.join(model.config.label2id)}, without {CORRECT!r}; train a ranker "
                "with `trl-akd ranker train`."
            )
        self._reader = PairReader(model, tokenizer, batch_size)
        self._correct = int(model.config.label2id[CORRECT])

    @classmethod
    def from_pretrained(cls, path: str, *, batch_size: int = 16) -> Self:
        """Load a ranker that `trl-akd ranker train` saved, onto the GPU if there is one.

        Raises:
            OSError: If there is no such model.
        """
        model, tokenizer = load_reader(path)
        return cls(model, tokenizer, batch_size=batch_size)

    def score(self, problem: str, programs: Sequence[str]) -> list[float]:
        """Return the probability of being correct for each program of a problem."""
        logits = self._reader.read([problem] * len(programs), [program_text(program) for program in programs])
        scores: list[float] = logits.softmax(-1)[:, self._correct].tolist()
        return scores


def rank_samples(
    ranker: Ranker, problems: Mapping[str, str], samples: Iterable[Mapping[str, Any]], *, keep: int | None = None
) -> list[dict[str, Any]]:
    """Order the samples of each problem, the best first.

    Args:
        ranker ([`Ranker`]):
            Who scores them.
        problems (`Mapping[str, str]`):
            Texts by `task_id`.
        samples (`Iterable[Mapping]`):
            Rows with `task_id` and `solution`, as in the `samples.jsonl` of `trl-akd evaluate`.
        keep (`int`, *optional*):
            Keep the best so many of a problem.

    Returns:
        `list[dict]`: The samples with `ranker_score`, in the order of their problems.

    Raises:
        ValueError: If a sample is for no problem at hand.
    """
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in samples:
        if str(row["task_id"]) not in problems:
            raise ValueError(f"a sample is for problem {row['task_id']!r}, which the benchmark does not have.")
        by_task.setdefault(str(row["task_id"]), []).append(row)
    ranked = []
    for task_id, several in by_task.items():
        scores = ranker.score(problems[task_id], [row["solution"] for row in several])
        scored = [{**row, "ranker_score": score} for row, score in zip(several, scores, strict=True)]
        ranked += sorted(scored, key=lambda row: -row["ranker_score"])[:keep]
    return ranked
