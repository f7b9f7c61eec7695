"""Figures of benchmarks, on invented numbers, and those in the documentation."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from .bench_losses import BASELINE
from .figures import FOLDER, figures

SVG = "{http://www.w3.org/2000/svg}"


def losses(tokens: int, vocab: int, **seconds: list[float]) -> dict[str, Any]:
    names = {"fused": "fused, beta 0.3", "chunked": "TRL chunked divergence", "baseline": BASELINE, "other": "unknown"}
    found = {names[name]: values for name, values in seconds.items()}
    return {"case": {"tokens": tokens, "vocab": vocab, "dtype": "float32"}, "seconds": found}


def drawn(folder: Path, **results: Any) -> dict[str, ElementTree.Element]:
    for name, found in results.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(found))
    return {name: ElementTree.fromstring(svg) for name, svg in figures(folder).items()}


def texts(chart: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in chart.iter(f"{SVG}text")]


def test_no_results_give_no_figures(tmp_path: Path):
    assert figures(tmp_path) == figures(tmp_path / "missing") == {}


def test_steps_are_compared_with_the_baseline_of_their_round(tmp_path: Path):
    steps = {
        "akd": [{"seconds": 1.0, "bytes": 100}, {"seconds": 3.0, "bytes": 100}, {"seconds": 2.0, "bytes": 300}],
        "kd": [{"seconds": 9.0, "bytes": 900}] * 3,
        "gkd": [{"seconds": 2.0, "bytes": 400}, {"seconds": 4.0, "bytes": 400}, {"seconds": 8.0, "bytes": 400}],
    }
    charts = drawn(tmp_path, steps=steps)
    assert charts.keys() == {"steps.svg"}
    found = texts(charts["steps.svg"])
    labels = ["AKDTrainer: time", "GKDTrainer: time", "AKDTrainer: memory", "GKDTrainer: memory"]
    assert [text for text in found if ": " in text] == labels, "what was not measured is left out"
    assert [text for text in found if text in ("0.500", "1.000", "0.250")] == ["0.500", "1.000", "0.250", "1.000"]


def test_losses_are_ordered_by_size_and_fit_the_chart(tmp_path: Path):
    charts = drawn(
        tmp_path,
        losses_1=losses(2048, 1000, fused=[4.0], baseline=[8.0], other=[1.0]),
        losses_2=losses(256, 1000, fused=[1.0, 3.0, 2.0], chunked=[9.0, 10.0, 30.0], baseline=[4.0, 5.0, 3.0]),
        losses_3=losses(8192, 1000, fused=[1.0]),
    )
    assert charts.keys() == {"losses.svg"}
    chart = charts["losses.svg"]
    labels = ["256 tokens x 1,000: fused", "256 tokens x 1,000: TRL chunked", "256 tokens x 1,000: TRL GKD"]
    labels += ["2,048 tokens x 1,000: fused", "2,048 tokens x 1,000: TRL GKD"]
    assert [text for text in texts(chart) if ": " in text] == labels
    assert {"0.500", "2.500", "1.000"} <= set(texts(chart))
    width = float(chart.get("viewBox", "").split()[2])
    points = [point for line in chart.iter(f"{SVG}polyline") for point in line.get("points", "").split()]
    assert max(float(point.partition(",")[0]) for point in points) == pytest.approx(width - 64, abs=0.1), "30 / 4"


@pytest.mark.skipif(not list(FOLDER.glob("*.json")), reason="no results of these benchmarks are committed yet")
def test_committed_figures_are_those_of_the_committed_results():
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
    assert committed == figures(FOLDER), "run `python -m tests.benchmarks.figures`"
