"""What the distilling methods' commands do once their arguments are read: train, save, evaluate, push."""

from typing import TYPE_CHECKING, Any, TypeVar, cast

from .arguments import AKDScriptArguments, BenchmarkArguments
from .errors import user_errors

if TYPE_CHECKING:
    from trl import ModelConfig

    from ..akd.akd_config import AKDConfig
    from ..akd.akd_trainer import AKDTrainer
    from ..evaluation.benchmarks import Benchmark

__all__ = ["distil", "finish", "make_trainer"]

Trainer = TypeVar("Trainer", bound="AKDTrainer")


def distil(
    trainer_class: "type[AKDTrainer]",
    script_args: AKDScriptArguments,
    training_args: "AKDConfig",
    model_args: "ModelConfig",
    benchmark_args: BenchmarkArguments,
    recipe: str | None = None,
) -> None:
    """Train, save, and, where the arguments ask for it, evaluate and push to the Hub.

    Args:
        trainer_class (`type[AKDTrainer]`):
            The method's trainer.
        script_args (`AKDScriptArguments`):
            Data.
        training_args (`AKDConfig`):
            Method and training.
        model_args (`ModelConfig`):
            The student.
        benchmark_args (`BenchmarkArguments`):
            What judges it meanwhile.
        recipe (`str`, *optional*):
            Name of the recipe, for the model card.

    Raises:
        UserError: If something is wrong with the arguments, before training, or with a model's logits, during it.
    """
    from .preflight import find_benchmark, find_checkpoint

    with user_errors():
        checkpoint = find_checkpoint(training_args)
        benchmark = find_benchmark(benchmark_args, training_args)
        trainer = make_trainer(trainer_class, script_args, training_args, model_args)
        if benchmark is not None:
            _judge_meanwhile(trainer, benchmark, benchmark_args)
    trainer.provenance.dataset = script_args.dataset_name
    trainer.provenance.dataset_revision = script_args.dataset_revision
    trainer.provenance.recipe = recipe
    with user_errors((FloatingPointError,)):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    _report(trainer, "train", result.metrics)
    finish(trainer)


def finish(trainer: "AKDTrainer", *, is_trained: bool = True) -> None:
    """Save, evaluate and push what was trained.

    A student that is as it was is saved, but has no card and is not pushed.
    """
    trainer.save_model(_internal_call=True)  # or it would be pushed at once, and again below
    if trainer.eval_dataset is not None:
        _report(trainer, "eval", trainer.evaluate())
    trainer.save_state()
    if is_trained:
        trainer.create_model_card()
        if trainer.args.push_to_hub:
            trainer.push_to_hub()
    trainer.end()


def make_trainer(
    trainer_class: "type[Trainer]",
    script_args: AKDScriptArguments,
    training_args: "AKDConfig",
    model_args: "ModelConfig",
    **kwargs: Any,
) -> "Trainer":
    """Make the method's trainer with the models, tokenizers and data that the arguments name."""
    from trl import get_peft_config, get_quantization_config

    from .preflight import load_datasets, load_tokenizers

    tokenizer, teacher_tokenizer = load_tokenizers(model_args, training_args)
    train_dataset, eval_dataset = load_datasets(script_args, training_args)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **cast(dict[str, Any], training_args.model_init_kwargs or {}),
    }
    if isinstance(model_args.lora_target_modules, str) and model_args.lora_target_modules.isidentifier():
        # TRL takes a single name out of its list, and PEFT would match it, as a pattern, against whole paths.
        model_args.lora_target_modules = [model_args.lora_target_modules]
    return trainer_class(
        cast(str, model_args.model_name_or_path),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
        **kwargs,
    )


def _judge_meanwhile(trainer: "AKDTrainer", benchmark: "Benchmark", args: BenchmarkArguments) -> None:
    from ..evaluation.callback import PassAtKCallback

    callback = PassAtKCallback(
        trainer,
        benchmark,
        prompt_style=args.eval_prompt_style,
        prompt_template=trainer.args.prompt_template,
        max_new_tokens=args.eval_max_new_tokens,
        allow_code_execution=args.allow_code_execution or None,
    )
    trainer.add_callback(callback)


def _report(trainer: "AKDTrainer", split: str, metrics: dict[str, float]) -> None:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
