"""The yardstick: aiohttp's low-level server on uvloop; it decodes the request's JSON and answers bytes made before.

Without any bytes, a collector that takes whatever comes.
"""

import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop
from aiohttp import web


async def serve(body: bytes) -> None:
    """Serve until killed; prints the port."""
    decode = msgspec.json.decode

    async def handler(request: web.BaseRequest) -> web.Response:
        asked = await request.read()
        if body:
            decode(asked)
        return web.Response(body=body, content_type="application/json")

    runner = web.ServerRunner(web.Server(handler, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(serve(Path(sys.argv[1]).read_bytes()))
