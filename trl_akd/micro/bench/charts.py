"""Small charts in SVG, as a function of the numbers alone: equal numbers give equal bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

__all__ = ["Series", "bar_chart", "xy_chart"]

_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933"),
    *("#882255", "#44aa99", "#332288", "#aa4499", "#117733", "#ddcc77", "#661100", "#6699cc"),
)
_GREY = "#777777"
_WIDTH, _HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 24, 52
_TICKS = 6

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A named series of points, drawn as a line, or as a marker if there is only one.

    Args:
        name (`str`): name in the legend; an empty one is left out.
        points (`Sequence[tuple[float, float]]`): points.
        colour (`int`, *optional*): number of its colour; grey without one.
        dashed (`bool`, *optional*, defaults to `False`): whether the line is dashed.
    """

    name: str
    points: Sequence[Point]
    colour: int | None = None
    dashed: bool = False


@dataclass
class _Canvas:
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, content: str, *, anchor: str = "start", turned: bool = False) -> None:
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(content)}</text>')

    def line(self, points: Sequence[Point], colour: str, *, width: float = 1.5, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>')

    def circle(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def svg(self, title: str, height: float = _HEIGHT) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
            'font-family="sans-serif" font-size="12">'
        )
        background = f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="#ffffff"/>'
        return "\n".join([head, background, *self.parts, "</svg>"]) + "\n"


def xy_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Return a chart of lines and markers.

    Raises:
        ValueError: If there is no point.
    """
    points = [point for one in series for point in one.points]
    if not points:
        raise ValueError(f"The chart {title!r} has no points.")
    (left, right), (bottom, top) = (_range([point[axis] for point in points]) for axis in (0, 1))
    canvas = _Canvas()

    def place(point: Point) -> Point:
        x = _LEFT + (point[0] - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - (point[1] - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)
        return x, y

    for tick in _ticks(left, right):
        x, y = place((tick, bottom))
        canvas.line([(x, y), (x, _TOP)], "#dddddd", width=1)
        canvas.text(x, y + 18, f"{tick:g}", anchor="middle")
    for tick in _ticks(bottom, top):
        x, y = place((left, tick))
        canvas.line([(x, y), (_WIDTH - _RIGHT, y)], "#dddddd", width=1)
        canvas.text(x - 6, y + 4, f"{tick:g}", anchor="end")
    canvas.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_label, anchor="middle")
    canvas.text(16, (_TOP + _HEIGHT - _BOTTOM) / 2, y_label, anchor="middle", turned=True)
    for one in series:
        placed, colour = [place(point) for point in one.points], _colour(one.colour)
        if len(placed) == 1:
            [(x, y)] = placed
            canvas.circle(x, y, colour)
            canvas.text(x + 6, y - 6, one.name)
        else:
            canvas.line(placed, colour, dashed=one.dashed)
    _legend(canvas, {one.name: one.colour for one in series if one.name})
    return canvas.svg(title)


def bar_chart(title: str, x_label: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """Return a chart of horizontal bars, each a stack of named parts, on an axis from 0 to 1."""
    names = list(dict.fromkeys(name for parts in bars.values() for name in parts))
    canvas, step = _Canvas(), 24
    left, width = 110, _WIDTH - 110 - _RIGHT
    bottom = _TOP + step * len(bars)
    for row, (label, parts) in enumerate(bars.items()):
        y, x = _TOP + row * step, float(left)
        canvas.text(left - 6, y + 15, label, anchor="end")
        for name, share in parts.items():
            canvas.box(x, y + 3, share * width, step - 6, _colour(names.index(name)))
            x += share * width
    for tick in _ticks(0.0, 1.0):
        canvas.line([(left + tick * width, _TOP), (left + tick * width, bottom)], "#dddddd", width=1)
        canvas.text(left + tick * width, bottom + 18, f"{tick:g}", anchor="middle")
    canvas.text(left + width / 2, bottom + 40, x_label, anchor="middle")
    _legend(canvas, {name: index for index, name in enumerate(names)})
    return canvas.svg(title, max(bottom + 52, _TOP + 18 * len(names) + 12))


def _colour(number: int | None) -> str:
    return _GREY if number is None else _COLOURS[number % len(_COLOURS)]


def _legend(canvas: _Canvas, entries: Mapping[str, int | None]) -> None:
    for row, (name, colour) in enumerate(entries.items()):
        y = _TOP + 18 * row
        canvas.box(_WIDTH - _RIGHT + 14, y, 10, 10, _colour(colour))
        canvas.text(_WIDTH - _RIGHT + 30, y + 10, name)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return bounds of an axis with a margin around the values."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Return about six round numbers between two bounds."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]
