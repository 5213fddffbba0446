"""What is noted of the current request, for its line in the audit."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import msgspec


class Notes(msgspec.Struct):
    """What handlers add to the entry of the current request."""

    job_id: str | None = None
    reason: str | None = None


_notes: contextvars.ContextVar[Notes | None] = contextvars.ContextVar("notes", default=None)


@contextlib.contextmanager
def noting() -> Iterator[Notes]:
    """Have `note_job` and `note_reason` write into these notes while the context is open."""
    notes = Notes()
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note_job(submission_id: str) -> None:
    """Tell which job the current request is about, where its path doesn't."""
    notes = _notes.get()
    if notes is not None:
        notes.job_id = submission_id


def note_reason(reason: str) -> None:
    """Tell why the current request is refused."""
    notes = _notes.get()
    if notes is not None:
        notes.reason = reason
