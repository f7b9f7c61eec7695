"""Proof that student and teacher share a vocabulary prefix, so that their logits may be compared token by token.

The tokens of the data come from the student's tokenizer alone. `shared_vocabulary_size` proves that the ids below its
result mean the same to both models; `require_shared_tokens` proves that a tokenised dataset stays below it. Text that
the student samples is the trainer's to keep below it.
"""

import warnings
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

__all__ = ["require_shared_tokens", "shared_vocabulary_size"]

_PROBE = (
    "def naïve_sum(xs: list[int]) -> int:\n"
    '    """Σ of 12345 … 67.89e-3, 日本語 🙂 Ünïcode."""\n'
    "\ttotal  =   0\r\n\n\n"
    "    for i, x in enumerate(xs[::-1]):\n"
    "        total += x**2 if x != 0xFF else ~x  # don't STOP\n"
    "    return {'total': total}['total']  \n"
)


def shared_vocabulary_size(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_size: int,
    teacher_size: int,
) -> int:
    """Return how many of the first ids mean the same to both models.

    Where both tokenizers end at the same id, the models may still differ in padding rows (Qwen2.5-Coder: 151,936
    against 152,064): the smaller model's rows are shared. Where one tokenizer goes on, the prefix ends with the
    shorter one, since the other model's rows beyond have a meaning. Warns where EOS or BOS differ: the logits remain
    comparable, but the models expect texts to begin or end differently.

    Args:
        student_tokenizer (`PreTrainedTokenizerBase`): tokenizer of the student, which tokenises the data.
        teacher_tokenizer (`PreTrainedTokenizerBase`): tokenizer of the teacher.
        student_size (`int`): rows of the student's LM head.
        teacher_size (`int`): rows of the teacher's LM head.

    Raises:
        ValueError: If an id within the prefix stands for different tokens, or the tokenizers cut a text differently in
            spite of equal vocabularies.
    """
    student, teacher = _tokens_by_id(student_tokenizer), _tokens_by_id(teacher_tokenizer)
    lengths = max(student) + 1, max(teacher) + 1
    shared = min(student_size, teacher_size)
    if lengths[0] != lengths[1]:
        shared = min(shared, *lengths)
    _require_equal_tokens(student, teacher, shared)
    _require_equal_behaviour(student_tokenizer, teacher_tokenizer)
    _warn_of_special_tokens(student_tokenizer, teacher_tokenizer)
    return shared


def require_shared_tokens(
    dataset: Dataset, shared_size: int, tokenizer: PreTrainedTokenizerBase, *, name: str = "train"
) -> None:
    """Check that a tokenised dataset holds no id that one of the models lacks or reads differently.

    Args:
        dataset (`Dataset`): rows with `input_ids`.
        shared_size (`int`): what `shared_vocabulary_size` returned.
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer, to name the token.
        name (`str`, *optional*, defaults to `"train"`): what to call the dataset in messages.

    Raises:
        ValueError: If an id is `shared_size` or more; the message names it and its token.
    """
    batches: Any = dataset.select_columns("input_ids").with_format("arrow").iter(batch_size=1000)
    highest = max((pc.max(pc.list_flatten(batch["input_ids"])).as_py() or 0 for batch in batches), default=0)
    if highest >= shared_size:
        raise ValueError(
            f"The {name} dataset holds the token {tokenizer.convert_ids_to_tokens(highest)!r} with id {highest}, but "
            f"student and teacher share only the ids below {shared_size}; drop the rows that hold it or choose a "
            "teacher that knows it."
        )


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _require_equal_tokens(student: dict[int, str], teacher: dict[int, str], shared: int) -> None:
    for index in range(shared):
        if student.get(index) != teacher.get(index):
            raise ValueError(
                f"Student and teacher have different vocabularies: id {index} is {_describe(student.get(index))} for "
                f"the student but {_describe(teacher.get(index))} for the teacher; choose a teacher of the student's "
                "tokenizer family."
            )


def _describe(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def _require_equal_behaviour(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    ids = [tokenizer(_PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (student, teacher)]
    if ids[0] == ids[1]:
        return
    student_tokens, teacher_tokens = (
        tokenizer.convert_ids_to_tokens(tokens) for tokenizer, tokens in zip((student, teacher), ids, strict=True)
    )
    first = next((i for i, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1]), min(map(len, ids)))
    raise ValueError(
        "Student and teacher list the same tokens but cut the same text differently (other merges, normaliser or "
        f"pre-tokenizer): from token {first} of a probe on, the student reads {student_tokens[first : first + 3]}, "
        f"the teacher {teacher_tokens[first : first + 3]}; choose a teacher of the student's tokenizer family."
    )


def _warn_of_special_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    for name in ("eos_token", "bos_token"):
        if getattr(student, f"{name}_id") != getattr(teacher, f"{name}_id"):
            warnings.warn(
                f"{name} is {getattr(student, name)!r} for the student but {getattr(teacher, name)!r} for the "
                "teacher, as between a base and an instruction-tuned model, so the teacher may not expect texts to "
                "begin or end as the student's do; watch the lengths that the student generates.",
                stacklevel=3,
            )
