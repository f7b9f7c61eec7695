"""Benchmarks, from the Hub, a local copy or a JSON Lines file."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from ..ledger import read_json_lines
from .formats import Row, UntestableError, read_problem
from .problems import Problem, fingerprint

__all__ = ["BENCHMARKS", "Benchmark", "bare_name", "load_benchmark", "local_copy"]


@dataclass(frozen=True)
class Benchmark:
    """Problems of a benchmark.

    Args:
        name (`str`):
            Name for tables and files.
        problems (`tuple[Problem, ...]`):
            Problems in the benchmark's order.
        source (`str`):
            File, folder or dataset on the Hub that they were read from.
        fingerprint (`str`):
            Digest of all problems of the source, including those excluded by `limit`.
        left_out (`frozenset[str]`):
            `task_id` of the problems excluded by `limit`.
        revision (`str`, *optional*):
            Revision of the dataset on the Hub.
        packages (`tuple[str, ...]`):
            Packages that tests and solutions import in addition to the standard library.
        strict (`bool`):
            Default of strict mode, which runs programs and tests in separate processes.
        dataset (`str`, *optional*):
            Name of the dataset on the Hub, also if the problems were read from a local copy.
    """

    name: str
    problems: tuple[Problem, ...]
    source: str
    fingerprint: str
    left_out: frozenset[str] = frozenset()
    revision: str | None = None
    packages: tuple[str, ...] = ()
    strict: bool = False
    dataset: str | None = None


@dataclass(frozen=True)
class _Known:
    """Source of a benchmark on the Hub, and settings of its tests."""

    dataset: str
    config: str | None = None
    files: tuple[str, ...] = ()  # of a dataset with a loading script, which `datasets` no longer supports
    packages: tuple[str, ...] = ()
    task_ids: range | None = None
    skips: bool = False  # whether to skip problems without usable tests
    base: str | None = None  # benchmark that provides the base tests
    strict: bool = False  # all reference solutions pass in strict mode


_COMMIT_TIMEOUT = 10.0  # seconds to look up the commit of a benchmark

BENCHMARKS: Mapping[str, _Known] = MappingProxyType(
    {
        "humaneval": _Known("openai/openai_humaneval", strict=True),
        "humaneval_plus": _Known("evalplus/humanevalplus", packages=("numpy",), base="humaneval"),
        # The files have all 974 problems; papers report the 500 of the test split.
        "mbpp": _Known("google-research-datasets/mbpp", config="full", task_ids=range(11, 511)),
        "mbpp_sanitized": _Known("google-research-datasets/mbpp", config="sanitized", task_ids=range(11, 511)),
        "mbpp_plus": _Known("evalplus/mbppplus", packages=("numpy",)),
        "apps": _Known("codeparrot/apps", files=("test.jsonl",), packages=("numpy",), skips=True, strict=True),
        "livecodebench": _Known(  # release_v6
            "livecodebench/code_generation_lite",
            files=("test.jsonl", *(f"test{number}.jsonl" for number in range(2, 7))),
            packages=("numpy",),
            strict=True,
        ),
    }
)


def load_benchmark(
    name: str,
    path: str | Path | None = None,
    *,
    base_path: str | Path | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> Benchmark:
    """Load the problems of a benchmark.

    Args:
        name (`str`):
            Key of `BENCHMARKS`, or path of a `.jsonl` or `.jsonl.gz` file with one problem per line, in any format of
            `read_problem`.
        path (`str` or `Path`, *optional*):
            Local copy of the benchmark: a JSON Lines file, a folder of such files or, for APPS, its folder of numbered
            folders. By default, the benchmark is loaded from the Hub.
        base_path (`str` or `Path`, *optional*):
            Local copy of HumanEval, for the base score of `humaneval_plus`. By default it is loaded from the Hub if
            HumanEval+ is, and there is no base score otherwise. The rows of MBPP+ include the base tests.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        limit (`int`, *optional*):
            Load only the first N problems.

    Raises:
        FileNotFoundError: If a file, folder or dataset does not exist.
        ValueError: If the name is unknown, a line is malformed, a task id occurs twice, or there are no problems.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no problem; give at least 1, or leave it out for all.")
    known, local = _locate(name, path)
    revision = _commit(known.dataset, revision) if local is None else None
    rows = _local_rows(local) if local is not None else _hub_rows(known, revision)
    problems = _unique(_read(rows, skips=known.skips))
    if known.base is None and base_path is not None:
        raise ValueError(f"benchmark_base_path={str(base_path)!r} has no effect on {name!r}; leave it out.")
    if known.base is not None and (local is None or base_path is not None):
        problems = _with_base_tests(problems, load_benchmark(known.base, base_path).problems)
    if known.task_ids is not None:
        problems = [problem for problem in problems if problem.task_id in map(str, known.task_ids)] or problems
    if not problems:
        raise ValueError(f"benchmark {name!r} has no problems in {str(local)!r}; check the file.")
    return Benchmark(
        name=name if name in BENCHMARKS else bare_name(Path(name)),
        problems=tuple(problems[:limit]),
        left_out=frozenset(problem.task_id for problem in problems[len(problems[:limit]) :]),
        source=known.dataset if local is None else str(local),
        fingerprint=fingerprint(problems),
        revision=revision,
        packages=known.packages,
        strict=known.strict,
        dataset=known.dataset if name in BENCHMARKS else None,
    )


def bare_name(path: Path) -> str:
    """Return the name of a folder, or of a JSON Lines file without its suffix.

    Example:

    ```python
    >>> bare_name(Path("samples/Qwen2.5-7B_temp_0.2.jsonl.gz")), bare_name(Path("samples/Qwen2.5-7B_temp_0.2"))
    ('Qwen2.5-7B_temp_0.2', 'Qwen2.5-7B_temp_0.2')

    ```
    """
    return path.resolve().name.removesuffix(".gz").removesuffix(".jsonl")


def local_copy(name: str, path: str | Path | None = None) -> Path | None:
    """Return the file or folder of a benchmark, or `None` if it is loaded from the Hub.

    Raises:
        ValueError: If the name is unknown.

    Example:

    ```python
    >>> local_copy("humaneval") is None
    True

    ```
    """
    return _locate(name, path)[1]


def _locate(name: str, path: str | Path | None) -> tuple[_Known, Path | None]:
    """Return the entry of a benchmark and, unless it is loaded from the Hub, its local path."""
    if name in BENCHMARKS:
        return BENCHMARKS[name], None if path is None else Path(path).expanduser()
    if not name.endswith((".jsonl", ".jsonl.gz")):
        close = get_close_matches(name, BENCHMARKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BENCHMARKS)}, or a .jsonl file."
        raise ValueError(f"benchmark {name!r} is unknown; {hint}")
    if path is not None:
        raise ValueError(f"benchmark is the file {name!r} already; leave benchmark_path={str(path)!r} out.")
    return _Known(name), Path(name).expanduser()


def _local_rows(path: Path) -> Iterable[tuple[Row, str]]:
    if not path.is_dir():
        return read_json_lines(path)
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
    return chain.from_iterable(map(read_json_lines, files)) if files else _apps_folders(path)


def _apps_folders(folder: Path) -> Iterator[tuple[Row, str]]:
    """Read APPS in its original layout, with one numbered folder per problem."""
    questions = sorted(folder.glob("*/question.txt"))
    if not questions:
        raise FileNotFoundError(
            f"There are neither .jsonl files nor */question.txt in {str(folder)!r}; give the folder of a benchmark's "
            "files, or APPS's folder `test` or `train`."
        )
    for question in questions:
        home = question.parent
        yield (
            {
                "task_id": home.name,
                "question": question.read_text(encoding="utf-8"),
                "input_output": _optional(home / "input_output.json"),
                "example_input_output": _optional(home / "example_input_output.json"),
                "starter_code": _optional(home / "starter_code.py"),
                "difficulty": json.loads(_optional(home / "metadata.json") or "{}").get("difficulty"),
            },
            str(home),
        )


def _optional(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _hub_rows(known: _Known, revision: str | None) -> Iterable[tuple[Row, str]]:
    if known.files:
        from huggingface_hub import hf_hub_download

        paths = (
            Path(hf_hub_download(known.dataset, file, repo_type="dataset", revision=revision)) for file in known.files
        )
        return chain.from_iterable(map(read_json_lines, paths))
    from ..data.sources import load

    rows = load(known.dataset, config=known.config, split="test", revision=revision)
    return ((row, f"{known.dataset}, row {number}") for number, row in enumerate(rows))


def _commit(dataset: str, revision: str | None) -> str | None:
    """Return the commit of a dataset on the Hub, or `revision` if the Hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        commit: str | None = HfApi().dataset_info(dataset, revision=revision, timeout=_COMMIT_TIMEOUT).sha
    except (OSError, HTTPError):
        return revision
    return commit


def _read(rows: Iterable[tuple[Row, str]], *, skips: bool) -> Iterator[Problem]:
    skipped: list[str] = []
    for row, where in rows:
        try:
            yield read_problem(row, where)
        except UntestableError as error:
            if not skips:
                raise
            skipped.append(str(error))
    if skipped:
        warnings.warn(f"Left out {len(skipped)} problems without usable tests, the first: {skipped[0]}", stacklevel=4)


def _with_base_tests(problems: Iterable[Problem], base: Iterable[Problem]) -> list[Problem]:
    tests = {problem.task_id: problem.tests for problem in base}
    return [replace(problem, base_tests=tests.get(problem.task_id)) for problem in problems]


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    found: dict[str, Problem] = {}
    for problem in problems:
        if problem.task_id in found:
            raise ValueError(f"task_id {problem.task_id!r} occurs twice in the benchmark; give each problem its own.")
        found[problem.task_id] = problem
    return list(found.values())
