"""What comes next, made in a thread while the device is at work."""

import concurrent.futures
import itertools
from collections.abc import Callable, Generator, Iterable
from typing import Any

import jax


def ahead(
    make: Callable[[Any], Any], items: Iterable[Any], depth: int = 2
) -> Generator[concurrent.futures.Future, None, None]:
    """Makes one item after another in a thread.

    Args:
        make: item -> what is wanted of it, as its rows on the device.
        items: asked for in the caller's thread.
        depth: as many are made, or being made, that were not asked for.

    Yields:
        For each item a future of what was made of it, whose `result()` waits for it,
        and raises what `make` raised. Closing the generator stops the thread.
    """
    # The setting of a thread is its own.
    x64 = jax.config.jax_enable_x64

    def in_thread(item):
        with jax.enable_x64(x64):
            return make(item)

    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as thread:
        coming = [
            thread.submit(in_thread, item) for item in itertools.islice(items, depth)
        ]
        try:
            while coming:
                yield coming.pop(0)
                for item in itertools.islice(items, 1):
                    coming.append(thread.submit(in_thread, item))
        finally:
            for future in coming:
                future.cancel()
