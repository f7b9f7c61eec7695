"""Cost of the fused divergence: matrix products and memory, counted rather than timed."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.losses.problem import run
from tests.losses.test_divergences import RULES, SOME_RULES
from trl_akd.losses import divergences
from trl_akd.losses.fused_linear import _block_size, _chunk_size
from trl_akd.losses.lm_head import LMHead
from trl_akd.losses.pointwise import Objective, divergence_and_gradient_

TOKENS, IGNORED, WORDS, STUDENT_WIDTH, TEACHER_WIDTH, CHUNK = 48, 16, 500, 8, 12, 5
ALL_LOGITS = (TOKENS - IGNORED) * WORDS


@pytest.fixture
def arguments():
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(TOKENS)
    weights[torch.randperm(TOKENS, generator=generator)[:IGNORED]] = 0.0
    return {
        "student_hidden": torch.randn(TOKENS, STUDENT_WIDTH, generator=generator).requires_grad_(),
        "student_weight": torch.randn(WORDS, STUDENT_WIDTH, generator=generator).requires_grad_(),
        "teacher_hidden": torch.randn(TOKENS, TEACHER_WIDTH, generator=generator),
        "teacher_weight": torch.randn(WORDS, TEACHER_WIDTH, generator=generator),
        "student_bias": torch.zeros(WORDS, requires_grad=True),
        "token_weights": weights,
        "beta": 0.3,
        "chunk_size": CHUNK,
        "labels": torch.zeros(TOKENS, dtype=torch.long),
        "ce_weight": 0.1,
        "temperature": 2.0,
        "student_softcap": 30.0,
    }


class Spy(TorchDispatchMode):
    """Count the multiplications of matrix products, and record the size of every new storage."""

    def __init__(self):
        super().__init__()
        self.multiplications = 0
        self.operations = set()
        self.sizes = []
        self.known = {}  # Storages by address, kept alive so that no address is used twice.

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        list(self.unknown((args, kwargs)))
        self.operations.add(function.overloadpacket)
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = [tensor for tensor in args if isinstance(tensor, torch.Tensor)][-2:]
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        elif function.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.linear):
            raise AssertionError(f"{function} is not counted here")
        self.sizes += [storage.nbytes() // itemsize for storage, itemsize in self.unknown(result)]
        return result

    def unknown(self, values):
        """Yield the storages of `values` that were not seen before."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.known[storage.data_ptr()] = storage
                    yield storage, tensor.itemsize


def products(*widths):
    return (TOKENS - IGNORED) * WORDS * sum(widths)


def test_four_matrix_products_and_no_token_of_weight_zero(arguments):
    with Spy() as spy:
        run(arguments).loss.backward()
    assert spy.multiplications == products(STUDENT_WIDTH, TEACHER_WIDTH, STUDENT_WIDTH, STUDENT_WIDTH)


def test_a_frozen_head_saves_a_product_and_its_buffer(arguments):
    arguments["student_weight"].requires_grad_(False)
    with Spy() as spy:
        run(arguments).loss.backward()
    assert spy.multiplications == products(STUDENT_WIDTH, TEACHER_WIDTH, STUDENT_WIDTH)
    assert arguments["student_weight"].grad is None
    assert WORDS * STUDENT_WIDTH not in spy.sizes


def test_a_frozen_backbone_saves_a_product(arguments):
    arguments["student_hidden"].requires_grad_(False)
    with Spy() as spy:
        run(arguments).loss.backward()
    assert spy.multiplications == products(STUDENT_WIDTH, TEACHER_WIDTH, STUDENT_WIDTH)


def test_only_projections_without_gradients(arguments):
    with Spy() as spy, torch.no_grad():
        run(arguments)
    assert spy.multiplications == products(STUDENT_WIDTH, TEACHER_WIDTH)
    assert WORDS * STUDENT_WIDTH not in spy.sizes
    assert not spy.operations & {torch.ops.aten.addcmul_, torch.ops.aten.scatter_add_, torch.ops.aten.square_}


@pytest.mark.parametrize("case", SOME_RULES)
def test_full_logits_are_never_stored(case, arguments):
    name, knobs, _ = RULES[case]
    with Spy() as spy:
        run(arguments | {"divergence": name, "knobs": knobs}).loss.backward()
    assert max(spy.sizes) == max(2 * CHUNK * WORDS, WORDS * STUDENT_WIDTH)
    assert max(spy.sizes) < ALL_LOGITS


@pytest.mark.parametrize("case", [case for case, (name, *_) in RULES.items() if divergences.get(name).fused])
def test_hand_written_gradients_work_in_place(case):
    name, knobs, _ = RULES[case]
    generator = torch.Generator().manual_seed(0)
    student, teacher = 9 * torch.randn(2, CHUNK, WORDS, generator=generator)
    scratch, labels = torch.empty(2, CHUNK, WORDS), torch.zeros(CHUNK, dtype=torch.long)
    with Spy() as spy, torch.no_grad():
        divergence_and_gradient_(student, teacher, labels, Objective(divergences.get(name), knobs, 1.0, 0.0), scratch)
    assert max(spy.sizes) < CHUNK * WORDS / 2


def test_each_model_goes_through_one_softmax_per_block(arguments):
    counted = Counter()

    class Count(Spy):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counted[function.overloadpacket] += 1
            return super().__torch_dispatch__(function, types, args, kwargs)

    with Count():
        run(arguments | {"temperature": 1.0})
    blocks = -(-(TOKENS - IGNORED) // CHUNK)
    assert counted[torch.ops.aten.softmax] == 2 * blocks
    of_the_check = 2  # of the rule's arguments, on a single token
    assert max(counted[torch.ops.aten.exp], counted[torch.ops.aten.log_softmax]) <= of_the_check


@pytest.mark.parametrize("words", [1, 511, 512, 513, 1500])
def test_heads_are_multiplied_in_parts(words):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 8, generator=generator), torch.randn(words, 8, generator=generator)
    out = torch.full((7, words), torch.nan)
    with Spy() as spy:
        LMHead(weight).project(hidden, out=out)
    torch.testing.assert_close(out, hidden @ weight.t())
    assert spy.multiplications == 7 * words * 8


@pytest.mark.parametrize("words", [64, 49152, 152064])
def test_autograd_sees_small_blocks(words):
    size = _block_size(1024, 4 * words, torch.device("cpu"), by_autograd=True)
    assert 1 <= size <= 1024
    assert size * words * 4 <= 2 * 2**20


def test_gradients_are_the_buffers_of_the_forward_pass(arguments):
    loss = run(arguments).loss
    with Spy() as spy:
        loss.backward()
    assert max(spy.sizes, default=0) <= 1
    assert arguments["student_weight"].grad.shape == (WORDS, STUDENT_WIDTH)
    assert spy.multiplications == 0


def test_heads_are_not_copied(arguments):
    with Spy() as spy, torch.no_grad():
        run(arguments)
    assert WORDS * TEACHER_WIDTH not in spy.sizes


@pytest.mark.parametrize(("tokens", "words"), [(1, 50), (1024, 49152), (8192, 152064), (300, 64)])
def test_default_chunks(tokens, words):
    size = _chunk_size(tokens, 4 * words, torch.device("cpu"), buffers=4)
    assert 1 <= size <= tokens
    assert size <= 256 or size * words * 4 <= 64 * 2**20
