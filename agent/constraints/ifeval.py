"""The 25 verifiable instructions of IFEval, judged as its reference checker judges them strictly.

Zhou et al. 2023, arXiv 2311.07911; the reference is `instruction_following_eval` of google-research. Its quirks
are kept, so that figures can be compared: a number alone is valid JSON, `**` is not a highlight, a keyword is found
inside other words but a forbidden word is not. Three things differ, all outside of its data: keywords and markers are
taken literally, not as regular expressions; arguments that are missing or out of range are refused, not drawn at
random; JSON nested too deeply is a fault, not a crash. Every check here takes time linear in the text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from agent.constraints import sentences
from agent.constraints.constraint_types import (
    AT_LEAST,
    COUNT,
    LETTER,
    RELATION,
    TEXT,
    TEXTS,
    Argument,
    Check,
    double_quote,
    quote_all,
    relation_fault,
    requirement,
)
from agent.constraints.languages import LANGUAGES
from agent.contract.lines import quantity

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""The three answers that detectable_format:constrained_response allows."""
MOST_SHOWN = 5
"""Words that a fault names at most."""

_STARRED = re.compile(r"^[^\S\n]*\*[^*].*", re.MULTILINE)
_DASHED = re.compile(r"^[^\S\n]*-", re.MULTILINE)
_FENCES = ("```json", "```Json", "```JSON", "```")
_POSTSCRIPTS = {"P.S.": re.compile(r"p\.\s?s\."), "P.P.S": re.compile(r"p\.\s?p\.\s?s")}


def _existence(text: str, *, keywords: list[str]) -> str | None:
    missing = [word for word in keywords if not _occurrences(word, text)]
    return f"missing: {quote_all(missing)}" if missing else None


def _frequency(text: str, *, keyword: str, frequency: int, relation: str) -> str | None:
    number = _occurrences(keyword.strip(), text)
    found = f"{double_quote(keyword)} occurs {quantity(number, 'time')}"
    return relation_fault(found, number, relation, frequency)


def _occurrences(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword), text, flags=re.IGNORECASE))


def _forbidden_words(text: str, *, forbidden_words: list[str]) -> str | None:
    found = [w for w in forbidden_words if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, flags=re.IGNORECASE)]
    return f"forbidden words found: {quote_all(found)}" if found else None


def _letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> str | None:
    number = text.lower().count(letter.lower())
    found = f"{double_quote(letter)} occurs {quantity(number, 'time')}"
    return relation_fault(found, number, let_relation, let_frequency)


def _response_language(text: str, *, language: str) -> str | None:
    found = sentences.language(text)
    return None if found in (language, None) else _other_language(found, language)


def _other_language(found: str, language: str) -> str:
    return f"the language looks like {LANGUAGES.get(found, found)}, must be {LANGUAGES[language]}"


def _number_sentences(text: str, *, num_sentences: int, relation: str) -> str | None:
    number = len(sentences.sentences(text))
    return relation_fault(quantity(number, "sentence"), number, relation, num_sentences)


def _number_words(text: str, *, num_words: int, relation: str) -> str | None:
    number = len(sentences.words(text))
    return relation_fault(quantity(number, "word"), number, relation, num_words)


def _number_paragraphs(text: str, *, num_paragraphs: int) -> str | None:
    first, *others = re.split(r"\s?\*\*\*\s?", text)
    between, last = others[:-1], others[-1:]
    if not all(map(str.strip, between)):
        return "an empty paragraph between two ***"
    number = sum(bool(part.strip()) for part in (first, *between, *last))
    return _exactly(f"{quantity(number, 'paragraph')} separated by ***", number, num_paragraphs)


def _exactly(found: str, number: int, expected: int) -> str | None:
    return None if number == expected else f"{found}, must be exactly {expected}"


def _nth_paragraph(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> str | None:
    paragraphs = text.split("\n\n")
    number = sum(bool(part.strip()) for part in paragraphs)
    if number != num_paragraphs:
        return _exactly(f"{quantity(number, 'paragraph')} separated by blank lines", number, num_paragraphs)
    words = paragraphs[nth_paragraph - 1].split()
    if not words:
        return f"paragraph {nth_paragraph} is empty: more than one blank line before it"
    start = re.split(r"""[.,?!'"]""", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0].lower()
    if start == first_word.lower():
        return None
    return f"paragraph {nth_paragraph} starts with {double_quote(start)}, must start with {double_quote(first_word)}"


def _placeholders(text: str, *, num_placeholders: int) -> str | None:
    lines = [line[: line.rfind("]") + 1] for line in text.split("\n")]
    number = sum(len(re.findall(r"\[[^]]*\]", line)) for line in lines)
    found = f"{quantity(number, 'placeholder')} in [square brackets] found"
    return relation_fault(found, number, AT_LEAST, num_placeholders)


def _postscript(text: str, *, postscript_marker: str) -> str | None:
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker) or re.compile(re.escape(marker.lower()))
    return None if pattern.search(text.lower()) else f"no postscript that starts with {double_quote(marker)}"


def _bullet_lists(text: str, *, num_bullets: int) -> str | None:
    number = len(_STARRED.findall(text)) + len(_DASHED.findall(text))
    return _exactly(f"{quantity(number, 'bullet point')} found", number, num_bullets)


def _highlights(text: str, *, num_highlights: int) -> str | None:
    single = [part[1:-1] for part in re.findall(r"\*[^\n*]*\*", text)]
    double = [part[2:-2] for part in re.findall(r"\*\*[^\n*]*\*\*", text)]
    number = sum(bool(part.strip()) for part in single + double)
    found = f"{quantity(number, 'highlighted section')} (as in *this*) found"
    return relation_fault(found, number, AT_LEAST, num_highlights)


def _multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> str | None:
    marker = section_spliter.strip()
    number = len(re.findall(rf"{re.escape(marker)}\s?\d+", text))
    found = f'{quantity(number, "section")} marked "{marker} X" found'
    return relation_fault(found, number, AT_LEAST, num_sections)


def strip_fence(text: str) -> str:
    """The text inside a Markdown code fence around the whole text, if there is one."""
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    return text.removesuffix("```").strip()


def json_value(text: str) -> tuple[Any, str | None]:
    """The JSON value that a whole text is, a code fence around it allowed, or None and what is wrong with it."""
    try:
        return json.loads(strip_fence(text)), None
    except json.JSONDecodeError as fault:
        return None, f"not valid JSON (line {fault.lineno}, column {fault.colno})"
    except ValueError:
        return None, "not valid JSON: a number has too many digits"
    except RecursionError:
        return None, "not valid JSON: brackets are nested too deeply"


def _title(text: str) -> str | None:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return None
    return "no title in <<double angular brackets>>"


def _two_responses(text: str) -> str | None:
    parts = [part.strip() for part in text.split("******")]
    answers = [part for part in parts if part]
    if not all(parts[1:-1]):
        return "an empty answer between two ******"
    if len(answers) != 2:
        return f"{quantity(len(answers), 'answer')} separated by ******, must be exactly 2"
    return "both answers are the same" if answers[0] == answers[1] else None


def _repeat_prompt(text: str, *, prompt_to_repeat: str) -> str | None:
    obeys = text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    return None if obeys else f"does not start with the request word for word: {double_quote(prompt_to_repeat)}"


def _repetition(*, prompt_to_repeat: str | None = None) -> str:
    request = "the request" if prompt_to_repeat is None else f'"{prompt_to_repeat.strip()}"'
    return f"First repeat {request} word for word and then answer it."


def _end(text: str, *, end_phrase: str) -> str | None:
    obeys = text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    return None if obeys else f"does not end with {double_quote(end_phrase)}"


def _quotation(text: str) -> str | None:
    text = text.strip()
    obeys = len(text) > 1 and text[0] == text[-1] == '"'
    return None if obeys else 'the whole answer is not in double quotation marks: " as first and last character'


def _capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> str | None:
    number = len(sentences.capital_words(text))
    found = f"{quantity(number, 'word')} in all capital letters"
    return relation_fault(found, number, capital_relation, capital_frequency)


def _capital(text: str) -> str | None:
    if text.isupper():
        return _english(text)
    found = [f"{word} instead of {word.upper()}" for word in sentences.words(text) if word != word.upper()]
    return f"lowercase letters found: {_first(found)}" if found else "no capital letters found"


def _lowercase(text: str) -> str | None:
    if text.islower():
        return _english(text)
    found = [f"{word} instead of {word.lower()}" for word in sentences.words(text) if word != word.lower()]
    return f"capital letters found: {_first(found)}" if found else "no lowercase letters found"


def _first(words: list[str]) -> str:
    distinct = list(dict.fromkeys(words))
    return ", ".join(distinct[:MOST_SHOWN]) + (", ..." if len(distinct) > MOST_SHOWN else "")


def _english(text: str) -> str | None:
    found = sentences.language(text)
    return None if found in ("en", None) else _other_language(found, "en")


_BEFORE_COMMA = re.compile(r"[^\s,]*,")


def _no_comma(text: str) -> str | None:
    number = text.count(",")
    places = " ".join(_BEFORE_COMMA.findall(text)[:MOST_SHOWN])
    return f"{quantity(number, 'comma')} found: {places}" if number else None


def _no_such_paragraph(*, num_paragraphs: int, nth_paragraph: int, **_: str) -> str | None:
    fits = 1 <= nth_paragraph <= num_paragraphs
    return None if fits else f"there is no paragraph {nth_paragraph} of {num_paragraphs}: count from 1"


def _wrong_language(value: Any) -> str | None:
    if isinstance(value, str) and value in LANGUAGES:
        return None
    return f"must be one of {', '.join(LANGUAGES)}"


CHECKS = {
    "keywords:existence": Check(
        _existence, lambda keywords: f"Use all of these words: {quote_all(keywords)}.", {"keywords": TEXTS}
    ),
    "keywords:frequency": Check(
        _frequency,
        lambda keyword, frequency, relation: f'Use "{keyword}" {requirement(relation, frequency, "time")}.',
        {"relation": RELATION, "keyword": TEXT, "frequency": COUNT},
    ),
    "keywords:forbidden_words": Check(
        _forbidden_words,
        lambda forbidden_words: f"Use none of these words: {quote_all(forbidden_words)}.",
        {"forbidden_words": TEXTS},
    ),
    "keywords:letter_frequency": Check(
        _letter_frequency,
        lambda letter, let_frequency, let_relation: (
            f'Use the character "{letter}" {requirement(let_relation, let_frequency, "time")}.'
        ),
        {"let_relation": RELATION, "letter": LETTER, "let_frequency": COUNT},
    ),
    "language:response_language": Check(
        _response_language,
        lambda language: f"Write only in {LANGUAGES[language]}.",
        {"language": Argument(_wrong_language)},
    ),
    "length_constraints:number_sentences": Check(
        _number_sentences,
        lambda num_sentences, relation: f"Write {requirement(relation, num_sentences, 'sentence')}.",
        {"relation": RELATION, "num_sentences": COUNT},
    ),
    "length_constraints:number_paragraphs": Check(
        _number_paragraphs,
        lambda num_paragraphs: (
            f"Write exactly {quantity(num_paragraphs, 'paragraph')}, with *** between two paragraphs and nowhere else."
        ),
        {"num_paragraphs": COUNT},
    ),
    "length_constraints:number_words": Check(
        _number_words,
        lambda num_words, relation: f"Write {requirement(relation, num_words, 'word')}.",
        {"relation": RELATION, "num_words": COUNT},
    ),
    "length_constraints:nth_paragraph_first_word": Check(
        _nth_paragraph,
        lambda num_paragraphs, nth_paragraph, first_word: (
            f"Write exactly {quantity(num_paragraphs, 'paragraph')}, separated by one blank line each, "
            f'and start paragraph {nth_paragraph} with the word "{first_word}".'
        ),
        {"num_paragraphs": COUNT, "nth_paragraph": COUNT, "first_word": TEXT},
        _no_such_paragraph,
    ),
    "detectable_content:number_placeholders": Check(
        _placeholders,
        lambda num_placeholders: (
            f"Include at least {quantity(num_placeholders, 'placeholder')} in square brackets, such as [address]."
        ),
        {"num_placeholders": COUNT},
    ),
    "detectable_content:postscript": Check(
        _postscript,
        lambda postscript_marker: f'Add a postscript at the end that starts with "{postscript_marker}".',
        {"postscript_marker": TEXT},
    ),
    "detectable_format:number_bullet_lists": Check(
        _bullet_lists,
        lambda num_bullets: (
            f'Write exactly {quantity(num_bullets, "bullet point")}, each on a line of its own that starts with "* ".'
        ),
        {"num_bullets": COUNT},
    ),
    "detectable_format:constrained_response": Check(
        lambda text: None if any(option in text for option in OPTIONS) else f"contains none of: {quote_all(OPTIONS)}",
        lambda: f"Answer with one of these sentences: {quote_all(OPTIONS)}.",
        {},
    ),
    "detectable_format:number_highlighted_sections": Check(
        _highlights,
        lambda num_highlights: (
            f"Highlight at least {quantity(num_highlights, 'section')} with asterisks, as in *highlighted section*."
        ),
        {"num_highlights": COUNT},
    ),
    "detectable_format:multiple_sections": Check(
        _multiple_sections,
        lambda section_spliter, num_sections: (
            f"Write {quantity(num_sections, 'section')} and start each with its number, "
            f'as in "{section_spliter.strip()} 1".'
        ),
        {"section_spliter": TEXT, "num_sections": COUNT},
    ),
    "detectable_format:json_format": Check(
        lambda text: json_value(text)[1], lambda: "Answer as one JSON object (a ```json fence is allowed).", {}
    ),
    "detectable_format:title": Check(
        _title, lambda: "Include a title in double angular brackets, as in <<title>>.", {}
    ),
    "combination:two_responses": Check(
        _two_responses, lambda: "Give two different answers, with ****** between them and nowhere else.", {}
    ),
    "combination:repeat_prompt": Check(
        _repeat_prompt,
        _repetition,
        {"prompt_to_repeat": Argument(TEXT.wrong, optional=True)},
    ),
    "startend:end_checker": Check(
        _end, lambda end_phrase: f'End with exactly this phrase: "{end_phrase.strip()}".', {"end_phrase": TEXT}
    ),
    "change_case:capital_word_frequency": Check(
        _capital_word_frequency,
        lambda capital_frequency, capital_relation: (
            f"Write {requirement(capital_relation, capital_frequency, 'word')} in all capital letters."
        ),
        {"capital_frequency": COUNT, "capital_relation": RELATION},
    ),
    "change_case:english_capital": Check(_capital, lambda: "Write in English and use only capital letters.", {}),
    "change_case:english_lowercase": Check(_lowercase, lambda: "Write in English and use only lowercase letters.", {}),
    "punctuation:no_comma": Check(_no_comma, lambda: "Use no commas.", {}),
    "startend:quotation": Check(_quotation, lambda: "Wrap the whole answer in double quotation marks.", {}),
}
"""IFEval's instructions by id; the arguments are named as in its files."""
