"""What the synchronous client gives for a stream: for `for`, and for `async for`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import Generic, TypeVar

from ray_jobs.client.background import BackgroundLoop

T = TypeVar("T")


class Stream(Generic[T]):
    """An iterator over what an asynchronous one gives, which runs on a loop of its own.

    It blocks in a `for`. In an `async for` (as Ray's synchronous client has it) it is awaited, so
    that the caller's loop goes on meanwhile. What was given in one of them doesn't come in the
    other. Leaving it, by `break`, `close` or `aclose`, ends the stream.
    """

    def __init__(self, items: AsyncIterator[T], background: BackgroundLoop) -> None:
        # Generators, since they are closed when nobody holds them any more.
        self._blocking = _blocking(items, background)
        self._awaited = _awaited(items, background)

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        return next(self._blocking)

    def close(self) -> None:
        """End the stream. No-op if it has ended."""
        self._blocking.close()

    def __aiter__(self) -> AsyncGenerator[T, None]:
        return self._awaited

    async def __anext__(self) -> T:
        return await anext(self._awaited)

    async def aclose(self) -> None:
        """End the stream. No-op if it has ended."""
        await self._awaited.aclose()


async def _next(items: AsyncIterator[T]) -> tuple[T] | None:
    # Not StopAsyncIteration, which can't pass through a future's thread unharmed.
    async for item in items:
        return (item,)
    return None


async def _close(items: AsyncIterator[T]) -> None:
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()


def _blocking(items: AsyncIterator[T], background: BackgroundLoop) -> Generator[T, None, None]:
    try:
        while (found := background.run(_next(items))) is not None:
            yield found[0]
    finally:
        # A closed client has ended its streams already.
        if not background.stopped:
            background.run(_close(items))


async def _awaited(items: AsyncIterator[T], background: BackgroundLoop) -> AsyncGenerator[T, None]:
    try:
        while (found := await background.wait_for(_next(items))) is not None:
            yield found[0]
    finally:
        if not background.stopped:
            await background.wait_for(_close(items))
