"""Small charts in SVG, as a function of the numbers alone: equal numbers give equal bytes."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

__all__ = ["Series", "bar_chart", "interval_chart", "line_chart", "scatter_chart"]

_COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#332288", "#000000", "#888800"),
    *("#882255", "#2a9d8f", "#661100"),
)
_DASHES = ("", "6 3", "2 3")
_GRAY, _LIGHT = "#777777", "#9ecae1"
_WIDTH, _HEIGHT = 720, 440
SMALL = (400, 280)  # for a page with several charts, whose text can also be read on a phone
_LEFT, _TOP, _BOTTOM = 64, 24, 52
_TICKS = 6
_ROW = 24  # height of a bar with its margins, in pixels
_SHORTEST = 160  # length of the axis of bars, in pixels, beside long labels
_CHARACTER, _LINE, _LEGEND = 6.8, 14.0, 18  # width of a character, height of a label and of a row of names, in pixels

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Series:
    """A named line.

    Args:
        name (`str`): name of the line.
        points (`Sequence[tuple[float, float]]`): its points, from left to right.
        style (`int`): number of its color and dashes; lines of one style have one label.
    """

    name: str
    points: Sequence[Point]
    style: int


@dataclass
class _Canvas:
    width: float = _WIDTH
    height: float = _HEIGHT
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, content: str, *, anchor: str = "start", color: str = "", turned: bool = False
    ) -> None:
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        fill = f' fill="{color}"' if color else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}{turn}>{escape(content)}</text>')

    def line(self, points: Sequence[Point], color: str, *, width: float = 1.5, dashes: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{dash}/>')

    def circle(self, x: float, y: float, color: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>')

    def legend(self, styles: Mapping[str, int], left: float, top: float, *, dashed: bool = False) -> float:
        """Draw names beside the colors of their styles, in as many rows as they need, and return the bottom."""
        x, y = left, top
        for name, style in styles.items():
            width = 26 + len(name) * _CHARACTER
            if x > left and x + width > self.width:
                x, y = left, y + _LEGEND
            if dashed:
                self.line([(x, y + 6), (x + 20, y + 6)], _color(style), dashes=_dashes(style), width=2)
            else:
                self.box(x + 5, y + 1, 10, 10, _color(style))
            self.text(x + 26, y + 10, name)
            x += width + 10
        return y + _LEGEND if styles else y

    def svg(self, title: str) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}" '
            'font-family="sans-serif" font-size="12">'
        )
        background = f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="#ffffff"/>'
        return "\n".join([head, background, *self.parts, "</svg>"]) + "\n"


class _Plot:
    """Axes with ticks on a canvas, and the place of points in them.

    Raises:
        ValueError: If there is no point.
    """

    def __init__(
        self,
        canvas: _Canvas,
        title: str,
        labels: tuple[str, str],
        points: Sequence[Point],
        right: float,
        top: float = _TOP,
    ) -> None:
        if not points:
            raise ValueError(f"The chart {title!r} has no points.")
        self.right, self._top = right, top
        self._bottom = canvas.height - _BOTTOM
        (self._x_low, self._x_high), (self._y_low, self._y_high) = (
            _range([point[axis] for point in points]) for axis in (0, 1)
        )
        whole = all(float(x).is_integer() for x, _ in points)  # such as steps and cycles
        for tick in _ticks(self._x_low, self._x_high):
            if whole and not tick.is_integer():
                continue
            x, y = self.place((tick, self._y_low))
            canvas.line([(x, y), (x, top)], "#dddddd", width=1)
            canvas.text(x, y + 18, f"{tick:g}", anchor="middle")
        for tick in _ticks(self._y_low, self._y_high):
            x, y = self.place((self._x_low, tick))
            canvas.line([(x, y), (right, y)], "#dddddd", width=1)
            canvas.text(x - 6, y + 4, f"{tick:g}", anchor="end")
        canvas.text((_LEFT + right) / 2, canvas.height - 12, labels[0], anchor="middle")
        canvas.text(16, (top + self._bottom) / 2, labels[1], anchor="middle", turned=True)

    def place(self, point: Point) -> Point:
        x = _LEFT + (point[0] - self._x_low) / (self._x_high - self._x_low) * (self.right - _LEFT)
        y = self._bottom - (point[1] - self._y_low) / (self._y_high - self._y_low) * (self._bottom - self._top)
        return x, y


def scatter_chart(
    title: str,
    x_label: str,
    y_label: str,
    points: Mapping[str, Point],
    line: Sequence[str] = (),
    gray: Sequence[str] = (),
) -> str:
    """Return a chart of named points, of which those in `line` are joined by a dashed line, and some are gray.

    Raises:
        ValueError: If there is no point.
    """
    canvas = _Canvas()
    plot = _Plot(canvas, title, (x_label, y_label), list(points.values()), _WIDTH - 20)
    placed = {name: plot.place(point) for name, point in points.items()}
    canvas.line([placed[name] for name in line], _GRAY, dashes="5 4")
    for name, point in placed.items():
        canvas.circle(*point, _GRAY if name in gray else _COLORS[0])
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in placed.values()]
    for start, end in itertools.pairwise(placed[name] for name in line):
        count = int(math.dist(start, end) // 6) + 1
        for part in range(count + 1):
            x, y = (start[axis] + (end[axis] - start[axis]) * part / count for axis in (0, 1))
            taken.append((x - 2, y - 2, x + 2, y + 2))
    for name, point in placed.items():
        box = _free_box(point, len(name) * _CHARACTER, taken, plot.right)
        taken.append(box)
        near = min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])
        if math.dist(near, point) > 12:
            canvas.line([point, near], "#aaaaaa", width=0.8)
        canvas.text(box[0], box[3] - 3, name)
    return canvas.svg(title)


def _free_box(point: Point, width: float, taken: Sequence[Box], right: float) -> Box:
    """Return the place nearest to a point at which a label covers no other label and no point."""
    x, y = point
    for distance, turn in itertools.product(range(8, 200, 6), range(16)):
        across, up = math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)
        left = x + across * distance - (0 if across > 0.1 else width if across < -0.1 else width / 2)
        top = y - up * distance - _LINE / 2
        box = left, top, left + width, top + _LINE
        inside = _LEFT <= box[0] and box[2] <= right and _TOP <= box[1] and box[3] <= _HEIGHT - _BOTTOM
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return x + 8, y - _LINE / 2, x + 8 + width, y + _LINE / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def line_chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], size: tuple[float, float] = (_WIDTH, _HEIGHT)
) -> str:
    """Return a chart of lines, labeled at the right in the order of their last points or, if it is small, above.

    Args:
        title (`str`):
            Title for screen readers.
        x_label (`str`), y_label (`str`):
            Labels of the axes.
        series (`Sequence[Series]`):
            The lines; one with an empty name has no label.
        size (`tuple[float, float]`, *optional*, defaults to `(720, 440)`):
            Width and height in pixels.

    Raises:
        ValueError: If there is no point.
    """
    canvas, width = _Canvas(*size), max((len(one.name) for one in series), default=0) * _CHARACTER
    points = [point for one in series for point in one.points]
    if canvas.width < _WIDTH:
        top = canvas.legend({one.name: one.style for one in series if one.name}, _LEFT, 8, dashed=True) + 8
        plot = _Plot(canvas, title, (x_label, y_label), points, canvas.width - 20, top)
        for one in series:
            canvas.line(list(map(plot.place, one.points)), _color(one.style), dashes=_dashes(one.style))
        return canvas.svg(title)
    plot = _Plot(canvas, title, (x_label, y_label), points, canvas.width - (60 + width if width else 20))
    ends: dict[str, tuple[float, int]] = {}
    for one in series:
        placed = [plot.place(point) for point in one.points]
        canvas.line(placed, _color(one.style), dashes=_dashes(one.style))
        if one.name:
            ends.setdefault(one.name, (placed[-1][1], one.style))
    names = sorted(ends, key=lambda name: ends[name][0])
    spread = _spread([ends[name][0] for name in names], canvas.height - _BOTTOM)
    for name, y in zip(names, spread, strict=True):
        style = ends[name][1]
        x = plot.right + 6
        canvas.line([(x, y), (x + 26, y)], _color(style), dashes=_dashes(style), width=2)
        canvas.text(x + 32, y + 4, name, color=_color(style))
    return canvas.svg(title)


def _spread(heights: Sequence[float], limit: float) -> list[float]:
    """Return ascending heights at least a label apart, moved as little as one pass down and one up allow."""
    spread: list[float] = []
    for height in heights:
        spread.append(max(height, spread[-1] + _LINE) if spread else height)
    for index in reversed(range(len(spread))):
        spread[index] = min(spread[index], limit)
        limit = spread[index] - _LINE
    return spread


def bar_chart(title: str, x_label: str, bars: Mapping[str, Mapping[str, float]], width: float = _WIDTH) -> str:
    """Return a chart of horizontal bars, each a stack of named parts, on an axis from 0 to 1.

    Args:
        title (`str`):
            Title for screen readers.
        x_label (`str`):
            Label of the axis.
        bars (`Mapping[str, Mapping[str, float]]`):
            Lengths of the parts of each bar.
        width (`float`, *optional*, defaults to `720`):
            Width of the chart in pixels. In a smaller chart, labels are above the bars, and names below the axis; one
            of this width is wider if labels are long.
    """
    names = list(dict.fromkeys(name for parts in bars.values() for name in parts))
    rows = _Rows(bars, width, 20 if width < _WIDTH else 150)
    canvas = rows.canvas
    for label, parts in bars.items():
        y, x = rows.add(label), rows.left
        for name, share in parts.items():
            canvas.box(x, y + 3, share * rows.unit, _ROW - 6, _color(names.index(name)))
            x += share * rows.unit
    rows.draw_axis(x_label)
    if width < _WIDTH:
        canvas.height = canvas.legend({name: style for style, name in enumerate(names)}, 8, rows.bottom + 54) + 4
        return canvas.svg(title)
    for row, name in enumerate(names):
        y = _TOP + 18 * row
        canvas.box(canvas.width - 136, y, 10, 10, _color(row))
        canvas.text(canvas.width - 120, y + 10, name)
    canvas.height = max(rows.bottom + 52, _TOP + 18 * len(names) + 12)
    return canvas.svg(title)


def interval_chart(
    title: str,
    x_label: str,
    points: Mapping[str, tuple[float, float, float]],
    width: float = _WIDTH,
    maximum: float = 1.0,
) -> str:
    """Return a chart of horizontal bars with intervals, on an axis from 0 to `maximum`.

    Args:
        title (`str`):
            Title for screen readers.
        x_label (`str`):
            Label of the axis.
        points (`Mapping[str, tuple[float, float, float]]`):
            Value, lower bound and upper bound, by name.
        width (`float`, *optional*, defaults to `720`):
            Width of the chart in pixels. In a smaller chart, labels are above the bars; one of this width is wider if
            labels are long.
        maximum (`float`, *optional*, defaults to `1.0`):
            End of the axis.
    """
    rows = _Rows(points, width, 64, maximum)
    canvas = rows.canvas
    for label, (value, low, high) in points.items():
        y = rows.add(label) + _ROW / 2
        canvas.box(rows.left, y - 8, value * rows.unit, 16, _LIGHT)
        start, end = (rows.left + bound * rows.unit for bound in (low, high))
        canvas.line([(start, y), (end, y)], _COLORS[0], width=2)
        for x in (start, end):
            canvas.line([(x, y - 5), (x, y + 5)], _COLORS[0], width=2)
        canvas.circle(rows.left + value * rows.unit, y, _COLORS[0])
        canvas.text(canvas.width - 54, y + 4, f"{value:.3f}")
    rows.draw_axis(x_label)
    canvas.height = rows.bottom + 52
    return canvas.svg(title)


class _Rows:
    """Horizontal bars on a canvas, with their labels and an axis from 0 to `maximum`."""

    def __init__(self, labels: Iterable[str], width: float, margin: float, maximum: float = 1.0) -> None:
        self._above = width < _WIDTH
        self.left = 12 if self._above else 20 + max(map(len, labels), default=0) * _CHARACTER
        self.canvas = _Canvas(max(width, self.left + _SHORTEST + margin))
        self.unit = (self.canvas.width - self.left - margin) / maximum
        self._maximum = maximum
        self.top: float = 6 if self._above else _TOP
        self.bottom = self.top

    def add(self, label: str) -> float:
        """Draw the label of the next bar, and return the top of the bar's row."""
        top = self.bottom
        if self._above:
            most = int((self.canvas.width - self.left) / _CHARACTER)
            self.canvas.text(self.left, top + 13, label if len(label) <= most else f"{label[: most - 1]}…")
            top += _LEGEND
        else:
            self.canvas.text(self.left - 6, top + 15, label, anchor="end")
        self.bottom = top + _ROW
        return top

    def draw_axis(self, label: str) -> None:
        drawn, self.canvas.parts = self.canvas.parts, []
        for tick in _ticks(0.0, self._maximum):
            x = self.left + tick * self.unit
            self.canvas.line([(x, self.top), (x, self.bottom)], "#dddddd", width=1)
            self.canvas.text(x, self.bottom + 18, f"{tick:g}", anchor="middle")
        self.canvas.text(self.left + self._maximum * self.unit / 2, self.bottom + 40, label, anchor="middle")
        axis = self.canvas.parts
        self.canvas.parts = [*axis, *drawn] if self._above else [*drawn, *axis]  # labels cover the lines above bars


def _color(style: int) -> str:
    return _COLORS[style % len(_COLORS)]


def _dashes(style: int) -> str:
    return _DASHES[style // len(_COLORS) % len(_DASHES)]


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
