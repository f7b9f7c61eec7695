r"""Training of IterKD on correct and faulty answers, \(L_\mathrm{supervised} + \gamma L_\mathrm{contrastive}\).

The paper (IterKD, later named SODA) mentions a supervised and a fault-aware contrastive loss without formulas.
`docs/methods/iterkd.md` explains the choices made here: the supervised loss is AKD's divergence from a teacher, or
cross-entropy; the contrastive loss is one of several losses on whole answers, most of them relative to the student at
the beginning of the cycle. Each is a mean over the global batch, the first over pairs (or tokens), the second over
pairs with a fault. One trainer trains all cycles, each as a separate run from the weights of the last one.
"""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    set_seed,
)

from ..akd.akd_trainer import AKDTrainer
from ..akd.batches import Batch, without_repeats
from ..akd.metrics import METRICS, Means, loss_from_means
from ..akd.model_card import template_format
from ..akd.model_utils import name_of, named_datasets
from ..akd.validation import check_arguments
from ..data.vocabulary import require_shared_tokens
from ..distributed import gathered, release_engine, rewriting, through_forward, unwrapped, widest_float
from ..generation import TransformersGenerator
from ..heads import evaluating, final_hidden_states, lm_head
from ..hub.model_card import PromptFormat
from ..losses.fused_linear import fused_linear_cross_entropy
from ..losses.lm_head import LMHead
from ..losses.reduction import IGNORE_INDEX
from ..progress import Progress
from ..teachers.cache_files import CachedRow
from .iterkd_config import IterKDConfig
from .pair_loss import CONTRASTIVE, SUPERVISED, PairTargets, contrastive_objective, pair_loss, pair_targets
from .pairs import DataCollatorForPairs, PairEncoder, check_pairs, number_of_answers, prepare_pairs

__all__ = [
    "REFERENCE_FILE",
    "PairTrainer",
    "check_adapter_weights",
    "check_weights",
    "compute_reference",
    "load_reference",
    "save_reference",
]

logger = logging.getLogger(__name__)

# Names in the logs of the fields of a comparison.
CONTRASTIVE_METRICS = {
    "contrastive_loss": "iterkd/contrastive_loss",
    "margin": "iterkd/margin",
    "accuracy": "iterkd/accuracy",
}


class PairTrainer(AKDTrainer):
    """Trainer of a student on correct answers and against faulty ones, in several cycles.

    Differences from [`AKDTrainer`]:

    - Datasets have `prompt` (or `instruction` and `input`, for the template), `completion`, the correct answer, and
      `rejected`, a list of faulty answers, which may be empty. `per_device_train_batch_size` counts pairs.
    - `train_dataset` is optional, as [`PairTrainer.train_on`] has a dataset for each cycle.
    - A teacher is required only if `objective` is `"akd"`.
    - Evaluation ignores faulty answers: `eval_loss` is the supervised loss.

    Other arguments are those of [`AKDTrainer`], except for `data_collator`.

    Raises:
        ValueError: If a row has no prompt or answer, if all rows are too long, or if models and settings are not
            compatible.
        FloatingPointError: During training, if the logits of teacher or student are not finite.
    """

    _tag_names = ["trl", "iterkd", "knowledge-distillation"]  # noqa: RUF012
    _name = "IterKD"
    _measured = (*METRICS, *CONTRASTIVE_METRICS)

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
            raise ValueError("`data_collator` is given, but the loss of IterKD requires its own; leave it out.")
        teacher = teacher_model or args.teacher_cache or args.teacher_model_name_or_path
        args.resolve_objective(has_teacher=teacher is not None)
        dataset = _PLACEHOLDER if train_dataset is None else train_dataset
        super().__init__(model, teacher_model, args, train_dataset=dataset, **kwargs)
        if train_dataset is None:
            self.train_dataset = None
        self._contrastive_objective = contrastive_objective(args.contrastive_loss, args.contrastive_kwargs)
        self._reference: torch.Tensor | None = None
        self._seed = args.seed

    # Set-up

    def _check_data(self, datasets: dict[str, Any], args: Any) -> None:
        for name, dataset in datasets.items():
            if dataset is not None and not isinstance(dataset, Dataset):
                raise ValueError(
                    f"the {name} dataset is a {type(dataset).__name__}, but IterKD needs the index of each pair; set "
                    "streaming=False and give a `datasets.Dataset`."
                )
            if dataset is not None:
                check_pairs(dataset, name)

    def _make_collator(self) -> DataCollatorForPairs:
        return DataCollatorForPairs(self._tokenizer.pad_token_id, pad_to_multiple_of=self.args.pad_to_multiple_of)

    def _tokenize(self, dataset: Dataset, args: Any, packing: bool, name: str) -> tuple[Dataset, Any]:
        uses_faults = args.contrastive_weight > 0.0 and name == "train"
        max_faults = args.max_faults if uses_faults else 0
        encoder = PairEncoder(self._tokenizer, args.max_length, args.prompt_template, max_faults)
        prepared, report = prepare_pairs(
            dataset,
            encoder,
            shuffle_seed=args.seed if args.shuffle_dataset else None,
            num_proc=args.dataset_num_proc,
            name=name,
        )
        if report is not None and uses_faults and report.faults == 0 and args.process_index == 0:
            logger.warning("No pair of the train dataset has a faulty answer, so the contrastive loss is 0.")
        return prepared, report

    def _find_prompt_format(self, dataset: Dataset, args: Any) -> PromptFormat:
        if "instruction" in dataset.column_names:
            return template_format(args.prompt_template)
        return PromptFormat("completion")

    def _datasets(self) -> dict[str, Dataset]:
        return {
            name: rows.map(_as_tokens, remove_columns=rows.column_names, desc="Collecting tokens")
            for name, rows in named_datasets(self.train_dataset, self.eval_dataset).items()
            if isinstance(rows, Dataset)
        }

    def _longest_texts(self, dataset: Dataset, name: str) -> dict[str, Any]:
        texts = dataset.select_columns(["prompt", "completion", "rejected"])
        longest = max(len(row["prompt"]) + max(map(len, [row["completion"], *row["rejected"]])) for row in texts)
        return {"longest_row": longest}

    def teacher_rows(self, dataset: Dataset) -> Iterator[CachedRow]:
        """Yield the correct answers."""
        if self._training_data is _PLACEHOLDER and dataset is self.train_dataset:
            return
        for pair in dataset.select_columns(["prompt", "completion"]):
            prompt, answer = pair["prompt"], pair["completion"]
            yield CachedRow.from_labels([*prompt, *answer], [IGNORE_INDEX] * len(prompt) + answer)

    # Cycles

    def train_on(
        self,
        pairs: Dataset,
        cycle: int,
        output_dir: str | Path,
        resume_from_checkpoint: str | bool | None = None,
    ) -> Any:
        """Train one cycle from the current weights of the student, as a separate run.

        Optimizer, schedule, trainer state, logs and β are reset, and random states are seeded with `seed + cycle`, so
        the cycle depends only on the weights, the pairs and the arguments. The engine of the previous cycle is
        released, and the new one is kept until the next cycle, so that the student can generate in between.

        `cycle` counts from 0, and checkpoints are in `output_dir`.

        Raises:
            ValueError: If the pairs are not usable, or the checkpoint belongs to other pairs or settings.
        """
        self._check_data({"train": pairs}, self.args)
        self._release()
        self._training_data = pairs
        with self._as_cycle(cycle, str(output_dir)):
            self.train_dataset = self._prepare_dataset(pairs, self._tokenizer, self.args, False, None, "train")
            if self.vocabulary_size < self.model.config.get_text_config().vocab_size:
                [tokens] = [rows for name, rows in self._datasets().items() if name == "train"]
                require_shared_tokens(tokens, self.vocabulary_size, self._tokenizer, name="train")
            self._require_cached_rows()
            self._check_positions()
            set_seed(self.args.seed)
            result = super().train(resume_from_checkpoint=resume_from_checkpoint)
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            self.save_state()  # the logs of the cycle, for the report of the run
            return result

    def student_generator(self, batch_size: int = 16, **settings: Any) -> TransformersGenerator:
        """Return a [`TransformersGenerator`] of the current student, which is valid until the next cycle begins.

        All processes must call its `generate` with the same arguments.
        """
        if self.is_deepspeed_enabled and self.deepspeed is None:
            self.model.to(self.args.device)  # otherwise done by its engine
        return TransformersGenerator(
            self.model_wrapped, self._tokenizer, batch_size=batch_size, accelerator=self.accelerator, **settings
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student, even without a DeepSpeed engine, for example if all cycles were trained before."""
        if not self.is_deepspeed_enabled or self.deepspeed is not None:
            super().save_model(output_dir, _internal_call)
            return
        with gathered(self.model.parameters()):
            self._save(output_dir, state_dict=self.model.state_dict())
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def load_student(self, folder: str | Path) -> None:
        """Load saved weights into the student before a cycle begins, with any engine.

        Raises:
            ValueError: If the weights are missing or do not match the student.
        """
        check_adapter_weights(self.model, Path(folder))
        self._release()
        with rewriting(self.model):
            self._load_from_checkpoint(str(folder), self.model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise an error if the saved tensors and those of the student differ."""
        check_weights(self.model, load_result.missing_keys, load_result.unexpected_keys)
        super()._issue_warnings_after_load(load_result)

    @contextmanager
    def _as_cycle(self, cycle: int, output_dir: str) -> Iterator[None]:
        """Set folder and seed of a cycle, without pushing to the Hub."""
        root, pushes = self.args.output_dir, self.args.push_to_hub
        self.args.output_dir, self.args.seed, self.args.push_to_hub = output_dir, self._seed + cycle, False
        self.adaptive_beta.seed = self.args.seed
        try:
            yield
        finally:
            self.args.output_dir, self.args.seed, self.args.push_to_hub = root, self._seed, pushes

    def _release(self) -> None:
        """Release the engine and the optimizer, and reset the counters."""
        release_engine(self.model_wrapped, self.model, self.accelerator)
        if self.is_deepspeed_enabled:
            self.model_wrapped, self.deepspeed = self.model, None
        self.optimizer = self.lr_scheduler = None
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler, handler.train_dataloader = self.model, None, None, None
        self._reference = None
        gc.collect()

    def _begin_training(self, is_resumed: bool) -> None:
        super()._begin_training(is_resumed)
        if self.args.needs_reference and not is_resumed:
            self._reference = compute_reference(
                self.train_dataset,
                self.data_collator,
                self._log_probs,
                self.accelerator,
                batch_size=self.args.per_device_train_batch_size,
                progress=not self.args.disable_tqdm,
            )

    @torch.no_grad()
    def _log_probs(self, batch: Batch) -> torch.Tensor:
        """Return the log-probability of each answer of a batch."""
        targets = self._targets(batch)
        student = unwrapped(self.model_wrapped, self.model, self.accelerator)

        def read() -> torch.Tensor:
            with self.accelerator.autocast():
                hidden = final_hidden_states(student, targets.inputs)[:, :-1]
            return fused_linear_cross_entropy(
                hidden,
                lm_head(student).whole(),
                token_weights=(targets.labels != IGNORE_INDEX).float(),
                labels=targets.labels,
                chunk_size=self.args.loss_chunk_size,
            ).nll

        with evaluating(self.model_wrapped):
            nll = through_forward(self.model_wrapped, student, read)
        return -nll.sum(dim=1)

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

    def _loss_from_hidden(
        self, student: Any, hidden: torch.Tensor, signal: Any, targets: Any, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head, contrastive = lm_head(student).whole(), None
        sums = torch.zeros(2, len(self._measured), dtype=widest_float(hidden.device), device=hidden.device)
        if targets.fault_rows.shape[1] > 0:
            contrastive = pair_loss(
                head,
                hidden,
                targets,
                weights,
                self._contrastive_objective,
                self._reference_on(hidden),
                self.args.loss_chunk_size,
            )
            sums[CONTRASTIVE, len(METRICS) :] = contrastive.sums
        nll_weights = None if contrastive is None else self.args.contrastive_weight * contrastive.nll_weights
        if self.args.objective == "akd":
            loss, metrics = self._divergence_loss(head, hidden, signal, targets, weights, nll_weights)
        else:
            loss, metrics = self._cross_entropy_loss(head, hidden, targets, weights, nll_weights)
        sums[SUPERVISED, : len(METRICS)] = metrics
        return loss if contrastive is None else loss + self.args.contrastive_weight * contrastive.value, sums

    def _cross_entropy_loss(
        self, head: LMHead, hidden: Tensor, targets: PairTargets, weights: Tensor, nll_weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the correct answers, and the weighted sums of `METRICS`.

        The gradient includes that of the tokens' NLLs weighted by `nll_weights` `[B, T]`.
        """
        correct = slice(targets.pairs)
        token_weights = torch.zeros_like(weights) if nll_weights is None else nll_weights.clone()
        token_weights[correct] += weights[correct]
        result = fused_linear_cross_entropy(
            hidden,
            head,
            token_weights=token_weights,
            labels=targets.labels,
            chunk_size=self.args.loss_chunk_size,
        )
        nll, entropy = result.nll[correct], result.entropy[correct]
        metrics = _weighted_sums({"student_nll": nll, "student_entropy": entropy}, targets.weights[correct])
        return (weights[correct] * nll).sum() + _gradient_of(result.loss), metrics

    def _divergence_loss(
        self,
        head: LMHead,
        hidden: Tensor,
        signal: Any,
        targets: PairTargets,
        weights: Tensor,
        nll_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the divergence on the correct answers; otherwise as `_cross_entropy_loss`."""
        correct = targets.correct
        own_weights, rows = weights[correct], slice(None)
        ce_weight: float | Tensor = 0.0
        if nll_weights is not None and self.vocabulary_size == len(head.weight):
            # Divergence and log-probabilities have the same vocabulary, so one pass over correct answers gives both.
            rows = slice(targets.pairs, None)
            ce_weight = nll_weights[correct] / own_weights.masked_fill(own_weights == 0, 1)
        result = self._divergence(
            head, hidden[correct], signal, targets.labels[correct], own_weights, ce_weight=ce_weight
        )
        metrics = _weighted_sums({name: getattr(result, name) for name in METRICS}, targets.weights[correct])
        if nll_weights is None:
            return result.loss, metrics
        others = fused_linear_cross_entropy(
            hidden[rows],
            head,
            token_weights=nll_weights[rows],
            labels=targets.labels[rows],
            chunk_size=self.args.loss_chunk_size,
        )
        assert result.student_nll is not None
        value = (own_weights * (result.divergence + self.args.ce_weight * result.student_nll)).sum()
        return value + _gradient_of(result.loss + others.loss), metrics

    def _reference_on(self, hidden: torch.Tensor) -> torch.Tensor | None:
        if self._reference is not None:
            self._reference = self._reference.to(hidden.device)
        return self._reference

    # Logs

    def _report(self, means: list[Means], beta: float) -> dict[str, float]:
        """Return both losses, margin and accuracy, and with a teacher the metrics of AKD."""
        supervised, contrastive = means
        report = {"iterkd/supervised_loss": self._supervised_loss(means, beta)}
        if contrastive.weight > 0:
            report |= {key: contrastive.by_name[name] for name, key in CONTRASTIVE_METRICS.items()}
        if self.args.objective == "akd":
            return report | super()._report(means, beta)
        return report | {METRICS["student_entropy"]: supervised.by_name["student_entropy"]}

    def _step_schedule(self, means: list[Means]) -> None:
        if self.args.objective == "akd":
            super()._step_schedule(means)

    def _loss_of(self, means: list[Means], beta: float) -> float:
        return (
            self._supervised_loss(means, beta)
            + self.args.contrastive_weight * means[CONTRASTIVE].by_name["contrastive_loss"]
        )

    def _supervised_loss(self, means: list[Means], beta: float) -> float:
        by_name = means[SUPERVISED].by_name
        if self.args.objective == "akd":
            return loss_from_means(by_name, beta, self.args)
        return by_name["student_nll"]

    # Checkpoints and the Hub

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._reference is not None:
            save_reference(self._reference, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.args.needs_reference:
            self._reference = load_reference(checkpoint, number_of_answers(self.train_dataset))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _card_explanation(self) -> str:
        explanation = "The student minimizes the loss on correct answers"
        if self.args.contrastive_weight > 0.0:
            explanation += (
                f" plus {self.args.contrastive_weight:g} times the contrastive loss `{self.args.contrastive_loss}` of "
                "correct against faulty answers to the same questions"
            )
        if self.args.objective == "akd":
            return f"{explanation}. The first is distilled from the teacher.\n\n{super()._card_explanation()}"
        return f"{explanation}. The first is the cross-entropy."

    def _card_method(self) -> str:
        return "IterKD (training on correct answers and against faulty ones)"

    def _objective(self) -> dict[str, Any]:
        names = ["objective", "contrastive_weight", "normalization"]
        if self.args.contrastive_weight > 0.0:
            names += ["contrastive_loss", "max_faults"]
        own = {name: getattr(self.args, name) for name in names} | self.args.contrastive_kwargs
        return own | super()._objective() if self.args.objective == "akd" else own


# TRL requires a training dataset, but does not read its content if it is tokenized.
_PLACEHOLDER = Dataset.from_list([{"prompt": [0], "completion": [0], "rejected": [], "first_answer": 0}])


def _as_tokens(pair: dict[str, Any]) -> dict[str, list[int]]:
    return {"input_ids": [*pair["prompt"], *pair["completion"]]}


def _weighted_sums(numbers: dict[str, Tensor], weights: Tensor) -> Tensor:
    """Return the weighted sums of `METRICS` over the tokens; 0 for those that are missing."""
    missing, precision = torch.zeros_like(weights), widest_float(weights.device)
    per_token = torch.stack([numbers.get(name, missing).flatten() for name in METRICS])
    return per_token.to(precision) @ weights.flatten().to(precision)


def _gradient_of(loss: Tensor) -> Tensor:
    """Return 0 with the gradient of a loss."""
    return loss - loss.detach()


REFERENCE_FILE = "iterkd_reference.pt"


def compute_reference(
    pairs: Dataset,
    collate: Callable[[list[Any]], Batch],
    log_probs: Callable[[Batch], Tensor],
    accelerator: Accelerator,
    *,
    batch_size: int,
    progress: bool = False,
) -> Tensor:
    """Compute the log-probabilities of all answers, in float32 `[answers]`, distributed over the processes.

    `log_probs` computes those of a batch with `answer_ids` `[B]`. All processes compute the same number of batches, as
    a forward pass under ZeRO-3 is collective; if necessary, the first batches are computed again and ignored.
    """
    total = torch.zeros(number_of_answers(pairs), device=accelerator.device)
    batches = _longest_first(pairs, batch_size)
    shown = progress and accelerator.is_main_process
    with Progress(len(batches), "Reference log-probabilities", "batch", "batches", shown=shown) as bar:
        for first in range(0, len(batches), accelerator.num_processes):
            number = first + accelerator.process_index
            batch = collate([pairs[index] for index in batches[number % len(batches)]])
            batch = {key: tensor.to(accelerator.device) for key, tensor in batch.items()}
            values = log_probs(batch)
            if number < len(batches):
                total[batch["answer_ids"]] = values.to(total.dtype)
            bar.update(min(accelerator.num_processes, len(batches) - first))
    reduced: Tensor = accelerator.reduce(total, "sum")
    return reduced


def save_reference(reference: Tensor, checkpoint: str | Path) -> None:
    """Save the log-probabilities in a checkpoint folder."""
    torch.save(reference.cpu(), Path(checkpoint) / REFERENCE_FILE)


def load_reference(checkpoint: str | Path, answers: int) -> Tensor:
    """Read the log-probabilities from a checkpoint of an interrupted cycle.

    Raises:
        ValueError: If they are missing or belong to other pairs.
    """
    path = Path(checkpoint) / REFERENCE_FILE
    if not path.is_file():
        raise ValueError(
            f"`resume_from_checkpoint` is {str(checkpoint)!r}, which has no {REFERENCE_FILE}, as its contrastive loss "
            "had no reference; resume with the old `contrastive_loss`, or restart the cycle."
        )
    reference: Tensor = torch.load(path, map_location="cpu", weights_only=True)
    if len(reference) != answers:
        raise ValueError(
            f"`resume_from_checkpoint` is {str(checkpoint)!r}, whose pairs had {len(reference)} answers, but these "
            f"have {answers}; resume with the old pairs, or restart the cycle."
        )
    return reference


def _longest_first(pairs: Dataset, batch_size: int) -> list[Sequence[int]]:
    """Return batches of indices of pairs, the longest first, so that out-of-memory errors occur early."""
    lengths = [
        len(prompt) + max(map(len, [completion, *rejected]))
        for prompt, completion, rejected in zip(pairs["prompt"], pairs["completion"], pairs["rejected"], strict=True)
    ]
    order = sorted(range(len(pairs)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def check_weights(model: Any, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise a `ValueError` if a model and its saved weights have different tensors.

    Tied tensors, which are saved under one name, and tensors that the model does not save may be missing.
    """
    saved_elsewhere = _tied(model) | set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    missing_names = sorted(set(missing) - saved_elsewhere)
    unknown = sorted(unexpected)
    if missing_names or unknown:
        differences = [
            f"{len(names)} tensors {verb}, such as {names[0]!r}"
            for names, verb in ((missing_names, "of the student are missing"), (unknown, "are unknown to it"))
            if names
        ]
        raise ValueError(
            f"the saved student is of another model or adapter: {', and '.join(differences)}; give the settings of "
            "that run, or another output_dir."
        )


def check_adapter_weights(model: Any, folder: Path) -> None:
    """Raise a `ValueError` if only one of a folder and the student is an adapter, or their adapters differ."""
    file = next((folder / name for name in _ADAPTER_FILES if (folder / name).is_file()), None)
    has_adapter = hasattr(model, "peft_config")
    if has_adapter != (file is not None) and folder.is_dir():
        saved, present = ("the whole model", "an adapter") if has_adapter else ("an adapter", "the whole model")
        raise ValueError(
            f"the student in {folder} was saved as {saved}, but {present} is trained now; give the PEFT settings of "
            "that run, or another output_dir."
        )
    if file is None or file.suffix != ".safetensors":
        return
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    expected = set(get_peft_model_state_dict(model, adapter_name=model.active_adapters[0]))
    with safe_open(file, "pt") as tensors:
        found = set(tensors.keys())
    check_weights(model, expected - found, found - expected)


def _tied(model: Any) -> set[str]:
    """Return the names of tied parameters."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for several in names.values() if len(several) > 1 for name in several}
