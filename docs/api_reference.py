"""Hook of MkDocs: the pages of the API reference, generated from docstrings when the site is built.

Docstrings are in TRL's format: `Args:` with entries like "name (`int`, *optional*, defaults to `1`):", and references
like [`AKDTrainer`]. The source is parsed, not imported, so that the site is built without torch.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SOURCE = "https://github.com/trl-akd/trl_akd/blob/main"

PAGES = {
    "akd": ("AKD", ["trl_akd.AKDTrainer", "trl_akd.AKDConfig", "trl_akd.AdaptiveBeta"]),
    "codeplan": (
        "CodePLAN",
        [
            "trl_akd.CodePLANTrainer",
            "trl_akd.CodePLANConfig",
            "trl_akd.CodePLANMixin",
            "trl_akd.DataCollatorForCodePLAN",
            "trl_akd.PlanGenerator",
            "trl_akd.PlanSampler",
            "trl_akd.codeplan.plan_head",
        ],
    ),
    "iterkd": ("IterKD", ["trl_akd.IterKDTrainer", "trl_akd.IterKDConfig"]),
    "losses": ("Losses", ["trl_akd.losses"]),
    "divergences": ("Divergences", ["trl_akd.losses.divergences"]),
    "teachers": ("Teachers", ["trl_akd.teachers"]),
    "generation": ("Generation", ["trl_akd.generation"]),
    "evaluation": ("Evaluation", ["trl_akd.evaluation.callback", "trl_akd.metrics", "trl_akd.report"]),
    "execution": ("Execution", ["trl_akd.execution"]),
}
"""Title and content of each page: public names, or modules, of which all public names are documented."""

_SECTION = re.compile(r"^(Args|Attributes|Examples?|Raises|Returns|Yields):[ ]*$")
_ENTRY = re.compile(r"^(\S[^:(]*?)(?: \((.*)\))?:(?:\s+(.*))?$", re.DOTALL)
_REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?!\()")
_HEADINGS = {"Args": "Parameters", "Example": "Example", "Examples": "Examples"}


@dataclass
class Object:
    """A class, function or constant, where it is defined."""

    name: str
    module: str
    node: ast.stmt
    docstring: str

    @property
    def source(self) -> str:
        """URL of the definition."""
        return f"{SOURCE}/{_path(self.module).relative_to(ROOT).as_posix()}#L{self.node.lineno}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API reference to those of the site."""
    for name in PAGES:
        files.append(File.generated(config, f"reference/{name}.md", content=render_page(name)))
    return files


def render_page(name: str) -> str:
    """Return the Markdown of a page."""
    title, _ = PAGES[name]
    parts = [f"# {title}\n"]
    for module, objects in objects_of_page(name):
        if module != "trl_akd":
            parts.append(f"`{module}`: {_text(ast.get_docstring(_tree(module)) or '', name)}\n")
        parts += [_render(item, "##", name) for item in objects]
    return "\n".join(parts)


def objects_of_page(name: str) -> Iterator[tuple[str, list[Object]]]:
    """Yield modules, and their documented objects, in the order of the page."""
    _, entries = PAGES[name]
    top = [entry.removeprefix("trl_akd.") for entry in entries if not _is_module(entry)]
    if top:
        yield "trl_akd", [find("trl_akd", item) for item in top]
    for module in filter(_is_module, entries):
        names = [item for item in public_names(module) if not _is_module(f"{module}.{item}")]
        yield module, sorted((find(module, item) for item in names), key=lambda item: item.name.lower())


def public_names(module: str) -> list[str]:
    """Return the content of a module's `__all__`, or without one its definitions that have no leading underscore."""
    tree = _tree(module)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@cache
def find(module: str, name: str) -> Object:
    """Return the definition of a name, following imports from other modules of the package.

    Raises:
        LookupError: If the module neither defines nor imports the name.
    """
    body = _tree(module).body
    statements = [*body, *(inner for node in body if isinstance(node, ast.If) for inner in node.body)]
    for node, following in zip(statements, [*statements[1:], None], strict=True):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return Object(name, module, node, ast.get_docstring(node) or "")
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id == name:
                return Object(name, module, node, _docstring_of_constant(following))
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            return find(_imported_module(module, node), name)
    raise LookupError(f"{module} does not define {name}")


def _docstring_of_constant(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return ""


def _imported_module(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    package = parts if _path(module).name == "__init__.py" else parts[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return _path(name).is_file()


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _render(item: Object, heading: str, page: str) -> str:
    """Return the Markdown of an object: heading, signature, link to the source, docstring, methods."""
    lines = [
        f"{heading} {item.name} {{ #{item.name} data-toc-label='{item.name}' }}\n",
        f"```python\n{_signature(item.node)}\n```\n",
        f"[source]({item.source})\n",
        _docstring(item.docstring, page),
    ]
    if isinstance(item.node, ast.ClassDef):
        for node in item.node.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and ast.get_docstring(node):
                lines += [
                    f"{heading}# {node.name} {{ #{item.name}.{node.name} data-toc-label='{node.name}' }}\n",
                    f"```python\n{_signature(node)}\n```\n",
                    _docstring(ast.get_docstring(node) or "", page),
                ]
    return "\n".join(lines)


def _signature(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef):
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        kind = "".join(f"@{name}\n" for name in ("classmethod", "staticmethod", "property") if name in decorators)
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return kind + _wrapped(f"def {node.name}", node.args, returns)
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                return _wrapped(f"class {node.name}", method.args, "")
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    return ast.unparse(node)


def _wrapped(start: str, arguments: ast.arguments, end: str) -> str:
    """Return a signature on one line, or with one parameter per line."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    parts = [_parameter(argument, default) for argument, default in zip(positional, defaults, strict=True)]
    parts = [part for part in parts if part not in ("self", "cls")]
    if arguments.posonlyargs:
        parts.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        parts.append(f"*{_parameter(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parts += [_parameter(argument, default) for argument, default in pairs]
    if arguments.kwarg:
        parts.append(f"**{_parameter(arguments.kwarg, None)}")
    line = f"{start}({', '.join(parts)}){end}"
    if len(line) <= 80:
        return line
    return f"{start}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    text = ast.unparse(argument)
    if default is None:
        return text
    return f"{text} = {ast.unparse(default)}" if argument.annotation else f"{text}={ast.unparse(default)}"


def _docstring(docstring: str, page: str) -> str:
    """Return a docstring as Markdown: sections get headings, and their entries become a list."""
    lines, section, block = [], "", []
    for line in [*docstring.splitlines(), None]:
        start = _SECTION.match(line) if line is not None else None
        # Text ends a section, except an example, which is often not indented.
        back = bool(line) and not line[0].isspace() and section not in ("", "Example", "Examples")
        if line is None or start or back:
            lines.append(_section(section, textwrap.dedent("\n".join(block)).strip("\n"), page))
            section, block = start[1] if start else "", []
        if line is not None and not start:
            block.append(line)
    return "\n".join(filter(None, lines))


def _section(name: str, body: str, page: str) -> str:
    if not name:
        return f"{_text(body, page)}\n" if body else ""
    if name in ("Args", "Attributes", "Raises"):
        body = "\n".join(_entry(entry) for entry in _entries(body))
    elif ">>>" in body and "```" not in body:
        body = f"```python\n{body}\n```"
    return f"**{_HEADINGS.get(name, name)}**\n\n{_text(body, page)}\n"


def _entries(body: str) -> list[str]:
    """Split the entries of a section: each begins in the first column."""
    return [entry for entry in re.split(r"\n(?=\S)", body) if entry]


def _entry(entry: str) -> str:
    """Return a parameter, attribute or exception as an item of a list."""
    head, _, rest = entry.partition("\n")
    match = _ENTRY.match(head)
    if not match:
        return f"- {entry}"
    name, kind, first = match[1], match[2], match[3]
    text = "\n".join(filter(None, [first, textwrap.dedent(rest)]))
    return f"- **`{name}`**" + (f" ({kind})" if kind else "") + f": {textwrap.indent(text, '    ').lstrip()}"


@cache
def _addresses() -> dict[str, tuple[str, str]]:
    """Return page and anchor of each documented object, by its name and by its names with modules."""
    found = {}
    for page in PAGES:
        for module, objects in objects_of_page(page):
            found[module] = (page, "")
            for item in objects:
                for name in (item.name, f"{module}.{item.name}", f"{item.module}.{item.name}"):
                    found.setdefault(name, (page, f"#{item.name}"))
    return found


def _text(text: str, page: str) -> str:
    """Return text with its references, such as [`AKDTrainer`], as links, or as code if they lead nowhere."""

    def link(match: re.Match[str]) -> str:
        label = match[1].rpartition(".")[2] if match[0].startswith("[`~") else match[1]
        if match[1] not in _addresses():
            return f"`{label}`"
        target, anchor = _addresses()[match[1]]
        return f"[`{label}`]({anchor if target == page and anchor else f'{target}.md{anchor}'})"

    return _REFERENCE.sub(link, text)
