"""Triton kernels of the element-wise part of the fused losses, one program per token.

Each kernel reads rows of raw products `hidden @ weight.T`, and applies bias, logit scale and soft-cap. It computes in
the dtype of its statistics: float32, or float64 for products in float64. A softened log-probability is
`(logit - maximum) / T - log_sum`, so that large logits lose no digits. Rows have int64 offsets, so that a chunk may
have more than 2**31 entries.
"""

import triton
import triton.language as tl

# Rows of the tensor of statistics [11, tokens]. `log_sum_1` is at temperature 1.
STUDENT_MAXIMUM = tl.constexpr(0)
STUDENT_LOG_SUM = tl.constexpr(1)
STUDENT_LOG_SUM_1 = tl.constexpr(2)
TEACHER_MAXIMUM = tl.constexpr(3)
TEACHER_LOG_SUM = tl.constexpr(4)
FORWARD_KL = tl.constexpr(5)
REVERSE_KL = tl.constexpr(6)
STUDENT_ENTROPY = tl.constexpr(7)
TEACHER_ENTROPY = tl.constexpr(8)
STUDENT_NLL = tl.constexpr(9)
TEACHER_NLL = tl.constexpr(10)

# Gradients, and sums that some of them need.
LIKELIHOOD = tl.constexpr(0)
MIX = tl.constexpr(1)
TODI = tl.constexpr(2)
ALPHA = tl.constexpr(3)
JSD = tl.constexpr(4)
OVERLAP = tl.constexpr(5)


@triton.jit
def probe_kernel(out):
    """Write a number, to find out whether kernels can be compiled and launched."""
    tl.store(out, 1.0)


@triton.jit
def _expm1(x, REAL: tl.constexpr):
    """Return exp(x) - 1 for x <= 0, without cancellation."""
    TERMS: tl.constexpr = 9 if REAL == tl.float32 else 18
    series = tl.full(x.shape, 1.0, REAL)
    for i in tl.static_range(TERMS - 1):
        series = 1.0 + x * (1.0 / (TERMS - i)) * series
    return tl.where(x > -0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def _log1p(x, REAL: tl.constexpr):
    """Return log(1 + x) for -0.5 <= x <= 0, without cancellation: 2 atanh(x / (2 + x)) as a series."""
    TERMS: tl.constexpr = 8 if REAL == tl.float32 else 17
    ratio = x / (2.0 + x)
    square = ratio * ratio
    series = tl.full(x.shape, 1.0 / (2 * TERMS - 1), REAL)
    for i in tl.static_range(TERMS - 1):
        series = 1.0 / (2 * (TERMS - i) - 3) + square * series
    return 2.0 * ratio * series


@triton.jit
def _tanh(x, REAL: tl.constexpr):
    fall = _expm1(-2.0 * tl.abs(x), REAL)
    size = -fall / (2.0 + fall)
    return tl.where(x < 0, -size, size)


@triton.jit
def _logits(
    products, bias, columns, inside, HAS_BIAS: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, REAL: tl.constexpr
):
    """Load raw products and return logits, `CAP * tanh(SCALE * (product + bias) / CAP)`; a CAP of 0 is none."""
    logits = tl.load(products + columns, mask=inside, other=0.0).to(REAL)
    if HAS_BIAS:
        logits += tl.load(bias + columns, mask=inside, other=0.0).to(REAL)
    if SCALE != 1.0:
        logits *= SCALE
    if CAP != 0.0:
        logits = CAP * _tanh(logits / CAP, REAL)
    return logits


@triton.jit
def _logit(
    products,
    bias,
    column,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    REAL: tl.constexpr,
):
    """Return the logit of one column."""
    columns = column + tl.arange(0, 1)
    return tl.max(_logits(products, bias, columns, columns >= 0, HAS_BIAS, SCALE, CAP, REAL), 0)


@triton.jit
def _log_probabilities(
    products,
    bias,
    columns,
    inside,
    maximum,
    log_sum,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    REAL: tl.constexpr,
):
    """Return softened log-probabilities, and a finite one of probability 0 outside of the vocabulary."""
    logits = _logits(products, bias, columns, inside, HAS_BIAS, SCALE, CAP, REAL)
    return tl.where(inside, (logits - maximum) / TEMPERATURE - log_sum, -1e30)


@triton.jit(do_not_specialize=["tokens"])
def statistics_kernel(
    student,
    teacher,
    student_bias,
    teacher_bias,
    words,
    stride,
    tokens,
    labels,
    statistics,
    HAS_TEACHER: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    STUDENT_SCALE: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_SCALE: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute a token's statistics in one pass, with sums relative to the maxima so far."""
    row = tl.program_id(0).to(tl.int64)
    REAL: tl.constexpr = statistics.dtype.element_ty
    student += row * stride
    teacher += row * stride
    statistics += row
    s_max = _logit(student, student_bias, 0, HAS_STUDENT_BIAS, STUDENT_SCALE, STUDENT_CAP, REAL)
    t_max = s_max
    if HAS_TEACHER:
        t_max = _logit(teacher, teacher_bias, 0, HAS_TEACHER_BIAS, TEACHER_SCALE, TEACHER_CAP, REAL)
    zero = tl.full((), 0.0, REAL)
    s_sum, s_sum_1, s_mean = zero, zero, zero
    t_sum, t_sum_1, t_mean = zero, zero, zero
    s_ratio, t_ratio = zero, zero  # of the difference between both softened logits, each relative to its maximum
    for start in range(0, words, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < words
        s = _logits(student, student_bias, columns, inside, HAS_STUDENT_BIAS, STUDENT_SCALE, STUDENT_CAP, REAL)
        maximum = tl.maximum(s_max, tl.max(tl.where(inside, s, s_max), 0))
        s_step = s_max - maximum
        s_decay = tl.exp(s_step / TEMPERATURE)
        s -= maximum
        y_s = tl.where(inside, s / TEMPERATURE, 0.0)
        e_s = tl.where(inside, tl.exp(y_s), 0.0)
        if TEMPERATURE != 1.0:
            s_sum_1 = s_sum_1 * tl.exp(s_step) + tl.sum(tl.where(inside, tl.exp(s), 0.0), 0)
        s_max = maximum
        if HAS_TEACHER:
            t = _logits(teacher, teacher_bias, columns, inside, HAS_TEACHER_BIAS, TEACHER_SCALE, TEACHER_CAP, REAL)
            maximum = tl.maximum(t_max, tl.max(tl.where(inside, t, t_max), 0))
            t_step = t_max - maximum
            t_decay = tl.exp(t_step / TEMPERATURE)
            t -= maximum
            y_t = tl.where(inside, t / TEMPERATURE, 0.0)
            e_t = tl.where(inside, tl.exp(y_t), 0.0)
            if TEMPERATURE != 1.0:
                t_sum_1 = t_sum_1 * tl.exp(t_step) + tl.sum(tl.where(inside, tl.exp(t), 0.0), 0)
            t_max = maximum
            turn = (s_step - t_step) / TEMPERATURE
            s_ratio = s_decay * (s_ratio + turn * s_sum) + tl.sum(e_s * (y_s - y_t), 0)
            t_ratio = t_decay * (t_ratio + turn * t_sum) + tl.sum(e_t * (y_s - y_t), 0)
            t_mean = t_decay * (t_mean + t_step / TEMPERATURE * t_sum) + tl.sum(e_t * y_t, 0)
            t_sum = t_decay * t_sum + tl.sum(e_t, 0)
        s_mean = s_decay * (s_mean + s_step / TEMPERATURE * s_sum) + tl.sum(e_s * y_s, 0)
        s_sum = s_decay * s_sum + tl.sum(e_s, 0)

    label = tl.load(labels + row)
    known = label >= 0
    column = tl.where(known, label, 0)
    s_log_sum = tl.log(s_sum)
    s_log_sum_1 = s_log_sum
    if TEMPERATURE != 1.0:
        s_log_sum_1 = tl.log(s_sum_1)
    s = _logit(student, student_bias, column, HAS_STUDENT_BIAS, STUDENT_SCALE, STUDENT_CAP, REAL)
    tl.store(statistics + STUDENT_MAXIMUM * tokens, s_max)
    tl.store(statistics + STUDENT_LOG_SUM * tokens, s_log_sum)
    tl.store(statistics + STUDENT_LOG_SUM_1 * tokens, s_log_sum_1)
    tl.store(statistics + STUDENT_ENTROPY * tokens, s_log_sum - s_mean / s_sum)
    tl.store(statistics + STUDENT_NLL * tokens, tl.where(known, s_log_sum_1 - (s - s_max), 0.0))
    if HAS_TEACHER:
        t_log_sum = tl.log(t_sum)
        t_log_sum_1 = t_log_sum
        if TEMPERATURE != 1.0:
            t_log_sum_1 = tl.log(t_sum_1)
        t = _logit(teacher, teacher_bias, column, HAS_TEACHER_BIAS, TEACHER_SCALE, TEACHER_CAP, REAL)
        tl.store(statistics + TEACHER_MAXIMUM * tokens, t_max)
        tl.store(statistics + TEACHER_LOG_SUM * tokens, t_log_sum)
        tl.store(statistics + FORWARD_KL * tokens, s_log_sum - t_log_sum - t_ratio / t_sum)
        tl.store(statistics + REVERSE_KL * tokens, s_ratio / s_sum - s_log_sum + t_log_sum)
        tl.store(statistics + TEACHER_ENTROPY * tokens, t_log_sum - t_mean / t_sum)
        tl.store(statistics + TEACHER_NLL * tokens, tl.where(known, t_log_sum_1 - (t - t_max), 0.0))


@triton.jit
def _alpha_terms(q, p, ratio, alpha, complement, REAL: tl.constexpr):
    """Return `u = p**alpha * q**complement` and `u - p`, for `ratio = log q - log p` and `complement = 1 - alpha`."""
    larger = tl.maximum(q, p)
    size = tl.abs(ratio)
    larger *= tl.exp(-alpha * tl.maximum(ratio, 0.0))
    step = _expm1(-complement * size, REAL) * larger
    change = tl.where(ratio > 0, -step, step)
    return larger + tl.minimum(change, 0.0), change


@triton.jit
def _log_mixture_ratios(ratio, beta, complement, REAL: tl.constexpr):
    """Return log m/p and log m/q of `m = beta p + complement q`, for `ratio = log q - log p`."""
    size = tl.abs(ratio)
    of_smaller = tl.where(ratio > 0, beta, complement)
    of_larger = tl.where(ratio > 0, complement, beta)
    step = of_smaller * _expm1(-size, REAL)
    # The share of the larger one may be 0 in this dtype, but the mixture is not.
    mixture = tl.log(tl.maximum(of_larger + of_smaller * tl.exp(-size), 1e-30))
    over_larger = tl.where(step > -0.5, _log1p(step, REAL), mixture)
    return over_larger + tl.maximum(ratio, 0.0), over_larger + tl.maximum(-ratio, 0.0)


@triton.jit(do_not_specialize=["tokens"])
def sums_kernel(
    student,
    teacher,
    student_bias,
    teacher_bias,
    words,
    stride,
    tokens,
    statistics,
    coefficients,
    out,
    FORMULA: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    STUDENT_SCALE: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_SCALE: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute a token's sums over the vocabulary: the overlap of both distributions, or what a gradient needs."""
    row = tl.program_id(0).to(tl.int64)
    REAL: tl.constexpr = out.dtype.element_ty
    student += row * stride
    teacher += row * stride
    statistics += row
    s_max = tl.load(statistics + STUDENT_MAXIMUM * tokens)
    s_log_sum = tl.load(statistics + STUDENT_LOG_SUM * tokens)
    t_max = tl.load(statistics + TEACHER_MAXIMUM * tokens)
    t_log_sum = tl.load(statistics + TEACHER_LOG_SUM * tokens)
    if FORMULA == ALPHA or FORMULA == JSD:
        first = tl.load(coefficients + row)
        second = tl.load(coefficients + tokens + row)
    total = tl.full((), 0.0, REAL)
    other = tl.full((), 0.0, REAL)
    for start in range(0, words, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < words
        log_q = _log_probabilities(
            student, student_bias, columns, inside, s_max, s_log_sum,
            HAS_STUDENT_BIAS, STUDENT_SCALE, STUDENT_CAP, TEMPERATURE, REAL,
        )  # fmt: skip
        log_p = _log_probabilities(
            teacher, teacher_bias, columns, inside, t_max, t_log_sum,
            HAS_TEACHER_BIAS, TEACHER_SCALE, TEACHER_CAP, TEMPERATURE, REAL,
        )  # fmt: skip
        q, p = tl.exp(log_q), tl.exp(log_p)
        ratio = log_q - log_p
        if FORMULA == OVERLAP:
            total += tl.sum(tl.minimum(q, p), 0)
        elif FORMULA == TODI:
            share = 1.0 / (1.0 + tl.exp(-ratio))
            total += tl.sum((ratio + 1.0) * q * share - p * (1.0 - share), 0)
        elif FORMULA == JSD:
            log_m_over_p, log_m_over_q = _log_mixture_ratios(ratio, first, second, REAL)
            total -= tl.sum(p * log_m_over_p, 0)
            other -= tl.sum(q * log_m_over_q, 0)
        else:
            _, change = _alpha_terms(q, p, ratio, first, second, REAL)
            total += tl.sum(change, 0)
            difference = _expm1(-tl.abs(ratio), REAL) * tl.maximum(q, p)
            other += tl.sum(tl.where(ratio > 0, -difference, difference), 0)
    tl.store(out + row, total)
    if FORMULA == ALPHA or FORMULA == JSD:
        tl.store(out + tokens + row, other)


@triton.jit(do_not_specialize=["tokens"])
def head_kernel(
    student,
    teacher,
    student_bias,
    teacher_bias,
    words,
    stride,
    tokens,
    statistics,
    out,
    LIMIT: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    STUDENT_SCALE: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_SCALE: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum |p - q| over the head of the teacher's distribution, and over all tokens.

    The head ends within the most probable tokens of equal probability whose cumulative probability exceeds LIMIT. That
    probability is found by bisection of its bits, which are ordered as non-negative numbers are.
    """
    row = tl.program_id(0).to(tl.int64)
    REAL: tl.constexpr = out.dtype.element_ty
    student += row * stride
    teacher += row * stride
    statistics += row
    s_max = tl.load(statistics + STUDENT_MAXIMUM * tokens)
    s_log_sum = tl.load(statistics + STUDENT_LOG_SUM * tokens)
    t_max = tl.load(statistics + TEACHER_MAXIMUM * tokens)
    t_log_sum = tl.load(statistics + TEACHER_LOG_SUM * tokens)
    BITS: tl.constexpr = tl.int32 if REAL == tl.float32 else tl.int64
    zero = tl.full((), 0.0, REAL)
    low = zero.to(BITS, bitcast=True)
    high = (zero + 2.0).to(BITS, bitcast=True)
    while high - low > 1:
        middle = low + (high - low) // 2
        least = middle.to(REAL, bitcast=True)
        mass = zero
        for start in range(0, words, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            log_p = _log_probabilities(
                teacher, teacher_bias, columns, columns < words, t_max, t_log_sum,
                HAS_TEACHER_BIAS, TEACHER_SCALE, TEACHER_CAP, TEMPERATURE, REAL,
            )  # fmt: skip
            p = tl.exp(log_p)
            mass += tl.sum(tl.where(p >= least, p, 0.0), 0)
        exceeds = mass > LIMIT
        low = tl.where(exceeds, middle, low)
        high = tl.where(exceeds, high, middle)
    least = low.to(REAL, bitcast=True)
    mass, tied, above = zero, zero, zero
    error_above, error_tied, total = zero, zero, zero
    for start in range(0, words, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < words
        log_q = _log_probabilities(
            student, student_bias, columns, inside, s_max, s_log_sum,
            HAS_STUDENT_BIAS, STUDENT_SCALE, STUDENT_CAP, TEMPERATURE, REAL,
        )  # fmt: skip
        log_p = _log_probabilities(
            teacher, teacher_bias, columns, inside, t_max, t_log_sum,
            HAS_TEACHER_BIAS, TEACHER_SCALE, TEACHER_CAP, TEMPERATURE, REAL,
        )  # fmt: skip
        p = tl.exp(log_p)
        error = tl.abs(p - tl.exp(log_q))
        is_above, is_tied = inside & (p > least), inside & (p == least)
        mass += tl.sum(tl.where(is_above, p, 0.0), 0)
        above += tl.sum(tl.where(is_above, 1.0, 0.0), 0)
        tied += tl.sum(tl.where(is_tied, 1.0, 0.0), 0)
        error_above += tl.sum(tl.where(is_above, error, 0.0), 0)
        error_tied += tl.sum(tl.where(is_tied, error, 0.0), 0)
        total += tl.sum(error, 0)
    fitting = tl.floor((LIMIT - mass) / tl.where(least > 0, least, 1.0))
    fitting = tl.minimum(tl.maximum(fitting, tl.where(above > 0, 0.0, 1.0)), tied)
    # With a limit that the sum of all probabilities does not exceed, the head is the whole vocabulary.
    head = tl.where(least > 0, error_above + error_tied * fitting / tl.maximum(tied, 1.0), total)
    tl.store(out + row, head)
    tl.store(out + tokens + row, total)


@triton.jit(do_not_specialize=["tokens"])
def gradient_kernel(
    student,
    teacher,
    student_bias,
    teacher_bias,
    words,
    stride,
    tokens,
    labels,
    statistics,
    coefficients,
    ce_weights,
    gradient,
    gradient_stride,
    FORMULA: tl.constexpr,
    CE_WEIGHT: tl.constexpr,
    HAS_CE_WEIGHTS: tl.constexpr,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    STUDENT_SCALE: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_SCALE: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Overwrite a token's raw products of the student with the gradient of its loss.

    Rows of `coefficients`: `f - r * RKL`, `r` and `f` of a mix; the sum of the terms of `todi`; alpha, 1 - alpha, the
    sum of `u` and the factor of the gradient of `adaptive_alpha`; beta, 1 - beta and KL(q || m) of `jsd`.
    """
    row = tl.program_id(0).to(tl.int64)
    REAL: tl.constexpr = statistics.dtype.element_ty
    student += row * stride
    teacher += row * stride
    gradient += row * gradient_stride
    statistics += row
    coefficients += row
    s_max = tl.load(statistics + STUDENT_MAXIMUM * tokens)
    s_log_sum = tl.load(statistics + STUDENT_LOG_SUM * tokens)
    s_log_sum_1 = tl.load(statistics + STUDENT_LOG_SUM_1 * tokens)
    label = tl.load(labels + row)
    zero = tl.full((), 0.0, REAL)
    ce_weight = tl.load(ce_weights + row) if HAS_CE_WEIGHTS else zero + CE_WEIGHT
    ce_weight = tl.where(label >= 0, ce_weight, zero)
    if FORMULA != LIKELIHOOD:
        t_max = tl.load(statistics + TEACHER_MAXIMUM * tokens)
        t_log_sum = tl.load(statistics + TEACHER_LOG_SUM * tokens)
        first = tl.load(coefficients)
        if FORMULA != TODI:
            second = tl.load(coefficients + tokens)
            third = tl.load(coefficients + 2 * tokens)
        if FORMULA == ALPHA:
            factor = tl.load(coefficients + 3 * tokens)
    for start in range(0, words, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < words
        s = _logits(student, student_bias, columns, inside, HAS_STUDENT_BIAS, STUDENT_SCALE, STUDENT_CAP, REAL)
        if FORMULA != LIKELIHOOD:
            log_p = _log_probabilities(
                teacher, teacher_bias, columns, inside, t_max, t_log_sum,
                HAS_TEACHER_BIAS, TEACHER_SCALE, TEACHER_CAP, TEMPERATURE, REAL,
            )  # fmt: skip
            log_q = (s - s_max) / TEMPERATURE - s_log_sum
            ratio = tl.where(inside, log_q - log_p, 0.0)
            q, p = tl.exp(log_q), tl.exp(log_p)
            if FORMULA == MIX:
                slope = q * (first + second * ratio) - third * p
            elif FORMULA == TODI:
                share = 1.0 / (1.0 + tl.exp(-ratio))
                slope = (ratio + 1.0) * q * share - p * (1.0 - share) - q * first
            elif FORMULA == JSD:
                _, log_m_over_q = _log_mixture_ratios(ratio, first, second, REAL)
                slope = -second * q * (log_m_over_q + third)
            else:
                u, _ = _alpha_terms(q, p, ratio, first, second, REAL)
                slope = (q * third - u) * factor
            slope /= TEMPERATURE
        else:
            slope = tl.zeros((BLOCK,), REAL)
        if CE_WEIGHT != 0.0:
            likelihood = tl.exp(s - s_max - s_log_sum_1)
            slope += ce_weight * (likelihood - tl.where(columns == label, 1.0, 0.0))
        if STUDENT_CAP != 0.0:
            slope *= 1.0 - (s / STUDENT_CAP) * (s / STUDENT_CAP)
        if STUDENT_SCALE != 1.0:
            slope *= STUDENT_SCALE
        if NARROW:
            # Narrow gradients overlap products of columns further left, and in the first block of this one.
            tl.debug_barrier()
        tl.store(gradient + columns, slope.to(gradient.dtype.element_ty), mask=inside)
