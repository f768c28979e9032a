"""Serve the reference config service until SIGTERM or SIGINT: for the demo and the tests, never for production."""

import asyncio
import os
import signal
import sys

from aiohttp import web

from sidecar.demo.reference.service import create_app
from sidecar.demo.reference.state import NOTE, ReferenceOptions

SHUTDOWN_SECONDS = 0.5  # for requests that are being answered; those that hang are let go at once
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(options: ReferenceOptions, host: str, port: int) -> None:
    """Serve until told to stop; port 0 takes a free one. Raises `OSError`, with a sentence, if the address is taken."""
    runner = web.AppRunner(
        create_app(options),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=options.keepalive_seconds,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise OSError(f"The reference config service cannot listen on {host}:{port}: {reason}.") from error
        for each in SIGNALS:
            loop.add_signal_handler(each, stop.set)
        sys.stderr.write(f"reference config service on http://{host}:{runner.addresses[0][1]} ({NOTE})\n")
        sys.stderr.flush()
        await stop.wait()
    finally:
        for each in SIGNALS:
            loop.remove_signal_handler(each)
        await runner.cleanup()
