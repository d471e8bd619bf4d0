"""An HTTP server that keeps connections, and ends as servers should. Stand-alone: PORT VERSION.

At SIGTERM it takes no more connections, closes those that wait for a request, and tells the
others with their last answer that they are closed.
"""

import asyncio
import signal
import socket
import sys


class Server:
    def __init__(self, version: str) -> None:
        self._body = f"{socket.gethostname()} version {version}\n".encode()
        self._idle: set[asyncio.StreamWriter] = set()
        self._open = 0
        self._ending = asyncio.Event()

    async def run(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        server = await asyncio.start_server(self._converse, "0.0.0.0", port, backlog=512)
        await self._ending.wait()
        server.close()
        for writer in list(self._idle):
            writer.close()
        for _ in range(100):
            if not self._open:
                break
            await asyncio.sleep(0.005)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self._idle.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        finally:
            self._idle.discard(writer)
        last = self._ending.is_set() or b"connection: close" in head.lower()
        words = b"close" if last else b"keep-alive"
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s"
            % (len(self._body), words, self._body)
        )
        await writer.drain()
        return not last


async def main() -> None:
    await Server(sys.argv[2]).run(int(sys.argv[1]))


if __name__ == "__main__":
    asyncio.run(main())
