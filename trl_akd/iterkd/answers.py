"""What an answer's text tells by itself: that it refuses, that it has code, that it gives its fault away."""

import ast
import keyword
import re
from collections.abc import Iterator
from types import MappingProxyType

from ..generation import parse_answer
from ..generation.answers import extract_program
from ..generation.python_ast import does_something, parse

__all__ = ["has_code", "identity", "leak", "may_be_another_language", "python_program", "refuses", "remarks"]

_REFUSAL = re.compile(
    r"""\W* (?:(?:unfortunately|well|hello|hi|oh)\W+)? (?:
        i(?:\Wm|\s+am)\s+(?:(?:very|so|really|truly)\s+)?(?:sorry|afraid)\b
        | (?:sorry|apologies|my\s+apologies|i\s+apologi[sz]e)\b
        | (?:很?抱歉|对不起|我(?:无法|不能))
        | as\s+an?\s+(?:ai|artificial\s+intelligence)\b
        | i(?:\Wm|\s+am)?\s+(?:can\W?t|can\s?not|won\Wt|will\s+not|unable\s+to|not\s+able\s+to|must\s+decline\s+to)
          \s+(?:assist|help|provide|create|write|generate|fulfil|comply|answer|produce|give|offer|do)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_PYTHON = {"", "python"}
_CODE_LINE = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?(?:def|class)[ \t]+\w+[ \t]*[(:]|import[ \t]+\w|from[ \t]+\S+[ \t]+import\b"
    r"|(?:for|while|if|with|try)\b.*:[ \t]*$|return\b.*[^.\n]$|raise[ \t]+[A-Z]\w*|print[ \t]*\("
    r"|[\w.\[\]]+[ \t]*[-+*/]?=[^=])",
    re.MULTILINE,
)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")

_STRING = r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
_PYTHON_TOKENS = re.compile(
    rf"""(?P<string>\"{{3}}(?:\\.|[^\\])*?\"{{3}}|'{{3}}(?:\\.|[^\\])*?'{{3}}|{_STRING})|(?P<comment>\#[^\n]*)""",
    re.DOTALL,
)
_OTHER_TOKENS = re.compile(
    rf"""(?P<string>{_STRING})|(?P<comment>//[^\n]*|/\*.*?\*/|<!--.*?-->|(?:\#|--)\s[^\n]*)""", re.DOTALL
)
_ACCIDENT = (
    r"(?:Name|UnboundLocal|Syntax|Indentation|Tab|Recursion|Attribute|Type|Index|ZeroDivision|Import|ModuleNotFound)"
    "Error"
)
_CONDITION = r"(?![ ]*(?:if|when|unless|for|on|in[ ]case|where|exception|:)\b)"
_OF_THE_INPUT = (
    r"(?![- ](?:input|type|value|argument|parameter|format|password|pin|guess|answer|number|data|user|key"
    r"|letter|attempt|length"
    r"|size|shape|dimension|choice|option|credential|login|extension|index|entr|line|date|email|usage|call|move)\w*)"
)
_CODE = r"(?:\w+[(\[_.]|\w+ [-+*/%<>=]|[-+*/%<>=0-9]|\w{1,2}\b)"
_THE_CODE = (
    r"(?:code|function|method|loop|line|program|version|implementation|condition|check|comparison|base case|recursion"
    r"|variable|counter|index|return|accumulator)"
)
_NEGATED = r"(?:do(?:es)?(?:n['\u2019]t| not)|isn['\u2019]t|won['\u2019]t|never|can(?:not|['\u2019]t))"
_DESIGN = (
    r"(?:modif|mutat|chang|need|requir|raise|rel[iy]|depend|allow|print|copy|copies|stor|matter|exist|contain|belong|use"
    r"|support|assume|affect|block|touch|include|exceed|fit|a\b|an\b|in\b|part\b|empty|none|thread|meant|own)"
)
_LEAKS = MappingProxyType(
    {
        label: re.compile(pattern, re.IGNORECASE | re.MULTILINE)
        for label, pattern in {
            "bug": r"\bbug(?:s|gy|ged)?\b(?![- ](?:track|report))",
            "deliberate": r"\bdeliberate(?:ly)?\b",
            "intentional": r"\b(?:un)?intentional(?:ly)?\b|\bintended (?:bug|error|fault|mistake)",
            "on purpose": r"\bon purpose\b|\bpurposely\b|\bpurposefully\b",
            "mistake": r"\bmistak(?:es?|en|enly)\b|\bby accident\b|\baccidental(?:ly)?\b",
            "oops": r"\b(?:w?h?oops(?:ie)?|uh-?oh|my bad)\b",
            "fault": r"\bfaults?\b(?![- ]toleran)|\bfaulty\b",
            "flaw": r"\bflaw(?:s|ed)?\b(?<!\bno flaw)",
            "off by one": r"\boff[- ]by[- ](?:one|1)\b",
            "typo": r"\btypos?\b|\bmis(?:spell?ed|spelt|spelling|typed|named)\b",
            "forgot": r"\b(?:left|leav(?:e|es|ing)) out\b|\bomit(?:s|ted|ting)? the (?:check|colon|return|import"
            r"|case|cast|base)\b|\bforg(?:ot|otten|ets?|etting) (?:to|the|a|about|that|this)\b|\bforgot\b(?! password)"
            r"|\bneglect(?:s|ed)? to\b",
            "incorrect": rf"(?<!if )\b(?:incorrect|erroneous)(?:ly)?\b{_OF_THE_INPUT}|\b(?:not|isn't"
            rf"|never) (?:quite )?(?:correct|right)\b"
            r"|^\W*not \w+(?:\(|\s*[-+*/%<>])|\bcorrect (?:version|code|line|answer|solution|way|formula"
            r"|condition|operator)\b[^.\n]{0,20}\b"
            r"(?:is|would|should)\b",
            "wrong": rf"\bwrong(?:ly)?\b{_OF_THE_INPUT}",
            "broken": r"\bbroken\b(?! (?:down|into|up|by|out))",
            "fix": r"\bfix(?:es|ing|me)?\b(?! (?:the )?(?:width|point|length|size|seed))|\b(?:to be|should be"
            r"|needs? to be|not) fixed\b",
            "should be": r"(?:^|\b(?:this|it|that|which|here|line|actually|condition|index|sign"
            r"|operator)\b)\W{0,4}(?:really |actually )?"
            r"should(?:['\u2019]ve)? (?:just |really |actually |probably |instead )?(?:have been|been"
            r"|be)\b(?! (?:able|called|used"
            r"|passed|given|provided|run|sorted|non|a list"
            r"|an? (?:int|str|float|bool)"
            r"|positive|negative|at (?:least|most)|true|false|fine|ok|safe|fast|enough|easy|unique|empty|in the"
            r"|installed|set))"
            r"|\bshould(?:['\u2019]ve)? (?:just |really |actually |probably |instead )?(?:have been|been"
            r"|be) (?:[-+*/%<>=!`'\"(\[]"
            r"|[0-9]|\w+[(\[_.]|\w+ [-+*/%<>=]|(?:a |the )?"
            r"(?:plus|minus)\b)"
            r"|\b(?:supposed|ought|meant) to be\b",
            "instead of": r"\binstead of (?:[-+*/%<>=!`'\"(\[]|[0-9]|\w+[(\[_]|\w+ [-+*/%<>=]|(?:the "
            r"|a )?(?:correct|right|proper|expected)\b"
            r"|(?:and|or|plus|minus|return|yield|append|extend|self)\b)",
            "missing": r"\bmissing (?:(?:the|a|an|its|closing|opening|final|here|this|right|left|out) )*(?:colon"
            r"|paren\w*|bracket|brace|quote"
            r"|return|import|self|base case|increment|comma|semicolon|indent\w*|check|operator|call|cast"
            r"|conversion|break|await|step"
            r"|update|initiali[sz]\w*|edge|here|keyword|condition|termination|decrement|the fill)\b|\b(?:is"
            r"|are) missing(?: here)?[ .!]*$|^\W*missing\W*$",
            "error": r"\berrors? (?:is |occurs |lies |happens |comes )?(?:in|here|below|above|on)\b(?! (?:stderr"
            r"|failure|exit|case|any|other))"
            r"|\b(?:contains?|containing|introduc\w+|includ\w+|inject\w+|simulat\w+|has|have|make|making|mak\w+"
            r"|purposeful"
            r"|subtle|logic(?:al)?|syntax"
            r"|runtime|type|name|timeout|hidden|obvious|small) (?:an? |the |one |some |this |a )?(?:\w+ )?errors?\b"
            r"(?! (?:handling|handler|message|check\w*|code|rate|log|term|type|class|if|when|for|list|list"
            r"|count|response))"
            r"|^\W*errors?\W*$|^\W*error\s*[:!-]+\s*(?!if|when|on)\w",
            "exception": rf"\b(?:rais\w+|caus\w+|throw\w*|trigger\w*|leads? to|results? in|gives?|get|hits?"
            rf"|with) (?:an? |the )?{_ACCIDENT}\b{_CONDITION}"
            rf"|\b(?:will|would) (?:raise|cause|throw|trigger|give) (?:an? |the )?{_ACCIDENT}\b"
            r"|\b(?:Name|UnboundLocal|Indentation|Tab|Recursion)Error\b(?! if)|\binvalid syntax\b",
            "endless": r"\b(?:infinite(?:ly)?|endless(?:ly)?|never[- ]ending) (?:loop|recursion)"
            r"|\bloops? forever\b|\bruns? forever\b(?! until)"
            r"|\bnever (?:break\w*|exit\w*|return\w*|advanc\w+|mov\w+|shrink\w*|grow\w*|decreas\w+|increas\w+"
            r"|terminat\w+|ends?|stops?|reached|reaches|finish\w*|updat\w+|increment\w*|decrement\w*"
            r"|chang\w+|true|incremented)\b"
            r"|\bwithout (?:ever )?(?:updating|incrementing|decrementing)\b",
            "fails": r"\bfails? to\b|\b(?:does|do|will|would|did|can)(?:n't|n\u2019t| not"
            r"|not) (?:actually )?(?:work|terminate"
            r"|compile|run|stop|end|parse|execute)\b"
            r"|\b(?:will|would|it|this|that|code|function|program|loop) (?:also )?(?:fails?|crash(?:es)?"
            r"|breaks?|hangs?)\b(?! (?:if|the loop|out|when all))"
            r"|\bcrash(?:es)? (?:here|when|for|on|with)\b|\bwon(?:'|\u2019)?t (?:work|compile|run|terminate"
            r"|stop|end|handle)\b"
            r"|\bdoes(?:n't| not) (?:handle|check|update|increment|account|cover|consider)\b",
            "undefined": r"\bundefined (?:variable|name|function|module|identifier|reference|method)s?\b|\b(?:is"
            r"|was|are|were|isn't|been|been|)"
            r" ?(?:not|never|n't) (?:yet )?(?:been )?(?:defined|imported|incremented|updated|declared"
            r"|initiali[sz]ed|closed|decremented|assigned|converted|cast)\b"
            r"(?<!if not defined)",
            "corrected": r"^\W*(?:note:? )?should (?:just |really |actually )?(?!be\b|not\b|never\b|always\b|only\b"
            r"|(?:happen|work|return|print|output|log|show|display|give|raise|have|help|equal|contain|yield|produce|see"
            r"|match|look|pass)\b)[a-z]+"
            r"|\b(?:this|it|we|line|loop|condition) should (?:actually|really|instead|rather|divide|multiply|add"
            r"|subtract|compare|start|stop|begin|increment|decrement|iterate|loop|use)\b"
            r"|\bought to\b|\b(?:is|are|was) what (?:we|you|it) (?:really |actually )?(?:wants?|needs?|intended"
            r"|meant)\b"
            r"|\b(?:needs?|requires?|wants?) (?:\w+[(\[]|\w+\.\w|\w+ [-+*/%<>=])"
            rf"|\b(?:rather than|in place of|where|not) {_CODE}[^\n]*?\b(?:was|is|were|are) "
            r"(?:needed|required|expected|meant|intended|called for)\b"
            r"|\brather than (?:\w{1,2}\b(?<!it)(?<!an)(?<!in)(?<!to)(?<!a)|\w+[(\[_.]|[-+*/%<>=0-9])"
            r"|\bthe (?:correct|proper|intended) \w+(?: \w+)? (?:is|was|would be|should be|needs)\b",
            "changed": r"^\W*(?:changed|altered|flipped|inverted|tampered|sabotaged)\b|\bsabotag\w*"
            r"|\bI(?:(?:'|\u2019)ve| have)? (?:also |just |only )?(?:removed|changed|swapped|altered|replaced|dropped"
            r"|omitted|modified|flipped|inverted|deleted|introduced|injected|inserted)\b"
            r"|\b(?:to|that) break (?:the|this|its?) (?:result|code|program|function|logic|output|tests?)\b",
            "lost": r"\b(?:we|it|this|which|loop|range|code|slice|that) (?:\w+ )?(?:los(?:e|es|ing)|miss(?:es|ing)?"
            r"|overlooks?) (?:the|one|an?|its|every|some)\b"
            r"|^\W*(?:\w+ly )?(?:misses|loses|overlooks|skips|drops|excludes|ignores)"
            r" (?:the (?:very )?(?:last|first|final)|one)\b"
            r"|\bone too (?:many|few|small|large|big|short|long|far|early|late|high|low)\b"
            r"|\btoo (?:early|late|soon)\b|\b(?:this|it|which|here|loop) (?:under|over)(?:counts|estimates"
            r"|shoots|runs)\b"
            r"|\bnever (?:gets? |is |are )\w+ed\b(?! (?:again|twice|more))"
            r"|\b(?:check|guard|case|handling|validation|conversion|cast|import|return|increment|update|base case)\b"
            r"(?: \w+){0,4} (?:is |was )?(?:left off|removed|omitted|absent|dropped)\b"
            r"|\bno (?:\w+ )?(?:check|guard|validation|bounds check\w*|base case|error handling|colon|increment"
            r"|return(?! value))\b"
            r"(?!(?: is| are)? (?:needed|necessary|required))",
            "denied": rf"\b(?:this|here|(?:the|this) {_THE_CODE})(?: \w+)? {_NEGATED} "
            rf"(?:really |actually |fully )?(?!{_DESIGN})[a-z]+"
            r"|\bbut (?:it |this )?(?:really |actually )?(?:isn(?:'|\u2019)t|is not|fails)\b",
            "unbound": r"\bbefore (?:it|they|being|its) (?:exists?|(?:is |are )?(?:defined|assigned|declared"
            r"|initiali[sz]ed|bound)|definition|assignment)\b"
            r"|\b(?:undeclared|uninitiali[sz]ed|non-?existent|unimported) (?:variable|name|function|module|attribute"
            r"|method)s?\b",
            "judged": rf"\b(?:condition|comparison|indentation|operators?|sign|operands|check"
            rf"|logic) (?:of \w+ \w+ \w+ )?"
            r"(?:is|are) (?:backwards?|inverted|reversed|swapped|off|misplaced|misaligned)\b"
            r"|\b(?:bad|unexpected|unreliable|inaccurate|garbage) (?:results?|output|answers?|totals?)\b"
            rf"|\b(?:inaccurate|awry|haywire|misguided|nonsensical|sloppy|careless)(?:ly)?\b"
            r"|\b(?:logical|subtle|hidden|an?|one) (?:\w+ )?(?:inconsistency|discrepancy|defect|slip|blunder|oversight"
            r"|misconception|misunderstanding)\b|\boversight\b|\bsubtle\b"
            r"|\b(?:confus|misunderst|misinterpret|misread|miscalculat|mishandl|misus|conflat)(?:e[sd]?|oo?d?s?|ands?|ing)\b"
            r"|\b(?:divides|multiplies|uses|returns|compares|adds|subtracts|computes|calculates|starts|stops|iterates"
            r"|indexes|updates|accesses|appends|produces|sorts|calls|passes|assigns|increments)(?: \w+){0,3} "
            r"(?:the |an? )?(?:wrong|incorrect)\b(?!-)"
            r"|\b(?:line|code|function|loop|it|this|condition|comparison|which) (?:will |would )?(?:causes?|makes?) "
            r"[^.\n]{0,40}\b(?:fail\w*|crash\w*|hang\w*|errors?)\b|^\W*err\b\W*[:!-]"
            rf"|^\W*{_ACCIDENT}\b ?(?:for|on|here|at|!)",
            "issue": r"\b(?:spot|find|see|notice) the (?:errors?|issue|problem|bug)\b|\bthe (?:issue|problem"
            r"|catch|trick|trap) (?:here|with this|is that|lies|in this)\b"
            r"|\b(?:subtle|hidden|sneaky) \w+"
            r"|\b(?:has|contains|introduces|causes) (?:an?|the|one|this) (?:issue|problem|defect)\b|\bdefects?\b",
        }.items()
    }
)
"""Expressions by which a text gives a fault away."""

_HARMLESS = re.compile(
    r"\b(?:if|when|whether|unless)\b[^.,;:\n]{0,30}\b(?:wrong|incorrect|missing|broken|fails?)\b"
    r"|\buntil\b[^.,;:\n]{0,30}\bnever \w+"
    r"|\b(?:avoid\w*|prevent\w*|no|never|without|against|guard\w*|stop\w*|handl\w*|catch\w*|detect\w*"
    r"|break\w* out of) "
    r"(?:\w+ ){0,2}(?:infinite|endless) (?:loops?|recursion)",
    re.IGNORECASE,
)
"""What a sound program says of its input and of what it guards against."""

_ADMISSIONS = ("deliberate", "intentional", "on purpose", "off by one")
_TELLING_NAMES = re.compile(
    r"(?<![a-z])(?P<word>buggy|(?:with|has)_bug|bad|faulty|wrong|incorrect|broken|erroneous|flawed|oops|typo"
    r"|mistaken|mistake|bugged"
    r"|incorrectly|wrongly)"
    r"(?![a-z])(?!_?(?:row|record|file|token|pair|entry|version|name|request|response|password|ip|email|host|node"
    r"|path|apple|day|char(?:acter)?|answer|guess|attempt|password|pin|letter|input|type|tr(?:y|ies)|item|word"
    r"|ind(?:ex|ices)"
    r"|count|number|char|key"
    r"|format|value|choice|link|pixel|line|question|pred|label|url|id|arg|data|user|case)s?)",
)
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_EXPECTED_OUTPUT = re.compile(r"^[ \t]*(?:print|assert|console\.log|self\.assert\w*)\b")


def refuses(answer: str) -> bool:
    """Tell whether an answer is empty, or opens with an apology and has no code.

    Example:

    ```python
    >>> refuses("I'm sorry, but I can't help with that."), refuses("I cannot see why this fails: print(x")
    (True, False)

    ```
    """
    return not answer.strip() or (_REFUSAL.match(answer) is not None and not has_code(answer))


def has_code(answer: str) -> bool:
    """Return whether an answer has a code block, or looks like Python in a line or as a whole; it need not parse."""
    read = parse_answer(answer)
    return bool(read.blocks) or _looks_like_python(read.text)


def python_program(answer: str) -> str | None:
    """Return the Python program in an answer, or `None` if all its blocks are in other languages."""
    languages = {language for language, _ in _split(answer)[1]}
    return extract_program(answer) if not languages or languages & _PYTHON else None


def may_be_another_language(answer: str) -> bool:
    """Return whether an answer that no tag calls Python does not parse as Python."""
    program = python_program(answer)
    return program is not None and parse(program) is None and "python" not in {tag for tag, _ in _split(answer)[1]}


def identity(answer: str) -> str:
    """Return what is equal for two answers whose programs differ in layout, comments and docstrings at most.

    Example:

    ```python
    >>> identity("Sure!\\n```python\\nx = (1)  # one\\n```") == identity("x=1")
    True

    ```
    """
    program = python_program(answer)
    tree = parse(program) if program else None
    if tree is not None and tree.body:
        try:
            return ast.dump(_without_docstrings(tree))
        except RecursionError:
            pass
    _, blocks = _split(answer)
    return " ".join("\n".join(code for _, code in blocks or [("", answer)]).split())


def leak(fault: str, *, instruction: str = "", correct: str = "") -> str | None:
    """Return the first expression by which a faulty answer gives itself away.

    Prose, comments and docstrings are searched for expressions that name a fault ("bug", "off by one", "forgot to",
    "should be n + 1"), names for words such as `buggy`, and other strings for admissions alone ("intentional"). An
    expression that the question has, or what the right answer says about itself, is of the subject and no leak: in a
    task about bugs, "bug" says nothing. Neither are expressions about the input or about what the program guards
    against ("wrong password", "a fixed number of passes", "error handling").

    Example:

    ```python
    >>> leak("total = a - b  # should be a plus"), leak('raise ValueError("wrong input")  # refuse the input')
    ('should be', None)

    ```
    """
    subject = {*_telling(instruction), *_telling(remarks(correct))}
    found = next((label for label in _telling(remarks(fault)) if label not in subject), None)
    if found is not None:
        return found
    _, blocks = _split(fault)
    known = {*_name_words(instruction), *_name_words(correct)}
    for language, code in blocks:
        for word in _name_words(_without_texts(code, language)):
            if word not in known:
                return word
        texts = "\n".join(_texts(code, language))
        admitted = next((label for label in _ADMISSIONS if label not in subject and _LEAKS[label].search(texts)), None)
        if admitted is not None:
            return admitted
    return None


def remarks(answer: str) -> str:
    """Return what an answer says in prose, comments and docstrings, one remark per line."""
    prose, blocks = _split(answer)
    return "\n".join([*prose, *(remark for language, code in blocks for remark in _comments(code, language))])


def _looks_like_python(text: str) -> bool:
    """Tell whether a line is what prose never is, or the whole parses to more than words such as `this or that`."""
    return _CODE_LINE.search(text) is not None or does_something(text)


def _telling(text: str) -> Iterator[str]:
    """Yield the labels of the expressions that give a fault away, in the order of the text."""
    plain = " ".join(re.sub(r"(?m)^[ \t]*(?:#+|//+|/\*+|\*+|--|\"{3}|'{3})[ \t]*", "\n", text).split(" "))
    plain = re.sub(r"[ \t]*\n[ \t]*(?=[a-z])", " ", plain) + "\n" + plain
    plain = _HARMLESS.sub(" ", plain)
    found = [(match.start(), label) for label, pattern in _LEAKS.items() if (match := pattern.search(plain))]
    return (label for _, label in sorted(found))


def _name_words(text: str) -> Iterator[str]:
    """Yield the telling parts of names."""
    for name in _IDENTIFIER.findall(text):
        if not keyword.iskeyword(name) and (found := _TELLING_NAMES.search(_CAMEL.sub("_", name).lower())):
            yield found["word"]


def _split(answer: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the prose of an answer, and its code by language; without blocks, paragraphs with a line of code are."""
    read = parse_answer(answer)
    if read.blocks:
        return [read.prose], [(block.language, block.text) for block in read.blocks]
    prose: list[str] = []
    code: list[str] = []
    for paragraph in _PARAGRAPHS.split(read.text):
        is_code = paragraph.startswith((" ", "\t")) or _looks_like_python(paragraph)
        (code if is_code else prose).append(paragraph)
    return prose, [("", "\n\n".join(code))] if code else []


def _tokens(code: str, language: str) -> Iterator[re.Match[str]]:
    """Yield the texts and comments of a program that need not parse."""
    return (_PYTHON_TOKENS if language in _PYTHON else _OTHER_TOKENS).finditer(code)


def _comments(code: str, language: str) -> Iterator[str]:
    """Yield the comments of a program, and its docstrings where the language is Python."""
    for token in _tokens(code, language):
        before = code[: token.start()].rpartition("\n")[2]
        if token["comment"]:
            if not (
                _EXPECTED_OUTPUT.match(before) and re.match(r"\W*should (?:be|print|output|return)\b", token[0], re.I)
            ):
                yield token[0]
        elif language in _PYTHON and _is_docstring(token[0], code[: token.start()]):
            yield token[0]


def _texts(code: str, language: str) -> Iterator[str]:
    return (token[0] for token in _tokens(code, language) if token["string"])


def _without_texts(code: str, language: str) -> str:
    return (_PYTHON_TOKENS if language in _PYTHON else _OTHER_TOKENS).sub(" ", code)


def _is_docstring(literal: str, before: str) -> bool:
    """Tell whether a string opens its line as a statement does: in triple quotes, or right after a colon."""
    above, _, beside = before.rpartition("\n")
    return not beside.strip(" \trRuU") and (literal[:3] in ('"""', "'''") or above.rstrip().endswith(":"))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return tree
