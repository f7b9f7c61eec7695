"""Check that student and teacher share a vocabulary prefix, so that their logits can be compared token by token.

The data is tokenized by the student's tokenizer alone. `shared_vocabulary_size` checks that the ids below its result
stand for the same tokens in both models; `require_shared_tokens` checks that a tokenized dataset stays below it. The
trainer keeps sampled text below it.
"""

import json
import warnings
from hashlib import blake2b
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

__all__ = ["require_shared_tokens", "shared_vocabulary_size", "vocabulary_digest"]

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
    """Return the number of leading ids that stand for the same tokens in both models.

    If both tokenizers end at the same id, the LM heads may still differ in padding rows (Qwen2.5-Coder: 151,936 and
    152,064); the smaller number of rows is shared. Otherwise the prefix ends with the shorter tokenizer, since the
    further rows of the other model stand for tokens. Warns if EOS or BOS differ: the logits remain comparable, but the
    models expect texts to begin or end differently.

    Args:
        student_tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the student and of the data.
        teacher_tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the teacher.
        student_size (`int`):
            Number of rows of the student's LM head.
        teacher_size (`int`):
            Number of rows of the teacher's LM head.

    Raises:
        ValueError: If an id within the prefix stands for different tokens, or the tokenizers split a text differently
            despite equal vocabularies.
    """
    student, teacher = _tokens_by_id(student_tokenizer), _tokens_by_id(teacher_tokenizer)
    lengths = max(student) + 1, max(teacher) + 1
    shared = min(student_size, teacher_size)
    if lengths[0] != lengths[1]:
        shared = min(shared, *lengths)
    _require_equal_tokens(student, teacher, shared)
    _require_equal_behavior(student_tokenizer, teacher_tokenizer)
    _warn_of_special_tokens(student_tokenizer, teacher_tokenizer)
    return shared


def require_shared_tokens(
    dataset: Dataset, shared_size: int, tokenizer: PreTrainedTokenizerBase, *, name: str = "train"
) -> None:
    """Raise a ValueError if a tokenized dataset contains an id that student and teacher do not share.

    Raises:
        ValueError: If an id is `shared_size` or more; the message names it and its token.
    """
    batches: Any = dataset.select_columns("input_ids").with_format("arrow").iter(batch_size=1000)
    highest = max((pc.max(pc.list_flatten(batch["input_ids"])).as_py() or 0 for batch in batches), default=0)
    if highest >= shared_size:
        raise ValueError(
            f"The {name} dataset contains the token {tokenizer.convert_ids_to_tokens(highest)!r} with id {highest}, "
            f"but student and teacher share only the ids below {shared_size}; drop the rows that contain it or choose "
            "a teacher whose vocabulary has it."
        )


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase, size: int) -> str:
    """Return a digest of the tokens with ids below `size`, and of how a tokenizer splits a text into them."""
    tokens = sorted((index, token) for index, token in _tokens_by_id(tokenizer).items() if index < size)
    facts = [tokens, _probe_ids(tokenizer)]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _probe_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a test text, none if the tokenizer has no token for a part of it, not even an unknown one."""
    try:
        ids: list[int] = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    except Exception as error:
        if type(error) is not Exception:  # that of the library `tokenizers`
            raise
        return []
    return ids


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


def _require_equal_behavior(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    ids = [_probe_ids(tokenizer) for tokenizer in (student, teacher)]
    if ids[0] == ids[1]:
        return
    student_tokens, teacher_tokens = (
        tokenizer.convert_ids_to_tokens(tokens) for tokenizer, tokens in zip((student, teacher), ids, strict=True)
    )
    first = next((i for i, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1]), min(map(len, ids)))
    raise ValueError(
        "Student and teacher have the same tokens but split the same text differently (merges, normalizer or "
        f"pre-tokenizer differ): from token {first} of a test text, the student reads "
        f"{student_tokens[first : first + 3]}, the teacher {teacher_tokens[first : first + 3]}; choose a teacher of "
        "the student's tokenizer family."
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
