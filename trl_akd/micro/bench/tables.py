"""Numbers and tables of an experiment's page."""

from collections.abc import Mapping, Sequence

from ...metrics.statistics import PairedMean, paired_mean

__all__ = [
    "SIGNIFICANT",
    "format_difference",
    "format_interval",
    "format_number",
    "format_p_value",
    "mean_over_seeds",
    "table",
]

SIGNIFICANT = 0.05


def mean_over_seeds(values: Mapping[int, float]) -> PairedMean | None:
    """Return the mean of values by seed, such as differences, with its interval; `None` for fewer than two."""
    found = list(values.values())
    return paired_mean(found, [0.0] * len(found)) if len(found) >= 2 else None


def format_difference(found: PairedMean | None) -> str:
    """Return a difference with its interval."""
    return "" if found is None else f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def format_interval(found: PairedMean | None) -> str:
    """Return a difference with its interval and the number of pairs."""
    return "" if found is None else f"{format_difference(found)}, n = {found.pairs}"


def format_p_value(p_value: float | None) -> str:
    """Return a p-value, in bold if it is significant."""
    if p_value is None:
        return ""
    text = "< .001" if p_value < 0.001 else f"{p_value:.3f}"
    return f"**{text}**" if p_value < SIGNIFICANT else text


def format_number(value: float | None) -> str:
    """Return a number with three decimals."""
    return "" if value is None else f"{value:.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
