"""Taking secrets out of texts: passwords and tokens of URLs, and values that are known. Pure.

For whatever leaves the server and isn't the answer to the job's own client: logs, audit, archive,
web pages. A password that stands somewhere else in a text can't be known for one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ray_jobs.credentials import (
    PLACEHOLDER,
    Span,
    cost_ns,
    covered,
    credentials_in,
    masked,
    without_credentials,
)
from ray_jobs.models import JobInfo

#: How much of what a client sent is repeated to it, in characters.
MAX_SHOWN_CHARS = 80
#: Shorter values ("1", "true") would be found in half of all words.
MIN_VALUE_CHARACTERS = 6
#: Of a JSON value; no runtime environment is deeper.
MAX_DEPTH = 50

#: What looking for the secrets of one job may cost, in ns and in characters that are searched:
#: some ms. Who submits chooses how many values there are, and how much text.
MAX_WORK = 5_000_000
#: What a search costs beside its characters, and what a place that is found does.
SEARCH_WORK, FOUND_WORK = 64, 256
#: To gather how the words of a text begin costs so much for each character; few values are looked
#: for one by one instead.
GATHER_WORK = 128
#: What it costs to write a value in other ways, and each character of it.
FORMS_WORK, FORMS_CHARACTER_WORK = 8_000, 60

#: Written the same everywhere.
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")
#: Written in another way within quotes.
_ESCAPED = re.compile(r"[^\x20-\x7e]|[\"'\\$`]")
#: Each byte as URLs write it, in capitals and in small letters.
_IN_URLS, _IN_URLS_SMALL = (
    [chr(byte) if _PLAIN.fullmatch(chr(byte)) else form % byte for byte in range(256)]
    for form in ("%%%02X", "%%%02x")
)


class Scrubber:
    """Takes the credentials of URLs and headers out of the texts of one job, and known values.

    Where looking for the values would cost too much, what is left of the texts is taken out whole.

    Args:
        values: Secrets that are known, such as those of `env_vars`. Short ones are left.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values: set[str] = set()
        self._by_beginning: dict[str, list[str]] = {}
        self._work_left = MAX_WORK
        for value in values:
            # A final line break is often gone where a value is used.
            self._add(value.strip())

    def _add(self, value: str) -> None:
        if len(value) < MIN_VALUE_CHARACTERS or self._work_left < 0:
            return
        if _PLAIN.fullmatch(value):
            self._values.add(value)
        else:
            self._work_left -= FORMS_WORK + FORMS_CHARACTER_WORK * len(value)
            self._values |= written_forms(value)

    def text(self, text: str) -> str:
        """Return a text without what is secret in it."""
        if self._work_left < 0 and text:
            return PLACEHOLDER
        is_long = len(text) >= MIN_VALUE_CHARACTERS
        spans = self._values_in(text) if self._values and is_long else []
        # A value may be a part of what a credential is told by, or of what would end one.
        texts = [text, masked(text, spans)] if spans else [text]
        self._work_left -= len(texts) * cost_ns(text)
        if self._work_left < 0:
            return PLACEHOLDER
        for each in texts:
            spans += credentials_in(each)
        return covered(text, spans)

    def deep(self, value: Any, depth: int = MAX_DEPTH) -> Any:
        """Return a copy of a JSON value, all of its texts scrubbed; what is deeper is left out."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict | list) and depth == 0:
            return PLACEHOLDER
        if isinstance(value, dict):
            return {self.text(key): self.deep(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.deep(item, depth - 1) for item in value]
        return value

    def _values_in(self, text: str) -> list[Span]:
        """Return where the values are in a text. Not all of them if no work is left."""
        spans: list[Span] = []
        for value in self._candidates(text):
            self._work_left -= len(text) + SEARCH_WORK
            at = text.find(value) if self._work_left >= 0 else -1
            while at >= 0:
                spans.append((at, at + len(value)))
                self._work_left -= FOUND_WORK
                at = text.find(value, at + len(value)) if self._work_left >= 0 else -1
        return spans

    def _candidates(self, text: str) -> Iterable[str]:
        """Return the values that may be in a text: all if they are few, or as they begin."""
        if len(self._values) * (len(text) + SEARCH_WORK) <= GATHER_WORK * len(text):
            return self._values
        if not self._by_beginning:
            for value in self._values:
                self._by_beginning.setdefault(value[:MIN_VALUE_CHARACTERS], []).append(value)
        self._work_left -= GATHER_WORK * len(text)
        if self._work_left < 0:
            return ()
        beginnings = {
            text[at : at + MIN_VALUE_CHARACTERS]
            for at in range(len(text) - MIN_VALUE_CHARACTERS + 1)
        }
        found = beginnings & self._by_beginning.keys()
        return [value for beginning in found for value in self._by_beginning[beginning]]


def written_forms(value: str) -> set[str]:
    """Return how a value may be written: as it is, in URLs, and in quotes of JSON, Python, shells.

    `shlex.quote` and people write a single quote within such quotes in different ways.
    """
    data = value.encode("utf-8", "replace")
    forms = {value}
    for table in (_IN_URLS, _IN_URLS_SMALL):
        in_url = "".join([table[byte] for byte in data])
        forms |= {in_url, in_url.replace("%20", "+")}
    if _ESCAPED.search(value):
        forms |= {
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
            repr(value)[1:-1],
            re.sub(r"([\"\\$`])", r"\\\1", value),
            value.replace("'", "'\"'\"'"),
            value.replace("'", r"'\''"),
        }
    return forms


def scrubbed(text: str, values: Iterable[str] = ()) -> str:
    """Return a text without the credentials of its URLs and headers, and without some values.

    Args:
        values: Secrets that are known, such as those of `env_vars`.
    """
    return Scrubber(values).text(text)


def shown(text: str, max_characters: int = MAX_SHOWN_CHARS) -> str:
    """Return the beginning of what a client sent, to be repeated in a refusal.

    Where an address is cut before its @, nobody can tell its password any more: such a text is
    scrubbed first. One that isn't cut is scrubbed with the refusal, on its way out.
    """
    return text if len(text) <= max_characters else scrubbed(text)[:max_characters]


def secret_values(runtime_env: dict[str, Any] | None) -> list[str]:
    """Return the values of a runtime environment's variables."""
    env_vars = (runtime_env or {}).get("env_vars")
    if not isinstance(env_vars, dict):
        return []
    return [value for value in env_vars.values() if isinstance(value, str)]


def scrubbed_runtime_env(
    runtime_env: dict[str, Any] | None, scrubber: Scrubber | None = None
) -> dict[str, Any] | None:
    """Return a copy of a runtime environment: variables keep only their names, URLs no password.

    Args:
        scrubber: One for its values, if there is one already.
    """
    if not runtime_env:
        return runtime_env
    scrubber = scrubber or Scrubber(secret_values(runtime_env))
    return {
        # What a name is of its own is shown, though some variable has it for its value.
        without_credentials(name): dict.fromkeys(map(without_credentials, value), PLACEHOLDER)
        if name == "env_vars" and isinstance(value, dict)
        else scrubber.deep(value)
        for name, value in runtime_env.items()
    }


def redact(info: JobInfo) -> None:
    """Take the secrets out of a job that is about to be shown. What it refers to is copied.

    Where they may stand in texts: its id, which may hold such a value too, stays as it is.
    """
    scrubber = Scrubber(secret_values(info.runtime_env))
    info.runtime_env = scrubbed_runtime_env(info.runtime_env, scrubber)
    info.entrypoint = scrubber.text(info.entrypoint or "")
    info.metadata = scrubber.deep(info.metadata)
    if info.message:
        info.message = scrubber.text(info.message)
