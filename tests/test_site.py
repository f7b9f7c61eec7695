"""The site: formulas and diagrams are drawn, nothing is cut, and pages load nothing from other hosts."""

import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import trl_akd

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
RAW = re.compile(r"\\\(|\\\[|\\(?:frac|sum|mathcal|mathrm|beta)\b|\$\$|\$\\|arithmatex|mermaid")
DIAGRAM = re.compile(r"^(?:flowchart|graph|sequenceDiagram|stateDiagram)\b.*$", re.M)
LOADED = re.compile(
    r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"|@import|url\("?(?:https?:)?//'
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (400, 1280)
MEASURE = """
addEventListener('load', () => {
  const RAW = /%s/, DIAGRAM = /%s/m
  const wider = box => box.scrollWidth > box.clientWidth + 1
  const beyond = page => box => box.getBoundingClientRect().right > page.documentElement.clientWidth + 1 &&
    !box.closest('table, pre, .formula, .diagram, p:has(> img)')
  const found = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, all = name => [...page.querySelectorAll(name)]
    const texts = page.createTreeWalker(page.querySelector('article'), NodeFilter.SHOW_TEXT), raw = []
    while (texts.nextNode()) {
      const around = texts.currentNode.parentElement, text = texts.currentNode.textContent
      if (!around.closest('annotation, style') && (around.closest('code') ? DIAGRAM : RAW).test(text)) raw.push(text)
    }
    const drawn = box => box.getBoundingClientRect().width > 4 && box.getBoundingClientRect().height > 4
    return {
      page: frame.title, width: frame.clientWidth, shown: all('article h1').some(drawn),
      formulas: all('math').filter(drawn).length, diagrams: all('.diagram > svg').filter(drawn).length, raw,
      wide: all('article *').filter(beyond(page)).map(box => box.outerHTML.slice(0, 80)),
      pictures: all('article img').filter(picture => !picture.naturalWidth).length,
      cut: all('pre > code').filter(code => !code.closest('.language-text') && wider(code)).map(code => code.innerText)
    }
  })
  document.body.innerHTML = '<pre id="found"></pre>'
  document.getElementById('found').textContent = JSON.stringify(found)
})
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / "docs" / "api_reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["api_reference"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shown(site: Path) -> list[dict[str, Any]]:
    """Measurements of every page at several widths, in a browser without a network; scripts are off."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium")
    frames = "".join(
        f'<iframe sandbox="allow-same-origin" title="{page.parent.relative_to(site)}" src="{page.relative_to(site)}" '
        f'style="width: {width}px; height: 800px; border: 0"></iframe>'
        for page in sorted(site.rglob("index.html"))
        for width in WIDTHS
    )
    probe = site / "probe.html"
    script = MEASURE % (RAW.pattern, DIAGRAM.pattern)
    probe.write_text(f"<!doctype html><body>{frames}<script>{script}</script></body>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    flags += ["--allow-file-access-from-files", "--dump-dom", probe.as_uri()]
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=900)
    [found] = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    return json.loads(html.unescape(found))


def mkdocs_config() -> dict[str, Any]:
    """Return the settings of the site; names of Python objects stay text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: name)
    return yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)


def listed(entries: list[Any]) -> list[str]:
    """Return the pages of a navigation."""
    values = [value for entry in entries for value in (entry.values() if isinstance(entry, dict) else [entry])]
    return [page for value in values for page in (listed(value) if isinstance(value, list) else [value])]


def built(site: Path, page: Path) -> Path:
    folder = page.parent if page.stem == "index" else page.with_suffix("")
    return site / folder / "index.html"


def formulas(markdown: str) -> int:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.S)
    blocks = re.findall(r"^\$\$.*?\$\$", prose, re.S | re.M)
    return len(blocks) + len(
        re.findall(r"(?<![\\$])\$(?=[^\s$])[^$]*?[^\s$\\]\$", re.sub(r"\$\$.*?\$\$", "", prose, flags=re.S))
    )


def prose_of(page: Path) -> str:
    text = re.sub(r"<annotation.*?</annotation>|<code.*?</code>|<svg.*?</svg>", "", page.read_text(), flags=re.S)
    return html.unescape(text)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_formulas_are_drawn_without_a_script(site: Path, page: Path):
    text = built(site, page).read_text()
    assert not RAW.search(prose_of(built(site, page)))
    assert text.count("<math") == formulas((ROOT / "docs" / page).read_text())
    assert "<merror" not in text


def test_diagrams_are_drawn_without_a_script(site: Path):
    drawn = {page: built(site, page).read_text().count('<div class="diagram"><svg') for page in PAGES}
    assert drawn == {page: (ROOT / "docs" / page).read_text().count("```mermaid\n") for page in PAGES}
    assert sum(drawn.values()) > 0


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_name_their_language(site: Path, page: Path):
    """Blocks of `text`, such as drawings, scroll; others wrap."""
    fences = re.findall(r"^ *```(\w*)", (ROOT / "docs" / page).read_text(), re.M)
    assert all(fences[::2]) and not any(fences[1::2])
    assert built(site, page).read_text().count('class="language-text ') == fences.count("text")


def test_every_page_is_in_the_navigation(reference: ModuleType):
    pages = listed(mkdocs_config()["nav"])
    assert sorted(pages) == sorted([*map(str, PAGES), *(f"reference/{name}.md" for name in reference.PAGES)])


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_pages_repeat_the_results(page: str):
    """Their table has rows and numbers of the page of results."""
    columns = r"\| (0\.\d{3}) \| (0\.\d{3}) \| (0\.\d{3}) \| (0\.\d{3}) \|$"
    rows = re.findall(rf"^\| .+? \| `(\w+)` {columns}", (ROOT / page).read_text(), re.M)
    results = (ROOT / "docs" / "results.md").read_text()
    worlds = re.findall(r"^### World separating, student 32k\n(.*?)^###? ", results, re.M | re.S)
    assert len(rows) >= 5
    for name, *numbers in rows:
        accuracy, coverage, low_accuracy, low_coverage = numbers
        row = rf"^\| {name} \| 8 \| \d \| {accuracy} \| \S+ \| {coverage} \| {low_accuracy} \| {low_coverage} \|"
        assert any(re.search(row, world, re.M) for world in worlds), name


def test_pages_load_nothing_from_other_hosts(site: Path):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        assert LOADED.findall(re.sub(r'<link rel="canonical"[^>]*>', "", page.read_text())) == [], page


def test_a_browser_shows_every_page(site: Path, shown: list[dict[str, Any]]):
    assert {(row["page"], row["width"]) for row in shown} == {
        (str(page.parent.relative_to(site)), width) for page in site.rglob("index.html") for width in WIDTHS
    }
    for row in shown:
        assert row["shown"] and row["pictures"] == 0, row["page"]
        assert row["formulas"] == (site / row["page"] / "index.html").read_text().count("<math"), row["page"]
        assert row["diagrams"] == (site / row["page"] / "index.html").read_text().count('class="diagram"'), row["page"]
        assert row["raw"] == [], row["page"]


def test_nothing_is_cut_at_the_edge(shown: list[dict[str, Any]]):
    assert [row for row in shown if row["wide"] or row["cut"]] == []


def test_every_public_name_is_in_the_reference(site: Path, reference: ModuleType):
    public = {("trl_akd", name) for name in trl_akd.__all__}
    for package in ("losses", "losses.divergences", "teachers", "generation", "execution", "metrics", "report"):
        module = importlib.import_module(f"trl_akd.{package}")
        public |= {(module.__name__, name) for name in module.__all__ if name != "divergences"}
    for module, name in public:
        item = reference.find(module, name)
        pages = [page for page in reference.PAGES if item in dict(reference.objects_of_page(page)).get(module, [])]
        assert len(pages) == 1, name
        assert f'id="{name}"' in (site / "reference" / pages[0] / "index.html").read_text(), name
        assert item.docstring or item.name.isupper() or item.name in ("TeacherSignal", "Tests"), name


def test_docstrings_become_pages(reference: ModuleType):
    """Sections, entries and references in TRL's format; an example without a fence is code as well."""
    docstring = (
        "Do it with [`AKDTrainer`] or [`~trl.SFTTrainer`].\n\nArgs:\n    x (`int`, *optional*):\n        A number,\n"
        "        or none.\n    **kwargs:\n        More.\n\nReturns:\n    Text.\n\nAfter.\n\nExample:\n    >>> 1\n"
        "    1"
    )
    assert re.split(r"\n+", reference._docstring(docstring, "akd").strip()) == [
        "Do it with [`AKDTrainer`](#AKDTrainer) or `SFTTrainer`.",
        "**Parameters**",
        "- **`x`** (`int`, *optional*): A number,",
        "    or none.",
        "- **`**kwargs`**: More.",
        "**Returns**",
        "Text.",
        "After.",
        "**Example**",
        "```python",
        ">>> 1",
        "1",
        "```",
    ]


def test_the_reference_leaves_no_marks(site: Path):
    for page in sorted((site / "reference").rglob("index.html")):
        text = re.sub(r"<[^>]+>", "", prose_of(page))
        assert not re.search(r"\[`|^\s*(?:Args|Raises|Returns|Example):", text, re.M), page
        assert not RAW.search(text), page
