"""The types of options, and what a shell completes for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import click

from ray_jobs.errors import InvalidRequest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    BoolOrPathParam = click.ParamType[bool | str]
    ByteSizeParam = click.ParamType[int]
    JsonObjectParam = click.ParamType[dict[str, Any]]
else:
    # Generic for type checkers only: not so in click before 8.4.
    BoolOrPathParam = ByteSizeParam = JsonObjectParam = click.ParamType


class BoolOrPath(BoolOrPathParam):
    """True or false, or the path of a CA bundle."""

    name = "BOOLEAN|PATH"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> bool | str:
        if isinstance(value, bool):
            return value
        words = {"true": True, "1": True, "false": False, "0": False}
        return words.get(str(value).lower(), str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        words = [word for word in ("true", "false") if incomplete and word.startswith(incomplete)]
        return [*map(CompletionItem, words), *complete_path(ctx, param, incomplete)]


def complete_path(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Have the shell complete a word as the path of a file or directory."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


class Number(click.FloatRange):
    """A number that isn't negative; not NaN, which no comparison refuses."""

    def __init__(self, *, endless: bool) -> None:
        super().__init__(min=0)
        self._endless = endless

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number) or (math.isinf(number) and not self._endless):
            self.fail(f"{value} is not a number that can be used here.", param, ctx)
        return number


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class ByteSize(ByteSizeParam):
    """A number of bytes: 1000000, 100MB (10**6 each), 64MiB (2**20 each)."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().lower().removesuffix("b")
        digits = text.rstrip("kmgti ")
        unit = {**_UNITS, **_BINARY_UNITS}.get(text[len(digits) :].strip())
        if not (digits.isascii() and digits.isdecimal()) or unit is None:
            self.fail(f"{value!r} is not a size. Examples: 100MB, 64MiB, 1000000", param, ctx)
        return int(digits) * unit


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TESTS: dict[str, Callable[[object], bool]] = {
    "strings": lambda value: isinstance(value, str),
    "numbers": _is_number,
}


class JsonObject(JsonObjectParam):
    """A JSON object, given as text."""

    name = "JSON"

    def __init__(self, example: str, of: Literal["strings", "numbers"] | None = None) -> None:
        """`of` says what the object's values must be."""
        self.example = example
        self._of = of

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        import json

        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(f"not valid JSON ({error}). Example: {self.example}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail(f"must be a JSON object. Example: {self.example}", param, ctx)
        if self._of is not None and not all(map(_TESTS[self._of], parsed.values())):
            self.fail(f"must hold {self._of} alone. Example: {self.example}", param, ctx)
        return parsed


class Headers(JsonObject):
    """A JSON object of HTTP headers."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        from ray_jobs.client.auth import check_headers

        parsed = super().convert(value, param, ctx)
        try:
            return dict(check_headers(parsed))
        except InvalidRequest as error:
            self.fail(error.message, param, ctx)
