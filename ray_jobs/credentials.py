"""Taking credentials out of texts: those of URLs and of headers. Pure, and light: for clients too.

All costs are linear in the length of the text: who submits chooses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

PLACEHOLDER = "<redacted>"

#: What looking may cost on a slow machine, in ns: for a character, for one with which a parameter
#: may begin, for a place where there may be a URL, a parameter or a scheme, and for a header.
CHARACTER_NS, SEPARATOR_NS, PLACE_NS, HEADER_NS = 10, 100, 400, 2_500

# What a URL ends at, in texts, in JSON and in shell commands.
_END = r"/\s\"'<>\\"
# What doesn't end it all the same: an apostrophe within a word, and how JSON may write a character.
_APOSTROPHE = r"'(?=[^\s,;:()\[\]{}+\"'\\<>/])"
_WITHIN = rf"{_APOSTROPHE}|\\{{1,4}}u[0-9A-Fa-f]{{4}}"
# As JSON may write it; JSON within JSON too.
_SLASH = r"\\{0,4}/"
# Each pattern begins with few characters, whatever their case: only so a search skips fast to them.


def _run(excluded: str, within: str = _WITHIN) -> str:
    """Return a pattern for a run of characters but some. It matches a text in one way only."""
    return rf"[^{excluded}]*(?:(?:{within})[^{excluded}]*)*"


_USER = rf"(?!\[){_run(_END + '@:')}:"
# A port, or a variable in its place: what follows is a path.
_PORT = rf"(?:\d{{1,5}}|[$%{{][\w$%{{}}.]*)(?:,|{_SLASH})"
_WITHIN_PASSWORD = rf"{_WITHIN}|{_SLASH}(?!{_SLASH})"
#: `user:password@` or `token@` of a URL. A password may hold an @ and, malformed, ? and #. One with
#: slashes, malformed as well, is looked for last. None goes on into the next URL: nothing is looked
#: at more often than there are alternatives.
_USERINFO = re.compile(
    rf"(:{_SLASH}{_SLASH})(?:"
    rf"{_USER}{_run(_END)}"
    rf"|{_run(_END + '?#')}"
    rf"|{_USER}(?!{_PORT}){_run(_END + '@?#', _WITHIN_PASSWORD)}(?:@[^{_END}@]*)*"
    rf")@"
)
_WITHIN_VALUE = rf"{_APOSTROPHE}|{_SLASH}|\\{{1,4}}u(?!0026)[0-9A-Fa-f]{{4}}"
#: A parameter of a query or a fragment, up to its value.
_PARAMETER = re.compile(r"(?:\?|&|\#|\\u0026)(?:amp;)?([\w.\[\]%-]{1,80})=")
_VALUE = re.compile(_run("&#" + _END, _WITHIN_VALUE))
_SECRET_NAME = re.compile(
    r"token|secret|pass|pwd|signature|sig|credential|key|auth(?!or)|jwt", re.IGNORECASE
)

_QUOTE = r"\\{0,7}[\"']"
#: A header of any scheme, up to its value and the quotes around that.
_HEADER = re.compile(
    rf"[Aa](?<![A-Za-z].)(?i:uthorization)({_QUOTE})?(?:[ \t]{{0,4}}:|\][ \t]{{0,4}}=)[ \t]{{0,4}}"
    rf"(?:[BbFfRrUu]{{0,2}}({_QUOTE}))?"
)
#: Before the name of a header, or the end of it: "Proxy-".
_BEFORE = re.compile(rf"({_QUOTE})[\w-]{{0,40}}\Z")
_BEFORE_CHARACTERS = 48
_QUOTE_OR_LINE_END = re.compile(r"\\{0,8}[\"']|[\r\n]")
#: Behind the quotes: in a shell, a word may go on with others.
_GOES_ON = re.compile(r"(?:[\w$]|\\?[\"'][\w$\"'\\%+/=.~-])\S*")
_SCHEME = re.compile(r"[Bb](?<!\w.)(?i:earer|asic)\s{1,4}([\w.~+/=-]{8,})")

#: Where something begins and ends in a text.
Span = tuple[int, int]
#: What no URL, parameter or scheme goes on behind.
_MASK = "<"


def without_credentials(text: str) -> str:
    """Return a text without the credentials of its URLs and headers."""
    return covered(text, credentials_in(text))


def credentials_in(text: str) -> list[Span]:
    """Return where the credentials of URLs and headers are in a text. Some may overlap."""
    found: list[Span] = []
    if has_url(text):
        found += _userinfo_in(text)
        if "=" in text:
            # A password may look like a parameter, and end one; or the other way round.
            outside = masked(text, found)
            found += [*_parameters_in(text, found), *_parameters_in(outside, [(0, len(text))])]
    lowered = text.lower()
    if "authorization" in lowered:
        found += _headers_in(text)
    if "bearer" in lowered or "basic" in lowered:
        found += (scheme.span(1) for scheme in _SCHEME.finditer(text))
    return found


def masked(text: str, spans: Iterable[Span]) -> str:
    """Return a text of the same length in which nothing is found within some spans."""
    return _replaced(text, spans, lambda length: _MASK * length)


def covered(text: str, spans: Iterable[Span], placeholder: str = PLACEHOLDER) -> str:
    """Return a text with each part that some spans cover replaced by the placeholder."""
    return _replaced(text, spans, lambda _: placeholder)


def _replaced(text: str, spans: Iterable[Span], by: Callable[[int], str]) -> str:
    """Return a text with each part that some spans cover replaced, by what its length gets."""
    parts: list[Span] = []
    for start, stop in sorted(spans):
        if parts and start <= parts[-1][1]:  # one part with what is before
            parts[-1] = parts[-1][0], max(parts[-1][1], stop)
        else:
            parts.append((start, stop))
    kept: list[str] = []
    end = 0
    for start, stop in parts:
        kept += [text[end:start], by(stop - start)]
        end = stop
    return "".join([*kept, text[end:]])


def cost_ns(text: str) -> int:
    """Return what `without_credentials` may cost for a text. By and by, and rather too much."""
    lowered = text.lower()
    places = lowered.count("bearer") + lowered.count("basic")
    headers = lowered.count("authorization")
    separators = 0
    if has_url(text):
        separators = sum(map(text.count, ("?", "&", "#", "\\u0026")))
        places += text.count("://") + text.count(":\\") + min(separators, text.count("="))
    if not places and not headers:
        return 0
    return (
        CHARACTER_NS * len(text)
        + SEPARATOR_NS * separators
        + PLACE_NS * places
        + HEADER_NS * headers
    )


def has_url(text: str) -> bool:
    """Return whether there may be a URL in a text, as it is or as JSON may write it."""
    return "://" in text or ":\\" in text


def without_userinfo(text: str, placeholder: str = PLACEHOLDER) -> str:
    """Return a text without the users, passwords and tokens before the hosts of its URLs."""
    return covered(text, _userinfo_in(text), placeholder)


def _userinfo_in(text: str) -> Iterator[Span]:
    if "@" in text:
        for found in _USERINFO.finditer(text):
            yield found.end(1), found.end() - 1


def _parameters_in(text: str, parts: Iterable[Span]) -> Iterator[Span]:
    """Yield the secret values of those that begin in some parts of a text."""
    end = 0
    for start, stop in parts:
        end = max(end, start)
        while found := _PARAMETER.search(text, end, stop):
            end = found.end()
            # The value of any other may be a URL with parameters of its own.
            value = _VALUE.match(text, end) if _SECRET_NAME.search(found[1]) else None
            if value and value[0]:
                end = value.end()
                yield value.span()


def _headers_in(text: str) -> Iterator[Span]:
    end = 0
    while found := _HEADER.search(text, end):
        before = _BEFORE.search(text[max(end, found.start() - _BEFORE_CHARACTERS) : found.start()])
        begin, opening = found.end(), found[2]
        if before and not found[1]:
            # The quotes are around name and value: those of the value, if any, are in it.
            begin, opening = found.start(2) if found[2] else found.end(), before[1]
        end = _end_of_value(text, begin, opening)
        if end > begin:
            yield begin, end


def _end_of_value(text: str, begin: int, opening: str | None) -> int:
    """Return where a header ends: at its quotes, or, where none are known, with its line."""
    for found in _QUOTE_OR_LINE_END.finditer(text, begin):
        if found[0] in "\r\n":
            return found.start()
        # Quotes within quotes are others, or have more backslashes.
        if opening and found[0][-1] == opening[-1] and len(found[0]) <= len(opening):
            more = _GOES_ON.match(text, found.end())
            return more.end() if more else found.start()
    return len(text)
