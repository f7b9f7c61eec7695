r"""CodePLAN: multi-task training on programs and plans, \((1-\lambda) L_\mathrm{code} + \lambda L_\mathrm{plan}\).

Both tasks share the backbone; plans have a separate output layer. Departures from the paper, explained in
`docs/methods/codeplan.md`: each task's loss is the mean over examples of the mean over tokens, not a sum; the weights
hold for the global batch, independent of lengths, gradient accumulation and ranks; the prompt is masked for causal
models; either task may be distilled from a teacher.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from ..akd.akd_trainer import AKDTrainer
from ..akd.batches import Batch, Targets
from ..akd.metrics import METRICS, Means
from ..akd.model_card import template_format
from ..akd.model_utils import name_of, named_datasets
from ..akd.validation import check_arguments
from ..generation.loading import (
    find_base_model,
    hub_arguments,
    source_arguments,
    without_source_arguments,
)
from ..generation.transformers_generator import default_max_new_tokens
from ..hub.model_card import PromptFormat
from ..losses.fused_linear import FusedCrossEntropy, FusedDivergence, fused_linear_cross_entropy
from ..losses.reduction import IGNORE_INDEX
from ..teachers.cache_files import CachedRow
from .codeplan_config import CodePLANConfig
from .codeplan_mixin import EpochCallback, PlanningTrainer
from .collator import DataCollatorForCodePLAN, alternate_tasks, count_task_items, task_loss_weights
from .encoding import ProblemEncoder, Task, check_columns, prepare_problems, tokens_per_problem
from .objective import (
    answer_tokens,
    pooled_means,
    sums_by_task,
    task_groups,
    task_loss,
    without_repeated_problems,
)
from .plan_head import (
    PLAN_HEAD_FILE,
    add_plan_head,
    adopt_plan_head,
    check_plan_head_file,
    declares_plan_head,
    find_plan_head,
    load_plan_head,
    plan_head_of,
)
from .task_prompts import planning_example

logger = logging.getLogger(__name__)

_SHARED_WITH_COLLATOR = (
    "plan_weight",
    "schedule",
    "guided_weight",
    "normalization",
    "max_length",
    "max_target_length",
)


class CodePLANTrainer(PlanningTrainer, AKDTrainer):
    """Trainer of CodePLAN, which trains a student on solutions and plans.

    The arguments are those of [`AKDTrainer`], with these differences:

    - Datasets have `problem`, `solution` (or `solutions`) and `plan` (or `plans`). Each problem is an example of
      every task; `per_device_train_batch_size` counts problems.
    - The student is causal or an encoder-decoder.
    - A teacher is needed only if `code_objective` or `plan_objective` is `"akd"`.
    - With `plan_head="separate"`, the model has a `plan_head`, which is saved beside it as `plan_head.safetensors`,
      loaded from there, and used by [`writing_plans`] and [`PlanHeadGenerator`].
    - `model` may be the folder or name of an adapter, whose training continues.

    Args:
        model (`PreTrainedModel` or `str`):
            The student, or the name or path of a model or an adapter. If a plan head was saved there, or beside the
            adapter's base model, its training continues.
        teacher_model (`PreTrainedModel` or `str`, *optional*):
            The teacher of the tasks whose objective is `"akd"`.
        args (`CodePLANConfig`, *optional*):
            Configuration.
        data_collator (`DataCollatorForCodePLAN` or `Callable`, *optional*):
            Collates rows to batches with the keys of [`DataCollatorForCodePLAN`], which is the default with the
            settings of the configuration.
        **kwargs:
            As in [`AKDTrainer`].

    Raises:
        ValueError: If a row has no problem, solution or plan, if all rows are too long, or if models, plan head and
            settings are incompatible.
        FloatingPointError: During training, if the logits of teacher or student are not finite.
    """

    _tag_names = ["trl", "codeplan", "knowledge-distillation"]  # noqa: RUF012
    _name = "CodePLAN"
    _takes_encoder_decoders = True

    args: CodePLANConfig

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        teacher_model: PreTrainedModel | nn.Module | str | None = None,
        args: CodePLANConfig | None = None,
        data_collator: Callable[[list[Any]], Batch] | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(type(self), args, CodePLANConfig)
        args = CodePLANConfig(f"{(name_of(model) or 'model').split('/')[-1]}-CodePLAN") if args is None else args
        given, source, base = model, source_arguments(args.model_init_kwargs), None
        if isinstance(given, str):
            find_plan_head(given, **source)  # raises before the model is loaded if a declared plan head is missing
            base = find_base_model(given, source)
        if isinstance(given, str) and base is not None:
            model, kwargs["peft_config"] = base[0], _trained_adapter(given, source, kwargs.get("peft_config"))
            args.model_init_kwargs = {**without_source_arguments(args.model_init_kwargs or {}), **base[1]}
        self._is_encoder_decoder = _is_encoder_decoder(model, args)
        super().__init__(model, teacher_model, args, data_collator, **kwargs)
        self.task_groups = task_groups(
            args.code_objective, args.plan_objective, plan_head=args.plan_head == "separate"
        )
        self.task_weights = task_loss_weights(args.plan_weight, args.guided_weight)
        if isinstance(self.data_collator, DataCollatorForCodePLAN):
            self.data_collator = self._adapt_collator(self.data_collator)
            self.add_callback(EpochCallback(self.data_collator))
        if base is not None:
            self.model.load_adapter(given, self.model.active_adapter, is_trainable=True, **hub_arguments(source))
        self._set_plan_head(given, source)

    # Set-up

    def _check_data(self, datasets: dict[str, Any], args: Any) -> None:
        for name, dataset in datasets.items():
            if dataset is not None and not isinstance(dataset, Dataset):
                raise ValueError(
                    f"the {name} dataset is a {type(dataset).__name__}, but CodePLAN draws from problems by their "
                    "index; set streaming=False and give a `datasets.Dataset`."
                )
            if dataset is not None:
                check_columns(dataset, name)

    def _make_collator(self) -> DataCollatorForCodePLAN:
        return DataCollatorForCodePLAN(
            self._tokenizer,
            plan_weight=self.args.plan_weight,
            schedule=self.args.schedule,
            max_length=self.args.max_length,
            max_target_length=self.args.max_target_length,
            guided_weight=self.args.guided_weight,
            normalization=self.args.normalization,
            seed=self.args.seed,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
        )

    def _adapt_collator(self, collator: DataCollatorForCodePLAN) -> DataCollatorForCodePLAN:
        """Return the collator for this model, with all tasks in every batch; `_complete` alternates them."""
        for name in _SHARED_WITH_COLLATOR:
            if getattr(collator, name) != getattr(self.args, name):
                raise ValueError(
                    f"`{name}` is {getattr(self.args, name)!r} in the configuration but {getattr(collator, name)!r} "
                    "in `data_collator`; give both the same, or leave the collator out."
                )
        return replace(collator, schedule="weighted", is_encoder_decoder=self._is_encoder_decoder)

    def _tokenize(self, dataset: Dataset, args: Any, packing: bool, name: str) -> tuple[Dataset, Any]:
        encoder = ProblemEncoder(
            self._tokenizer,
            args.max_length,
            args.max_target_length,
            is_encoder_decoder=self._is_encoder_decoder,
            guided=args.guided_weight > 0.0,
        )
        return prepare_problems(
            dataset,
            encoder,
            shuffle_seed=args.seed if args.shuffle_dataset else None,
            num_proc=args.dataset_num_proc,
            name=name,
        )

    def _find_prompt_format(self, dataset: Dataset, args: Any) -> PromptFormat:
        return template_format("codeplan_code")

    def _datasets(self) -> dict[str, Dataset]:
        return {
            name: tokens_per_problem(rows)
            for name, rows in named_datasets(self.train_dataset, self.eval_dataset).items()
            if isinstance(rows, Dataset) and "code_prompt" in rows.column_names
        }

    def _longest_texts(self, dataset: Dataset, name: str) -> dict[str, Any]:
        collator = self._make_collator()
        drawn = (collator.examples(problem, task) for problem in dataset for task in collator.task_weights)
        examples = chain.from_iterable(drawn)
        return {"longest_row": max(len(prompt) + len(answer) for prompt, answer in examples)}

    def teacher_rows(self, dataset: Dataset) -> Iterator[CachedRow]:
        """Yield each example of the distilled tasks that may be drawn."""
        if "code_prompt" not in dataset.column_names:
            return  # rows of a custom collator, which are known in training only
        collator = self.data_collator
        if not isinstance(collator, DataCollatorForCodePLAN):
            collator = self._make_collator()
        objectives = dict.fromkeys((Task.CODE, Task.GUIDED), self.args.code_objective)
        objectives[Task.PLAN] = self.args.plan_objective
        tasks = [task for task in collator.task_weights if objectives[task] == "akd"]
        for problem in dataset:
            for prompt, answer in (example for task in tasks for example in collator.examples(problem, task)):
                yield CachedRow.from_labels([*prompt, *answer], [IGNORE_INDEX] * len(prompt) + answer)

    def row_settings(self) -> dict[str, Any]:
        """Return the settings that determine the rows."""
        own = {name: getattr(self.args, name) for name in ("max_target_length", "guided_weight")}
        return {**super().row_settings(), **own}

    def _additional_head(self) -> torch.nn.Module | None:
        return plan_head_of(self.model)

    def _set_plan_head(self, given: Any, source: Mapping[str, Any]) -> None:
        name = name_of(given)
        if self.args.plan_head == "shared":
            if plan_head_of(self.model) is not None:
                raise ValueError(
                    "`plan_head` is 'shared', but the student has a plan head, which would not be trained; set "
                    "plan_head='separate', or load the student without it."
                )
            if name is not None:
                check_plan_head_file(name, "shared", **source)
        elif plan_head_of(self.model) is not None:
            adopt_plan_head(self.model)  # it may be newer than its file
        elif name is not None and find_plan_head(name, **source):
            load_plan_head(self.model, name, **source)
        elif declares_plan_head(self.model):
            raise ValueError(
                "the student's configuration declares a plan head, but the model has none; call "
                "`load_plan_head(model, name_or_path)` first, or give its folder or name as `model`."
            )
        else:
            if hasattr(given, "peft_config"):
                logger.warning(
                    "The student's adapter has no plan head, so a new one is created as a copy of the LM head. If one "
                    "was saved with the adapter, give the adapter's folder as `model`, or call `load_plan_head` first."
                )
            add_plan_head(self.model)

    # Batches

    def _complete(self, batches: list[Batch]) -> list[Batch]:
        """Keep one task per micro-batch, alternating, with `schedule="alternate"`."""
        if self.args.schedule == "weighted":
            return batches
        first = self.state.global_step * self.args.gradient_accumulation_steps
        return alternate_tasks(batches, list(self.task_weights), first, multiple=self.args.pad_to_multiple_of or 1)

    def _without_repeats(self, batch: Batch, rows: int, own: int) -> Batch:
        return without_repeated_problems(batch, rows, own, self.args.normalization)

    def _targets(self, batch: Batch) -> Targets:
        inputs, labels, weights = answer_tokens(self.model, batch)
        items = count_task_items(batch, self.args.normalization)
        weights = weights * items[batch["task_ids"]].unsqueeze(1)  # undo the collator's division
        return Targets(inputs, labels, weights, items, batch["task_ids"])

    # Loss

    def _loss_from_hidden(
        self, student: Any, hidden: torch.Tensor, signal: Any, targets: Targets, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, sums = [], []
        for group in self.task_groups:
            head, selected = group.output_layer(student), group.select(weights, targets.task_ids)
            result: FusedCrossEntropy | FusedDivergence
            if group.objective == "akd":
                result = self._divergence(head, hidden, signal, targets.labels, selected)
            else:
                result = fused_linear_cross_entropy(
                    hidden, head, token_weights=selected, labels=targets.labels, chunk_size=self.args.loss_chunk_size
                )
            losses.append(result.loss)
            sums.append(sums_by_task(result, targets))
        return torch.stack(losses).sum(), torch.stack(sums).sum(0)

    # Logs

    def _report(self, means: list[Means], beta: float) -> dict[str, float]:
        """Return the loss of each task, the entropy over all tasks, and AKD's metrics over the distilled ones."""
        losses = self._task_losses(means, beta)
        report = {f"codeplan/{task.name.lower()}_loss": loss for task, loss in losses.items()}
        report["entropy"] = pooled_means(means).by_name["student_entropy"]
        if (distilled := self._distilled_means(means)).weight > 0:
            report |= {key: distilled.by_name[name] for name, key in METRICS.items() if name != "student_entropy"}
        return report

    def _step_schedule(self, means: list[Means]) -> None:
        super()._step_schedule([self._distilled_means(means)])

    def _loss_of(self, means: list[Means], beta: float) -> float:
        return sum(self.task_weights[task] * loss for task, loss in self._task_losses(means, beta).items())

    def _task_losses(self, means: list[Means], beta: float) -> dict[Task, float]:
        """Return the losses of the tasks with a nonzero weight in these means."""
        return {
            task: task_loss(task, mean.by_name, beta, self.args)
            for task, mean in zip(Task, means, strict=True)
            if mean.weight > 0
        }

    def _distilled_means(self, means: list[Means]) -> Means:
        """Return the means over the tasks that are distilled from a teacher."""
        distilled = {task for group in self.task_groups if group.objective == "akd" for task in group.tasks}
        return pooled_means([mean for task, mean in zip(Task, means, strict=True) if task in distilled])

    # Checkpoints and the Hub

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as [`transformers.Trainer`] does, after checking the plan head of the checkpoint."""
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        if isinstance(checkpoint, str):
            self.args.check_checkpoint(checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _card_method(self) -> str:
        return "CodePLAN (multi-task training on plans and code)"

    def _objective(self) -> dict[str, Any]:
        names = ["plan_weight", "schedule", "plan_head", "code_objective", "plan_objective", "normalization"]
        if self.args.guided_weight > 0.0:
            names.append("guided_weight")
        settings = {name: getattr(self.args, name) for name in names}
        return settings | super()._objective() if self.args.uses_teacher else settings

    def _card_explanation(self) -> str:
        weights = " + ".join(
            f"{weight:g} L_{task.name.lower()}" for task, weight in self.task_weights.items() if weight > 0
        )
        explanation = (
            f"The student minimizes {weights}: the losses on programs and on plans for the same problems, each a mean "
            f"over its own {'examples' if self.args.normalization == 'sequence' else 'tokens'}."
        )
        if not self.args.uses_teacher:
            return f"{explanation} Both are cross-entropies."
        distilled = " and ".join(
            task.name.lower() for group in self.task_groups if group.objective == "akd" for task in group.tasks
        )
        return f"{explanation} The loss on {distilled} is distilled from the teacher.\n\n{super()._card_explanation()}"

    def _card_sections(self) -> list[str]:
        plan_head = self.args.plan_head == "separate"
        repository = self.hub_model_id or self.args.hub_model_id or self.args.output_dir
        example = planning_example(
            str(repository),
            plan_head=plan_head,
            encoder_decoder=self._is_encoder_decoder,
            adapter=hasattr(self.accelerator.unwrap_model(self.model), "peft_config"),
            max_new_tokens=min(256, default_max_new_tokens(self.model.config) // 4),  # the plan is also in a prompt
        )
        output_layer = f"a separate plan head, `{PLAN_HEAD_FILE}`" if plan_head else "the LM head"
        section = (
            f"## Planning\n\nThe student generates plans by {output_layer}, and programs by the LM head. It was "
            f"trained on the prompts of `TaskPrompting`.\n\n```python\n{example}\n```\n\n"
            "`trl-akd evaluate --plan_sampling` samples several plans and selects one by the public tests."
        )
        return [*super()._card_sections(), section]


def _is_encoder_decoder(model: Any, args: CodePLANConfig) -> bool:
    """Return whether a model, or the model with that name, is an encoder-decoder."""
    if not isinstance(model, str):
        return bool(model.config.is_encoder_decoder)
    source = source_arguments(args.model_init_kwargs, trust_remote_code=args.trust_remote_code)
    config = AutoConfig.from_pretrained(model, **source)
    return bool(config.is_encoder_decoder)


def _trained_adapter(name: str, source: Mapping[str, Any], peft_config: Any) -> Any:
    """Return the configuration of an adapter whose training continues.

    Raises:
        ValueError: If `peft_config` is given as well.
    """
    if peft_config is not None:
        raise ValueError(
            "`model` is the folder of an adapter, whose training continues, and `peft_config` describes another one; "
            "leave it out, or merge the adapter into its base model and give the result."
        )
    from peft import PeftConfig

    adapter = PeftConfig.from_pretrained(name, **hub_arguments(source))
    adapter.inference_mode = False
    return adapter
