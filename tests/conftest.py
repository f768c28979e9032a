"""What holds for every test."""

import asyncio


def pytest_configure() -> None:
    """Begin without an event loop.

    looptime asks asyncio for one even for a test that has none; asyncio would make it, and nobody would close it.
    """
    asyncio.set_event_loop(None)
