"""Training: check a recipe, create the trainer, train, save, evaluate and push."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..akd.akd_config import AKDConfig
from ..bench.runner import peak_memory_mb
from ..data.sources import load, split_off
from ..data.vocabulary import shared_vocabulary_size
from ..distributed import require_batch
from ..evaluation.benchmarks import Benchmark, load_benchmark
from ..generation.protocol import GenerationError
from ..hub.files import ADAPTER_CONFIG, CONFIG, CONSENT
from ..hub.model_card import RECIPE_FILE, git_commit
from ..hub.private import public_settings
from ..hub.upload import HubError
from ..ledger import replace_text
from ..metrics.verdicts import UntestedProgramsError
from ..report.writer import try_to_write_report
from .arguments import AKDScriptArguments, BenchmarkArguments
from .command import check_output
from .errors import SETUP_ERRORS, UserError, user_errors
from .methods import Method
from .models import read_model
from .push import push_model
from .recipes import Recipe

if TYPE_CHECKING:
    from ..akd.akd_trainer import AKDTrainer

__all__ = [
    "adapter_config",
    "check_merging",
    "distill",
    "find_benchmark",
    "find_checkpoint",
    "finish",
    "load_datasets",
    "load_tokenizers",
    "make_trainer",
    "set_provenance",
    "train_and_save",
    "warn_about_model",
]

logger = logging.getLogger(__name__)

_NOT_IN_RECIPES = re.compile(rf"hub_|push_|resume_from_checkpoint$|dry_run$|{CONSENT}$")
"""Names of fields that a recipe as it was run leaves out."""


def distill(
    method: Method,
    script_args: AKDScriptArguments,
    training_args: AKDConfig,
    model_args: ModelConfig,
    benchmark_args: BenchmarkArguments,
    *,
    recipe: Recipe | None = None,
) -> None:
    """Train, save and, if requested, evaluate and push to the Hub.

    Raises:
        UserError: If an argument is wrong, before training, or if the logits of a model are not finite, or programs
        cannot be tested, during training.
    """
    with user_errors((*SETUP_ERRORS, GenerationError)):
        method.check(script_args, training_args, model_args, benchmark_args)
        check_merging(script_args, training_args, model_args)
        checkpoint = find_checkpoint(training_args)
        benchmark = find_benchmark(benchmark_args, training_args)
        trainer = make_trainer(method, script_args, training_args, model_args)
        if benchmark is not None:
            _add_benchmark_callback(trainer, benchmark, benchmark_args)
    set_provenance(trainer, method.name, script_args, recipe)
    with user_errors((FloatingPointError, GenerationError, UntestedProgramsError)), _errors_of_settings(trainer):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    _require_step(trainer)
    _report(trainer, "train", {**result.metrics, **_peak_memory(trainer.args.device)})
    finish(trainer, merge_adapter=script_args.hub_merge_adapter)


class _Start(TrainerCallback):
    """Whether the optimizer, the scheduler and the dataloader of a training exist."""

    reached = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.reached = True


@contextmanager
def _errors_of_settings(trainer: "AKDTrainer") -> Iterator[None]:
    """Turn errors of `train` due to a wrong value or a missing package into `UserError`.

    These are errors before the first batch, and that of a `metric_for_best_model` that no evaluation reports.
    """
    start = _Start()
    trainer.add_callback(start)
    try:
        yield
    except (*SETUP_ERRORS, TypeError) as error:
        if start.reached:
            raise
        raise UserError(f"training cannot start: {error}") from error
    except KeyError as error:
        if "`metric_for_best_model`" not in str(error):
            raise
        raise UserError(str(error.args[0])) from error


def _warn_about_adapter_options(model_args: ModelConfig) -> None:
    """Warn of options of an adapter without `use_peft`, which a flag may turn off in a recipe with such options."""
    unused = [
        f"`{entry.name}`"
        for entry in fields(model_args)
        if entry.name.startswith(("lora_", "use_dora", "use_rslora"))
        and getattr(model_args, entry.name) != entry.default
    ]
    if unused and not model_args.use_peft:
        logger.warning("%s: no effect, since `use_peft` is off, so all weights are trained.", ", ".join(unused))


def check_merging(script_args: AKDScriptArguments, args: AKDConfig, model_args: ModelConfig) -> None:
    """Raise a ValueError if `hub_merge_adapter` is on without an adapter or without `push_to_hub`."""
    if script_args.hub_merge_adapter and not (args.push_to_hub and model_args.use_peft):
        raise ValueError(
            "`hub_merge_adapter` is on, which merges the adapter of `use_peft` for the upload of `push_to_hub`; turn "
            "on both, or leave it out."
        )


def set_provenance(trainer: "AKDTrainer", method: str, script_args: AKDScriptArguments, recipe: Recipe | None) -> None:
    """Set dataset, recipe and command for the model card, and write the recipe as it is run to the output folder.

    The recipe has no consent to running programs; the user gives it by the flag, which the command has.
    """
    trainer.provenance.dataset = script_args.dataset_name
    trainer.provenance.dataset_revision = script_args.dataset_revision
    if recipe is None:
        return
    trainer.provenance.recipe = None if recipe.path is None else str(recipe.path)
    consent = f" --{CONSENT}" if recipe.values.get(CONSENT) else ""
    launch = _launch_flags(trainer.accelerator)
    trainer.provenance.command = f"trl-akd {method} --config {RECIPE_FILE}{launch}{consent}"
    if trainer.is_world_process_zero():
        trainer.provenance.commit = (recipe.path and git_commit(recipe.path.parent)) or git_commit(Path.cwd())
        given = {name: value for name, value in recipe.values.items() if not _NOT_IN_RECIPES.match(name)}
        text = yaml.safe_dump(public_settings(given), sort_keys=False, allow_unicode=True)
        replace_text(Path(str(trainer.args.output_dir)) / RECIPE_FILE, f"# {trainer.provenance.command}\n\n{text}")


def _launch_flags(accelerator: Any) -> str:
    """Return the flags that start as many processes in the same way."""
    if accelerator.num_processes == 1:
        return ""
    plugin = accelerator.state.deepspeed_plugin
    name = "ddp" if plugin is None else f"zero{plugin.zero_stage}"
    if accelerator.distributed_type == DistributedType.FSDP:
        name = "fsdp2"
    cpu = "_cpu" if accelerator.device.type == "cpu" else ""
    return f" --accelerate_config {name}{cpu} --num_processes {accelerator.num_processes}"


def finish(trainer: "AKDTrainer", *, is_trained: bool = True, merge_adapter: bool = False) -> None:
    """Save, evaluate and push the student, with its adapter merged if `merge_adapter`, and write the report.

    A student that was not trained is saved without a model card and a report, and is not pushed.

    Raises:
        UserError: If the upload, or a served teacher, fails; the student is in the output folder.
    """
    trainer.save_model(_internal_call=True)  # otherwise the model would also be pushed here
    if trainer.eval_dataset is not None:
        with user_errors((GenerationError, UntestedProgramsError)):
            _report(trainer, "eval", trainer.evaluate())
    trainer.save_state()
    if is_trained:
        trainer.create_model_card()
        if trainer.is_world_process_zero() and (report := try_to_write_report(str(trainer.args.output_dir))):
            print(f"Report: {report}")
        if trainer.args.push_to_hub:
            with user_errors((HubError, ValueError)):
                _push(trainer, merge_adapter)
    trainer.end()


def _push(trainer: "AKDTrainer", merge_adapter: bool) -> None:
    if not merge_adapter:
        trainer.push_to_hub()
    elif trainer.is_world_process_zero():
        args = trainer.args
        unset_hf_deepspeed_config()  # otherwise ZeRO-3 would shard the merged model over processes that do not load it
        push_model(
            Path(str(args.output_dir)),
            str(trainer.hub_model_id),
            merge_adapter=True,
            private=args.hub_private_repo,
            revision=args.hub_revision,
            token=args.hub_token,
        )


def make_trainer(
    method: Method,
    script_args: AKDScriptArguments,
    training_args: AKDConfig,
    model_args: ModelConfig,
    **kwargs: Any,
) -> Any:
    """Return the method's trainer with the models, tokenizers and data of the arguments.

    `kwargs` are further arguments of its constructor.

    Raises:
        ValueError: If a model or the data cannot be used, or `output_dir` is one of them.
    """
    check_output(
        "output_dir",
        cast(str, training_args.output_dir),
        model_name_or_path=model_args.model_name_or_path,
        teacher_model_name_or_path=training_args.teacher_model_name_or_path,
        teacher_cache=training_args.teacher_cache,
        dataset_name=script_args.dataset_name,
    )
    _warn_about_adapter_options(model_args)
    tokenizer, teacher_tokenizer = load_tokenizers(method, model_args, training_args)
    train_dataset, eval_dataset = load_datasets(script_args, training_args)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **cast(dict[str, Any], training_args.model_init_kwargs or {}),
    }
    return method.trainer_class()(
        cast(str, model_args.model_name_or_path),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        peft_config=adapter_config(model_args),
        quantization_config=get_quantization_config(model_args),
        **kwargs,
    )


def adapter_config(model_args: ModelConfig) -> Any:
    """Return the configuration of the adapter to train, or `None` without one."""
    if isinstance(model_args.lora_target_modules, str) and model_args.lora_target_modules.isidentifier():
        # TRL extracts a single name from its list, and PEFT would match it as a pattern against whole paths.
        model_args.lora_target_modules = [model_args.lora_target_modules]
    return get_peft_config(model_args)


def _add_benchmark_callback(trainer: "AKDTrainer", benchmark: "Benchmark", args: BenchmarkArguments) -> None:
    from ..evaluation.callback import PassAtKCallback

    callback = PassAtKCallback(
        trainer,
        benchmark,
        prompt_style=args.eval_prompt_style,
        prompt_template=trainer.args.prompt_template,
        max_new_tokens=args.eval_max_new_tokens,
        allow_code_execution=args.allow_code_execution or None,
        log_completions=args.eval_log_completions,
    )
    trainer.add_callback(callback)


def _peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this process in MiB: allocated on its GPU, or resident on a CPU."""
    if device.type == "cuda":
        return {"train_peak_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    return {"train_peak_memory_mib": float(peak_memory_mb())} if device.type == "cpu" else {}


def _report(trainer: Trainer, split: str, metrics: dict[str, float]) -> None:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def train_and_save(
    trainer: Trainer, checkpoint: str | None, evaluate: Callable[[], dict[str, float]] | None = None
) -> None:
    """Train from a checkpoint, if there is one, save the model, and log and save the metrics of `evaluate`.

    Raises:
        ValueError: If the rows fill no batch.
        UserError: If no step was trained.
    """
    require_batch(trainer.get_train_dataloader(), trainer.args)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    _require_step(trainer)
    trainer.log_metrics("train", result.metrics)
    trainer.save_model()
    if evaluate is not None:
        _report(trainer, "eval", evaluate())


def _require_step(trainer: Trainer) -> None:
    """Raise a `UserError` if training ended before its first step, so that an unchanged model is not saved."""
    if trainer.state.global_step == 0:
        raise UserError(
            f"no step was trained with `max_steps` {trainer.args.max_steps} and `num_train_epochs` "
            f"{trainer.args.num_train_epochs}, so nothing is saved; raise them, and check the training data."
        )


def find_checkpoint(args: TrainingArguments) -> str | None:
    """Return the checkpoint from which training continues, or `None` for a new run.

    A new run that replaces a model causes a warning.

    Raises:
        ValueError: If `resume_from_checkpoint` is not a checkpoint of the same method and β strategy, or if a new run
            would overwrite the checkpoints of another.
    """
    requested = args.resume_from_checkpoint
    output_dir = cast(str, args.output_dir)
    last = _last_checkpoint(Path(output_dir))
    if requested is None or str(requested).lower() == "false":
        if last is not None:
            raise ValueError(
                f"`output_dir` {output_dir!r} has checkpoints of an earlier run, which this one would replace; set "
                "`resume_from_checkpoint: true` to continue that run, or choose another `output_dir`."
            )
        warn_about_model(args)
        return None
    if str(requested).lower() == "true":
        if last is None:
            raise ValueError(
                f"`resume_from_checkpoint` is true, but `output_dir` {output_dir!r} has no checkpoint; leave it out "
                "to start a new run, or give the path of a checkpoint."
            )
        requested = last
    if not (Path(requested) / TRAINER_STATE_NAME).is_file():
        raise ValueError(
            f"`resume_from_checkpoint` is {requested!r}, which is not a checkpoint folder (it has no "
            "trainer_state.json); give the path of a folder such as checkpoint-500, or true for the last one in "
            "`output_dir`."
        )
    if isinstance(args, AKDConfig):
        args.check_checkpoint(requested)
    return str(requested)


def warn_about_model(args: TrainingArguments) -> None:
    """Warn that a new run replaces the model that an earlier one saved."""
    folder = Path(str(args.output_dir))
    if args.process_index == 0 and any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG)):
        logger.warning(
            "`output_dir` %r has a trained model, which this run replaces at its end; choose another folder to keep "
            "it.",
            args.output_dir,
        )


def _last_checkpoint(output_dir: Path) -> str | None:
    """Return the last complete checkpoint, with `trainer_state.json`, which transformers writes last."""
    whole = {path.parent for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")}
    steps = [path for path in whole if path.name.rpartition("-")[2].isdigit()]
    return str(max(steps, key=lambda path: int(path.name.rpartition("-")[2]))) if steps else None


def find_benchmark(benchmark_args: BenchmarkArguments, args: AKDConfig) -> Benchmark | None:
    """Return the benchmark to run at every evaluation, or `None` if there is none.

    Raises:
        FileNotFoundError: If the benchmark does not exist.
        ValueError: If the run never evaluates, selects the best model by a benchmark that it does not run, or sets an
            option of a benchmark without one.
    """
    name = benchmark_args.eval_benchmark
    if name is None:
        if "pass@" in (args.metric_for_best_model or ""):
            raise ValueError(
                f"`metric_for_best_model` is {args.metric_for_best_model!r}, but no benchmark is run; set "
                "`eval_benchmark`."
            )
        for entry in fields(benchmark_args):
            value = getattr(benchmark_args, entry.name)
            if entry.name.startswith("eval_") and value != entry.default:
                raise ValueError(
                    f"`{entry.name}` is {value!r}, which has no effect without `eval_benchmark`; set that, or leave "
                    "it out."
                )
        return None
    if args.eval_strategy == "no":
        raise ValueError(f"`eval_benchmark` is {name!r}, but `eval_strategy` is 'no'; set it to 'steps' or 'epoch'.")
    return load_benchmark(name, benchmark_args.eval_benchmark_path, limit=benchmark_args.eval_benchmark_limit)


def load_datasets(script_args: AKDScriptArguments, args: AKDConfig) -> tuple[Dataset, Dataset | None]:
    """Return the training rows and, if `eval_strategy` is not `"no"`, the evaluation rows.

    Raises:
        FileNotFoundError: If the dataset does not exist.
        ValueError: If `dataset_name` is not set or a split is missing.
    """
    name = script_args.dataset_name
    if name is None:
        raise ValueError("`dataset_name` is not set; give a dataset on the Hub or the path of a file.")

    def read(split: str) -> Dataset:
        return load(name, config=script_args.dataset_config, split=split, revision=script_args.dataset_revision)

    train, test = read(script_args.dataset_train_split), None
    evaluates = args.eval_strategy != "no"
    if args.eval_on_start and not evaluates:
        raise ValueError("`eval_on_start` is on, but `eval_strategy` is 'no'; set it to 'steps' or 'epoch'.")
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
    method: Method, model_args: ModelConfig, args: AKDConfig
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None]:
    """Return the tokenizers of student and teacher, which share a vocabulary, or `None` without a teacher here.

    If the student is an adapter, its vocabulary is that of `method.base_model`.

    Raises:
        ValueError: If the student is not set, if a tokenizer or a model's configuration cannot be read, or if the
            vocabularies differ.
    """
    student, teacher = model_args.model_name_or_path, args.teacher_model_name_or_path
    if student is None:
        raise ValueError("`model_name_or_path` is not set; set the student in a recipe (`--config`) or by a flag.")
    source = {"revision": model_args.model_revision, "trust_remote_code": args.trust_remote_code}

    def base_of_student() -> tuple[str, dict[str, Any]]:
        base, revision = method.base_model(student, model_args.model_revision)
        return base, {**source, "revision": revision}

    student_tokenizer, student_size = _vocabulary("model_name_or_path", student, source, base_of_student)
    if teacher is None or args.teacher_cache is not None or args.teacher_base_url is not None:
        return student_tokenizer, None  # a served teacher may have another name on the server
    teacher_tokenizer, teacher_size = _vocabulary("teacher_model_name_or_path", teacher, args.teacher_source)
    shared_vocabulary_size(student_tokenizer, teacher_tokenizer, student_size, teacher_size)
    return student_tokenizer, teacher_tokenizer


def _vocabulary(
    field: str,
    name: str,
    source: Mapping[str, Any],
    base_model: Callable[[], tuple[str, Mapping[str, Any]]] | None = None,
) -> tuple[PreTrainedTokenizerBase, int]:
    """Return a model's tokenizer and the number of rows of its LM head."""
    tokenizer, config = read_model(field, name, source, base_model)
    return tokenizer, config.get_text_config().vocab_size
