"""A model's tokenizer and chat template without transformers: `tokenizers` and sandboxed Jinja.

Has of transformers' tokenizers what `quant.shared.chat.Encoder` uses, under the same names and with the same results.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Rust

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote; here it is as if it were not there."""

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja with the filter and the functions that transformers gives to chat templates."""

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: FBT001, FBT002  templates pass it by name
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return dt.datetime.now().strftime(form)  # noqa: DTZ005  templates mean the local time

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


class Tokenizer:
    """The tokenizer of a folder with tokenizer.json and tokenizer_config.json."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tokenizer.json"
        config = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
        tokens = {name: config[name] for name in NAMED if config.get(name)}
        self.special = {name: each if isinstance(each, str) else str(each["content"]) for name, each in tokens.items()}
        told, template = config.get("chat_template"), folder / "chat_template.jinja"
        if template.exists():
            told = template.read_text()
        elif isinstance(told, list):
            told = {each["name"]: each["template"] for each in told}.get("default")
        self.chat_template: str | None = told

    @cached_property
    def _rust(self) -> Rust:
        found = Rust.from_file(str(self._file))
        found.no_truncation()
        found.no_padding()
        return found

    def release(self) -> None:
        """Give its memory back until it is needed again: 13 MB for 49,000 tokens, read in a tenth of a second."""
        self.__dict__.pop("_rust", None)

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return self.special.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Its id."""
        return self._id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of the token that fills rows up."""
        return self._id("pad_token")

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the tokens that have a name."""
        return [i for name in self.special if (i := self._id(name)) is not None]

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Tokens that were added to the vocabulary by id."""
        found: dict[int, Any] = self._rust.get_added_tokens_decoder()
        return found

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """A conversation as text; `tokenize` must be False. Raises jinja2.TemplateError if the template refuses it."""
        if tokenize:
            raise NotImplementedError
        template = _environment().from_string(self.chat_template or "")
        return template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self.special
        )

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> dict[str, Any]:
        """Token ids of a text and, for each, its place in it."""
        encoded = self._rust.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids} | ({"offset_mapping": encoded.offsets} if return_offsets_mapping else {})

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Tokens as text."""
        return str(self._rust.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _id(self, name: str) -> int | None:
        token = self.special.get(name)
        found: int | None = None if token is None else self._rust.token_to_id(token)
        return found


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; older tokenizers have their special tokens in a file of their own, newer ones have not."""
    return dict(json.loads(path.read_text())) if path.exists() else {}
