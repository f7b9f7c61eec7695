"""Metadata, wheel and sdist: dependencies, links on PyPI, files, reproducible builds; imports without Unix modules."""

import ast
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from trl_akd import __version__

from . import wheel as wheel_check

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_akd"
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = METADATA["project"]
DISTRIBUTIONS = {"markdown_it": "markdown-it-py", "yaml": "PyYAML"}  # where it is not the module's name
# What Windows does not have.
WITHOUT = {
    "os": (
        "fork",
        "getuid",
        "geteuid",
        "getpgrp",
        "killpg",
        "setsid",
        "sched_getaffinity",
        "O_CLOEXEC",
        "O_DIRECTORY",
    ),
    "signal": ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "setitimer", "alarm", "pthread_sigmask"),
}
UNIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}


BASE = names(PROJECT["dependencies"])
EXTRAS = set().union(*map(names, PROJECT["optional-dependencies"].values())) - BASE


def third_party(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules = [node.module]
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "trl_akd":
                yield DISTRIBUTIONS.get(top, top).lower(), node.col_offset


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_declared(path: Path):
    """A base install has everything except extras, which are imported inside the functions that need them."""
    for distribution, indent in third_party(ast.parse(path.read_text())):
        assert distribution in BASE | EXTRAS, f"{distribution} is imported, but pyproject.toml does not name it"
        only_imported_if_present = indent or (distribution == "triton" and path.name == "triton_kernels.py")
        assert distribution in BASE or only_imported_if_present, (
            f"{distribution} is an extra, but imported with the module"
        )


def test_dependencies_are_used():
    used = {name for path in PACKAGE.rglob("*.py") for name, _ in third_party(ast.parse(path.read_text()))}
    assert BASE - used == set()


def test_only_the_sandbox_needs_unix_modules():
    """As on Windows: everything but the sandbox is imported, help is shown, and the sandbox says what it needs."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("[a-z]*.py")
        if "zygote" not in path.parts and path.stem not in ("pass_at_k", "code_errors", "accuracy_loss")
    )
    script = f"""
import sys, importlib, os, signal
import accelerate, datasets, evaluate, filelock, peft, torch, transformers, trl
sys.modules.update(dict.fromkeys({UNIX_ONLY!r}))
for module, names in {WITHOUT!r}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
for name in {modules!r}:
    importlib.import_module(name)
from trl_akd.cli import main
assert main(["--help"]) == main(["recipes", "list"]) == 0
for command in (["akd"], ["evaluate"], ["ranker", "train"]):
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0
from trl_akd.execution import CodeExecutor, IsolationError
try:
    CodeExecutor(allow_code_execution=True).run([("x = 1", "assert x")])
except IsolationError as error:
    print("IsolationError:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--beta_strategy" in done.stdout and "IsolationError: Programs run on Linux and macOS" in done.stdout


def test_lowest_versions_are_the_lower_bounds():
    lowest = dict(line.split("==") for line in (ROOT / "constraints-lowest.txt").read_text().splitlines())
    extra = PROJECT["optional-dependencies"]["deepspeed"][:1]
    bounds = dict(re.split(">=|,", requirement)[:2] for requirement in [*PROJECT["dependencies"], *extra])
    assert lowest.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert f"{lowest[name]}.".startswith(f"{bound}."), name


def readme_on_pypi() -> str:
    """Return the README with the substitutions of the build."""
    text = (ROOT / "README.md").read_text()
    for rule in METADATA["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_links_of_the_readme_are_absolute_on_pypi():
    """Pictures, links, and pictures that are links, such as badges."""
    relative = re.findall(r"\]\(((?!https?:|#)[^)\s]+)", (ROOT / "README.md").read_text())
    absolute = re.findall(r"\]\(([^)\s]+)", readme_on_pypi())
    assert len(relative) > 10
    assert not [link for link in absolute if not link.startswith(("https://", "#"))]
    repository = PROJECT["urls"]["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    for link in relative:
        is_picture = link.endswith((".svg", ".png"))
        assert (f"{raw}/main/{link}" if is_picture else f"{repository}/blob/main/{link}") in absolute


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[a](docs/a.md#b)", "[a](BLOB/docs/a.md#b)"),
        ("[**a**\nb](docs/a.md)", "[**a**\nb](BLOB/docs/a.md)"),
        ("[`a[0]`](a.md)", "[`a[0]`](BLOB/a.md)"),
        ("![a](b.svg)", "![a](RAW/b.svg)"),
        ("[![a](b.svg)](docs/)", "[![a](RAW/b.svg)](BLOB/docs/)"),
        ("[![a](https://x/b.svg)](LICENSE)", "[![a](https://x/b.svg)](BLOB/LICENSE)"),
        ("[a](#b) [c](https://d)", "[a](#b) [c](https://d)"),
    ],
)
def test_substitutions_of_links(markdown: str, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "read_text", lambda path: markdown)
    repository = PROJECT["urls"]["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    assert readme_on_pypi() == expected.replace("BLOB", f"{repository}/blob/main").replace("RAW", f"{raw}/main")


def test_metadata():
    """Python versions are those of the CI, and the addresses belong to one repository."""
    tested = re.findall(
        r"\d\.\d+", (ROOT / ".github/workflows/ci.yml").read_text().partition("python: [")[2].split("]")[0]
    )
    declared = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]
    assert declared == tested
    assert PROJECT["requires-python"] == f">={declared[0]}"
    assert PROJECT["authors"] and PROJECT["license"] == "Apache-2.0"
    urls = PROJECT["urls"]
    assert urls.keys() >= {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
    assert urls["Issues"].startswith(urls["Repository"]) and urls["Changelog"].startswith(urls["Repository"])


def test_version_of_changelog_and_citation():
    released = re.findall(r"^## \[(\d.*?)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    if re.fullmatch(r"[\d.]+", __version__):  # and not that of a later development version
        assert released[0] == (__version__, citation["date-released"])
    assert citation["version"] == released[0][0]
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["url"] == PROJECT["urls"]["Documentation"]


def test_changelog_has_the_sections_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", text, re.M)
    assert versions[0] == "Unreleased"
    assert versions == re.findall(r"^\[(.+?)\]: https://", text, re.M)
    sections = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= sections


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_least_rights_and_pinned_actions(path: Path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, name
        for step in job["steps"]:
            if (action := step.get("uses")) is not None:
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), f"{action} is not pinned to a commit"
                if action.startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False
            elif step["run"].startswith("make "):
                assert step["run"].split()[1] in targets, step["run"]


def test_a_release_is_published_without_tokens_after_its_tests():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    publish = jobs["publish"]
    assert publish["permissions"]["id-token"] == "write" and publish["environment"]["name"] == "pypi"
    assert "test" in publish["needs"] and "build" in jobs["test"]["needs"]
    assert "secrets." not in str(jobs)


def test_forms_for_issues_ask_for_what_helps():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert forms.keys() == {"bug", "feature", "config"}
    for name in ("bug", "feature"):
        assert forms[name].keys() >= {"name", "description", "body"}
        fields = {field.get("id"): field for field in forms[name]["body"] if field["type"] != "markdown"}
        assert None not in fields and all(field["attributes"]["label"] for field in fields.values())
    required = {field.get("id") for field in forms["bug"]["body"] if field.get("validations", {}).get("required")}
    assert required == {"what", "reproduce", "versions"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders with wheel and sdist of the same sources."""
    if any(find_spec(name) is None for name in ("build", "hatchling", "hatch_fancy_pypi_readme")):
        pytest.skip("needs `pip install 'trl_akd[package]'`")
    folders = [tmp_path_factory.mktemp("dist") for _ in range(2)]
    for folder in folders:
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "warning" not in (done.stdout + done.stderr).lower()
    return folders


@pytest.mark.slow
def test_builds_are_reproducible(built: list[Path]):
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()} for folder in built
    ]
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_wheel_and_sdist_are_complete_and_valid(built: list[Path]):
    [wheel], [sdist] = built[0].glob("*.whl"), built[0].glob("*.tar.gz")
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    with ZipFile(wheel) as archive:
        content = set(archive.namelist())
        [metadata] = [archive.read(name) for name in content if name.endswith(".dist-info/METADATA")]
    package = {name for name in kept if name.startswith("trl_akd/")}
    package |= {f"trl_akd/{name}" for name in kept if name.startswith("recipes/")}
    assert {name for name in content if ".dist-info/" not in name} == package
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO"} == {name for name in kept if not name.startswith(".ci/")}
    message = message_from_bytes(metadata)
    assert message.get_payload(decode=True).decode() == readme_on_pypi()
    assert message["Description-Content-Type"] == "text/markdown"
    for check in (["twine", "check", "--strict", str(wheel), str(sdist)], ["check_wheel_contents", str(wheel)]):
        done = subprocess.run([sys.executable, "-m", *check], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_installed_wheel_works_in_another_environment(built: list[Path], tmp_path: Path):
    """As `make test-wheel`, with the dependencies of this environment instead of downloaded ones."""
    [wheel] = built[0].glob("*.whl")
    python = wheel_check.install(wheel, tmp_path / "venv", ["--no-deps", "--no-index"])
    [site] = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    (tmp_path / "used").mkdir()
    wheel_check.check(python, tmp_path / "used")
