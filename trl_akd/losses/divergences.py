"""Divergences between teacher and student per token: a registry of rules by name.

A rule is a function of both models' logits. It may have a hand-written gradient; the fused loss differentiates all
other rules by autograd, a chunk of tokens at a time. To add a rule, write its function and register it:

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
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .knobs import Interpolation, KnobSchedule, as_real, as_share
from .policy_gradient import PolicyGradient

__all__ = [
    "Block",
    "Rule",
    "Softened",
    "abkd",
    "adaptive_alpha",
    "akd",
    "akl",
    "eopd",
    "forward_kl",
    "get",
    "jsd",
    "minillm",
    "names",
    "register",
    "reverse_kl",
    "sampled_names",
    "shared_vocabulary",
    "skew_kl",
    "skew_reverse_kl",
    "taid",
    "todi",
]

Function = TypeVar("Function", bound=Callable[..., Tensor])

_LARGEST_LOG_RATIO = 80.0  # of float32: exp(-80) times anything is negligible, and exp(80) does not overflow


class Block(Protocol):
    """Operations on the distributions of a block of tokens that make up the hand-written gradients of this module.

    [`Softened`] performs them with PyTorch, and `TritonBlock` in `kernels.py` on a GPU. Results have shape `[n]`.
    Gradients are with respect to the softened student logits, and writing one is the last operation.
    """

    @property
    def forward_kl(self) -> Tensor:
        """KL(p || q)."""

    @property
    def reverse_kl(self) -> Tensor:
        """KL(q || p)."""

    def teacher_entropy(self) -> Tensor:
        """Return the entropy of p in nats."""

    def overlap(self) -> Tensor:
        """Return `sum(min(p, q))`."""

    def head_share(self, mu: float) -> Tensor:
        """Return the weight of forward KL in [`akl`]."""

    def write_mix(self, forward_weight: Tensor, reverse_weight: Tensor) -> None:
        """Write the gradient of a mix of both KLs with constant weights f and r, `q (f + r (log q/p - RKL)) - f p`."""

    def write_todi(self) -> None:
        """Write the gradient of [`todi`]: with h = (1 - a) q (log q/p + 1) - a p, it is `h - q sum(h)`."""

    def mixture_divergences(self, beta: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Return KL(p || m) and KL(q || m) for `m = beta p + (1 - beta) q`, with beta strictly between 0 and 1.

        With a gradient, write that of [`jsd`], `(1 - beta) q (log q/m - KL(q || m))`.
        """

    def alpha_sums(self, complement: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `sum(q - p)` and `sum(u - p)` for `u = p^(1 - complement) q^complement`.

        The first sum is 0 but for the rounding of p and q. With a factor, write the gradient `factor (q sum(u) - u)`.
        """


class Softened(NamedTuple):
    """Inputs of a hand-written gradient for a block of tokens. The tensors `[n, V]` may be overwritten, except `q`.

    Attributes:
        q (`Tensor`): shape `[n, V]`, the student's probabilities.
        p (`Tensor`): shape `[n, V]`, the teacher's. Its methods write gradients here.
        log_ratio (`Tensor`): shape `[n, V]`, log q - log p.
        forward_kl (`Tensor`): shape `[n]`, KL(p || q).
        reverse_kl (`Tensor`): shape `[n]`, KL(q || p).
        scratch (`Tensor`): shape `[n, V]`, working memory with arbitrary contents.
    """

    q: Tensor
    p: Tensor
    log_ratio: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    scratch: Tensor

    # The operations of a [`Block`].

    def teacher_entropy(self) -> Tensor:
        """Return the entropy of p in nats."""
        log_p = torch.clamp(self.p, min=torch.finfo(self.p.dtype).tiny, out=self.scratch).log_()
        return -log_p.mul_(self.p).sum(dim=-1)

    def overlap(self) -> Tensor:
        """Return `sum(min(p, q))`."""
        return torch.minimum(self.p, self.q, out=self.scratch).sum(dim=-1)

    def head_share(self, mu: float) -> Tensor:
        """Return the weight of forward KL in [`akl`]."""
        return _head_share(self.p, self.q, mu, out=self.scratch)

    def write_mix(self, forward_weight: Tensor, reverse_weight: Tensor) -> None:
        """Write the gradient of a mix of both KLs."""
        constant = forward_weight - reverse_weight * self.reverse_kl
        slope_of_q = self.log_ratio.mul_(reverse_weight.unsqueeze(-1)).add_(constant.unsqueeze(-1))
        self.p.mul_(-forward_weight.unsqueeze(-1)).addcmul_(self.q, slope_of_q)

    def write_todi(self) -> None:
        """Write the gradient of [`todi`]."""
        student_share = torch.sigmoid(self.log_ratio, out=self.scratch)
        self.p.addcmul_(self.p, student_share, value=-1)
        h = self.log_ratio.add_(1).mul_(self.q).mul_(student_share).sub_(self.p)
        torch.addcmul(h, self.q, h.sum(dim=-1, keepdim=True), value=-1, out=self.p)

    def mixture_divergences(self, beta: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Return KL(p || m) and KL(q || m); with a gradient, write that of [`jsd`]."""
        log_ratio = self.log_ratio.clamp_(min=-_LARGEST_LOG_RATIO)
        # Rounded to 1, the teacher's share would make this logarithm infinite where p is 0.
        share = min(beta, 1 - torch.finfo(log_ratio.dtype).eps / 2)
        log_m_over_q = torch.neg(log_ratio, out=self.scratch).expm1_().mul_(share).log1p_()
        forward = -log_ratio.add_(log_m_over_q).mul_(self.p).sum(dim=-1)
        reverse = -torch.mul(self.q, log_m_over_q, out=self.p).sum(dim=-1)
        if with_gradient:
            self.p.add_(torch.mul(self.q, reverse.unsqueeze(-1), out=self.scratch)).mul_(beta - 1)
        return forward, reverse

    def alpha_sums(self, complement: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `sum(q - p)` and `sum(u - p)`; with a factor, write the gradient."""
        q, p, log_ratio, scratch = self.q, self.p, self.log_ratio, self.scratch
        larger = torch.maximum(p, q, out=p)
        differences = torch.abs(log_ratio, out=scratch).neg_().expm1_().mul_(larger)
        drift = torch.copysign(differences, log_ratio, out=differences).sum(dim=-1)
        # u is the larger probability, reduced: nothing overflows, and u - p keeps its digits where both nearly agree.
        reduced = torch.clamp(log_ratio, min=0, out=scratch).mul_(-(1 - complement).unsqueeze(-1)).exp_()
        larger.mul_(reduced)  # u where q > p, otherwise p
        steps = torch.abs(log_ratio, out=scratch).mul_(-complement.unsqueeze(-1)).expm1_().mul_(larger)
        differences = torch.copysign(steps, log_ratio, out=steps)  # u - p
        change = differences.sum(dim=-1)
        if factor is not None:
            u = larger.add_(differences.clamp_(max=0))
            u.neg_().addcmul_(q, (1 + change).unsqueeze(-1)).mul_(factor.unsqueeze(-1))
        return drift, change


@dataclass(frozen=True)
class Rule:
    """Named divergence, which can be called like its function.

    Args:
        name (`str`):
            Name in configurations.
        function (`Callable`):
            Function of student logits and teacher logits `[..., V]`, and keyword arguments, the knobs, that returns
            the divergence `[...]` in nats.
        paper (`str`, *optional*):
            Link to the source.
        fused (`Callable`, *optional*):
            Hand-written gradient. Takes [`Softened`], whether a gradient is needed, and the knobs; returns the
            divergence `[n]`, and writes the gradient with respect to the softened student logits to `Softened.p`.
        aliases (`tuple[str, ...]`, *optional*):
            Alternative names.
        schedule (`type[KnobSchedule]`, *optional*):
            [`KnobSchedule`] class of the knob that changes during training, if there is one. In a configuration, its
            arguments replace that knob.
        policy_gradient (`type[PolicyGradient]`, *optional*):
            [`PolicyGradient`] class, if the gradient also has a part of whole completions. In a configuration, its
            arguments are added to the knobs.
        reverse_share (`Callable`, *optional*):
            Function of the knobs that returns the share s of reverse KL, if the divergence is
            `(1 - s) KL(p || q) + s KL(q || p)`. Such a divergence can be estimated from a [`SampledSignal`].
        on_kernels (`bool`, *optional*, defaults to `False`):
            Whether `fused` uses only the operations of a [`Block`], so that it also runs on the Triton kernels.
    """

    name: str
    function: Callable[..., Tensor]
    paper: str = ""
    fused: Callable[..., Tensor] | None = None
    aliases: tuple[str, ...] = ()
    schedule: type[KnobSchedule] | None = None
    policy_gradient: type[PolicyGradient] | None = None
    reverse_share: Callable[..., float] | None = None
    on_kernels: bool = False

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, **knobs: Any) -> Tensor:
        """Return the divergence `[...]` between logits `[..., V]`."""
        return self.function(student_logits, teacher_logits, **knobs)

    @cached_property
    def knobs(self) -> dict[str, Any]:
        """Defaults of the knobs by name, without the temperature; `inspect.Parameter.empty` if there is no default."""
        others = self._parameters[2:]
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
        """Raise a ValueError if the function cannot be computed with these knobs, or not as the fused loss needs it.

        It must return one number per token, and leave its inputs as they are.
        """
        self.check_names(knobs)
        for vocabulary in _PROBED_VOCABULARIES:
            inputs = _probe(2, vocabulary)
            versions = [logits._version for logits in inputs]
            try:
                values = self(*inputs, **knobs)
            except Exception as error:
                failure = error
            else:
                break
        else:
            raise ValueError(self._explain(failure, knobs)) from failure
        if not isinstance(values, Tensor) or values.shape != (2,):
            found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"the divergence {self.name!r} returns {found} for logits {list(inputs[0].shape)}; return one number "
                "per token, [2]."
            )
        if [logits._version for logits in inputs] != versions:
            raise ValueError(
                f"the divergence {self.name!r} changes its inputs in place, from which other metrics are computed as "
                "well; use operations that return a new tensor, such as `div` in place of `div_`."
            )

    def _explain(self, error: Exception, knobs: Mapping[str, Any]) -> str:
        """Return a sentence about an error of the function."""
        if isinstance(error, TypeError):
            return f"the divergence {self.name!r} does not take {dict(knobs)!r} ({error})."
        try:
            self(*_probe(1, 2, _PROBED_VOCABULARIES[-1]), **knobs)
        except Exception:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return f"the divergence {self.name!r} fails with {dict(knobs)!r}: {kind}{error}"
        return (
            f"the divergence {self.name!r} takes only logits of three dimensions ({error}); it must take logits "
            "[..., V], which in training are [tokens, V]."
        )

    @property
    def default_settings(self) -> dict[str, Any]:
        """Defaults of a configuration's settings: knobs, and arguments of the schedule or the policy gradient.

        The knob that a schedule changes is not a setting.
        """
        moving = None if self.schedule is None else self.schedule.knob
        return self._default_arguments | {name: default for name, default in self.knobs.items() if name != moving}

    @property
    def _default_arguments(self) -> dict[str, Any]:
        """Defaults of the arguments of the schedule or the policy gradient."""
        owner = self.schedule or self.policy_gradient
        parameters = () if owner is None else inspect.signature(owner).parameters.values()
        return {each.name: each.default for each in parameters}

    def split(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split the settings of a configuration into knobs and arguments of the schedule or the policy gradient."""
        names = self._default_arguments
        knobs = {name: value for name, value in settings.items() if name not in names}
        return knobs, {name: value for name, value in settings.items() if name in names}

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise a ValueError if the settings of a configuration are not valid."""
        knobs, arguments = self.split(settings)
        if self.policy_gradient is not None:
            self.policy_gradient(**arguments)
            for name in knobs:
                if name not in self.default_settings:
                    accepted = ", ".join(map(repr, self.default_settings))
                    raise ValueError(f"the divergence {self.name!r} has no knob {name!r}; it takes {accepted}.")
        if self.schedule is None:
            self.check(knobs)
            return
        schedule, known = self.schedule(**arguments), self.default_settings
        for name in knobs:
            if name not in known:
                raise ValueError(
                    f"the divergence {self.name!r} changes {schedule.knob!r} during training; it takes "
                    f"{', '.join(map(repr, known))}, not {name!r}."
                )
        self.check({**knobs, schedule.knob: schedule.value})


# Sizes of vocabularies, the fastest first; the others are for rules that read more tokens than it has.
_PROBED_VOCABULARIES = (256, 4_096, 262_144)


def _probe(*shape: int) -> tuple[Tensor, Tensor]:
    """Return logits of student and teacher with which a rule is tried."""
    with torch.inference_mode(False):  # otherwise changes in place are not counted
        logits = torch.linspace(-8.0, 8.0, math.prod(shape)).view(shape)
        return logits, logits.flip(-1)


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_RULES: dict[str, Rule] = {}


def register(
    name: str,
    *,
    paper: str = "",
    fused: Callable[..., Tensor] | None = None,
    aliases: tuple[str, ...] = (),
    schedule: type[KnobSchedule] | None = None,
    policy_gradient: type[PolicyGradient] | None = None,
    reverse_share: Callable[..., float] | None = None,
    on_kernels: bool = False,
) -> Callable[[Function], Function]:
    """Register the decorated function as a rule.

    The function takes student logits and teacher logits `[..., V]` of the shared vocabulary, already divided by the
    temperature, and returns the divergence `[...]` in nats. Its other arguments are the rule's knobs. It may have an
    argument `temperature=1.0` for direct calls, which the fused loss does not pass.

    Args:
        name (`str`):
            Name of the rule, for `divergence` in a configuration or a recipe and for [`get`]. Case is ignored, and `-`
            is the same as `_`.
        paper (`str`, *optional*):
            Link to the source.
        fused (`Callable`, *optional*):
            Hand-written gradient, see [`Rule`]. By default the fused loss uses autograd.
        aliases (`tuple[str, ...]`, *optional*):
            Alternative names.
        schedule (`type[KnobSchedule]`, *optional*):
            Class of the schedule of the knob that changes during training, see [`Rule`].
        policy_gradient (`type[PolicyGradient]`, *optional*):
            Class of the part of the gradient from whole completions, see [`Rule`]. Not together with a schedule.
        reverse_share (`Callable`, *optional*):
            Share of reverse KL in a linear mix of both KLs, see [`Rule`].
        on_kernels (`bool`, *optional*, defaults to `False`):
            Whether `fused` uses only the operations of a [`Block`], see [`Rule`].

    Raises:
        ValueError: another function is registered under one of the names, the schedule has no `knob`, or there is both
            a schedule and a policy gradient.
    """
    if schedule is not None and not hasattr(schedule, "knob"):
        raise ValueError(f"the schedule of the divergence {name!r} is {schedule!r}; give a class with a `knob`.")
    if schedule is not None and policy_gradient is not None:
        raise ValueError(f"the divergence {name!r} has a schedule and a policy gradient; leave one of them out.")

    def decorate(function: Function) -> Function:
        for each in (name, *aliases):
            present = _find(_plain_name(each))
            if present is not None and _source(present.function) != _source(function):
                raise ValueError(
                    f"a divergence {each!r} is already registered ({_source(present.function)}); choose another name."
                )
        rule = Rule(
            _plain_name(name),
            function,
            paper,
            fused,
            tuple(map(_plain_name, aliases)),
            schedule,
            policy_gradient,
            reverse_share,
            on_kernels,
        )
        _RULES[rule.name] = rule
        return function

    return decorate


def _source(function: Callable[..., Tensor]) -> str:
    return f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)


def get(name: str) -> Rule:
    """Return the rule with a name or alias. Case is ignored, and `-` is the same as `_`.

    Raises:
        ValueError: no rule has the name.

    Example:

    ```python
    >>> get("jsd")(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log(), beta=0.5)
    tensor(0.0338)

    ```
    """
    rule = _find(_plain_name(name)) if isinstance(name, str) else None
    if rule is None:
        raise ValueError(f"{name!r} is not a divergence; choose one of {', '.join(map(repr, _RULES))}.")
    return rule


def _plain_name(name: str) -> str:
    return name.lower().replace("-", "_")


def _find(plain_name: str) -> Rule | None:
    return next((rule for rule in _RULES.values() if plain_name in (rule.name, *rule.aliases)), None)


def names() -> tuple[str, ...]:
    """Return the names of all rules."""
    return tuple(_RULES)


def sampled_names() -> tuple[str, ...]:
    """Return the names of the rules that can be estimated from a [`SampledSignal`]."""
    return tuple(name for name, rule in _RULES.items() if rule.reverse_share is not None)


def shared_vocabulary(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cut both models' logits to the vocabulary prefix they share.

    Models of one family often pad their LM heads to different sizes (Qwen2.5-Coder: 151,936 and 152,064). The rows
    beyond the smaller head stand for no token of the other model. Equal sizes prove nothing: the caller must have
    checked that both tokenizers have the same token for every id of the prefix.

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


def _mix_(block: Block, with_gradient: bool, forward_weight: Tensor, reverse_weight: Tensor) -> Tensor:
    """Mix both KLs by constant weights `[n]`."""
    if with_gradient:
        block.write_mix(forward_weight, reverse_weight)
    return forward_weight * block.forward_kl + reverse_weight * block.reverse_kl


def _akd_(block: Block, with_gradient: bool, beta: float) -> Tensor:
    share = torch.full_like(block.forward_kl, as_share("beta", beta))
    return _mix_(block, with_gradient, 1 - share, share)


@register(
    "akd",
    paper="https://www.jos.org.cn/josen/article/abstract/7462",
    fused=_akd_,
    reverse_share=lambda beta: as_share("beta", beta),
    on_kernels=True,
)
def akd(student_logits: Tensor, teacher_logits: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
    """Compute the linear mix `(1 - beta) KL(p || q) + beta KL(q || p)` of each token.

    Eq. (9) of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462), with the departures named in
    [`forward_kl`].

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        beta (`float`): share of reverse KL, in [0, 1]. At 0 and 1 the other KL does not count, even if infinite.
    """
    beta = as_share("beta", beta)
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    if beta in (0.0, 1.0):
        return _relative_entropy(log_q, log_p) if beta else _relative_entropy(log_p, log_q)
    return (1 - beta) * _relative_entropy(log_p, log_q) + beta * _relative_entropy(log_q, log_p)


@register(
    "forward_kl",
    paper="https://huggingface.co/papers/1503.02531",
    fused=partial(_akd_, beta=0.0),
    aliases=("kl", "fkl"),
    reverse_share=lambda: 0.0,
    on_kernels=True,
)
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


@register(
    "reverse_kl",
    paper="https://huggingface.co/papers/2306.08543",
    fused=partial(_akd_, beta=1.0),
    aliases=("rkl",),
    reverse_share=lambda: 1.0,
    on_kernels=True,
)
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


@register(
    "minillm",
    paper="https://huggingface.co/papers/2306.08543",
    fused=partial(_akd_, beta=1.0),
    policy_gradient=PolicyGradient,
    reverse_share=lambda: 1.0,
    on_kernels=True,
)
def minillm(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute KL(q || p) of each token, the single-step part of MiniLLM.

    The value is that of [`reverse_kl`], whose sum over a completion sampled from the student is an unbiased estimate
    of the reverse KL between the distributions of whole completions. In training, [`PolicyGradient`] adds the
    influence of each token on later ones to the gradient.

    Arguments and result are as in [`forward_kl`].
    """
    return reverse_kl(student_logits, teacher_logits, temperature)


def _jsd_(block: Block, with_gradient: bool, beta: float = 0.5) -> Tensor:
    beta = as_share("beta", beta)
    if beta in (0.0, 1.0):
        return _akd_(block, with_gradient, beta)
    forward, reverse = block.mixture_divergences(beta, with_gradient)
    return beta * forward + (1 - beta) * reverse


@register("jsd", paper="https://huggingface.co/papers/2306.13649", fused=_jsd_, on_kernels=True)
def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Compute the generalized Jensen-Shannon divergence of each token, as TRL's `GKDTrainer` does.

    Eq. (1) of [On-Policy Distillation of Language Models](https://huggingface.co/papers/2306.13649),
    `beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q`. As in TRL, `beta=0` is forward KL and
    `beta=1` reverse KL, the limits of the divergence over `beta` and over `1 - beta`.

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        beta (`float`, *optional*, defaults to `0.5`): share of the teacher in the mixture, in [0, 1].
    """
    beta = as_share("beta", beta)
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    if beta in (0.0, 1.0):
        return _relative_entropy(log_q, log_p) if beta else _relative_entropy(log_p, log_q)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * _relative_entropy(log_p, log_m) + (1 - beta) * _relative_entropy(log_q, log_m)


@register("skew_kl", paper="https://huggingface.co/papers/2402.03898", aliases=("skl",))
def skew_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1, temperature: float = 1.0) -> Tensor:
    """Compute the skew KL of each token, `KL(p || alpha p + (1 - alpha) q)`.

    [DistiLLM](https://huggingface.co/papers/2402.03898) recommends 0.1, which bounds the divergence by -log(0.1) where
    the student's probability vanishes. `alpha=0` is forward KL, and `alpha=1` would be 0 throughout.

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        alpha (`float`, *optional*, defaults to `0.1`): share of the teacher in the mixture, in [0, 1).
    """
    alpha = as_share("alpha", alpha)
    if alpha == 1.0:
        raise ValueError("alpha is 1.0, with which the skew KL is 0 whatever the student; choose a smaller share.")
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return _relative_entropy(log_p, _log_mixture(log_p, log_q, alpha))


@register("skew_reverse_kl", paper="https://huggingface.co/papers/2402.03898", aliases=("srkl",))
def skew_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """Compute the skew reverse KL of each token, `KL(q || alpha q + (1 - alpha) p)`, also of DistiLLM.

    Arguments and result are as in [`skew_kl`], with the student's share `alpha`; `alpha=0` is reverse KL.
    """
    return skew_kl(teacher_logits, student_logits, alpha, temperature)


def _akl_(block: Block, with_gradient: bool, mu: float = 0.5) -> Tensor:
    head = block.head_share(as_share("mu", mu))
    return _mix_(block, with_gradient, head, 1 - head)


@register("akl", paper="https://huggingface.co/papers/2404.02657", fused=_akl_, on_kernels=True)
def akl(student_logits: Tensor, teacher_logits: Tensor, mu: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Compute the adaptive KL of each token, `w KL(p || q) + (1 - w) KL(q || p)`.

    [Rethinking KL](https://huggingface.co/papers/2404.02657): `w = g_head / (g_head + g_tail)`,
    where `g` is the sum of `|p - q|` over the head or the tail of the teacher's distribution. The head is the most
    probable token, and the next ones as long as their cumulative probability does not exceed `mu`. No gradient flows
    through `w`. Tokens of equal probability at the boundary count in equal parts, the average over all orders in which
    they can be sorted; in the authors' code, the order of the vocabulary decides. (A port of that code in TAID's
    repository applies the mask of the sorted order to the unsorted vocabulary.)

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        mu (`float`, *optional*, defaults to `0.5`): cumulative probability of the head, in [0, 1]. 1 is forward KL.

    Example:
        >>> akl(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.6, 0.1, 0.3]).log())  # head {0}, w = 1/4
        tensor(0.1483)
    """
    mu = as_share("mu", mu)
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    head = _head_share(log_p.detach().exp(), log_q.detach().exp(), mu).unsqueeze(-1)
    return _relative_entropy(log_p, log_q, head) + _relative_entropy(log_q, log_p, 1 - head)


def _head_share(p: Tensor, q: Tensor, mu: float, out: Tensor | None = None) -> Tensor:
    """Return the share of the head in the sum of |p - q|; `out` is overwritten."""
    errors = torch.sub(p, q, out=out).abs_()
    total = errors.sum(dim=-1)
    if mu == 1.0:
        return torch.ones_like(total)  # a sum of all errors in another order may differ from the total
    rows, limit = (-1, p.shape[-1]), head_limit(mu, p.dtype)
    # Sorting is slow, and nearly all heads are among the 64 most probable tokens.
    head = _head_error(p.reshape(rows), errors.reshape(rows), limit, listed=64).view(total.shape)
    return share_of_head(head, total)


def head_limit(mu: float, dtype: torch.dtype) -> float:
    """Return the largest cumulative probability of the head, with a margin for rounding."""
    return mu + 16 * torch.finfo(dtype).eps


def share_of_head(head: Tensor, total: Tensor) -> Tensor:
    """Return the share of the head in the sum of |p - q|, one half where the sum is 0."""
    return torch.where(total > 0, head / total, 0.5)


def _head_error(p: Tensor, errors: Tensor, limit: float, listed: int) -> Tensor:
    """Sum each row's errors over its head, from as many of its most probable tokens as are needed."""
    top, ids = p.topk(min(listed, p.shape[-1]), dim=-1)
    size = (top.cumsum(dim=-1) <= limit).sum(dim=-1, keepdim=True).clamp(min=1)
    least = top.gather(-1, size - 1)
    above, tied = top > least, top == least
    share_of_tied = (size - above.sum(dim=-1, keepdim=True)).to(p.dtype) / tied.sum(dim=-1, keepdim=True)
    head = (errors.gather(-1, ids) * torch.where(above, 1.0, share_of_tied * tied)).sum(dim=-1)
    if listed < p.shape[-1]:
        # The head, or the tokens tied with its last one, may extend beyond the listed tokens.
        [unfinished] = torch.where(tied[:, -1])
        # Sorting whole rows takes several times their memory.
        for rows in torch.split(unfinished, max(1, 2**20 // p.shape[-1])):
            head[rows] = _head_error(p[rows], errors[rows], limit, listed=p.shape[-1])
    return head


def _todi_(block: Block, with_gradient: bool) -> Tensor:
    if with_gradient:
        block.write_todi()
    return block.forward_kl + block.reverse_kl


@register("todi", paper="https://huggingface.co/papers/2505.16297", fused=_todi_, on_kernels=True)
def todi(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the token-wise distillation loss of each token, `sum_v a p log(p / q) + (1 - a) q log(q / p)`.

    [ToDi](https://huggingface.co/papers/2505.16297), with `a = sigmoid(log p_v - log q_v)`, that is
    `p_v / (p_v + q_v)`, for each entry v of the vocabulary. No gradient flows through `a`. The value is
    `KL(p || q) + KL(q || p)` for all p and q; only the gradient differs from that of the sum.

    Arguments and result are as in [`forward_kl`].

    Example:
        >>> todi(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log())  # .25 ln 3
        tensor(0.2747)
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    # Where both are -inf their difference is NaN, and 0 here.
    log_ratio = torch.where(log_p == log_q, 0.0, log_p - log_q).detach()
    forward = _relative_entropy(log_p, log_q, torch.sigmoid(log_ratio))
    return forward + _relative_entropy(log_q, log_p, torch.sigmoid(-log_ratio))


def _eopd_(block: Block, with_gradient: bool, threshold: float = 0.8) -> Tensor:
    entropy = block.teacher_entropy()
    forward_weight = (entropy > as_real("threshold", threshold)).to(entropy.dtype)
    return _mix_(block, with_gradient, forward_weight, torch.ones_like(forward_weight))


@register("eopd", paper="https://huggingface.co/papers/2603.07079", fused=_eopd_, on_kernels=True)
def eopd(student_logits: Tensor, teacher_logits: Tensor, threshold: float = 0.8, temperature: float = 1.0) -> Tensor:
    """Compute reverse KL, plus forward KL where the teacher's entropy exceeds a threshold.

    The switch of [Entropy-Aware On-Policy Distillation](https://huggingface.co/papers/2603.07079) with the authors'
    threshold. Both divergences are exact here; the authors estimate reverse KL from the sampled token and truncate
    forward KL to the teacher's most probable tokens. On-policy as in the paper with `lmbda=1`.

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        threshold (`float`, *optional*, defaults to `0.8`): nats; compared with the teacher's softened entropy.

    Example:
        >>> one_mode, two_modes = torch.tensor([9.0, 1.0]).log(), torch.tensor([6.0, 4.0]).log()
        >>> eopd(torch.zeros(2), torch.stack([one_mode, two_modes]), threshold=0.5)  # RKL; RKL + KL
        tensor([0.5108, 0.0405])
    """
    threshold = as_real("threshold", threshold)
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    entropy = torch.special.entr(log_p.exp()).sum(dim=-1)
    is_uncertain = (entropy > threshold).to(entropy.dtype).unsqueeze(-1)
    return _relative_entropy(log_q, log_p) + _relative_entropy(log_p, log_q, is_uncertain)


_MIN_COMPLEMENT = 1e-30  # the divergence is forward KL to all digits below, and the inverse would overflow


def _adaptive_alpha_(
    block: Block, with_gradient: bool, concentration: float = 0.9, entropy_weight: float = 3.0
) -> Tensor:
    concentration, entropy_weight = _check_adaptive_alpha(concentration, entropy_weight)
    weight = 1 + entropy_weight * block.teacher_entropy()
    complement = concentration * block.overlap()
    alpha = 1 - complement
    # Near p = q, the drift cancels the rounding of the probabilities in the change.
    drift, change = block.alpha_sums(complement, weight / alpha if with_gradient else None)
    mixed = complement > _MIN_COMPLEMENT
    return weight * torch.where(mixed, drift - change / complement, block.forward_kl) / alpha


@register("adaptive_alpha", fused=_adaptive_alpha_, on_kernels=True)
def adaptive_alpha(
    student_logits: Tensor,
    teacher_logits: Tensor,
    concentration: float = 0.9,
    entropy_weight: float = 3.0,
    temperature: float = 1.0,
) -> Tensor:
    """Compute an alpha divergence of each token, whose order follows the overlap of both distributions.

    `(1 + c H(p)) (1 - sum_v p^a q^(1 - a)) / (a (1 - a))` with `a = 1 - k sum_v min(p, q)`, the teacher's entropy
    `H(p)` in nats, k = `concentration` and c = `entropy_weight`. No gradient flows through `a`. The alpha divergence
    is forward KL in the limit a = 1, and reverse KL in the limit a = 0. Where the student lacks the teacher's
    probability, the divergence is therefore near forward KL, from which it learns the missing tokens; where the
    student has most of it, near reverse KL, which removes probability elsewhere. Both have the same curvature near
    p = q. The first factor raises the weight of tokens for which the teacher has several continuations.

    Infinite where no token is possible for both models; with `concentration=0`, as forward KL.

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        concentration (`float`, *optional*, defaults to `0.9`): by how much the order falls from 1 as the overlap rises
            to 1, in [0, 0.99]. With 0, each token has its forward KL, times the first factor.
        entropy_weight (`float`, *optional*, defaults to `3.0`): weight of the teacher's entropy, at least 0, per nat.

    Example:
        >>> student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log()
        >>> adaptive_alpha(student, teacher, concentration=2 / 3, entropy_weight=0)  # overlap 3/4, a = 1/2
        tensor(0.1363)
    """
    concentration, entropy_weight = _check_adaptive_alpha(concentration, entropy_weight)
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    p, q = log_p.exp(), log_q.exp().detach()
    weight = 1 + entropy_weight * torch.special.entr(p).sum(dim=-1)
    complement = concentration * torch.minimum(p, q).sum(dim=-1, keepdim=True)
    mixed = complement > _MIN_COMPLEMENT
    log_ratio = torch.where(log_p == -math.inf, 0.0, log_q - log_p)
    step = complement * torch.where(mixed, log_ratio, 0.0)
    change = _power_difference(log_p, log_p + step, step) / torch.where(mixed, complement, 1.0)
    # q - p adds up to 0 but for rounding. Near p = q it cancels the rounding of the probabilities in `change`.
    drift = torch.where(log_p == -math.inf, q, _power_difference(log_p, log_q, log_ratio)).detach()
    terms = torch.where(mixed, change - drift, p * log_ratio)
    divergence: Tensor = -weight * terms.sum(dim=-1) / (1 - complement.squeeze(-1))
    return divergence


def _check_adaptive_alpha(concentration: float, entropy_weight: float) -> tuple[float, float]:
    concentration, entropy_weight = as_share("concentration", concentration), as_real("entropy_weight", entropy_weight)
    if concentration > 0.99:
        raise ValueError(
            f"concentration is {concentration}, with which the order of the divergence is nearly 0 where both models "
            "agree, so that rounding decides; give at most 0.99."
        )
    if entropy_weight < 0:
        raise ValueError(f"entropy_weight is {entropy_weight}; give a number of at least 0.")
    return concentration, entropy_weight


@register("abkd", paper="https://huggingface.co/papers/2505.04560")
def abkd(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.2, beta: float = 0.7, temperature: float = 1.0
) -> Tensor:
    """Compute the alpha-beta divergence of each token.

    [ABKD](https://huggingface.co/papers/2505.04560), with the authors' exponents for language models. With a = `alpha`
    and b = `beta`, `-sum_v (p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b)) / (a b)`, and its limits where a
    denominator is 0: (1, 0) is forward KL, (0, 1) reverse KL, and (0, 0) half the sum of squares of `log(p / q)`.

    Infinite where p = 0 < q unless a > 0 and a + b > 0, and where q = 0 < p unless b > 0 and a + b > 0.

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        alpha (`float`, *optional*, defaults to `0.2`): exponent of the teacher, finite.
        beta (`float`, *optional*, defaults to `0.7`): exponent of the student, finite. Unless both exponents are 0,
            one must be at least 0.01 in size: the differences between powers would be lost in float32.

    Example:
        >>> student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log()
        >>> abkd(student, teacher), abkd(student, teacher, alpha=1, beta=0)  # the latter is forward KL
        (tensor(0.1520), tensor(0.1308))
    """
    alpha, beta = as_real("alpha", alpha), as_real("beta", beta)
    if 0.0 < max(abs(alpha), abs(beta)) < 0.01:
        raise ValueError(
            f"alpha is {alpha} and beta is {beta}, so small that the differences between powers are lost in float32; "
            "give 0 for both, or at least 0.01 for one."
        )
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    if abs(alpha) < abs(beta):
        # The divergence is symmetric under exchange of both exponents and distributions. Dividing by the larger
        # exponent leaves no singularity except (0, 0).
        alpha, beta, log_p, log_q = beta, alpha, log_q, log_p
    total = alpha + beta
    never_p, never_q = log_p == -math.inf, log_q == -math.inf
    infinite = torch.zeros_like(never_p)
    if alpha <= 0 or total <= 0:
        infinite |= never_p & ~never_q
    if beta <= 0 or total <= 0:
        infinite |= never_q & ~never_p
    left_out = infinite | (never_p & never_q)
    log_p, log_q = log_p.masked_fill(left_out, 0.0), log_q.masked_fill(left_out, 0.0)
    log_ratio = log_q - log_p
    if alpha == 0.0:
        terms = 0.5 * log_ratio.square()
    else:
        start = _times(total, log_p)
        terms = _chord(start, _times(total, log_q), log_ratio, total)
        terms = (terms - _chord(start, _times(alpha, log_p) + _times(beta, log_q), log_ratio, beta)) / alpha
    return terms.masked_fill(infinite, math.inf).sum(dim=-1)


def _times(factor: float, values: Tensor) -> Tensor:
    """Return the product, 0 where a factor 0 meets -inf."""
    return values * factor if factor else torch.zeros_like(values)


def _chord(start: Tensor, end: Tensor, log_ratio: Tensor, factor: float) -> Tensor:
    """Return (exp(end) - exp(start)) / factor for end = start + factor * log_ratio, or its limit for factor 0."""
    if factor == 0.0:
        return start.exp() * log_ratio.masked_fill(start == -math.inf, 0.0)
    return _power_difference(start, end, factor * log_ratio) / factor


def _power_difference(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """Return exp(end) - exp(start) for end = start + step."""
    # `expm1` keeps small differences exact. The larger exponential is factored out, so that nothing overflows.
    rise, fall = step.clamp(min=0.0), step.clamp(max=0.0)
    return torch.where(step > 0, end.exp() * -torch.expm1(-rise), start.exp() * torch.expm1(fall))


@register("taid", paper="https://huggingface.co/papers/2501.16937", schedule=Interpolation)
def taid(student_logits: Tensor, teacher_logits: Tensor, t: float = 0.4, temperature: float = 1.0) -> Tensor:
    """Compute `KL(p_t || q)` of each token, with an intermediate teacher `p_t` between the student and the teacher.

    [TAID](https://huggingface.co/papers/2501.16937):
    `p_t = softmax((1 - t) student_logits + t teacher_logits)`. No gradient flows through `p_t`. `t = 1` is forward KL,
    and `t = 0` is 0 throughout. In training, [`Interpolation`] changes `t`.

    Infinite where no token is possible for both models, and at `t = 1` as forward KL.

    Args:
        student_logits, teacher_logits, temperature: as in [`forward_kl`], and so is the result.
        t (`float`, *optional*, defaults to `0.4`): share of the teacher's logits, in [0, 1].

    Example:
        >>> taid(torch.tensor([0.0, 0.0]), torch.tensor([9.0, 1.0]).log(), t=0.5)  # p_t = (.75, .25)
        tensor(0.1308)
    """
    t = as_share("t", t)
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    mixed = _times(1 - t, log_q.detach()) + _times(t, log_p)
    nowhere = (mixed == -math.inf).all(dim=-1, keepdim=True)
    log_p_t = torch.log_softmax(mixed.masked_fill(nowhere, 0.0), dim=-1)
    return _relative_entropy(log_p_t, log_q).masked_fill(nowhere.squeeze(-1), math.inf)


def _log_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student_logits, teacher_logits = shared_vocabulary(student_logits, teacher_logits)
    dtype = torch.promote_types(torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32)
    return (
        torch.log_softmax(student_logits.to(dtype) / temperature, dim=-1),
        torch.log_softmax(teacher_logits.to(dtype) / temperature, dim=-1),
    )


def _relative_entropy(log_a: Tensor, log_b: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return `sum(weights * a * log(a / b))`, by default KL(a || b). Terms of weight 0 may be infinite."""
    a = log_a.exp()
    counts = a > 0 if weights is None else (a > 0) & (weights > 0)
    # The gap is masked, not the product: 0 * inf would be NaN, and so would its gradient.
    gap = torch.where(counts, log_a - log_b, 0.0)
    return (a * gap if weights is None else a * gap * weights).sum(dim=-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """Return log(share * a + (1 - share) * b)."""
    log_shares = [math.log(part) if part else -math.inf for part in (share, 1 - share)]
    parts = torch.stack([log_a + log_shares[0], log_b + log_shares[1]])
    # Where both probabilities are 0, the gradient of logsumexp is NaN.
    impossible = (parts == -math.inf).all(dim=0)
    return torch.logsumexp(parts.masked_fill(impossible, 0.0), dim=0).masked_fill(impossible, -math.inf)
