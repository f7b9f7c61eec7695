"""Number of times that the host waits for the device in an optimizer step.

Counted on a CPU: operations whose result has values or a shape that the host must know. On CUDA each of them waits for
everything that was launched before. Operations on tensors that are never on a GPU are left out.
"""

import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, TrainerCallback

import trl_akd
from tests import tiny
from tests.codeplan import world
from tests.iterkd import world as pairs_world
from trl_akd import AKDConfig, AKDTrainer, CodePLANConfig, CodePLANTrainer, IterKDConfig
from trl_akd.iterkd.pair_trainer import PairTrainer
from trl_akd.losses import SparseSignal

aten: Any = torch.ops.aten
READS_VALUES = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
ON_THE_HOST = ("beta.py", "torch/utils/data", "torch/optim")
UPSTREAM = {
    "_ignore_causal_mask_sdpa",  # transformers: whether any token is padding, in each forward pass
    "find_packed_sequence_indices",  # transformers: whether a padding-free batch has several samples
}
GENERATION = {"_sample_student", "read_prompts", "_collate_completions"}  # before the step; each token is read
PACKAGES = tuple(str(Path(str(package.__file__)).parent) + os.sep for package in (trl_akd, transformers))
MICRO_BATCHES = 2

# Functions that remain, and why the host waits in them.
MEANS = "values"  # once per step: means of all micro-batches and ranks, copied while the backward pass runs
LENGTHS = "grouped_by_length"  # once per step: rows of similar length share a micro-batch
LOSS = "_weighted_rows"  # once per fused loss: the number of target tokens determines the sizes of buffers
ANSWERS = "correct"  # once per micro-batch: the longest correct answer determines the teacher's inputs
TASKS = "select_task"  # twice per micro-batch: rows and widths of the task that is kept


class Synchronizations(TorchDispatchMode):
    """Count the operations after which the host needs a value from the device, by the function that calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS_VALUES or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
            self.add()
        elif func in INDEXES:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.add()
        return func(*args, **kwargs)

    def add(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if "test_synchronization" not in frame.filename]
        on_the_host = any(part in frame.filename for frame in frames for part in ON_THE_HOST)
        if not on_the_host and all(frame.name not in GENERATION for frame in frames):
            own = [frame for frame in frames if frame.filename.startswith(PACKAGES)]
            self.found[own[-1].name] += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the operations inside the context, and what leaves torch without a dispatched operation."""
        with pytest.MonkeyPatch.context() as patch, self:
            for owner, name in ((torch.Tensor, "tolist"), (torch.Tensor, "cpu"), (torch.Tensor, "numpy")):
                patch.setattr(owner, name, self._counted(getattr(owner, name)))
            for name in ("tensor", "as_tensor"):  # from the host, which must not change the memory meanwhile
                patch.setattr(torch, name, self._counted(getattr(torch, name), is_read=lambda x: torch.is_tensor(x)))
            yield

    def _counted(self, function: Any, is_read: Any = lambda _: False) -> Any:
        def counted(value: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_read(value):
                self.add()
            return function(value, *args, **kwargs)

        return counted


class Watch(TrainerCallback):
    """Count the synchronizations of one optimizer step, the second one, as the first one verifies the models."""

    def __init__(self) -> None:
        self.mode = Synchronizations()
        self.steps = 0
        self._context: Any = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps == 1:
            self._context = self.mode.watching()
            self._context.__enter__()
        elif self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None


class TopK:
    """Teacher with a sparse signal."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def forward(self, inputs: Any) -> None:
        with torch.no_grad():
            self.logits = self.model(**inputs, use_cache=False).logits

    def signal(self, student: Any) -> SparseSignal:
        return SparseSignal.from_logits(self.logits, 8)


def make_akd(pair: Any, settings: Any, callback: Any) -> Any:
    return AKDTrainer(*pair, AKDConfig(**settings), train_dataset=tiny.rows(16), callbacks=[callback])


def make_sparse(pair: Any, settings: Any, callback: Any) -> Any:
    teacher = TopK(AutoModelForCausalLM.from_pretrained(pair[1]))
    return AKDTrainer(pair[0], teacher, AKDConfig(**settings), train_dataset=tiny.rows(16), callbacks=[callback])


def make_codeplan(pair: Any, settings: Any, callback: Any) -> Any:
    models = pair if settings.get("code_objective") == "akd" else pair[:1]
    args = CodePLANConfig(**settings)
    return CodePLANTrainer(*models, args=args, train_dataset=world.problems(16), callbacks=[callback])


def make_pairs(pair: Any, settings: Any, callback: Any) -> Any:
    models = pair if settings["objective"] == "akd" else pair[:1]
    args = IterKDConfig(**settings)
    return PairTrainer(*models, args=args, train_dataset=pairs_world.pairs(16), callbacks=[callback])


@pytest.mark.parametrize(
    ("make", "settings", "per_micro_batch", "per_step"),
    [
        (make_akd, {}, {LOSS: 1}, {LENGTHS: 1}),
        (make_akd, {"divergence": "taid", "ce_weight": 0.5, "normalization": "token"}, {LOSS: 1}, {LENGTHS: 1}),
        (make_akd, {"padding_free": True}, {LOSS: 1}, {}),
        (make_akd, {"lmbda": 1.0, "max_new_tokens": 4}, {LOSS: 1}, {LENGTHS: 1}),
        (make_sparse, {}, {LOSS: 1}, {LENGTHS: 1}),
        (make_codeplan, {"code_objective": "akd"}, {LOSS: 2}, {}),  # programs and plans
        (make_codeplan, {"schedule": "alternate"}, {LOSS: 2, TASKS: 2}, {}),
        (make_pairs, {"objective": "ce"}, {LOSS: 2, ANSWERS: 1}, {}),  # log-probabilities; gradient of both losses
        # Log-probabilities; gradient of both losses of correct answers; gradient of faulty answers.
        (make_pairs, {"objective": "akd", "contrastive_loss": "simpo"}, {LOSS: 3, ANSWERS: 1}, {}),
    ],
    ids=[
        "akd", "another divergence", "without padding", "on-policy", "sparse signal", "codeplan", "one task", "iterkd",
        "iterkd with a teacher",
    ],
)  # fmt: skip
def test_the_host_waits_only_where_it_must(pair, tmp_path, make, settings, per_micro_batch, per_step):
    run = {
        **tiny.SHORT_RUN,
        "output_dir": str(tmp_path),
        "max_length": 256,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "logging_steps": 10,
        "max_steps": 3,
        **settings,
    }
    watch = Watch()
    make(pair, run, watch).train()
    found = {name: number for name, number in watch.mode.found.items() if name not in UPSTREAM}
    expected = {name: MICRO_BATCHES * number for name, number in per_micro_batch.items()}
    assert found == expected | per_step | {MEANS: 1}
