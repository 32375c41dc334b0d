"""A TCP proxy before PostgreSQL that can fall silent: it goes on taking what is sent and passes nothing on."""

import asyncio
import random
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SOURCE = 64 * 1024


class _Link:
    """One client's connection and its way on to the server."""

    def __init__(self, inward: asyncio.StreamWriter, outward: asyncio.StreamWriter) -> None:
        self.ends = (inward, outward)
        self.silent = {"to_server": False, "to_client": False}

    def abort(self) -> None:
        """Reset both sides."""
        for end in self.ends:
            end.transport.abort()


class Proxy:
    """Listens on a port of its own and passes everything on to a Unix socket, until it is told otherwise.

    One for each program, so that a single one can be cut off. Its event loop runs in a thread that all share.
    """

    def __init__(self, loop: "Loop", socket: Path) -> None:
        self._loop, self._socket = loop, socket
        self._links: set[_Link] = set()
        self._cut = False
        self._server = loop.run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:  # the server is away: so are we
            writer.transport.abort()
            return
        link = _Link(writer, far_writer)
        if self._cut:
            link.silent = dict.fromkeys(link.silent, True)
        self._links.add(link)
        passing = [
            asyncio.create_task(self._pass_on(link, "to_server", reader, far_writer)),
            asyncio.create_task(self._pass_on(link, "to_client", far_reader, writer)),
        ]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        if not any(
            link.silent.values()
        ):  # a half-open connection hears nothing of the other side's end either
            self._drop(link, *passing)

    def _drop(self, link: _Link, *passing: "asyncio.Task[None]") -> None:
        self._links.discard(link)
        link.abort()
        for task in passing:
            task.cancel()

    async def _pass_on(
        self, link: _Link, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await reader.read(SOURCE):
                if not link.silent[way]:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            return

    def fall_silent(self, share: float, *, ways: tuple[str, ...], chance: random.Random) -> int:
        """Make a share of the open connections half-open, at least one; returns how many."""
        return self._loop.run(self._fall_silent(share, ways, chance))

    async def _fall_silent(self, share: float, ways: tuple[str, ...], chance: random.Random) -> int:
        links = [link for link in self._links if not any(link.silent.values())]
        chosen = chance.sample(links, min(len(links), max(1, round(share * len(links)))))
        for link in chosen:
            link.silent |= dict.fromkeys(ways, True)
        return len(chosen)

    def cut(self) -> None:
        """Silence everything, new connections too, until `heal`."""
        self._loop.run(self._cut_off())

    async def _cut_off(self) -> None:
        self._cut = True
        for link in self._links:
            link.silent = dict.fromkeys(link.silent, True)

    def heal(self) -> None:
        """Reset what is silent, and pass everything on again."""
        self._loop.run(self._heal())

    async def _heal(self) -> None:
        self._cut = False
        for link in [link for link in self._links if any(link.silent.values())]:
            self._drop(link)

    def close(self) -> None:
        """Listen no more, and reset what is open."""
        self._loop.run(self._close())

    async def _close(self) -> None:
        self._server.close()
        for link in list(self._links):
            self._drop(link)


class Loop:
    """An event loop in a thread of its own, for plain code to use."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, once it is there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        """End it with all connections."""
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
