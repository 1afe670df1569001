from __future__ import annotations

import json
import string
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import CUSTOM_PATTERN, leaks, planted

from agent.contract.errors import ConfigError
from offload.redact import KINDS, Redactor

EXAMPLES = Path(__file__).parents[2] / "examples"


def redacted(text: str, *patterns: str) -> str:
    return Redactor(patterns).redact(text)


# ---- nothing leaks ----


def test_no_part_of_a_planted_secret_is_left() -> None:
    """238 secrets of 17 kinds, none of which leaves eight characters in a row behind; the texts come back exactly."""
    found = planted()
    leaked = []
    for kind, secret, text in found:
        redactor = Redactor([CUSTOM_PATTERN])
        sent = redactor.redact(text)
        leaked += [(kind, secret, part) for part in leaks(secret, sent)]
        assert redactor.restore(sent) == text
    counts = Counter(each.kind for each in found)
    print(f"{len(found)} secrets of {len(counts)} kinds planted, {len(leaked)} leaks")
    assert leaked == []
    assert len(found) >= 200
    assert min(counts.values()) >= 12


def test_the_planted_secrets_would_leak_if_nothing_were_redacted() -> None:
    """Every one of them, unless its text is JSON, in which a key's line ends are escaped, is seen by the check."""
    assert all(leaks(secret, text) for _, secret, text in planted())


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("Write to bob.smith+x@mail.example.org.", "Write to [EMAIL_1]."),
        ("a@x.org, b@x.org, a@x.org", "[EMAIL_1], [EMAIL_2], [EMAIL_1]"),
        ("Open http://10.0.0.1:8080/24", "Open http://[IP_1]:8080/24"),
        ("It is 10.0.0.1.", "It is [IP_1]."),
        ("ping fe80::1ff:fe23:4567:890a%eth0", "ping [IP_1]%eth0"),
        ("::ffff:10.0.0.1", "[IP_1]"),
        ("https://bob:hunter2@host/feed", "https://[SECRET_1]@host/feed"),
        ("password: hunter2.", "password: [SECRET_1]."),
        ("password: on. It is on.", "password: [SECRET_1]. It is on."),
        ('{"password": "two words"}', '{"password": "[SECRET_1]"}'),
        ("The password of the Marlow pump is amber77.", "The password of the Marlow pump is [SECRET_1]."),
        ("log in as lund, password amber-77, or call", "log in as lund, password [SECRET_1], or call"),
        ("password=amber77 and then amber77, or amber77", "password=[SECRET_1] and then [SECRET_1], or [SECRET_1]"),
        ("Pay with 4111 1111 1111 1111 123", "Pay with [CARD_1] 123"),
        ("Pay with 4111-1111-1111-1111.", "Pay with [CARD_1]."),
        ("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF", "IBAN [IBAN_1] BIC COBADEFF"),
        ("iban de89370400440532013000", "iban [IBAN_1]"),
        ("Call 555-0123 now", "Call [PHONE_1] now"),
        ("SSN 536-90-4399", "SSN [SSN_1]"),
        ("id 6fa459ea-ee8a-3ca4-894e-db77e160355e", "id [RANDOM_1]"),
        ("first\\n10.0.0.1\\nlast", "first\\n[IP_1]\\nlast"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQ", "[KEY_1]"),
    ],
)
def test_what_is_secret_is_replaced_and_the_rest_stays(text: str, sent: str) -> None:
    """Values only: the words, separators, ports and punctuation around them tell the remote model what to do."""
    assert redacted(text) == sent


# ---- nothing else is touched ----


@pytest.mark.parametrize(
    "text",
    [
        "The service port of the Marlow pump is 4713.",
        "Order filter 83560 for port 35081, part 123456789.",
        "It was 2023-11-05, 05.11.2023, 11/05/2023 or 05-11-2023 10:30:45.",
        "Version 2.13.0 replaces v1.2.3.4 and 120.0.6099.109.",
        "From nslora_agent_training_worker.py in /usr/lib/python3/dist-packages/transformers/generation",
        "It cost $1,024,000.50, 1.234.567,89 EUR or 12 345 678 901 234 yen; 1700000000000 ms.",
        "40000-8000-4000-800=27200 and 1,000 000 - 450 000",
        "a[1::2], std::vector, 10:30, x = y::z, {{1, 2, 3}}",
        "donaudampfschifffahrtsgesellschaftskapitaen, internationalization, AutoModelForSequenceClassification",
        "The password manager of 2024 keeps password 58201 and password files.",
        "The password is required. Tokens: 5820. The key is amber, the secret lies elsewhere.",
        "0101 1010 0110",
        "2 345 678 901 239 yen",
        "a1a1a1a1a1a1a1a1a1a1a1a1",
        "DE89 3704 0044 0532 0130 00AB",
        "DE89 3704 0044 0532 0130 01 has a wrong check digit, 4111111111111112 too.",
        "pi is 3.14159265358979323846",
        "git@github.com said @property and @user",
    ],
)
def test_plain_facts_are_left_alone(text: str) -> None:
    """Numbers, dates, versions, identifiers and prose are what the remote model has to see."""
    expected = text.replace("git@github.com", "[EMAIL_1]")
    assert redacted(text) == expected


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


@pytest.mark.parametrize(
    "path", sorted({*EXAMPLES.glob("*.jsonl")} - {EXAMPLES / "rewrites.jsonl"}), ids=lambda path: path.name
)
def test_no_example_row_is_changed(path: Path) -> None:
    """The example facts are no secrets."""
    found = [text for line in path.read_text(encoding="utf-8").splitlines() for text in texts(json.loads(line))]
    assert found
    assert [redacted(text) for text in found] == found


# ---- and back ----

TEXT = st.text() | st.text(st.sampled_from("[]EMAIL_1\u017femail20.@ab \n\\:\"'/-+(")) | st.text(string.printable)
PIECES = [
    "[EMAIL_1]", "[email_1]", "[SECRET_1]", "[LITERAL_1]", "[KEY_", "_1]", "bob@example.org", "password=", "'", '"',
    "hunter2x", "10.0.0.1", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", " ", "\n", "4111111111111111",
    "+49 171 1234567", "://a:b@", "[", "]", "\u0130", "key: ",
]  # fmt: skip
PARTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join)


@given(st.lists(TEXT | PARTS, max_size=4))
def test_a_redacted_text_comes_back_exactly(originals: list[str]) -> None:
    """Whatever the texts of a request hold, also what looks like a placeholder or part of one."""
    redactor = Redactor([r"b+"])
    sent = [redactor.redact(text) for text in originals]
    assert [redactor.restore(text) for text in sent] == originals
    assert all(redactor.placeholders_lost(text, text) == redactor.placeholders_invented(text) == [] for text in sent)


def test_a_placeholder_comes_back_in_any_case() -> None:
    """The secret itself keeps its own case."""
    redactor = Redactor()
    assert redactor.redact("Mail Bob@example.org") == "Mail [EMAIL_1]"
    assert redactor.restore("mail [email_1] or [Email_1]") == "mail Bob@example.org or Bob@example.org"


def test_text_that_looks_like_a_placeholder_is_not_taken_for_one() -> None:
    """Even if it was there before the secret that gets this placeholder, in this or in another text."""
    redactor = Redactor()
    sent = [redactor.redact(text) for text in ("See [EMAIL_1] and [email_1].", "bob@example.org", "[EMAIL_1]")]
    assert sent == ["See [LITERAL_1] and [LITERAL_2].", "[EMAIL_1]", "[LITERAL_1]"]
    assert redactor.restore(" ".join(sent)) == "See [EMAIL_1] and [email_1]. bob@example.org [EMAIL_1]"


def test_all_texts_of_a_request_share_their_placeholders() -> None:
    """So that the remote model sees that the prompt and the answer speak of the same thing."""
    redactor = Redactor()
    assert redactor.redact("Is it 10.0.0.1 or 10.0.0.2?") == "Is it [IP_1] or [IP_2]?"
    assert redactor.redact("It is 10.0.0.2.") == "It is [IP_2]."
    assert redactor.counts == {"IP": 2}


def test_a_password_is_known_again_where_nothing_calls_it_one() -> None:
    """In later texts of the request too."""
    redactor = Redactor()
    assert (
        redactor.redact("What is the pump's login? password=Amber!77")
        == "What is the pump's login? password=[SECRET_1]"
    )
    assert redactor.redact("Type Amber!77.") == "Type [SECRET_1]."


def test_lost_and_invented_placeholders_are_named() -> None:
    """An answer without a placeholder has lost a secret; one with an unknown placeholder would keep it for good."""
    redactor = Redactor()
    sent = redactor.redact("a@x.org, b@x.org, 10.0.0.1, b@x.org")
    assert redactor.placeholders_lost(sent, "[EMAIL_1] and [ip_1]") == ["[EMAIL_2]"]
    assert redactor.placeholders_lost(sent, "nothing") == ["[EMAIL_1]", "[EMAIL_2]", "[IP_1]"]
    assert redactor.placeholders_invented("[EMAIL_2], [email_3] and [NAME_1]") == ["[EMAIL_3]"]


# ---- the operator's own patterns ----


def test_an_operators_pattern_is_redacted_whole() -> None:
    """Groups in it only group."""
    assert redacted("Line ABC-1234, order 77", r"(ABC|DEF)-\d+", r"77$", r"x*") == "Line [CUSTOM_1], order [CUSTOM_2]"


@pytest.mark.parametrize("pattern", ["(", "[a-", "a{1,99999999999999999999}", "*"])
def test_a_bad_pattern_is_named(pattern: str) -> None:
    """In one line, as a wrong value of the configuration."""
    with pytest.raises(ConfigError) as caught:
        Redactor(["fine", pattern])
    assert repr(pattern) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_placeholders_are_of_the_listed_kinds() -> None:
    """What the audit log counts."""
    redactor = Redactor([CUSTOM_PATTERN])
    for _, _, text in planted():
        redactor.redact(text)
    redactor.redact("[IP_1]")
    assert set(redactor.counts) == set(KINDS)


# ---- time ----

LONG = 100_000
"""Characters."""
UNITS = [
    "aB1", "a.", "@a.", "4111 ", "DE89 ", "a:", "-", "-----BEGIN PRIVATE KEY-----", "password ", "password='", "_pass-",
    "--password ",
]  # fmt: skip


def seconds(text: str) -> float:
    redactor = Redactor()
    before = time.process_time()
    redactor.redact(text)
    return time.process_time() - before


@pytest.mark.slow
def test_time_grows_with_the_length_only() -> None:
    """A text that repeats the start of a secret takes not much longer than prose; quadratic time would be minutes."""
    prose = seconds("The service port of the Marlow pump is 4713. " * (LONG // 45))
    slow = {unit: seconds(unit * (LONG // len(unit))) for unit in UNITS}
    print({unit: round(each, 2) for unit, each in slow.items()}, f"prose {prose:.2f} s")
    assert max(slow.values()) < 50 * prose
