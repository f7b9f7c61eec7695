"""Parsing of judgements.

The text of a judge may contain JSON, lines, lists or tables, in several languages. It is parsed to blocks of scores,
each with the words above it. A block is valid if these words are those by which judges introduce their own scores;
final scores and corrections replace earlier ones. Ambiguous texts are refused with a reason.
"""

import re
from collections.abc import Mapping, Sequence

from ...generation import parse_answer
from .blocks import FINAL, Block, Lines, amendment, read_json
from .markup import plain_text, without_markup
from .rubric import MAX_TOTAL, RULE_NUMBERS, RULES, Judgement, Refusal, Unjudged
from .values import DIGITS, QUANTITY, REFERENCE, RULE, checked_score

__all__ = ["parse_judgement"]

_MAX_CHARS = 50_000
_MAX_INTRODUCTION = 160
_TOLERANCE = 0.01
_CODE = re.compile(r"[ ]*```[ ]*(?!text|markdown|md|json|ya?ml|xml|csv|plain)[a-z+#]+[0-9]?[ ]*", re.IGNORECASE)
_ENDS_IN_JSON_VALUE = re.compile(r"\"[ ]*:[ ]*\"?[0-9.]+\Z")
_LAST_WORD = re.compile(r"(?<!\S)\S+\Z")
_OWN_WORD = re.compile(
    r"i|my|me|mine|we|our|own|this|that|the|an?|these|here|below|is|are|was|be|as|of|for|on|in|by|to|per|with|and|or"
    r"|at|from|up|out|each|every|all|one|two|three|four|five|six|its?|so|s|ve|ll|d|overall|therefore|thus|hence|based"
    r"|accordingly|now|then|final(?:ly)?|last(?:ly)?|follow(?:s|ing)?|result(?:s|ing)?|conclusion|conclude|conclusive"
    r"|summary|verdict|decision|sub|scor(?:e|es|ed|ing)|scorecard|scoresheet|rat(?:e|es|ed|ings?)|grad(?:e|es|ed|ing)"
    r"|marks?|marking|points?|pts|evaluat\w+|assess\w*|judge?(?:s|d|ment|ments)?|review|rubric|rules?|criteri(?:on|a)"
    r"|items?|categor(?:y|ies)|dimensions?|breakdown|table|list|json|yaml|xml|answer|submission|solution|code|program"
    r"|response|analysis|above|given|giv(?:e|ing)|award(?:s|ed)?|assign(?:ed)?|allocat\w+|receives?|gets?|deserves?"
    r"|earns?|detailed|details|individual|revised|revision|corrected|correction|updated|adjusted|amended|reconsidered"
    r"|new|official|definitive|actual|ok(?:ay)?|well|right|after|considering|consideration|everything|careful|looking"
    r"|like|but|say|submitted|step"
    r"|reading|running|testing|checking|reflection|second|thought|would|will|let|us|go|goes|come|comes|down|think|can"
    r"|total|sum|totals|sums|put|together|feedback|report|task|ready|done|section|part|number|no|name|value|format"
    r"|requested|asked|instead|wait|edit|erratum|stands?|not|it|hand|scale|half|both|quick|short|brief|full|complete"
    r"|also|more|strict(?:er)?|fair|honest|basic|functionality|boundary|checks?|requirement|coverage|readability"
    r"|coding|practice|meine?|bewertung(?:en)?|punkte?|hier|ist|sind|die|der|das|endgültige?|ergebnis(?:se)?|gesamt"
    r"|note|notes?|noten|vergebe|vergabe|wie|folgt|ich|je|regel|regeln|puntuación|puntuaciones|puntaje|puntos|mis?"
    r"|resultado|evaluación|calificación|calificaciones|aquí|están|son|las?|los|el|por|regla|reglas|final(?:es)?|mes"
    r"|voici|les?|finale?s?|évaluation|points|par|règle|règles|ma|pontuação|avaliação|minha|nota|notas|penilaian|saya"
    r"|nilai|skor|hasil|valutazione|punteggi|punteggio|voti|miei|ocena|oceny|punkty|моя|мои|оценк[аи]|итог|итоговая"
    r"|баллы|puan|puanlar|değerlendirme|poäng|betyg",
    re.IGNORECASE,
)
"""Words by which judges introduce their own scores; with other words, the scores may be quoted or hypothetical."""
_RUBRIC = re.compile(r"\b(?:rubric|rules|criteria|scheme|guidelines?|maxim\w+|possible|available)\b", re.IGNORECASE)
_VERDICT = re.compile(r"\b(?:I|my|scor\w*|rat\w*|grad\w*|judge?\w*|evaluat\w*|assess\w*|verdict)\b", re.IGNORECASE)
_OTHER_SCALE = re.compile(r"\b(?:out of|from 0 to|0 ?[-\u2013] ?|scale of|1 to) ?(?:5|10|100)\b", re.IGNORECASE)
_OWN_FINAL = re.compile(r"\b(?:my|mine|final)\b", re.IGNORECASE)
_MAX_INTRODUCTION_WORDS = 25
_REASON = re.compile(r"\b(?:because|since)\b[^,]*", re.IGNORECASE)
_SENTENCE_ENDS = ".!?)\u2026\u3002"
_MAX_SHORT_HEADING = 6
_CJK = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
_SPEAKS_OF_SCORES = re.compile(
    r"\b(?:scor|rat(?:e|es|ed|ing)|grad|mark|point|judg|evaluat|assess|verdict|get|receiv|earn|award|deserv|this|these"
    r"|follow)|[评評得打]?分|评价|結果|结果|점수|평가|点|スコア|採点",
    re.IGNORECASE,
)
_OTHER_VOICE = re.compile(
    r"\b(?:ideal|perfect|flawless|best|exemplary|typical|average|reference|benchmark|baseline|hypothetical\w*"
    r"|theoretical\w*|imagin\w*|suppos\w*|assum\w*|pretend|potential\w*|sample|template|placeholder|orientation"
    r"|illustrat\w*|examples?|e\.?g|instance|dummy|format|schema|skeleton|previous\w*|earlier|prior|old|former\w*"
    r"|initial\w*|original\w*|draft|tentative\w*|preliminar\w*|provisional\w*|gpt\w*|chatgpt|claude|gemini|llama|qwen"
    r"|copilot|assistants?|another|other|others|colleagues?|peers?|humans?|reviewers?|raters?|graders?|annotators?"
    r"|instructors?|teachers?|professors?|author\w*|writers?|candidates?|students?|submitters?|users?|comment\w*"
    r"|docstrings?|string|readme|claim\w*|says|said|states|stated|wrote|written|quot\w*|cop(?:y|ied)|inject\w*"
    r"|embedded|self|wants?|asks?|begs?|demand\w*|hop(?:e|es|ing)|please|expected|expects?|if|unless|should|could"
    r"|might|may|once|had|were|leaderboard|maximum possible|someone|somebody|they|their|his|her|your?s?|he|she|sorry"
    r"|unable|cannot)\b|\b(?:once|after|with|when)\b[^.\n]{0,30}\b(?:fix|add|repair|chang|mend|patch)\w*|示例|例如"
    r"|例子|假如|如果|假设|作者|理想|声称|注释|模板|参考|原来|之前|满分答案|别人|候选|考生|学生|例として|もし|예시"
    r"|만약",
    re.IGNORECASE,
)
"""Words about scores that are not the judge's own verdict on this answer: of others, of examples, drafts."""
_UNDERMINED = re.compile(
    r"\b(?:I|we)\b[^.\n]{0,40}(?:\bnot|n['\u2019]t|\bnever|\bunable to|\brefuse to|\bdecline to)\b[^.\n]{0,20}\b(?:rat"
    r"|scor|judg|grad|trust|endors|agree|believ|stand|mean|confirm|vouch|assess|evaluat|accept|adopt|shar|sure|certain"
    r"|convinced|back|take)|\b(?:my|have|has|with|some|serious|any) doubts?\b|\bnot (?:convinced|sure|certain|final"
    r"|mine|my own)\b|\bI (?:disagree|doubt|reserve|retract|withdraw|take (?:it|that|them|this) back|misread|mixed up"
    r"|was wrong|made a mistake|overlooked|missed)\b|\b(?:this|that|these|those|they|scores?|numbers|points|ratings?"
    r"|the above)(?: \w+)?(?:['\u2019](?:s|re)| is| are| was| were| come| came)"
    r"(?: (?:just|only|merely|all|mostly|simply|basically|from|by|of|in|as|for|those|the|an?|ones|not|to be|taken"
    r"|given|supplied|written|meant|provided|nothing|more|than)){0,6} (?:what the|claim\w*|asserts?|author\w*"
    r"|candidate|submitter|student|inject\w*|manipulat\w*|examples?|template|placeholders?|hypothetic\w*|ideal"
    r"|illustrat\w*|reference|quot\w*|copied|someone|another|other (?:judge|reviewer|model)|previous|draft|random"
    r"|guess\w*|fabricat\w*|invented|made up|dummy|defaults?|tentative|provisional|preliminary|unverified)\b"
    r"|\b(?:these|those|they|scores|points|ratings|the above)\b[^.\n]{0,60}\b(?:assuming|would be|would have been"
    r"|only if|if (?:it|the|this)|were it|had it|not (?:yet )?final|tentative|provisional|preliminary|unverified"
    r"|hypothetic\w*)\b|\b(?:they|these|those|scores?|judge?ment)(?: above)? (?:comes?|came|stems?) from\b|\bit(?: is"
    r"|['\u2019]s)(?: \w+)?? (?:an? )?(?:quot\w+|placeholders?|template|illustration)\b|\b(?:far from|falls short of"
    r"|nowhere near) (?:that|this|it|these|the above)\b|\bas it stands\b|\bin reality\b|\bthis (?:one|answer"
    r"|submission) is (?:far|not|nothing)\b|^[^\w\n]*(?:hmm+|hm|wait|hold on|actually|on second thought|on reflection"
    r"|let me re\w+|scratch that|oh no|oops|no, )\b|\b(?:re-?(?:score|grade|rate|evaluate|assess|judge)|second look"
    r"|look again|double[- ]check|revisit)\b|\b(?:disregard|ignore)\b[^\w\n]*$|^[^\w\n]*(?:update|edit|correction"
    r"|erratum)\b(?!\W*$)|\b(?:I|we)(?:['\u2019]ll| will| shall| am going to| need to| want to| have to| intend to"
    r"| plan to)\b[^.\n]{0,30}\b(?:grade|score|rate|judge|evaluate|assess|check|re(?:view|visit|vise|read|run|think"
    r"|consider|do|turn to)\w*)\b|\b(?:let (?:me|us)|let['\u2019]s|I will|I['\u2019]ll|we will|going to|now"
    r"|next,?)(?: \w+)? (?:apply|go (?:through|over)|examine|look at|analy[sz]e|inspect|evaluate|assess|judge|grade"
    r"|score)\b|\bapplying (?:this|the|these) (?:rubric|rules|criteria|scale|scheme)\b|\bto be (?:confirmed|revised"
    r"|determined|continued)\b|\btbd\b|\bpending\b|不是我的|仅供参考|只是(?:示例|例子|举例)|以上(?:为|是)(?:示例|作者|答案|假设)",
    re.IGNORECASE,
)
"""Sentences that withdraw or qualify scores."""
_NOT_GIVEN = re.compile(
    r"\b(?:placeholder|copied|dummy|made[- ]up|arbitrary|random) (?:scores?|ratings?|points|marks|values|judge?ments?)"
    r"\b|\b(?:scores?|numbers|values|points|ratings?|these|those|they|all)\b(?: \w+)? (?:are"
    r"|were)(?: \w+){0,3} (?:copied|random(?:ly)?|placeholders?|dummy|made[- ]up|arbitrar\w+)\b|^\W*(?:placeholders?"
    r"|dummy|random|arbitrary)\b|\bI (?:\w+ )?copied\b|\bdisclaimers?\b|\byesterday\b|\bwould have (?:said|given"
    r"|been)\b|\b(?:I|we|just|mostly|basically|only) (?:\w+ )?guess(?:ed|ing)?\b"
    r"|(?:^|(?<=[.!?;] ))\W*(?:(?:(?:all|most|some|everything|it|this|that)(?: of (?:it|this|that|them|these))?"
    r" (?:is|are|was|were|has been|have been)(?: (?:just|all|only|simply|mostly|purely|entirely|completely|chosen"
    r"|picked|assigned|selected|given))*|(?:just |all |simply |mostly )?(?:chosen|picked|assigned|selected|given)|all"
    r"|just|simply)? )?(?:(?:arbitrar(?:y|ily)|random(?:ly)?|at random)(?=\W*$|[.,;!]| (?:chosen|picked|assigned"
    r"|selected|given)\b)|copied from\b[^.;\n]{0,40}\b(?:candidate|answer|author|student|submission|comment|docstring"
    r"|code|prompt|instruction|example|template))",
    re.IGNORECASE,
)
"""Words about scores that do not result from judging."""
_COUNTERFACTUAL = re.compile(
    r"(?:^|(?<=[.!?] ))[^\w\n]*(?:had|if|were|once|should)\b(?![^.\n]*\b(?:these|those|this|above)\b)"
    r"[^.\n]*\bwould\b[^.\n]*\.(?=\s|$)",
    re.IGNORECASE,
)
"""Sentences about scores of another answer, as where a fault were mended."""
_PRAISE = re.compile(
    r"(?P<before>(?:^|[.,;:!?(])(?:(?!\b(?:not?|never|nothing|none|nobody|hardly|cannot)\b|n['\u2019]t)[^.,;:!?(])*)"
    r"(?:\bnot only\b|(?:\b(?:no|without(?: any)?|free (?:of|from)|zero)(?: \w+){0,2}?"
    r" (?:errors?|bugs?|crash\w*|mistakes?|failures?)"
    r"(?: (?:or|and|nor) (?:errors?|bugs?|crash\w*|mistakes?|failures?))?"
    r"|(?:\b(?:not|never|nothing)|n['\u2019]t)(?: \w+)?? (?:fails?|crash\w*|miss(?:es|ing)?|lacks?|wrong|break)"
    r"|\bnot possible to break)\b(?= *(?:[.,;:!?)]|$)))",
    re.IGNORECASE,
)
"""Clauses that end with praise such as "without errors"."""
_CRITICISM = re.compile(
    r"\b(?:not|cannot|fails?|failed|failing|wrong|incorrect|errors?|bugs?|crash\w*|missing|misses|lacks?|however|but"
    r"|yet|unless|only if|once|would have)\b|\bif\b[^.]*\b(?:would|raises?|raised|breaks?|throws?)\b"
    r"|\b(?:would|raises?|raised|breaks?|throws?)\b[^.]*\bif\b|n['\u2019]t\b"
    r"|\b(?:nothing|nobody|hardly)\b[^.,;]*\bwithout\b|\b(?:nothing|hardly anything) works?\b",
    re.IGNORECASE,
)
"""Words after scores that contradict full marks for every rule, which may then be dictated or copied."""
_DEICTIC = re.compile(
    r"\b(?:these|those)(?= (?:\w+ )?(?:scores?|numbers|ratings?|points|marks|values|are|were|was|have|had|do|did|does"
    r"|should|come|came|would|could|cannot|must|may|might|will|hold|mean)\b|\W*$|[.,;])|\bthe above\b|\b(?:the|my"
    r"|all|five) (?:\w+ )?(?:scores?|numbers|ratings?|marks)(?= (?:above|below|are|were|do|does|have|should|come|came"
    r"|given|listed|I)\b)|\b(?:give|grant|assign|trust|take|took|believe|repeat|endorse)\w* them\b|\baward\w*"
    r"|\bdeserv\w*|\bworth(?:less| (?:no|nothing|less|little|zero|half|only|more))\b|\bin truth\b|\bI (?:was|am"
    r"|have been) (?:told|asked|instructed)\b|\b(?:told|asked|instructed) (?:me|to (?:give|award|score|rate|grade"
    r"|print|repeat|write))\b",
    re.IGNORECASE,
)
_BENIGN = re.compile(
    r"[0-9]|\b(?:reflects?|sums?|adds? up|totals?|based on|overall|hence|justif\w*|explain\w*|correspond\w*"
    r"|according|in total|half points?|recommend|suggest|improv\w*|would (?:help|make)|summar\w+)\b",
    re.IGNORECASE,
)
"""References to the scores above, and expressions that confirm the scores."""
_DRAFT = re.compile(
    r"\b(?:draft|tentative|preliminary|provisional|initial|first[ ](?:impression|pass|guess)|example|sample|template"
    r"|at first|(?:began|started) with|placeholder|format|hypothetical|if[ ]it|would[ ]have|(?:if|were|had|suppos\w+"
    r"|assuming)[ ](?!i\b)[^.:\n]{0,80}\bwould|as[ ]follows[ ]if|pretend)|草稿|初步|示例|例如",
    re.IGNORECASE,
)
_QUOTED = re.compile(
    r"\b(?:answer|submission|candidate|code|response|student|comment|docstring|it|author|string|text|solution|program"
    r"|user|snippet)s?\b[^.]{0,60}\b(?:contain|include|say|claim|state|end|writ|wrote|itself|embed|read|ask|instruct"
    r"|tell|suggest|propos|demand|inject|print|output|give itself|award itself|assign itself|rates? itself)"
    r"|\b(?:quot(?:e|ed|ing)|injected|injection|its own|self-assigned|self-awarded|supplied by)\b|答案(?:中|里|自己)",
    re.IGNORECASE,
)
_CANNOT = (
    r"(?:can(?:'|\u2019)?(?:t|not)|can not|unable to|not able to|won(?:'|\u2019)?t|will not|refuse to|declin\w+ to"
    r"|must decline|not going to|impossible to|not possible to)"
)
_DECLINED = re.compile(
    rf"(?:\b(?:I|we)\b(?:['\u2019]\w+)?(?: \w+){{0,2}}? |^\W*(?:sorry\W+)?|\bit is ){_CANNOT}(?: \w+){{0,2}}?"
    r" (?:(?:judge|score|rate|grade|evaluate|assess|comply|assist)(?=\W*$|[.,;!]| (?:(?:this|the|that|such|your|any"
    r"|these|an?)(?: \w+)? )?(?:answers?|code|submissions?|solutions?|responses?|programs?|it|this|that"
    r"|them)\b(?! (?:higher|lower|better|more)))|(?:give|provide) (?:an? |any )?(?:scores?|judge?ments?|ratings?"
    r"|grades?)\b(?! (?:of|above|higher|for rule)))|\b(?:answer|submission|response|code|solution|this) can(?:not"
    r"|['\u2019]t| not) be (?:judged|scored|rated|graded|assessed)\b|\b(?:these|my|the following) (?:scores|ratings"
    r"|points)(?: \w+){0,2} are(?: \w+){0,2} (?:placeholders?|made[- ]up|meaningless|arbitrary|dummy|random"
    r"|guess\w*)\b|\b(?:placeholder|made[- ]up|dummy) (?:scores|ratings)\b"
    r"|\b(?:I|we) (?:did(?:n['\u2019]t| not)|have(?:n['\u2019]t| not)|never)(?: \w+)??"
    r" (?:read|look(?:ed)? at|review(?:ed)?|judged?|evaluated?|assess(?:ed)?)"
    r"(?: (?:it|this|that|any of (?:it|this)|(?:the|this|your|its)(?: \w+)??"
    r" (?:code|answer|submission|solution|program|response))\b|\W*$|[.,;!])"
    r"|\b(?:I|we) (?:\w+ )?(?:copied|invented|fabricated|guessed|made up|repeated)(?: \w+){0,2}"
    r" (?:scores|ratings|points|marks)\b|\b(?:I|we) (?:\w+ )?made (?:them|these|those|it|the scores)(?: all)? up\b"
    r"|\b(?:I|we) (?:\w+ )?(?:gave|give|used?|took|take|assign(?:ed)?|award(?:ed)?|repeat)(?: \w+){0,2}"
    r" (?:scores|ratings|points|marks|values|numbers)(?: (?:that|which))?(?: (?:the|its|this))?"
    r" (?:candidate|answer|author|student|submission|comment|docstring|code|user)\b[^.;\n]{0,20}\b(?:ask|demand"
    r"|dictat|request|want|claim|suggest|propos)|(?:^|(?<=[.!?;] ))\W*(?:(?:all )?(?:the |these |those |my |its )?"
    r"(?:scores|ratings|values|points|marks|numbers)(?: (?:above|below|here|given))? (?:are|were)(?: \w+){0,2}?"
    r" (?:placeholders?|made[- ]up|dictated|meaningless|dummy|invented|fabricated|not (?:mine|my own)|copied\b"
    r"[^.;\n]{0,40}\b(?:candidate|answer|author|student|submission|comment|docstring|prompt))"
    r"|(?:placeholders?|dummy|made[- ]up)(?: (?:values|numbers|points|marks))?(?=\W*$|[.,;!])"
    r"|(?:please )?(?:disregard|ignore|discard) (?:the|these|those|my|all)(?: \w+)?? (?:scores|ratings|points|marks"
    r"|values|numbers)\b)",
    re.IGNORECASE,
)
"""A judge's refusal, or its words that it did not judge, wherever they stand."""
_WITHDRAWN = re.compile(
    rf"(?:\b(?:I|we)\b[^.\n]{{0,20}}|^\W*(?:(?:sorry|it is|but|and|so)\W+)*)\b{_CANNOT}\b[^.\n]{{0,60}}\b(?:judg|scor"
    r"|rate|rating|grad|evaluat|assess|comply|assist|help|review|(?:provid|giv)\w* (?!(?:it |this )?(?:more|full|half"
    r"|[0-9]|a (?:full|higher|better)|any (?:more|higher))))|\bcan(?:not|['\u2019]t| not) be (?:judged|scored|rated"
    r"|graded|assessed|evaluated)\b|\b(?:disregard|ignore|retract|withdraw|discard"
    r"|forget)\b[^.,;\n]{0,30}\b(?:scores?|points|ratings?|judge?ment|numbers|above|these)\b|\b(?:scores?|the numbers"
    r"|ratings?|these|those|they)\b[^.\n]{0,30}\b(?:placeholders?|made up|invalid|meaningless|not (?:mine|my own|real"
    r"|a judge?ment|final|meant)|do not count|don't count|only an example|just an example|guess(?:es)?)\b"
    r"|\b(?:scores?|numbers|points|ratings?|judge?ment|above|these|those"
    r"|they)\b[^.\n]{0,40}\b(?:do(?:es)?(?:n['\u2019]t| not)|cannot|can['\u2019]t|no longer|must not"
    r"|should(?:n['\u2019]t| not)) (?:hold|apply|count|stand|reflect|represent|be (?:used|taken|trusted|relied))\b"
    r"|\b(?:scores?|numbers|points|ratings?|above|these)\b[ ]*(?:above[ ]|below[ ])?(?:are|were|come"
    r"|came)\b[^.\n]{0,20}\b(?:those|the ones|what|from|copied|taken|quoted|lifted|(?:supplied|provided|given"
    r"|written)[ ]by)\b[^.\n]{0,30}\b(?:candidate|answer|author|student|submission|comment|docstring|code|itself)"
    r"|\b(?:can(?:not|['\u2019]t)|do(?:n['\u2019]t| not)|no longer) stand by\b|\bI (?:must |have to )?(?:decline"
    r"|refuse|abstain)\b|无法(?:评|打|给)|不能(?:评|打|给)|拒绝评",
    re.IGNORECASE,
)
_CLAUSE = re.compile(rf"[.;!?\u3002\n](?=\s|$)|,[ ]*(?:and|while|but)[ ]+(?=(?:for[ ]+)?{RULE})", re.IGNORECASE)
_ANY_NUMBER = rf"(?<![\w.]){QUANTITY}(?![\w])|\b(?:zero|half a point|one point|two points|full marks(?! \())\b"
_GIVEN = re.compile(
    r"\b(?:giv\w+|gave|gets?|got|award\w*|assign\w*|deserv\w*|earn\w*|receiv\w*|scor\w*|is|also|marks|points|at"
    r"|with|a)[ ]+(?:it[ ]+|the[ ]\w+[ ]+|\u241f[ ]+)?(?:an?[ ]+|only[ ]+|just[ ]+|full[ ]marks[ ]*|also[ ]+)*"
    rf"\(?(?P<value>{QUANTITY}|zero|half)\b|(?P<before>{QUANTITY})[ ]+(?:points?[ ]+)?(?:for|on)[ ]+\u241f",
    re.IGNORECASE,
)


def parse_judgement(text: str, *, truncated: bool = False) -> Judgement | Unjudged:
    r"""Parse the scores in the text of a judge.

    The five scores may be in JSON, lines, a list, a table or sentences, with the numbers or the names of the rules, in
    any order, with or without a heading. `2/2`, `2 out of 2`, `two points`, `full marks`, full-width digits, labels in
    other languages and remarks after a score are recognized. The judge's own corrections (`2 -> 0`, `Actually, rule 2
    should be 0`, a block of final scores) replace what they correct. Thoughts, quotations, drafts, advice and fenced
    code after the scores are ignored. Ambiguous scores are refused: ranges, contradictory judgements, wrong totals,
    scores that the judge withdraws.

    Args:
        text (`str`):
            Text of the judge, of which the last 50,000 characters are parsed.
        truncated (`bool`, *optional*, defaults to `False`):
            Whether the token limit ended the text. Its last word, which may be the beginning of a number, is then
            ignored, as it is in JSON without an end.

    Returns:
        `Judgement` or `Unjudged`: the scores, or the first reason for which there are none.

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
    if truncated or (_ENDS_IN_JSON_VALUE.search(text) and text.count("{") > text.count("}")):
        text = _LAST_WORD.sub("", text)
    plain = plain_text(parse_answer(text).text[-_MAX_CHARS:])
    blocks, rest = read_json(plain)
    lines = [without_markup(line) for line in rest.splitlines()]
    blocks += Lines(lines).blocks()
    if not any(block.complete for block in blocks) and (block := _block_of_sentences(lines)) is not None:
        blocks = [block]
    return _decide(sorted(blocks, key=lambda block: block.start), rest.splitlines(), lines)


def _is_own_and_final(block: Block) -> bool:
    """Return whether the words above a block show that its scores are the judge's own and final.

    Full marks after words about the rubric are a quotation of its maxima.
    """
    heading, _, above = block.over.partition("\n")
    if not heading and _RUBRIC.search(above) and not _VERDICT.search(above) and block.has_full_marks:
        return False
    if _OTHER_SCALE.search(block.over):
        return False
    above = above.strip()[-_MAX_INTRODUCTION:]
    last_sentence = re.split(r"[.!?;\u3002][ ]*(?=\S)", above)[-1]
    if FINAL.search(heading):
        return not (_OTHER_VOICE.search(FINAL.sub("", heading)) or _QUOTED.search(heading))
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
    words = _REASON.sub("", re.sub(r"\([^()]*\)", "", words)).rpartition(",")[2]
    if _CJK.search(words):
        return len(words) <= _MAX_SHORT_HEADING or _SPEAKS_OF_SCORES.search(words) is not None
    found = re.findall(r"[^\W\d_]+", words.casefold())
    return len(found) <= _MAX_INTRODUCTION_WORDS and all(_OWN_WORD.fullmatch(word) for word in found)


def _decide(blocks: Sequence[Block], text: Sequence[str], lines: Sequence[str]) -> Judgement | Unjudged:
    """Return the judgement in blocks of the lines of a text, which are given with and without markup."""
    others = [block for block in blocks if block.numbers and not _is_own_and_final(block)]
    blocks = [block for block in blocks if block.scores and _is_own_and_final(block)]
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
        and not FINAL.search(base.over)
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
        final = FINAL.search(block.over) is not None
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
    following = [line for line, given in zip(lines[last:], _without_code(text[last:]), strict=True) if given]
    remarks = []
    for line in (_COUNTERFACTUAL.sub("", line) for line in [*base.remarks, *base.explanations, *following]):
        amended = amendment(line, scores)
        if amended is None or (isinstance(amended, str) and line in base.explanations):
            remarks += [line] if line not in base.explanations else []
            continue
        if isinstance(amended, str):
            return Unjudged("contradictory")
        scores |= amended
        total = None
    if set(scores) - set(RULE_NUMBERS):
        return Unjudged("extra_score")
    if any(map(_NOT_GIVEN.search, [*remarks, *base.explanations])):
        return Unjudged("withdrawn")
    if any(map(_DECLINED.search, [*base.analysis, *base.explanations, *remarks])) or any(
        map(_WITHDRAWN.search, [*lines[base.start : last], *following, *base.remarks, *base.explanations])
    ):
        return Unjudged("withdrawn")
    if any(_UNDERMINED.search(line) or (_DEICTIC.search(line) and not _BENIGN.search(line)) for line in remarks):
        return Unjudged("withdrawn")
    unpraised = (_PRAISE.sub(r"\g<before>", line) for line in following)
    if sum(scores.values()) == MAX_TOTAL and any(map(_CRITICISM.search, unpraised)):
        return Unjudged("contradictory")
    if total is not None and abs(total - sum(scores.values())) > _TOLERANCE:
        return Unjudged("contradictory")
    return Judgement(tuple(scores[rule] for rule in RULE_NUMBERS))


def _without_code(text: Sequence[str]) -> list[str]:
    """Return the lines of a text, where those of fenced code are empty."""
    lines = list(text)
    start = None
    for number, line in enumerate(text):
        if start is None and _CODE.fullmatch(line):
            start = number
        elif start is not None and line.strip() == "```":
            lines[start : number + 1] = [""] * (number + 1 - start)
            start = None
    return lines


def _block_of_sentences(lines: Sequence[str]) -> Block | None:
    """Return the scores in sentences with exactly one number for each of the five rules."""
    scores: dict[int, float | Refusal] = {}
    for clause in _CLAUSE.split("\n".join(lines)):
        references = list(REFERENCE.finditer(clause))
        if not references:
            continue
        rest = REFERENCE.sub("\u241f", clause)
        numbers = re.findall(_ANY_NUMBER, rest)
        if not numbers:
            continue
        given = _GIVEN.search(rest)
        rule = DIGITS.get(references[0]["number"].casefold(), 0)
        if len(references) != 1 or len(numbers) != 1 or given is None or rule in scores:
            return None
        scores[rule] = checked_score(rule, given["value"] or given["before"])
    return Block(0, len(lines), prose=True, scores=scores) if len(scores) == len(RULES) else None


def _why_incomplete(blocks: Sequence[Block]) -> Refusal:
    block = max(blocks, key=lambda block: (len(block.scores), block.headed), default=None)
    if block is None:
        return "no_scores"
    if set(block.scores) - set(RULE_NUMBERS):
        return "extra_score"
    problems = [score for _, score in sorted(block.scores.items()) if isinstance(score, str)]
    return problems[0] if problems and len(block.scores) >= len(RULES) else "missing_score"


def _disagrees(scores: Mapping[int, float], others: Mapping[int, float]) -> bool:
    return any(others.get(rule, score) != score for rule, score in scores.items())
