r"""Words, sentences and the language of a text, counted as IFEval's reference checker counts them.

Words are runs of `\w`. Sentences are Punkt's (Kiss & Strunk 2006), by the English model. Words in capital letters are
tokens of the Penn Treebank (the rules of NLTK 3.10's word_tokenize), of which this needs only the cuts that part
letters.
The language is langdetect's, with a fixed seed.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
_FINAL_PERIOD = re.compile(r"""(?<![.\s])\.(?=[])}>"'»\u201d\u2019 ]*$)""")
_CUT = re.compile(
    r"""[\s"«»\u201c\u201d\u2018\u2019\u201e`;@#$%&?!*()\[\]{}<>\u2012-\u2015]+|--|''|\.{2,}|[:,](?!\d)"""
    r"""|(?<!\w)'(?!(?:re|ve|ll|[mtsdn])\b)(?=\w)""",
    re.IGNORECASE,
)
_CLITICS = (
    re.compile(r"(?<!')'$"),
    re.compile(r"(?<=[^'])'[sSmMdD]$"),
    re.compile(r"(?<=[^'])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T)$"),
)
_FUSED = re.compile(
    r"\b(can(?=not)|d(?='ye)|gim(?=me)|gon(?=na)|got(?=ta)|lem(?=me)|more(?='n)|wan(?=na$))(not|'ye|me|na|ta|'n)\b",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores: `don't` is two, `5,820` is two."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Sentences of a text; a line break alone ends none."""
    from punkt import sent_tokenize  # noqa: PLC0415  reads its model when imported

    found: list[str] = sent_tokenize(text)
    return found


def capital_words(text: str) -> list[str]:
    """Tokens whose letters are all capitals: `USA`, `A`, `COVID-19`; the `I` of `I'm`, both `DO` and `N'T`."""
    return [
        token
        for sentence in sentences(text)
        for piece in _CUT.split(_FINAL_PERIOD.sub(" ", sentence))
        for token in _split_clitics(piece)
        if token.isupper()
    ]


def _split_clitics(piece: str) -> list[str]:
    """A piece without its clitics (`'S`, `N'T`), and these; fused words (`CANNOT`) as two."""
    ends: list[str] = []
    for clitic in _CLITICS:
        if found := clitic.search(piece):
            piece, ends = piece[: found.start()], [found[0], *ends]
    return [*_FUSED.sub(r" \1 \2 ", piece).split(), *ends]


def language(text: str) -> str | None:
    """Code of the language that a text most looks like (ISO 639-1; Chinese is zh-cn or zh-tw).

    None where nothing in it tells languages apart, as in `5820`. Short texts are often misjudged, above all those in
    capital letters.
    """
    import langdetect  # noqa: PLC0415  megabytes of profiles

    langdetect.DetectorFactory.seed = 0
    try:
        found: str = langdetect.detect(text)
    except langdetect.LangDetectException:
        return None
    return found
