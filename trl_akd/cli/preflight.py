"""What a run reads before any model is loaded, so that wrong names and paths end it at once."""

from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import ModelConfig

from ..akd.akd_config import AKDConfig
from ..codeplan.codeplan_config import CodePLANConfig
from ..codeplan.student import adapter_of, base_of
from ..data.sources import load, split_off
from ..data.vocabulary import shared_vocabulary_size
from ..evaluation.benchmarks import Benchmark, load_benchmark
from .arguments import AKDScriptArguments, BenchmarkArguments

__all__ = ["find_benchmark", "find_checkpoint", "load_datasets", "load_tokenizers"]


def find_checkpoint(args: AKDConfig) -> str | None:
    """Return the checkpoint that training continues from, or `None` for a new run.

    Raises:
        ValueError: If `resume_from_checkpoint` leads to no checkpoint of AKD with the same β strategy, or if a new run
            would write over the checkpoints of another.
    """
    wanted = args.resume_from_checkpoint
    output_dir = cast(str, args.output_dir)
    last = _last_checkpoint(Path(output_dir))
    if wanted is None or str(wanted).lower() == "false":
        if last is not None:
            raise ValueError(
                f"`output_dir` {output_dir!r} holds checkpoints of an earlier run, which this one would replace; set "
                "`resume_from_checkpoint: true` to continue that run, or choose another `output_dir`."
            )
        return None
    if str(wanted).lower() == "true":
        if last is None:
            raise ValueError(
                f"`resume_from_checkpoint` is true, but `output_dir` {output_dir!r} holds no checkpoint; leave it out "
                "to start anew, or give the path of a checkpoint."
            )
        wanted = last
    if not (Path(wanted) / TRAINER_STATE_NAME).is_file():
        raise ValueError(
            f"`resume_from_checkpoint` is {wanted!r}, which is no checkpoint folder (it has no trainer_state.json); "
            "give the path of a folder such as checkpoint-500, or true for the last one in `output_dir`."
        )
    args.check_checkpoint(wanted)
    return str(wanted)


def _last_checkpoint(output_dir: Path) -> str | None:
    """Return the last whole checkpoint; `trainer_state.json` is what transformers writes last."""
    whole = {path.parent for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")}
    steps = [path for path in whole if path.name.rpartition("-")[2].isdigit()]
    return str(max(steps, key=lambda path: int(path.name.rpartition("-")[2]))) if steps else None


def find_benchmark(benchmark_args: BenchmarkArguments, args: AKDConfig) -> Benchmark | None:
    """Return the benchmark that judges the student meanwhile, or `None` where none is asked for.

    Raises:
        FileNotFoundError: If there is no such benchmark.
        ValueError: If the run never evaluates, or would choose its best model by a benchmark that it does not run.
    """
    name = benchmark_args.eval_benchmark
    if name is None:
        if "pass@" in (args.metric_for_best_model or ""):
            raise ValueError(
                f"`metric_for_best_model` is {args.metric_for_best_model!r}, but no benchmark is run; set "
                "`eval_benchmark`."
            )
        return None
    if args.eval_strategy == "no":
        raise ValueError(f"`eval_benchmark` is {name!r}, but `eval_strategy` is 'no'; set it to 'steps' or 'epoch'.")
    return load_benchmark(name, benchmark_args.eval_benchmark_path, limit=benchmark_args.eval_benchmark_limit)


def load_datasets(script_args: AKDScriptArguments, args: AKDConfig) -> tuple[Dataset, Dataset | None]:
    """Return the rows to train on and, where `eval_strategy` asks for it, those to evaluate on.

    Raises:
        FileNotFoundError: If there is no such dataset.
        ValueError: If none is named or a split is missing.
    """
    name = script_args.dataset_name
    if name is None:
        raise ValueError("`dataset_name` is not set; give a dataset on the Hub or the path of a file.")

    def read(split: str) -> Dataset:
        return load(name, config=script_args.dataset_config, split=split, revision=script_args.dataset_revision)

    train, test = read(script_args.dataset_train_split), None
    evaluates = args.eval_strategy != "no"
    if script_args.test_size is not None:
        size = script_args.test_size
        train, test = split_off(train, size if size < 1 else int(size), args.seed)
    elif evaluates:
        try:
            test = read(script_args.dataset_test_split)
        except ValueError as error:
            raise ValueError(
                f"`eval_strategy` is {args.eval_strategy.value!r}, but {name!r} gives no split "
                f"{script_args.dataset_test_split!r} ({error}); set `test_size` or `dataset_test_split`."
            ) from error
    return train, test if evaluates else None


def load_tokenizers(
    model_args: ModelConfig, args: AKDConfig
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None]:
    """Return the tokenizers of student and teacher, which share a vocabulary; the second is `None` without a teacher.

    Where CodePLAN goes on with an adapter, the student's vocabulary is that of the adapter's model.

    Raises:
        ValueError: If the student is not named, if a tokenizer or a model's configuration cannot be read, or if the
            vocabularies differ.
    """
    student, teacher = model_args.model_name_or_path, args.teacher_model_name_or_path
    if student is None:
        raise ValueError("`model_name_or_path` is not set; name the student, in a recipe (`--config`) or by a flag.")
    student_tokenizer, student_size = _vocabulary(
        "model_name_or_path",
        student,
        model_args.model_revision,
        args.trust_remote_code,
        takes_adapter=isinstance(args, CodePLANConfig),
    )
    if teacher is None:
        return student_tokenizer, None
    teacher_tokenizer, teacher_size = _vocabulary(
        "teacher_model_name_or_path", teacher, args.teacher_model_revision, args.trust_remote_code
    )
    shared_vocabulary_size(student_tokenizer, teacher_tokenizer, student_size, teacher_size)
    return student_tokenizer, teacher_tokenizer


def _vocabulary(
    field: str, name: str, revision: str, trust_remote_code: bool, *, takes_adapter: bool = False
) -> tuple[PreTrainedTokenizerBase, int]:
    """Return a model's tokenizer and the number of rows of its LM head."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        adapter = adapter_of(name, revision) if takes_adapter else None
        base, base_revision = (name, revision) if adapter is None else base_of(adapter)
        config = AutoConfig.from_pretrained(base, revision=base_revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`{field}` is {name!r}, whose tokenizer and configuration cannot be read; check the name, the "
            f"folder or the connection ({str(error).splitlines()[0]})."
        ) from error
    return tokenizer, config.get_text_config().vocab_size
