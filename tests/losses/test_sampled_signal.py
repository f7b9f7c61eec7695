"""Losses from a sample of the tail: unbiased, by enumeration of all samples, and exact from all tokens."""

from dataclasses import replace

import pytest
import torch

from tests.losses.problem import OPTIONS as PROBLEMS
from tests.losses.problem import TOKENS, gradients, logits, problem, reference_loss, run
from tests.losses.test_sparse_signal import run as run_signal
from tests.losses.test_sparse_signal import slopes, top
from trl_akd.losses import DenseSignal, LMHead, SampledSignal, SparseSignal, divergences
from trl_akd.losses.fused_linear import fused_divergence
from trl_akd.losses.tail_sampling import sample_tail

WORDS = 11
MIXES = {"forward_kl": {}, "reverse_kl": {}, "akd": {"beta": 0.3}}
EVERY_MIX = pytest.mark.parametrize(("name", "knobs"), MIXES.items(), ids=MIXES)
OPTIONS = {
    "plain": {},
    "chunks": {"chunk_size": 2, "bias": True},
    "everything": {**PROBLEMS["everything"], "vocab_size": WORDS},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def sampled(arguments, k, samples, offsets):
    head = LMHead(
        arguments["teacher_weight"],
        arguments.get("teacher_bias"),
        arguments.get("teacher_logit_scale", 1.0),
        arguments.get("teacher_softcap"),
    )
    temperature = arguments.get("temperature", 1.0)
    normalizer = (logits(arguments, "teacher") / temperature).logsumexp(-1)
    return SampledSignal(top(arguments, k), arguments["teacher_hidden"], head, normalizer, offsets, samples)


def sampled_from(dense, k, samples, offsets):
    found = dense.head.logits(dense.hidden).to(torch.promote_types(dense.hidden.dtype, torch.float32))
    tops = SparseSignal.from_logits(found, k)
    return SampledSignal(tops, dense.hidden, dense.head, found.logsumexp(-1), offsets, samples)


def inclusion(q, ids, samples):
    """The probabilities with which tokens are sampled."""
    tail = q.scatter(-1, ids, 0.0)
    mix = 0.9 * tail / tail.sum(-1, keepdim=True) + 0.1 / q.shape[-1]
    return (samples * mix).clamp(max=1.0).scatter(-1, ids, 0.0)


def every_sample(arguments, k, samples):
    """Yield a random number of each set of samples, the same for all tokens, and the probability of the set."""
    q = (logits(arguments, "student") / arguments.get("temperature", 1.0)).softmax(-1).detach()
    ends = inclusion(q, top(arguments, k).ids, samples).cumsum(-1).remainder(1).flatten()
    ends = torch.cat([torch.tensor([0.0, 1.0], dtype=ends.dtype), ends]).unique()
    yield from zip(((ends[1:] + ends[:-1]) / 2).tolist(), ends.diff().tolist(), strict=True)


@pytest.mark.parametrize(
    ("k", "samples"),
    [(3, 2), (10, 1), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(1, 1), (3, 5)])],
)
@EVERY_OPTION
@EVERY_MIX
def test_means_over_all_samples_are_exact(name, knobs, options, k, samples):
    arguments = problem(**options) | {"divergence": name, "knobs": knobs}
    expected, exact = run(arguments), gradients(run(arguments).loss, arguments)
    torch.testing.assert_close(expected.loss, reference_loss(arguments))
    means = {field: torch.zeros(TOKENS, dtype=torch.float64) for field in ("divergence", "forward_kl", "reverse_kl")}
    slope_means, losses = [torch.zeros_like(each) for each in exact], []
    for offset, share in every_sample(arguments, k, samples):
        offsets = torch.full((TOKENS,), offset, dtype=torch.float64)
        found = run_signal(arguments, sampled(arguments, k, samples, offsets), name, knobs)
        for field, mean in means.items():
            mean += share * getattr(found, field)
        for mean, each in zip(slope_means, slopes(found.loss, arguments), strict=True):
            mean += share * each
        losses.append(found.loss.item())
    assert max(losses) - min(losses) > 1e-3 * expected.loss.item() or samples >= WORDS - k, "there is no randomness"
    for field, mean in means.items():
        torch.testing.assert_close(mean, getattr(expected, field), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(slope_means, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("k", [1, 4, WORDS])
@EVERY_OPTION
@EVERY_MIX
def test_equals_the_dense_signal_if_all_tokens_are_sampled(name, knobs, options, k):
    arguments = problem(**options) | {"divergence": name, "knobs": knobs}
    signal = sampled(arguments, k, WORDS, torch.rand(TOKENS, dtype=torch.float64))
    expected, found = run(arguments), run_signal(arguments, signal, name, knobs)
    for field in ("loss", "divergence", "forward_kl", "reverse_kl", "student_entropy", "student_nll"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slopes(found.loss, arguments), gradients(expected.loss, arguments))


def test_nll_of_the_teacher_is_that_of_the_label():
    arguments = problem(labels=True, temperature=1.8)
    found = run_signal(arguments, sampled(arguments, 1, 1, torch.zeros(TOKENS, dtype=torch.float64)))
    log_p = (logits(arguments, "teacher") / 1.8).log_softmax(-1)
    for token, label in enumerate(arguments["labels"].tolist()):
        counts = label >= 0 and arguments["token_weights"][token] > 0
        assert found.teacher_nll[token].item() == pytest.approx(-log_p[token, label].item() if counts else 0.0)


@EVERY_MIX
def test_estimates_are_at_least_the_bound(name, knobs):
    """Of a sparse signal with the same tokens, whatever the sample: no estimate is negative."""
    arguments = problem()
    bound = run_signal(arguments, top(arguments, 2), name, knobs)
    for offset, _ in every_sample(arguments, 2, 3):
        signal = sampled(arguments, 2, 3, torch.full((TOKENS,), offset, dtype=torch.float64))
        found = run_signal(arguments, signal, name, knobs)
        for field in ("divergence", "forward_kl", "reverse_kl"):
            assert (getattr(found, field) >= getattr(bound, field) - 1e-12).all()


def test_a_token_does_not_depend_on_others():
    """The estimate of a token is the same in other chunks, alone, and next to tokens without a signal."""
    arguments = problem(labels=True)
    signal = sampled(arguments, 3, 2, torch.rand(TOKENS, dtype=torch.float64))
    expected = run_signal(arguments, signal)
    for size in (1, 3):
        torch.testing.assert_close(run_signal(arguments | {"chunk_size": size}, signal).loss, expected.loss)
    for token in (0, 3):
        rows = slice(token, token + 1)
        alone = {
            name: each[rows] if isinstance(each, torch.Tensor) and len(each) == TOKENS else each
            for name, each in arguments.items()
        }
        torch.testing.assert_close(run_signal(alone, signal[rows]).divergence, expected.divergence[rows])
    unknown = arguments["token_weights"] == 0
    tensors = {
        name: torch.where(unknown.view(-1, *[1] * (each.ndim - 1)), torch.nan, each)
        for name, each in (("hidden", signal.hidden), ("log_normalizer", signal.log_normalizer))
    }
    torch.testing.assert_close(run_signal(arguments, replace(signal, **tensors)).loss, expected.loss)


@pytest.mark.parametrize("q", ["random", "peaked", "impossible"])
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_tokens_are_sampled_with_their_probabilities(q, samples):
    """Also tokens that the student finds impossible, and never those that are not in the tail."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(1, WORDS, generator=generator, dtype=torch.float64)
    scores[0, 7] += {"random": 0.0, "peaked": 9.0, "impossible": 9.0}[q]
    scores[0, 2] = -torch.inf if q == "impossible" else scores[0, 2]
    probabilities, ids = scores.softmax(-1), torch.tensor([[4, 0, 4]])
    expected = inclusion(probabilities, ids, samples)
    assert (expected[0, [1, 2, 3, 5]] > 0).all()
    ends = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), expected.cumsum(-1)[0].remainder(1)]).unique()
    found = torch.zeros_like(expected)
    for start, share in zip((ends[1:] + ends[:-1]) / 2, ends.diff(), strict=True):
        sample = sample_tail(probabilities, ids, start[None], samples, torch.empty_like(probabilities))
        chosen = sample.ids[0][sample.weights[0] > 0]
        assert len(chosen) == len(chosen.unique()) <= samples
        torch.testing.assert_close(sample.weights[0][sample.weights[0] > 0], 1 / expected[0, chosen])
        found[0, chosen] += share
    torch.testing.assert_close(found, expected)


def test_rounding_causes_no_bias():
    """In float32, with probabilities near the resolution of their sums: weights times frequencies are 1."""
    generator = torch.Generator().manual_seed(0)
    q = (6 * torch.randn(1, 20_000, generator=generator)).softmax(-1)
    ids, total = q.topk(64).indices, torch.zeros(20_000, dtype=torch.float64)
    for offsets in ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).split(100):
        rows = [each.expand(len(offsets), -1) for each in (q, ids)]
        sample = sample_tail(*rows, offsets, 64, torch.empty(len(offsets), 20_000))
        total.index_add_(0, sample.ids.flatten(), sample.weights.double().flatten())
    for group in (total / 2000)[q.argsort()[0]][: 20_000 - 64].chunk(4):
        assert group.mean().item() == pytest.approx(1.0, abs=0.05)


def test_half_precision_and_float32_agree():
    arguments = problem(dtype=torch.float32)
    offsets = torch.rand(TOKENS, dtype=torch.float64)
    expected = run_signal(problem(), sampled(problem(), 3, 4, offsets))
    found = run_signal(arguments, sampled(arguments, 3, 4, offsets))
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    dense = DenseSignal(arguments["teacher_hidden"].bfloat16(), LMHead(arguments["teacher_weight"].bfloat16()))
    signal = sampled_from(dense, 3, WORDS, offsets)
    half = run_signal(arguments, signal)
    assert half.loss.item() == pytest.approx(run_signal(arguments, dense).loss.item(), rel=0.05)


@pytest.mark.parametrize("name", sorted(set(divergences.names()) - set(divergences.sampled_names())))
def test_other_rules_are_refused(name):
    arguments = problem()
    knobs = {"squared_hellinger": {}}.get(name, {})
    with pytest.raises(ValueError, match=rf"{name!r} is not estimated .*; choose 'akd', 'forward_kl', 'reverse_kl'"):
        run_signal(arguments, sampled(arguments, 2, 2, torch.zeros(TOKENS)), name, knobs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples=0; give at least 1"),
        ({"offsets": torch.zeros(3)}, r"has offsets \[3\]; for \[7\] tokens"),
        ({"log_normalizer": torch.zeros(7, 1)}, r"has log_normalizer \[7, 1\]"),
        ({"hidden": torch.zeros(2, 5)}, r"teacher_hidden has \[2\] tokens"),
        ({"hidden": torch.zeros(7, 4)}, r"teacher_hidden has shape \[7, 4\]"),
        ({"top": SparseSignal.from_logits(torch.zeros(7, WORDS), 2, 2.0)}, "log-probabilities are at temperature 2.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_signals_are_refused(changes, message):
    arguments = problem()
    signal = replace(sampled(arguments, 2, 2, torch.zeros(TOKENS, dtype=torch.float64)), **changes)
    with pytest.raises(ValueError, match=message):
        run_signal(arguments, signal)


def test_signals_of_batches():
    """Leading dimensions `[B, T]`, slices, and no token with a weight."""
    arguments = problem()
    dense = DenseSignal(torch.randn(2, 3, 5, dtype=torch.float64), LMHead(arguments["teacher_weight"]))
    signal = sampled_from(dense, 2, 2, torch.rand(2, 3, dtype=torch.float64))
    head, hidden = LMHead(arguments["student_weight"]), torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
    found = fused_divergence(hidden[:, :2], head, signal[:, :2], token_weights=weights, divergence="forward_kl")
    flat = fused_divergence(
        hidden[:, :2].flatten(0, 1), head, signal[:, :2].flatten(), token_weights=weights.flatten(), divergence="fkl"
    )
    torch.testing.assert_close(found.divergence.flatten(), flat.divergence)
    nothing = fused_divergence(hidden, head, signal, token_weights=torch.zeros(2, 3), divergence="forward_kl")
    nothing.loss.backward()
    assert nothing.loss.item() == 0.0 and not hidden.grad.any()
