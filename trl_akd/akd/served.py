"""Connection of a trainer to a teacher behind a server, and the checks before training."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow.compute as pc
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ..data.tokenization import PROMPT_COLUMN
from ..data.vocabulary import shared_vocabulary_size
from ..distributed import run_on_main_and_broadcast
from ..generation.loading import find_base_model
from ..teachers import ServedTeacher
from ..teachers.served import read_usage, usage_file
from .akd_config import AKDConfig
from .model_utils import has_vocabulary

_PROGRAM = "def double(x):\n    return 2 * x\n"

__all__ = ["connect_teacher", "longest_text", "served_vocabulary_size"]

logger = logging.getLogger(__name__)

_NAMES = {
    "base_url": "teacher_base_url",
    "model": "teacher_model_name_or_path",
    "top_k": "teacher_top_k",
    "api_key": "teacher_api_key_env",
    "concurrency": "teacher_concurrency",
    "timeout": "teacher_request_timeout",
    "max_retries": "teacher_max_retries",
    "max_requests": "teacher_max_requests",
    "max_tokens": "teacher_max_tokens",
}


def connect_teacher(
    args: AKDConfig, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, accelerator: Accelerator
) -> ServedTeacher:
    """Return the teacher behind the server of a configuration, without a request. All processes must call this.

    What remains of the limits on requests and tokens, after earlier starts with the same output folder, is divided
    evenly among the processes.

    Raises:
        ValueError: If the environment has no API key of the given name, less than one request or token for each
            process remains of a limit, or an argument is outside its range.
    """
    assert args.teacher_base_url is not None and args.teacher_model_name_or_path is not None
    default = type(args).teacher_api_key_env
    if args.teacher_api_key_env != default and args.teacher_api_key_env not in os.environ:
        raise ValueError(
            f"`teacher_api_key_env` is {args.teacher_api_key_env!r}, but no environment variable has that name; set "
            f"it to the key of {args.teacher_base_url}."
        )
    folder = Path(str(args.output_dir))
    earlier = run_on_main_and_broadcast(accelerator, lambda: read_usage(folder))
    ranks = accelerator.num_processes
    return ServedTeacher(
        args.teacher_base_url,
        args.teacher_model_name_or_path,
        vocabulary_size=vocabulary_size,
        top_k=args.teacher_top_k,
        tokenizer=tokenizer,
        api_key=os.environ.get(args.teacher_api_key_env, ""),
        concurrency=args.teacher_concurrency,
        timeout=args.teacher_request_timeout,
        max_retries=args.teacher_max_retries,
        max_requests=_share(args, "teacher_max_requests", earlier.requests, ranks),
        max_tokens=_share(args, "teacher_max_tokens", earlier.tokens, ranks),
        usage_file=usage_file(folder, accelerator.process_index),
        names=_NAMES,
    )


def _share(args: AKDConfig, name: str, used: int, ranks: int) -> int | None:
    limit: int | None = getattr(args, name)
    if limit is None:
        return None
    if limit - used < ranks:
        processes = f"one for each of the {ranks} processes" if ranks > 1 else "one"
        earlier = f", of which earlier starts with the same `output_dir` used {used:,}" if used else ""
        raise ValueError(
            f"`{name}` is {limit:,}{earlier}, so less than {processes} remains; raise it, or leave it out."
        )
    return (limit - used) // ranks


def served_vocabulary_size(
    args: AKDConfig,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    student_size: int,
) -> int:
    """Return the number of leading token ids that the student and a served teacher share.

    A teacher whose tokenizer and configuration cannot be loaded by its name on the server is assumed to have those of
    the student, with a warning.

    Raises:
        ValueError: If the tokenizers differ.
    """
    name, teacher_size = args.teacher_model_name_or_path, student_size
    try:
        teacher_tokenizer = teacher_tokenizer or AutoTokenizer.from_pretrained(name, **args.teacher_source)
        base, source = find_base_model(name, args.teacher_source) or (name, args.teacher_source)
        teacher_size = AutoConfig.from_pretrained(base, **source).get_text_config().vocab_size
    except (OSError, ValueError):
        pass
    if teacher_tokenizer is None or not has_vocabulary(teacher_tokenizer):
        logger.warning(
            "The tokenizer of the served teacher %r cannot be loaded, so it is assumed to be the student's; the texts "
            "of its tokens are compared in each response. To compare the vocabularies before training, pass "
            "`teacher_tokenizer`.",
            name,
        )
        return student_size
    return shared_vocabulary_size(tokenizer, teacher_tokenizer, student_size, teacher_size)


def longest_text(datasets: Mapping[str, Dataset], args: AKDConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a text as long as the longest to be scored: of the tokenized data, or generated by the student.

    Without tokenized data, it is a short program.
    """
    longest: list[int] = tokenizer(_PROGRAM)["input_ids"]
    length = len(longest)
    for dataset in datasets.values():
        for batch in dataset.with_format("arrow").iter(batch_size=1000):
            columns = {name: batch[name] for name in ("input_ids", PROMPT_COLUMN) if name in batch.column_names}
            sizes = {name: pc.list_value_length(column).to_numpy() for name, column in columns.items()}
            needed = {name: int(lengths.max()) for name, lengths in sizes.items()}
            if "seq_lengths" in batch.column_names:
                needed["input_ids"] = pc.max(pc.list_flatten(batch["seq_lengths"])).as_py()
            if needed.get(PROMPT_COLUMN):
                needed[PROMPT_COLUMN] += args.max_new_tokens
            name = max(needed, key=needed.__getitem__)
            if needed[name] > length:
                longest, length = columns[name][int(sizes[name].argmax())].as_py(), needed[name]
    return (longest * (length // max(len(longest), 1) + 1))[:length]
