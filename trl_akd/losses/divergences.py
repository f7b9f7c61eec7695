"""Divergences between a teacher and a student, one number per token: a registry of rules, by name.

A rule is a function of both models' logits. It may bring a hand-written gradient; the fused loss differentiates all
others by autograd, a chunk of tokens at a time. To add a rule, write its function and register it:

```python
>>> from trl_akd.losses import divergences
>>> @divergences.register("squared_hellinger", paper="https://en.wikipedia.org/wiki/Hellinger_distance")
... def squared_hellinger(student_logits, teacher_logits):
...     q, p = student_logits.softmax(dim=-1), teacher_logits.softmax(dim=-1)
...     return 0.5 * (p.sqrt() - q.sqrt()).square().sum(dim=-1)
>>> divergences.get("squared_hellinger")(torch.tensor([0.0, 0.0]), torch.tensor([9.0, 1.0]).log())
tensor(0.1056)

```

Notation: `p` is the teacher's distribution, `q` the student's, both over the shared vocabulary and both softened by
the temperature `T`. Everything is in nats.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = [
    "Rule",
    "Softened",
    "akd",
    "forward_kl",
    "get",
    "jsd",
    "names",
    "register",
    "reverse_kl",
    "shared_vocabulary",
    "skew_kl",
    "skew_reverse_kl",
]

Function = TypeVar("Function", bound=Callable[..., Tensor])


class Softened(NamedTuple):
    """A block of tokens as a hand-written gradient sees it. The tensors `[n, V]` may be overwritten.

    Attributes:
        q (`Tensor`): shape `[n, V]`, the student's probabilities.
        p (`Tensor`): shape `[n, V]`, the teacher's.
        log_ratio (`Tensor`): shape `[n, V]`, log q - log p.
        forward_kl (`Tensor`): shape `[n]`, KL(p || q).
        reverse_kl (`Tensor`): shape `[n]`, KL(q || p).
    """

    q: Tensor
    p: Tensor
    log_ratio: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor


@dataclass(frozen=True)
class Rule:
    """A divergence by name; call it as its function.

    Args:
        name (`str`):
            Its name in configurations.
        function (`Callable`):
            From student logits and teacher logits `[..., V]`, and keyword arguments, its knobs, to nats `[...]`.
        paper (`str`, *optional*):
            Its source.
        fused (`Callable`, *optional*):
            Its hand-written gradient. Takes [`Softened`], whether a gradient is needed, and the knobs; returns the
            divergence `[n]`, and writes the gradient with respect to the softened student logits to `Softened.p`.
    """

    name: str
    function: Callable[..., Tensor]
    paper: str = ""
    fused: Callable[..., Tensor] | None = None

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **knobs: Any) -> Tensor:
        """Return the divergence `[...]` between logits `[..., V]`."""
        return self.function(student_logits, teacher_logits, **knobs)

    @cached_property
    def knobs(self) -> dict[str, Any]:
        """Names of the knobs, without the temperature, with their defaults (`inspect.Parameter.empty` for none)."""
        _, _, *others = self._parameters
        return {knob.name: knob.default for knob in others if knob.name != "temperature" and knob.kind in _NAMED}

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())

    def check_names(self, knobs: Mapping[str, Any]) -> None:
        """Raise a ValueError if a knob is unknown or missing."""
        known = ", ".join(map(repr, self.knobs)) or "none"
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in self._parameters)
        for name in knobs:
            if name not in self.knobs and not takes_all:
                raise ValueError(f"the divergence {self.name!r} has no knob {name!r}; it takes {known}.")
        for name, default in self.knobs.items():
            if default is inspect.Parameter.empty and name not in knobs:
                raise ValueError(f"the divergence {self.name!r} needs a value of {name!r}; give one.")

    def check(self, knobs: Mapping[str, Any]) -> None:
        """Raise a ValueError if the function does not take these knobs, or does not return one number per token."""
        self.check_names(knobs)
        probe = torch.zeros(1, 2)
        try:
            values = self(probe, probe, **knobs)
        except TypeError as error:
            raise ValueError(f"the divergence {self.name!r} does not take {dict(knobs)!r}: {error}.") from None
        if not isinstance(values, Tensor) or values.shape != probe.shape[:-1]:
            found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"the divergence {self.name!r} returns {found} for logits [1, 2]; return one number per token, [1]."
            )


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_RULES: dict[str, Rule] = {}


def register(
    name: str, *, paper: str = "", fused: Callable[..., Tensor] | None = None
) -> Callable[[Function], Function]:
    """Register the decorated function as a rule.

    The function takes student logits and teacher logits `[..., V]` of the shared vocabulary, already divided by the
    temperature, and returns nats `[...]`. Its other arguments are the rule's knobs. It may have an argument
    `temperature=1.0` for direct calls, which the fused loss leaves alone.

    Args:
        name (`str`):
            The rule's name: `divergence` in a configuration or a recipe, and the argument of [`get`].
        paper (`str`, *optional*):
            Its source.
        fused (`Callable`, *optional*):
            Its hand-written gradient, see [`Rule`]. By default the fused loss uses autograd.

    Raises:
        ValueError: another function is registered under the name.
    """

    def decorate(function: Function) -> Function:
        present = _RULES.get(name)
        if present is not None and _source(present.function) != _source(function):
            raise ValueError(
                f"a divergence {name!r} is registered already ({_source(present.function)}); choose another name."
            )
        _RULES[name] = Rule(name, function, paper, fused)
        return function

    return decorate


def _source(function: Callable[..., Tensor]) -> str:
    return f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)


def get(name: str) -> Rule:
    """Return the rule of a name.

    Raises:
        ValueError: no rule has the name.

    Example:

    ```python
    >>> get("jsd")(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log(), beta=0.5)
    tensor(0.0338)

    ```
    """
    if not isinstance(name, str) or name not in _RULES:
        raise ValueError(f"{name!r} is not a divergence; choose one of {', '.join(map(repr, _RULES))}.")
    return _RULES[name]


def names() -> tuple[str, ...]:
    """Return the names of all rules."""
    return tuple(_RULES)


def shared_vocabulary(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cut both models' logits to the vocabulary prefix they share.

    Models of one family often pad their LM heads to different sizes (Qwen2.5-Coder: 151,936 and 152,064). The rows
    beyond the shorter head name no token the other model knows. Equal sizes prove nothing: the caller must have shown
    that the two tokenizers give the same token to every id of the prefix.

    Args:
        student_logits (`Tensor`): shape `[..., Vs]`.
        teacher_logits (`Tensor`): shape `[..., Vt]`.

    Returns:
        Both tensors, as views of shape `[..., min(Vs, Vt)]`.

    Example:
        >>> student, teacher = shared_vocabulary(torch.zeros(2, 5), torch.zeros(2, 8))
        >>> student.shape, teacher.shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """
    size = min(student_logits.shape[-1], teacher_logits.shape[-1])
    return student_logits[..., :size], teacher_logits[..., :size]


def _mix_(block: Softened, with_gradient: bool, beta: float) -> Tensor:
    """Compute [`akd`]; its gradient is `q (1 - beta + beta (log q - log p - RKL)) - (1 - beta) p`."""
    _check_share("beta", beta)
    if with_gradient:
        slope_of_q = torch.add(
            (1 - beta - beta * block.reverse_kl).unsqueeze(-1), block.log_ratio, alpha=beta, out=block.log_ratio
        )
        block.p.mul_(beta - 1).addcmul_(block.q, slope_of_q)
    return (1 - beta) * block.forward_kl + beta * block.reverse_kl


@register("akd", paper="https://www.jos.org.cn/josen/article/abstract/7462", fused=_mix_)
def akd(student_logits: Tensor, teacher_logits: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
    """Compute the linear mix `(1 - beta) KL(p || q) + beta KL(q || p)` of each token.

    Eq. (9) of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462), with the departures named in
    [`forward_kl`].

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        beta (`float`): share of reverse KL, in [0, 1].
    """
    _check_share("beta", beta)
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return (1 - beta) * _relative_entropy(log_p, log_q) + beta * _relative_entropy(log_q, log_p)


@register("forward_kl", paper="https://huggingface.co/papers/1503.02531", fused=partial(_mix_, beta=0.0))
def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute KL(p || q) of each token, the divergence that makes the student cover the teacher's modes.

    Eq. (3) of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462), `sum_v p log(p / q)`. The paper
    prints a leading minus, which would push the student away, and leaves out the sum over the vocabulary; neither is
    followed. `p -> 0` contributes 0, Eq. (5).

    Args:
        student_logits (`Tensor`): shape `[..., Vs]`, any floating dtype, not yet divided by the temperature.
        teacher_logits (`Tensor`): shape `[..., Vt]`; where `Vt != Vs`, only the [`shared_vocabulary`] counts.
        temperature (`float`, *optional*, defaults to `1.0`): divides both models' logits. No factor `T ** 2`.

    Returns:
        Shape `[...]`, nats, float32 (float64 if either input is float64).

    Example:
        >>> forward_kl(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log())  # .75 ln 1.5 + .25 ln .5
        tensor(0.1308)
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return _relative_entropy(log_p, log_q)


@register("reverse_kl", paper="https://huggingface.co/papers/2306.08543", fused=partial(_mix_, beta=1.0))
def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute KL(q || p) of each token, the divergence that makes the student seek the teacher's main mode.

    Eq. (4) of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462), `sum_v q log(q / p)`, with the
    departures named in [`forward_kl`].

    Arguments and result are as in [`forward_kl`].

    Example:
        >>> reverse_kl(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log())  # .5 ln(2/3) + .5 ln 2
        tensor(0.1438)
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return _relative_entropy(log_q, log_p)


@register("jsd", paper="https://huggingface.co/papers/2306.13649")
def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Compute the generalized Jensen-Shannon divergence of each token, as TRL's `GKDTrainer` does.

    Eq. (1) of [On-Policy Distillation of Language Models](https://huggingface.co/papers/2306.13649),
    `beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q`. As in TRL, `beta=0` is forward KL and
    `beta=1` reverse KL, the limits of the divergence over `beta` and over `1 - beta`.

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        beta (`float`, *optional*, defaults to `0.5`): share of the teacher in the mixture, in [0, 1].
    """
    _check_share("beta", beta)
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    if beta in (0.0, 1.0):
        return _relative_entropy(log_q, log_p) if beta else _relative_entropy(log_p, log_q)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * _relative_entropy(log_p, log_m) + (1 - beta) * _relative_entropy(log_q, log_m)


@register("skew_kl", paper="https://huggingface.co/papers/2402.03898")
def skew_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1, temperature: float = 1.0) -> Tensor:
    """Compute the skew KL of each token, `KL(p || alpha p + (1 - alpha) q)`.

    [DistiLLM](https://huggingface.co/papers/2402.03898) recommends 0.1, which bounds the divergence by -log(0.1) where
    the student's probability vanishes. `alpha=0` is forward KL, and `alpha=1` would be 0 throughout.

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        alpha (`float`, *optional*, defaults to `0.1`): share of the teacher in the mixture, in [0, 1).
    """
    _check_share("alpha", alpha)
    if alpha == 1.0:
        raise ValueError("alpha is 1.0, with which the skew KL is 0 whatever the student; choose a smaller share.")
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return _relative_entropy(log_p, _log_mixture(log_p, log_q, alpha))


@register("skew_reverse_kl", paper="https://huggingface.co/papers/2402.03898")
def skew_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """Compute the skew reverse KL of each token, `KL(q || alpha q + (1 - alpha) p)`, also of DistiLLM.

    Arguments and result are as in [`skew_kl`], with the student's share `alpha`; `alpha=0` is reverse KL.
    """
    return skew_kl(teacher_logits, student_logits, alpha, temperature)


def _log_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student_logits, teacher_logits = shared_vocabulary(student_logits, teacher_logits)
    dtype = torch.promote_types(torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32)
    return (
        torch.log_softmax(student_logits.to(dtype) / temperature, dim=-1),
        torch.log_softmax(teacher_logits.to(dtype) / temperature, dim=-1),
    )


def _relative_entropy(log_a: Tensor, log_b: Tensor) -> Tensor:
    a = log_a.exp()
    # The gap is masked, not the product: 0 * (-inf - -inf) would be NaN, and so would its gradient.
    gap = torch.where(a > 0, log_a - log_b, 0.0)
    return (a * gap).sum(dim=-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """Return log(share * a + (1 - share) * b)."""
    log_shares = [math.log(part) if part else -math.inf for part in (share, 1 - share)]
    parts = torch.stack([log_a + log_shares[0], log_b + log_shares[1]])
    # Where neither has any probability, the gradient of logsumexp is NaN.
    impossible = (parts == -math.inf).all(dim=0)
    return torch.logsumexp(parts.masked_fill(impossible, 0.0), dim=0).masked_fill(impossible, -math.inf)


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value!r}; it is a share of a mixture, a number in [0, 1].")
