"""Parser of models' answers: thoughts, prose, code blocks and the Python program in them.

Chat and reasoning models wrap code in many ways. This module removes the wrapping; [`programs`] selects the program.
The time is linear in the length of the text.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from .programs import find_program, is_marked_data, is_marked_right, is_marked_wrong
from .python_ast import does_something, parse
from .python_parts import Part, PartKind

__all__ = ["LANGUAGES", "Answer", "CodeBlock", "extract_program", "parse_answer"]

LANGUAGES = MappingProxyType(
    {
        **dict.fromkeys(["python", "python2", "python3", "py", "py3", "ipython", "ipython3", "sage"], "python"),
        **dict.fromkeys(["pycon", "python-repl", "pyrepl", "doctest", "python-console"], "python"),
        **dict.fromkeys(["javascript", "js", "jsx", "node", "mjs"], "javascript"),
        **dict.fromkeys(["typescript", "ts", "tsx"], "typescript"),
        **dict.fromkeys(["cpp", "c++", "cc", "cxx", "hpp"], "cpp"),
        **dict.fromkeys(["csharp", "c#", "cs"], "csharp"),
        **dict.fromkeys(["go", "golang"], "go"),
        **dict.fromkeys(["bash", "sh", "shell", "zsh", "console"], "shell"),
        **dict.fromkeys(["rust", "rs"], "rust"),
        **dict.fromkeys(["ruby", "rb"], "ruby"),
        **dict.fromkeys(["markdown", "md"], "markdown"),
        **dict.fromkeys(["text", "txt", "plain", "plaintext", "output", "none", "code", "codeblock"], "text"),
    }
)
"""Languages by the tags of fenced code blocks, in lower case."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-Z\\^_])")

_THOUGHT = r"(?:seed:)?(?:thinking|think|thoughts|thought|reasoning|reflection|scratchpad|inner_monologue|antthinking)"
_THOUGHT_TAG = re.compile(
    rf"(?P<open><\|?(?:begin_of_|start_)?{_THOUGHT}(?:[ \t][^<>\n]{{0,80}})?\|?>|\[THINK\]|◁think▷|<unused94>thought)"
    rf"|(?P<close></{_THOUGHT}>|<\|(?:/|end_of_|end_){_THOUGHT}\|>|<\|/?{_THOUGHT}/?\|>|\[/THINK\]|◁/think▷|<unused95>)",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>(?P<name>\w+)[^<]{0,100}<\|message\|>")
_BARE_CHANNEL = re.compile(r"\s*+analysis(?=[A-Z\"'(`])")

_END = re.compile(
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|eom_id|end|return|call|start|assistant|user|system|endofturn"
    r"|end_of_turn|EOT|eos|start_header_id|end_of_solution|fim_\w+|file_sep|repo_name|END_RESPONSE|END_OF_TURN_TOKEN)\|>"
    r"|</s>|<end_of_turn>|<start_of_turn>|<(?:fim_(?:prefix|suffix|middle|pad)|file_sep)>|<(?:PRE|SUF|MID|EOT)>"
    r"|<\uff5c[^\uff5c\n]{1,40}\uff5c>|(?<!\w)\[/?INST\]|^[ \t]*+\[DONE\]",
    re.MULTILINE,
)
_START = re.compile(
    r"(?>(?:\s*+(?:<\|(?:im_start|start|start_header_id|begin_of_text|assistant|end_header_id|fim_middle|fim_prefix|message"
    r"|im_end|CHATBOT_TOKEN)\|>|<s>|<bos>|<start_of_turn>|<fim_middle>|<fim_prefix>|<MID>|<PRE>|\[/INST\]"
    r"|<\uff5c[^\uff5c\n]{1,40}\uff5c>)(?>(?:(?:assistant|model)(?=\s|<))?))+)"
)
_PROMPT = re.compile(
    r"(?>(?:\s*+(?:<\|begin_of_text\|>|<s>|<bos>|<\uff5cbegin[^\uff5c\n]{1,40}\uff5c>))*)\s*+(?:\[INST\]"
    r"|<\|(?:im_start|start_header_id)\|>(?:system|user)\b|<start_of_turn>(?:system|user)\b|<\|(?:system|user)\|>"
    r"|<\uff5cUser\uff5c>)"
)
_REPLY = re.compile(
    r"\[/INST\]|<\|im_start\|>assistant\b|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model\b"
    r"|<\|assistant\|>|<\uff5cAssistant\uff5c>"
)
_NO_TEXT = re.compile(r"<\|(?:python_tag|begin_of_solution|START_RESPONSE)\|>")
_FILL_IN = re.compile(
    r"(?P<prefix><\|?fim_prefix\|?>|<PRE>)|(?P<suffix><\|?fim_suffix\|?>|<SUF>)|<\|?fim_middle\|?>|<MID>"
)

_FENCE = re.compile(
    r"(?P<prefix>[ \t]*+(?>(?:>[ \t]?+)*)(?>(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)?)[ \t]*+)"
    r"(?P<mark>`{3,}+|~{3,}+)(?P<info>.*+)"
)
_INLINE_FENCE = re.compile(r"(?P<before>[^`]*\S[ \t]*+)(?P<mark>```)(?P<info>(?:python3?|py)[ \t]*+)", re.IGNORECASE)
_TAG = re.compile(r"[ \t]*+\{?[ \t]*+\.?(?P<tag>[\w+#-]++)(?P<rest>.*+)")
_FIRST_CODE = re.compile(r"[ \t]*+(?:def|class|import|from|async|print|@|\w+[ \t]*=[^=\"'])")
_WRAPPER = re.compile(r"\[(?P<square>PYTHON|BEGIN|CODE)\]|<(?P<angle>code|python|pre)(?:[ \t][^<>\n]{0,200})?>")
_PYTHON_STRING = re.compile(
    r"(?P<triple>\"\"\"|''')|\"(?>(?:[^\"\\\n]|\\.)*)\"?+|'(?>(?:[^'\\\n]|\\.)*)'?+|(?P<comment>\#.*+)"
)
_OPENS_PYTHON = re.compile(
    r"^(?:(?>(?:async[ \t]++)?)def[ \t]++\w|class[ \t]++\w++[^;{\n]{0,200}:[ \t]*+$|import[ \t]++[\w., \t]++$"
    r"|from[ \t]++[\w.]++[ \t]++import\b)",
    re.MULTILINE,
)
_APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")
_QUOTE_CHARS = 200
_MAX_TAG_WORDS = 6
_MAY_BE_PYTHON = {"", "python", "text", "diff", "json"}
_KINDS: Mapping[str, PartKind] = MappingProxyType({"python": "python", "diff": "diff"})


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A code block of an answer: fenced by backticks or tildes, or between tags such as `[PYTHON]` and `[/PYTHON]`.

    Args:
        language (`str`):
            Language of the tag: a value of [`LANGUAGES`] if it is known, else the tag in lower case; empty without a
            tag.
        text (`str`):
            Text between the fences, without the indentation of the opening fence.
        closed (`bool`):
            Whether there is a closing fence; otherwise the block ends at the next opening fence or the end of the
            text.
        start (`int`), end (`int`):
            Position of the block in [`Answer.text`], including fences.
    """

    language: str
    text: str
    closed: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Parts of a model's answer.

    Args:
        thoughts (`str`):
            Reasoning before the answer, such as between `<think>` and `</think>`; empty if there is none.
        thoughts_closed (`bool`):
            Whether the reasoning ended. If not, there is no answer and `text` is empty.
        text (`str`):
            Answer without thoughts, terminal colors and special tokens of chat templates.
        prose (`str`):
            Text outside the code blocks.
        blocks (`tuple[CodeBlock, ...]`):
            Code blocks in order.
        language (`str`, *optional*):
            Language of the first code block, or `"python"` if the text is a Python program without fences; `None`
            without code.
        program (`str`, *optional*):
            Python program, which may have syntax errors; `None` if there is none.
    """

    thoughts: str
    thoughts_closed: bool
    text: str
    prose: str
    blocks: tuple[CodeBlock, ...]
    language: str | None
    program: str | None

    @property
    def complete(self) -> bool:
        """Whether the thoughts and all code blocks are closed."""
        return self.thoughts_closed and all(block.closed for block in self.blocks)


def parse_answer(text: str, entry_point: str | None = None) -> Answer:
    r"""Read a model's answer.

    With an entry point, the program is the last complete definition of it that the prose does not call wrong, together
    with everything in the answer that the definition needs; usage examples, self-tests and reads of standard input are
    left out. Without an entry point, the whole program is kept, without blocks that show its input or output.

    Args:
        text (`str`):
            Text that a model generated.
        entry_point (`str`, *optional*):
            Name that the program should define.

    Example:

    ```python
    >>> text = "<think>Easy.</think>Sure:\n```python\ndef one():\n    return 1\n\nprint(one())\n```"
    >>> answer = parse_answer(text, "one")
    >>> answer.thoughts, answer.prose, answer.program
    ('Easy.', 'Sure:', 'def one():\n    return 1')

    ```
    """
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    thoughts, closed, text = _split_thoughts(_without_prompt(text))
    text = _without_special_tokens(text)
    blocks = tuple(_blocks(text))
    prose = _prose(text, blocks)
    return Answer(
        thoughts=thoughts.strip(),
        thoughts_closed=closed,
        text=text,
        prose="\n".join(prose).strip(),
        blocks=blocks,
        language=_language(text, blocks),
        program=find_program(_parts(text, blocks), entry_point),
    )


def _without_prompt(text: str) -> str:
    """Remove the turns before the first reply from a text that starts with the prompt in its chat template."""
    reply = _REPLY.search(text) if _PROMPT.match(text) else None
    return text if reply is None else text[reply.end() :]


def _split_thoughts(text: str) -> tuple[str, bool, str]:
    """Return the thoughts, whether they ended, and the answer."""
    channels = [match for match in _CHANNEL.finditer(text) if not _is_quoted(text, match)]
    if channels:
        return _split_channels(text, channels)
    if bare := _BARE_CHANNEL.match(text):
        before, final, after = text[bare.end() :].partition("assistantfinal")
        return before, bool(final), after
    tags = [match for match in _THOUGHT_TAG.finditer(text) if not _is_quoted(text, match)]
    if tags:
        tags = _outside_of_python(text, tags)
    thinking: list[str] = []
    answer: list[str] = []
    opened: re.Match[str] | None = None
    position = 0
    last_close = max((tag.start() for tag in tags if tag["close"]), default=-1)
    length = len(text.rstrip())
    for tag in tags:
        if opened is None and tag["open"]:
            if tag.start() < last_close or not text[text.rfind("\n", 0, tag.start()) + 1 : tag.start()].strip():
                answer.append(text[position : tag.start()])
                opened, position = tag, tag.end()
        elif opened is not None and _closes(tag, opened):
            thinking.append(text[position : tag.start()])
            opened, position = None, tag.end()
        elif opened is None:
            answer.append(text[position : tag.start()])
            if not thinking or tag.end() < length or not "".join(answer).strip():
                thinking += answer
                answer.clear()
            position = tag.end()
    (answer if opened is None else thinking).append(text[position:])
    return "\n".join(thinking), opened is None, "".join(answer).lstrip("\n") if thinking else "".join(answer)


def _split_channels(text: str, channels: list[re.Match[str]]) -> tuple[str, bool, str]:
    """Split a Harmony transcript: the channel `final` is the answer, all others are thoughts."""
    thoughts: list[str] = []
    answer: str | None = None
    for channel, following in zip(channels, [*channels[1:], None], strict=True):
        body = text[channel.end() : following.start() if following else len(text)]
        body = re.split(r"<\|(?:end|return|call|start)\|>", body, maxsplit=1)[0]
        if channel["name"] == "final":
            answer = body
        else:
            thoughts.append(body)
    return "\n".join(thoughts), answer is not None, answer or ""


def _closes(tag: re.Match[str], opened: re.Match[str]) -> bool:
    if tag["open"]:
        return "|" in tag[0] and tag[0] == opened[0]
    name, other = (re.search(_THOUGHT, match[0], re.IGNORECASE) for match in (tag, opened))
    return name is None or other is None or name[0].lower() == other[0].lower()


def _is_quoted(text: str, match: re.Match[str]) -> bool:
    """Return whether a match is between quotes or backticks on its line."""
    start, end = match.span()
    before = text[max(text.rfind("\n", 0, start) + 1, start - _QUOTE_CHARS) : start]
    stop = text.find("\n", end, end + _QUOTE_CHARS)
    after = text[end : stop if stop >= 0 else end + _QUOTE_CHARS]
    before, after = (_APOSTROPHE.sub("", part).replace("```", "") for part in (before, after))
    return any(before.count(quote) % 2 and quote in after for quote in "\"'`")


def _outside_of_python(text: str, tags: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the tags that are not in valid Python, which may be the whole text or one of its code blocks."""
    if parse(text) is not None:
        return []
    starts = [tag.start() for tag in tags]
    outside: list[re.Match[str]] = []
    last = 0
    for block in _blocks(text):
        first, end = bisect_left(starts, block.start), bisect_left(starts, block.end)
        if first < end and block.closed and parse(block.text) is not None:
            outside += tags[last:first]
            last = end
    return outside + tags[last:]


def _without_special_tokens(text: str) -> str:
    """Remove special tokens of chat templates and of infilling, and everything after the end of the turn."""
    fill_in = [*islice(_FILL_IN.finditer(text), 3)]
    if [match.lastgroup for match in fill_in] == ["prefix", "suffix", None] and not text[: fill_in[0].start()].strip():
        prefix, suffix, middle = fill_in
        end = next((match.start() for match in _END.finditer(text, middle.end())), len(text))
        between = text[suffix.end() : middle.start()]
        text = text[prefix.end() : suffix.start()] + text[middle.end() : end] + between
    if opening := _START.match(text):
        text = text[opening.end() :].lstrip("\n")
    text = _NO_TEXT.sub(lambda match: match[0] if _is_quoted(text, match) else "", text)
    for end_token in _END.finditer(text):
        if not _is_quoted(text, end_token) and text[: end_token.start()].strip():
            return text[: end_token.end() if end_token[0].endswith("[DONE]") else end_token.start()]
    return text


def _blocks(text: str) -> Iterator[CodeBlock]:
    """Yield the code blocks of a text; for a block of Markdown, yield the blocks in it."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    reader = _FenceReader(lines)
    number = end = 0
    unclosed_tags: set[str] = set()
    while number < len(lines):
        line = lines[number]
        fence = _FENCE.fullmatch(line) or _INLINE_FENCE.fullmatch(line)
        if fence is None or (fence["mark"][0] == "`" and "`" in fence["info"].rstrip("`")):
            wrapped = _wrapped(text, starts[number], starts[number + 1] - 1, unclosed_tags)
            if wrapped is None:
                number += 1
                continue
            yield wrapped
            end = wrapped.end
            while number < len(lines) and starts[number] < wrapped.end:
                number += 1
            continue
        language, first = _tag(fence["info"])
        if fence["info"].endswith("`") and fence["mark"][0] == "`":
            number += 1
            one_line = fence["info"].rstrip("`")
            language, first = _tag(one_line)
            if first and len(fence["info"]) - len(one_line) >= len(fence["mark"]):
                start = starts[number - 1] + fence.start("mark")
                yield CodeBlock(language, first, True, start, starts[number] - 1)
            continue
        if language == "markdown":
            number += 1
            continue
        inside, closing, after = reader.read(number + 1, fence, language)
        start = starts[number] + (fence.start("mark") if "before" in fence.groupdict() else 0)
        body = "".join(f"{line}\n" for line in [*([first] if first else []), *inside])
        body = body if closing or after < len(lines) else body.removesuffix("\n")
        if first is None and body and not language:
            language, body = _tag_on_a_line(body)
        if closing or fence["info"].strip() or _is_code(body) or (body.strip() and not _is_code(text[end:start])):
            yield CodeBlock(
                language, body, closing, start, min(starts[after] - 1 if closing else starts[after], len(text))
            )
            number, end = after, starts[after] - 1
        else:  # the closing fence of a block without an opening one
            number += 1


class _FenceReader:
    """Reader of fenced blocks.

    A fence inside a docstring does not end a block if the block is valid Python with it.
    """

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._lookahead = sum(map(len, lines)) + 1000

    def read(self, first: int, fence: re.Match[str], language: str) -> tuple[list[str], bool, int]:
        """Return the lines of a block, whether it is closed, and the number of the line after it."""
        indent = len(fence["prefix"].expandtabs()) if "prefix" in fence.groupdict() else 0
        quote = ">" in (fence["prefix"] if indent else "")
        mark = fence["mark"]
        inside: list[str] = []
        in_string: tuple[int, bool, int] | None = None
        delimiter: str | None = None
        for number in range(first, len(self._lines)):
            line = self._lines[number]
            line = re.sub(r"^[ \t]*+(?>(?:>[ \t]?)+)", "", line) if quote else _without_indent(line, indent)
            other = _FENCE.fullmatch(line)
            code, ends = line, False
            following = number
            if other and other["mark"].startswith(mark) and not other["info"].strip():
                code, ends, following = "", True, number + 1
            elif other and other["mark"].startswith(mark) and not _in_code(other["info"]):
                code, ends = "", True
            elif line.rstrip().endswith(mark) and "`" in mark and not _quotes_mark(line.rstrip(), mark, delimiter):
                code, ends, following = line.rstrip()[: -len(mark)], True, number + 1
            if ends:
                closed = following > number
                whole = [*inside, code] if code.strip() else inside
                if delimiter is None:
                    if in_string is not None and parse("\n".join(whole)) is None:
                        break
                    return whole, closed, following
                if in_string is None:
                    in_string = (len(inside), closed, following)
                    in_string_code = code
            if in_string is not None:
                self._lookahead -= len(line) + 1
                if self._lookahead < 0:
                    break
            if language in ("python", ""):
                delimiter = _string_after(line, delimiter)
            inside.append(line)
        if in_string is not None:
            count, closed, following = in_string
            return [*inside[:count], *([in_string_code] if in_string_code.strip() else [])], closed, following
        return inside, False, len(self._lines)


def _in_code(info: str) -> bool:
    """Return whether the text after a fence cannot be a tag."""
    return "`" in info or len(info.split()) > _MAX_TAG_WORDS


def _quotes_mark(line: str, mark: str, delimiter: str | None) -> bool:
    """Return whether the fence at the end of a line is in a comment or a string, or starts one inside a docstring."""
    before = line[: -len(mark)]
    if delimiter is not None:
        return _string_after(before, delimiter) is not None or not before.strip()
    return "#" in before or before.rstrip("`").count("```") > 0 or _string_after(before, None) is not None


def _without_indent(line: str, indent: int) -> str:
    """Remove the indentation of the opening fence from a line, as far as the line has it."""
    width = len(line) - len(line.lstrip(" \t"))
    if line[:width].isspace() and "\t" in line[:width] and indent:
        return line[:width].expandtabs()[indent:] + line[width:]
    return line[min(indent, width) :]


def _string_after(line: str, delimiter: str | None) -> str | None:
    """Return the quotes of the triple-quoted string that is open after a line, given those open before it."""
    position = 0
    while True:
        if delimiter is not None:
            while (
                (end := line.find(delimiter, position)) > 0
                and line[end - 1] == "\\"
                and line[end - 2 : end - 1] != "\\"
            ):
                position = end + 1
            if end < 0:
                return delimiter
            position, delimiter = end + 3, None
        token = _PYTHON_STRING.search(line, position)
        if token is None or token["comment"]:
            return None
        position, delimiter = token.end(), token["triple"]


def _tag(info: str) -> tuple[str, str | None]:
    """Return the language of a fence's tag, and the code after the fence on its line."""
    if _FIRST_CODE.match(info):
        return "", info.strip()
    match = _TAG.match(info)
    if match is None:
        return "", None
    tag, rest = match["tag"].lower(), match["rest"]
    language = LANGUAGES.get(tag) or LANGUAGES.get(re.sub(r"[\d.]+$", "", tag)) or tag
    return language, rest.strip() if _FIRST_CODE.match(rest) and not re.match(r"\s*\w+=", rest) else None


def _tag_on_a_line(body: str) -> tuple[str, str]:
    """Return the language of a tag on the line below its fence."""
    first, _, rest = body.partition("\n")
    return ("python", rest) if LANGUAGES.get(first.strip().lower()) == "python" and rest.strip() else ("", body)


def _wrapped(text: str, start: int, end: int, unclosed: set[str]) -> CodeBlock | None:
    """Return the block that starts with a tag such as `[PYTHON]` on a line, unless it contains fences."""
    opening = _WRAPPER.search(text, start, end)
    if opening is not None and (inner := _WRAPPER.match(text, opening.end())):
        opening = inner
    if opening is None or _is_quoted(text, opening):
        return None
    name = opening["square"] or opening["angle"]
    closer = {"BEGIN": "[DONE]"}.get(name) or (f"[/{name}]" if opening["square"] else f"</{name}>")
    closing = -1 if closer in unclosed else text.find(closer, opening.end())
    if closing < 0:
        unclosed.add(closer)
    body = text[opening.end() : closing if closing >= 0 else len(text)]
    if opening["angle"] and (closing < 0 or "\n" not in body):
        return None
    if re.match(r"\s*(?:```|~~~|<(?:code|pre|python)\b)", body):
        return None
    python = "pre" != name
    block_end = closing + len(closer) if closing >= 0 else len(text)
    return CodeBlock("python" if python else "", body.strip("\n"), closing >= 0, opening.start(), block_end)


def _prose(text: str, blocks: tuple[CodeBlock, ...]) -> list[str]:
    """Return the texts before, between and after the blocks."""
    ends = [0, *(block.end for block in blocks)]
    return [text[end:start] for end, start in zip(ends, [*(block.start for block in blocks), len(text)], strict=True)]


def _parts(text: str, blocks: tuple[CodeBlock, ...]) -> Iterator[Part]:
    """Yield the parts of an answer that may contain Python."""
    prose = _prose(text, blocks)
    for before, block in zip(prose, blocks, strict=False):
        if before.strip():
            yield Part(before, "prose")
        if block.language in _MAY_BE_PYTHON and block.text.strip():
            kind = _KINDS.get(block.language, "code")
            wrong, right = is_marked_wrong(before, block.text), is_marked_right(before)
            yield Part(block.text, kind, wrong, right, is_marked_data(before))
    if prose[-1].strip():
        yield Part(prose[-1], "prose" if blocks else "text")


def _language(text: str, blocks: tuple[CodeBlock, ...]) -> str | None:
    if not blocks:
        return "python" if _is_code(text) else None
    first = blocks[0]
    if first.language in ("", "text"):
        return "python" if _is_code(first.text) else None
    return first.language


def _is_code(text: str) -> bool:
    """Return whether a text starts a Python definition or an import, or is valid Python with an effect."""
    return _OPENS_PYTHON.search(text) is not None or does_something(text)


def extract_program(text: str, entry_point: str | None = None) -> str:
    r"""Return the Python program in a model's answer.

    If there is no program, the answer without its thoughts is returned, which fails with an error when it is run. If
    the thoughts are not closed, the result is empty.

    Example:

    ```python
    >>> extract_program("The answer is below.\ndef one():\n    return 1\nI hope this helps!", "one")
    'def one():\n    return 1'

    ```
    """
    answer = parse_answer(text, entry_point)
    return answer.text if answer.program is None else answer.program
