"""SIGTERM and SIGINT, as calls into the event loop."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_signals(first: Callable[[], None], each: Callable[[], None]) -> Iterator[None]:
    """Run `each` in the loop for every signal, and `first` at once for the first.

    `first` runs in the signal handler, so also while a blocking tool holds the loop: it must not touch the loop.
    """
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: FrameType | None) -> None:
        first()
        loop.call_soon_threadsafe(each)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
