"""Selection of the Python program in the parts of an answer, by their syntax trees.

With an entry point, the program is the last complete definition of it, with everything that the definition needs.
Statements that only use the program, such as examples, self-tests and reads of standard input, are left out, because
they run when the program is imported and may fail although the definition is right.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from .python_ast import ASSIGNMENTS, BUILTINS, READS_INPUT, Statement
from .python_parts import Part, Source

__all__ = ["find_program", "is_marked_data", "is_marked_right", "is_marked_wrong"]

_Item = TypeVar("_Item")
_DYNAMIC = {"globals", "eval", "exec", "locals", "vars"}


def find_program(parts: Iterable[Part], entry_point: str | None = None) -> str | None:
    """Return the Python program in the parts of an answer, or `None` if there is none.

    Without an entry point, or without a definition of it, the program is kept whole.
    """
    sources = [Source(part) for part in parts]
    if entry_point is not None:
        rank, chosen = (0, False), 0
        for number, source in enumerate(sources):
            found = (source.rank(entry_point), source.fenced)
            best = sources[chosen]
            again = source.repeats(best) or source.explains(best, entry_point)
            if found > rank or (found == rank and not again):
                rank, chosen = found, number
        if rank[0]:
            return _Assembly(sources, chosen, entry_point).program()
    return _whole_program(sources)


class _Assembly:
    """Selection of the statements that an entry point needs."""

    def __init__(self, sources: Sequence[Source], chosen: int, entry_point: str) -> None:
        self._sources = sources
        self._chosen = chosen
        self._entry_point = entry_point
        self._kept: set[tuple[int, int]] = set()
        self._names: set[str] = set()
        self._waiting: list[str] = []
        bound = {*BUILTINS, *(name for source in sources for name in source.binders)}
        self._set_ups = [_SetUps(source, entry_point, bound) for source in sources]
        self._homes: dict[str, list[int]] = {}
        order = [chosen, *range(chosen - 1, -1, -1), *range(chosen + 1, len(sources))]
        for number in order:
            for name in sources[number].binders:
                self._homes.setdefault(name, []).append(number)

    def program(self) -> str:
        """Return the program."""
        source = self._sources[self._chosen]
        for number, statement in enumerate(source.statements):
            of_class = statement.has_method(self._entry_point) and self._entry_point not in source.binders
            if statement.is_settings or of_class:
                self._keep(self._chosen, number)
        self._need(self._entry_point)
        self._resolve()
        self._keep_others()
        self._keep_star_imports()
        return self._text()

    def _need(self, name: str) -> None:
        if name not in self._names:
            self._names.add(name)
            self._waiting.append(name)

    def _keep(self, source: int, number: int) -> None:
        if (source, number) in self._kept:
            return
        self._kept.add((source, number))
        statement = self._sources[source].statements[number]
        if statement.is_import:
            self._names |= statement.binds
        else:
            for name in statement.needs | statement.binds:
                self._need(name)

    def _resolve(self) -> None:
        """Keep statements that bind or set up needed names, until nothing is missing."""
        while self._waiting:
            name = self._waiting.pop()
            if name in _DYNAMIC:
                self._keep_values()
            home = self._home(name)
            if home is None:
                continue
            defining = self._definitions(home, name)
            for number in defining:
                self._keep(home, number)
            if not all(self._sources[home].statements[number].is_import for number in defining):
                for number in self._set_ups[home].of(name):
                    self._keep(home, number)

    def _definitions(self, home: int, name: str) -> list[int]:
        """Return the numbers of the statements that define a name.

        An assignment that shadows a built-in below the definition of the entry point belongs to a use of the program.
        """
        source = self._sources[home]
        defining = source.definitions(name)
        if name not in BUILTINS or name == self._entry_point:
            return defining
        end = max(source.binders.get(self._entry_point, [len(source.statements)]))
        return [
            number
            for number in defining
            if number < end or source.statements[number].is_definition or source.statements[number].is_import
        ]

    def _keep_values(self) -> None:
        """Keep all values of the selected source, for code that looks up names at run time."""
        for number, statement in enumerate(self._sources[self._chosen].statements):
            is_value = isinstance(statement.node, ASSIGNMENTS) and not statement.reads_input
            if is_value and self._entry_point not in statement.calls:
                self._keep(self._chosen, number)

    def _home(self, name: str) -> int | None:
        """Return the number of the source whose binding of a name is used, preferably the selected source."""
        homes = self._homes.get(name, [])
        if name in BUILTINS:
            homes = [number for number in homes if number == self._chosen]
        return min(homes, key=lambda number: self._distance(name, number), default=None)

    def _distance(self, name: str, source: int) -> int:
        """Return a sort key of a source's binding of a name, the smallest for the preferred binding.

        A later correction of a helper comes first, a definition in which code is left out comes after others, and an
        import of a file of the answer last.
        """
        statements = self._sources[source].statements
        binding = [statements[number] for number in self._sources[source].binders[name]]
        if source > self._chosen and self._sources[source].part.right and name != self._entry_point:
            if any(statement.is_definition and statement.is_complete(name) for statement in binding) or all(
                statement.is_constant for statement in statements
            ):
                return -1
        if any(statement.defines(name) and statement.is_complete(name) for statement in binding):
            return 0
        return 2 if all(statement.is_foreign_import for statement in binding) else 1

    def _keep_others(self) -> None:
        """Keep constants, and imports, functions and classes that cannot fail, since a test may need them."""
        candidates = [candidate for candidate in self._candidates() if candidate[:2] not in self._kept]
        unsafe = self._unsafe([statement for _, _, statement in candidates])
        for source, number, statement in candidates:
            if (source, number) in self._kept or statement.binds & (self._names | unsafe):
                continue
            if statement.is_constant:
                self._kept.add((source, number))
            elif statement.is_safe_import or statement.is_definition:
                self._keep(source, number)
                self._resolve()

    def _candidates(self) -> Iterator[tuple[int, int, Statement]]:
        """Yield statements next to the kept ones, and those of earlier blocks that are not drafts."""
        for number, source in enumerate(self._sources[: self._chosen + 1]):
            if number != self._chosen and (source.part.wrong or not source.fenced or source.rank(self._entry_point)):
                continue
            for run in [range(len(source.statements))] if source.fenced else source.runs:
                if source.fenced or any((number, index) in self._kept for index in run):
                    yield from ((number, index, source.statements[index]) for index in run)

    def _unsafe(self, candidates: Sequence[Statement]) -> set[str]:
        """Return the names bound by candidates that need tests, input, or packages that may be missing."""
        users: dict[str, list[Statement]] = {}
        waiting: list[str] = []
        for statement in candidates:
            if statement.is_definition:
                for name in statement.needs - self._names:
                    users.setdefault(name, []).append(statement)
                waiting += [name for name in statement.needs_now - BUILTINS if name not in self._homes]
            elif not statement.is_constant and not statement.is_safe_import:
                waiting += statement.binds - self._names
        unsafe: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in unsafe:
                unsafe.add(name)
                waiting += [bound for statement in users.get(name, []) for bound in statement.binds]
        return unsafe

    def _keep_star_imports(self) -> None:
        """Keep `from ... import *` of the standard library, and of other packages if a name is missing otherwise."""
        for source in [home for home in self._homes.get("*", []) if home <= self._chosen]:
            for number in self._sources[source].binders["*"]:
                if not self._sources[source].statements[number].is_foreign_import or self._is_incomplete:
                    self._kept.add((source, number))

    @cached_property
    def _is_incomplete(self) -> bool:
        """Whether a needed name is not bound anywhere."""
        return any(name not in self._homes and name not in BUILTINS for name in self._names)

    def _text(self) -> str:
        by_source: dict[int, list[int]] = {}
        for source, number in sorted(self._kept):
            by_source.setdefault(source, []).append(number)
        futures: list[str] = []
        texts: list[str] = []
        for source, numbers in by_source.items():
            statements = self._sources[source].statements
            if texts or len(numbers) < len(statements):
                futures += [statements[number].text for number in numbers if statements[number].is_future_import]
                numbers = [number for number in numbers if not statements[number].is_future_import]
            texts.append(self._sources[source].text_of(numbers).strip("\n"))
        return "\n".join([*dict.fromkeys(futures), *texts])


class _SetUps:
    """Statements of a source that set up objects of the program, by the names of these objects.

    Statements that need names outside `bound`, files or arguments of the script are uses of the program. So are
    assignments and control flow that call what the entry point calls.
    """

    def __init__(self, source: Source, entry_point: str, bound: Set[str]) -> None:
        self._source = source
        self._by_name: dict[str, list[int]] = {}
        self._readers: dict[str, list[str]] = {}
        self._changers: dict[str, list[str]] = {}
        self._callers: dict[str, list[str]] = {}
        self._effects: dict[str, list[int]] = {}  # expression statements, by the function that is called
        self._by_argument: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}  # by whether they are expressions
        self._calls: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
        given = {name for each in source.statements if each.reads_input for name in each.binds}
        used = _reached(source, entry_point)
        self._reading = {  # functions that read files or arguments
            name
            for each in source.statements
            if each.is_function and each.reads_files_or_arguments
            for name in each.binds | each.binds_when_called
        }
        for number, statement in enumerate(source.statements):
            if statement.is_function and not statement.needs & {"print", "input", entry_point}:
                for function in statement.binds:
                    _add(self._readers, () if statement.asserts else statement.needs, function)
                    _add(self._changers, statement.changes_when_called, function)
                    _add(self._callers, statement.needs, function)
            elif statement.may_set_up:
                _add(self._by_name, statement.changes, number)
                is_call = statement.is_expression
                is_use = not is_call and (statement.asserts or statement.needs & given or statement.calls & used)
                if entry_point not in statement.needs and not is_use and self._can_run(statement, bound):
                    _add(self._by_argument[is_call], statement.gives, number)
                    _add(self._calls[is_call], statement.calls_or_passes, number)
                    _add(self._effects, statement.calls_or_passes if is_call else (), number)

    def _can_run(self, statement: Statement, bound: Set[str]) -> bool:
        """Return whether a statement, with the functions it calls, needs no unbound names, files or arguments."""
        if statement.reads_files_or_arguments or statement.calls_or_passes & self._reading:
            return False
        return "*" in bound or statement.needs <= bound | statement.binds

    def of(self, name: str) -> list[int]:
        """Return the numbers of the statements that set up the object of a name.

        They set an item or an attribute or call a method of it or, if it is neither a function nor a class, pass it as
        an argument or call a function that changes it, directly or through other functions. Expression statements may
        also call functions that only use it. Other statements must fill an object that is empty before.
        """
        found = self._by_name.pop(name, [])
        binding = [self._source.statements[number] for number in self._source.binders[name]]
        if any(statement.is_definition and name in statement.binds for statement in binding):
            return found
        for function in self._readers.pop(name, []):
            found += self._effects.pop(function, [])
        changers = self._changing(name)
        for is_call in (True,) if any(statement.is_filled for statement in binding) else (True, False):
            found += self._by_argument[is_call].pop(name, [])
            for function in changers:
                found += self._calls[is_call].pop(function, [])
        return found

    def _changing(self, name: str) -> list[str]:
        """Return the functions that change the object of a name, directly or through others."""
        functions = dict.fromkeys(self._changers.pop(name, []))
        waiting = [*functions]
        while waiting:
            callers = dict.fromkeys(self._callers.get(waiting.pop(), []))
            new = [caller for caller in callers if caller not in functions]
            functions.update(dict.fromkeys(new))
            waiting += new
        return [*functions]


def _reached(source: Source, entry_point: str) -> set[str]:
    """Return the names of the functions that an entry point calls, directly or through others."""
    found: set[str] = set()
    waiting = [entry_point]
    while waiting:
        name = waiting.pop()
        functions = [source.statements[number] for number in source.binders.get(name, [])]
        for function in (each for each in functions if each.is_function and name in each.binds):
            new = function.needs - found
            found |= new
            waiting += new
    return found - BUILTINS


def _add(index: dict[str, list[_Item]], names: Iterable[str], item: _Item) -> None:
    for name in names:
        index.setdefault(name, []).append(item)


# The prose before a block


_WRONG = re.compile(
    r"\b(?:wrong|incorrect(?:ly)?|buggy|bugs?|broken|faulty|flawed|mistaken?|mistakes?|pitfall|anti-?pattern"
    r"|avoid|fails?|crash(?:es)?|would (?:raise|break)|naive attempt|bad|inefficient|too slow|slower"
    r"|for (?:comparison|reference)"
    r"|(?:(?<!we )(?<!I )do|should|must)(?:n['\u2019]t| not) (?:do|use|write)|never (?:do|use|write)|not to do"
    r"|your (?:original )?(?:code|version|attempt)|original code)\b"
    r"|(?:\bnot|n['\u2019]t|\bnever) (?:be |quite |always )?(?:(?:work|correct|valid|handle)\w*|right|pass)\b",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\b(?:correct(?:ed|ly|ion)?|fix(?:ed|es|ing)?|instead of|use this instead|right|improved?|optimi[sz]ed|updated"
    r"|revised|final|working|better|efficient|faster|solution is|avoids|handles)\b",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"(?:\bnot|n['\u2019]t|\bnever) (?:be |quite |always )?(?:correct|right|working|efficient|handle)\w*",
    re.IGNORECASE,
)
_DATA = re.compile(
    r"(?!.*\b(?:code|function|implementation|program|script|solution)\b)(?:.*\s)?(?:(?:in|out)puts?|results?"
    r"|prints?|printed|displays?|displayed|shows?|gives?|produces?|returns?|yields?|stdout|stdin|console|terminal"
    r"|you (?:should|will) see|ausgabe|eingabe|salida|entrada|sa[ií]da|sortie|entrée|вывод|ввод|輸出|输出|输入|出力"
    r"|入力|출력|입력)"
    r"(?:[ \t]+(?:is|are|be|like|looks like|this|the following|\d+))*(?:[ \t]*\([^()]*\))?[^\w\n]*",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"[*`]|(?<!\w)_|_(?!\w)")
_HEADING_CHARS = 300


def is_marked_wrong(before: str, block: str) -> bool:
    """Return whether the last sentence before a block, or the comment at its start, calls the code wrong."""
    comment = re.match(r"\s*+#(.{0,200})", block)
    return _is_disapproval(_last_sentence(before)) or (comment is not None and _is_disapproval(comment[1]))


def is_marked_right(before: str) -> bool:
    """Return whether the last sentence before a block calls the code a correction or an improvement."""
    sentence = _last_sentence(before)
    return not _is_disapproval(sentence) and _RIGHT.search(sentence) is not None


def is_marked_data(before: str) -> bool:
    """Return whether the last sentence before a block calls the block input or output of the program."""
    return _DATA.fullmatch(_EMPHASIS.sub("", _last_sentence(before)).strip("# \t-")) is not None


def _last_sentence(text: str) -> str:
    lines = text[-_HEADING_CHARS:].strip().splitlines()
    return re.split(r"[.!?]\s+(?=\S)", lines[-1])[-1] if lines else ""


def _is_disapproval(line: str) -> bool:
    if "❌" in line:
        return True
    line = _EMPHASIS.sub("", line)
    wrong = _WRONG.search(line)
    return wrong is not None and _RIGHT.search(_NEGATED.sub("", line)) is None


# The program as a whole


def _whole_program(sources: Sequence[Source]) -> str | None:
    """Return the program in the code blocks together, or in the prose if there is no block."""
    blocks = [source for source in sources if source.fenced and source.is_code]
    if blocks:
        return _joined(_without_data(blocks))
    unfenced = [source for source in sources if not source.fenced]
    whole = next((source.text for source in unfenced if source.parses and source.statements), None)
    runs = filter(None, (source.longest_run for source in unfenced))
    return whole if whole is not None else max(runs, key=len, default=None)


def _without_data(blocks: Sequence[Source]) -> Sequence[Source]:
    """Return the blocks tagged as Python and those that continue them, without input and output of the program."""
    tagged = {block for block in blocks if block.part.kind != "code" and not block.part.data}
    bound = {name for block in tagged or blocks for name in block.binders}
    kept = {block for block in blocks if block in tagged or block.continues(bound)}
    if not kept:
        return [block for block in blocks if not block.part.data] or blocks
    waiting = [block for block in blocks if block.part.data and block not in kept]
    bound, needed, found = set[str](), set[str](), kept
    while found:
        kept |= found
        bound.update(*(block.binders for block in found))
        needed.update(*(block.missing for block in found))
        needed -= bound
        found = {block for block in waiting if block.belongs_to(bound, needed)}
        waiting = [block for block in waiting if block not in found]
    return [block for block in blocks if block in kept]


_WRITES_OUTPUT = re.compile(r"\bprint\s*\(|\bstdout\b|\bos\.write\(|\bopen\(\s*1\b")


def _joined(blocks: Sequence[Source]) -> str:
    """Return the blocks of the last program that is not called wrong.

    If several blocks read input and print, the last one is used, with the blocks that define what it needs and, if it
    only defines functions, the next block that uses them. A block whose functions are all redefined later is a draft.
    """
    blocks = [block for block in blocks if not block.part.wrong] or blocks
    blocks = [block for block in blocks if block.parses] or [block for block in blocks if block.statements] or blocks
    if not any(block.statements for block in blocks):
        return max((block.part.text for block in blocks), key=len)
    blocks = _without_explanations(blocks)
    reader = next((block for block in reversed(blocks) if READS_INPUT.search(block.text)), None)
    if reader is not None and not _WRITES_OUTPUT.search(reader.text):
        reader = None
    first = [reader, _user(reader, blocks)] if reader else []
    kept: list[Source] = []
    defined: set[str] = set()
    needed: set[str] = set()
    for block in [*filter(None, first), *(block for block in reversed(blocks) if block not in first)]:
        own = {name for statement in block.statements if statement.is_definition for name in statement.binds}
        is_needed = block in first or not reader or (needed - defined) & block.binders.keys()
        if kept and ((own and own <= defined) or not is_needed):
            continue
        kept.append(block)
        defined.update(block.binders)
        needed.update(name for statement in block.statements for name in statement.needs)
    order = {id(block): number for number, block in enumerate(blocks)}
    kept.sort(key=lambda block: order[id(block)])
    return kept[0].program if len(kept) == 1 else "\n".join(block.program.strip("\n") for block in kept)


def _without_explanations(blocks: Sequence[Source]) -> list[Source]:
    """Leave out code that explains other code: lines of the longest block, and definitions with less code than before.

    A block without functions that reads input and prints is another program, even with the same lines.
    """
    whole = max(blocks, key=lambda block: len(block.code))
    after = False
    known: dict[str, Statement] = {}
    kept: list[Source] = []
    for block in blocks:
        definitions = [statement for statement in block.statements if statement.is_definition]
        is_script = not definitions and READS_INPUT.search(block.text) and _WRITES_OUTPUT.search(block.text)
        if after and not is_script and block.repeats(whole):
            continue
        new = [
            number
            for number, statement in enumerate(block.statements)
            if not any(_explains(block, statement, name, known) for name in statement.binds)
            and not (after and statement.has_placeholder and not statement.is_definition)
        ]
        if len(new) == len(block.statements):
            kept.append(block)
        elif any(not block.statements[number].is_import for number in new):
            kept.append(Source(replace(block.part, text=block.text_of(new), kind="python")))
        for statement in definitions:
            known |= {name: statement for name in statement.binds if not _explains(block, statement, name, known)}
        after = after or block is whole
    return kept or list(blocks)


def _explains(block: Source, statement: Statement, name: str, known: Mapping[str, Statement]) -> bool:
    """Return whether a function or class has less code than a known one; one that prints needs no result."""
    if not statement.is_definition or name not in known:
        return False
    if known[name].is_complete(name) and not statement.is_complete(name):
        return True
    return not (block.part.right or _WRITES_OUTPUT.search(statement.text)) and statement.explains(known[name], name)


def _user(library: Source, blocks: Sequence[Source]) -> Source | None:
    """Return the first block after one that only defines functions, and uses them."""
    if any(statement.runs for statement in library.statements):
        return None
    later = blocks[blocks.index(library) + 1 :]
    own = {name for statement in library.statements if statement.is_definition for name in statement.binds}
    for block in later:
        if any(statement.runs for statement in block.statements):
            if any(statement.needs & own for statement in block.statements):
                return block
    return None
