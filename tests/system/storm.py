"""A storm of clients, as a process of its own: `python -m tests.system.storm PORT CLIENTS BODY_BYTES`.

Each connects, asks for a prompt of its own with a large body, and waits for the answer. Prints how often which status
came, as JSON.
"""

import asyncio
import json
import resource
import sys
from collections import Counter
from contextlib import suppress

PIECE = b"x" * 16_384


def head(user: int, size: int) -> bytes:
    """Return the head of a request, and the beginning of its body of about `size` bytes; `"}}` ends it."""
    begin = b'{"user_id": %d, "node_name": "explain", "context": {"topic": "' % user
    lines = [
        b"POST /api/v1/generate-prompt HTTP/1.1",
        b"Host: localhost:8002",
        b"Content-Type: application/json",
        b"Content-Length: %d" % (len(begin) + size + 3),
    ]
    return b"\r\n".join([*lines, b"", begin])


async def send(writer: asyncio.StreamWriter, user: int, size: int) -> None:
    writer.write(head(user, size))
    while size > 0:
        writer.write(PIECE[:size])
        size -= len(PIECE)
        await writer.drain()
    writer.write(b'"}}')


async def ask(port: int, user: int, size: int) -> str:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        return type(error).__name__
    sending = asyncio.ensure_future(send(writer, user, size))
    try:
        return (await reader.readuntil(b"\r\n")).split()[1].decode()
    except (OSError, asyncio.IncompleteReadError):
        return "cut off"
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await sending
        writer.transport.abort()


async def main(port: int, clients: int, size: int) -> None:
    answers = await asyncio.gather(*(ask(port, 1000 + n, size) for n in range(clients)))
    sys.stdout.write(json.dumps(Counter(answers)))


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(main(*map(int, sys.argv[1:])))
