"""Parsing of rules and scores: references to rules, numbers, and amounts in several languages."""

import re
from types import MappingProxyType

from .rubric import RULE_NUMBERS, RULES, Refusal, refusal_of

__all__ = [
    "AMOUNT",
    "DIGITS",
    "JSON_KEYS",
    "LABEL",
    "NAMES",
    "NUMBER",
    "QUANTITY",
    "REFERENCE",
    "RULE",
    "RULE_KEYS",
    "SCORE_WORD",
    "UNIT",
    "checked_score",
    "read_cell",
    "read_value",
    "read_value_after_label",
    "rule_of_key",
    "rule_of_label",
    "rule_of_name",
    "split_numbers",
    "to_number",
]

DIGITS = MappingProxyType(
    {
        **{str(number): number for number in range(1, 10)},
        **{char: number for number, char in enumerate("一二三四五六", 1)},
        **{word: number for number, word in enumerate(["one", "two", "three", "four", "five", "six"], 1)},
        **{word: number for number, word in enumerate(["i", "ii", "iii", "iv", "v", "vi"], 1)},
    }
)
_AMOUNTS = MappingProxyType(
    {
        "zero": 0.0, "no": 0.0, "none": 0.0, "half": 0.5, "one half": 0.5, "one": 1.0, "a full": 1.0, "a": 1.0,
        "one and a half": 1.5, "two": 2.0, "three": 3.0, "零": 0.0, "半": 0.5, "一": 1.0, "两": 2.0, "二": 2.0,
    }
)  # fmt: skip
NAMES = (
    re.compile(r"functionalit|basic function|功能|correctness|機能|기능|funcionalidad|funktionalit|fonctionnalit"),
    re.compile(r"boundar|edge case|边界|邊界|境界|경계|límite|limites|grenz|randf"),
    re.compile(r"requirement|coverage|需求|覆盖|要求|要件|요구|requisito|anforderung|exigence"),
    re.compile(r"readab|可读|可讀|可読|가독|legib|lesbar|lisib"),
    re.compile(r"practice|excellence|规范|規範|编程实践|编码实践|实践|慣行|관행|práctica|praxis|pratique"),
)
RULE = (
    r"(?:rule|criterion|criteria|item|regla|regel|règle|regra|правило|규칙|ルール|规则|規則|準則|准则|标准|標準|第"
    r"|r(?=[ ]?[1-9]\b))"
)
NUMBER = r"(?:[0-9]{1,3}+|[一二三四五六]|(?:one|two|three|four|five|six|iii|ii|iv|vi|v|i)\b)"
REFERENCE = re.compile(rf"(?<!\w){RULE}[ ]*(?:no\.?|number)?[ #-]*(?P<number>{NUMBER})[ ]*(?:条|條|項)?", re.I)
LABEL = re.compile(
    rf"(?>(?:(?:score|points?|rating|marks?)[ ](?:for|of|on)[ ])?)(?:{RULE}[ ]*(?:no\.?"
    rf"|number)?[ #-]*(?P<rule>{NUMBER})(?:条|條|項)?|[(\[]?(?P<item>[1-9][0-9]?)(?:[.)\]、:]+(?![0-9])"
    rf"|(?=[ ]+(?:[\u2013\u2014-]+[ ]+)?[a-z])))?(?:[ ):\]、]|[.](?![0-9]))*(?:[\u2013\u2014-]+[ ]+(?=[^\W\d]))?",
    re.IGNORECASE,
)
SCORE_WORD = (
    r"(?:sub-?)?(?:scores?|scoring|ratings?|points?|marks?|grades?|judgements?|judgments?|verdict|assessment"
    r"|evaluation"
    r"|得分|评分|評分|分数|分數|打分|評価|スコア|点数|점수|평가|puntuación|puntaje|puntos|bewertung|punkte|note|notes|оценка)"
)
UNIT = r"(?:points?|pts?|p|marks?|балл\w*|punkt(?:en?)?|puntos?|分|点|点数|점|full[ ]points?)"
QUANTITY = r"[+-]?(?:[0-9]{1,6}(?:[.,][0-9]{1,6})?|[.][0-9]{1,6})"
AMOUNT = rf"(?:{QUANTITY}|one and a half|one half|half|zero|none|one|two|three|no|a full|a|零|半|一|两|二)"
_VALUE = re.compile(
    rf"(?P<open>[(\[{{\"']?)[ ]*(?:score[ds]?|award(?:ed|s)?|gets?|got|earn(?:ed|s)?|receive[ds]?|given|granted|得分"
    rf"|得)?[ :=]*(?:(?:a|the)?[ ]?full|all|only|just)?[ ]*(?P<score>{AMOUNT})(?![0-9]|[.,][0-9])(?:[ ]*(?:/|÷"
    rf"|out[ ]+of|of(?:[ ]a)?(?:[ ]possible)?|von|sur|из|中|満点中|de)"
    rf"[ ]*(?P<scale>{AMOUNT}))?(?:[ ]*(?:a[ ])?{UNIT}(?![a-z]))?(?:[ ]*(?:/|out[ ]of|of)[ ]*(?P<late>{QUANTITY})"
    rf"(?:[ ]*{UNIT}(?![a-z]))?)?[)\]}}\"']?(?:[ ]*[(\[][ ]*(?:max(?:imum)?|out[ ]of|of|/|满分"
    rf"|満点)[ .:]*[0-9.]+[ ]*(?:points?|pts?|分|点)?[ ]*[)\]])?(?P<rest>.*)",
    re.IGNORECASE,
)
_FULL = re.compile(r"(?:full|maximum|max|all)[ ](?:marks?|points?|score|credit)\b|满分|滿分|満点", re.I)
_REMARK = re.compile(
    r"[ ]*(?:$|[(\[;,.:!|\u3002\u3001]|[ ]\u2014[ ]|[\u2013\u2014-][ ]*(?![ 0-9.])|[ ][\u2013-][ ](?=[0-9]+[ ](?:of"
    r"|out|/))|\u2026|because\b|since\b|as\b|for\b|due\b|given\b|awarded\b|earned\b|\bin total\b)",
    re.IGNORECASE,
)
_CHANGE = (
    r"(?:->|→|=>|⇒|»|(?:revised|changed|lowered|raised|corrected|reduced|adjusted|updated)"
    r"(?:[ ](?:(?:down|up)[ ])?to\b|:)"
    r"|down[ ]to\b|now\b|no,?[ ]wait\b|no,|wait\b|make[ ](?:that|it)\b|actually\b|rather\b|i[ ]mean\b"
    r"|scratch[ ]that\b|sorry\b|correction\b)[ ,:]*(?:no,?[ ])?(?:an?[ ])?"
)
_NEW_AMOUNT = rf"(?:{QUANTITY}|zero|half|one|two)(?![\w-])"
_CHANGED = re.compile(
    rf"[ ]*(?:\u2026|[.]{{3}}|[(\[,;.!?\u2013\u2014-])?[ ]*(?:or[ ])?(?:{_CHANGE}(?P<value>{_NEW_AMOUNT}.*)"
    rf"|no[ ](?P<other>{QUANTITY}[ ]*(?:$|[)\].,;!])))",
    re.IGNORECASE,
)
"""A change directly after a score, as in `2 -> 1` or `2 (changed to 1)`."""
_CHANGED_LATER = re.compile(
    r"(?:^[ ]*\([^()]*\)|[,;.!?:(\[\u2013\u2014-]|[ ](?:so|but|and|hence|thus|then))[ ]*(?:or[ ])?"
    rf"{_CHANGE}{_NEW_AMOUNT}(?:[ ]*{UNIT})?[ ]*(?:$|[)\].,;!])|\bon[ ](?:second[ ]thoughts?|reflection)\b"
    rf"|\b(?:scratch[ ]that|make[ ](?:that|it))[ ,:]+(?:a[ ])?{_NEW_AMOUNT}"
    r"|\bI(?:['\u2019](?:ll|d|m))?[ ](?:\w+[ ]){0,3}(?:chang|lower|rais|reduc|correct|revis|adjust|updat)\w*[ ]"
    r"[^.]{0,30}\b(?:to|by)[ ]",
    re.IGNORECASE,
)
"""A change after a remark, as in `2. It crashes, so changed to 1`: ambiguous."""
_DOUBT = re.compile(
    rf"^[ ]*\??[ ]*[(\[]?[ ]*(?:[-\u2212+][ ]*(?:[0-9.]|half|one)|minus\b|less\b|deduct|\?)"
    rf"|^[ ]*[(\[,;]?[ ]*should[ ]be\b|^[ ]*(?:\u2026|[(\[,;.!?\u2013\u2014-])?[ ]*(?:hmm+|oops|(?:no,?[ ])?wait"
    rf"|scratch[ ]that|sorry|i[ ]mean)\b"
    rf"|^(?![ ]+\u2014[ ])[ ]*[-\u2013\u2014~/][ ]*[0-9.](?![0-9]*[ ](?:of|out))|^[ ]*(?:to|or|and|bis)[ ]+{AMOUNT}\b"
    rf"|(?:^[ ]*[(\[,;\u2013\u2014-][ ]*or|\b(?:maybe|perhaps|possibly|arguably))[ ]+{QUANTITY}\b"
    rf"|^[ ]*(?:or[ ](?:so|less|more)|at[ ](?:most|best|least))|^[ ]*\?",
    re.IGNORECASE,
)
_DEDUCTION = re.compile(r"[ ]*[(\[][ ]*-[ ]*(?P<points>[0-9]+(?:[.,][0-9]+)?)(?![\w.])(?P<reason>.*)")
_VAGUE = re.compile(
    r"[ ]*(?:about|around|approx\w*\.?|roughly|maybe|perhaps|between|probably|~|≈|<|>|≤|≥|up to|at (?:most|least))",
    re.I,
)
_AT_END = re.compile(
    rf"(?:[.;,:!(\[]|->|→|=|\u2014|\u2013|[ ]-|\bso\b|\btherefore\b|\bgets?|\bearns?|\baward(?:ed)?|\bscores?)[ ]*"
    rf"(?P<score>{AMOUNT})(?:[ ]*(?:/|out[ ]of)[ ]*(?P<scale>{QUANTITY})(?:[ ]*{UNIT})?|[ ]*{UNIT})[ )\].!]*$",
    re.IGNORECASE,
)
_RUBRIC = re.compile(
    r"\b(?:if|when|otherwise|where|max(?:imum)?|up to|worth|give)\b[^.]*\bpoints?\b|\bpoints?[ ]*:[ ]*[a-z]", re.I
)
_SEPARATOR = re.compile(
    r"=>|⇒|[:=]|(?:^|[ ])[\u2013\u2014-]+[ ]|,(?=[ ]*[0-9.]+[ ]*$)|\u2013|\u2014|->|→|\.{2,}|\t|[ ]{2,}|\b(?:is|gets?"
    r"|receives?|earns?|scores?)\b",
    re.I,
)
_OWN_SCORE = re.compile(rf"(?:^|[.;,!()\[\u2014\u2013-])[ ]*{SCORE_WORD}[ ]*[:=][ ]*(?P<value>.+)$", re.IGNORECASE)
_MAXIMUM_FIRST = re.compile(r"[(\[][^()\[\]]{1,40}[)\]][ ]*(?:[:=]|[\u2013\u2014-]+(?=[ ]))[ ]*(?P<value>.+)")
RULE_KEYS = ("rule", "name", "criterion", "rule_name", "title", "id", "number", "rule_number", "index", "category")
JSON_KEYS = ("score", "points", "value", "rating", "awarded", "mark", "grade", "得分", "分数")


def rule_of_name(name: str) -> int | None:
    """Return the number of the rule whose name comes first in a text."""
    found = [
        (match.start(), number) for number, rule in enumerate(NAMES, 1) if (match := rule.search(name.casefold()))
    ]
    return min(found)[1] if found else None


def to_number(text: str) -> float:
    """Return the number in a text, with a decimal point or comma."""
    return float(text.replace(",", "."))


def _amount(text: str) -> float:
    word = " ".join(text.casefold().split())
    return _AMOUNTS[word] if word in _AMOUNTS else to_number(word)


def rule_of_label(label: re.Match[str] | None) -> int | None:
    """Return the number of the rule in a match of `LABEL`."""
    return None if label is None else DIGITS.get((label["rule"] or label["item"] or "").casefold())


def checked_score(rule: int, text: str, scale: str | None = None) -> float | Refusal:
    """Return a score, or the reason why it is invalid."""
    score = _amount(text)
    if rule not in RULE_NUMBERS:
        return "extra_score"
    if scale is not None and _amount(scale) != RULES[rule - 1].maximum:
        return "other_scale"
    return refusal_of(RULES[rule - 1], score) or score


def read_cell(rule: int, text: str) -> float | Refusal:
    """Return the score in a table cell, or the reason why there is none."""
    score = read_value(rule, text)
    if score is None:
        return "not_a_number" if text.strip() else "missing_score"
    return score


def read_value(rule: int, text: str) -> float | Refusal | None:
    """Return the score at the beginning of a text, the reason why it is invalid, or `None` without a number."""
    text = text.strip()
    if _FULL.match(text) and rule in RULE_NUMBERS:
        return RULES[rule - 1].maximum
    if re.match(r"1/2[ ](?:of[ ])?(?:a[ ])?point\b", text, re.IGNORECASE):
        return 0.5
    if _VAGUE.match(text):
        return "not_a_number"
    found = _VALUE.match(text)
    if found is None:
        return None
    if found["score"].casefold() in ("a", "no", "none", "one", "two", "three", "half") and not re.match(
        rf"(?:[ ]*(?:a[ ])?(?:{UNIT}|out of\b|of\b|/))|[ .(]*$|[ ]*[\u2013\u2014-]",
        text[found.end("score") :],
        re.IGNORECASE,
    ):
        return None
    rest = found["rest"]
    if changed := _CHANGED.match(rest):
        score = read_value(rule, changed["value"] or changed["other"])
        return "not_a_number" if score is None else score
    if equation := re.fullmatch(rf"[ ]*[-+][ ]*{QUANTITY}(?:[ ]*[-+][ ]*{QUANTITY})*[ ]*=[ ]*(.+)", rest):
        return read_value(rule, equation[1])
    deduction = _DEDUCTION.match(rest)
    if deduction is not None and rule in RULE_NUMBERS:
        maximum = RULES[rule - 1].maximum
        if _amount(found["score"]) + to_number(deduction["points"]) == maximum:
            rest = f" ({deduction['reason']}"
    if _DOUBT.search(rest) or _CHANGED_LATER.search(rest):
        return "not_a_number"
    if not _REMARK.match(rest):
        return "not_a_number" if re.search(_CHANGE + _NEW_AMOUNT, rest, re.I) else None
    scale = found["scale"] or found["late"]
    return checked_score(rule, found["score"], scale)


def read_value_after_label(rule: int, rest: str, numbered: bool) -> float | Refusal | None:
    """Return the score after the label of a rule, the reason why it is invalid, or `None` without a number."""
    if (found := _MAXIMUM_FIRST.match(rest)) and read_value(rule, found["value"]) is not None:
        rest = found["value"]
    if numbered and (direct := read_value(rule, rest)) is not None:
        return direct
    before = 0
    for separator in _SEPARATOR.finditer(rest):
        label = rest[before : separator.start()]
        if before and not (
            re.search(rf"\b{SCORE_WORD}[ ]*$", label, re.I) or (rule_of_name(label) and len(label.split()) <= 6)
        ):
            break
        if len(label) > 100:
            break
        if (score := read_value(rule, rest[separator.end() :])) is not None:
            return score
        if separator[0] in ":=" or not before:
            before = separator.end()
    if inside := re.match(rf"[^:=()]{{1,60}}[(\[](?P<value>{QUANTITY})[ ]*/[ ]*(?P<scale>[12](?:\.0)?)[)\]]", rest):
        return checked_score(rule, inside["value"], inside["scale"])
    if (own := _OWN_SCORE.search(rest)) and not _OWN_SCORE.search(own["value"]):
        return read_value(rule, own["value"])
    if not _RUBRIC.search(rest) and (found := _AT_END.search(rest)):
        return checked_score(rule, found["score"], found["scale"])
    return None


def split_numbers(text: str) -> list[float]:
    """Return the numbers of a list separated by commas, semicolons, slashes, bars, plus signs or spaces."""
    separator = r"[ ]*[;/|+ ][ ]*|,[ ]+" if re.search(r"[;/|+ ]", text.strip()) else r","
    parts = [part for part in re.split(separator, text.strip()) if part]
    return list(map(to_number, parts))


def rule_of_key(key: str) -> int | None:
    """Return the number of the rule to which a JSON key or the name of an element refers."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|[_-]", " ", key).strip()
    if (named := rule_of_name(plain)) is not None:
        return named
    label = LABEL.match(plain)
    if label is not None and (label["rule"] or label["item"]):
        return rule_of_label(label)
    digits = re.fullmatch(r"(?:rule|r|score|criterion|rule score)?[ ]*([1-9])(?:[ ]*score)?", plain, re.I)
    return DIGITS[digits[1]] if digits else None
