"""The site of the documentation: formulas and diagrams are rendered, and pages load nothing from other hosts."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
RAW = re.compile(r"\\\(|\\\[|\\(?:frac|sum|mathcal|mathrm|beta)\b|\$\$|\$\\|arithmatex|mermaid")
LOADED = re.compile(
    r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"|@import|url\("?(?:https?:)?//'
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def built(site: Path, page: Path) -> Path:
    return site / ("index.html" if page.stem == "index" else f"{page.with_suffix('')}/index.html")


def formulas(markdown: str) -> int:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.S)
    blocks = re.findall(r"^\$\$.*?\$\$", prose, re.S | re.M)
    return len(blocks) + len(
        re.findall(r"(?<![\\$])\$(?=[^\s$])[^$]*?[^\s$\\]\$", re.sub(r"\$\$.*?\$\$", "", prose, flags=re.S))
    )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_formulas_are_drawn_without_a_script(site: Path, page: Path):
    text = built(site, page).read_text()
    shown = html.unescape(re.sub(r"<code.*?</code>", "", text, flags=re.S))
    assert not RAW.search(re.sub(r"<annotation.*?</annotation>", "", shown, flags=re.S))
    assert text.count("<math") == formulas((ROOT / "docs" / page).read_text())
    assert "<merror" not in text


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_pages_load_nothing_from_other_hosts(site: Path, page: Path):
    text = built(site, page).read_text()
    assert LOADED.findall(re.sub(r'<link rel="canonical"[^>]*>', "", text)) == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_a_browser_shows_the_formulas(site: Path):
    """In a browser without a network, the formulas of AKD's page have a nonzero size."""
    probe = (
        "<script>addEventListener('load', () => {"
        "const boxes = [...document.querySelectorAll('math')].map(formula => formula.getBoundingClientRect());"
        "document.title = 'drawn ' + boxes.filter(box => box.width > 4 && box.height > 4).length})</script></body>"
    )
    page = site / "methods" / "akd" / "index.html"
    copy = page.with_name("probe.html")
    copy.write_text(page.read_text().replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    done = subprocess.run([str(CHROMIUM), *flags, copy.as_uri()], capture_output=True, text=True, timeout=120)
    [title] = re.findall(r"<title>(.*?)</title>", done.stdout)
    assert title == f"drawn {page.read_text().count('<math')}"
