"""Replaces secrets and personal data by placeholders before a text leaves the box, and puts them back into the answer.

What is found: private keys, API keys and tokens of known shapes, credentials in URLs and assignments, e-mail and
IP and MAC addresses, phone and payment card numbers, IBANs, US social security numbers, strings that look random
(so also UUIDs and checksums, which may name a person's device), and what the operator's own patterns match.

What is not found: names and postal addresses, secrets that look like words or plain numbers and are not called a
password, e-mail addresses that are spelt out ("bob at example dot org"), secrets split over several texts. A part of
a text too many costs little, since it comes back exactly; one too few leaks. So doubts are resolved by redacting.

Every pattern here takes time linear in the text. The operator's own are run as they are: a slow one is slow.
"""

from __future__ import annotations

import ipaddress
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from agent.contract.errors import ConfigError

KINDS = ("KEY", "SECRET", "EMAIL", "IP", "MAC", "IBAN", "CARD", "SSN", "PHONE", "RANDOM", "CUSTOM", "LITERAL")
"""What a placeholder can stand for. LITERAL is text that looked like a placeholder before anything was replaced."""
LONG_TOKEN = 20
"""Characters from which on a string can be told to be random."""
MIN_ENTROPY = 2.8
"""Bits per character: 0.6 % of random strings of 20 hex digits have less, words and numbers of that length do too."""
MIN_SWITCHES = 0.18
"""Changes between digits and letters and from lower to upper case, per letter or digit.

Measured on random strings and on 4281 long tokens of Python code, prose and file paths. Of random strings of 20 (32)
characters these have less: base64 and hex 1 % (0.1 %), lower-case letters and digits 4 % (1 %), base32 19 % (10 %).
Of the tokens 1.4 % have more, over half of them checksums, UUIDs and the like. Entropy alone cannot tell
`agent_training_worker` from base64.
"""
REPEATED_SECRET = 6
"""Characters from which on a password that was found once is also replaced where nothing says that it is one."""


class Rule(NamedTuple):
    """One kind of secret: `size` says how many characters of the last group (of the match, if none) belong to it.

    `hints` are lower-case strings of which a text holds at least one if it holds such a secret: searching for them is
    a hundred times faster than searching without regard to case.
    """

    kind: str
    pattern: re.Pattern[str]
    size: Callable[[str], int] = len
    hints: tuple[str, ...] = ()


class Span(NamedTuple):
    """A secret at text[start:end]."""

    start: int
    end: int
    kind: str


class Redactor:
    """Replaces the secrets of one request's texts; the same secret gets the same placeholder in all of them.

    `patterns` are regular expressions of the operator's. `counts` says how many different secrets of each kind were
    replaced: numbers for the audit log, never the text. Raises ConfigError for a pattern that is none.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._rules = [*RULES, *(Rule("CUSTOM", _compile(pattern)) for pattern in patterns)]
        self._placeholders: dict[str, str] = {}
        self._originals: dict[str, str] = {}
        self._passwords: set[str] = set()

    def redact(self, text: str) -> str:
        """Return the text with placeholders such as [EMAIL_1] for its secrets."""
        found = list(_find(self._rules, text))
        self._passwords |= {text[start:end] for start, end, kind in found if kind == "SECRET"}
        known = {password for password in self._passwords if len(password) >= REPEATED_SECRET}
        if known:
            found += [Span(*match.span(), "SECRET") for match in _WORD.finditer(text) if match[0] in known]
        parts, done = [], 0
        for start, end, kind in _merge(found):
            original = text[start:end]
            if original not in self._placeholders:
                self.counts[kind] += 1
                placeholder = f"[{kind}_{self.counts[kind]}]"
                self._placeholders[original] = placeholder
                self._originals[placeholder] = original
            parts += [text[done:start], self._placeholders[original]]
            done = end
        return "".join([*parts, text[done:]])

    def restore(self, text: str) -> str:
        """Put the originals back for this request's placeholders, in whatever case they are written."""
        return _PLACEHOLDER.sub(lambda match: self._originals.get(match[0].upper(), match[0]), text)

    def placeholders_lost(self, sent: str, answer: str) -> list[str]:
        """Placeholders of `sent` that `answer` lacks: such an answer cannot be used."""
        kept = set(_placeholders(answer))
        return [each for each in dict.fromkeys(_placeholders(sent)) if each not in kept]

    def placeholders_invented(self, answer: str) -> list[str]:
        """Placeholders of `answer` that stand for nothing, so that `restore` would leave them in the text."""
        return [each for each in dict.fromkeys(_placeholders(answer)) if each not in self._originals]


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"the redaction pattern {pattern!r} is no regular expression: {error}") from None


def _placeholders(text: str) -> Iterator[str]:
    return (match[0].upper() for match in _PLACEHOLDER.finditer(text))


def _find(rules: Iterable[Rule], text: str) -> Iterator[Span]:
    scanned = _ESCAPE.sub(r"\\\\", text)
    lower = text.lower()
    for rule in rules:
        if rule.kind == "CUSTOM":
            yield from (Span(*match.span(), rule.kind) for match in rule.pattern.finditer(text) if match[0])
        elif not rule.hints or any(hint in lower for hint in rule.hints):
            for match in rule.pattern.finditer(scanned):
                group = match.lastindex or 0
                size = rule.size(match[group])
                if size:
                    yield Span(match.start(group), match.start(group) + size, rule.kind)


def _merge(spans: Iterable[Span]) -> list[Span]:
    """Overlapping spans become one, of the kind of the first, so that no part of a secret stays behind."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if merged and span.start < merged[-1].end:
            merged[-1] = merged[-1]._replace(end=max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


# ---- how much of a candidate is a secret: 0 for none of it ----


def _trimmed_length(value: str) -> int:
    """Length of a value without the punctuation of the sentence around it."""
    return len(value.rstrip(".,;:!?)]}\\"))


def _not_a_word(value: str) -> int:
    """For `the password is ...`: `required` is no password, `amber77` is."""
    size = _trimmed_length(value)
    return size if size >= 4 and not value[:size].isalpha() else 0


def _letters_and_digits(value: str) -> int:
    """For `password amber77`, with nothing between: `manager` and `2024` are no passwords."""
    size = _trimmed_length(value)
    kinds = {character.isdigit() for character in value[:size] if character.isalnum()}
    return size if size >= REPEATED_SECRET and len(kinds) == 2 else 0


def _random(token: str) -> int:
    """Length of a token that looks random, as a whole or in one part of a path."""
    for part in {token, *token.split("/")}:
        plain = _SEPARATORS.sub("", part)
        switches = len(_SWITCH.findall(plain))
        is_mixed = len(part) >= LONG_TOKEN and switches >= MIN_SWITCHES * max(len(plain), 1)
        if is_mixed and _entropy(part) >= MIN_ENTROPY:
            return len(token)
    return 0


def _entropy(token: str) -> float:
    """Shannon entropy in bits per character."""
    return -sum(n / len(token) * math.log2(n / len(token)) for n in Counter(token).values())


def _card(text: str) -> int:
    """Length of a payment card number: a first digit that is in use and a valid check digit (Luhn, ISO/IEC 7812)."""
    digits = _NON_DIGITS.sub("", text)
    if not 13 <= len(digits) <= 19 or digits[0] not in "23456":
        return 0
    checked = digits[-1::-2] + digits[-2::-2].translate(_DOUBLED)
    total = sum(checked.encode()) - len(checked) * ord("0")
    return len(text) if total % 10 == 0 and not _THOUSANDS.fullmatch(text) else 0


def _iban(text: str) -> int:
    """Length of the IBAN at the start of the text, if its country's length and its check digits are right."""
    length = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    end = length + (length - 1) // 4 if text[4:5].isspace() else length
    iban = "".join(text[:end].split()).upper()
    if not 0 < length == len(iban) or text[end : end + 1].isalnum():
        return 0
    return end if int((iban[4:] + iban[:4]).translate(_LETTER_VALUES)) % 97 == 1 else 0


def _phone(text: str) -> int:
    """Length of 7 to 15 digits that are neither a date nor binary."""
    digits = _NON_DIGITS.sub("", text)
    plain = 7 <= len(digits) <= 15 and not set(digits) <= {"0", "1"}
    return len(text) if plain and not _DATE.match(text) else 0


def _ipv6(text: str) -> int:
    """Length of an IPv6 address; `1::2` is rather a slice in a program."""
    address = text if text.endswith("::") else text.rstrip(":")
    if len(address.replace(":", "")) < 4 and address != "::1":
        return 0
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return 0
    return len(address)


# ---- the patterns ----
# Linear time: a pattern that starts with an open repetition has a lookbehind that lets it start only where such a run
# starts, the others start with fixed text or repeat a bounded number of times.

_PLACEHOLDER = re.compile(rf"\[(?:{'|'.join(KINDS)})_[0-9]+\]", re.IGNORECASE | re.ASCII)
_WORD = re.compile(r"[^\s\"'`<>,;:=()\[\]{}]+(?<![.!?])")
_ESCAPE = re.compile(r"\\[bfnrtv]")
"""In JSON text a word may follow a line break as `\\nword`: the letter of the escape must not count as part of it."""
_SEPARATORS = re.compile(r"[^A-Za-z0-9]+")
_SWITCH = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
_DATE = re.compile(r"\d{1,2}[-/. ]\d{1,2}[-/. ](?:19|20)\d\d(?!\d)")

_LETTER_VALUES = {ord(letter): str(int(letter, 36)) for letter in string.ascii_uppercase}
_NON_DIGITS = re.compile(r"[^0-9]+")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:[^0-9][0-9]{3})+")
_DOUBLED = str.maketrans("0123456789", "0246813579")
"""A digit → the digit sum of its double."""
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
"""Characters of an IBAN by country (SWIFT's IBAN registry)."""

_GAP = r"[ .\-/\u00a0\u202f\u2010-\u2013]"
_CARD_GAP = r"[ \-\u00a0\u202f\u2010\u2011]"
_SURE_NAMES = r"(?:pass(?:word|wd|phrase|code|wort)|kennwort|pwd|psk|secret|credential|contraseña|mot de passe|senha)"
_LIKELY_NAMES = (
    r"(?:token|(?:api|access|account|auth|encryption|license|private|secret|shared|signing)[ _-]?key|apikey)"
)
_ASSIGNED = (
    r"[\w-]{0,30}(?![\w-])\\{0,8}[\"'`\])]{0,2}\s{0,3}(?:: ?[Ss]tr(?:ing)? ?(?==))?(?::=|=>|==?|:|>(?=\S))\s{0,3}"
    r"\\{0,8}(?:\"([^\"\n]+)|'([^'\n]+)|`([^`\n]+)|([^\s\"'`<>]+))"
)
_SHAPES = (
    r"sk-[\w-]{16,}",  # OpenAI, Anthropic and those who copy them
    r"(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{16}",  # AWS
    r"gh[a-z]_[A-Za-z0-9]{16,}",
    r"github_pat_\w{16,}",
    r"gl[a-z]{2,6}-[\w-]{16,}",  # GitLab
    r"xox[a-z]-[\w-]{10,}",  # Slack
    r"xapp-[\w-]{10,}",
    r"AIza[\w-]{30,}",  # Google
    r"ya29\.[\w-]{20,}",
    r"[prs]k_(?:live|test)_\w{10,}",  # Stripe
    r"whsec_\w{16,}",
    r"hf_[A-Za-z0-9]{16,}",  # Hugging Face
    r"npm_[A-Za-z0-9]{16,}",
    r"pypi-[\w-]{16,}",
    r"SG\.[\w-]{16,}\.[\w-]{16,}",  # SendGrid
    r"eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*",  # JWT
)


_PASSWORDS = ("pass", "kennwort", "pwd", "psk", "secret", "credential", "contraseña", "senha")
_PHONES = ("tel", "phone", "fax", "mobile", "cell", "call", "whatsapp", "sms", "dial", "text")


def _rule(kind: str, pattern: str, size: Callable[[str], int] = len) -> Rule:
    return Rule(kind, re.compile(pattern), size)


def _after_label(kind: str, hints: tuple[str, ...], pattern: str, size: Callable[[str], int] = len) -> Rule:
    """A secret that a word before it gives away, in whatever case."""
    return Rule(kind, re.compile(pattern, re.IGNORECASE), size, hints)


RULES = (
    Rule("LITERAL", _PLACEHOLDER),
    _rule(
        "KEY",
        r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----[^-]*(?:-(?!----)[^-]*)*"
        r"(?:-----END [A-Z0-9 ]{0,40}-----)?",
    ),
    _rule("SECRET", rf"(?<![A-Za-z0-9])(?:{'|'.join(_SHAPES)})"),
    _rule("SECRET", r"://([^\s/@:\"'<>`]*:[^\s/\"'<>`]*)@"),
    _after_label(
        "SECRET",
        ("bearer", "basic"),
        r"\b(?:bearer|basic)\s{1,3}([\w.~+/=-]{8,})",
        lambda value: len(value) if any(map(str.isdigit, value)) else 0,
    ),
    _after_label(
        "SECRET",
        ("authorization",),
        r"\bauthorization\\?[\"']?\s?[:=]\s?\\?[\"']?(?:[\w-]{1,20} )?([^\s\"']+)",
    ),
    _after_label("SECRET", _PASSWORDS, rf"(?:{_SURE_NAMES}|(?<=[_-])pass)" + _ASSIGNED, _trimmed_length),
    _after_label(
        "SECRET",
        ("token", "key"),
        _LIKELY_NAMES + _ASSIGNED,
        lambda value: size if (size := _trimmed_length(value)) >= 6 else 0,
    ),
    _after_label(
        "SECRET",
        ("--",),
        rf"(?<![\w-])--[\w-]{{0,20}}(?:{_SURE_NAMES}|{_LIKELY_NAMES})[\w-]{{0,20}}\s{{1,3}}[\"']?([^\s\"']+)",
        _trimmed_length,
    ),
    _after_label(
        "SECRET",
        _PASSWORDS,
        r"(?<!-)"
        + _SURE_NAMES
        + r"\b[^\n:=]{0,30}?\b(?:is|was|are|to|ist|lautet)\b:?\s{1,3}[\"'`*]{0,3}([^\s\"'`<>]+)",
        _not_a_word,
    ),
    _after_label("SECRET", _PASSWORDS, _SURE_NAMES + r"\s{1,3}[\"'`*]{0,3}([^\s\"'`<>]+)", _letters_and_digits),
    _after_label("EMAIL", ("@",), r"(?<![\w.%+-])[\w.%+-]+@(?:[\w-]+\.)+(?:xn--[\w-]+|[^\W\d_]{2,})"),
    _rule("IP", r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\w|\.\w)"),
    _rule("IP", r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}(?!\w)", _ipv6),
    _rule("MAC", r"(?<![\w:-])[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}(?![\w:-]\w)"),
    _rule("MAC", r"(?<![\w.])[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}(?!\w|\.\w)"),
    _rule(
        "IBAN",
        r"(?<![A-Za-z0-9])(?=([A-Za-z]{2}[0-9]{2}(?:[ \u00a0]?[A-Za-z0-9]{4}){2,7}(?:[ \u00a0]?[A-Za-z0-9]{1,3})?))",
        _iban,
    ),
    _rule(
        "CARD",
        rf"(?<![\d.,])(?<!\d{_CARD_GAP})[0-9]{{1,9}}(?:{_CARD_GAP}[0-9]{{1,9}}){{2,18}}(?!{_CARD_GAP}?[.,]?\d)",
        _card,
    ),
    _rule(
        "CARD",
        rf"(?<![\d.,])(?=([0-9]{{13,19}}|[0-9]{{4}}(?:{_CARD_GAP}[0-9]{{4}}){{3}}|"
        rf"[0-9]{{4}}{_CARD_GAP}[0-9]{{6}}{_CARD_GAP}[0-9]{{4,5}})(?![.,]?\d))",
        _card,
    ),
    _rule("SSN", r"(?<![\w-])(?!000|666|9)\d{3}[ -](?!00)\d\d[ -](?!0000)\d{4}(?!\w|-\w)"),
    _rule("PHONE", rf"(?<![\w.)+])\+\d(?:(?:{_GAP}|[()]){{0,3}}\d){{6,14}}(?!\d)", _phone),
    _rule("PHONE", r"(?<![\w.+-])(?:1[ .-])?\d{3}[.-]\d{3}[.-]\d{4}(?!-?\w)"),
    _rule("PHONE", r"(?<![\w.+-])(?:1[ .-])?[2-9]\d\d [2-9]\d\d[ -]\d{4}(?!-?\w)"),
    _rule("PHONE", rf"(?<!\w)\(\d{{2,3}}\){_GAP}?\d{{3,5}}(?:{_GAP}\d{{2,5}}){{1,2}}(?!\w)", _phone),
    _rule("PHONE", rf"(?<![\w.,+\-/])(?<!\d{_GAP})\(?0\d{{1,4}}\)?(?:{_GAP}{{1,3}}\d{{2,8}}){{1,5}}(?!\w)", _phone),
    _rule("PHONE", r"(?<![\w.,+\-/])(?:00[1-9]\d{8,12}|0[1-9]\d{8,10})(?![.,]?\w)"),
    _after_label(
        "PHONE",
        _PHONES,
        r"\b(?:tele|tel|phone|fax|mobile|cell|call|whatsapp|sms|dial|text)[a-z]{0,8}\b[^\d\n]{0,24}?"
        rf"(\(?\d(?:(?:{_GAP}|[()]){{0,2}}\d){{6,14}})(?![.,]?\d)",
        _phone,
    ),
    _rule("RANDOM", rf"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{{{LONG_TOKEN},}}={{0,2}}", _random),
)
"""In the order in which they name what several of them find at the same place."""
