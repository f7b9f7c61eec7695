"""New questions: parsing, generation, and the mix with old ones (stage 3 of a cycle).

The three levels and their prompts follow the paper. The number of questions, the choice of their parents, and the mix
of old and new ones are choices of this project.
"""

import ast
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal, TypeAlias

from ...generation import TextGenerator, parse_answer
from ...generation.answers import LANGUAGES
from ...generation.python_ast import BUILTINS, Statement, parse, statements_of
from .answers import has_code, refuses
from .config import CycleConfig
from .feedback import Feedback
from .prompts import INCOMPLETE, complete
from .records import LEVELS, Level, Question

__all__ = [
    "NewQuestions",
    "Reject",
    "check_question",
    "generate_questions",
    "mix_questions",
    "read_question",
]

Reject: TypeAlias = Literal["empty", "refused", "solution", "too_short", "too_long", "truncated", "no_request"]

_MADE = r"(?:created|new|rewritten|generated|revised|final)"
_KIND = r"(?:programming[ \t]+|coding[ \t]+)?(?:instruction|question|task|prompt|problem|exercise|challenge)"
_TITLE = rf"(?:the[ \t]+|my[ \t]+)?{_MADE}[ \t]+{_KIND}(?:[ \t]+(?:is|\d+))?"
_TAG = re.compile(
    rf"^[ \t]*(?:[*\[>_ \t]*#[#*\[>_ \t]*{_TITLE}[ \t]*(?:[#*\]_ \t]*:[#*_ \t]*|[#*\]_ \t]*$)"
    r"|[<\[](?:\w+_)?(?:instruction|task|question|prompt|problem)[>\]][ \t]*)",
    re.IGNORECASE | re.MULTILINE,
)
_FIRST_TAG = re.compile(rf"[*\[>_ \t]*{_TITLE}[ \t]*(?:[*\]_ \t]*:[*_ \t]*|[*\]_ \t]*$)", re.IGNORECASE | re.MULTILINE)
_NEXT_TAG = re.compile(
    r"^[*_ \t]*#(?:given|original|created|new|rewritten|sample|example|solution|answer|end|reason|reasoning"
    r"|rationale|explanation|difficulty|domain)\b[\w ]*#"
    r"|[<\[]/(?:\w+_)?(?:instruction|task|question|prompt|problem)[>\]][ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBERED = re.compile(
    rf"^[#*> \t]*(?:{_KIND}|option|variant)[ \t]*#?(?P<number>[1-9A-Z])[*]*[ \t]*(?:[.:)][* \t]*|[* \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_LISTED = re.compile(r"^[*_ \t]*(?P<number>[1-9])[.)][*_]*[ \t]+", re.MULTILINE)
_ASKS = re.compile(
    r"[\"*_]*(?:write|create|implement|given|design|develop|build|find|compute|generate|define|make|you are"
    r"|construct|convert)\b",
    re.I,
)
_ASKS_FOR_PROGRAM = re.compile(
    rf"{_ASKS.pattern}[^.\n]{{0,60}}\b(?:functions?|programs?|scripts?|class(?:es)?|code|algorithms?|methods?|quer(?:y|ies)"
    r"|applications?|apps?|games?|tools?|parsers?|simulators?|calculators?)\b|given\b",
    re.IGNORECASE,
)
_STEP = re.compile(
    r"\b(?:uses? both|(?:both|these) (?:classes|functions|programs|tables)|previous|above|joins? them"
    r"|steps? \d|(?:uses?|calls?) (?:it|them))\b",
    re.IGNORECASE,
)
"""Beginnings of separate questions in a list, and references between the steps of one."""
_OPENING = re.compile(
    rf"(?:(?:sure(?:[ \t]thing)?|certainly|of course|absolutely|okay|ok|great|alright|no problem"
    rf"|got it)\b[^\w\n]*(?=\s|$)[ \t]*)?(?:(?:here(?:\Ws|[ \t]+is|[ \t]+are|[ \t]+you[ \t]+go|[ \t]+it[ \t]+is)"
    rf"|(?:below|the[ \t]+following)[ \t]+(?:is|are)|this[ \t]+is)\b(?:[^\n:.]*\b(?:{_KIND}s?|one|ones)\b[^\n:.]*"
    rf"|[ \t]*)[:.!][ \t]*)?(?:\n+|(?<=[!.,:])[ \t]+|(?<=[!.:])$|(?<=:)(?=\S))",
    re.IGNORECASE,
)
_PROPOSAL = re.compile(
    r"(?:(?:how|what)[ \t]+about|try)(?:[ \t]+(?:this|the following))?(?:[ \t]+(?:one|task|challenge))?[ \t]*:\s*",
    re.IGNORECASE,
)
_CHINESE_OPENING = re.compile(
    r"(?:新的?|创建的?)?(?:指令|任务|题目|问题)[^\w\n]*[:\uff1a][^\w\n]*\s*|(?:好的|当然|没问题)?[^\w\n]*(?:这|以下)\w{0,20}(?:任务|题目?|问题"
    r"|指令)[^\w\n]+"
)
_MARK = re.compile(
    rf"#{{1,6}}[ \t]+|[-*>][ \t]+|-{{3,}}[ \t]*\n|\*{{0,2}}(?:{_KIND}(?:[ \t]+(?:statement|description|text))?"
    rf"|output)(?:\*{{0,2}}:\*{{0,2}}|\*{{0,2}}[ \t]*\n)|(?:python3?|java|javascript|c\+\+|rust|go)[ \t]*\n",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\(?1[.)][ \t]+(?:(?=[\s\S]*^[ \t]*1[.)][ \t])|(?![\s\S]*^[ \t]*2[.)][ \t]))", re.MULTILINE)
_CREATED = re.compile(
    r"[^\n:]{0,80}?\b(?:I|we)(?:['\u2019]ve|[ ]have|['\u2019]ll|[ ]will)?[ ]"
    r"(?:creat|writ|wrote|came[ ]up|made|propos|generat|design|compos|devis|prepar|suggest|formulat)"
    rf"[^\n:]{{0,80}}?\b(?:{_KIND}|one)[^\w\n]*:[^\w\n]*\n+",
    re.IGNORECASE,
)
_JSON_KEY = re.compile(rf"(?:(?:{_MADE})[ _]?)?{_KIND}(?:[ _]?(?:statement|description|text))?", re.IGNORECASE)
_REASONS = re.compile(
    rf"(?=[^\n]*\b(?:learners?|same (?:domain|type|difficulty|skills?)|(?:original|previous|mastered|solved) {_KIND}"
    rf"|(?:this|the) (?:new )?{_KIND} (?:is|keeps|stays|asks|takes|uses|tests|needs|requires|differs|builds|will))\b)"
    r"(?![^\n]*\b(?:write|implement|create|given)\b)[^\n]*\n[ \t]*\n",
    re.IGNORECASE,
)
"""First paragraph that is about the question and not part of it."""
_LATER_LABEL = re.compile(
    rf"^[#*_> \t]*(?:(?:new|next|another|original) )?{_KIND}[*_ \t]*:", re.IGNORECASE | re.MULTILINE
)
_FENCED_CODE = re.compile(
    r"\n[ \t]*\n(?:```|~~~)(?P<tag>[\w+#]*)[ \t]*\n(?P<code>(?:(?!```|~~~)[\s\S])*)\n(?:```|~~~)(?P<end>\s*\Z)?"
)
_PLAIN_CODE = re.compile(r"\n[ \t]*\n(?=(?:(?:from|import)[ ]\w|(?:def|class)[ ]\w+.*:[ \t]*\n|@\w+\n))")
_EXAMPLE_LINE = re.compile(r"\W*(?:input|output|example|sample|returns?|result|>>>|->)|.*(?:->|=>|→)", re.IGNORECASE)
_ASKS_FOR_CODE = re.compile(
    r"\b(?:write|implement|create|design|develop|build|define|construct|code)\b", re.IGNORECASE
)
_SPEAKS_OF_CODE = re.compile(
    r":\s*\Z|\b(?:below|following|above|existing|starter|skeleton|template|given(?! (?:by|as|in)\b)"
    r"|complet\w+|refactor\w*|re-?writ\w+"
    r"|optimi[sz]\w+|debug\w*|fix\w*|modif\w+|extend\w*|translat\w+|explain\w*|improv\w+|chang\w+"
    r"|(?:this|the) (?:code|function|program|snippet|class)|this (?:loop|script|query|output|example))\b",
    re.IGNORECASE,
)
_STARTER = re.compile(r"\byour (?:code|implementation|solution)\b|\btodo\b|\bfill in\b|_{3,}", re.IGNORECASE)
_LANGUAGE_NAMES = {
    "cpp": r"c\+\+|cpp",
    "csharp": "c#",
    "go": "go|golang",
    "javascript": "javascript|js|node(?:\\.js)?",
    "shell": "bash|shell",
    "sql": "sql|query",
}
_ACTS = re.compile(
    r"\breturn\b|=>|\b(?:printf?|println|puts|echo|Write(?:Line)?|log|Print\w*)\b|\bcout\b|^\s*(?:SELECT|WITH|UPDATE|DELETE)\b",
    re.IGNORECASE,
)
"""Code in languages other than Python that does something, unlike definitions of types and tables."""
_FENCE = re.compile(
    r"(```|~~~)(?:text|markdown|md|plaintext|txt|json)?[ \t]*\n(?P<text>(?:(?!\1)[\s\S])*?)\n[ \t]*\1[ \t]*"
)
_QUOTES = {
    '"': '"',
    "'": "'",
    "`": "`",
    "**": "**",
    "*": "*",
    "\u00ab": "\u00bb",
    "\u300c": "\u300d",
    "\u201e": "\u201c",
    "\N{LEFT DOUBLE QUOTATION MARK}": "\N{RIGHT DOUBLE QUOTATION MARK}",
}
_SOLUTION = re.compile(
    r"^<details>|^```\w*[ \t]*\n\s*(?:#|//)[ \t]*(?:solution|answer)\b|^[^\w\n]*(?:(?:an? |the |one )?(?:example "
    r"|sample |reference |expected |possible |model |proposed |correct |suggested )?(?:solution|answer)|implementation"
    r"|solution code)(?:[ \t]+in[ \t]+\w+)?[^\w\n]*(?:$|:)|^[^\w\n]*here(?:\Ws| is) (?:a|an|the|one"
    r"|my)(?: \w+){0,2} (?:solution|answer|implementation)\b",
    re.IGNORECASE | re.MULTILINE,
)
_LABEL_START = (
    r"^[#*_> \t\d.)-]*(?:(?:an?|the|my|your|sample|example|reference|expected|possible|model|proposed|correct"
    r"|suggested|full|short|python|optimal|official) )*(?:"
)
_LABEL_END = r")[*_ \t]*(?:\([^()\n]{0,40}\))?[*_ \t]*(?:[:\uff1a][*_]*|$)"
_CUT_LABEL = re.compile(
    rf"{_LABEL_START}(?:solutions?|answer|implementations?)"
    r"(?: (?:sketch|outline|code|idea|steps|key|approach|in \w+))?|rationale|justification|why\b[^:\n]{0,60}"
    r"|skills? (?:practi[sc]ed|trained|tested|required)|learning (?:goals?|objectives?|outcomes?)"
    r"|concepts? (?:tested|covered)|topics? covered|estimated time|what(?:'s| is) new|comments? for [^:\n]{0,30}"
    r"|notes? (?:for|to) the (?:teacher|instructor|grader)|teacher'?s? notes?|pseudo-?code|key ideas?|alternatively"
    r"|alternatives?|another (?:option|version|variant)|how to solve[^:\n]{0,30}|lösung\w*|antwort|erklärung"
    r"|begründung|solución|respuesta|explicación|réponse|corrigé|explication|soluzione|risposta|resposta|solução"
    rf"|решение|ответ|объяснение|答案|参考答案|解答|解法|解析|思路|解説|回答|정답|해설|풀이{_LABEL_END}",
    re.IGNORECASE | re.MULTILINE,
)
"""Labels of sections after a question that are not part of it."""
_REMARK_LABEL = re.compile(
    rf"{_LABEL_START}explanations?|approach|reasoning|discussion|walkthrough|analysis|evaluation(?: criteria)?|grading"
    rf"|answers|skills?|concepts?|topics?|tags|keywords|duration|differences?|changes?(?: made)?|说明{_LABEL_END}",
    re.IGNORECASE | re.MULTILINE,
)
"""Labels of sections that are part of the question unless they are about the exercise."""
_SECTION = re.compile(r"\s*(?:[^\n]*\S[^\n]*(?:\n|\Z))*")
_ABOUT_THE_EXERCISE = re.compile(
    rf"\b(?:same (?:domain|type|difficulty|skills?|length|level)|(?:this|given|original|previous) {_KIND}"
    r"|learners?(?! (?:must|should|have to|need to|implement)\b)"
    r"|students? (?:must|need|learn|practi[sc])\w*|practi[sc]es?|the solution|(?:time|space) complexity)\b",
    re.IGNORECASE,
)
_DIFFICULTY = re.compile(
    rf"{_LABEL_START}difficulty(?: level)?{_LABEL_END}\s*(?:\w+[- ])?(?:easy|medium|moderate|hard|same|beginner"
    r"|intermediate|advanced|\d+ ?/ ?\d+|[★⭐☆]+)(?: as [\w ]{3,20})?\W*$",
    re.IGNORECASE | re.MULTILINE,
)
_TEST_LABEL = re.compile(
    rf"{_LABEL_START}test ?cases?|unit ?tests?|tests|assertions|testfälle|测试用例{_LABEL_END}\s*"
    r"(?=(?:(?:```|~~~)\w*\s*)?(?:[^\n]*\n){0,9}?[ \t]*(?:self\.)?assert)",
    re.IGNORECASE | re.MULTILINE,
)
"""Labels of tests that are code; descriptions of cases are part of the question."""
_CODE_NAME = r"(?:(?:python|final) )?(?:responses?|outputs?|code|program|script|query|results?)"
_CODE_LABEL = re.compile(
    rf"^(?:#{{1,6}}[ \t]*[*_]*{_CODE_NAME}[*_]*[ \t]*(?:[:\uff1a][*_]*|$)|\*\*{_CODE_NAME}\*\*[ \t]*$"
    rf"|[*_]*{_CODE_NAME}[*_]*[ \t]*[:\uff1a][*_]*)\s*",
    re.IGNORECASE | re.MULTILINE,
)
"""Labels of sections that are not part of the question if they contain a program, or nothing."""
_CODE_IN_FENCE = re.compile(
    r"(?:```|~~~)(?P<tag>[\w+#]*)[ \t]*\n(?P<code>(?:(?!```|~~~)[\s\S])*?)(?:\n?(?:```|~~~)\s*)?\Z"
)
_TITLE_LABEL = re.compile(
    r"[#*_> \t]*(?:title|topic|domain|category|difficulty|level|subject|name|标题|titel|título|titre)[*_"
    r" \t]*[:\uff1a][^\n]*\n+(?=[#*_> \t]*(?:description|statement|task|problem)\b)",
    re.IGNORECASE,
)
_FOREIGN_KIND = (
    r"(?:programmier)?aufgabe(?:nstellung)?|anweisung|übung|tarea|ejercicio|instrucción|consigna|exercice|tâche|énoncé"
    r"|consigne|compito|esercizio|istruzione|consegna|tarefa|exercício|instrução|задач[аи]|задание|инструкция|упражнение"
)
_QUESTION_LABEL = re.compile(
    rf"[#*_> \t]*(?:(?:the |my |your )?(?:{_MADE} |next |similar |related )?(?:{_KIND}|assignment|description"
    rf"|statement|goal)|(?:neue |nueva |nuevo |nouvelle |nuova |nova |novo |новая |новое )?(?:{_FOREIGN_KIND}))"
    r"[*_ \t]*(?:\([^()\n]{0,60}\)[*_ \t]*(?=[:\uff1a]))?(?:[:\uff1a][*_]*[ \t]*\n*|[*_ \t]*\n+)",
    re.IGNORECASE,
)
_INTRODUCTION = re.compile(
    r"(?![^\n]*\b(?:given|consider|write|implement|create|you have|current|existing|schreibe?|erstelle|entwickle"
    r"|implementiere|escrib[ae]|cree|implementa|desarrolla|diseña|escreva|crie|implemente|scrivi|écri(?:s|vez)"
    r"|créez|implémente[rz]?|(?:на)?пиши\w*|создай\w*|реализуй\w*)\b)(?=[^\n:]*\b(?:here|new|next"
    rf"|another|following|below|fresh|different|hier|neue|folgende|voici|nouvel(?:le)?|aqu[ií]|nuev[ao]|siguiente|ecco"
    rf"|nuov[oa]|nova|novo|seguinte|новая|новое|вот)\b)[^\n:]{{0,120}}\b(?:{_KIND}|one|{_FOREIGN_KIND})\b"
    r"[^\n:]{0,60}[:\uff1a][*_ \t]*\n+"
    r"|[^\n:\uff1a]{0,40}(?:新しい|次の|以下の)[^\n:\uff1a]{0,12}(?:課題|問題|指示|タスク|お題)[^\n:\uff1a]{0,16}[:\uff1a。]\s*\n+"
    r"|[^\n:\uff1a]{0,40}(?:새로운|다음|아래)[^\n:\uff1a]{0,12}(?:과제|문제|지시|질문|명령)[^\n:\uff1a]{0,12}[:\uff1a.]\s*\n+",
    re.IGNORECASE,
)
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
_CANNOT = re.compile(
    r"\W*(?:I|we)\s+(?:can(?:not|['\u2019]t| not)|could(?: not|n['\u2019]t)|am unable|was unable|won['\u2019]t)\b",
    re.IGNORECASE,
)
_PRAISE = re.compile(
    r"\W*(?:great|good|nice|excellent|well done|congratulations|keep|awesome|bravo|thanks|thank you|that was)\b",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"\A(?:what|which|how|why|who|where|when|suppose)\b|\b(?:should|must|shall|needs? to|ha(?:s|ve) to|how to"
    r"|(?:task|goal|challenge) is|(?:how|what|why) (?:do|does|is|are|can|would|many|much))\b"
    r"|(?:\A|[.:;,!?()\"'`*>-]\s*|\n\s*|\b(?:and|then|please|you|\d+[.)])\s+)[\"'`*_(]*(?:write|create|implement|design"
    r"|develop|build|define|make|construct|code|find|compute|calculate|determine|return|print|output|read|generate"
    r"|convert|sort|count|check|remove|replace|simulate|given|solve|use|complete|explain|describe|identify|provide"
    r"|show|fix)\b|(?:\A|[.,:!?] |\n\s*|please )[\"'`*_(]*(?!(?:in|on|at|by|for|of|with|from|as|to|if|when|while|like"
    r"|since|because|after|before|during|under|over|into|than|that|all|both|it|not|only|but|and|or|so|even|about"
    r"|between|through|without|where|until)\b)[a-z]{3,}(?<!s)(?<!ed)(?<!ing) (?:a|an|the|all|each|every|any|two|three"
    r"|[0-9]+|your|this|these|if|whether|code)\b",
    re.IGNORECASE,
)
"""Requirements and imperatives: verbs of programming tasks, and words before an object."""
_NOT_OF_THE_TASK = re.compile(
    r"\W*(?:(?:I|we)(?:['\u2019]ll| will|['\u2019]m going to| am going to| plan to| would| want to)\b|let me\b"
    r"|let['\u2019]s see\b|(?:the|your|this) (?:solution|answer|code|program|implementation|approach)"
    r"(?: (?:above|below))? (?:is|was|has an?|looks|works|contains)\b)",
    re.IGNORECASE,
)
"""Beginnings of plans and of feedback, whose requirements are not those of a task."""
_LATER_REQUEST = re.compile(rf"(?:[.!:]\s+|\n\s*){_ASKS.pattern}", re.IGNORECASE)
_ENGLISH = re.compile(r"\b(?:the|of|is|are|and|with|that|to|it|they)\b", re.IGNORECASE)
_SENTENCE_BREAK = re.compile(r"[^\n]{4}[.!?] +[A-Z]")
_ENDS_WITHIN_A_SENTENCE = re.compile(
    r"\s(?:an?|the|of|to|and|or|but|with|by|at|from|as|than|which|if|when|at (?:most|least)|each|every|its|their"
    r"|between|after|before|must|should|\w+,)\Z"
)
_PROSE_WANTED = re.compile(
    r"(?:write|compose|draft) (?:an? |the )?(?:[\w-]+ ){0,3}(?:essay|poem|story|article|letter|report|paragraph|speech"
    r"|song|summary|blog post)\b"
    r"(?![\s\S]*\b(?:program|function|script|code|class|method|query|input|returns?|prints?)\b)",
    re.IGNORECASE,
)
_MIN_ENGLISH_WORDS = 2
_MAX_LAYERS = 20
_TO_THE_REQUESTER = re.compile(
    r"[^.?!\n]{0,200}\b(?:(?:could|can|would|will) you (?:please |also )?(?:tell me|clarify|confirm|specify|share"
    r"|let me|paste)|(?:do|would) you (?:want|like|prefer|mean)|(?:shall|may) I|should I (?:include|add|keep|make"
    r"|proceed|continue)|can I (?:help|assist))\b[^.?!\n]*[?]",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\n\s*+(?:(?:-{3,}|\*{3,})\s*+)?[(*_#> \t]*+(?:let me know\b|(?:have|enjoy|happy)\b[^\n.]{0,40}[!.]\s*\Z"
    r"|you(?:['\u2019]ve| have)? got this|take your time|if you(?:['\u2019]d| would)? (?:like|need|want"
    r"|prefer) (?:\w+ ){0,6}(?:solution|hint|another|help|answer|one)|\(?(?:I|we)(?:['\u2019]ve| have)? (?:kept|chose"
    r"|changed|made|wrote|designed|picked|asked|replaced|switched|stayed|avoided|focused|based|selected|created|varied"
    r"|moved)\b|(?:this|it) (?:exercise|task|one|challenge|question|problem)\b|(?:i )?hope (?:this|that|it)\b"
    r"|\(?same (?:domain|type|difficulty)\b|feel free\b|good luck\b|happy coding\b|would you like\b"
    r"|end of (?:the )?task"
    rf"|this (?:new )?{_KIND} (?:is|requires|comes|tests|stays|keeps|has|differs|focuses|involves|maintains|remains)\b"
    rf"|note: this (?:new )?{_KIND} (?:is|comes|stays|keeps|has|tests)\b|(?:explanation|rationale"
    rf"|reasoning|why this task)[* ]*:[^\n]*(?:skill|same|original|given))[\s\S]*\Z",
    re.IGNORECASE,
)
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){9,}")
_LONG_RUN = re.compile(r"([ \t#*_>])\1{80,}")
_MAX_LABELS = 50
_RULE_AT_END = re.compile(r"\s*\n[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*\Z")
_PLACEHOLDER = re.compile(r"\W*(?:n/?a|none|null|\[[^\]\n]{0,60}\])\W*", re.IGNORECASE)

_OPENINGS = (
    *(_OPENING, _PROPOSAL, _CREATED, _CHINESE_OPENING, _TITLE_LABEL),
    *(_QUESTION_LABEL, _INTRODUCTION, _REASONS, _MARK, _NUMBER),
)


def read_question(answer: str) -> str:
    r"""Return the question in a text of the teacher, without thoughts, tags, titles, quotes and remarks around it.

    Of several questions, the first is returned. Solutions after the question and its number are removed.

    Example:

    ```python
    >>> read_question("Sure, here it is:\n\n#Created Instruction#:\n1. \"Sort a list of names.\"\n\nSolution: sort()")
    'Sort a list of names.'

    ```
    """
    text = _LONG_RUN.sub(lambda run: run[0][:80], parse_answer(answer).text.strip())
    text = _BLANK_LINES.sub("\n" * 10, text)
    for _ in range(_MAX_LAYERS):
        if (inner := _without_outer_layer(text)) == text:
            break
        text = inner
    return text


def check_question(question: str, *, min_chars: int, max_chars: int) -> Reject | None:
    """Return the reason why a text is not a usable question, or `None` if it is usable.

    Example:

    ```python
    >>> check_question("Add two numbers. Solution: print(a + b)", min_chars=10, max_chars=100)
    >>> check_question("Add two numbers.\\n\\nSolution:\\nprint(a + b)", min_chars=10, max_chars=100)
    'solution'

    ```
    """
    if not question or _PLACEHOLDER.fullmatch(question):
        return "empty"
    if refuses(question) or _CANNOT.match(question):
        return "refused"
    if _SOLUTION.search(question) or question.startswith("```") or (has_code(question) and parse(question)):
        return "solution"
    if _PRAISE.match(question) and not _ASKS_FOR_CODE.search(question):
        return "no_request"
    if _has_no_request(question):
        return "no_request"
    if _ENDS_WITHIN_A_SENTENCE.search(question):
        return "truncated"
    if len(question) + 2 * len(_IDEOGRAPH.findall(question)) < min_chars:
        return "too_short"
    return "too_long" if len(question) > max_chars else None


def _has_no_request(question: str) -> bool:
    """Return whether an English text does not request a program, but nothing, prose, or details of the request."""
    if _PROSE_WANTED.match(question):
        return True
    asked = _TO_THE_REQUESTER.sub("", question).strip()
    if not asked or len(_ENGLISH.findall(asked)) < _MIN_ENGLISH_WORDS:
        return not asked
    is_short = asked == question and _SENTENCE_BREAK.search(asked) is None
    if is_short or "?" in asked:
        return False
    if _NOT_OF_THE_TASK.match(asked):
        return _LATER_REQUEST.search(asked) is None
    return _REQUEST.search(asked) is None


def _without_outer_layer(text: str) -> str:
    """Remove one layer: a tag and the text before it, other questions, a solution, an opening, or quotes."""
    if fence := _FENCE.fullmatch(text):
        return fence["text"].strip()
    if text.startswith("{") and (value := _in_json(text)) is not None:
        return value
    if text.startswith(">") and all(line.startswith(">") for line in text.splitlines()):
        return re.sub(r"(?m)^>[ ]?", "", text).strip()
    if tag := _TAG.search(text):
        return _TAG.split(_NEXT_TAG.split(text[tag.end() :].strip())[0])[0].strip()
    if tag := _FIRST_TAG.match(text):
        following = re.compile("^" + re.escape(tag[0].strip()), re.MULTILINE)
        return following.split(text[tag.end() :])[0].strip()
    if (following_tag := _NEXT_TAG.search(text)) and following_tag.start() > 0:
        return text[: following_tag.start()].strip()
    if (solution := _SOLUTION.search(text)) and solution.start() > 0:
        return text[: solution.start()].strip()
    if (cut := _cut_label(text)) is not None:
        return text[:cut].strip()
    for label in islice(_REMARK_LABEL.finditer(text), _MAX_LABELS):
        section = _SECTION.match(text, label.end())
        if (
            section
            and label.start() > 0
            and _ABOUT_THE_EXERCISE.search(section[0])
            and not _is_in_examples(text, label)
        ):
            return f"{text[: label.start()].rstrip()}\n\n{text[section.end() :].lstrip()}".strip()
    for pattern in (_CLOSING, _RULE_AT_END):
        if (closing := pattern.search(text)) and closing.start() > 0:
            return text[: closing.start()].strip()
    if (first := _first_of_several(text)) is not None:
        return first
    if (solution_start := _solution_start(text)) is not None:
        return text[:solution_start].strip()
    for pattern in _OPENINGS:
        if (opening := pattern.match(text)) and 0 < opening.end() < len(text):
            return text[opening.end() :].strip()
    for opening_quote, closing_quote in _QUOTES.items():
        inside = text.removeprefix(opening_quote).removesuffix(closing_quote)
        is_quoted = len(text) - len(inside) == len(opening_quote) + len(closing_quote)
        if is_quoted and closing_quote not in inside:
            return inside.strip()
    return text


def _in_json(text: str) -> str | None:
    """Return the question in a JSON object, or `None` if there is none."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    found = [item for key, item in value.items() if _JSON_KEY.fullmatch(key) and isinstance(item, str)]
    return found[0].strip() if len(found) == 1 else None


def _cut_label(text: str) -> int | None:
    """Return the start of the first section that is not part of the question, such as a second question.

    Explanations of examples are part of the question.
    """
    asks = _ASKS_FOR_CODE.search(text)
    for label in islice(_LATER_LABEL.finditer(text), _MAX_LABELS):
        following = text[label.end() :].strip("*_ \t\n")
        if asks and asks.start() < label.start() and (not following or _ASKS.match(following)):
            return label.start()
    labels = (islice(pattern.finditer(text), _MAX_LABELS) for pattern in (_CUT_LABEL, _TEST_LABEL, _DIFFICULTY))
    for label in sorted(chain.from_iterable(labels), key=re.Match.start):
        if label.start() > 0 and not _is_in_examples(text, label):
            return label.start()
    return None


def _is_in_examples(text: str, label: re.Match[str]) -> bool:
    """Return whether the line above a label is that of an example."""
    return _EXAMPLE_LINE.match(text[: label.start()].rstrip().rpartition("\n")[2]) is not None


def _solution_start(text: str) -> int | None:
    """Return the start of code that solves the question: in a fence, as paragraphs at the end, or after a label."""
    for label in islice(_CODE_LABEL.finditer(text), _MAX_LABELS):
        fence = _CODE_IN_FENCE.match(text, label.end())
        tag, code = (fence["tag"], fence["code"]) if fence else ("", text[label.end() :])
        if label.start() > 0 and (not code.strip() or _solves(text[: label.start()], code, tag, is_last=True)):
            return label.start()
    for block in _FENCED_CODE.finditer(text):
        if _solves(text[: block.start()], block["code"], block["tag"], is_last=block["end"] is not None):
            return block.start()
    plain = _PLAIN_CODE.search(text)
    return plain.start() if plain and _solves(text[: plain.start()], text[plain.start() :]) else None


def _solves(question: str, code: str, tag: str = "", *, is_last: bool = False) -> bool:
    """Return whether the question asks for code, and the code is a function with a body or, at the end, a program.

    Code of which a part is to be written is not a solution.
    """
    if not _ASKS_FOR_CODE.search(question) or _SPEAKS_OF_CODE.search(question) or _STARTER.search(code):
        return False
    language = LANGUAGES.get(tag.lower(), tag.lower())
    if language not in ("", "python"):
        names = _LANGUAGE_NAMES.get(language, language)
        asked = re.search(rf"(?<!\w)(?:{names})(?!\w)", question, re.IGNORECASE)
        return is_last and asked is not None and _ACTS.search(code) is not None
    tree = parse(code)
    if tree is None:
        return False
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    has_body = any(
        not isinstance(statement, ast.Pass | ast.Raise)
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for function in functions
        for statement in function.body
    )
    return has_body or (is_last and _is_script(statements_of(code, tree)))


def _is_script(statements: Sequence[Statement]) -> bool:
    """Return whether statements do more than define, and need no names that they do not bind."""
    bound = BUILTINS.union(*(statement.binds for statement in statements))
    acts = (each.is_certainly_code and not each.is_import and not each.is_definition for each in statements)
    return any(acts) and all(statement.needs <= bound for statement in statements)


def _first_of_several(text: str) -> str | None:
    """Return the first of several numbered questions, or `None` if there is only one."""
    titles = list(_NUMBERED.finditer(text))
    if [title["number"].upper() for title in titles[:2]] in (["1", "2"], ["A", "B"]):
        return text[titles[0].end() : titles[1].start()].strip()
    items = list(_LISTED.finditer(text))
    if [item["number"] for item in items[:2]] != ["1", "2"] or items[0].start():
        return None
    ends = [*(item.start() for item in items[1:]), len(text)]
    texts = [text[item.end() : end].strip() for item, end in zip(items, ends, strict=True)]
    return texts[0] if all(map(_ASKS_FOR_PROGRAM.match, texts)) and not any(map(_STEP.search, texts)) else None


@dataclass(frozen=True, slots=True)
class NewQuestions:
    """New questions of a cycle, easy ones first, with the number of requested questions by level.

    `dropped` is the number of dropped completions by level and reason, such as `"hard/refused"`.
    """

    questions: list[Question] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def generate_questions(
    feedback: Sequence[Feedback],
    questions: Sequence[Question],
    teacher: TextGenerator,
    *,
    cycle: int,
    config: CycleConfig | None = None,
    seed: int = 0,
) -> NewQuestions:
    """Generate new questions from those of the last cycle, by their levels.

    As in the paper, the teacher derives another task of the same domain from an easy question, and a task of the same
    domain and type from a medium or hard one. The id of a new question consists of the id of its parent, the cycle and
    a number. If a level has fewer questions than requested, several are derived from each.

    Args:
        feedback (`Sequence[Feedback]`), questions (`Sequence[Question]`):
            Feedback with the levels of the questions, and the questions of the last cycle.
        teacher (`TextGenerator`), cycle (`int`):
            Teacher that writes the questions, and number of the cycle.
        config ([`CycleConfig`], *optional*):
            Prompts, sampling parameters, and number and lengths of new questions.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice of parents.

    Raises:
        ValueError: If feedback refers to an unknown question, or a new id exists already.
        GenerationError: If the teacher fails.

    Example:

    ```python
    >>> from trl_akd.generation import Completion
    >>> from trl_akd.iterkd.cycle.feedback import StaticView
    >>> class Teacher:
    ...     def generate(self, prompts, **settings):
    ...         return [[Completion("#Created Instruction#: Sort a list of names.", -0.1, "stop", 9)] for _ in prompts]
    >>> feedback = [Feedback("sort", "x = 1", None, StaticView(True, "python"), None, 0.0, "hard")]
    >>> questions, config = [Question("sort", "Sort numbers.")], CycleConfig(new_hard=1)
    >>> found = generate_questions(feedback, questions, Teacher(), cycle=1, config=config)
    >>> found.questions
    [Question(id='sort/1.0', instruction='Sort a list of names.', ..., origin='hard', parent='sort')]

    ```
    """
    config = config or CycleConfig()
    prompts = config.teaching_prompts
    known = {question.id: question for question in questions}
    requested = [
        (level, parent, f"{parent.id}/{cycle}.{number}")
        for level in LEVELS
        for parent, number in _parents(_of_level(feedback, known, level), config.new_questions(level), seed, cycle)
    ]
    if taken := [name for _, _, name in requested if name in known]:
        raise ValueError(f"`questions` already has the id {taken[0]!r} of a new one; give another `cycle`.")
    texts = [prompts.for_question(parent.instruction, level) for level, parent, _ in requested]
    completions = complete(teacher, texts, config.sampling(cycle))
    new = NewQuestions(asked=Counter(level for level, _, _ in requested))
    for (level, parent, name), completion in zip(requested, completions, strict=True):
        text = read_question(completion.text)
        reason = check_question(text, min_chars=config.min_question_chars, max_chars=config.max_question_chars)
        if completion.finish_reason != "stop":
            reason = INCOMPLETE[completion.finish_reason]
        if reason is None:
            new.questions.append(Question(name, text, origin=level, parent=parent.id))
        else:
            new.dropped[f"{level}/{reason}"] += 1
    return new


def mix_questions(
    seeds: Sequence[Question],
    new: Sequence[Question],
    levels: Mapping[str, Level],
    config: CycleConfig,
    *,
    seed: int = 0,
) -> list[Question]:
    """Choose the questions of the next cycle from old and new ones, in their order, old ones first.

    Each question is taken from the level that is furthest below its share and has questions left. The shares are exact
    if there are enough questions of each level, and the size is reached if there are enough in total.

    Args:
        seeds (`Sequence[Question]`), new (`Sequence[Question]`):
            Old questions, and new ones, which have the level of their parents.
        levels (`Mapping[str, Level]`):
            Levels of the old questions by id.
        config ([`CycleConfig`]):
            Number of questions, fraction of old ones, and relative weights of the levels.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice within a level.

    Raises:
        ValueError: If an old question has no level, or a new one no parent.

    Example:

    ```python
    >>> old = [Question("a", ""), Question("b", ""), Question("c", "")]
    >>> new = [Question("a/1.0", "", origin="easy"), Question("b/1.0", "", origin="hard")]
    >>> levels = {"a": "easy", "b": "hard", "c": "hard"}
    >>> config = CycleConfig(questions_per_cycle=3, old_share=0.3)
    >>> [question.id for question in mix_questions(old, new, levels, config)]
    ['c', 'a/1.0', 'b/1.0']

    ```
    """
    old_levels = [_level(question, levels.get(question.id), "old") for question in seeds]
    new_levels = [_level(question, None if question.origin == "seed" else question.origin, "new") for question in new]
    weights = {level: config.mix_weight(level) for level in LEVELS}
    size = config.questions_per_cycle
    old = _choose(seeds, old_levels, round(size * config.old_share), weights, seed)
    added = _choose(new, new_levels, size - len(old), weights, seed)
    old = _choose(seeds, old_levels, size - len(added), weights, seed)
    return [*old, *added]


def _of_level(feedback: Sequence[Feedback], known: Mapping[str, Question], level: Level) -> list[Question]:
    for item in feedback:
        if item.question_id not in known:
            raise ValueError(f"`feedback` refers to {item.question_id!r}, which is not among `questions`.")
    return [known[item.question_id] for item in feedback if item.level == level]


def _parents(questions: Sequence[Question], count: int, seed: int, cycle: int) -> list[tuple[Question, int]]:
    """Return `count` questions in random order, each with the number of its earlier occurrences."""
    if not questions:
        return []
    ordered = sorted(questions, key=lambda question: _random_key(question, seed, cycle))
    return [(ordered[number % len(ordered)], number // len(ordered)) for number in range(count)]


def _level(question: Question, level: Level | None, age: str) -> Level:
    if level is None:
        raise ValueError(f"the {age} question {question.id!r} has no level; leave it out or give it one.")
    return level


def _choose(
    questions: Sequence[Question], levels: Sequence[Level], count: int, weights: Mapping[Level, float], seed: int
) -> list[Question]:
    """Choose at most `count` questions by the relative weights of the levels."""
    pools: dict[Level, list[int]] = {level: [] for level in LEVELS if weights[level]}
    for index in sorted(range(len(questions)), key=lambda index: _random_key(questions[index], seed)):
        if levels[index] in pools:
            pools[levels[index]].append(index)
    taken: dict[Level, int] = dict.fromkeys(pools, 0)
    for _ in range(count):
        available = [level for level in pools if taken[level] < len(pools[level])]
        if not available:
            break
        taken[min(available, key=lambda level: (taken[level] + 1) / weights[level])] += 1
    chosen = sorted(index for level, pool in pools.items() for index in pool[: taken[level]])
    return [questions[index] for index in chosen]


def _random_key(question: Question, *seed: int) -> float:
    """Return a random number that depends only on seed and question."""
    return random.Random(f"{seed}:{question.id}").random()
