"""MiniLLM's policy gradient: weights against loops, and its expectation against the enumerated reverse KL."""

import itertools
import math

import pytest
import torch

from tests import oracles
from trl_akd.losses import PolicyGradient, divergences
from trl_akd.losses.policy_gradient import mix_log_probs

END, WORDS, HORIZON = 0, 3, 3
EXACT = {"length_normalization": False}


class World:
    """Student and teacher with free logits for each prefix, small enough to enumerate all completions."""

    def __init__(self, seed, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.prefixes = [
            prefix
            for length in range(HORIZON)
            for prefix in itertools.product(range(1, WORDS), repeat=length)  # no END inside
        ]
        shape = (2, len(self.prefixes), WORDS)
        student, self.teacher = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        self.student = student.requires_grad_()
        self.log_q, self.log_p = self.student.log_softmax(-1), self.teacher.log_softmax(-1)

    def completions(self):
        for prefix in self.prefixes:
            yield (*prefix, END)
            if len(prefix) == HORIZON - 1:
                yield from ((*prefix, word) for word in range(1, WORDS))

    def steps(self, completion):
        return [(self.prefixes.index(completion[:t]), word) for t, word in enumerate(completion)]

    def token_log_probs(self, completion):
        log_q, log_p = (
            torch.stack([table[step] for step in self.steps(completion)]) for table in (self.log_q, self.log_p)
        )
        return log_q, log_p

    def probability(self, completion, mix):
        log_q, log_p = (table.detach() for table in self.token_log_probs(completion))
        return (mix * log_p.exp() + (1 - mix) * log_q.exp()).prod()

    def gradient(self, loss):
        return torch.autograd.grad(loss, self.student, retain_graph=True)[0]

    def expected_gradient(self, loss_of_completion, mix):
        """Gradient of a loss of a sampled completion, in expectation over all of them."""
        loss = sum(self.probability(found, mix) * loss_of_completion(found) for found in self.completions())
        return self.gradient(loss)

    def reverse_kl(self):
        """Reverse KL between the distributions of whole completions."""
        pairs = (self.token_log_probs(completion) for completion in self.completions())
        return sum(log_q.sum().exp() * (log_q.sum() - log_p.sum()) for log_q, log_p in pairs)

    def single_step(self, completion):
        rows = [row for row, _ in self.steps(completion)]
        return divergences.get("minillm")(self.student[rows], self.teacher[rows])


def surrogate(world, completion, **settings):
    """The loss whose gradient the trainer uses."""
    policy_gradient = PolicyGradient(**settings)
    log_q, log_p = world.token_log_probs(completion)
    weights = policy_gradient.nll_weights(-log_q.detach()[None], -log_p[None], torch.tensor([completion]))[0]
    single = world.single_step(completion).sum() if policy_gradient.single_step else 0.0
    return single - (weights * log_q).sum()


def test_completions_are_all_there_are():
    world = World(0)
    for mix in (0.0, 0.2, 1.0):
        assert sum(world.probability(found, mix) for found in world.completions()).item() == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("single_step", [True, False])
def test_expected_gradient_is_that_of_the_sequence_level_reverse_kl(seed, single_step):
    world, settings = World(seed), {"teacher_mix": 0.0, "single_step": single_step, **EXACT}
    found = world.expected_gradient(lambda completion: surrogate(world, completion, **settings), mix=0.0)
    torch.testing.assert_close(found, world.gradient(world.reverse_kl()), rtol=1e-9, atol=1e-12)


def test_single_step_part_alone_is_not_the_gradient():
    world = World(0)
    found = world.expected_gradient(lambda completion: world.single_step(completion).sum(), mix=0.0)
    assert (found - world.gradient(world.reverse_kl())).abs().max() > 0.05


def test_mean_divergence_of_samples_is_the_sequence_level_reverse_kl():
    """So that the logged divergence is the quantity that is minimized."""
    world = World(1)
    found = sum(world.probability(each, 0.0) * world.single_step(each).sum() for each in world.completions())
    assert found.item() == pytest.approx(world.reverse_kl().item(), rel=1e-12)


@pytest.mark.parametrize("mix", [0.2, 0.7])
def test_mixed_sampling_with_the_weights_of_whole_prefixes_has_the_same_expectation(mix):
    world = World(2)

    def loss(completion):
        log_q, log_p = world.token_log_probs(completion)
        w = log_q.detach().exp() / (mix * log_p.exp() + (1 - mix) * log_q.detach().exp())
        rewards, product = (log_p - log_q).detach(), w.cumprod(0)
        before = torch.cat([product.new_ones(1), product[:-1]])
        long_term = sum((product[t + 1 :] * rewards[t + 1 :]).sum() * log_q[t] for t in range(len(completion)))
        return (before * world.single_step(completion)).sum() - long_term

    found = world.expected_gradient(loss, mix)
    torch.testing.assert_close(found, world.gradient(world.reverse_kl()), rtol=1e-9, atol=1e-12)


def test_weights_of_the_single_step_part_have_no_expected_effect():
    """The paper multiplies the gradient at token t by q(y_t) / m(y_t) with the mixture m; this package does not."""
    mix, world = 0.4, World(3)

    def weighted(completion):
        log_q, log_p = (each.detach() for each in world.token_log_probs(completion))
        return (world.single_step(completion) / (mix * (log_p - log_q).exp() + 1 - mix)).sum()

    expected = world.expected_gradient(weighted, mix)
    found = world.expected_gradient(lambda completion: world.single_step(completion).sum(), mix)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


SETTINGS = {
    "defaults": {},
    "no mixing": {"teacher_mix": 0.0},
    "sums": {"length_normalization": False},
    "no single step": {"single_step": False},
    "no clipping": {"clip": None},
    "narrow clipping": {"teacher_mix": 0.5, "clip": 0.01},
    "nothing": {"teacher_mix": 0.0, "single_step": False, "length_normalization": False},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_weights_equal_loops(settings):
    generator = torch.Generator().manual_seed(0)
    lengths = [6, 1, 4, 0, 2]
    q, p = torch.rand(2, len(lengths), 9, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    labels = torch.full((len(lengths), 9), -100)
    for row, length in enumerate(lengths):
        labels[row, row : row + length] = 1  # after a prompt of `row` tokens, and before padding
    policy_gradient = PolicyGradient(**settings)
    found = policy_gradient.nll_weights(-q.log(), -p.log(), labels)
    assert found.shape == labels.shape and found.dtype == torch.float64
    assert torch.equal(found[labels == -100], torch.zeros(int((labels == -100).sum()), dtype=torch.float64))
    for row, length in enumerate(lengths):
        expected = oracles.minillm_weights(
            q[row, row : row + length].tolist(),
            p[row, row : row + length].tolist(),
            policy_gradient.teacher_mix,
            single_step=policy_gradient.single_step,
            normalize=policy_gradient.length_normalization,
            clip=policy_gradient.clip if policy_gradient.teacher_mix else None,
        )
        assert found[row, row : row + length].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)
        alone = policy_gradient.nll_weights(-q[row, None].log(), -p[row, None].log(), labels[row, None])
        torch.testing.assert_close(found[row, None], alone, rtol=0, atol=0)


def test_clipping_by_hand():
    """With equal shares, w = 2 / (1 + p / q). The last tokens have rewards of 0 and ln 2."""
    for ratio, last, expected in [
        (3.0, 2.0, 0.5 * math.log(2)),  # w = .5 and R > 0: increases the probability, not clipped
        (3.0, 0.5, 0.0),  # w = .5 and R < 0: clipped
        (0.25, 2.0, 0.0),  # w = 1.6 and R > 0: clipped
        (0.25, 0.5, 1.6 * math.log(0.5)),
        (1.0, 0.5, math.log(0.5)),  # w = 1
    ]:
        student = torch.zeros(1, 2, dtype=torch.float64)
        teacher = -torch.tensor([[ratio, last]], dtype=torch.float64).log()
        weights = PolicyGradient(teacher_mix=0.5, clip=0.2).nll_weights(student, teacher, torch.tensor([[4, 4]]))
        assert weights.tolist()[0] == pytest.approx([expected, 0.0])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equal_models_have_no_gradient(settings):
    nll = torch.rand(3, 5)
    assert not PolicyGradient(**settings).nll_weights(nll, nll, torch.ones(3, 5, dtype=torch.long)).any()


def test_completions_of_one_token_have_the_single_step_part_alone():
    labels = torch.tensor([[-100, 3, -100]])
    found = PolicyGradient().nll_weights(torch.full((1, 3), 2.0), torch.full((1, 3), 5.0), labels)
    assert not found.any()


def test_extreme_rewards_stay_finite():
    student, teacher = torch.tensor([[300.0, 1.0, 0.0]]), torch.tensor([[0.0, 300.0, 1.0]])
    for settings in ({}, {"clip": None}, {"teacher_mix": 0.0}):
        assert (
            PolicyGradient(**settings)
            .nll_weights(student, teacher, torch.ones(1, 3, dtype=torch.long))
            .isfinite()
            .all()
        )


@pytest.mark.parametrize("mix", [0.0, 0.2, 1.0])
def test_mixture_equals_loops(mix):
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student[:, 3:] = -torch.inf  # not shared
    found = mix_log_probs(student, teacher[:, :3], mix).exp()
    for row in range(4):
        q = oracles.probabilities(student[row, :3].tolist())
        p = oracles.probabilities(teacher[row, :3].tolist())
        assert found[row].tolist() == pytest.approx([*oracles.mixture(p, q, mix), 0.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_mix": 1.0}, "teacher_mix is 1.0, .*give less than 1"),
        ({"teacher_mix": -0.1}, r"teacher_mix is -0.1; give a number in \[0, 1\]"),
        ({"teacher_mix": "0.2"}, "teacher_mix is '0.2'; give a number"),
        ({"single_step": 1}, "single_step is 1; give True or False"),
        ({"length_normalization": None}, "length_normalization is None; give True or False"),
        ({"clip": 0.0}, "clip is 0.0; give a number between 0 and 1, or None"),
        ({"clip": 1.5}, "clip is 1.5"),
        ({"clip": float("nan")}, "clip is nan; give a finite number"),
        ({"teacher_mix": 0.0, "clip": 0.3}, "clip is 0.3, which has no effect with teacher_mix 0"),
        ({"teacher_mix": 0.0, "clip": None}, "clip is None, which has no effect with teacher_mix 0"),
    ],
)
def test_bad_settings_are_named_with_a_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        PolicyGradient(**settings)


def test_settings_are_those_of_the_rule():
    rule = divergences.get("minillm")
    assert rule.default_settings == {
        "teacher_mix": 0.2,
        "single_step": True,
        "length_normalization": True,
        "clip": 0.2,
    }
    assert rule.split({"clip": 0.1}) == ({}, {"clip": 0.1})
    with pytest.raises(ValueError, match="'minillm' has no knob 'mix'; it takes 'teacher_mix', 'single_step'"):
        rule.check_settings({"mix": 0.1})


def test_schedule_and_policy_gradient_exclude_each_other():
    with pytest.raises(ValueError, match="has a schedule and a policy gradient; leave one of them out"):
        divergences.register("both", schedule=divergences.get("taid").schedule, policy_gradient=PolicyGradient)
