"""The six-point rubric, judgements by it, and how a judge's text is read.

The rubric is that of SODA's released scoring prompt ([Chen et al.](https://huggingface.co/papers/2408.03680)): five
rules whose points add up. It asks for whole points, yet half of the released judgements have half points, so these
count.

A judge's text may hold JSON, lines, lists or tables, in several languages. It becomes blocks of scores, each with the
words over it. Blocks that are quoted or called a draft do not count, final ones and corrections replace earlier ones,
and what a careful person could not be sure of is refused, for a reason with a name.
"""

import ast
import html
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from ..generation import parse_answer

__all__ = [
    "MAX_TOTAL",
    "REFUSALS",
    "RULES",
    "Judgement",
    "Refusal",
    "Rule",
    "Unjudged",
    "format_judgement",
    "parse_judgement",
    "read_judgement",
]

Refusal: TypeAlias = Literal[
    "no_scores",
    "missing_score",
    "extra_score",
    "not_a_number",
    "other_scale",
    "out_of_range",
    "not_half_points",
    "contradictory",
    "withdrawn",
]

REFUSALS: tuple[Refusal, ...] = get_args(Refusal)
"""Reasons for which a judge's text is refused:

- `no_scores`: no score by rule, as in prose, in a total alone or in thoughts without end;
- `missing_score`: fewer than five rules, or a rule with nothing behind it;
- `extra_score`: a sixth rule;
- `not_a_number`: something else than a number, as "N/A", or a range;
- `other_scale`: a rule scored out of something else than its maximum, as "4/5";
- `out_of_range`: below 0 or above the rule's maximum;
- `not_half_points`: not a multiple of 0.5;
- `contradictory`: two scores for a rule of which none is said to be the final one, or a total that is not the sum;
- `withdrawn`: the judge takes the scores back or declines to judge.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """Name one rule of the rubric, and the most points that it gives."""

    name: str
    maximum: float


RULES: tuple[Rule, ...] = (
    Rule("Basic functionality", 2.0),
    Rule("Boundary checks", 1.0),
    Rule("Requirement coverage", 1.0),
    Rule("Readability", 1.0),
    Rule("Coding practice", 1.0),
)
MAX_TOTAL = sum(rule.maximum for rule in RULES)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Hold the scores of one answer.

    Args:
        scores (`tuple[float, ...]`):
            Points by rule, in the order of `RULES`, each a multiple of 0.5.

    Raises:
        ValueError: If these are no five scores of the rubric.

    Example:

    ```python
    >>> Judgement((2, 0, 1, 0.5, 0.5)).total
    4.0

    ```
    """

    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(RULES):
            raise ValueError(f"`scores` has {len(self.scores)} numbers; give {len(RULES)}, one a rule.")
        for rule, score in zip(RULES, self.scores, strict=True):
            if (refusal := _refusal(rule, score)) is not None:
                raise ValueError(
                    f"`scores` gives {score} for {rule.name!r} ({refusal}); give 0 to {rule.maximum:g} in steps of "
                    "0.5."
                )

    @property
    def total(self) -> float:
        """Return the sum of the scores, 0 to 6."""
        return float(sum(self.scores))


@dataclass(frozen=True, slots=True)
class Unjudged:
    """Hold why there is no judgement."""

    reason: Refusal


def read_judgement(value: Mapping[str, Any]) -> Judgement | Unjudged:
    """Return what `dataclasses.asdict` made plain values of.

    Example:

    ```python
    >>> read_judgement({"scores": [2, 0, 1, 0.5, 0.5]}), read_judgement({"reason": "no_scores"})
    (Judgement(scores=(2, 0, 1, 0.5, 0.5)), Unjudged(reason='no_scores'))

    ```
    """
    return Judgement(tuple(value["scores"])) if "scores" in value else Unjudged(value["reason"])


def format_judgement(judgement: Judgement) -> str:
    """Write a judgement in the form that a judge is asked for.

    Example:

    ```python
    >>> print(format_judgement(Judgement((2, 0, 1, 0.5, 0.5))))
    Score:
    Rule 1. Basic functionality: 2
    Rule 2. Boundary checks: 0
    Rule 3. Requirement coverage: 1
    Rule 4. Readability: 0.5
    Rule 5. Coding practice: 0.5

    ```
    """
    lines = [
        f"Rule {number}. {rule.name}: {score:g}"
        for number, (rule, score) in enumerate(zip(RULES, judgement.scores, strict=True), 1)
    ]
    return "\n".join(["Score:", *lines])


def _refusal(rule: Rule, score: float) -> Refusal | None:
    """Return why a number is no score of a rule, or `None` if it is one."""
    if not 0 <= score <= rule.maximum:
        return "out_of_range"
    return None if score * 2 == int(score * 2) else "not_half_points"


_MAX_CHARS = 50_000
_MAX_LINE = 2_000
_MAX_JSON = 50
_MAX_INTRODUCTION = 160
_TOLERANCE = 0.01

_DIGITS = MappingProxyType(
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
_NAMES = (
    re.compile(r"functionalit|basic function|功能|correctness|機能|기능|funcionalidad|funktionalit|fonctionnalit"),
    re.compile(r"boundar|edge case|边界|邊界|境界|경계|límite|limites|grenz|randf"),
    re.compile(r"requirement|coverage|需求|覆盖|要求|要件|요구|requisito|anforderung|exigence"),
    re.compile(r"readab|可读|可讀|可読|가독|legib|lesbar|lisib"),
    re.compile(r"practice|excellence|规范|規範|编程实践|编码实践|实践|慣行|관행|práctica|praxis|pratique"),
)

_RULE = (
    r"(?:rule|criterion|criteria|item|regla|regel|règle|regra|правило|규칙|ルール|规则|規則|準則|准则|标准|標準|第"
    r"|r(?=[ ]?[1-9]\b))"
)
_NUMBER = r"(?:[0-9]{1,3}+|[一二三四五六]|(?:one|two|three|four|five|six|iii|ii|iv|vi|v|i)\b)"
_REFERENCE = re.compile(rf"(?<!\w){_RULE}[ ]*(?:no\.?|number)?[ #-]*(?P<number>{_NUMBER})[ ]*(?:条|條|項)?", re.I)
_LABEL = re.compile(
    rf"(?>(?:(?:score|points?|rating|marks?)[ ](?:for|of|on)[ ])?)(?:{_RULE}[ ]*(?:no\.?|number)?[ #-]*"
    rf"(?P<rule>{_NUMBER})"
    r"(?:条|條|項)?|[(\[]?(?P<item>[1-9][0-9]?)"
    r"(?:[.)\]、:]+(?![0-9])|(?=[ ]+(?:[\u2013\u2014-]+[ ]+)?[a-z])))?[ .):\]、]*"
    r"(?:[\u2013\u2014-]+[ ]+(?=[^\W\d]))?",
    re.IGNORECASE,
)
_BULLET = re.compile(r"[ \t>•·◦▪‣+\u2013\u2014-]*+(?>(?:\([ ]*[xX ]?[ ]*\)[ ]+)?)")
_SCORE_WORD = (
    r"(?:sub-?)?(?:scores?|scoring|ratings?|points?|marks?|grades?|judgements?|judgments?|verdict|assessment"
    r"|evaluation"
    r"|得分|评分|評分|分数|分數|打分|評価|スコア|点数|점수|평가|puntuación|puntaje|puntos|bewertung|punkte|note|notes|оценка)"
)
_HEADING = re.compile(
    rf"(?P<mark>(?:[\w'-]+[ ]+){{0,4}}){_SCORE_WORD}(?:[ ]+(?:by|per|of|for)[ ]+(?:each[ ]+)?rules?)?"
    r"(?P<note>[ ]*\([^()]{0,60}\))?[ ]*(?P<end>[:=]|$)(?P<rest>.*)",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"\b(?:final|revis|correct(?:ed|ion)|updat|adjust|amend|reconsider|second thought|on reflection|actually|instead"
    r"|after review|new scores?|erratum|wait)|最终|最終|修正|更正|최종|definitiv|endgültig",
    re.IGNORECASE,
)
_OWN_WORD = re.compile(
    r"i|my|me|mine|we|our|own|this|that|the|an?|these|here|below|is|are|was|be|as|of|for|on|in|by|to|per|with|and"
    r"|or|at|from|up|out|each"
    r"|every|all|one|two|three|four|five|six|its?|so|s|ve|ll|d|overall|therefore|thus|hence|based|accordingly|now"
    r"|then|final(?:ly)?|last(?:ly)?"
    r"|follow(?:s|ing)?|result(?:s|ing)?|conclusion|conclude|conclusive|summary|verdict|decision|sub|scor(?:e|es"
    r"|ed|ing)|scorecard|scoresheet"
    r"|rat(?:e|es|ed|ings?)|grad(?:e|es|ed|ing)|marks?|marking|points?|pts|max(?:imum)?|possible|evaluat\w+"
    r"|assess\w*|judge?(?:s|d|ment|ments)?|review"
    r"|rubric|rules?|criteri(?:on|a)|items?|categor(?:y|ies)|dimensions?|breakdown|table|list|json|yaml|xml|answer"
    r"|submission|solution|code|program"
    r"|response|analysis|above|given|giv(?:e|ing)|award(?:s|ed)?|assign(?:ed)?|allocat\w+|receives?|gets?"
    r"|deserves?|earns?|detailed|details|individual"
    r"|revised|revision|corrected|correction|updated|adjusted|amended|reconsidered|new|official|definitive|actual"
    r"|ok(?:ay)?|well|right|after|considering|consideration|everything|careful|looking"
    r"|reading|running|testing|checking|reflection|second|thought|would|will|let|us|go|goes|come|comes|down|think"
    r"|can|total|sum|totals|sums|put|together"
    r"|feedback|report|task|ready|done|section|part|number|no|name|value|format|requested|asked|instead|wait|edit"
    r"|erratum|stands?|not|it|hand|scale|half|both|quick|short|brief|full|complete|also|more|strict(?:er)?|fair"
    r"|honest"
    r"|basic|functionality|boundary|checks?|requirement|coverage|readability|coding|practice"
    r"|meine?|bewertung(?:en)?|punkte?|hier|ist|sind|die|der|das|endgültige?|ergebnis(?:se)?|gesamt|note|notes?"
    r"|noten|vergebe|vergabe|wie|folgt|ich|je|regel|regeln"
    r"|puntuación|puntuaciones|puntaje|puntos|mis?|resultado|evaluación|calificación|calificaciones|aquí|están|son"
    r"|las?|los|el|por|regla|reglas|final(?:es)?"
    r"|mes|voici|les?|finale?s?|évaluation|points|par|règle|règles|ma|pontuação|avaliação|minha|nota|notas"
    r"|penilaian|saya|nilai|skor|hasil"
    r"|valutazione|punteggi|punteggio|voti|miei|ocena|oceny|punkty|моя|мои|оценк[аи]|итог|итоговая|баллы|puan"
    r"|puanlar|değerlendirme|poäng|betyg",
    re.IGNORECASE,
)
"""Words by which judges introduce their own scores. With other words, they may be another's."""
_OWN_FINAL = re.compile(r"\b(?:my|mine|final)\b", re.IGNORECASE)
_MAX_INTRODUCTION_WORDS = 25
_REASON = re.compile(r"\b(?:because|since)\b[^,]*", re.IGNORECASE)
_SENTENCE_ENDS = ".!?)\u2026\u3002"
_MAX_SHORT_HEADING = 6
_CJK = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
_SPEAKS_OF_SCORES = re.compile(
    r"\b(?:scor|rat(?:e|es|ed|ing)|grad|mark|point|judg|evaluat|assess|verdict|get|receiv|earn|award|deserv|this"
    r"|these|follow)"
    r"|[评評得打]?分|评价|結果|结果|점수|평가|点|スコア|採点",
    re.IGNORECASE,
)
_OTHER_VOICE = re.compile(
    r"\b(?:ideal|perfect|flawless|best|exemplary|typical|average|reference|benchmark|baseline|hypothetical\w*"
    r"|theoretical\w*|imagin\w*|suppos\w*|assum\w*|pretend|potential\w*"
    r"|sample|template|placeholder|orientation|illustrat\w*|examples?|e\.?g|instance|dummy|format|schema|skeleton"
    r"|previous\w*|earlier|prior|old|former\w*|initial\w*|original\w*|draft|tentative\w*|preliminar\w*"
    r"|provisional\w*"
    r"|gpt\w*|chatgpt|claude|gemini|llama|qwen|copilot|assistants?|another|other|others|colleagues?|peers?|humans?"
    r"|reviewers?|raters?|graders?|annotators?|instructors?|teachers?|professors?|author\w*|writers?"
    r"|candidates?|students?|submitters?|users?|comment\w*|docstrings?|string|readme|claim\w*|says|said|states"
    r"|stated|wrote|written|quot\w*|cop(?:y|ied)|inject\w*|embedded|self|wants?|asks?|begs?|demand\w*|hop(?:e|es"
    r"|ing)"
    r"|please|expected|expects?|if|unless|should|could|might|may|once|had|were|leaderboard|maximum possible"
    r"|someone|somebody|they|their|his|her|your?s?|he|she"
    r"|sorry|unable|cannot)\b|\b(?:once|after|with|when)\b[^.\n]{0,30}\b(?:fix|add|repair|chang|mend|patch)\w*|示例"
    r"|例如|例子|假如|如果|假设|作者|理想|声称|注释|模板|参考|原来|之前|满分答案|别人|候选|考生|学生|例として|もし|예시|만약",
    re.IGNORECASE,
)
"""Words of scores that are not the judge's own verdict on this answer: others', examples, drafts."""
_UNDERMINED = re.compile(
    r"\b(?:I|we)\b[^.\n]{0,40}(?:\bnot|n['\u2019]t|\bnever|\bunable to|\brefuse to|\bdecline"
    r" to)\b[^.\n]{0,20}\b(?:rat|scor|judg|grad|trust|endors|agree|believ|stand|mean|confirm|vouch|assess|evaluat"
    r"|accept|adopt|shar|sure|certain|convinced|back|take)"
    r"|\b(?:my|have|has|with|some|serious|any) doubts?\b|\bnot (?:convinced|sure|certain|final|mine|my own)\b|\bI"
    r" (?:disagree|doubt|reserve|retract|withdraw|take (?:it|that|them|this) back|misread|mixed up|was wrong|made"
    r" a mistake|overlooked|missed)\b"
    r"|\b(?:this|that|these|those|they|it|which|scores?|numbers|points|ratings?|the above)\b[^.\n]{0,60}\b(?:what"
    r" the|claim\w*|asserts?|author\w*|candidate|submitter|student|inject\w*|manipulat\w*|examples?|template"
    r"|placeholders?|hypothetic\w*|ideal|illustrat\w*|reference|quot\w*|copied|someone"
    r"|another|other (?:judge|reviewer|model)|previous|draft|random|guess\w*|fabricat\w*|invented|made up|dummy"
    r"|defaults?|tentative|provisional|preliminary|unverified|assuming|would be|would have|only if|if (?:it|the"
    r"|this)|were it|had it|not (?:yet )?final)\b"
    r"|\b(?:far from|falls short of|nowhere near) (?:that|this|it|these|the above)\b|\bas it stands\b|\bin"
    r" reality\b|\bthis (?:one|answer|submission) is (?:far|not|nothing)\b|\b(?:once|after|if|when|provided"
    r"|assuming)\b[^.\n]{0,30}\b(?:fix|correct|add|repair|chang|mend|address|resolv)\w*"
    r"|^[^\w\n]*(?:hmm+|hm|wait|hold on|actually|on second thought|on reflection|let me re\w+|scratch that|oh no"
    r"|oops|no, )\b"
    r"|\b(?:re-?(?:score|grade|rate|evaluate|assess|judge)|second look|look again|double[- ]check|revisit)\b"
    r"|\b(?:disregard|ignore)\b[^\w\n]*$|^[^\w\n]*(?:update|edit|correction|erratum)\b(?!\W*$)|\b(?:I|we)(?:['\u2019]ll|"
    r" will| shall| am going to| need to"
    r"| want to| have to| intend to| plan to)\b[^.\n]{0,30}\b(?:grade|score|rate|judge|evaluate|assess|check|re\w+)\b"
    r"|\bto be (?:confirmed|revised|determined|continued)\b|\btbd\b|\bpending\b|不是我的|仅供参考"
    r"|只是(?:示例|例子|举例)|以上(?:为|是)(?:示例|作者|答案|假设)",
    re.IGNORECASE,
)
"""Sentences around scores that take away their force."""
_DEICTIC = re.compile(
    r"\b(?:these|those|them|the above|scores?|numbers|ratings?|award\w*|deserv\w*|worth\w*|in truth|told|asked"
    r"|instructed)\b",
    re.IGNORECASE,
)
_BENIGN = re.compile(
    r"[0-9]|\b(?:reflects?|sums?|adds? up|totals?|based on|overall|hence|justif\w*|explain\w*|correspond\w*"
    r"|according|in total|half points?|recommend|suggest|improv\w*|would (?:help|make)|summar\w+)\b",
    re.IGNORECASE,
)
"""Remarks on the scores above, and those of them that stand by the scores."""
_DRAFT = re.compile(
    r"\b(?:draft|tentative|preliminary|provisional|initial|first[ ](?:impression|pass|guess)|example|sample|template"
    r"|at first|(?:began|started) with"
    r"|placeholder|format|hypothetical|if[ ]it|would[ ]have"
    r"|(?:if|were|had|suppos\w+|assuming)[ ](?!i\b)[^.:\n]{0,80}\bwould|as[ ]follows[ ]if|pretend)|草稿|初步|示例"
    r"|例如",
    re.IGNORECASE,
)
_QUOTED = re.compile(
    r"\b(?:answer|submission|candidate|code|response|student|comment|docstring|it|author|string|text|solution|program"
    r"|user|snippet)s?\b[^.]{0,60}\b(?:contain|include|say|claim|state|end|writ|wrote|itself|embed|read|ask|instruct"
    r"|tell|suggest|propos|demand|inject|print|output|give itself|award itself|assign itself|rates? itself)"
    r"|\b(?:quot(?:e|ed|ing)|injected|injection|its own|self-assigned|self-awarded|supplied by)\b|答案(?:中|里|自己)",
    re.IGNORECASE,
)
_WITHDRAWN = re.compile(
    r"\b(?:can(?:'|\u2019)?(?:t|not)|can not|unable to|not able to|won(?:'|\u2019)?t|will not|refuse to|declin\w+ to"
    r"|must decline|not going to|impossible to|not possible to)\b[^.\n]{0,60}"
    r"\b(?:judge|score|rate|grade|evaluate|assess|comply|assist|provide|give|help|review)"
    r"|\b(?:disregard|ignore|retract|withdraw|discard|forget)\b[^.\n]{0,30}"
    r"\b(?:scores?|points|ratings?|judge?ment|numbers|above|these)\b"
    r"|\b(?:scores?|numbers|ratings?|these|those|they)\b[^.\n]{0,30}\b(?:placeholders?|made up|invalid"
    r"|meaningless|not (?:mine"
    r"|my own|real|a judge?ment|final|meant)|do not count|don't count|only an example|just an example|guess(?:es)?)\b"
    r"|\b(?:scores?|numbers|points|ratings?|judge?ment|above|these|those|they)\b[^.\n]{0,40}"
    r"\b(?:do(?:es)?(?:n['\u2019]t| not)|cannot|can['\u2019]t|no longer|must not|should(?:n['\u2019]t| not)) "
    r"(?:hold|apply|count|stand|reflect|represent|be (?:used|taken|trusted|relied))\b"
    r"|\b(?:scores?|numbers|points|ratings?|above|these)\b[ ]*(?:above[ ]|below[ ])?(?:are|were|come|came)\b"
    r"[^.\n]{0,20}\b(?:those|the ones|what|from|copied|taken|quoted|lifted|(?:supplied|provided|given"
    r"|written)[ ]by)\b[^.\n]{0,30}"
    r"\b(?:candidate|answer|author|student|submission|comment|docstring|code|itself)"
    r"|\b(?:can(?:not|['\u2019]t)|do(?:n['\u2019]t| not)|no longer) stand by\b|\bI (?:must "
    r"|have to )?(?:decline|refuse|abstain)\b"
    r"|无法(?:评|打|给)|不能(?:评|打|给)|拒绝评",
    re.IGNORECASE,
)
_UNIT = r"(?:points?|pts?|p|marks?|балл\w*|punkte?|puntos?|分|点|点数|점|full[ ]points?)"
_QUANTITY = r"[+-]?(?:[0-9]{1,6}(?:[.,][0-9]{1,6})?|[.][0-9]{1,6})"
_AMOUNT = rf"(?:{_QUANTITY}|one and a half|one half|half|zero|none|one|two|three|no|a full|a|零|半|一|两|二)"
_VALUE = re.compile(
    rf"(?P<open>[(\[{{\"']?)[ ]*(?:score[ds]?|awarded|award|gets?|earns?|receives?|得分|得)?[ :=]*(?:(?:a|the)?["
    rf" ]?full|all|only|just)?[ ]*"
    rf"(?P<score>{_AMOUNT})(?![0-9]|[.,][0-9])"
    rf"(?:[ ]*(?:/|÷|out[ ]+of|of(?:[ ]a)?(?:[ ]possible)?|von|sur|из|中|満点中|de)[ ]*(?P<scale>{_AMOUNT}))?"
    rf"(?:[ ]*(?:a[ ])?{_UNIT}(?![a-z]))?(?:[ ]*(?:/|out[ ]of|of)[ ]*(?P<late>{_QUANTITY})(?:[ ]*{_UNIT}"
    rf"(?![a-z]))?)?[)\]}}\"']?"
    r"(?:[ ]*[(\[][ ]*(?:max(?:imum)?|out[ ]of|of|/|满分|満点)[ .:]*[0-9.]+[ ]*(?:points?|pts?|分|点)?[ ]*[)\]])?"
    r"(?P<rest>.*)",
    re.IGNORECASE,
)
_FULL = re.compile(r"(?:full|maximum|max|all)[ ](?:marks?|points?|score|credit)\b|满分|滿分|満点", re.I)
_REMARK = re.compile(
    r"[ ]*(?:$|[(\[;,.:!|\u3002\u3001]|[ ]\u2014[ ]|[\u2013\u2014-][ ]*(?![ 0-9.])|[ ][\u2013-][ ](?=[0-9]+["
    r" ](?:of|out|/))|\u2026|because\b|since\b|as\b|for\b|due\b|given\b"
    r"|awarded\b|earned\b"
    r"|\bin total\b)",
    re.IGNORECASE,
)
_CHANGED = re.compile(
    rf"(?:->|→|=>|⇒|»|\b(?:revised|changed|lowered|raised|corrected|reduced|adjusted|now|down|up)(?:[ ]to)?\b"
    rf"|\bno,?(?:[ ]wait,?)?[ ]|\bwait,?[ ]|\bmake[ ](?:that|it)\b|\bactually\b|\brather\b|\bi mean\b"
    rf"|\bscratch that\b,?"
    rf"|\bsorry,?)[ ,:]*(?:no,?[ ])?(?P<value>{_AMOUNT}(?![0-9]).*)",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    rf"^[ ]*\??[ ]*[(\[]?[ ]*(?:[-\u2212+][ ]*(?:[0-9.]|half|one)|minus\b|less\b|deduct|\?|should[ ]be\b)"
    rf"|^(?![ ]+\u2014[ ])[ ]*[-\u2013\u2014~/][ ]*[0-9.](?![0-9]*[ ](?:of|out))|^[ ]*(?:to|or|and|bis)["
    rf" ]+{_AMOUNT}\b|\b(?:or|maybe|perhaps|possibly"
    rf"|arguably)[ ]+{_QUANTITY}\b"
    r"|^[ ]*(?:or[ ](?:so|less|more)|at[ ](?:most|best|least))|^[ ]*\?",
    re.IGNORECASE,
)
_VAGUE = re.compile(
    r"[ ]*(?:about|around|approx\w*\.?|roughly|maybe|perhaps|between|probably|~|≈|<|>|≤|≥|up to|at (?:most|least))",
    re.I,
)
_AT_END = re.compile(
    rf"(?:[.;,:!(\[]|->|→|=|\u2014|\u2013|[ ]-|\bso\b|\btherefore\b|\bgets?|\bearns?|\baward(?:ed)?|\bscores?)[ ]*"
    rf"(?P<score>{_AMOUNT})(?:[ ]*(?:/|out[ ]of)[ ]*(?P<scale>{_QUANTITY})(?:[ ]*{_UNIT})?|[ ]*{_UNIT})[ )\].!]*$",
    re.IGNORECASE,
)
_RUBRIC = re.compile(
    r"\b(?:if|when|otherwise|where|max(?:imum)?|up to|worth|give)\b[^.]*\bpoints?\b|\bpoints?[ ]*:[ ]*[a-z]", re.I
)
_SUM = re.compile(
    r"(?:the[ ]|my[ ])?(?:final[ ]|overall[ ]|grand[ ])?(?:total|sum|overall|gesamt|总分|總分|总计|合计"
    r"|合計|총점|итого)(?:[ ]?(?:score|points?"
    r"|得分|is))?[ ]*(?:\([^()]{0,40}\))?[ ]*(?:[:=|,]|is\b)[ |:]*(?:[0-9.+ ]+=[ ]*)?(?P<total>[0-9]+(?:[.,][0-9]+)?)"
    r"(?:[ ]*(?:/|out[ ]of|of)[ ]*(?P<scale>[0-9]+(?:\.[0-9]+)?))?",
    re.IGNORECASE,
)
_AMENDING = re.compile(
    r"\b(?:actually|correction|revis\w+|on reflection|second thought\w*|chang\w+|lower\w*|rais\w+|reduc\w+"
    r"|adjust\w*|updat\w+"
    r"|reconsider\w*|instead|amend\w*|should(?: have been| be)|sorry|wait|edit|errat\w+|make|set|drop\w*"
    r"|bump\w*|deduct\w*"
    r"|tak(?:e|ing) (?:off|away))\b|改为|更正|修正",
    re.IGNORECASE,
)
_UNSURE = re.compile(
    r"\b(?:not (?:quite |entirely )?sure|unsure|could (?:also )?be|might be|may be|maybe|perhaps|possibly"
    r"|arguably)\b.*"
    r"(?:[0-9]|\b(?:lower|higher|less|more|fewer|half|zero|points?)\b)",
    re.IGNORECASE,
)
_LESS = re.compile(r"\b(?:lower|higher|less|more|fewer|worse|better|reduced|increased|raised|lowered)\b[ .!]*$", re.I)
_NEW_VALUE = re.compile(
    rf"(?:\bto\b|\bbe\b|\bis\b|\bbecomes?\b|\bgets?\b|\bdeserves?(?:[ ]only)?\b|\bat\b|\bas\b|[:=]|->|→|改为|为)[ ]*"
    rf"(?:a[ ])?(?P<value>{_AMOUNT})(?![0-9])(?!\w)",
    re.IGNORECASE,
)
_PER_RULE = re.compile(
    rf"(?<![\w.])(?P<score>{_AMOUNT})(?:[ ]*(?:/|out[ ]of)[ ]*(?P<scale>{_QUANTITY}))?(?:[ ]an?\b)?[ ]*{_UNIT}?["
    rf" ]+(?:for|on|in|under|to)[ ]+"
    rf"(?P<label>{_RULE}[ ]*{_NUMBER}|(?:the[ ])?[a-z]+(?:[ ][a-z]+)?)",
    re.IGNORECASE,
)
_BARE_LIST = re.compile(
    rf"[(\[]?[ ]*(?P<values>{_QUANTITY}(?:[ ]*[,;/| ][ ]*{_QUANTITY}){{4}})[ ]*[)\]]?[ .]*(?:=.*|$)"
)
_BETWEEN = re.compile(
    rf"[ ]*[,;./|][ ]*(?:and[ ]+)?(?=(?:{_RULE}|and )[ ]*#?{_NUMBER})|[ ]+(?={_RULE}[ ]*#?{_NUMBER}[ ]*[:=(])", re.I
)
_SEPARATOR = re.compile(
    r"=>|⇒|[:=]|(?:^|[ ])[\u2013\u2014-]+[ ]|,(?=[ ]*[0-9.]+[ ]*$)|\u2013|\u2014|->|→|\.{2,}|\t|[ ]{2,}|\b(?:is|gets?"
    r"|receives?|earns?|scores?)\b",
    re.I,
)
_CLAUSE = re.compile(rf"[.;!?\u3002\n](?=\s|$)|,[ ]*(?:and|while|but)[ ]+(?=(?:for[ ]+)?{_RULE})", re.IGNORECASE)
_ANY_NUMBER = rf"(?<![\w.]){_QUANTITY}(?![\w])|\b(?:zero|half a point|one point|two points|full marks(?! \())\b"
_GIVEN = re.compile(
    r"\b(?:giv\w+|gave|gets?|got|award\w*|assign\w*|deserv\w*|earn\w*|receiv\w*|scor\w*|is|also|marks|points|at"
    r"|with|a)[ ]+(?:it[ ]+|the[ ]\w+[ ]+|\u241f[ ]+)?(?:an?[ ]+|only[ ]+|just[ ]+|full[ ]marks[ ]*|also[ ]+)*"
    rf"\(?(?P<value>{_QUANTITY}|zero|half)\b|(?P<before>{_QUANTITY})[ ]+(?:points?[ ]+)?(?:for|on)[ ]+\u241f",
    re.IGNORECASE,
)
_MAXIMUM_ROW = re.compile(r"(?:max|weight|possible|available|out of|worth|满分|滿分|満点|höchst)", re.IGNORECASE)
_LABELLED = re.compile(r"[^:=]+[:=][^:=]*[0-9][^:=]*")
_OWN_SCORE = re.compile(rf"(?:^|[.;,!()\[\u2014\u2013-])[ ]*{_SCORE_WORD}[ ]*[:=][ ]*(?P<value>.+)$", re.IGNORECASE)
_NESTED = re.compile(
    r"<(?P<name>[A-Za-z][\w-]{0,40})(?P<attributes>(?:\s[^<>]{0,200})?)>(?:(?!</(?P=name)>"
    r"|<(?P=name)\b)[\s\S]){0,2000}?"
    r"<(?:score|points|value|rating|awarded)>(?P<value>[^<]{1,30})<(?:(?!</(?P=name)>)[\s\S]){0,2000}</(?P=name)>"
)
_ELEMENT = re.compile(
    r"<(?P<name>[A-Za-z][\w-]{0,40})(?P<attributes>(?:\s[^<>]{0,200})?)(?:/>|>(?:[ ]*(?P<value>[0-9][^<\n]{0,200})"
    r"|[^<]{0,2000})</(?P=name)>)"
)
_ATTRIBUTE = re.compile(r"([\w-]+)\s*=\s*[\"']([^\"']*)[\"']")
_SCORE_ELEMENT = re.compile(r"<(?:final[_-]?)?(?:scores?|judge?ment|ratings?|verdict)>[ ]*\n", re.IGNORECASE)
_CIRCLED = re.compile(r"[\u2460-\u2464]")
_NAMED_VALUES = tuple(
    re.compile(rf"(?:{name.pattern})[^0-9,;]{{0,25}}?[ :=]({_QUANTITY})(?=[ ]*(?:[,;.)]|and\b|\(|$))")
    for name in _NAMES
)
_MAPPED = re.compile(rf"(?<![\w.])([1-9])[ ]*(?:→|->|=>|:)[ ]*({_QUANTITY})(?=[ ]*(?:[,;.)}}|]|$))")
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|or|about|roughly|probably|between|might|could)\b|[?~\u2248]|[0-9][ ]?[-\u2013][ ]?[0-9]",
    re.IGNORECASE,
)
_RANGE = re.compile(
    r"[(\[][ ]*(?:points?[ :]*)?0[ ]*(?:[-\u2013\u2014~]|to|\.\.)[ ]*[12](?:\.0)?[ ]*(?:points?|pts?|分)?[ ]*[)\]]",
    re.IGNORECASE,
)
_BREAK = re.compile(r"</?(?:li|tr|p|br|div|ol|ul|h[1-6]|table|tbody|thead)\b[^<>]*>", re.IGNORECASE)
_LATEX = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        *((r"\\(?:text\w*|math\w+|boxed|fbox|operatorname|emph|underline)\s*\{([^{}]*)\}", r"\1"),) * 4,
        (r"\\(?:begin|end)\{[^{}]*\}(?:\{[^{}]*\})?|\\\\|\\hline|\\item", "\n"),
        (r"\\(?:[,;:! ()\[\]]|q?quad|left|right|rightarrow|to)|\$+|[{}](?=[^{}\"]*$)", " "),
        (r"(?m)^([^&\n]*)&", r"\1|"),
        (r"(?m)^(?=[^&\n]*\|[^&\n]*&)|&", "|"),
    )
)
_MAXIMUM_FIRST = re.compile(r"[(\[][^()\[\]]{1,40}[)\]][ ]*(?:[:=]|[\u2013\u2014-]+(?=[ ]))[ ]*(?P<value>.+)")
_RULE_KEYS = ("rule", "name", "criterion", "rule_name", "title", "id", "number", "rule_number", "index", "category")
_JSON_KEYS = ("score", "points", "value", "rating", "awarded", "mark", "grade", "得分", "分数")
_HALF = re.compile(r"([0-9])?[ ]?½")
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~|<(?:s|del|strike)>[^<\n]{0,200}</(?:s|del|strike)>", re.IGNORECASE)
_HTML = re.compile(r"</?[a-z][a-z0-9]{0,10}(?:[ ][^<>]{0,200})?/?>", re.IGNORECASE)
_COMMENT = re.compile(r"(?<=[0-9])[ \t]+(?:#+|//)[ ]")
_LONG_QUOTE = re.compile(
    r"[\"\u201c](?=[^\"\u201d\n]{0,300}(?:rule|score)[ ]*[1-5:])[^\"\u201d\n]{12,600}[\"\u201d]", re.I
)
_MARKUP = str.maketrans(
    {"*": "", "`": "", "#": "", "_": " ", "\u200b": "", "\ufe0f": "", "\u2212": "-", "\u00a0": " ", '"': ""}
)


def parse_judgement(text: str) -> Judgement | Unjudged:
    r"""Read the scores in what a judge wrote.

    The five scores may stand in JSON, in lines, in a list or in a table, by the rules' numbers or names, in any order,
    with or without a heading; `2/2`, `2 out of 2`, `two points`, `full marks`, full-width digits and labels in other
    languages are understood, and so are remarks behind a score. Later corrections (`Actually, rule 2 should be 0`,
    `2 -> 0`, a block of final scores) replace what they correct. Thoughts, quotations and drafts do not count. What a
    careful person could not be sure of is refused: ranges, two judgements that disagree, a total that is not the sum,
    scores that the judge takes back.

    Args:
        text (`str`):
            Text of the judge. Of more than 50,000 characters, the last are read.

    Returns:
        `Judgement` or `Unjudged`: the scores, or the first reason why there are none.

    Example:

    ```python
    >>> parse_judgement("Score:\n1. Works: 2/2\n2. Bounds: 0.5\n3. Covers: 1\n4. Reads: 1\n5. Style: 0").total
    4.5
    >>> parse_judgement('{"scores": [2, 0.5, 1, 1, 0]}').total
    4.5
    >>> parse_judgement("It works, and I would give it 5 of 6.")
    Unjudged(reason='no_scores')

    ```
    """
    plain = _plain(parse_answer(text).text[-_MAX_CHARS:])
    blocks, rest = _json_blocks(plain)
    lines = [_without_markup(line) for line in rest.splitlines()]
    blocks += _Lines(lines).blocks()
    if not any(block.complete for block in blocks) and (told := _told_scores(lines)) is not None:
        blocks = [told]
    return _decide(sorted(blocks, key=lambda block: block.start), lines)


@dataclass
class _Block:
    """Hold the scores of one judgement in a text.

    Args:
        start (`int`), end (`int`): numbers of its first line and of the line behind it.
        over (`str`): its heading, and the line above.
        headed (`bool`): whether a heading opens it.
        prose (`bool`): whether its scores stand in sentences, as in an analysis.
        scores (`dict[int, float | str]`): by rule, from 1, the score or why there is none.
        total (`float`, *optional*): what the judge says that the sum is.
    """

    start: int
    end: int
    over: str = ""
    headed: bool = False
    prose: bool = False
    scores: dict[int, float | Refusal] = field(default_factory=dict)
    total: float | None = None

    @property
    def numbers(self) -> dict[int, float]:
        """The scores that are numbers."""
        return {rule: score for rule, score in self.scores.items() if isinstance(score, float)}

    @property
    def complete(self) -> bool:
        """Whether all five rules have a score, and no other rule has."""
        return set(self.scores) == set(range(1, len(RULES) + 1)) == set(self.numbers)

    @property
    def counts(self) -> bool:
        """Whether its scores are the judge's own and final, as far as the words over it say."""
        heading, _, above = self.over.partition("\n")
        above = above.strip()[-_MAX_INTRODUCTION:]
        last_sentence = re.split(r"[.!?;\u3002][ ]*(?=\S)", above)[-1]
        if _FINAL.search(heading):
            return not (_OTHER_VOICE.search(_FINAL.sub("", heading)) or _QUOTED.search(heading))
        if heading and not _introduces_own_scores(heading):
            return False
        if above.endswith((":", "\uff1a")):
            return _introduces_own_scores(last_sentence)
        if heading or not above:
            return True
        if above[-1] not in _SENTENCE_ENDS and _SPEAKS_OF_SCORES.search(last_sentence):
            return _introduces_own_scores(last_sentence)
        about_scores = _SPEAKS_OF_SCORES.search(last_sentence) or above[-1].isalpha()
        return not (about_scores and _OTHER_VOICE.search(last_sentence))


def _introduces_own_scores(words: str) -> bool:
    """Return whether a heading or introduction consists of words by which a judge introduces its own scores."""
    if _OTHER_VOICE.search(words) or _QUOTED.search(words) or _DRAFT.search(words):
        return False
    words = _REASON.sub("", words).rpartition(",")[2]
    if _CJK.search(words):
        return len(words) <= _MAX_SHORT_HEADING or _SPEAKS_OF_SCORES.search(words) is not None
    found = re.findall(r"[^\W\d_]+", words.casefold())
    return len(found) <= _MAX_INTRODUCTION_WORDS and all(_OWN_WORD.fullmatch(word) for word in found)


def _decide(blocks: Sequence[_Block], lines: Sequence[str]) -> Judgement | Unjudged:
    others = [block for block in blocks if block.numbers and not block.counts]
    blocks = [block for block in blocks if block.counts and block.scores]
    complete = [block for block in blocks if block.complete]
    if not complete:
        return Unjudged(_why_incomplete(blocks))
    if not all(block.prose for block in complete):
        blocks = [block for block in blocks if not block.prose]
        complete = [block for block in blocks if block.complete]
    base = complete[0]
    scores = dict(base.numbers)
    total = base.total
    if any(
        not block.headed
        and block.end <= base.start
        and not _FINAL.search(base.over)
        and _disagrees(block.numbers, scores)
        for block in blocks
    ):
        return Unjudged("contradictory")
    if any(other.start >= base.end and _disagrees(other.numbers, scores) for other in others) and not any(
        _OWN_FINAL.search(block.over) for block in complete
    ):
        return Unjudged("contradictory")
    for block in blocks:
        if block.start < base.end or block is base:
            continue
        final = _FINAL.search(block.over) is not None
        if block.headed and not final and block.scores.keys() - block.numbers.keys():
            return Unjudged("contradictory")
        if _disagrees(block.numbers, scores) and not final:
            return Unjudged("contradictory")
        if block.numbers and _disagrees(block.numbers, scores):
            scores |= block.numbers
            total = block.total
        elif block.total is not None:
            total = block.total
    last = max(block.end for block in complete)
    for line in lines[last:]:
        amended = _amendment(line)
        if amended is None:
            continue
        if isinstance(amended, str):
            return Unjudged("contradictory")
        scores |= amended
        total = None
    if set(scores) - set(range(1, len(RULES) + 1)):
        return Unjudged("extra_score")
    if any(_WITHDRAWN.search(line) for line in lines[base.start :]) or any(
        (_UNDERMINED.search(line) or (_DEICTIC.search(line) and not _BENIGN.search(line))) and _amendment(line) is None
        for line in lines[last:]
    ):
        return Unjudged("withdrawn")
    if total is not None and abs(total - sum(scores.values())) > _TOLERANCE:
        return Unjudged("contradictory")
    return Judgement(tuple(scores[number] for number in range(1, len(RULES) + 1)))


def _told_scores(lines: Sequence[str]) -> _Block | None:
    """Return scores that are told in sentences, one number for each of the five rules and none besides."""
    scores: dict[int, float | Refusal] = {}
    for clause in _CLAUSE.split("\n".join(lines)):
        references = list(_REFERENCE.finditer(clause))
        if not references:
            continue
        rest = _REFERENCE.sub("\u241f", clause)
        numbers = re.findall(_ANY_NUMBER, rest)
        if not numbers:
            continue
        given = _GIVEN.search(rest)
        rule = _DIGITS.get(references[0]["number"].casefold(), 0)
        if len(references) != 1 or len(numbers) != 1 or given is None or rule in scores:
            return None
        scores[rule] = _score(rule, given["value"] or given["before"], None)
    return _Block(0, len(lines), prose=True, scores=scores) if len(scores) == len(RULES) else None


def _why_incomplete(blocks: Sequence[_Block]) -> Refusal:
    block = max(blocks, key=lambda block: (len(block.scores), block.headed), default=None)
    if block is None:
        return "no_scores"
    if set(block.scores) - set(range(1, len(RULES) + 1)):
        return "extra_score"
    problems = [score for _, score in sorted(block.scores.items()) if isinstance(score, str)]
    return problems[0] if problems and len(block.scores) >= len(RULES) else "missing_score"


def _disagrees(scores: Mapping[int, float], others: Mapping[int, float]) -> bool:
    return any(others.get(rule, score) != score for rule, score in scores.items())


def _amendment(line: str) -> dict[int, float] | str | None:
    """Return the scores that a remark behind the scores changes; a text where it does so unclearly."""
    if _REFERENCE.search(line) and _UNSURE.search(line):
        return line
    if not (cue := _AMENDING.search(line)):
        return None
    references = list(_REFERENCE.finditer(line))
    found: dict[int, float] = {}
    for reference, following in zip(references, [*references[1:], None], strict=False):
        number = _DIGITS.get(reference["number"].casefold(), 0)
        tail = line[reference.end() : following.start() if following else len(line)]
        values = list(_NEW_VALUE.finditer(tail))
        score = _score(number, values[-1]["value"], None) if values and 1 <= number <= len(RULES) else None
        if isinstance(score, float):
            found[number] = score
        elif (
            values
            or _LESS.search(tail)
            or re.search(rf"\b(?:points?|scores?)\b|\bby[ ]+{_AMOUNT}\b|[0-9]", tail, re.IGNORECASE)
            or cue.start() < reference.start()
        ):
            return line
    if not references and re.search(r"\b(?:deduct|take off|lower|rais)\w*\b.*\b(?:points?|scores?)\b", line, re.I):
        return line
    return found or None


def _plain(text: str) -> str:
    """Return a text without the markup of LaTeX, XML and HTML, its elements and rows as lines."""
    if "\\" in text:
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    if "<" in text:
        for element in (_NESTED, _ELEMENT):
            text = element.sub(_element_as_line, text)
        text = _BREAK.sub("\n", _SCORE_ELEMENT.sub("\nScore:\n", text))
    text = _CIRCLED.sub(lambda match: f"\nRule {ord(match[0]) - 0x245F}: ", text)
    text = _STRUCK.sub("", _HALF.sub(lambda match: f"{match[1] or 0}.5", html.unescape(text)))
    return unicodedata.normalize("NFKC", text)


def _element_as_line(element: re.Match[str]) -> str:
    attributes = {key.casefold(): value for key, value in _ATTRIBUTE.findall(element["attributes"])}
    named = (attributes[key] for key in _RULE_KEYS if key in attributes)
    rule = next(filter(None, map(_json_rule, named)), None) or _json_rule(element["name"])
    given = next((attributes[key] for key in _JSON_KEYS if key in attributes), None)
    value = element["value"] if given is None else given
    if rule is None or value is None or not re.match(r"\s*[0-9½]", value):
        return element[0]
    return f"\nRule {rule}: {value.strip()}\n"


def _without_markup(line: str) -> str:
    line = _RANGE.sub("", line)
    line = _COMMENT.sub(" ; ", _HTML.sub(" ", _LONG_QUOTE.sub("", line[:_MAX_LINE]))).translate(_MARKUP)
    return "".join(char for char in line if unicodedata.category(char) != "So" or char in "→⇒")


def _known_rule(name: str) -> int | None:
    """Return the rule that a name speaks of: the one that is mentioned first."""
    found = [
        (match.start(), number) for number, rule in enumerate(_NAMES, 1) if (match := rule.search(name.casefold()))
    ]
    return min(found)[1] if found else None


def _amount(text: str) -> float | None:
    word = " ".join(text.casefold().split())
    return _AMOUNTS[word] if word in _AMOUNTS else float(word.replace(",", "."))


def _score(rule: int, text: str, scale: str | None) -> float | Refusal:
    """Return a score, or why a number is none."""
    score = _amount(text)
    if not 1 <= rule <= len(RULES) or score is None:
        return "extra_score"
    if scale is not None and _amount(scale) != RULES[rule - 1].maximum:
        return "other_scale"
    return _refusal(RULES[rule - 1], score) or score


def _read_cell(rule: int, text: str) -> float | Refusal:
    """Return the score that is all of a text but a remark, or why there is none."""
    score = _read_value(rule, text)
    if score is None:
        return "not_a_number" if text.strip() else "missing_score"
    return score


def _read_value(rule: int, text: str) -> float | Refusal | None:
    """Return the score that a text opens with, why it is none, or `None` where there is no number."""
    text = text.strip()
    if _FULL.match(text) and 1 <= rule <= len(RULES):
        return RULES[rule - 1].maximum
    if re.match(r"1/2[ ](?:of[ ])?(?:a[ ])?point\b", text, re.IGNORECASE):
        return 0.5
    if _VAGUE.match(text):
        return "not_a_number"
    found = _VALUE.match(text)
    if found is None:
        return None
    if found["score"].casefold() in ("a", "no", "none", "one", "two", "three", "half") and not re.match(
        rf"(?:[ ]*(?:a[ ])?(?:{_UNIT}|out of\b|of\b|/))|[ .(]*$|[ ]*[\u2013\u2014-]",
        text[found.end("score") :],
        re.IGNORECASE,
    ):
        return None
    rest = found["rest"]
    if changed := _CHANGED.search(rest):
        if re.match(
            r"[ ]*(?:$|->|→|=>|⇒|[(\[,;.]|\u2026|[\u2013\u2014-])|[ ]*(?:no|wait|actually|rather|make|revised"
            r"|changed)",
            rest,
            re.I,
        ):
            return _read_value(rule, changed["value"])
        return "not_a_number"
    if equation := re.fullmatch(rf"[ ]*[-+][ ]*{_QUANTITY}(?:[ ]*[-+][ ]*{_QUANTITY})*[ ]*=[ ]*(.+)", rest):
        return _read_value(rule, equation[1])
    if _DOUBT.search(rest):
        return "not_a_number"
    if not _REMARK.match(rest):
        return None
    scale = found["scale"] or found["late"]
    return _score(rule, found["score"], scale)


class _Lines:
    """Find the blocks of scores in lines of text.

    Args:
        lines (`Sequence[str]`): the lines, without markup.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._found: list[_Block] = []
        self._block: _Block | None = None
        self._pending: int | None = None
        self._columns: list[str] | None = None
        self._above = ""

    def blocks(self) -> list[_Block]:
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
        """Read a line outside of tables, and return whether there was something to read."""
        if found := _SUM.match(line):
            self._note_total(found)
            return True
        if self._pending is not None and (
            own := re.match(
                rf"(?:final[ ])?{_SCORE_WORD}[ ]*[:=-]+(.+)|(?:.{{0,300}}?[.!?:;][ ]+)?([0-9.]+[ ]*(?:/[ ]*[12]"
                rf"|{_UNIT}))[.]?$",
                line,
                re.I,
            )
        ):
            score = _read_value(self._pending, own[1] or own[2])
            self._enter(number, self._pending, "not_a_number" if score is None else score)
            self._pending = None
            return True
        if (
            (heading := _HEADING.fullmatch(line))
            and not _REFERENCE.search(heading["mark"])
            and not _known_rule(heading["mark"])
        ):
            self._open(number, line[: heading.start("rest")], headed=True)
            return self._read_rest(number, heading["rest"].strip())
        if self._in_scores(number) and not self._block_scores() and (values := self._bare_values(number, line)):
            self._enter_all(number, values)
            return True
        if self._block is not None and self._block.complete and _amendment(line) is not None:
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
        """Read what stands on the line of a heading."""
        if not rest:
            return True
        if (values := _BARE_LIST.fullmatch(rest)) is not None:
            self._enter_all(number, _numbers(values["values"]))
            return True
        if (mapped := self._mapped_values(rest)) is not None:
            self._enter_all(number, mapped)
            return True
        only = re.fullmatch(
            rf"(?P<total>{_QUANTITY})(?:[ ]*(?:/|out of|of)[ ]*(?P<scale>[0-9.]+))?(?:[ ]points?)?[.]?", rest
        )
        if only is not None:
            self._note_total(only)
            return True
        return any([self._read_entry(number, part) for part in _BETWEEN.split(rest) if part and part.strip()])

    def _read_prose(self, number: int, line: str) -> bool:
        """Read `2 points for rule 1, 1 for rule 2` and the like."""
        found = [
            (rule, _score(rule, match["score"], match["scale"]))
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
        """Read `functionality 2, boundary 0.5, ...`: all five names on a line, each with a number right behind it."""
        found = [(rule, name.search(line.casefold())) for rule, name in enumerate(_NAMED_VALUES, 1)]
        spare = len(re.findall(_QUANTITY, line)) - len(RULES)
        if _HEDGE.search(line) or spare > 1 or not all(match for _, match in found):
            return False
        self._open(number, "", headed=False)
        for rule, match in found:
            if match is not None:
                self._enter(number, rule, _score(rule, match[1], None))
        return True

    def _rule_of(self, label: str) -> int | None:
        reference = _REFERENCE.match(label)
        return _DIGITS.get(reference["number"].casefold(), 0) if reference else _known_rule(label)

    def _read_entry(self, number: int, line: str) -> bool:
        """Read one rule's line."""
        label = _LABEL.match(line)
        assert label is not None
        rest = line[label.end() :]
        by_number = _DIGITS.get((label["rule"] or label["item"] or "").casefold())
        if label["rule"] is not None and by_number is None:
            by_number = int(label["rule"])
        head = re.split(r"[:=\t]|,(?=[ ]*[0-9])|[ ][\u2013\u2014-]+[ ]", rest)[0][:80]
        named = _known_rule(head)
        if (
            label["rule"] is None
            and (named is None or len(head.split()) > 8)
            and not (label["item"] and self._in_scores(number))
        ):
            return False
        rule = self._choose(by_number, named, head)
        if rule is None:
            return False
        score = _value_behind(rule, rest, label["item"] is not None or label["rule"] is not None)
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
        """Return the rule: by its name, unless the number's own name is in the label, too."""
        if named is None or by_number is None:
            return by_number if named is None else named
        if 1 <= by_number <= len(RULES) and _NAMES[by_number - 1].search(head.casefold()):
            return by_number
        return named

    def _is_row(self, number: int, line: str) -> bool:
        """Read a line of a table, and return whether it is one."""
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 2 or all(_LABELLED.fullmatch(cell) for cell in cells):
            return False
        rules = [self._rule_of(cell) for cell in cells]
        is_head = len([rule for rule in rules if rule]) >= len(RULES) or _score_column(cells) is not None
        if self._columns is None and not is_head and not line.lstrip().startswith("|") and rules[0] is None:
            return False
        if all(not cell.strip("-: ") for cell in cells):
            return True
        if found := _SUM.match(
            " ".join([cells[0], ":", next((c for c in reversed(cells) if re.match(r"[0-9]", c)), "")])
        ):
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
        if len([rule for rule in across if rule]) >= len(RULES):
            for rule, cell in zip(across, cells, strict=False):
                if rule:
                    self._enter(number, rule, _read_cell(rule, cell))
            return True
        return self._read_row(number, cells, rules)

    def _read_row(self, number: int, cells: Sequence[str], rules: Sequence[int | None]) -> bool:
        column = _score_column(self._columns or [])
        named = next((rule for cell, rule in zip(cells, rules, strict=True) if rule and _known_rule(cell)), None)
        first = next((rule for rule in rules if rule), None)
        item = re.fullmatch(r"([1-9])[.)]?", cells[0])
        by_number = _DIGITS[item[1]] if item else self._number_of(cells[0])
        rule = named or first or by_number
        if by_number is not None and named is not None:
            rule = self._choose(by_number, named, " ".join(cells[:2]))
        if rule is None:
            return column is not None
        if column is not None and column < len(cells):
            self._enter(number, rule, _read_cell(rule, cells[column]))
            return True
        others = [cell for position, cell in enumerate(cells) if not (position == 0 or rules[position])]
        scores = [score for cell in others if (score := _read_value(rule, cell)) is not None]
        if scores:
            self._enter(number, rule, scores[0] if len(scores) == 1 else "not_a_number")
        return True

    def _number_of(self, cell: str) -> int | None:
        label = _LABEL.match(cell)
        text = (label["rule"] or label["item"] or "") if label else ""
        return _DIGITS.get(text.casefold())

    def _bare_values(self, number: int, line: str) -> list[float] | None:
        """Return five scores without labels: on this line, or on this one and the next four."""
        if found := _BARE_LIST.fullmatch(line):
            return _numbers(found["values"])
        following = [
            _BULLET.sub("", text, count=1).strip() for text in self._lines[number : number + 12] if text.strip()
        ]
        values = [re.fullmatch(rf"({_QUANTITY})(?:[ ]*/[ ]*[12])?", text) for text in following[: len(RULES)]]
        if len(values) < len(RULES) or not all(values):
            return None
        return [float(value[1].replace(",", ".")) for value in values if value]

    def _closing_values(self, number: int) -> list[float] | None:
        """Return five bare numbers that are all the rest of the text, one per line."""
        rest = [text.strip() for text in self._lines[number:] if text.strip()]
        if len(rest) != len(RULES) or not all(re.fullmatch(_QUANTITY, text) for text in rest):
            return None
        return [float(text.replace(",", ".")) for text in rest]

    @staticmethod
    def _mapped_values(line: str) -> list[float] | None:
        """Return five scores that stand behind the numbers of their rules, as in `1 -> 2, 2 -> 0.5, ...`."""
        pairs = _MAPPED.findall(line)
        if _REFERENCE.search(line) or [number for number, _ in pairs] != [
            str(rule) for rule in range(1, len(RULES) + 1)
        ]:
            return None
        return [float(value.replace(",", ".")) for _, value in pairs]

    def _in_scores(self, number: int) -> bool:
        return self._block is not None and self._block.headed and number - self._block.end <= 12

    def _block_scores(self) -> bool:
        return self._block is not None and bool(self._block.scores)

    def _note_total(self, found: re.Match[str]) -> None:
        scale = found["scale"]
        if self._block is not None and (scale is None or float(scale) == sum(rule.maximum for rule in RULES)):
            self._block.total = float(found["total"].replace(",", "."))

    def _open(self, number: int, heading: str, *, headed: bool) -> _Block:
        self._block = _Block(number, number + 1, f"{heading}\n{self._above}", headed)
        self._found.append(self._block)
        self._pending = None
        return self._block

    def _enter_all(self, number: int, values: Sequence[float]) -> None:
        for rule, value in enumerate(values, 1):
            self._enter(number, rule, _refusal(RULES[rule - 1], value) or value)

    def _enter(self, number: int, rule: int, score: float | Refusal, *, weak: bool = False) -> None:
        block = self._block
        known = None if block is None else block.scores.get(rule)
        if block is None or (isinstance(known, float) and known != score and not weak):
            above = self._above
            block = self._open(number, "", headed=False)
            block.over = f"\n{above}"
        if weak and isinstance(known, float):
            return
        block.scores[rule] = score
        block.end = number + 1


def _value_behind(rule: int, rest: str, numbered: bool) -> float | Refusal | None:
    """Return the score behind a rule's label, why it is none, or `None` where there is no number."""
    if behind := _MAXIMUM_FIRST.match(rest):
        rest = rest if _read_value(rule, behind["value"]) is None else behind["value"]
    if numbered and (direct := _read_value(rule, rest)) is not None:
        return direct
    before = 0
    for separator in _SEPARATOR.finditer(rest):
        label = rest[before : separator.start()]
        if before and not (
            re.search(rf"\b{_SCORE_WORD}[ ]*$", label, re.I) or (_known_rule(label) and len(label.split()) <= 6)
        ):
            break
        if len(label) > 100:
            break
        if (score := _read_value(rule, rest[separator.end() :])) is not None:
            return score
        if separator[0] in ":=" or not before:
            before = separator.end()
    if inside := re.match(rf"[^:=()]{{1,60}}[(\[](?P<value>{_QUANTITY})[ ]*/[ ]*(?P<scale>[12](?:\.0)?)[)\]]", rest):
        return _score(rule, inside["value"], inside["scale"])
    if (own := _OWN_SCORE.search(rest)) and not _OWN_SCORE.search(own["value"]):
        return _read_value(rule, own["value"])
    if not _RUBRIC.search(rest) and (found := _AT_END.search(rest)):
        return _score(rule, found["score"], found["scale"])
    return None


def _numbers(text: str) -> list[float]:
    separator = r"[ ]*[;/| ][ ]*|,[ ]+" if re.search(r"[;/| ]", text.strip()) else r","
    parts = [part for part in re.split(separator, text.strip()) if part]
    return [float(part.replace(",", ".")) for part in parts]


def _score_column(cells: Sequence[str]) -> int | None:
    """Return the number of the column that a table's head calls that of the scores."""
    found = [
        number
        for number, cell in enumerate(cells)
        if re.search(rf"\b{_SCORE_WORD}\b|awarded|given|得分|评分|分数", cell, re.I)
        and not re.search(r"[0-9]|max|weight|possible|available|full|满分|worth", cell, re.I)
        and not _known_rule(cell)
    ]
    final = [number for number in found if _FINAL.search(cells[number])]
    return final[-1] if final else found[0] if len(found) == 1 else None


def _json_blocks(text: str) -> tuple[list[_Block], str]:
    """Return the judgements in JSON, and the text with blanks in their place."""
    blocks: list[_Block] = []
    position = tries = 0
    while tries < _MAX_JSON and (match := re.compile(r"[{\[]").search(text, position)):
        tries += 1
        value, end = _decode(text, match.start())
        scores = None if value is None else _json_scores(value)
        if scores is None:
            position = match.start() + 1 if value is None else end
            continue
        start = text.count("\n", 0, match.start())
        before = [
            line for line in text[: match.start()].splitlines() if line.strip() and not line.lstrip().startswith("```")
        ]
        block = _Block(
            start, text.count("\n", 0, end) + 1, "\n" + (before[-1] if before else ""), headed=True, scores=scores
        )
        block.total = _json_total(value)
        blocks.append(block)
        text = text[: match.start()] + re.sub(r"[^\n]", " ", text[match.start() : end]) + text[end:]
        position = end
    return blocks, text


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


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's values; a key with two different ones is none's."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = "contradictory" if key in found and found[key] != value else value
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated)


def _json_scores(value: Any) -> dict[int, float | Refusal] | None:
    """Return the scores in a decoded value, or `None` if it is not about any."""
    if isinstance(value, list):
        if len(value) == len(RULES) and all(_is_number(item) for item in value):
            return {rule: _json_score(rule, item) for rule, item in enumerate(value, 1)}
        entries = [item for item in value if isinstance(item, dict)]
        listed = {rule: _json_score(rule, item) for item in entries if (rule := _json_rule_of_entry(item)) is not None}
        return listed if len(listed) == len(entries) > 1 else None
    if not isinstance(value, dict):
        return None
    own = [(rule, item) for key, item in value.items() if (rule := _json_rule(str(key))) is not None]
    if len(own) >= 2:
        repeated = len({rule for rule, _ in own}) < len(own)
        return {rule: "contradictory" if repeated else _json_score(rule, item) for rule, item in own}
    inside = [found for item in value.values() if (found := _json_scores(item)) is not None]
    if not inside:
        return None
    return inside[0] if all(found == inside[0] for found in inside) else {1: "contradictory"}


def _json_rule(key: str) -> int | None:
    plain = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|[_-]", " ", key).strip()
    label = _LABEL.match(plain)
    number = (label["rule"] or label["item"]) if label else None
    if number is None and (
        digits := re.fullmatch(r"(?:rule|r|score|criterion|rule score)?[ ]*([1-9])(?:[ ]*score)?", plain, re.I)
    ):
        number = digits[1]
    named = _known_rule(plain)
    return named if named is not None else _DIGITS.get((number or "").casefold())


def _json_rule_of_entry(item: Mapping[str, Any]) -> int | None:
    for key in _RULE_KEYS:
        if key in item and (rule := _json_rule(str(item[key]))) is not None:
            return rule
    return None


def _json_score(rule: int, item: Any) -> float | Refusal:
    if isinstance(item, dict):
        lowered = {str(key).casefold(): inner for key, inner in item.items()}
        found = [lowered[key] for key in _JSON_KEYS if key in lowered]
        return _json_score(rule, found[0]) if len(found) == 1 else "not_a_number"
    if _is_number(item):
        return _score(rule, repr(float(item)), None) if abs(item) < 1e6 else "out_of_range"
    if isinstance(item, str):
        return "contradictory" if item == "contradictory" else _read_cell(rule, _plain(item))
    return "missing_score" if item is None else "not_a_number"


def _json_total(value: Any) -> float | None:
    if not isinstance(value, dict):
        return None
    for key, item in value.items():
        if re.fullmatch(r"(?:total|sum|overall|final)(?:[ _-]?(?:score|points))?", str(key), re.I):
            found = re.fullmatch(r"([0-9.]+)(?:\s*(?:/|out of)\s*6(?:\.0)?)?", str(item).strip())
            return float(found[1]) if found else None
    return next((total for item in value.values() if (total := _json_total(item)) is not None), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
