"""The page of results: from numbers made up here, so that every difference and verdict is known."""

import copy
import json
import math
import random
import re
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import pytest

from trl_akd.cli import main
from trl_akd.metrics.statistics import holm, paired_mean
from trl_akd.micro.bench.config import FORMAT
from trl_akd.micro.bench.report import BENCH_PAGE
from trl_akd.micro.bench.results import Results

RULES = ("kl", "quarter", "three_quarters", "rkl", "akd")
PLACE = ("one", "32k")
SVG = "{http://www.w3.org/2000/svg}"


def made_up(advantage: float = 0.2, loss: float = 0.4, seeds: int = 8) -> dict[str, Any]:
    """Results in which each step from kl to rkl adds to pass@1 and takes from coverage; akd lies below their line."""
    rng = random.Random(0)
    place = {"kl": 0.0, "quarter": 0.25, "three_quarters": 0.75, "rkl": 1.0, "akd": 0.5}
    runs = []
    for seed in range(seeds):
        level = rng.uniform(0.4, 0.6)
        for rule in RULES:
            for draw in range(2 if rule == "akd" else 1):
                measures = dict.fromkeys(("pass@10", "greedy", "valid_mass", "coverage_of_valid"), 0.5)
                measures |= {
                    "pass@1_T0.7": level + 0.1 + advantage / 2 * place[rule] + rng.uniform(-0.01, 0.01),
                    "coverage_T0.7": 0.8 - loss * place[rule] + rng.uniform(-0.01, 0.01),
                    "pass@1": level + advantage * place[rule] + rng.uniform(-0.01, 0.01) + 0.02 * draw,
                    "coverage": 0.9 - loss * place[rule] - 0.1 * (rule == "akd") + rng.uniform(-0.01, 0.01),
                    "forward_kl": 0.1,
                    "reverse_kl": 0.2,
                    "errors": {"AttributeError": 0.2, "NameError": 0.05},
                }
                history = [{"step": step, "forward_kl": 1 / step, "reverse_kl": 2 / step} for step in (10, 20, 30)]
                if rule == "akd":
                    history = [{**point, "beta": 0.1 * (1 + draw)} for point in history]
                runs.append(
                    {
                        "key": f"{seed}{rule}{draw}",
                        "world": "one",
                        "student": "32k",
                        "rule": rule,
                        "seed": seed,
                        "draw": draw,
                        "start": {"steps": 400 + seed, "mass": 0.35, "commit": "abc"},
                        "commit": "abc",
                        "started": True,
                        "measures": measures,
                        "history": history,
                        "beta_draws": [],
                        "seconds": {"train": 8.0, "measure": 5.0, "cpu": 9.0},
                        "peak_memory_mb": 500,
                    }
                )
    where = {"world": "one", "student": "32k"}
    return {
        "format": FORMAT,
        "worlds": {"one": {}},
        "students": ["32k"],
        "rules": {rule: {} if rule == "akd" else {"divergence": "forward_kl"} for rule in RULES},
        "seeds": list(range(seeds)),
        "num_tasks": 100,
        "num_samples": 20,
        "control": {**where, "covering": "kl", "concentrating": "rkl"},
        "line": ["quarter", "three_quarters"],
        "finished_before": 0,
        "predictions": {
            "right": {**where, "measure": "pass@1", "first": "rkl", "second": "kl", "at_least": 0.1},
            "wrong": {**where, "measure": "coverage", "first": "rkl", "second": "kl", "at_least": 0.0},
            "below": {**where, "measure": "line", "first": "akd", "at_most": 0.0},
            "unseen": {**where, "world": "two", "measure": "greedy", "first": "rkl", "second": "kl", "at_least": 0.0},
        },
        "planned": [{key: run[key] for key in ("world", "student", "rule", "seed", "draw")} for run in runs],
        "runs": runs,
    }  # fmt: skip


def page_of(content: dict[str, Any], folder: Path) -> str:
    (folder / "results.json").write_text(json.dumps(content))
    return BENCH_PAGE.write([folder / "results.json"]).read_text()


def row_of(page: str, start: str) -> list[str]:
    [line] = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_draws_are_averaged_before_seeds_are_paired():
    results = Results(made_up())
    akd = [run for run in results.at(PLACE, "akd")]
    expected = {seed: fmean(run["measures"]["pass@1"] for run in akd if run["seed"] == seed) for seed in range(8)}
    assert results.by_seed(PLACE, "akd", "pass@1") == pytest.approx(expected)
    found = results.compare(PLACE, "pass@1", "akd", "kl")
    kl = results.by_seed(PLACE, "kl", "pass@1")
    assert found == paired_mean(list(results.by_seed(PLACE, "akd", "pass@1").values()), list(kl.values()))
    assert found.pairs == 8


def test_only_seeds_that_both_rules_have_are_compared():
    content = made_up()
    content["runs"] = [run for run in content["runs"] if (run["rule"], run["seed"]) not in {("rkl", 0), ("kl", 3)}]
    assert Results(content).compare(PLACE, "pass@1", "rkl", "kl").pairs == 6
    content["runs"] = [run for run in content["runs"] if run["rule"] != "rkl" or run["seed"] == 1]
    assert Results(content).compare(PLACE, "pass@1", "rkl", "kl") is None


def test_the_line_goes_through_both_mixes():
    content = made_up()
    results = Results(content)
    found = results.above_line(PLACE, "akd")
    assert found.difference == pytest.approx(-0.1, abs=0.04) and found.high < 0
    assert results.above_line(PLACE, "quarter") is None
    mixes = [
        {**run, "rule": "akd", "draw": 0} for run in copy.deepcopy(content["runs"]) if run["rule"] == "three_quarters"
    ]
    content["runs"] = [run for run in content["runs"] if run["rule"] != "akd"] + mixes
    assert Results(content).above_line(PLACE, "akd").difference == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("advantage", "loss", "seeds", "holds"),
    [(0.2, 0.4, 8, True), (0.05, 0.4, 8, False), (0.2, 0.05, 8, False), (0.2, 0.4, 1, False), (-0.2, 0.4, 8, False)],
)
def test_nothing_is_ranked_unless_the_control_holds(advantage, loss, seeds, holds, tmp_path: Path):
    content = made_up(advantage, loss, seeds)
    assert Results(content).control_holds == holds
    page = page_of(content, tmp_path)
    assert ("The control holds." in page) == ("### World one, student 32k" in page) == holds
    assert ("nothing is ranked" in page) != holds
    assert bool(list(tmp_path.glob("**/*.svg"))) == holds


def test_wide_intervals_do_not_make_a_control(tmp_path: Path):
    """A large mean difference whose interval holds 0."""
    content = made_up(seeds=2)
    for run in content["runs"]:
        if run["rule"] == "rkl":
            run["measures"]["pass@1"] += 0.5 * (run["seed"] - 0.5)
    results = Results(content)
    difference = results.control_differences()[0]
    assert difference.difference > 0.1 and difference.low < 0 and not results.control_holds


def test_the_page_says_what_was_predicted_and_found(tmp_path: Path):
    page = page_of(made_up(), tmp_path)
    assert [row_of(page, name)[-1] for name in ("right", "wrong", "below", "unseen")] == [
        "right",
        "wrong",
        "right",
        "no interval",
    ]
    assert "Of 4: 2 right, 1 wrong, 1 no interval." in page
    assert "48 of 48 runs are finished, with 8 seeds, at commit abc." in page
    assert "recorded before the runs, and" in page
    content = {**made_up(), "finished_before": 9}
    assert "recorded after 9 of the 48 runs and before the others" in page_of(content, tmp_path)


@pytest.mark.parametrize(
    ("at_least", "at_most", "spread", "verdict"),
    [
        (0.1, None, 0.0, "right"),
        (None, 0.1, 0.0, "wrong"),
        (0.3, None, 0.0, "wrong"),
        (0.1, 0.3, 0.0, "right"),
        (0.1, None, 0.6, "open"),
        (None, 0.3, 0.6, "open"),
    ],
)
def test_verdicts_are_of_the_whole_interval(at_least, at_most, spread, verdict):
    content = made_up()
    for run in content["runs"]:
        if run["rule"] == "three_quarters":
            run["measures"]["greedy"] += 0.2 + spread * (run["seed"] / 7 - 0.5)
    where = {"world": "one", "student": "32k", "measure": "greedy", "first": "three_quarters", "second": "kl"}
    content["predictions"] = {"p": {**where, "at_least": at_least, "at_most": at_most}}
    results = Results(content)
    assert results.verdict(results.predictions["p"]) == verdict


def test_only_the_controls_own_verdicts_are_given_while_it_does_not_hold():
    results = Results(made_up(advantage=-0.2))
    found = {name: results.verdict(prediction) for name, prediction in results.predictions.items()}
    assert found == {"right": "wrong", "wrong": "wrong", "below": "withheld", "unseen": "withheld"}


def test_missing_runs_are_counted_and_nothing_is_ranked_or_decided_by_the_rest(tmp_path: Path):
    content = made_up()
    content["runs"] = [run for run in content["runs"] if (run["rule"], run["seed"], run["draw"]) != ("akd", 3, 1)]
    page = page_of(content, tmp_path)
    assert "Not ranked: 1 of its runs are missing" in page and "Differences to" not in page
    assert [row_of(page, name)[-1] for name in ("right", "below")] == ["right", "runs are missing"]
    assert not list(tmp_path.glob("**/*.svg"))
    content["runs"] = [run for run in content["runs"] if (run["rule"], run["seed"]) != ("kl", 2)]
    assert not Results(content).control_holds


def test_few_seeds_are_not_ranked(tmp_path: Path):
    page = page_of(made_up(seeds=7), tmp_path)
    assert "The control holds." in page
    assert "Not ranked: 7 seeds have started, and a ranking needs at least 8" in page and "Differences to" not in page


@pytest.mark.parametrize(
    ("commit", "where", "warning"),
    [
        ("abc", "run", None),
        ("def", "run", "are from several commits"),
        ("def", "start", "are from several commits"),
        ("abc+", "run", "are from several commits and include code that was not committed"),
    ],
)
def test_runs_of_several_or_changed_commits_are_marked(commit, where, warning, tmp_path: Path):
    content = made_up()
    run = content["runs"][5]
    (run if where == "run" else run["start"])["commit"] = commit
    page = page_of(content, tmp_path)
    assert ("may not be comparable" in page) == (warning is not None) and (warning or "") in page


def test_the_line_is_blank_without_a_slope_and_marked_beyond_its_ends():
    content = made_up()
    values = Results(content).by_seed(PLACE, "quarter", "pass@1")
    for run in content["runs"]:
        if run["rule"] == "three_quarters":
            run["measures"]["pass@1"] = values[run["seed"]] + 0.1 * (run["seed"] % 2) - 0.045
    assert Results(content).above_line(PLACE, "akd") is None
    results = Results(made_up())
    assert results.is_beyond_line(PLACE, "rkl") and not results.is_beyond_line(PLACE, "akd")


def test_the_line_joins_the_mixes_that_no_other_exceeds_in_both():
    """Heights are above the two neighbors of the rule, or, beyond an end, above the last two."""
    content = made_up()
    content["line"] = ["kl", "quarter", "three_quarters", "rkl"]
    means = {"kl": (0.2, 0.9), "quarter": (0.4, 0.8), "three_quarters": (0.5, 0.6), "rkl": (0.45, 0.5), "akd": (0, 0)}

    def results(akd: tuple[float, float]) -> Results:
        for run in content["runs"]:
            jitter = 0.01 * (run["seed"] - 3.5)  # common to all rules
            accuracy, coverage = akd if run["rule"] == "akd" else means[run["rule"]]
            run["measures"] |= {"pass@1": accuracy + jitter, "coverage": coverage + jitter}
        return Results(content)

    assert list(results((0.0, 0.0)).line_points(PLACE)) == ["kl", "quarter", "three_quarters"]
    for akd, height in (
        ((0.3, 0.9), 0.05),
        ((0.4, 0.8), 0.0),
        ((0.45, 0.6), -0.1),
        ((0.6, 0.6), 0.2),
        ((0.1, 1), 0.05),
    ):
        found = results(akd)
        above = found.above_line(PLACE, "akd")
        assert above is not None and above.difference == pytest.approx(height)
        assert found.is_beyond_line(PLACE, "akd") == (not 0.2 <= akd[0] <= 0.5)
        assert found.above_line(PLACE, "rkl") is None, "it is one of the mixes"


def test_the_interval_above_the_line_includes_the_uncertainty_of_the_slope():
    """With the line's slope known, the interval would be that of the paired heights, about a quarter as wide."""
    content = made_up()
    for run in content["runs"]:
        if run["rule"] == "three_quarters":
            run["measures"]["coverage"] += 0.2 * (run["seed"] % 2 - 0.5)
        if run["rule"] == "akd":
            run["measures"]["coverage"] = 0.5
    results = Results(content)
    found, rise = results.above_line(PLACE, "akd"), results.compare(PLACE, "coverage", "three_quarters", "quarter")
    assert found.high - found.low > 0.4 * (rise.high - rise.low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("line"), "KeyError('line')"),
        (lambda content: content.update(format=1), "its format is 1"),
        (lambda content: content["runs"][0]["measures"].update(greedy=math.nan), "greedy is nan in the run of world"),
        (lambda content: content["runs"][0].pop("seconds"), "KeyError('seconds')"),
    ],
)
def test_results_that_are_incomplete_are_refused_in_one_sentence(change, message, tmp_path: Path):
    content = made_up()
    change(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        page_of(content, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_p_values_are_holms_over_the_table(tmp_path: Path):
    content = made_up(advantage=0.21, loss=0.3)
    results, page = Results(content), page_of(content, tmp_path)
    others = RULES[1:]
    tests = [results.compare(PLACE, measure, rule, "kl") for rule in others for measure in ("pass@1", "coverage")]
    adjusted = holm([test.p_value for test in tests])
    ranking = page.split("Differences to kl at temperature 1")[1].split("Differences")[0]
    for rule, values in zip(others, zip(adjusted[::2], adjusted[1::2], strict=True), strict=True):
        cells = row_of(ranking.split("![")[0], rule)
        for cell, value in zip((cells[2], cells[4]), values, strict=True):
            text = "< .001" if value < 0.001 else f"{value:.3f}"
            assert cell == (f"**{text}**" if value < 0.05 else text)


def test_seeds_that_did_not_start_are_listed(tmp_path: Path):
    content = made_up()
    failed = {"world": "one", "student": "32k", "rule": "kl", "seed": 9, "draw": 0, "commit": "abc", "started": False}
    content["runs"].append({**failed, "key": "x", "start": {"steps": 900, "mass": 0.12, "commit": "abc"}})
    page = page_of(content, tmp_path)
    starts = row_of(page.split("### Pre-trained students")[1].split("### Cost")[0], "one")
    assert (starts[2], starts[3], starts[-1]) == ("8", "400 to 407", "seed 9 (0.12)")
    assert Results(content).mean(PLACE, "kl", "pass@1") == Results(made_up()).mean(PLACE, "kl", "pass@1")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_results_give_equal_bytes_and_figures_that_are_shown(tmp_path: Path):
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(made_up()))
        BENCH_PAGE.write([tmp_path / name / "results.json"], tmp_path / name / "page.md")
        pages.append(files_of(tmp_path / name))
    assert pages[0] == pages[1]
    figures = {name for name in pages[0] if name.endswith(".svg")}
    assert figures == set(re.findall(r"\]\((.+?\.svg)\)", pages[0]["page.md"].decode()))
    assert figures == {f"page/results-{kind}-one-32k.svg" for kind in ("coverage", "low", "curves", "beta", "errors")}
    for name in figures:
        root = ElementTree.fromstring(pages[0][name])
        texts = {node.text for node in root.iter(f"{SVG}text")}
        assert texts >= ({"akd"} if "beta" in name else set(RULES)), name


def test_a_page_has_an_introduction_and_a_section_for_each_file_of_results(tmp_path: Path):
    for name, content in (("full", made_up()), ("more", made_up(seeds=9))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "answer.md").write_text("## Which rule, when\n\nIt depends.\n")
    sources = [tmp_path / "full.json", tmp_path / "more.json"]
    page = BENCH_PAGE.write(sources, tmp_path / "page.md", tmp_path / "answer.md").read_text()
    assert page.startswith("# Benchmark of divergences: results\n\n## Which rule, when\n\nIt depends.\n\n## full\n")
    assert page.index("with 8 seeds") < page.index("## more") < page.index("with 9 seeds")
    assert {path.name.split("-")[0] for path in (tmp_path / "page").iterdir()} == {"full", "more"}


def test_figures_of_earlier_results_are_removed_and_no_other_files(tmp_path: Path):
    page_of(made_up(), tmp_path)
    others = [tmp_path / "results" / name for name in ("other-coverage-one-32k.svg", "results-notes.svg", "answer.md")]
    for path in others:
        path.write_text("mine")
    page_of(made_up(advantage=0.0), tmp_path)
    assert sorted((tmp_path / "results").iterdir()) == sorted(others)


def test_sequences_of_draws_are_compared_where_enough_seeds_have_them(tmp_path: Path):
    """Each of two sequences has its own differences to forward KL, and sequences of two seeds are left out."""
    content = made_up()
    content["rules"]["akd"] = {"draws": 2}
    for run in content["runs"]:
        if run["rule"] == "akd":
            run["beta_draws"] = [0.6, 0.1] if run["seed"] < 2 else [0.1, [0.1, 0.6][run["draw"]]]
            run["measures"]["coverage"] += 0.2 * run["draw"]
    page = page_of(content, tmp_path).split("By the values")[1].split("###")[0]
    rows = [line.split(" | ")[1:4] for line in page.splitlines() if line.startswith("| akd")]
    assert [row[:2] for row in rows] == [["0.1, 0.1", "6"], ["0.1, 0.6", "6"]]
    kl = Results(content).by_seed(PLACE, "kl", "pass@1")
    for draw, row in enumerate(rows):
        akd = {
            run["seed"]: run["measures"]["pass@1"]
            for run in content["runs"]
            if run["rule"] == "akd" and run["draw"] == draw
        }
        assert row[2].startswith(f"{fmean(akd[seed] - kl[seed] for seed in range(2, 8)):+.3f} [")


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], "there is no such file; give a results.json"),
        ("{}", [], "is not the results of `trl-akd bench`"),
        ("[1", [], "is not the results of `trl-akd bench`"),
        ("{}", ["--page", "page.html"], "`page` is 'page.html'; give a file with the suffix .md"),
        ("{}", ["--introduction", "none.md"], "`introduction` is 'none.md', but there is no such file"),
    ],
)
def test_other_files_are_refused(content, flags, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert main(["bench", "--report", str(path), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "results.json").write_text(json.dumps(made_up()))
    assert main(["bench", "--report", str(tmp_path / "results.json"), "--page", str(tmp_path / "docs" / "a.md")]) == 0
    assert f"Page: {tmp_path / 'docs' / 'a.md'}" in capsys.readouterr().out
    assert (tmp_path / "docs" / "a.md").is_file()
