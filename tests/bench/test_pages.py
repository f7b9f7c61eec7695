"""Results and pages of all experiments: verdicts, sentences, tables, and the files that are read and written."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trl_akd.bench.fields import Bounds
from trl_akd.bench.pages import (
    Page,
    adjust_p_values,
    common_errors,
    describe_progress,
    difference_over_seeds,
    format_mean,
    format_p_value,
    format_settings,
    mean_errors,
    mean_over_seeds,
)
from trl_akd.metrics.statistics import PairedMean, holm
from trl_akd.micro.bench.cycles_report import CyclesResults
from trl_akd.micro.bench.plans_report import PlansResults
from trl_akd.micro.bench.results import Results


def test_a_verdict_is_right_or_wrong_if_all_numbers_of_the_interval_give_the_same_answer():
    """Bounds and ends of intervals are on a grid, so that an overlap has a number of the grid."""
    grid = [step / 4 for step in range(-4, 5)]
    ends = [None, *grid]
    for at_least, at_most in itertools.product(ends, ends):
        least, most = (-math.inf if at_least is None else at_least), (math.inf if at_most is None else at_most)
        if (at_least, at_most) == (None, None) or least > most:
            continue
        bounds = Bounds(at_least=at_least, at_most=at_most)
        for low, high in itertools.combinations_with_replacement(grid, 2):
            are_right = [least <= value <= most for value in grid if low <= value <= high]
            expected = "right" if all(are_right) else "open" if any(are_right) else "wrong"
            assert bounds.verdict(PairedMean((low + high) / 2, low, high, 0.5, 5)) == expected


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"at_least": 0.1}, "at least 0.1"),
        ({"at_most": -0.05}, "at most -0.05"),
        ({"at_least": 0, "at_most": 0.25}, "at least 0, at most 0.25"),
    ],
)
def test_bounds_in_words(bounds: dict[str, float], words: str):
    assert Bounds(**bounds).describe_bounds() == words


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1.0, "at_most": 0.0}, {"at_most": float("nan")}])
def test_bounds_that_no_number_satisfies(bounds: dict[str, float]):
    with pytest.raises(ValueError, match="`at_least`"):
        Bounds(**bounds)


def run(commit: str = "abc", start: str = "abc") -> dict[str, Any]:
    return {"commit": commit, "start": {"commit": start}}


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([], "0 of 3 runs are finished, with 2 seeds."),
        ([run()], "1 of 3 runs are finished, with 2 seeds, at commit abc."),
        (
            [run(), run(start="def")],
            "2 of 3 runs are finished, with 2 seeds, at commit abc, def. **The runs are from several commits, so they "
            "may not be comparable.**",
        ),
        (
            [run("abc+", "abc+")],
            "1 of 3 runs are finished, with 2 seeds, at commit abc+. **The runs include code that was not committed "
            "(+), so they may not be comparable.**",
        ),
    ],
)
def test_progress(runs: list[dict[str, Any]], text: str):
    assert describe_progress({"runs": runs, "planned": [{}] * 3, "seeds": [0, 1]}) == text


def test_statistics_over_seeds():
    assert mean_over_seeds({3: 1.0}) is None and difference_over_seeds({0: 1.0, 1: 2.0}, {1: 1.0, 2: 5.0}) is None
    found = difference_over_seeds({0: 0.5, 1: 0.75, 2: 1.0}, {2: 0.5, 1: 0.25, 0: 0.25})
    assert found is not None and (found.difference, found.pairs) == (pytest.approx(5 / 12), 3)
    assert [format_mean(values) for values in ({}, {0: 0.5}, {0: 0.5, 1: 0.5})] == ["", "0.500", "0.500 ± 0.000"]
    tests = {"a": found, "b": None, "c": mean_over_seeds({0: 0.1, 1: 0.3, 2: 0.2})}
    adjusted = adjust_p_values(tests)
    assert list(adjusted) == ["a", "c"]
    assert list(adjusted.values()) == holm([tests["a"].p_value, tests["c"].p_value])
    assert [format_p_value(value) for value in (None, 0.0005, 0.0123, 0.05)] == [
        "",
        "**< .001**",
        "**0.012**",
        "0.050",
    ]


def test_errors_are_averaged_over_runs_and_sorted_by_their_sum():
    found = [mean_errors([{"errors": {"b": 0.5}}, {"errors": {"a": 0.25}}]), mean_errors([{"errors": {"a": 0.5}}])]
    assert found == [{"a": 0.125, "b": 0.25}, {"a": 0.5}]
    assert common_errors(found, 5) == ["a", "b"] and common_errors(found, 1) == ["a"]


def test_settings_as_in_a_recipe():
    assert (
        format_settings({"rows": 3, "at": [0, 0.5], "rules": None}, without=("rules",)) == "`rows: 3`, `at: [0, 0.5]`"
    )
    assert format_settings(None) == format_settings({}) == "defaults"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Results, {"format": 3}),
        (CyclesResults, {"format": 1}),
        (PlansResults, {"format": 1}),
    ],
)
@pytest.mark.parametrize("measures", [{"greedy": float("nan")}, {"own_plans": {"best@1": float("inf")}}])
def test_measures_that_are_not_finite_are_refused(kind: Any, content: dict[str, Any], measures: dict[str, Any]):
    place = dict.fromkeys(kind.place, "x")
    name = " ".join([*measures, *([] if "greedy" in measures else ["best@1"])])
    with pytest.raises(
        ValueError, match=rf"{name} is (nan|inf) in the run of {', '.join(f'{key} x' for key in place)}$"
    ):
        kind({**content, "runs": [{**place, "started": True, "measures": measures}]})
    with pytest.raises(ValueError, match="its format is 0, and this version reads"):
        kind({"format": 0})


def sections(content: Mapping[str, Any], prefix: str) -> tuple[list[str], dict[str, str]]:
    figure = f"{prefix}-line-{content['figure']}.svg"
    return [content["text"], f"![]({figure})"], {figure: "<svg/>"}


PAGE = Page("Title", "some command", sections, ["line"])


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": f"Text of {name}.", "figure": "a"}))
    return [tmp_path / "one.json", tmp_path / "two.json"]


def test_a_page_is_made_of_its_files_alone(results: list[Path], tmp_path: Path):
    (tmp_path / "answer.txt").write_text("\nAnswer.\n\n")
    page = PAGE.write(results, tmp_path / "docs" / "page.md", tmp_path / "answer.txt")
    assert page.read_text() == (
        "# Title\n\nAnswer.\n\n## one\n\nText of one.\n\n![](page/one-line-a.svg)\n\n"
        "## two\n\nText of two.\n\n![](page/two-line-a.svg)\n"
    )
    figures = tmp_path / "docs" / "page"
    assert {path.name for path in figures.iterdir()} == {"one-line-a.svg", "two-line-a.svg"}
    results[0].write_text(json.dumps({"text": "", "figure": "b"}))
    (figures / "one-other-a.svg").touch()
    PAGE.write(results[:1], tmp_path / "docs" / "page.md")
    assert {path.name for path in figures.iterdir()} == {"one-line-b.svg", "two-line-a.svg", "one-other-a.svg"}


def test_the_page_is_beside_the_first_results(results: list[Path], tmp_path: Path):
    assert PAGE.write(results) == tmp_path / "one.md"


@pytest.mark.parametrize(
    ("page", "introduction", "message"),
    [
        ("page.html", None, "`page` is '.*page.html'; give a file with the suffix .md"),
        ("page.md", "page.md", "`introduction` is '.*page.md', which the page would replace; give another file"),
        (None, "one.md", "`introduction` is '.*one.md', which the page would replace; give another file"),
        (None, "two.json", "`report` is '.*one.json', which is not the results of `some command`"),
        (None, "latin.txt", "`introduction` is '.*latin.txt', which is not text in UTF-8; give a Markdown file"),
        (None, "none.txt", "`introduction` is '.*none.txt', but there is no such file; give a Markdown file"),
    ],
)
def test_files_that_are_refused(
    page: str | None, introduction: str | None, message: str, results: list[Path], tmp_path: Path
):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for name in ("page.md", "one.md"):
        (tmp_path / name).write_text("mine")
    results[0].write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        PAGE.write(results, page and tmp_path / page, introduction and tmp_path / introduction)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_results_of_one_name_or_in_another_encoding_are_refused(results: list[Path], tmp_path: Path):
    with pytest.raises(ValueError, match="two of which have the same name; rename one"):
        PAGE.write([results[0], tmp_path / "other" / "one.json"])
    results[1].write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"`report` is '.*two.json', which is not text in UTF-8"):
        PAGE.write(results)
