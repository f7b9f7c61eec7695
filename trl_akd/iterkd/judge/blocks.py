"""Parsing of blocks of scores in the text of a judge: in lines, tables, sentences and JSON."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from .markup import plain_text
from .rubric import MAX_TOTAL, RULE_NUMBERS, RULES, Refusal, refusal_of
from .values import (
    AMOUNT,
    DIGITS,
    JSON_KEYS,
    LABEL,
    NAMES,
    NUMBER,
    QUANTITY,
    REFERENCE,
    RULE,
    RULE_KEYS,
    SCORE_WORD,
    UNIT,
    checked_score,
    read_cell,
    read_value,
    read_value_after_label,
    rule_of_key,
    rule_of_label,
    rule_of_name,
    split_numbers,
    to_number,
)

__all__ = ["FINAL", "Block", "Lines", "amendment", "read_json"]

_MAX_JSON = 50
_MAX_JSON_DEPTH = 20
_BULLET = re.compile(r"[ \t>•·◦▪‣+\u2013\u2014-]*+(?>(?:\([ ]*[xX ]?[ ]*\)[ ]+)?)")
_HEADING = re.compile(
    rf"(?P<mark>(?:[\w'-]+[ ]+){{0,4}}){SCORE_WORD}(?:[ ]+(?:by|per|of|for)[ ]+(?:each[ ]+)?rules?)?"
    r"(?P<note>[ ]*\([^()]{0,60}\))?[ ]*(?P<end>[:=]|$)(?P<rest>.*)",
    re.IGNORECASE,
)
FINAL = re.compile(
    r"\b(?:final|revis|correct(?:ed|ion)|updat|adjust|amend|reconsider|second thought|on reflection|actually"
    r"|instead(?! of)|after review|new scores?|erratum|wait)|最终|最終|修正|更正|최종|definitiv|endgültig",
    re.IGNORECASE,
)
_SUM = re.compile(
    r"(?:the[ ]|my[ ])?(?:final[ ]|overall[ ]|grand[ ])?(?:total|sum|overall|gesamt|总分|總分|总计|合计"
    r"|合計|총점|итого)(?:[ ]?(?:score|points?"
    r"|得分|is))?[ ]*(?:\([^()]{0,40}\))?[ ]*(?:[:=|,]|is\b)[ |:]*(?:[0-9.+ ]+=[ ]*)?(?P<total>[0-9]+(?:[.,][0-9]+)?)"
    r"(?:[ ]*(?:/|out[ ]of|of)[ ]*(?P<scale>[0-9]+(?:\.[0-9]+)?))?",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?;])(?<!\brule [0-9]\.)[ ]+|(?<=[\u3002\uff1b])", re.IGNORECASE)
_CORRECTION = re.compile(
    r"^\W*(?:(?:hmm+|ah|oh|so|and|but|well|ok(?:ay)?)\b\W*)*(?:correct(?:ion|ed|ing)|revis(?:ion|ed|ing)"
    r"|amend(?:ment|ed|ing)|(?:up)?on (?:\w+ )?reflection|(?:(?:on|with) )?second thoughts?|(?:on )?reconsider\w*|wait"
    r"|sorry|oops|errat\w+|(?:edit|updated?)(?=[ ]*[:,\u2013\u2014-]| rule| after| on| scores?))\b|\bactually\b"
    r"|改为|更正|修正",
    re.IGNORECASE,
)
"""Words by which a judge introduces a correction."""
_CHANGING = (
    r"(?:chang|lower|rais(?!\w* (?:an? )?\w*(?:error|exception))|reduc|adjust|updat|revis|amend|increas|decreas"
    r"|downgrad|upgrad|correct|deduct|mak|set|drop|bump|cut)(?:e|es|p?ing|ting|s)?"
)
_OWN_CHANGE = re.compile(
    r"\bI(?:['\u2019](?:ll|m))?[ ](?:(?:now|therefore|thus|hence|hereby|also|then|still|will|shall|must|am|have|need"
    rf"|want|decided|going|to)[ ])*{_CHANGING}\b"
    rf"|{REFERENCE.pattern}(?:[ ]*\([^()]*\))?[ ](?:therefore[ ])?should[ ](?:(?:now|rather|really|actually|instead"
    rf"|only"
    r"|therefore)[ ])*(?:be|get|receive)[ ](?:(?:only|at|to|an?|changed|lowered|raised|reduced|set)[ ])*"
    r"(?:[0-9.]+|half|zero|one|two)(?![\w-])",
    re.IGNORECASE,
)
"""Words by which a judge changes a score in its own voice."""
_CONDITION = re.compile(
    r"^\W*(?:if|had|were|once|unless|when|as soon as)\b(?!.*\b(?:so|hence|thus|therefore)\b)", re.IGNORECASE
)
_WOULD_CHANGE = re.compile(rf"\bI(?: would|['\u2019]d)(?: \w+)?? {_CHANGING}\b", re.IGNORECASE)
_HYPOTHETICAL = re.compile(
    r"\b(?:would|could|might|can|may|consider(?:ed|ing)|tempted|inclined|hesitated|I thought (?:of|about)|argue)\b"
    r"|\b(?:by|for|about) \w+ing\b|(?<!\bhave)(?<!\bneed)(?<!\bwant)(?<!\blike)(?<!\bdecided)(?<!\bgoing) to (?:raise"
    r"|lift|bring|get|improve|increase|reach|lower|reduce|change|make|set|move|push|drop)\b|^\W*to (?!be\b)[a-z]+\b"
    r"|^\W*(?:\w+ ){0,2}(?:suggest\w*|improvements?|advice|hints?|tips?|recommend\w*|next steps?|todo)\b"
    rf"|(?:\b(?:not|never)|n['\u2019]t) (?:\w+ )?{_CHANGING}(?:d|ed|red)?\b|^\W*(?!(?:{_CHANGING}|having|looking"
    rf"|thinking|considering)\b)[a-z]+ing\b",
    re.IGNORECASE,
)
"""Words about scores of a better answer, or considered and rejected."""
_REPORTED = re.compile(
    r"(?:\b(?:I|was|were|is|are|been|be)[ ](?:\w+[ ]){0,2}?|:[ ]*)(?:changed|lowered|raised|reduced|adjusted|updated"
    r"|revised|amended|increased|decreased|downgraded|upgraded|deducted|dropped|bumped|(?:took|taken)[ ]off)\b"
    r"|\b(?:was|were|is|are|been)[ ](?:set|cut)\b",
    re.IGNORECASE,
)
"""Words by which a judge explains a score, such as "was reduced"."""
_REQUESTED = re.compile(
    rf"\b(?:{_CHANGING}|tak(?:e|ing) (?:off|away)|instead(?! of)|deserves?|worth|should have been"
    r"|(?:should|must|has to|have to|needs? to|ought to) be)\b",
    re.IGNORECASE,
)
_LEADING_CHANGE = re.compile(rf"^\W*(?:please\W+)?{_CHANGING}\b", re.IGNORECASE)
_POINTS_CHANGED = re.compile(
    r"\b(?:deduct|tak(?:e|ing) off|lower|rais)(?:e|ing|ed)?[ ](?:\w+[ ]){0,3}(?:points?|scores?|marks?)\b", re.I
)
_UNSURE = re.compile(
    r"\b(?:not (?:quite |entirely )?sure|unsure|could (?:also )?be|might be|may be|not be|maybe|perhaps|possibly"
    r"|arguably)\b.*(?:[0-9]|\b(?:lower|higher|less|more|fewer|half|zero|points?)\b)"
    rf"|{REFERENCE.pattern}[ ](?:is|was|seems|looks)[ ](?:\w+[ ])?too[ ](?:high|low|generous|lenient|harsh|strict)\b",
    re.IGNORECASE,
)
_BETTER_ANSWER = re.compile(r"^\W*with\b|\b(?:by \w+ing|with (?:an?|some|more|better|proper))\b", re.IGNORECASE)
_LESS = re.compile(r"\b(?:lower|higher|less|more|fewer|worse|better|reduced|increased|raised|lowered)\b[ .!]*$", re.I)
_SPECIFIED = re.compile(rf"\b(?:points?|scores?)\b|\bby[ ]+{AMOUNT}\b|[0-9]", re.IGNORECASE)
_NEW_VALUE = re.compile(
    r"(?:\b(?:to|be|is|becomes?|gets?|got|receives?|deserves?|worth|at|was)\b|\bas\b(?=[ ][0-9])|[:=]|->|→|改为|为)"
    rf"[ ]*(?:{QUANTITY}[ ]*(?:->|→|=>|to\b)[ ]*)?(?:(?:only|an?)[ ])*(?P<value>{QUANTITY}|zero|half|one|two"
    r"|no(?=[ ]points?))(?![\w-]|[ ](?:points?[ ])?(?:too|lower|higher|less|more|off)\b)",
    re.IGNORECASE,
)
_PER_RULE = re.compile(
    rf"(?<![\w.])(?P<score>{AMOUNT})(?:[ ]*(?:/|out[ ]of)[ ]*(?P<scale>{QUANTITY}))?(?:[ ]an?\b)?[ ]*{UNIT}?[ ]+(?:for"
    rf"|on|in|under|to)[ ]+(?P<label>{RULE}[ ]*{NUMBER}|(?:the[ ])?[a-z]+(?:[ ][a-z]+)?)",
    re.IGNORECASE,
)
_BARE_LIST = re.compile(
    rf"[(\[]?[ ]*(?P<values>{QUANTITY}(?:[ ]*[,;/|+ ][ ]*{QUANTITY}){{4}})[ ]*[)\]]?[ .]*(?:=.*|$)"
)
_BETWEEN = re.compile(
    rf"[ ]*[,;./|][ ]*(?:and[ ]+)?(?=(?:{RULE}|and )[ ]*#?{NUMBER})|[ ]+(?={RULE}[ ]*#?{NUMBER}[ ]*[:=(])", re.I
)
_MAXIMUM_ROW = re.compile(r"(?:max|weight|possible|available|out of|worth|满分|滿分|満点|höchst)", re.IGNORECASE)
_LABELED = re.compile(r"[^:=]+[:=][^:=]*[0-9][^:=]*")
_NAMED_VALUES = tuple(
    re.compile(
        rf"(?:{name.pattern})[^0-9,;]{{0,25}}?(?:[ :=]|[(](?={QUANTITY}/))"
        rf"(?P<score>{QUANTITY})(?:/(?P<scale>{QUANTITY}))?"
        r"(?=[ ]*(?:[,;.)]|and\b|\(|$))"
    )
    for name in NAMES
)
_MAPPED = re.compile(rf"(?<![\w.])([1-9])[ ]*(?:→|->|=>|:)[ ]*({QUANTITY})(?=[ ]*(?:[,;.)}}|]|$))")
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|or|about|roughly|probably|between|might|could)\b|[?~\u2248]|[0-9][ ]?[-\u2013][ ]?[0-9]",
    re.IGNORECASE,
)
_SCORE_FIRST = re.compile(
    rf"[(\[]?[ ]*(?P<score>{QUANTITY})(?:[ ]*/[ ]*(?P<scale>{QUANTITY}))?(?:[ ]*{UNIT})?[ ]*"
    r"(?:[)\]][ ]*(?::|[\u2013\u2014-]+)?|:|[\u2013\u2014-]+)[ ]+(?P<name>[^\W\d_]+(?:[ ][^\W\d_]+){0,3})",
    re.IGNORECASE,
)
_CSV_HEAD = re.compile(
    r"[ ]*(?:rules?|criteri(?:on|a)|names?|categor(?:y|ies)|items?|#)[ ]*"
    rf"(?P<separator>[\t;,])(?:[^\t;,]*(?P=separator))*?[ ]*{SCORE_WORD}[ ]*(?:$|(?P=separator))",
    re.IGNORECASE,
)
_EXPLANATION = re.compile(
    r"analys|reason|justif|rationale|expla|thought|strength|weakness|feedback|suggest|improve|summary|分析|理由|说明",
    re.I,
)


@dataclass
class Block:
    """Scores of one judgement in the lines from `start` to before `end` of a text."""

    start: int
    end: int
    over: str = ""  # heading and the line above
    headed: bool = False
    prose: bool = False  # scores in sentences
    scores: dict[int, float | Refusal] = field(default_factory=dict)  # by rule, or the reason for which there is none
    total: float | None = None  # as the judge gives it
    analysis: list[str] = field(default_factory=list)  # texts of a JSON object before its scores
    explanations: list[str] = field(default_factory=list)  # those after its scores that explain them
    remarks: list[str] = field(default_factory=list)  # others after its scores

    @property
    def numbers(self) -> dict[int, float]:
        """Scores that are numbers."""
        return {rule: score for rule, score in self.scores.items() if isinstance(score, float)}

    @property
    def complete(self) -> bool:
        """Whether exactly the five rules have a score."""
        return set(self.scores) == set(RULE_NUMBERS) == set(self.numbers)

    @property
    def has_full_marks(self) -> bool:
        """Whether every rule has its maximum."""
        return self.numbers == {number: rule.maximum for number, rule in enumerate(RULES, 1)}


def amendment(line: str, scores: Mapping[int, float]) -> dict[int, float] | str | None:
    """Return the scores that a remark changes, a text if this is unclear, or `None` if the scores stand.

    Only the judge's own corrections change scores: neither advice, nor reasons, nor changes that it rejects. A reason
    that contradicts a score is unclear.
    """
    changed: dict[int, float] = {}
    is_correction = False
    for sentence in _SENTENCE_END.split(line):
        is_correction = is_correction or _CORRECTION.search(sentence) is not None
        references = list(REFERENCE.finditer(sentence))
        if _is_unclear(sentence, is_correction and bool(references)):
            return sentence
        is_own = _OWN_CHANGE.search(sentence) is not None
        if not is_own and (_CONDITION.search(sentence) or _HYPOTHETICAL.search(sentence)):
            continue
        is_report = _REPORTED.search(sentence) is not None
        if not references and _POINTS_CHANGED.search(sentence) and not is_report:
            return sentence
        if not (is_correction or is_own or is_report or _REQUESTED.search(sentence)):
            continue
        for reference, following in zip(references, [*references[1:], None], strict=False):
            number = DIGITS.get(reference["number"].casefold(), 0)
            tail = sentence[reference.end() : following.start() if following else len(sentence)]
            values = {checked_score(number, found["value"]) for found in _NEW_VALUE.finditer(tail)}
            score = values.pop() if len(values) == 1 else None
            if (is_correction or is_own) and not is_report:
                if not isinstance(score, float):
                    return sentence
                changed[number] = score
            elif values or (score is not None and score != scores.get(number)):
                return sentence
            elif score is None and (
                number not in RULE_NUMBERS or scores.get(number) == RULES[number - 1].maximum
                if is_report
                else _LESS.search(tail) or _SPECIFIED.search(tail) or _LEADING_CHANGE.search(sentence)
            ):
                return sentence
    return changed or None


def _is_unclear(sentence: str, is_correction: bool) -> bool:
    """Return whether a judge doubts a score, or says that it would change one."""
    if _OWN_CHANGE.search(sentence):
        return _CONDITION.search(sentence) is not None and REFERENCE.search(sentence) is not None
    if _BETTER_ANSWER.search(sentence) or _CONDITION.search(sentence):
        return False
    if _WOULD_CHANGE.search(sentence) or (is_correction and _HYPOTHETICAL.search(sentence)):
        return True
    return _UNSURE.search(sentence) is not None and REFERENCE.search(sentence) is not None


class Lines:
    """Parser of the blocks of scores in lines of text without markup."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._found: list[Block] = []
        self._block: Block | None = None
        self._pending: int | None = None
        self._columns: list[str] | None = None
        self._separator = "|"
        self._above = ""

    def blocks(self) -> list[Block]:
        """Return the blocks in order."""
        for number, line in enumerate(self._lines):
            bare = line[_BULLET.match(line).end() :].strip()  # type: ignore[union-attr]
            if not bare:
                self._columns = None if not line.strip() else self._columns
                continue
            if not (self._is_row(number, line) or self._read(number, bare)):
                self._columns = None
            self._above = bare
        return self._found

    def _read(self, number: int, line: str) -> bool:
        """Read a line outside of tables, and return whether it has scores."""
        if found := _SUM.match(line):
            self._note_total(found)
            return True
        if self._pending is not None and (
            own := re.match(
                rf"(?:final[ ])?{SCORE_WORD}[ ]*[:=-]+(.+)|(?:.{{0,300}}?[.!?:;][ ]+)?([0-9.]+[ ]*(?:/[ ]*[12]"
                rf"|{UNIT}))[.]?$",
                line,
                re.I,
            )
        ):
            score = read_value(self._pending, own[1] or own[2])
            self._enter(number, self._pending, "not_a_number" if score is None else score)
            self._pending = None
            return True
        if (
            (heading := _HEADING.fullmatch(line))
            and not REFERENCE.search(heading["mark"])
            and not rule_of_name(heading["mark"])
        ):
            self._open(number, line[: heading.start("rest")], headed=True)
            return self._read_rest(number, heading["rest"].strip())
        has_scores = self._block is not None and bool(self._block.scores)
        if self._in_scores(number) and not has_scores and (values := self._bare_values(number, line)):
            self._enter_all(number, values)
            return True
        if self._in_scores(number) and not has_scores and (named := self._scores_before_names(number)):
            for rule, score in named.items():
                self._enter(number, rule, score)
            return True
        if self._block is not None and self._block.complete and amendment(line, self._block.numbers) is not None:
            return False
        if self._block is None and (closing := self._closing_values(number)) is not None:
            block = self._open(number, "", headed=False)
            self._enter_all(number, closing)
            block.end = len(self._lines)
            return True
        if (mapped := self._mapped_values(line)) is not None:
            self._open(number, "", headed=False)
            self._enter_all(number, mapped)
            return True
        done = []
        for part in filter(str.strip, _BETWEEN.split(line)):
            done.append(self._read_entry(number, part))
            if not done[-1]:
                self._above = part
        return any(done) or self._read_prose(number, line) or self._read_names(number, line)

    def _read_rest(self, number: int, rest: str) -> bool:
        """Read the rest of the line of a heading."""
        if not rest:
            return True
        if (values := _BARE_LIST.fullmatch(rest)) is not None:
            self._enter_all(number, split_numbers(values["values"]))
            return True
        if (mapped := self._mapped_values(rest)) is not None:
            self._enter_all(number, mapped)
            return True
        only = re.fullmatch(
            rf"(?P<total>{QUANTITY})(?:[ ]*(?:/|out of|of)[ ]*(?P<scale>[0-9]+(?:\.[0-9]+)?))?(?:[ ]points?)?[.]*",
            rest,
        )
        if only is not None:
            self._note_total(only)
            return True
        return any([self._read_entry(number, part) for part in _BETWEEN.split(rest) if part and part.strip()])

    def _read_prose(self, number: int, line: str) -> bool:
        """Read scores in sentences, such as `2 points for rule 1, 1 for rule 2`."""
        found = [
            (rule, checked_score(rule, match["score"], match["scale"]))
            for match in _PER_RULE.finditer(line)
            if (rule := self._rule_of(match["label"])) is not None
        ]
        if len({rule for rule, _ in found}) < len(RULES):
            return False
        self._open(number, "", headed=False).prose = True
        for rule, score in found:
            self._enter(number, rule, score)
        self._block = None
        return True

    def _read_names(self, number: int, line: str) -> bool:
        """Read `functionality 2, boundary 0.5, ...`: all five names on a line, each followed by a number."""
        found = {rule: name.search(line.casefold()) for rule, name in enumerate(_NAMED_VALUES, 1)}
        matches = {rule: match for rule, match in found.items() if match is not None}
        used = sum(1 if match["scale"] is None else 2 for match in matches.values())
        if _HEDGE.search(line) or len(re.findall(QUANTITY, line)) > used + 1 or len(matches) < len(RULES):
            return False
        self._open(number, "", headed=False)
        for rule, match in matches.items():
            self._enter(number, rule, checked_score(rule, match["score"], match["scale"]))
        return True

    def _rule_of(self, label: str) -> int | None:
        reference = REFERENCE.match(label)
        return DIGITS.get(reference["number"].casefold(), 0) if reference else rule_of_name(label)

    def _read_entry(self, number: int, line: str) -> bool:
        """Read the line of a rule."""
        label = LABEL.match(line)
        assert label is not None
        rest = line[label.end() :]
        by_number = rule_of_label(label)
        if label["rule"] is not None and by_number is None:
            by_number = int(label["rule"]) if label["rule"].isdecimal() else 0
        head = "" if rest[:1].isdigit() else re.split(r"[:=\t]|,(?=[ ]*[0-9])|[ ][\u2013\u2014-]+[ ]", rest)[0][:80]
        named = rule_of_name(head)
        if (
            label["rule"] is None
            and (named is None or len(head.split()) > 8)
            and not (label["item"] and self._in_scores(number))
        ):
            return False
        rule = self._choose(by_number, named, head)
        if rule is None:
            return False
        score = read_value_after_label(rule, rest, label["item"] is not None or label["rule"] is not None)
        if isinstance(score, float):
            self._enter(number, rule, score)
            self._pending = None
            return True
        if not rest.strip() or score is None:
            self._pending = rule
        if score is not None or self._in_scores(number):
            nothing = rest.strip(" :=.-") in ("", head.strip(" :=.-"))
            explicit = score if score is not None else "missing_score" if nothing else "not_a_number"
            if self._in_scores(number) or (score is not None and label["rule"] is not None):
                self._enter(number, rule, explicit, weak=score is None)
        return True

    @staticmethod
    def _choose(by_number: int | None, named: int | None, head: str) -> int | None:
        """Return the rule by its name, unless the label also has the name of the numbered rule."""
        if named is None or by_number is None:
            return by_number if named is None else named
        if by_number in RULE_NUMBERS and NAMES[by_number - 1].search(head.casefold()):
            return by_number
        return named

    def _is_row(self, number: int, line: str) -> bool:
        """Read a line of a table, and return whether it is one."""
        cells = self._cells(line)
        if len(cells) < 2 or all(_LABELED.fullmatch(cell) for cell in cells):
            return False
        rules = [self._rule_of(cell) for cell in cells]
        is_head = len(list(filter(None, rules))) >= len(RULES) or _score_column(cells) is not None
        if self._columns is None and not is_head and not line.lstrip().startswith("|") and rules[0] is None:
            return False
        if self._columns is not None and len(cells) > len(self._columns) and self._separator != "|":
            return False
        if all(not cell.strip("-: ") for cell in cells):
            return True
        last_number = next((cell for cell in reversed(cells) if re.match(r"[0-9]", cell)), "")
        if found := _SUM.match(f"{cells[0]} : {last_number}"):
            self._note_total(found)
            return True
        if self._columns is None:
            self._columns = cells if is_head else []
            if is_head:
                self._open(number, "", headed=True)
                return True
        across = [self._rule_of(cell) for cell in self._columns]
        if _MAXIMUM_ROW.match(cells[0]):
            return True
        if len(list(filter(None, across))) >= len(RULES):
            for rule, cell in zip(across, cells, strict=False):
                if rule:
                    self._enter(number, rule, read_cell(rule, cell))
            return True
        return self._read_row(number, cells, rules)

    def _cells(self, line: str) -> list[str]:
        """Return the cells of a line of a table: in Markdown, or separated as those of its header in CSV or TSV."""
        if self._columns is None:
            head = _CSV_HEAD.match(line)
            self._separator = head["separator"] if head else "|"
        if self._separator == "|":
            return [cell.strip() for cell in line.strip().strip("|").split("|")]
        cells = [cell.strip() for cell in line.split(self._separator)]
        columns = self._columns or cells
        return cells if _score_column(columns) == len(columns) - 1 else cells[: len(columns)]

    def _read_row(self, number: int, cells: Sequence[str], rules: Sequence[int | None]) -> bool:
        column = _score_column(self._columns or [])
        named = next((rule for cell, rule in zip(cells, rules, strict=True) if rule and rule_of_name(cell)), None)
        first = next((rule for rule in rules if rule), None)
        item = re.fullmatch(r"([1-9])[.)]?", cells[0])
        by_number = DIGITS[item[1]] if item else rule_of_label(LABEL.match(cells[0]))
        rule = named or first or by_number
        if by_number is not None and named is not None:
            rule = self._choose(by_number, named, " ".join(cells[:2]))
        if rule is None:
            return column is not None
        if column is not None and column < len(cells):
            is_cut = self._separator == "," and re.fullmatch(r"[05]0?", "".join(cells[column + 1 : column + 2]))
            self._enter(number, rule, "not_a_number" if is_cut else read_cell(rule, cells[column]))
            return True
        others = [cell for position, cell in enumerate(cells) if not (position == 0 or rules[position])]
        scores = [score for cell in others if (score := read_value(rule, cell)) is not None]
        if scores:
            self._enter(number, rule, scores[0] if len(scores) == 1 else "not_a_number")
        return True

    def _bare_values(self, number: int, line: str) -> list[float] | None:
        """Return five scores without labels: on this line, or on this one and the next four."""
        if found := _BARE_LIST.fullmatch(line):
            return split_numbers(found["values"])
        following = self._next_lines(number)
        values = [re.fullmatch(rf"({QUANTITY})(?:[ ]*/[ ]*[12])?", text) for text in following]
        if len(values) < len(RULES) or not all(values):
            return None
        return [to_number(value[1]) for value in values if value]

    def _scores_before_names(self, number: int) -> dict[int, float | Refusal] | None:
        """Return the scores of five lines such as `(2/2) Basic functionality`."""
        found = [_SCORE_FIRST.fullmatch(text) for text in self._next_lines(number)]
        scores = {
            rule: checked_score(rule, match["score"], match["scale"])
            for match in found
            if match is not None and (rule := rule_of_name(match["name"])) is not None
        }
        is_numbering = [match["score"] for match in found if match is not None] == list(map(str, RULE_NUMBERS))
        return scores if len(scores) == len(RULES) and not is_numbering else None

    def _next_lines(self, number: int) -> list[str]:
        """Return the next lines without bullets, as many as there are rules."""
        following = (
            _BULLET.sub("", text, count=1).strip() for text in self._lines[number : number + 12] if text.strip()
        )
        return list(islice(following, len(RULES)))

    def _closing_values(self, number: int) -> list[float] | None:
        """Return the last five lines of the text if they are numbers."""
        following = (self._lines[place].strip() for place in range(number, len(self._lines)))
        rest = list(islice(filter(None, following), len(RULES) + 1))
        if len(rest) != len(RULES) or not all(re.fullmatch(QUANTITY, text) for text in rest):
            return None
        return [to_number(text) for text in rest]

    @staticmethod
    def _mapped_values(line: str) -> list[float] | None:
        """Return five scores after the numbers of their rules, as in `1 -> 2, 2 -> 0.5, ...`."""
        pairs = _MAPPED.findall(line)
        if REFERENCE.search(line) or [number for number, _ in pairs] != list(map(str, RULE_NUMBERS)):
            return None
        return [to_number(value) for _, value in pairs]

    def _in_scores(self, number: int) -> bool:
        return self._block is not None and self._block.headed and number - self._block.end <= 12

    def _note_total(self, found: re.Match[str]) -> None:
        scale = found["scale"]
        if self._block is not None and (scale is None or float(scale) == MAX_TOTAL):
            self._block.total = to_number(found["total"])

    def _open(self, number: int, heading: str, *, headed: bool) -> Block:
        self._block = Block(number, number + 1, f"{heading}\n{self._above}", headed)
        self._found.append(self._block)
        self._pending = None
        return self._block

    def _enter_all(self, number: int, values: Sequence[float]) -> None:
        for rule, value in enumerate(values, 1):
            self._enter(number, rule, refusal_of(RULES[rule - 1], value) or value)

    def _enter(self, number: int, rule: int, score: float | Refusal, *, weak: bool = False) -> None:
        block = self._block
        known = None if block is None else block.scores.get(rule)
        if block is None or (isinstance(known, float) and known != score and not weak):
            block = self._open(number, "", headed=False)
        if weak and isinstance(known, float):
            return
        block.scores[rule] = score
        block.end = number + 1


def _score_column(cells: Sequence[str]) -> int | None:
    """Return the index of the column of scores, from the header of a table."""
    found = [
        number
        for number, cell in enumerate(cells)
        if re.search(rf"\b{SCORE_WORD}\b|awarded|given|得分|评分|分数", cell, re.I)
        and not re.search(r"[0-9]|max|weight|possible|available|full|满分|worth", cell, re.I)
        and not rule_of_name(cell)
    ]
    if len(found) > 1:  # "Notes" may be remarks or, in French, scores
        found = [number for number in found if cells[number].casefold() not in ("note", "notes")]
    final = [number for number in found if FINAL.search(cells[number])]
    return final[-1] if final else found[0] if len(found) == 1 else None


def read_json(text: str) -> tuple[list[Block], str]:
    """Return the judgements in JSON, and the text with blanks in their place."""
    blocks: list[Block] = []
    position = tries = 0
    while tries < _MAX_JSON and (match := re.compile(r"[{\[]").search(text, position)):
        tries += 1
        value, end = _decode(text, match.start())
        scores = None if _is_deep(value) else _json_scores(value)
        if scores is None:
            position = match.start() + 1 if value is None else end
            continue
        start = text.count("\n", 0, match.start())
        before = [
            line for line in text[: match.start()].splitlines() if line.strip() and not line.lstrip().startswith("```")
        ]
        block = Block(
            start, text.count("\n", 0, end) + 1, "\n" + (before[-1] if before else ""), headed=True, scores=scores
        )
        block.total = _json_total(value)
        if isinstance(value, dict):
            _note_texts(block, value)
        blocks.append(block)
        text = text[: match.start()] + re.sub(r"[^\n]", " ", text[match.start() : end]) + text[end:]
        position = end
    return blocks, text


def _note_texts(block: Block, value: Mapping[Any, Any]) -> None:
    """Add the texts of a JSON object with scores to a block."""
    after_scores = False
    for key, item in value.items():
        after_scores = after_scores or rule_of_key(str(key)) is not None or isinstance(item, dict | list)
        if isinstance(item, str):
            after = block.explanations if _EXPLANATION.search(str(key)) else block.remarks
            (after if after_scores else block.analysis).append(item)


def _decode(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        pass
    closing = "}" if text[start] == "{" else "]"
    end = text.find(closing, start)
    for _ in range(6):
        if end < 0 or end - start > 4_000:
            break
        piece = re.sub(r",(\s*[}\]])", r"\1", re.sub(r"(?m)(?://|#)[^\n\"]*$", "", text[start : end + 1]))
        for read in (_DECODER.decode, ast.literal_eval):
            try:
                return read(piece), end + 1
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
        end = text.find(closing, end + 1)
    return None, start + 1


def _is_deep(value: Any) -> bool:
    """Return whether a decoded value has more levels than a judgement can have."""
    level = [value]
    for _ in range(_MAX_JSON_DEPTH):
        items = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = list(chain.from_iterable(items))
    return bool(level)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the items of a JSON object; a key with two different values gets the value `"contradictory"`."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = "contradictory" if key in found and found[key] != value else value
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated)


def _json_scores(value: Any) -> dict[int, float | Refusal] | None:
    """Return the scores in a decoded value, or `None` without scores."""
    if isinstance(value, list):
        if len(value) == len(RULES) and all(_is_number(item) for item in value):
            return {rule: _json_score(rule, item) for rule, item in enumerate(value, 1)}
        entries = [item for item in value if isinstance(item, dict)]
        listed = {rule: _json_score(rule, item) for item in entries if (rule := _json_rule_of_entry(item)) is not None}
        return listed if len(listed) == len(entries) > 1 else None
    if not isinstance(value, dict):
        return None
    own = [(rule, item) for key, item in value.items() if (rule := rule_of_key(str(key))) is not None]
    if len(own) >= 2:
        repeated = len({rule for rule, _ in own}) < len(own)
        return {rule: "contradictory" if repeated else _json_score(rule, item) for rule, item in own}
    inside = [found for item in value.values() if (found := _json_scores(item)) is not None]
    if not inside:
        return None
    return inside[0] if all(found == inside[0] for found in inside) else {1: "contradictory"}


def _json_rule_of_entry(item: Mapping[str, Any]) -> int | None:
    for key in RULE_KEYS:
        if key in item and (rule := rule_of_key(str(item[key]))) is not None:
            return rule
    return None


def _json_score(rule: int, item: Any) -> float | Refusal:
    if isinstance(item, dict):
        lowered = {str(key).casefold(): inner for key, inner in item.items()}
        found = [lowered[key] for key in JSON_KEYS if key in lowered]
        return _json_score(rule, found[0]) if len(found) == 1 else "not_a_number"
    if _is_number(item):
        return checked_score(rule, repr(float(item))) if abs(item) < 1e6 else "out_of_range"
    if isinstance(item, str):
        return "contradictory" if item == "contradictory" else read_cell(rule, plain_text(item))
    return "missing_score" if item is None else "not_a_number"


def _json_total(value: Any) -> float | None:
    if not isinstance(value, dict):
        return None
    for key, item in value.items():
        if re.fullmatch(r"(?:total|sum|overall|final)(?:[ _-]?(?:score|points))?", str(key), re.I):
            found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?:\s*(?:/|out of)\s*6(?:\.0)?)?", str(item).strip())
            return float(found[1]) if found else None
    return next((total for item in value.values() if (total := _json_total(item)) is not None), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
