r"""CodePLAN: a student learns to plan and to code, \((1-\lambda) L_\mathrm{code} + \lambda L_\mathrm{plan}\).

Both tasks share the body; plans have an output layer of their own. Departures from the paper, argued in
`docs/methods/codeplan.md`: each task's loss is a mean over its examples' mean over tokens, not a sum; the weights hold
for the global batch, whatever the lengths, the accumulation and the ranks; causal models mask the prompt; either task
may be learned from a teacher's distribution instead of the data alone.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from ..akd.akd_trainer import AKDTrainer
from ..akd.batches import Batch, Targets
from ..akd.metrics import METRICS, Means
from ..akd.model_utils import name_of, named_datasets
from ..akd.validation import check_arguments
from ..generation.transformers_generator import default_max_new_tokens
from ..losses.fused_linear import FusedCrossEntropy, FusedDivergence, fused_linear_cross_entropy
from ..losses.reduction import count_items_by_task
from .codeplan_config import CodePLANConfig
from .codeplan_mixin import EpochCallback, PlanningTrainer, answer_tokens, without_repeated_problems
from .collator import DataCollatorForCodePLAN, take_turns, weights_of_tasks
from .encoding import ProblemEncoder, Task, check_columns, prepare_problems, tokens_per_problem
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
from .student import adapter_of, is_encoder_decoder, prepare_base
from .task_prompts import planning_example
from .tasks import pooled, routes, sums_by_task, task_head, task_loss

logger = logging.getLogger(__name__)


class CodePLANTrainer(PlanningTrainer, AKDTrainer):
    """Train a student on solutions and plans at once.

    Takes what [`AKDTrainer`] takes. Differences:

    - Datasets have `problem`, `solution` (or `solutions`) and `plan` (or `plans`). Each problem gives an example of
      every task; `per_device_train_batch_size` counts problems.
    - The student is causal or an encoder-decoder.
    - A teacher is needed only where `code_objective` or `plan_objective` is `"akd"`.
    - With `plan_head="separate"`, the model has a `plan_head`, which is saved beside it as `plan_head.safetensors`,
      loaded again from there, and used by [`writing_plans`] and [`PlanHeadGenerator`].
    - `model` may be an adapter's folder or name: its training goes on.

    Args:
        model (`PreTrainedModel` or `str`):
            The student, or its name or path, or that of an adapter. If a plan head was saved there, or beside the
            adapter's model, training goes on with it.
        teacher_model (`PreTrainedModel` or `str`, *optional*):
            The teacher of the tasks whose objective is `"akd"`.
        args (`CodePLANConfig`, *optional*):
            Configuration.
        data_collator (`DataCollatorForCodePLAN` or `Callable`, *optional*):
            Collates rows, as they are, into what [`DataCollatorForCodePLAN`] returns. By default one that the
            configuration describes.
        **kwargs:
            As in [`AKDTrainer`].

    Raises:
        ValueError: If a row has no problem, solution or plan, if none is short enough, or if models, plan head and
            settings do not fit together.
        FloatingPointError: During training, if the logits of teacher or student are not finite.
    """

    _tag_names = ["trl", "codeplan", "knowledge-distillation"]  # noqa: RUF012
    _name = "CodePLAN"
    _method = "CodePLAN (multi-task training on plans and code)"
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
        given, revision = model, (args.model_init_kwargs or {}).get("revision")
        if isinstance(given, str):
            find_plan_head(given, revision)  # one that is declared but missing is an error before anything is loaded
        adapter = adapter_of(given, revision)
        if adapter is not None:
            model, kwargs["peft_config"] = prepare_base(adapter, args, kwargs.get("peft_config")), adapter
        self._reads_apart = is_encoder_decoder(model, args)
        super().__init__(model, teacher_model, args, data_collator, **kwargs)
        self.routes = routes(args.code_objective, args.plan_objective, plan_head=args.plan_head == "separate")
        self.task_weights = weights_of_tasks(args.plan_weight, args.guided_weight)
        if isinstance(self.data_collator, DataCollatorForCodePLAN):
            self.data_collator = self._fitted(self.data_collator)
            self.add_callback(EpochCallback(self.data_collator))
        if adapter is not None:
            self.model.load_adapter(given, self.model.active_adapter, is_trainable=True, revision=revision)
        self._set_plan_head(given, revision)

    # Set-up

    def _check_data(self, datasets: dict[str, Any], args: Any) -> None:
        for name, dataset in datasets.items():
            if dataset is not None and not isinstance(dataset, Dataset):
                raise ValueError(
                    f"the {name} dataset is a {type(dataset).__name__}, but CodePLAN draws from problems by their "
                    "number; set streaming=False and give a `datasets.Dataset`."
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

    def _fitted(self, collator: DataCollatorForCodePLAN) -> DataCollatorForCodePLAN:
        """Return the collator for this model, with all tasks in a batch: whose turn it is, the step decides."""
        for name in ("plan_weight", "schedule", "guided_weight", "normalization"):
            if getattr(collator, name) != getattr(self.args, name):
                raise ValueError(
                    f"`{name}` is {getattr(self.args, name)!r} in the configuration but {getattr(collator, name)!r} "
                    "in `data_collator`; give both the same, or leave the collator out."
                )
        return replace(collator, schedule="weighted", is_encoder_decoder=self._reads_apart)

    def _tokenize(self, dataset: Dataset, args: Any, packing: bool, name: str) -> tuple[Dataset, Any]:
        encoder = ProblemEncoder(
            self._tokenizer,
            args.max_length,
            args.max_target_length,
            is_encoder_decoder=self._reads_apart,
            guided=args.guided_weight > 0.0,
        )
        return prepare_problems(
            dataset,
            encoder,
            shuffle_seed=args.seed if args.shuffle_dataset else None,
            num_proc=args.dataset_num_proc,
            name=name,
        )

    def _datasets(self) -> dict[str, Dataset]:
        return {
            name: tokens_per_problem(rows)
            for name, rows in named_datasets(self.train_dataset, self.eval_dataset).items()
            if isinstance(rows, Dataset) and "code_prompt" in rows.column_names
        }

    def _set_plan_head(self, given: Any, revision: str | None) -> None:
        name = name_of(given)
        if self.args.plan_head == "shared":
            if plan_head_of(self.model) is not None:
                raise ValueError(
                    "`plan_head` is 'shared', but the student has a plan head, which would stay as it is; set "
                    "plan_head='separate', or load the student without it."
                )
            if name is not None:
                check_plan_head_file(name, "shared", revision)
        elif plan_head_of(self.model) is not None:
            adopt_plan_head(self.model)  # it may be newer than the file it came from
        elif name is not None and find_plan_head(name, revision):
            load_plan_head(self.model, name, revision)
        elif declares_plan_head(self.model):
            raise ValueError(
                "the student's configuration says that it was trained with a plan head, but it has none in memory; "
                "call `load_plan_head(model, name_or_path)` before, or give its folder or name as `model`."
            )
        else:
            if hasattr(given, "peft_config"):
                logger.warning(
                    "The student's adapter came without a plan head, so that a new one begins as a copy of the LM "
                    "head. If one was saved with the adapter, give the adapter's folder as `model`, or call "
                    "`load_plan_head` beforehand."
                )
            add_plan_head(self.model)

    # Batches

    def _complete(self, batches: list[Batch]) -> list[Batch]:
        """Leave each micro-batch the task whose turn it is, under `schedule="alternate"`."""
        if self.args.schedule == "weighted":
            return batches
        first = self.state.global_step * self.args.gradient_accumulation_steps
        return take_turns(batches, list(self.task_weights), first, multiple=self.args.pad_to_multiple_of or 1)

    def _without_repeats(self, batch: Batch, rows: int, own: int) -> Batch:
        return without_repeated_problems(batch, rows, own, self.args.normalization)

    def _items(self, batch: Batch) -> torch.Tensor:
        """Return what the collator divides the weights of each task by, `[tasks]`."""
        return count_items_by_task(
            batch["labels"], batch["task_ids"], tasks=len(Task), normalization=self.args.normalization
        )

    def _targets(self, batch: Batch) -> Targets:
        inputs, labels, weights = answer_tokens(self.model, batch)
        items = self._items(batch)
        weights = weights * items[batch["task_ids"]].unsqueeze(1)  # the collator's are divided by its own batch
        return Targets(inputs, labels, weights, items, batch["task_ids"])

    # Loss

    def _loss_from_hidden(
        self, student: Any, hidden: torch.Tensor, signal: Any, targets: Targets, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, sums = [], []
        for route in self.routes:
            head, selected = task_head(student, route), route.select(weights, targets.task_ids)
            result: FusedCrossEntropy | FusedDivergence
            if route.objective == "akd":
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
        """Return each task's loss, the entropy over all, and AKD's metrics over those learned from a teacher."""
        losses = self._task_losses(means, beta)
        report = {f"codeplan/{task.name.lower()}_loss": loss for task, loss in losses.items()}
        report["entropy"] = pooled(means).by_name["student_entropy"]
        if (taught := self._taught(means)).weight > 0:
            report |= {key: taught.by_name[name] for name, key in METRICS.items() if name != "student_entropy"}
        return report

    def _step_beta(self, means: list[Means]) -> None:
        if (taught := self._taught(means)).weight > 0:
            super()._step_beta([taught])

    def _loss_of(self, means: list[Means], beta: float) -> float:
        return sum(self.task_weights[task] * loss for task, loss in self._task_losses(means, beta).items())

    def _task_losses(self, means: list[Means], beta: float) -> dict[Task, float]:
        """Return the losses of the tasks that have any weight in these means."""
        return {
            task: task_loss(task, mean.by_name, beta, self.args)
            for task, mean in zip(Task, means, strict=True)
            if mean.weight > 0
        }

    def _taught(self, means: list[Means]) -> Means:
        """Return the means over the tasks that are learned from a teacher."""
        taught = {task for route in self.routes if route.objective == "akd" for task in route.tasks}
        return pooled([mean for task, mean in zip(Task, means, strict=True) if task in taught])

    # Checkpoints and the Hub

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, as [`transformers.Trainer`] does; a checkpoint must have the plan head that the configuration has."""
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        if isinstance(checkpoint, str):
            self.args.check_checkpoint(checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _objective(self) -> dict[str, Any]:
        names = ["plan_weight", "schedule", "plan_head", "code_objective", "plan_objective", "normalization"]
        if self.args.guided_weight > 0.0:
            names.append("guided_weight")
        own = {name: getattr(self.args, name) for name in names}
        return own | super()._objective() if self.args.asks_teacher else own

    def _card_sections(self) -> list[str]:
        plan_head = self.args.plan_head == "separate"
        repository = self.hub_model_id or self.args.hub_model_id or self.args.output_dir
        example = planning_example(
            str(repository),
            plan_head=plan_head,
            encoder_decoder=self._reads_apart,
            adapter=hasattr(self.accelerator.unwrap_model(self.model), "peft_config"),
            max_new_tokens=min(256, default_max_new_tokens(self.model.config) // 4),  # a program's prompt has a plan
        )
        through = f"a plan head of their own, `{PLAN_HEAD_FILE}`" if plan_head else "the LM head"
        section = (
            "## Planning\n\nThe student writes plans as well as programs, its plans through " + through + ". It was "
            "trained on the prompts that `TaskPrompting` makes.\n\n```python\n" + example + "\n```\n\n"
            "`trl-akd evaluate --plan_sampling` samples several plans and lets public tests choose one."
        )
        return [*super()._card_sections(), section]
