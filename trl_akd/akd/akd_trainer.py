r"""Adaptive knowledge distillation (AKD) for code generation, as a drop-in for TRL's `GKDTrainer`.

On every target token, the student minimizes \((1-\beta)\,\mathrm{KL}(p\|q) + \beta\,\mathrm{KL}(q\|p)\) between the
teacher's distribution p and its own q (Eq. 9), which β ascends (Eq. 14), or another divergence. Departures from the
paper, explained in `docs/methods/akd.md`: divergences have a plus sign and sum over the vocabulary; the length in
Eq. 9 is the number of target tokens; the gradient of β is that of Eq. 13.

Departures from `GKDTrainer`: the default divergence is a linear mix instead of a generalized Jensen-Shannon
divergence; it is computed without full logits; and the loss is divided once by the number of items in the global
batch, counted after generation, for any gradient accumulation and number of processes.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import EvalResult
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, has_length
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ..data.collators import DataCollatorForDistillation, RowLengths, round_up
from ..data.tokenization import PROMPT_COLUMN, StreamCounts, prepare_dataset
from ..data.vocabulary import require_shared_tokens, shared_vocabulary_size
from ..distributed import (
    own_rows,
    raise_on_all,
    require_batch,
    run_on_main_and_broadcast,
    take_compilation,
    through_forward,
    unwrapped,
    widest_float,
)
from ..generation.decoding import collect_eos_token_ids
from ..generation.transformers_generator import default_max_new_tokens
from ..heads import compiler, final_hidden_states, hidden_states_and_router_loss, lm_head
from ..hub.model_card import (
    ModelCardContent,
    PromptFormat,
    git_commit,
    model_card,
    read_base_model,
    write_run_facts,
)
from ..hub.scores import before_and_after, errors_section
from ..hub.upload import request
from ..losses.fused_linear import FusedDivergence, fused_divergence, fused_linear_cross_entropy
from ..losses.lm_head import LMHead
from ..losses.policy_gradient import PolicyGradient
from ..losses.reduction import IGNORE_INDEX
from ..progress import dataset_bars
from ..teachers import (
    CachedTeacher,
    LocalTeacher,
    NoTeacher,
    SelfTeacher,
    ServedTeacher,
    Teacher,
    TeacherSignal,
    as_teacher,
    load_teacher,
    verify_architecture,
)
from ..teachers.cache_files import CachedRow
from .akd_config import AKDConfig
from .batches import Batch, Targets, causal_targets, grouped_by_length, number_of_tokens, row_numbers, without_repeats
from .checkpoint import load_state, save_state
from .gkd import GKDTrainer
from .metrics import METRICS, DistillationMetrics, Means, loss_from_means
from .model_card import (
    draw_schedule,
    explain_divergence,
    find_prompt_format,
    is_adaptive,
    method_name,
    objective,
    provenance,
    training_facts,
)
from .model_utils import adapters_of, disable_dropout, evaluation_name, name_of, named_datasets, tokenizer_of
from .on_policy import (
    CompletionLog,
    Prompt,
    TransformersSampler,
    completed_row,
    is_on_policy,
    read_prompts,
    sampling_config,
    sampling_seed,
)
from .positions import check_texts, longest_prompt, longest_row, tabulated_positions
from .schedule_callback import ScheduleCallback
from .served import connect_teacher, longest_text, served_vocabulary_size
from .teacher_cache import check_cache, open_cache, require_dataset, row_settings, unpacked_rows
from .teacher_mix import TeacherMix, require_dense, teacher_next_logits
from .upload import upload_checkpoint, upload_student
from .validation import (
    check_adapter,
    check_architectures,
    check_arguments,
    check_data,
    check_experts,
    check_models,
    check_overrides,
    check_parallelism,
    check_rows,
    check_self_teacher,
    check_tokenizer,
    check_unused,
)
from .vllm_sampler import VLLMSampler, check_vllm

logger = logging.getLogger(__name__)


class AKDTrainer(GKDTrainer):
    """Trainer for adaptive knowledge distillation: by default, a learnable mix of forward and reverse KL.

    Takes the arguments of [`trl.experimental.gkd.GKDTrainer`]. Differences:

    - Datasets may have `prompt` and `completion`, `messages`, Alpaca's columns, or `input_ids` and `labels`. They are
      tokenized once, by the trainer, unless `args.dataset_kwargs` has `skip_prepare_dataset`.
    - Student and teacher may have vocabularies of different size, if their tokenizers agree on the shared prefix.
    - Without a teacher, a PEFT student learns from itself with the adapter disabled, which must be the base model.
    - A `data_collator` receives raw rows; nothing is tokenized beforehand. `trainer.args` is then a copy of `args`,
      with `skip_prepare_dataset` in `dataset_kwargs` and `remove_unused_columns=False`.

    Args:
        model (`PreTrainedModel` or `str`):
            The student, or its name or path.
        teacher_model (`PreTrainedModel`, `str` or [`~trl_akd.teachers.Teacher`], *optional*):
            The teacher, its name or path, which may be that of an adapter, or an object that returns a dense or sparse
            signal for each batch. Defaults to `args.teacher_model_name_or_path`.
        args (`AKDConfig`, *optional*):
            Configuration.
        data_collator (`Callable`, *optional*):
            Function that collates rows into `input_ids`, `attention_mask` and `labels`, and, if text is generated,
            left-padded `prompts` and `prompt_attention_mask`.
        train_dataset (`Dataset`):
            Training data.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*):
            Evaluation data.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. Defaults to the student's.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of the teacher, which is compared with the student's. Defaults to the one at the teacher's name
            or path. A teacher without either, such as one built in memory, gets the student's, with a warning.
        peft_config (`PeftConfig`, *optional*):
            Configuration of an adapter to train instead of the whole student.
        **kwargs:
            `compute_metrics`, `callbacks`, `optimizers`, `preprocess_logits_for_metrics` and `quantization_config`, as
            in [`trl.SFTTrainer`].

    Attributes:
        scores (`dict[int, list[EvalResult]]`): scores measured on a benchmark, by training step, for the model card.
        outcomes (`dict[int, dict[str, int]]`): number of programs by outcome, such as `"passed"`, likewise.
        prompt_format (`PromptFormat`, *optional*): format of the prompts of training; `None` if rows are tokenized.

    Raises:
        ValueError: If the teacher is missing, vocabularies differ, or the data has no usable row.
        FloatingPointError: During training, if the logits of teacher or student are not finite.
    """

    _tag_names = ["trl", "akd", "knowledge-distillation"]  # noqa: RUF012
    _name = "AKD"
    _measured: tuple[str, ...] = tuple(METRICS)
    _takes_encoder_decoders = False
    loss_is_scaled_for_ga = True

    args: AKDConfig
    model: Any
    data_collator: Any
    prompt_format: PromptFormat | None = None

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        teacher_model: PreTrainedModel | nn.Module | Teacher | str | None = None,
        args: AKDConfig | None = None,
        data_collator: Callable[[list[Any]], Batch] | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        check_overrides(type(self), AKDTrainer)
        check_arguments(type(self), args, AKDConfig)
        args = AKDConfig(f"{(name_of(model) or 'model').split('/')[-1]}-AKD") if args is None else args
        check_adapter(peft_config, *adapters_of(model), *adapters_of(teacher_model))
        check_parallelism(args.parallelism_config)
        if args.teacher_cache is not None:
            teacher_model = open_cache(teacher_model, args)
        else:
            teacher_model = args.teacher_model_name_or_path if teacher_model is None else as_teacher(teacher_model)
        check_models(
            model, teacher_model, args, trains_adapter=peft_config is not None or hasattr(model, "peft_config")
        )
        if args.use_vllm:
            check_vllm(args, name_of(model))
        check_unused(kwargs)
        check_rows(named_datasets(train_dataset, eval_dataset))
        if data_collator is None:
            self._check_data(named_datasets(train_dataset, eval_dataset), args)
        elif args.padding_free:
            raise ValueError(
                "`padding_free` is on and a `data_collator` is given, which forms the batches itself; leave one of "
                "them out."
            )
        else:
            args = copy(args)  # the caller may use it for other trainers
            args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
            args.remove_unused_columns = False
        self._training_data = train_dataset
        self._stream_counts: dict[int, StreamCounts] = {}  # by the ids of streams whose counts are not reported yet
        # GKDTrainer's constructor refuses padded vocabularies, args=None and a missing dtype, so it is skipped.
        with _as_padded(args), _first_row_expected():
            super(GKDTrainer, self).__init__(
                model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                peft_config=peft_config,
                **kwargs,
            )
        self.padding_free = args.padding_free or args.packing
        if not hasattr(self, "router_aux_loss_coef"):  # TRL before 1.14
            self.router_aux_loss_coef = args.router_aux_loss_coef if self.aux_loss_enabled else 0.0
        if self.router_aux_loss_coef:
            check_experts(self.model.config.get_text_config())
        self._compilation = take_compilation(self.accelerator)
        self._compiled = compiler(self._compilation)
        check_adapter(*adapters_of(self.model))
        check_parallelism(self.accelerator.parallelism_config)
        self.adaptive_beta = args.make_beta()
        self.schedule = args.make_schedule(self.adaptive_beta)
        self.policy_gradient = args.make_policy_gradient()
        self.lmbda, self.seq_kd, self.temperature = args.lmbda, args.seq_kd, args.temperature
        if args.disable_dropout:
            disable_dropout(self.model)
        if data_collator is None:
            self.data_collator = self._make_collator()
        self._set_teacher(teacher_model, teacher_tokenizer)
        if data_collator is None:
            self._check_positions()
        self.generation_config = sampling_config(
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_ids=collect_eos_token_ids(self._tokenizer, self.model, getattr(self.teacher, "model", None)),
        )
        self._student_sampler, self._teacher_sampler = (
            TransformersSampler(self.accelerator, self.vocabulary_size, size_in_step=self._train_batch_size)
            for _ in range(2)
        )
        self._vllm_sampler = self._start_vllm() if args.use_vllm else None
        self.distillation_metrics = {mode: DistillationMetrics(self._measured) for mode in ("train", "eval")}
        self.provenance = provenance(model, teacher_model, args, self.model, self.teacher_model)
        self.scores: dict[int, list[EvalResult]] = {}
        self.outcomes: dict[int, dict[str, int]] = {}
        self._student_is_verified = False
        self._completions = CompletionLog(args, self._tokenizer, self.accelerator, self.callback_handler.callbacks)
        self.add_callback(
            ScheduleCallback(
                self.adaptive_beta, self.schedule, self._begin_training, self._finish_step, self._finish_epoch
            )
        )

    # Set-up

    def _check_data(self, datasets: dict[str, Any], args: Any) -> None:
        check_data(datasets, args)

    def _make_collator(self) -> Callable[[list[Any]], Batch]:
        if self.padding_free:
            return RowLengths(
                DataCollatorForLanguageModeling(
                    self._tokenizer.pad_token_id, padding_free=True, pad_to_multiple_of=self.args.pad_to_multiple_of
                )
            )
        return DataCollatorForDistillation(
            self._tokenizer.pad_token_id,
            with_prompts=self.args.generates,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
        )

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: AKDConfig,
        packing: bool,
        formatting_func: Callable[[Any], str] | None,
        dataset_name: str,
    ) -> Dataset:
        check_tokenizer(self._tokenizer)
        is_training = dataset_name == "train" and dataset is self._training_data  # a key may be "train" as well
        name = "train" if is_training else evaluation_name(dataset_name)
        shows_bars = args.process_index == 0 and not args.disable_tqdm
        with args.main_process_first(desc=f"preparation of the {name} dataset"), dataset_bars(shown=shows_bars):
            prepared, report = self._tokenize(dataset, args, packing, name)
        if isinstance(report, StreamCounts):
            self._stream_counts[id(prepared)] = report
        elif report is not None and args.process_index == 0:
            logger.log(logging.INFO if report.is_clean else logging.WARNING, report.summary())
        if is_training:
            self.prompt_format = self._find_prompt_format(dataset, args)
        return prepared

    def _find_prompt_format(self, dataset: Dataset, args: Any) -> PromptFormat | None:
        """Return the format of the prompts of the training data, if it is known."""
        return find_prompt_format(dataset, args)

    def _tokenize(self, dataset: Dataset, args: Any, packing: bool, name: str) -> tuple[Dataset, Any]:
        """Return the rows for the collator, and a report of truncated and dropped rows."""
        return prepare_dataset(
            dataset,
            self._tokenizer,
            max_length=args.max_length,
            prompt_template=args.prompt_template,
            packing=packing,
            shuffle_seed=args.seed if args.shuffle_dataset else None,
            num_proc=args.dataset_num_proc,
            name=name,
            text_field=args.dataset_text_field,
            with_prompts=args.generates,
            allow_prompt_only=args.prompts_suffice and name == "train",
            kept_columns=() if name == "train" else ("prompt",),  # which TRL's LogCompletionsCallback reads
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if PROMPT_COLUMN not in self._signature_columns:
            self._signature_columns.append(PROMPT_COLUMN)

    def _additional_head(self) -> nn.Module | None:
        """Return an output layer of the student that its teacher does not have."""
        return None

    def _set_teacher(self, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
        student_size = self.model.config.get_text_config().vocab_size
        self.vocabulary_size = student_size
        check_architectures(self.model, None, encoder_decoders=self._takes_encoder_decoders)
        if isinstance(model, SelfTeacher) or (model is None and self.args.uses_teacher):
            check_self_teacher(self.model, self._additional_head())
        if model is None:
            self.teacher: Teacher = SelfTeacher() if self.args.uses_teacher else NoTeacher()
            self.teacher_model = None
            return
        if isinstance(model, Teacher):
            self.teacher, self.teacher_model = model, None
            self.vocabulary_size = min(student_size, getattr(model, "vocabulary_size", student_size))
            self._require_shared_tokens()
            self._require_cached_rows()
            return
        if self.args.teacher_base_url is not None:
            self._connect_teacher(tokenizer)
            return
        given = model
        if isinstance(given, str):
            model = load_teacher(
                given,
                revision=self.args.teacher_model_revision,
                init_kwargs=self.args.teacher_model_init_kwargs,
                trust_remote_code=self.args.trust_remote_code,
            )
            check_adapter(*adapters_of(model))
        check_architectures(self.model, model, encoder_decoders=self._takes_encoder_decoders)
        self.vocabulary_size = shared_vocabulary_size(
            self._tokenizer,
            tokenizer or tokenizer_of(given, self.args, self._tokenizer),
            student_size,
            model.config.get_text_config().vocab_size,
        )
        self._require_shared_tokens()
        self.teacher = LocalTeacher(model, self.accelerator, self.args.teacher_device, self._compilation)
        self.teacher_model = self.teacher.engine

    def _connect_teacher(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.vocabulary_size = served_vocabulary_size(self.args, self._tokenizer, tokenizer, self.vocabulary_size)
        self._require_shared_tokens()
        teacher = connect_teacher(self.args, self._tokenizer, self.vocabulary_size, self.accelerator)
        run_on_main_and_broadcast(
            self.accelerator, lambda: teacher.check(longest_text(self._datasets(), self.args, self._tokenizer))
        )
        self.teacher, self.teacher_model = teacher, None

    def _start_vllm(self) -> VLLMSampler:
        sampler = VLLMSampler(
            self.model, self.args, self.accelerator, self._tokenizer, vocabulary_size=self.vocabulary_size
        )
        if (rows := self._datasets().get("train")) is not None and PROMPT_COLUMN in rows.column_names:
            longest = longest_prompt(rows)
            assert longest is not None
            sampler.check_length(longest, self.generation_config)
        self.add_callback(sampler)
        return sampler

    def _require_shared_tokens(self) -> None:
        for name, dataset in self._datasets().items():
            require_shared_tokens(dataset, self.vocabulary_size, self._tokenizer, name=name)

    def _check_positions(self) -> None:
        """Refuse texts that are longer than the table of positions of a model, which would fail in training."""
        models = {"the student": self.model, "the teacher": getattr(self.teacher, "model", None)}
        for role, model in models.items():
            positions = None if model is None else tabulated_positions(model)
            if positions is None or self._fits(positions):
                continue
            for name, dataset in named_datasets(self.train_dataset, self.eval_dataset).items():
                if isinstance(dataset, Dataset):
                    check_texts(self.args, role, positions, **self._longest_texts(dataset, name))
                elif dataset is not None:
                    logger.warning(
                        "`max_length` is %s, but %s has positions for %s tokens; a longer row of the stream %r fails.",
                        self.args.max_length,
                        role,
                        positions,
                        name,
                    )

    def _fits(self, positions: int) -> bool:
        """Return whether no text can be longer than that, whatever the data."""
        length = self.args.max_length
        if length is None or self.args.generates:
            return False
        return round_up(length, self.args.pad_to_multiple_of or 1) <= positions

    def _longest_texts(self, dataset: Dataset, name: str) -> dict[str, Any]:
        """Return the numbers of tokens of the longest row that is read and the longest prompt of generated text."""
        if name != "train":
            return {"longest_row": longest_row(dataset)}
        prompt = longest_prompt(dataset)
        return {"longest_row": 0 if self.args.prompts_suffice else longest_row(dataset), "longest_prompt": prompt}

    def _require_cached_rows(self) -> None:
        if isinstance(self.teacher, CachedTeacher):
            if self.model.config.is_encoder_decoder:
                raise ValueError(
                    "`teacher_cache` is set and `model` is an encoder-decoder, for which there are no caches; give a "
                    "causal model, or leave `teacher_cache` out."
                )
            check_cache(
                self.teacher,
                {name: self.teacher_rows(rows) for name, rows in self.prepared_datasets().items()},
                self._tokenizer,
                self.model.config.get_text_config().vocab_size,
                self.row_settings(),
            )

    def prepared_datasets(self) -> dict[str, Dataset]:
        """Return the datasets by name, after checking that their rows can be read in advance for a teacher cache."""
        datasets = named_datasets(self.train_dataset, self.eval_dataset)
        return {name: require_dataset(rows, name) for name, rows in datasets.items() if rows is not None}

    def teacher_rows(self, dataset: Dataset) -> Iterator[CachedRow]:
        """Yield the rows of a tokenized dataset for which the loss needs the teacher, without packing."""
        return unpacked_rows(dataset)

    def row_settings(self) -> dict[str, Any]:
        """Return the settings that determine the rows, as a teacher cache records them."""
        return row_settings(self.args, self._tokenizer)

    def _datasets(self) -> dict[str, Dataset]:
        """Return the tokenized datasets by name."""
        return {
            name: rows
            for name, rows in named_datasets(self.train_dataset, self.eval_dataset).items()
            if isinstance(rows, Dataset) and "input_ids" in rows.column_names
        }

    # Batches

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor]:
        """Return the micro-batches of one optimizer step, with generated text, and the number of their items."""
        batches = list(islice(epoch_iterator, num_batches))
        repeats = own_rows(self.accelerator) if batches else None
        batches = self._complete(batches)
        if repeats is not None:
            batches[-1] = self._without_repeats(batches[-1], *repeats)
        elif len(batches) > 1 and self._may_regroup:
            collator = self.data_collator
            batches = grouped_by_length(batches, collator.pad_token_id, collator.pad_to_multiple_of or 1)
        items = sum(
            (self._targets(batch).items.to(device) for batch in batches),
            start=torch.zeros((), dtype=torch.long, device=device),
        )
        if self.args.average_tokens_across_devices:
            items = self.accelerator.reduce(items, "sum")
        return batches, items

    @property
    def _may_regroup(self) -> bool:
        """Whether rows may move to other micro-batches of their step.

        Those of custom collators may have other columns, and the router loss depends on the micro-batch.
        """
        is_padded = type(self.data_collator) is DataCollatorForDistillation and self._train_batch_size > 1
        return is_padded and not self.aux_loss_enabled

    def _complete(self, batches: list[Batch]) -> list[Batch]:
        """Complete the micro-batches of one optimizer step, before their items are counted.

        The student generates the text of all on-policy micro-batches at once, and so does the teacher that of the
        others with `seq_kd`.
        """
        seed, step, completed = self.args.seed, self.state.global_step, list(batches)
        on_policy = [
            number
            for number in range(len(batches))
            if is_on_policy(self.lmbda, seed=seed, step=step, micro_batch=number)
        ]
        others = sorted(set(range(len(batches))) - set(on_policy))
        if not self.seq_kd:
            if others and self.args.prompts_suffice:  # otherwise rows without completions are dropped
                raise_on_all(lambda: self._require_completions([batches[number] for number in others]))
            others = []
        for sample, numbers in ((self._sample_student, on_policy), (self._sample_teacher, others)):
            self._require_prompts([batches[number] for number in numbers])
            prompts = [read_prompts(batches[number], self._sampling_seeds(number)) for number in numbers]
            completions = iter(sample(list(chain.from_iterable(prompts))) if prompts else ())
            for number, own in zip(numbers, prompts, strict=True):
                completed[number] = self._collate_completions(own, list(islice(completions, len(own))))
        if self.args.ce_weight > 0.0:
            for number in on_policy:
                labels = completed[number]["labels"]
                completed[number]["is_data"] = labels.new_zeros(len(labels), dtype=torch.bool)
        return completed

    def _require_prompts(self, batches: list[Batch]) -> None:
        if any("prompts" not in batch for batch in batches):
            raise ValueError(
                f"the trainer has lmbda={self.lmbda} and seq_kd={self.seq_kd}, but a batch has no `prompts` to "
                f"generate text from; create the configuration with `lmbda` above 0 (it has {self.args.lmbda}) or "
                "with seq_kd=True, or return `prompts` and `prompt_attention_mask` from `data_collator`."
            )

    def _require_completions(self, batches: list[Batch]) -> None:
        if any((batch["labels"][:, 1:] == IGNORE_INDEX).all(dim=1).any() for batch in batches):
            raise ValueError(
                f"the trainer has lmbda={self.lmbda} and seq_kd={self.seq_kd}, but a row has no completion: the "
                f"configuration has lmbda={self.args.lmbda} and seq_kd={self.args.seq_kd}, with which prompts are "
                "enough; create it with `lmbda` below 1 and seq_kd=False, so that rows without a completion are "
                "dropped."
            )

    def _without_repeats(self, batch: Batch, rows: int, own: int) -> Batch:
        """Return a batch of `rows` rows in which only the first `own` count, as the rest is also in other batches."""
        if "row_lengths" not in batch and len(batch["labels"]) % rows:
            return batch  # from a collator that joins rows, which cannot be told apart
        return without_repeats(batch, row_numbers(batch, rows), own)

    def _targets(self, batch: Batch) -> Targets:
        """Return the targets of a batch."""
        return causal_targets(batch, self.args.normalization)

    def _sampling_seeds(self, micro_batch: int) -> Iterator[int]:
        """Yield the sampling seeds of the rows of a micro-batch, by their numbers in the global batch."""
        before = micro_batch * self.accelerator.num_processes + self.accelerator.process_index
        return (
            sampling_seed(self.args.seed, self.state.global_step, row)
            for row in count(before * self._train_batch_size)
        )

    def _sample_student(self, prompts: list[Prompt]) -> list[list[int]]:
        if self._vllm_sampler is not None:
            return self._vllm_sampler.sample(prompts, self.generation_config)
        mixes = self.policy_gradient is not None and self.policy_gradient.teacher_mix > 0
        return self._student_sampler.sample(
            self.model_wrapped, prompts, self.generation_config, self._mix_teacher if mixes else None
        )

    def _sample_teacher(self, prompts: list[Prompt]) -> list[list[int]]:
        return self._teacher_sampler.sample(self.teacher_model, prompts, self.generation_config)

    def _collate_completions(self, prompts: list[Prompt], completions: list[list[int]]) -> Batch:
        stops = collect_eos_token_ids(self.generation_config)
        rows = [completed_row(prompt, each, stops) for prompt, each in zip(prompts, completions, strict=True)]
        if self.args.log_completions:
            self._completions.add(rows)
        return DataCollatorForDistillation(self._tokenizer.pad_token_id)(rows)

    @contextmanager
    def _mix_teacher(self, student: Any) -> Iterator[Callable[[torch.Tensor], TeacherMix]]:
        """Yield a function that returns the processor that mixes the teacher in, given the prompts' attention mask."""
        assert self.policy_gradient is not None
        teacher_mix = self.policy_gradient.teacher_mix
        with teacher_next_logits(
            self.teacher, student, self.accelerator, vocabulary_size=self.vocabulary_size
        ) as next_logits:
            yield lambda mask: TeacherMix(next_logits(mask), teacher_mix)

    # Loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one micro-batch, whose text was generated in `get_batch_samples`."""
        loss: torch.Tensor = SFTTrainer.training_step(self, *args, **kwargs)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | float | None = None,
    ) -> Any:
        """Return the contribution of a micro-batch to the loss of the global batch: a 0-dim float32 tensor, in nats.

        Contributions are summed over accumulation steps and averaged over ranks, as DDP and DeepSpeed do with
        gradients.

        Args:
            model (`torch.nn.Module`):
                The student, as `accelerator.prepare` returned it.
            inputs (`dict`):
                A collated batch.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Also return the student's outputs, with full logits.
            num_items_in_batch (`torch.Tensor` of shape `[tasks]` or `[]`, or `float`, *optional*):
                Number of samples in the global batch, or of target tokens with `normalization="token"`, by which the
                loss is divided. Defaults to the number in this batch.
        """
        targets = self._targets(inputs)
        items, ranks = targets.items, 1
        if num_items_in_batch is not None:
            items = torch.as_tensor(num_items_in_batch, device=items.device).expand_as(items)
            if self.model.training and self.args.average_tokens_across_devices:
                ranks = self.accelerator.num_processes  # otherwise the items are those of this rank alone
        student, weights = unwrapped(model, self.model, self.accelerator), targets.scaled_weights(items, ranks)
        if isinstance(self.teacher, CachedTeacher):
            self.teacher.step = self.state.global_step if self.model.training else None
        with self._forward_teacher(targets.teacher_inputs):
            loss, sums, router_loss = through_forward(
                model, student, lambda: self._student_loss(student, targets, weights)
            )
        mode = "train" if self.model.training else "eval"
        self.distillation_metrics[mode].add(sums, targets.weight_by_task(), number_of_tokens(inputs), loss)
        if self.aux_loss_enabled:
            steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * router_loss / steps
            self._metrics[mode]["aux_loss"].append(self.accelerator.reduce(router_loss.detach(), "mean"))
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**targets.inputs)

    def _forward_teacher(self, inputs: Batch) -> AbstractContextManager[Any]:
        """Let the teacher process a batch. If its server fails on one process, all of them raise the error."""
        if isinstance(self.teacher, ServedTeacher):
            return raise_on_all(lambda: self.teacher.forward(inputs)) or nullcontext()
        return self.teacher.forward(inputs) or nullcontext()

    def _student_loss(
        self, student: Any, targets: Targets, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss, the sums of `METRICS` `[tasks, metrics]`, and the router loss, which is 0 without experts.

        The loss is weighted by `weights`, the sums by `targets.weights`, and the router loss is not weighted. Runs
        inside the forward of the student's engine.
        """
        if not self._student_is_verified:
            verify_architecture(student, targets.inputs, role="student")
            self._student_is_verified = True
        signal = self.teacher.signal(student)
        with self.accelerator.autocast(), self._compiled(student):
            if self.aux_loss_enabled:
                hidden, router_loss = hidden_states_and_router_loss(student, targets.inputs)
            else:
                hidden, router_loss = (
                    final_hidden_states(student, targets.inputs),
                    torch.zeros((), device=weights.device),
                )
        hidden = hidden[:, : targets.labels.shape[1]]
        return *self._loss_from_hidden(student, hidden, signal, targets, weights), router_loss

    def _loss_from_hidden(
        self, student: Any, hidden: torch.Tensor, signal: Any, targets: Targets, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and the sums of `_student_loss` from hidden states `[B, T, H]` and the teacher's signal."""
        head, policy_gradient = lm_head(student).whole(), self.policy_gradient if self.model.training else None
        if policy_gradient is not None:
            require_dense(signal)
        with nullcontext() if policy_gradient is None or policy_gradient.single_step else torch.no_grad():
            divergence = self._divergence(
                head, hidden, signal, targets.labels, weights, ce_weight=self._without_own_text(targets)
            )
        loss = divergence.loss
        if policy_gradient is not None:
            loss = loss + self._long_term_part(policy_gradient, head, hidden, divergence, targets.labels, weights)
        per_token = torch.stack([getattr(divergence, name).flatten() for name in METRICS])
        precision = widest_float(hidden.device)
        return loss, (per_token.to(precision) @ targets.weights.flatten().to(precision)).unsqueeze(0)

    def _without_own_text(self, targets: Targets) -> float | torch.Tensor:
        """Return what is added to `ce_weight`, which then is 0 where the student sampled the text."""
        if targets.is_data is None:
            return 0.0
        is_own = ~targets.is_data.unsqueeze(1).expand_as(targets.labels)
        return -self.args.ce_weight * is_own.to(targets.weights.dtype)

    def _long_term_part(
        self,
        policy_gradient: PolicyGradient,
        head: LMHead,
        hidden: torch.Tensor,
        divergence: FusedDivergence,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Return 0, with the gradient of the influence of each token on the rewards of later ones."""
        assert divergence.student_nll is not None and divergence.teacher_nll is not None
        nll_weights = policy_gradient.nll_weights(divergence.student_nll, divergence.teacher_nll, labels)
        surrogate = fused_linear_cross_entropy(
            hidden,
            head,
            token_weights=weights * nll_weights,
            labels=labels,
            chunk_size=self.args.loss_chunk_size,
            vocab_size=self.vocabulary_size,
        ).loss
        return surrogate - surrogate.detach()

    def _divergence(
        self,
        head: LMHead,
        hidden: torch.Tensor,
        signal: TeacherSignal,
        labels: torch.Tensor,
        weights: torch.Tensor,
        *,
        ce_weight: float | torch.Tensor = 0.0,
    ) -> FusedDivergence:
        """Return the configured divergence for labels `[B, T]`. The signal may be longer in T.

        `ce_weight` is added to that of the configuration.
        """
        knobs = self.args.divergence_knobs
        if self.schedule is not None:
            moving = self.schedule.value if self.model.training else self.schedule.evaluation_value
            knobs = {**knobs, self.schedule.knob: moving}
        return fused_divergence(
            hidden,
            head,
            signal[:, : labels.shape[1]],
            token_weights=weights,
            divergence=self.args.divergence,
            knobs=knobs,
            temperature=self.args.kd_temperature,
            labels=labels,
            ce_weight=self.args.ce_weight + ce_weight,
            chunk_size=self.args.loss_chunk_size,
            vocab_size=self.vocabulary_size,
        )

    # Logs

    def _begin_training(self, is_resumed: bool) -> None:
        """Discard what an interrupted step left behind, and count tokens from 0 unless training resumes."""
        self.distillation_metrics["train"] = DistillationMetrics(self._measured)
        self._metrics["train"].clear()
        self._completions.clear()
        if not is_resumed:
            self._total_train_tokens = 0
        if (counts := self._stream_counts.get(id(self.train_dataset))) is not None:
            counts.clear()

    def _finish_epoch(self, has_batches: bool) -> None:
        """Report the rows of a stream, which are counted as they are read, and refuse a run without a batch."""
        reason = self._report_stream(self.train_dataset)
        if not has_batches:
            if self.args.dataloader_drop_last and not reason:
                reason = " (`dataloader_drop_last` is on, and a batch has more rows than the dataset)"
            raise ValueError(
                f"an epoch of the train dataset has no batch, so nothing can be learned{reason}; check its rows, "
                f"`max_length` ({self.args.max_length}) and the batch size."
            )

    def _name_of(self, dataset: Any) -> str:
        named = named_datasets(self.train_dataset, self.eval_dataset)
        return next((name for name, each in named.items() if each is dataset), "evaluation")

    def _report_stream(self, dataset: Any) -> str:
        """Log how many rows of a stream were kept and dropped, as the first process read it.

        Done once per stream; the sentence is returned in parentheses, or nothing.
        """
        counts = self._stream_counts.pop(id(dataset), None)
        report = None if counts is None else counts.report()
        if report is None or report.rows == 0:
            return ""
        if self.args.process_index == 0:
            level = logging.INFO if report.is_clean else logging.WARNING
            logger.log(level, "Stream of the %s dataset: %s", self._name_of(dataset), report.summary())
        return f" ({report.summary().removesuffix('.')})"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as [`trl.SFTTrainer`] does, and the latest completions with `log_completions`."""
        for metrics in self._metrics.values():
            if "aux_loss" in metrics:  # kept on the device until now
                metrics["aux_loss"] = [float(loss) for loss in metrics["aux_loss"]]
        super().log(logs, start_time)
        self._completions.write(self.state.global_step)

    def compute_loss_context_manager(self) -> ExitStack:
        """Return the context of `compute_loss`, after which the means of a complete step are reduced.

        The backward pass is then launched without waiting for them.
        """
        contexts: ExitStack = super().compute_loss_context_manager()
        contexts.push(self._start_reduction)
        return contexts

    def _start_reduction(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not None or not (self.model.training and self.accelerator.sync_gradients):
            return
        metrics = self.distillation_metrics["train"]
        metrics.start_reduction(self.accelerator)
        if self.is_deepspeed_enabled and not metrics.is_empty():  # its backward pass updates the student
            metrics.check_finite(self.accelerator, self.state.global_step, self.args)

    def _finish_step(self) -> None:
        """Check and log the means over the micro-batches and ranks of a step, then update the divergence's knob.

        Called before the optimizer step, while the device may still compute the backward pass.
        """
        metrics = self.distillation_metrics["train"]
        if metrics.is_empty():  # a subclass overrides `compute_loss`
            if self.schedule is not None and self.schedule is not self.adaptive_beta:
                raise ValueError(
                    f"`divergence` is {self.args.divergence!r}, whose {self.schedule.knob} depends on the mean "
                    f"divergence of each step, but `{type(self).__name__}.compute_loss` does not measure it; call "
                    "`super().compute_loss` in it, or choose another `divergence`."
                )
            return
        metrics.check_finite(self.accelerator, self.state.global_step, self.args)
        means, tokens = metrics.reduce(self.accelerator)
        self._total_train_tokens += tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        for key, mean in self._report(means, self.adaptive_beta.value).items():
            self._metrics["train"][key].append(mean)
        self._step_schedule(means)

    def _report(self, means: list[Means], beta: float) -> dict[str, float]:
        """Return the means of `METRICS` by their names in the logs; subclasses may need `beta` for others."""
        return {key: means[0].by_name[name] for name, key in METRICS.items()}

    def _step_schedule(self, means: list[Means]) -> None:
        if self.schedule is None or means[0].weight == 0:
            return
        self._metrics["train"][f"kd/{self.schedule.knob}"].append(self.schedule.value)
        progress = (self.state.global_step + 1) / self.state.max_steps
        self.schedule.update(means[0].by_name, progress)

    def _loss_of(self, means: list[Means], beta: float) -> float:
        """Return the objective's value from the means of its parts and the share `beta` of reverse KL."""
        return loss_from_means(means[0].by_name, beta, self.args)

    # Evaluation

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader[Any]:
        """Return a dataloader. Evaluations read all rows, even with `dataloader_drop_last`."""
        given = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = given and is_training
        try:
            batches: DataLoader[Any] = super()._get_dataloader(
                dataset if is_training else self._rows_to_evaluate(dataset), *args, is_training=is_training, **kwargs
            )
        finally:
            self.args.dataloader_drop_last = given
        if is_training:
            require_batch(batches, self.args)
        return batches

    def _rows_to_evaluate(self, dataset: Any) -> Any:
        """Return a dataset unchanged, or a stream as a list of rows, which can be divided evenly over processes."""
        rows, reason = dataset, ""
        if isinstance(dataset, torch.utils.data.IterableDataset):
            if (counts := self._stream_counts.get(id(dataset))) is not None:
                counts.clear()
            rows = list(dataset)
            reason = self._report_stream(dataset)
        if len(rows) == 0:
            raise ValueError(
                f"the {self._name_of(dataset)} dataset has no row with a target{reason}; check its rows and "
                f"`max_length` ({self.args.max_length})."
            )
        return rows

    def prediction_step(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch, ignoring rows that are also in other batches."""
        repeats = own_rows(self.accelerator)
        inputs = inputs if repeats is None else self._without_repeats(inputs, *repeats)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate, and report the loss and the means of `METRICS` over all samples, independently of the batch size.

        A knob that changes during training has the same value in all evaluations, so that the loss depends on the
        student and the data alone. If β is learned or drawn, `training_loss` is the loss with the current β.
        """
        self.distillation_metrics["eval"] = DistillationMetrics(self._measured)
        self._metrics["eval"].clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if not self.distillation_metrics["eval"].is_empty():
            self.distillation_metrics["eval"].check_finite(self.accelerator, self.state.global_step, self.args)
            means, _ = self.distillation_metrics["eval"].reduce(self.accelerator)
            beta = self.adaptive_beta.evaluation_value
            report = {"loss": self._loss_of(means, beta), **self._report(means, beta)}
            if self.args.uses_teacher and self.args.uses_beta and self.args.beta is None:
                report["training_loss"] = self._loss_of(means, self.adaptive_beta.value)
            output.metrics.update({f"{metric_key_prefix}_{key}": mean for key, mean in report.items()})
        return output

    # Checkpoints and the Hub

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Return the number of finished epochs, and of batches already read in the current one.

        `Trainer` assumes that a stream, whose length is unknown, is still in its first epoch.
        """
        done, batches = super()._init_training_state(max_steps, steps_per_epoch, epochs, checkpoint, trial)
        if checkpoint is None or has_length(self.train_dataset) or self.state.global_step == 0:
            return done, batches
        saved = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        load_state(checkpoint, self.adaptive_beta, self.schedule, self._loss_settings())
        done = self.adaptive_beta.epoch
        steps = round((saved.epoch - done) * saved.max_steps)
        self.state.epoch = done + steps / max_steps
        return done, 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps

    def _loss_settings(self) -> dict[str, Any]:
        """Return the settings of the loss that a resumed run must share with its checkpoint."""
        if not isinstance(self.teacher, CachedTeacher):
            return self.args.loss_settings
        return {**self.args.loss_settings, "teacher_cache": f"signals {self.teacher.manifest.identity}"}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_state(output_dir, self.adaptive_beta, self.schedule, self._loss_settings(), self._total_train_tokens)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._total_train_tokens = load_state(checkpoint, self.adaptive_beta, self.schedule, self._loss_settings())
        super()._load_optimizer_and_scheduler(checkpoint)

    def _objective(self) -> dict[str, Any]:
        """Return the settings of the objective for the model card."""
        return objective(self.args)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository as [`transformers.Trainer`] does, before training.

        Raises:
            HubError: If the Hub refuses, or cannot be reached.
        """
        name = str(self.args.hub_model_id or Path(str(self.args.output_dir)).name)
        given = self.args.hub_private_repo
        if private is not None:  # an argument of this method from transformers 5.23 on
            self.args.hub_private_repo = private
        try:
            request(lambda: super(AKDTrainer, self).init_hf_repo(token), name, "")
        finally:
            self.args.hub_private_repo = given

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the student, its tokenizer, its card and its recipe in one commit, and no other files.

        Arguments are those of [`transformers.Trainer.push_to_hub`].

        Raises:
            HubError: If the upload fails; the message says how to repeat it.
            ValueError: If a file contains the token or another secret of the environment; nothing is uploaded.
        """
        return upload_student(
            self,
            commit_message=commit_message,
            blocking=blocking,
            token=token,
            revision=revision,
            private=private,
            **kwargs,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            upload_checkpoint(self, Path(checkpoint_folder))

    def _card_method(self) -> str:
        """Return the name of the method for the model card."""
        return method_name(self.args)

    def _card_tags(self) -> list[str]:
        """Return the tags of the model card; without `akd` if β is not learned."""
        return [tag for tag in self._tag_names if tag != "akd" or is_adaptive(self.args)]

    def _card_facts(self) -> dict[str, str]:
        """Return additional rows for the table at the top of the model card."""
        rows = getattr(self._training_data, "num_rows", None)
        facts = {} if rows is None else {"Training rows": f"{rows:,}"}
        steps = self.state.global_step
        return facts if steps == 0 else {**facts, **training_facts(self.args, steps)}

    def _card_explanation(self) -> str:
        """Return the model card's paragraphs on the method and its equation, in Markdown."""
        return explain_divergence(self.args)

    def _card_sections(self) -> list[str]:
        """Return additional sections of the model card in Markdown, each beginning with its heading."""
        knob = None if self.schedule is None else self.schedule.knob
        section = draw_schedule(knob, self.state.log_history, Path(str(self.args.output_dir)))
        return [] if section is None else [section]

    def _measured_step(self) -> int | None:
        """Return the step of the saved model's scores: that of the best one if `load_best_model_at_end` is on."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return best if best in self.scores else next(reversed(self.scores), None)

    def _measured_scores(self) -> list[EvalResult]:
        """Return the scores of the saved model."""
        step = self._measured_step()
        return [] if step is None else self.scores[step]

    def _measurements(self) -> dict[str, str]:
        """Return the model card's sections on errors, and on the student before and after training, by key."""
        step = self._measured_step()
        found: dict[str, str] = {}
        if step and step in self.outcomes:
            found |= errors_section(self.scores[step][0].dataset_name, self.outcomes[step])
        if step and 0 in self.scores:
            found |= before_and_after(self.scores[0], self.scores[step])
        return found

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the model card, with provenance and scores, to `README.md` in the output folder.

        Its facts about the run are also written to `run.json`, for the report of the run.
        """
        if not self.is_world_process_zero():
            return
        if dataset_name is not None:
            self.provenance.dataset = dataset_name
        if self.provenance.commit is None:
            self.provenance.commit = git_commit(Path.cwd())
        repository = str(self.hub_model_id or self.args.hub_model_id or self.args.output_dir)
        content = ModelCardContent(
            method=self._card_method(),
            objective=self._objective(),
            model_name=model_name or repository.split("/")[-1],
            repository=repository,
            tags=[*self._card_tags(), *([tags] if isinstance(tags, str) else tags or [])],
            explanation=self._card_explanation(),
            encoder_decoder=self.model.config.is_encoder_decoder,
            adapter=hasattr(self.accelerator.unwrap_model(self.model), "peft_config"),
            facts=self._card_facts(),
            results=self._measured_scores(),
            measurements=self._measurements(),
            sections=self._card_sections(),
            prompts=self.prompt_format,
            max_new_tokens=min(256, default_max_new_tokens(self.model.config)),
            measured_step=self._measured_step(),
        )
        base = read_base_model(self.provenance.student, online=self.args.push_to_hub)
        model_card(self.provenance, content, base).save(f"{self.args.output_dir}/README.md")
        write_run_facts(Path(str(self.args.output_dir)), self.provenance, content)


@contextmanager
def _first_row_expected() -> Iterator[None]:
    """Explain the error of SFTTrainer's constructor, which reads the first row, for a training stream without rows."""
    try:
        yield
    except StopIteration as error:
        raise ValueError(
            "the train dataset is a stream without rows; check the files or the split it reads, and its filters."
        ) from error


@contextmanager
def _as_padded(args: AKDConfig) -> Iterator[None]:
    """Hide `padding_free` from SFTTrainer's constructor, which refuses it together with `max_length`.

    Here rows are cut to `max_length` when they are tokenized.
    """
    given, args.padding_free = args.padding_free, False
    try:
        yield
    finally:
        args.padding_free = given
