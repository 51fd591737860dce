"""English idioms that contain the words of a refusal: "I can't wait", "I'm sorry to hear that", "As an AI, I can".

Judges mark them before they look for refusals. Independent of the phrases of a judge.
"""

import re

MARK = "\ue000"
"""Stands for a removed idiom: a private-use character, which no phrase contains."""

_CANNOT = r"(?: (?:can't|cannot|can not|couldn't|could not)|(?:'m| am) (?:unable|not able) to)"
_MIND = r"(?:ador|admir|feel|grin|imagin|laugh|lov|notic|smil|think|wonder|chuckl|giggl|mention|ask)(?:e|ing)?"
_FEW = r"(?:[^\s.!?;,]+ ){0,5}"
_BETTER = r"(?:a|an|any|anything|anyone|anybody|one|many|another) (?:better|more|nicer|greater|finer|easier)"
_LIE = r"lie(?! (?:to|for|about)\b)"
_CANNOT_ENOUGH = (
    r"(?:wait|overstate|over-?emphasi[sz]e|overstress|deny|complain|argue(?! (?:for|in|that|against)\b)|believe|"
    rf"imagine(?! a (?:situation|scenario|case)\b)|blame|fault|disagree|resist|{_LIE}|"
    rf"promise|guarantee|contain my|hide my|remember the last|put into words|think of {_BETTER}|(?:\w+ )?agree more|"
    r"be (?:happier|prouder|more)|have (?:said|put)|go wrong|"
    r"tell a lie(?! (?:to|for|about)\b)|say (?:that )?i(?:'m| am| was) surprised)\b",
    r"(?:stress|emphasi[sz]e|recommend|thank|praise|express|underline|underscore|commend|applaud|say|repeat|tell|get|warn|"
    rf"appreciate) {_FEW}enough\b",
    r"(?:begin to )?(?:tell you|express|describe|explain|say) (?:just )?how (?!to\b)\w+",
    r"(?:help )?but (?!i\b)\w+",
    rf"help {_MIND}\b",
)
_FRANK = rf"(?:{_LIE}|sugar-?coat|pretend(?! to\b)|bore you|keep you|waste your)\b"
_FAULT = r"(?:confusion|delay|inconvenience|mistake|error|misunderstanding|mix-up|oversight|wait|late)\b"
_THEN_HELPS = r"[,.!:-]* (?:here(?:'s| is| are)|let me|you(?:'re| are) right)\b"
_FOR_FAULT = rf"(?: (?:for|about) (?:\w+ ){{0,2}}{_FAULT}| in advance\b|{_THEN_HELPS})"
_NOT_REFUSED = (
    rf"(?: (?:to (?:hear|learn|see|read|know|keep you|bother you)|for your (?:loss|trouble)|about (?:that|this|it)|if|"
    rf"(?:that )?you(?:'re|'ve)?)\b|{_FOR_FAULT}|"
    r"[,.!:-]* (?:my (?:mistake|bad|error|fault)|i (?:misread|misunderstood|misheard))\b)"
)
_GLAD = r"(?:happy|glad|delighted)"
_HELPS = rf"(?:can|could|will|'ll|(?:'d| would) (?:be {_GLAD}|love)|(?:'m| am) (?:able|{_GLAD}))"
_PEOPLE = (
    r"(?:artist|company|consultant|developer|engineer|enthusiast|ethicist|expert|practitioner|professional|researcher|"
    r"scientist|specialist|startup|student|teacher|user)s?\b"
)
_RANKS = r"(?:chef|coach|director|editor|manager|principal|professor|referee|teacher|trainer)s?\b"
_WHO = r"(?:(?:the|a|an|my|our|his|her|one) )?"
_TELLS = (
    r"(?:is|are|was|were|means?|meant|refers?|stands?|translates?|comes?|can be|could be|would be|appears?|implies|in|"
    rf"expresses|has|have|sounds?|shows?|said|says|she|he|they|{_WHO}\w+ (?:said|says)|{_WHO}(?:\w+ )?(?:whispered|"
    r"cried|replied|answered|muttered|shouted|sighed))\b"
)
# Every alternative starts with a literal, which makes the search several times as fast; the boundary follows it.
_IDIOM = re.compile(
    r"i(?<![^\W_]i)(?:"
    rf"{_CANNOT} (?:{'|'.join(_CANNOT_ENOUGH)})"
    rf"|(?: won't| will not|'m not (?:going to|gonna)| am not going to) {_FRANK}"
    r"| would not (?:worry|say|be surprised|hesitate|mind|miss|trade|change|have|call|recommend)\b"
    rf"|(?:'m| am) (?:(?:so|very|really|truly|terribly|deeply) )?sorry{_NOT_REFUSED}"
    rf"| (?:do |must )?apologi[sz]e{_FOR_FAULT})"
    rf"|sorry(?<![^\W_]sorry){_NOT_REFUSED}"
    rf"|my apologies{_FOR_FAULT}|apologies{_FOR_FAULT}"
    rf"|as (?<![^\W_]as )(?:an ai|a language model|an assistant)(?: \w+){{0,2}},? i ?{_HELPS}\b"
    r"(?!'| (?:not|only|never|neither|in no way)\b)"
    rf"|as an (?<![^\W_]as an )(?:ai {_PEOPLE}|assistant {_RANKS})"
    # A phrase that is mentioned
    r'|"(?<=[a-z,] ")[^"\s]+(?: [^"\s]+){0,3}"'
)
# A quotation at the start of a text, and then words that say what it is or who says it.
_QUOTATION = re.compile(rf"""[\s*_>#-]*(?:"[^"]{{1,200}}"|'(?:[^']|'(?=\w)){{1,200}}')[\s,]*{_TELLS}""")


def mark_idioms(text: str) -> str:
    """A text in lower case and normal form (`normal_text`) with `MARK` for each idiom.

    A quotation at the start is an idiom if it is mentioned or spoken by somebody: '"I can't" is short for ...'.
    """
    quoted = _QUOTATION.match(text)
    return _IDIOM.sub(MARK, MARK + text[quoted.end() :] if quoted else text)
