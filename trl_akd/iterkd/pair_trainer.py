r"""IterKD's training on correct and faulty answers, \(L_\mathrm{supervised} + \gamma L_\mathrm{contrastive}\).

The paper (IterKD, later named SODA) names a supervised and a fault-aware contrastive loss and gives no formula. What
was chosen, argued in `docs/methods/iterkd.md`: the supervised loss is AKD's divergence from a teacher, or
cross-entropy; the contrastive one a family of losses on whole answers, against the student as it was when the cycle
began. Each is a mean over the global batch, the first over pairs (or tokens), the second over pairs that have a fault.

One trainer trains cycle after cycle, each as a run of its own from the weights that the last one left.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..akd.akd_trainer import AKDTrainer
from ..akd.batches import Batch, without_repeats
from ..akd.checks import check_arguments, name_of, named_datasets
from ..akd.metrics import METRICS, Means
from ..akd.objective import cross_entropy, mixed_loss
from ..data.vocabulary import require_shared_tokens
from ..distributed import gathered, release_engine, rewriting, through_forward, unwrapped, widest_float
from ..generation import TransformersGenerator
from ..heads import evaluating, final_hidden_states, lm_head
from ..losses.fused_linear import FusedDivergence
from ..losses.reduction import IGNORE_INDEX
from .contrast import CONTRASTIVE, SUPERVISED, PairTargets, contrast, contrastive_objective, pair_targets
from .iterkd_config import IterKDConfig
from .loading import check_adapter_weights, check_weights
from .pairs import DataCollatorForPairs, PairEncoder, check_pairs, number_of_answers, prepare_pairs
from .reference import compute_reference, load_reference, save_reference

__all__ = ["PairTrainer"]

logger = logging.getLogger(__name__)

# Beside METRICS: fields of a comparison -> names in the logs.
CONTRAST_METRICS = {
    "contrastive_loss": "iterkd/contrastive_loss",
    "margin": "iterkd/margin",
    "accuracy": "iterkd/accuracy",
}


class PairTrainer(AKDTrainer):
    """Train a student on correct answers and against faulty ones, again and again.

    Takes what [`AKDTrainer`] takes. Differences:

    - Datasets have `prompt` (or `instruction` and `input`, for the template), `completion`, the correct answer, and
      `rejected`, a list of faulty answers, which may be empty. `per_device_train_batch_size` counts pairs.
    - `train_dataset` may be left out where [`PairTrainer.train_on`] brings one for each cycle.
    - A teacher is needed only where `objective` is `"akd"`.
    - Evaluation leaves faulty answers out: `eval_loss` is the supervised loss.

    Args:
        model (`PreTrainedModel` or `str`):
            The student, or its name or path.
        teacher_model (`PreTrainedModel` or `str`, *optional*):
            The teacher whose distribution is learned.
        args (`IterKDConfig`, *optional*):
            Configuration.
        train_dataset (`Dataset`, *optional*):
            Pairs for [`~transformers.Trainer.train`].
        **kwargs:
            As in [`AKDTrainer`], but for `data_collator`.

    Raises:
        ValueError: If a row has no prompt or answer, if none is short enough, or if models and settings do not fit
            together.
        FloatingPointError: During training, if the logits of teacher or student are not finite.
    """

    _tag_names = ["trl", "iterkd", "knowledge-distillation"]  # noqa: RUF012
    _name = "IterKD"
    _method = "IterKD (correct answers learned, and set against faulty ones)"
    _measured = (*METRICS, *CONTRAST_METRICS)

    args: IterKDConfig
    model_wrapped: Any

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        teacher_model: PreTrainedModel | nn.Module | str | None = None,
        args: IterKDConfig | None = None,
        train_dataset: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(type(self), args, IterKDConfig)
        args = IterKDConfig(f"{(name_of(model) or 'model').split('/')[-1]}-IterKD") if args is None else args
        if kwargs.get("data_collator") is not None:
            raise ValueError("`data_collator` is given, but IterKD's loss reads the batches of its own; leave it out.")
        args.settle_objective(has_teacher=(teacher_model or args.teacher_model_name_or_path) is not None)
        brings_data = train_dataset is not None
        super().__init__(
            model, teacher_model, args, train_dataset=train_dataset if brings_data else _NOTHING, **kwargs
        )
        if not brings_data:
            self.train_dataset = None
        self._contrast = contrastive_objective(args.contrastive_loss, args.contrast_settings)
        self._reference: torch.Tensor | None = None
        self._seed = args.seed
        self.add_callback(_CycleStart(self._begin_training))

    # Set-up

    def _check_data(self, datasets: dict[str, Any], args: Any) -> None:
        for name, dataset in datasets.items():
            if dataset is not None and not isinstance(dataset, Dataset):
                raise ValueError(
                    f"the {name} dataset is a {type(dataset).__name__}, but IterKD knows pairs by their number; set "
                    "streaming=False and give a `datasets.Dataset`."
                )
            if dataset is not None:
                check_pairs(dataset, name)

    def _make_collator(self) -> DataCollatorForPairs:
        return DataCollatorForPairs(self._tokenizer.pad_token_id, pad_to_multiple_of=self.args.pad_to_multiple_of)

    def _tokenize(self, dataset: Dataset, args: Any, packing: bool, name: str) -> tuple[Dataset, Any]:
        learns_faults = args.contrastive_weight > 0.0 and name == "train"
        encoder = PairEncoder(
            self._tokenizer, args.max_length, args.prompt_template, args.max_faults if learns_faults else 0
        )
        prepared, report = prepare_pairs(
            dataset,
            encoder,
            shuffle_seed=args.seed if args.shuffle_dataset else None,
            num_proc=args.dataset_num_proc,
            name=name,
        )
        if report is not None and learns_faults and report.faults == 0 and args.process_index == 0:
            logger.warning("No pair of the train dataset has a faulty answer, so the contrastive loss is 0.")
        return prepared, report

    def _datasets(self) -> dict[str, Dataset]:
        return {
            name: rows.map(_as_tokens, remove_columns=rows.column_names, desc="Collecting tokens")
            for name, rows in named_datasets(self.train_dataset, self.eval_dataset).items()
            if isinstance(rows, Dataset)
        }

    # Cycles

    def train_on(
        self,
        pairs: Dataset,
        cycle: int,
        output_dir: str | Path,
        resume_from_checkpoint: str | bool | None = None,
    ) -> Any:
        """Train one cycle from the student's present weights, as a run of its own.

        Optimizer, schedule, trainer state, logs and β begin anew, and so do all draws, from `seed + cycle`: what the
        cycle does depends on the weights, the pairs and the arguments alone. The engine of the last cycle is taken
        off the student here, and that of this one stays until the next, so that the student can write meanwhile.

        Args:
            pairs (`Dataset`):
                Rows as the trainer's `train_dataset` has them.
            cycle (`int`):
                Number of the cycle, from 0.
            output_dir (`str` or `Path`):
                Where the cycle's checkpoints go.
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint of this cycle, or `True` for the last one in `output_dir`.

        Returns:
            `TrainOutput`, as [`transformers.Trainer.train`] does.

        Raises:
            ValueError: If the pairs are of no use, or the checkpoint is one of other pairs or settings.
        """
        self._check_data({"train": pairs}, self.args)
        self._release()
        self._training_data = pairs
        with self._as_cycle(cycle, str(output_dir)):
            self.train_dataset = self._prepare_dataset(pairs, self._tokenizer, self.args, False, None, "train")
            if self.teacher_model is not None:
                [tokens] = [rows for name, rows in self._datasets().items() if name == "train"]
                require_shared_tokens(tokens, self.vocabulary_size, self._tokenizer, name="train")
            set_seed(self.args.seed)
            return super().train(resume_from_checkpoint=resume_from_checkpoint)

    def student_generator(self, batch_size: int = 16, **settings: Any) -> TransformersGenerator:
        """Return a generator of the student as it is, before the first cycle, between cycles or after the last.

        It is good until the next cycle begins. On several processes, all must call its `generate` alike.

        Args:
            batch_size (`int`, *optional*, defaults to `16`):
                Most sequences generated together on one process.
            **settings:
                As in [`TransformersGenerator`].
        """
        if self.is_deepspeed_enabled and self.deepspeed is None:
            self.model.to(self.args.device)  # which its engine would do later
        return TransformersGenerator(
            self.model_wrapped, self._tokenizer, batch_size=batch_size, accelerator=self.accelerator, **settings
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student, also where DeepSpeed's engine is not around it, as when nothing was left to train."""
        if not self.is_deepspeed_enabled or self.deepspeed is not None:
            super().save_model(output_dir, _internal_call)
            return
        with gathered(self.model.parameters()):
            self._save(output_dir, state_dict=self.model.state_dict())
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def load_student(self, folder: str | Path) -> None:
        """Put the weights that were saved in `folder` into the student, under any engine, before a cycle begins.

        Raises:
            ValueError: If there are none, or not exactly those of the student.
        """
        check_adapter_weights(self.model, Path(folder))
        self._release()
        with rewriting(self.model):
            self._load_from_checkpoint(str(folder), self.model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse weights that lack a tensor of the student, or have one that it has not."""
        check_weights(self.model, load_result.missing_keys, load_result.unexpected_keys)
        super()._issue_warnings_after_load(load_result)

    @contextmanager
    def _as_cycle(self, cycle: int, output_dir: str) -> Iterator[None]:
        """Give the run its own folder and seed while it lasts, and let it push nothing to the Hub."""
        root, pushes = self.args.output_dir, self.args.push_to_hub
        self.args.output_dir, self.args.seed, self.args.push_to_hub = output_dir, self._seed + cycle, False
        self.adaptive_beta.seed = self.args.seed
        try:
            yield
        finally:
            self.args.output_dir, self.args.seed, self.args.push_to_hub = root, self._seed, pushes

    def _release(self) -> None:
        """Forget the engine, the optimizer and what was counted."""
        release_engine(self.model_wrapped, self.model, self.accelerator)
        if self.is_deepspeed_enabled:
            self.model_wrapped, self.deepspeed = self.model, None
        self.optimizer = self.lr_scheduler = None
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler, handler.train_dataloader = self.model, None, None, None
        self._reference = None
        self._total_train_tokens = 0
        gc.collect()

    def _begin_training(self, is_resumed: bool) -> None:
        if self.args.asks_reference and not is_resumed:
            self._reference = compute_reference(
                self.train_dataset,
                self.data_collator,
                self._log_probs,
                self.accelerator,
                batch_size=self.args.per_device_train_batch_size,
            )

    @torch.no_grad()
    def _log_probs(self, batch: Batch) -> torch.Tensor:
        """Return the log-probability of each answer of a batch, inside the student's engine."""
        wanted = self._targets(batch)
        student = unwrapped(self.model_wrapped, self.model, self.accelerator)

        def read() -> torch.Tensor:
            with self.accelerator.autocast():
                hidden = final_hidden_states(student, wanted.inputs)[:, :-1]
            weights = (wanted.labels != IGNORE_INDEX).float()
            head = lm_head(student).whole()
            return cross_entropy(head, hidden, wanted.labels, weights, self.args.loss_chunk_size).nll

        with evaluating(self.model_wrapped):
            nll = through_forward(self.model_wrapped, student, read)
        return -nll.view_as(wanted.labels).sum(dim=1)

    # Loss

    def _without_repeats(self, batch: Batch, rows: int, own: int) -> Batch:
        fault_rows, pairs = batch["fault_rows"], torch.arange(rows, device=batch["labels"].device)
        numbers = pairs.new_zeros(len(batch["labels"]))
        numbers[:rows] = pairs
        numbers[fault_rows[fault_rows >= 0]] = pairs.unsqueeze(1).expand_as(fault_rows)[fault_rows >= 0]
        counted = without_repeats(batch, numbers.unsqueeze(1), own)
        return {**counted, "fault_rows": fault_rows.masked_fill(pairs.unsqueeze(1) >= own, -1)}

    def _targets(self, batch: Batch) -> PairTargets:
        return pair_targets(batch, self.args.normalization)

    def _judge(
        self, student: Any, hidden: torch.Tensor, knowledge: Any, wanted: Any, share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head, place = lm_head(student).whole(), wanted.correct
        learned, labels, weights = hidden[place], wanted.labels[place], share[place]
        if self.args.objective == "akd":
            result: Any = self._divergence(head, learned, knowledge, labels, weights)
        else:
            result = cross_entropy(head, learned, labels, weights, self.args.loss_chunk_size)
        sums = torch.zeros(2, len(self._measured), dtype=widest_float(hidden.device), device=hidden.device)
        sums[SUPERVISED, : len(METRICS)] = _numbers(result).to(sums) @ wanted.weights[place].flatten().to(sums)
        if wanted.fault_rows.shape[1] == 0:
            return result.loss, sums
        found = contrast(
            head, hidden, wanted, share, self._contrast, self._reference_on(hidden), self.args.loss_chunk_size
        )
        sums[CONTRASTIVE, len(METRICS) :] = found.sums
        return result.loss + self.args.contrastive_weight * found.loss, sums

    def _reference_on(self, hidden: torch.Tensor) -> torch.Tensor | None:
        if self._reference is not None:
            self._reference = self._reference.to(hidden.device)
        return self._reference

    # Logs

    def _report(self, means: list[Means], beta: float) -> dict[str, float]:
        """Return both losses, how far apart the answers are, and the metrics of AKD where a teacher is asked."""
        learned, contrasted = means
        report = {"iterkd/supervised_loss": self._supervised_loss(means, beta)}
        if contrasted.weight > 0:
            report |= {key: contrasted.by_name[name] for name, key in CONTRAST_METRICS.items()}
        if self.args.objective == "akd":
            return report | super()._report(means, beta)
        return report | {METRICS["student_entropy"]: learned.by_name["student_entropy"]}

    def _step_beta(self, means: list[Means]) -> None:
        if self.args.objective == "akd":
            super()._step_beta(means)

    def _loss_of(self, means: list[Means], beta: float) -> float:
        return (
            self._supervised_loss(means, beta)
            + self.args.contrastive_weight * means[CONTRASTIVE].by_name["contrastive_loss"]
        )

    def _supervised_loss(self, means: list[Means], beta: float) -> float:
        by_name = means[SUPERVISED].by_name
        if self.args.objective == "akd":
            return mixed_loss(by_name, beta, self.args)
        return by_name["student_nll"]

    # Checkpoints and the Hub

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._reference is not None:
            save_reference(self._reference, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.args.asks_reference:
            self._reference = load_reference(checkpoint, number_of_answers(self.train_dataset))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _objective(self) -> dict[str, Any]:
        names = ["objective", "contrastive_weight", "normalization"]
        if self.args.contrastive_weight > 0.0:
            names += ["contrastive_loss", "max_faults"]
        own = {name: getattr(self.args, name) for name in names} | self.args.contrast_settings
        return own | super()._objective() if self.args.objective == "akd" else own


class _CycleStart(TrainerCallback):
    """Call back when the engine stands, and say whether something was trained before."""

    def __init__(self, begin: Callable[[bool], None]) -> None:
        self._begin = begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begin(state.global_step > 0)


# TRL wants a dataset to begin with, and takes no note of its contents once it is tokenised.
_NOTHING = Dataset.from_list([{"prompt": [0], "completion": [0], "rejected": [], "first_answer": 0}])


def _as_tokens(pair: dict[str, Any]) -> dict[str, list[int]]:
    return {"input_ids": [*pair["prompt"], *pair["completion"]]}


def _numbers(result: Any) -> torch.Tensor:
    """Return `METRICS` token by token `[metrics, N]`; what is not known counts 0."""
    if isinstance(result, FusedDivergence):
        return torch.stack([getattr(result, name) for name in METRICS])
    known = {"student_nll": result.nll, "student_entropy": result.entropy}
    return torch.stack([known.get(name, torch.zeros_like(result.nll)) for name in METRICS])
