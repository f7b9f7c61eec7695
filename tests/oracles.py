"""References in float64 loops, written from the equations. Imports nothing from `trl_akd`."""

from math import exp, expm1, log, tanh

Vector = list[float]
Matrix = list[Vector]


def probabilities(logits: Vector, temperature: float = 1.0) -> Vector:
    largest = max(logits)
    terms = [exp((logit - largest) / temperature) for logit in logits]
    return [term / sum(terms) for term in terms]


def divergence(a: Vector, b: Vector) -> float:
    """KL(a || b) in nats; 0 log 0 = 0."""
    return sum(x * log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def mixture(a: Vector, b: Vector, share: float) -> Vector:
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


def generalized_jsd(p: Vector, q: Vector, beta: float) -> float:
    """GKD, Eq. 1, whose limits TRL replaces by forward and reverse KL; p is the distribution of the teacher."""
    if beta in (0.0, 1.0):
        return divergence(q, p) if beta else divergence(p, q)
    m = mixture(p, q, beta)
    return beta * divergence(p, m) + (1 - beta) * divergence(q, m)


def skew_kl(p: Vector, q: Vector, alpha: float) -> float:
    return divergence(p, mixture(p, q, alpha))


def akl(p: Vector, q: Vector, mu: float, at: Vector | None = None, order: list[int] | None = None) -> float:
    """AKL with the weight of forward KL taken at the student's distribution `at`; `order` breaks ties."""
    w = akl_weight(p, q if at is None else at, mu, order)
    return w * divergence(p, q) + (1 - w) * divergence(q, p)


def akl_weight(p: Vector, q: Vector, mu: float, order: list[int] | None = None) -> float:
    if order is None:
        order = sorted(range(len(p)), key=lambda token: -p[token])
    errors = [abs(p[token] - q[token]) for token in order]
    cumulative, head = 0.0, 0.0
    for rank, (token, error) in enumerate(zip(order, errors, strict=True)):
        cumulative += p[token]
        if rank == 0 or cumulative <= mu + 1e-12:
            head += error
    return head / sum(errors) if sum(errors) else 0.5


def minillm_weights(
    q: Vector, p: Vector, mix: float, *, single_step: bool = True, normalize: bool = True, clip: float | None = None
) -> Vector:
    """MiniLLM, the factor of the gradient of -log q(y_t) for each token t of one completion.

    `q` and `p` are the probabilities of the tokens sampled. With PPO's objective `min(w A, clip(w) A)`, the factor is
    the derivative of its minus with respect to -log q, where A = R and w = q / (mix p + (1 - mix) q).
    """
    found = []
    for t in range(len(q)):
        rewards = [log(p[s] / q[s]) for s in range(t + single_step, len(q))]
        total = sum(rewards)
        if normalize and rewards:
            total /= len(rewards)
        w = q[t] / (mix * p[t] + (1 - mix) * q[t])
        if clip is not None and min(w * total, min(max(w, 1 - clip), 1 + clip) * total) != w * total:
            w = 0.0
        found.append(w * total)
    return found


def todi(p: Vector, q: Vector, at: Vector | None = None) -> float:
    """ToDi with the weights taken at the student's distribution `at`."""
    total = 0.0
    for x, y, z in zip(p, q, q if at is None else at, strict=True):
        a = 1 / (1 + exp(log(z) - log(x)))
        total += a * x * log(x / y) + (1 - a) * y * log(y / x)
    return total


def eopd(p: Vector, q: Vector, threshold: float) -> float:
    return divergence(q, p) + (divergence(p, q) if entropy(p) > threshold else 0.0)


def adaptive_alpha(p: Vector, q: Vector, k: float, c: float, at: Vector | None = None) -> float:
    """The weighted alpha divergence of order a = 1 - b, taken at the student's distribution `at`."""
    b = k * sum(min(x, z) for x, z in zip(p, q if at is None else at, strict=True))
    weight = (1 + c * entropy(p)) / (1 - b)
    if b == 0:
        return weight * divergence(p, q)
    # x^a y^b - x for each token, whose sum is that of p^a q^b minus 1
    return -weight * sum(x * expm1(b * log(y / x)) for x, y in zip(p, q, strict=True) if x > 0) / b


def abkd(p: Vector, q: Vector, a: float, b: float) -> float:
    """The alpha-beta divergence, with a case for each of its limits."""

    def term(x: float, y: float) -> float:
        if a == b == 0:
            return (log(x) - log(y)) ** 2 / 2
        if b == 0:
            return (x**a * log(x**a / y**a) - x**a + y**a) / a**2
        if a == 0:
            return (y**b * log(y**b / x**b) - y**b + x**b) / b**2
        if a + b == 0:
            return (log(y**a / x**a) + x**a / y**a - 1) / a**2
        return -(x**a * y**b - a / (a + b) * x ** (a + b) - b / (a + b) * y ** (a + b)) / (a * b)

    return sum(term(x, y) for x, y in zip(p, q, strict=True))


def taid(p: Vector, q: Vector, t: float, at: Vector | None = None) -> float:
    """TAID with the intermediate teacher taken at the student's distribution `at`."""
    parts = [x**t * z ** (1 - t) for x, z in zip(p, q if at is None else at, strict=True)]
    return divergence([part / sum(parts) for part in parts], q)


def top_and_tail(p: Vector, ids: list[int]) -> Vector:
    """Probabilities of some tokens, and of all others together."""
    return [p[token] for token in ids] + [sum(p[token] for token in range(len(p)) if token not in ids)]


def entropy(a: Vector) -> float:
    return -sum(x * log(x) for x in a if x > 0)


def head_logits(
    hidden: Vector,
    weight: Matrix,
    bias: Vector | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Vector:
    logits = []
    for row, features in enumerate(weight):
        product = sum(h * w for h, w in zip(hidden, features, strict=True))
        logit = scale * (product + (bias[row] if bias else 0.0))
        logits.append(softcap * tanh(logit / softcap) if softcap else logit)
    return logits


def akd_token(
    student: Vector,
    teacher: Vector,
    *,
    beta: float,
    temperature: float = 1.0,
    label: int = -100,
    ce_weight: float = 0.0,
) -> dict[str, float]:
    """One token of Eq. 9 (AKD) from both models' logits, plus cross-entropy, cut to the shared vocabulary."""
    shared = min(len(student), len(teacher))
    student, teacher = student[:shared], teacher[:shared]
    q, p = probabilities(student, temperature), probabilities(teacher, temperature)
    token = {
        "forward_kl": divergence(p, q),
        "reverse_kl": divergence(q, p),
        "student_entropy": entropy(q),
        "student_nll": -log(probabilities(student)[label]) if label >= 0 else 0.0,
        "teacher_nll": -log(probabilities(teacher)[label]) if label >= 0 else 0.0,
    }
    token["loss"] = (1 - beta) * token["forward_kl"] + beta * token["reverse_kl"] + ce_weight * token["student_nll"]
    return token


def sequence_mean(samples: list[Vector]) -> float:
    """The mean over samples of the mean over a sample's tokens; samples without tokens are ignored."""
    means = [sum(tokens) / len(tokens) for tokens in samples if tokens]
    return sum(means) / len(means) if means else 0.0


def token_mean(samples: list[Vector]) -> float:
    tokens = [token for sample in samples for token in sample]
    return sum(tokens) / len(tokens) if tokens else 0.0
