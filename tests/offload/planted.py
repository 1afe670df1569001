"""Texts with made-up secrets of every kind, valid down to the check digits, for tests that nothing leaks."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable
from typing import NamedTuple

OF_EACH_KIND = 14
CUSTOM_PATTERN = r"ACME-\d{4}-[A-Z]{3}"
"""What the kind `custom` needs as a pattern of the operator's."""

HEX = "0123456789abcdef"
ALNUM = string.ascii_letters + string.digits
URL_SAFE = ALNUM + "-_"


class Planted(NamedTuple):
    """A secret and a text that holds it; several can share a text."""

    kind: str
    secret: str
    text: str


def chars(rng: random.Random, alphabet: str, count: int) -> str:
    return "".join(rng.choices(alphabet, k=count))


def mixed(rng: random.Random, alphabet: str, count: int) -> str:
    """Random characters with the digits and letters that real ones have."""
    while True:
        made = chars(rng, alphabet, count)
        if sum(map(str.isdigit, made)) >= 3 and sum(map(str.isalpha, made)) >= 3:
            return made


def private_key(rng: random.Random) -> str:
    name = rng.choice(["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"])
    body = base64.b64encode(rng.randbytes(rng.randrange(90, 400))).decode()
    lines = "\n".join(body[i : i + 64] for i in range(0, len(body), 64))
    return f"-----BEGIN {name}-----\n{lines}\n-----END {name}-----"


SHAPES: list[Callable[[random.Random], str]] = [
    lambda rng: f"sk-{mixed(rng, ALNUM, 48)}",
    lambda rng: f"sk-proj-{mixed(rng, URL_SAFE, 80)}",
    lambda rng: f"sk-ant-api03-{mixed(rng, URL_SAFE, 80)}",
    lambda rng: f"AKIA{chars(rng, string.ascii_uppercase + '234567', 16)}",
    lambda rng: mixed(rng, ALNUM + "/+", 40),
    lambda rng: f"ghp_{chars(rng, ALNUM, 36)}",
    lambda rng: f"github_pat_{chars(rng, ALNUM, 22)}_{chars(rng, ALNUM, 59)}",
    lambda rng: f"glpat-{chars(rng, URL_SAFE, 20)}",
    lambda rng: f"xoxb-{chars(rng, string.digits, 12)}-{chars(rng, ALNUM, 24)}",
    lambda rng: f"AIza{chars(rng, URL_SAFE, 35)}",
    lambda rng: f"sk_live_{chars(rng, ALNUM, 24)}",
    lambda rng: f"rk_test_{chars(rng, ALNUM, 24)}",
    lambda rng: f"hf_{chars(rng, ALNUM, 34)}",
    lambda rng: f"npm_{chars(rng, ALNUM, 36)}",
]


def json_web_token(rng: random.Random) -> str:
    parts = [json.dumps({"alg": "HS256", "typ": "JWT"}), json.dumps({"sub": chars(rng, string.digits, 10)})]
    head = ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)
    return f"{head}.{chars(rng, URL_SAFE, 43)}"


def password(rng: random.Random) -> str:
    return mixed(rng, ALNUM + "!#$%*+-_", rng.randrange(10, 18)) + rng.choice(ALNUM)


def email(rng: random.Random) -> str:
    local = chars(rng, string.ascii_lowercase, 6) + rng.choice([".", "_", "+", "-"]) + chars(rng, ALNUM, 4)
    ending = rng.choice(["com", "org", "co.uk", "de", "museum", "io"])
    return f"{local}@{chars(rng, string.ascii_lowercase, 7)}.{ending}"


def phone(rng: random.Random) -> str:
    shape = rng.choice([
        "+49 17# #######", "+1 (2##) 3##-####", "+44 20 7### ####", "+33 6 ## ## ## ##", "+4917########",
        "+1-4##-5##-####", "(2##) 5##-####", "3##-5##-####", "2##.5##.####",
        "017# #######", "030/########", "020 7### ####",
        "06 2# 3# 4# 5#", "0049 89 #######", "(030) 2### ####", "+91 98### #####", "(11) 9####-####",
    ])  # fmt: skip
    return "".join(rng.choice("23456789") if char == "#" else char for char in shape)


def luhn_digit(digits: str) -> str:
    """The last digit that makes the number valid, added up digit by digit."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (2 if place % 2 == 0 else 1)
        total += value // 10 + value % 10
    return str(-total % 10)


def card(rng: random.Random) -> str:
    start, length = rng.choice([("4", 16), ("5412", 16), ("34", 15), ("6011", 16), ("36", 14), ("4", 13), ("6304", 19)])
    body = start + chars(rng, string.digits, length - 1 - len(start))
    number = body + luhn_digit(body)
    gap = rng.choice(["", " ", "-"])
    if length == 15:
        return gap.join([number[:4], number[4:10], number[10:]])
    return gap.join(number[i : i + 4] for i in range(0, length, 4))


def iban(rng: random.Random) -> str:
    shape = rng.choice(["DE##################", "GB@@@@##############", "FR#######################", "NO###########",
                        "CH#################", "NL@@@@##########", "MT@@@@#######################"])  # fmt: skip
    tail = "".join(
        rng.choice(string.digits if char == "#" else string.ascii_uppercase) if char in "#@" else char
        for char in shape[2:]
    )
    remainder = int("".join(str(int(char, 36)) for char in f"{tail}{shape[:2]}00")) % 97
    number = f"{shape[:2]}{98 - remainder:02}{tail}"
    return number if rng.random() < 0.5 else " ".join(number[i : i + 4] for i in range(0, len(number), 4))


def ipv4(rng: random.Random) -> str:
    return ".".join(str(rng.randrange(10, 255)) for _ in range(4))


def ipv6(rng: random.Random) -> str:
    groups = [f"{rng.randrange(4096, 65536):x}" for _ in range(8)]
    full = ":".join(groups)
    return rng.choice([full, full.upper(), f"2001:db8::{':'.join(groups[:3])}", f"fe80::{':'.join(groups[:4])}"])


def mac(rng: random.Random) -> str:
    pairs = [f"{rng.randrange(256):02x}" for _ in range(6)]
    joined = "".join(pairs)
    return rng.choice([
        ":".join(pairs), "-".join(pairs).upper(), f"{joined[:4]}.{joined[4:8]}.{joined[8:]}",
    ])  # fmt: skip


def random_string(rng: random.Random) -> str:
    alphabet = rng.choice([HEX, ALNUM, URL_SAFE, ALNUM + "+/"])
    made = mixed(rng, alphabet, rng.choice([32, 40, 64]))
    return f"{made[:8]}-{made[8:12]}-{made[12:16]}-{made[16:20]}-{made[20:32]}" if alphabet == HEX else made


def social_security(rng: random.Random) -> str:
    return f"{rng.randrange(100, 600)}-{rng.randrange(10, 99)}-{rng.randrange(1000, 9999)}"


def as_it_is(secret: str, _rng: random.Random) -> str:
    return secret


def in_bearer(secret: str, rng: random.Random) -> str:
    return rng.choice(["Authorization: Bearer {}", "curl -H 'authorization: bearer {}'", "Bearer {}"]).format(secret)


def in_url(secret: str, rng: random.Random) -> str:
    return rng.choice([
        "https://{}@updates.example.net/feed", "ftp://{}@files.example.net", "postgresql://{}@db.example.net:5432/plant",
        "amqp://{}@broker:5672", "mongodb+srv://{}@cluster.example.net/?retryWrites=true",
    ]).format(secret)  # fmt: skip


def in_assignment(secret: str, rng: random.Random) -> str:
    return rng.choice([
        "password={}", "passwd: {}", "DB_PASSWORD='{}'", 'api_key = "{}"', "secret: {}", "export CLIENT_SECRET={}",
        '{{"password": "{}"}}', "pwd:{}", "auth_token => `{}`", "apiKey: '{}'", "wifi psk = {}", "mqtt_pass={}",
        '{{\\"passphrase\\": \\"{}\\"}}', "password: str = '{}'", "login --password {}", "<password>{}</password>",
        "The service password of the pump is {}", "config['access_key'] = '{}'", "?user=pump&token={}",
    ]).format(secret)  # fmt: skip


def in_connection(secret: str, rng: random.Random) -> str:
    return rng.choice([
        "Server=tcp:db.example.net;Database=plant;User Id=pump;Password={};Encrypt=yes",
        "DefaultEndpointsProtocol=https;AccountName=plant;AccountKey={}==;EndpointSuffix=example.net",
        "host=db user=pump password={} dbname=plant", "Endpoint=sb://bus/;SharedAccessKey={}",
    ]).format(secret)  # fmt: skip


def user_and_password(rng: random.Random) -> str:
    return f"{chars(rng, string.ascii_lowercase, 6)}:{mixed(rng, ALNUM + '!$%*_-', 12)}"


Maker = Callable[[random.Random], str]
Setting = Callable[[str, random.Random], str]
KINDS: dict[str, tuple[Maker, Setting]] = {
    "private key": (private_key, as_it_is),
    "known shape": (lambda rng: rng.choice(SHAPES)(rng), as_it_is),
    "jwt": (json_web_token, as_it_is),
    "bearer": (lambda rng: mixed(rng, URL_SAFE, 16), in_bearer),
    "url": (user_and_password, in_url),
    "assignment": (password, in_assignment),
    "connection": (lambda rng: mixed(rng, ALNUM, 24), in_connection),
    "email": (email, as_it_is),
    "phone": (phone, as_it_is),
    "card": (card, as_it_is),
    "iban": (iban, as_it_is),
    "ssn": (social_security, as_it_is),
    "ipv4": (ipv4, as_it_is),
    "ipv6": (ipv6, as_it_is),
    "mac": (mac, as_it_is),
    "random": (random_string, as_it_is),
    "custom": (lambda rng: f"ACME-{chars(rng, string.digits, 4)}-{chars(rng, string.ascii_uppercase, 3)}", as_it_is),
}
TEXTS = (
    "{}",
    "{} is what the label of the Marlow pump says.",
    "Use this on port 4713: {}",
    "The handbook of 2023 names {}, and version 2.13.0 of the firmware needs it.",
    "Is it {}? I think so ({}).",
    '"{}"',
    "'{}', said the engineer.",
    "# Access\n\n* **Value:** {}\n* Port: 35081\n",
    "| field | value |\n|---|---|\n| access | {} |\n",
    "```python\nconnect({}, retries=3)\n```",
    "value = '{}'  # do not share",
    "First line\n{}\nlast line",
    "Écrivez à «\u00a0{}\u00a0» après 10:30.",
    "[see]({}) <{}>",
)


def planted(seed: int = 20240117) -> list[Planted]:
    """At least 200 secrets of 17 kinds in varied texts, the same ones for the same seed; every fifth text has three."""
    rng = random.Random(seed)
    made = [
        (kind, secret, setting(secret, rng))
        for kind, (maker, setting) in KINDS.items()
        for secret in (maker(rng) for _ in range(OF_EACH_KIND))
    ]
    rng.shuffle(made)
    found: list[Planted] = []
    while made:
        count = 3 if len(found) % 5 == 0 else 1
        found += _one_text(made[:count], rng)
        made = made[count:]
    return found


def _one_text(group: list[tuple[str, str, str]], rng: random.Random) -> list[Planted]:
    parts = [rng.choice(TEXTS).replace("{}", shown) for _, _, shown in group]
    text = rng.choice([" ", "\n", "\n\n"]).join(parts)
    if rng.random() < 0.2:
        text = json.dumps({"prompt": text}, ensure_ascii=False)
    return [Planted(kind, secret, text) for kind, secret, _ in group]


def leaks(secret: str, sent: str, window: int = 8) -> list[str]:
    """Parts of a secret of 8 characters that stand in what was sent, or the secret itself if it is shorter."""
    parts = [secret[i : i + window] for i in range(max(1, len(secret) - window + 1))]
    return [part for part in parts if part in sent and not part.startswith("-----")]
