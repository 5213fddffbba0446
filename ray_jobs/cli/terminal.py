"""What is drawn on the terminal. All of it goes to stderr: stdout is for what was asked for."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

import click

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from ray_jobs.models import JobStatus

STATUS_COLOURS = {
    "PENDING": "yellow",
    "RUNNING": "cyan",
    "SUCCEEDED": "green",
    "STOPPED": "magenta",
    "FAILED": "red",
}
#: What is over sooner is not worth drawing (and rich not worth importing).
PATIENCE_S = 0.2
_CLEAR_LINE = "\r\x1b[2K"


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream goes to a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def colours(stream: TextIO) -> bool:
    """Return whether to use colours on a stream (see https://no-color.org)."""
    ctx = click.get_current_context(silent=True)
    unwanted = os.environ.get("NO_COLOR") or (ctx is not None and ctx.color is False)
    return is_terminal(stream) and not unwanted


def style(text: str, colour: str, stream: TextIO) -> str:
    """Return a text in a colour, where the stream shows colours."""
    return click.style(text, fg=colour) if colours(stream) else text


def style_status(status: JobStatus, stream: TextIO) -> str:
    """Return the name of a status in its colour."""
    return style(str(status), STATUS_COLOURS[str(status)], stream)


def say(text: str) -> None:
    """Print a line of our own on stderr."""
    click.echo(text, err=True, color=colours(sys.stderr))


def print_error(message: str, hint: str | None = None) -> None:
    """Print an error, and what can be done about it, on stderr."""
    say(style("Error: ", "red", sys.stderr) + message)
    if hint:
        say(style("Hint: ", "yellow", sys.stderr) + hint)


class Spinner:
    """A line that moves while something is waited for; silent where stderr is no terminal.

    A thread draws it, so the waiting code need not care. The context manager ends it; `close`
    may be called before, and any number of times.
    """

    FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    PERIOD_S = 0.1

    def __init__(self, text: str = "") -> None:
        self._text = text
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        encoding = getattr(sys.stderr, "encoding", None) or "ascii"
        self._frames = self.FRAMES if encoding.lower().startswith("utf") else "-\\|/"

    def __enter__(self) -> Spinner:
        if is_terminal(sys.stderr):
            self._thread = threading.Thread(target=self._draw, name="spinner", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def visible(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._thread is not None

    def update(self, text: str) -> None:
        """Change the text from the next frame on."""
        self._text = text

    def close(self) -> None:
        """Wipe the line and end the thread. No-op if closed already."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _draw(self) -> None:
        if self._closed.wait(PATIENCE_S):
            return
        frame = 0
        try:
            while not self._closed.wait(self.PERIOD_S):
                width = max(_terminal_width() - 4, 8)
                text = " ".join(self._text.split())[:width]
                sys.stderr.write(f"{_CLEAR_LINE}{self._frames[frame]} {text}")
                sys.stderr.flush()
                frame = (frame + 1) % len(self._frames)
        finally:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


class ProgressEvent(Protocol):
    """What the client tells while it packs and uploads (`ray_jobs.client`'s Progress)."""

    @property
    def stage(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def done_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int | None: ...


class UploadProgress:
    """Progress bars for packing and uploading; silent where stderr is no terminal.

    The client may call it from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._bars: RichProgress | None = None
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._closed = not is_terminal(sys.stderr)

    def __enter__(self) -> UploadProgress:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closed = True
            if self._bars is not None:
                self._bars.stop()

    def __call__(self, event: ProgressEvent) -> None:
        """Draw one step."""
        with self._lock:
            if self._closed or time.monotonic() - self._started < PATIENCE_S:
                return
            bars = self._bars or self._open()
            key = (str(event.stage), str(event.path))
            task = self._tasks.get(key)
            if task is None:
                # A stage follows the one before it, so only the newest is still moving.
                for old in self._tasks.values():
                    bars.update(old, visible=False)
                name = os.path.basename(str(event.path).rstrip("/")) or str(event.path)
                label = f"{key[0].capitalize()} {name}"
                task = self._tasks[key] = bars.add_task(label, total=event.total_bytes)
            bars.update(task, completed=event.done_bytes, total=event.total_bytes)

    def _open(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.start()
        return self._bars
