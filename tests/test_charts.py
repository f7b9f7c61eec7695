"""Charts: points at their values, and labels that cover neither each other nor points."""

import itertools
import random
import re
from xml.etree import ElementTree

import pytest

from trl_akd.charts import SMALL, Series, bar_chart, interval_chart, line_chart, scatter_chart

SVG = "{http://www.w3.org/2000/svg}"


def circles(root: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(node.get("cx", "")), float(node.get("cy", ""))) for node in root.iter(f"{SVG}circle")]


def labels(root: ElementTree.Element, names: list[str]) -> dict[str, tuple[float, float]]:
    """Return where the text of each name begins."""
    return {
        node.text: (float(node.get("x", "")), float(node.get("y", "")))
        for node in root.iter(f"{SVG}text")
        if node.text in names
    }


def test_markers_are_at_their_values():
    points = {"a": (0.2, 0.9), "b": (0.4, 0.5), "c": (0.6, 0.1)}
    root = ElementTree.fromstring(scatter_chart("Title", "x", "y & z", points, ["a", "c"], ["a", "c"]))
    (ax, ay), (bx, by), (cx, cy) = circles(root)
    assert ax < bx < cx and bx - ax == pytest.approx(cx - bx, abs=0.2), "to the right, evenly"
    assert ay < by < cy and by - ay == pytest.approx(cy - by, abs=0.2), "larger values are higher"
    assert {"x", "y & z", "a", "b", "c"} <= {node.text for node in root.iter(f"{SVG}text")}
    dashed = [node.get("points") for node in root.iter(f"{SVG}polyline") if node.get("stroke-dasharray")]
    assert dashed == [f"{ax:.1f},{ay:.1f} {cx:.1f},{cy:.1f}"]
    fills = [node.get("fill") for node in root.iter(f"{SVG}circle")]
    assert fills[0] == fills[2] != fills[1]


@pytest.mark.parametrize("spread", [0.02, 0.3, 1.0])
def test_labels_of_points_cover_no_other_label_and_no_point(spread: float):
    rng = random.Random(0)
    points = {f"a_rule_{index}": (rng.random() * spread, rng.random() * spread) for index in range(22)}
    points["far"] = (1.0, 1.0)  # so that a small spread is a cluster
    root = ElementTree.fromstring(scatter_chart("Title", "x", "y", points))
    found = labels(root, list(points))
    assert found.keys() == points.keys()
    boxes = {name: (x, y - 10, x + 6.5 * len(name), y + 2) for name, (x, y) in found.items()}
    for (_, one), (_, other) in itertools.combinations(boxes.items(), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for box, (x, y) in itertools.product(boxes.values(), circles(root)):
        assert not (box[0] < x < box[2] and box[1] < y < box[3])
        assert box[0] >= 0 and box[2] <= 720


def test_lines_are_labeled_once_by_style_in_the_order_of_their_ends():
    series = [Series(f"rule_{index}", [(0, 1.0), (10, 0.5 + 0.001 * index)], index) for index in range(25)]
    series.append(Series("rule_3", [(0, 1.0), (10, 0.4)], 3))
    svg = line_chart("Title", "step", "loss", series)
    found = labels(ElementTree.fromstring(svg), [one.name for one in series])
    heights = [found[f"rule_{index}"][1] for index in range(25)]
    assert all(low - high >= 13.9 for low, high in itertools.pairwise(heights)), "higher ends have higher labels"
    assert 0 < min(heights) and max(heights) <= 440 - 40
    styles = re.findall(r'stroke="(#\w+)" stroke-width="2"(?: stroke-dasharray="([^"]+)")?', svg)
    assert len(set(styles)) == 25, "no two rules look alike"


@pytest.mark.parametrize(
    "chart", [lambda: scatter_chart("Title", "x", "y", {}), lambda: line_chart("Title", "x", "y", [])]
)
def test_charts_need_points(chart):
    with pytest.raises(ValueError, match="no points"):
        chart()


def test_bars_have_the_length_of_their_shares():
    root = ElementTree.fromstring(bar_chart("Title", "share", {"one": {"a": 0.25, "b": 0.75}, "two": {"a": 0.5}}))
    widths = [float(node.get("width", "")) for node in root.iter(f"{SVG}rect") if node.get("height") == "18.0"]
    assert widths[0] * 3 == pytest.approx(widths[1], abs=0.3) and widths[0] * 2 == pytest.approx(widths[2], abs=0.3)


LONG = [
    "student before training",
    "org/a-model-with-a-very-long-name-that-is-longer-than-the-chart-is-wide-7b",
    "teacher",
]


def test_bars_end_at_their_values_on_an_axis_of_any_length():
    points = {"a": (0.5, 0.4, 0.6), "b": (2.0, 1.5, 2.5)}
    for maximum in (2.5, 10.0):
        root = ElementTree.fromstring(interval_chart("Title", "ratio", points, maximum=maximum))
        bars = [float(node.get("width", "")) for node in root.iter(f"{SVG}rect") if node.get("height") == "16.0"]
        assert bars[1] == pytest.approx(4 * bars[0], abs=0.5)
        ticks = {node.text: float(node.get("x", "")) for node in root.iter(f"{SVG}text")}
        (ax, _), _ = circles(root)
        assert ticks["0"] + bars[0] == pytest.approx(ax, abs=0.2) and f"{maximum:g}" in ticks


@pytest.mark.parametrize(
    "svg",
    [
        bar_chart("Title", "share", {name: {kind: 0.2 for kind in ("passed", *LONG)} for name in LONG}, SMALL[0]),
        interval_chart("Title", "pass@1", dict.fromkeys(LONG, (0.5, 0.4, 0.6)), SMALL[0]),
        line_chart(
            "Title", "step", "nats", [Series(name[:30], [(0, 1), (5, 2)], n) for n, name in enumerate(LONG)], SMALL
        ),
    ],
    ids=["bars", "intervals", "lines"],
)
def test_small_charts_keep_their_width_and_their_text_inside(svg: str):
    """So that text has 10 pixels on a phone whose page is 360 pixels wide."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert width == SMALL[0]
    boxes = []
    for node in root.iter(f"{SVG}text"):
        x, y, length = float(node.get("x", "")), float(node.get("y", "")), 6.8 * len(node.text or "")
        if node.get("transform") is None:
            left = x - {"start": 0, "middle": length / 2, "end": length}[node.get("text-anchor", "start")]
            boxes.append((left, y - 11, left + length, y))
    for box in boxes:
        assert 0 <= box[1] and box[3] <= height and ((0 <= box[0] and box[2] <= width) or box[2] - box[0] > width - 40)
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1], "no text on text"
