"""The checks of a rewritten text: what it must keep of the original, and what it must not bring in. Pure.

The model that rewrites is asked to change the form only. What these rules cannot see is a wrong statement made of
words and numbers that were there before; the content reward and the gate judge that. German and other texts that
capitalise all nouns must keep every noun, so they are rewritten less often.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agent.contract.lines import ASCII_MARK, shorten_line
from agent.scoring.reward import content_reward, words

SHORTEST, LONGEST = 0.25, 4.0
"""A rewritten text's length, relative to the original's."""
ALLOWANCE = 200
"""Characters by which short texts may leave these bounds."""
HARD_CAP = 8000
"""Characters that a text may have whose constraint asks for more than the original has."""
WORDS_FOR_LANGUAGE = 12
"""From which on the language of a text can be told."""
SURE = 0.95
"""Probability of a language from which on it counts as known."""
REPEATED_WORDS, REPETITIONS = 6, 5
"""As many words in a row, said as often and more often than in the original, are a model that got stuck."""

Constraint = dict[str, Any]

LENGTHENING = (
    "length_constraints:", "keywords:", "detectable_content:", "detectable_format:", "combination:",
)  # fmt: skip
"""Constraints that may ask for far more text than an answer needs, by how their ids start."""


@dataclass(frozen=True)
class Kind:
    """Something in a text that must survive; where there is a group in the pattern, the group of it."""

    name: str
    pattern: re.Pattern[str]


_NUMBER = re.compile(r"(?<!\w)(?:(?<![^\s(\[=:])-)?\d+(?:[.,:]\d+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_LIST_ITEM = re.compile(r"^[ \t]*(?:[*+-]|\d{1,3}[.)])(?=\s)", re.MULTILINE)
_WORD = re.compile(r"(?<!\w)\w+(?:[-.]\w+)*")
_IDENTIFIER = re.compile(r"[^\W\d_][\d_]|_[^\W\d_]|[a-z][A-Z]|\d[A-Z]")
_SENTENCE_START = re.compile(r"(?:^|[.!?:…\n|#\"'`“‘«])[\s*_(\[{>-]*$")  # noqa: RUF001  quotes of all sorts
_NO_NAMES = {
    "I", "A", "An", "And", "As", "At", "But", "By", "For", "He", "How", "If", "In", "It", "No", "Of", "On", "Or", "She",
    "So", "That", "The", "They", "This", "To", "We", "What", "You",
}  # fmt: skip
"""Capitals that headings and quoted sentences bring."""
_EMAIL = re.compile(r"[\w.%+-]+@[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\"'`\])}]*[^\s<>\"'`\])}.,;:!?]")
_FENCED = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_QUOTED = re.compile(r"\"([^\"\n]{1,200})\"")
_PLAIN = str.maketrans("“”„«»‘’‚−‑\u00a0\u202f", '"""""\'\'\'--  ')  # noqa: RUF001  that is what they are
"""Quotes, minus signs, hyphens and spaces of typographers → those of keyboards."""
_VERBATIM = (
    Kind("URL", _URL), Kind("e-mail address", _EMAIL), Kind("code", _FENCED), Kind("code", _INLINE),
    Kind("quotation", _QUOTED),
)  # fmt: skip
_TOKEN = re.compile(
    r"<\|[^|<>\n]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<[be]os>|</?[A-Z]+(?:_[A-Z]+)+>|"
    r"</?(?:variable|feedback|conversation)>|"
    r"^[ \t]*(?:assistant|user|system|human)[ \t]*:|^[ \t]*#{2,3} (?:Instruction|Input|Response|Assistant|User)s?:",
    re.MULTILINE | re.IGNORECASE,
)
_CHATTER = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay|gladly)(?: thing)?[!,.:]|certainly\b|"
    r"here(?:'s| is| are) (?:the|your|my|an?) (?:\w+ )?(?:improved|revised|rewritten|reworded|updated|corrected|"
    r"rewrite|version|variable|response|answer|text)|i(?:'ve| have) (?:rewritten|revised|improved|updated))",
    re.IGNORECASE,
)
_FENCE = re.compile(r"\s*```\w*\n(.*?)```\s*", re.DOTALL)
CONDENSING = ("detectable_format:number_bullet_lists", "detectable_format:json_format", "format:json_schema")
"""Constraints whose answers do not repeat their question in a sentence: `{"port": 4713}` is a whole answer."""


def objections(
    original: str,
    rewritten: str,
    *,
    prompt: str = "",
    answer: str | None = None,
    constraints: Sequence[Constraint] = (),
) -> tuple[str, ...]:
    """Say what speaks against replacing `original`, an answer to `prompt`, by `rewritten`; nothing if it may be done.

    `answer` is the value that a right answer contains. `constraints` are the row's, with IFEval's ids and kwargs; here
    they only excuse what obeying them takes, whether they are obeyed is for others to check.
    """
    if not rewritten.strip():
        return ("the text is blank",)
    low, high = SHORTEST * len(original) - ALLOWANCE, LONGEST * len(original) + ALLOWANCE
    condenses = any(map(_condenses, constraints))
    if condenses:
        low = 0
    if any(_id(each).startswith(LENGTHENING) and not _at_most(each) for each in constraints):
        high = max(high, HARD_CAP)
    if not low <= len(rewritten) <= high:
        return (f"the text has {len(rewritten)} characters, the original {len(original)}",)
    fold = any(_id(each).startswith("change_case:") for each in constraints)
    old, new = (_comparable(text, fold=fold) for text in (original, _with_json_strings(rewritten)))
    excused = _comparable(prompt, fold=True) if condenses else ""
    known = f"{prompt}\n{_arguments(constraints)}"
    found = [
        *_check_kept(old, new, excused),
        *_check_names(original, rewritten, known, excused, fold=fold),
        *_check_new(new, f"{old}\n{_comparable(known, fold=fold)}", constraints),
        *_check_repetition(original, rewritten),
        *_check_language(original, rewritten, constraints),
        *_check_injected(original, rewritten),
    ]
    # Whatever the row's own check is: a rewrite may say more than the answer, as its reference does.
    if answer is not None and words(answer) and not content_reward(new, "", _comparable(answer, fold=fold)):
        found.append(f"the answer {_short(answer)} is gone")
    return tuple(dict.fromkeys(found))


# ---- what constraints excuse ----


def injections(original: str, rewritten: str) -> tuple[str, ...]:
    """Only the objections to template and role tokens and to chatter, for texts that are meant to say something new."""
    return tuple(_check_injected(original, rewritten))


def _id(constraint: Constraint) -> str:
    return str(constraint.get("id", ""))


def _kwargs(constraint: Constraint) -> dict[str, Any]:
    kwargs = constraint.get("kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def _condenses(constraint: Constraint) -> bool:
    """True if a text may have to become shorter than it was, or to leave out what its question says already."""
    return _at_most(constraint) or "max_characters" in _kwargs(constraint) or _id(constraint) in CONDENSING


def _at_most(constraint: Constraint) -> bool:
    relation = str(_kwargs(constraint).get("relation"))
    return _id(constraint).startswith("length_constraints:") and relation in {"less than", "at most"}


def _arguments(constraints: Sequence[Constraint]) -> str:
    """All values of the constraints' kwargs as one text."""
    return "\n".join(
        " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for constraint in constraints
        for value in _kwargs(constraint).values()
    )


# ---- texts made comparable ----


def _comparable(text: str, *, fold: bool) -> str:
    text = text.translate(_PLAIN)
    return text.casefold() if fold else text


def _with_json_strings(text: str) -> str:
    """The text and, if it is JSON, its strings as they read without escapes."""
    fenced = _FENCE.fullmatch(text)
    try:
        strings = list(_strings(json.loads(fenced[1] if fenced else text)))
    except (ValueError, RecursionError):
        return text
    return "\n".join([text, *strings])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (key, *_strings(each))
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


# ---- what must survive ----


def _check_kept(old: str, new: str, excused: str) -> Iterator[str]:
    numbers = {*_numbers(new), *_numbers(excused)}
    yield from (f"the number {number} is gone" for number in _numbers(old) if number not in numbers)
    for kind in _VERBATIM:
        for match in kind.pattern.finditer(old):
            part = match[match.lastindex or 0].strip()
            # A text that is one quotation has no part that must be kept.
            is_part = part and (kind.name != "quotation" or match[0] != old.strip())
            if is_part and part not in new:
                yield f"the {kind.name} {_short(part)} is gone"


def _check_names(original: str, rewritten: str, known: str, excused: str, *, fold: bool) -> Iterator[str]:
    """Names that are gone; and new ones if so, even where a question's name may go: that is how a swap looks."""
    new = _comparable(_with_json_strings(rewritten), fold=fold)
    # Words that are written like names inside a sentence of the text, or of what is known if the text has them too.
    asked = set(_names_inside(known))
    names = [*_names_inside(original), *(word for word in _WORD.findall(original) if word in asked)]
    gone = [name for name in dict.fromkeys(names) if not _holds(new, _comparable(name, fold=fold))]
    yield from (f"the name {name} is gone" for name in gone if not _holds(excused, name.casefold()))
    if gone:
        known = f"{original}\n{known}".casefold()
        yield from (
            f"the name {name} is new" for name in _names_inside(rewritten) if not _holds(known, name.casefold())
        )


def _numbers(text: str) -> list[str]:
    """Numbers in order, without list numbering: 1,024 and 1024 are the same; 10:30 and 2.13.0 are one each."""
    return [_THOUSANDS.sub("", number) for number in _NUMBER.findall(_LIST_ITEM.sub(" ", text))]


def _names_inside(text: str) -> Iterator[str]:
    shouted = text.isupper()
    for match in _WORD.finditer(text):
        word = match[0]
        capital = word[0].isupper() and not shouted and word not in _NO_NAMES
        start = match.start()
        if _IDENTIFIER.search(word) or (capital and not _SENTENCE_START.search(text, max(0, start - 20), start)):
            yield word


def _holds(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _short(text: str) -> str:
    return shorten_line(text, 60, ASCII_MARK)


# ---- what must not be new ----


def _check_new(new: str, known: str, constraints: Sequence[Constraint]) -> Iterator[str]:
    # A text may number its bullets or sections, or say how many they are.
    asked = [_kwargs(each).get(name) for each in constraints for name in ("num_sections", "num_paragraphs")]
    count = max([len(_LIST_ITEM.findall(new)), *(n for n in asked if isinstance(n, int) and n <= 100)])
    numbers = set(_numbers(known)) | set(map(str, range(1, count + 1)))
    yield from (f"the number {number} is new" for number in _numbers(new) if number not in numbers)
    for kind in _VERBATIM[:2]:
        had = set(kind.pattern.findall(known))
        yield from (f"the {kind.name} {_short(part)} is new" for part in kind.pattern.findall(new) if part not in had)


def _check_injected(original: str, rewritten: str) -> Iterator[str]:
    had = original.casefold()
    for match in _TOKEN.finditer(rewritten):
        if match[0].strip().casefold() not in had:
            yield f"the token {match[0].strip()} is new"
    for char in dict.fromkeys(rewritten):
        if unicodedata.category(char) in {"Cc", "Cs"} and char not in f"\n\t{original}":
            yield f"the control character U+{ord(char):04X} is new"
    chatter = _CHATTER.match(rewritten.translate(_PLAIN))
    if chatter and not original.translate(_PLAIN).casefold().startswith(chatter[0].casefold()):
        yield f"the text starts with {_short(chatter[0])!r}"


# ---- shape ----


def _check_repetition(original: str, rewritten: str) -> Iterator[str]:
    was, now = _runs(original), _runs(rewritten)
    if now:
        run, count = now.most_common(1)[0]
        if count >= REPETITIONS and count > was[run]:
            yield f"the words {' '.join(run)!r} come {count} times"


def _runs(text: str) -> Counter[tuple[str, ...]]:
    said = words(text)
    return Counter(zip(*(said[i:] for i in range(REPEATED_WORDS)), strict=False))


# ---- language ----


def _check_language(original: str, rewritten: str, constraints: Sequence[Constraint]) -> Iterator[str]:
    if any(_id(each) == "language:response_language" for each in constraints):
        return
    was, now = _script(original), _script(rewritten)
    if was and now and was != now:
        yield f"the script was {was} and is {now}"
        return
    if min(len(words(original)), len(words(rewritten))) < WORDS_FOR_LANGUAGE:
        return
    before, after = _language(original), _language(rewritten)
    if before and after and before != after:
        yield f"the language was {before} and is {after}"


def _script(text: str) -> str:
    """The script of most letters, as Unicode names it, those of Japanese being one; empty without letters."""
    scripts: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if char.isalpha():
            name = unicodedata.name(char, "UNKNOWN").split()[0]
            scripts["CJK" if name in {"HIRAGANA", "KATAKANA"} else name] += count
    return scripts.most_common(1)[0][0] if scripts else ""


def _language(text: str) -> str:
    """The language of a text if it is sure, such as `en`, else nothing; a seed makes the same text give the same."""
    import langdetect  # noqa: PLC0415  reads 50 profiles

    langdetect.DetectorFactory.seed = 0
    try:
        best = langdetect.detect_langs(text.casefold())[0]
    except langdetect.LangDetectException:
        return ""
    return str(best.lang).partition("-")[0] if best.prob > SURE else ""
