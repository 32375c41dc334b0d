"""Small asyncio tools for descriptors: datagram sockets that carry descriptors, and merged pipes."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence

PACKET_BYTES = 128 * 1024
MOST_DESCRIPTORS = 4
CHUNK_BYTES = 64 * 1024


class PacketSocket:
    """One end of a SOCK_SEQPACKET pair: whole messages, both ways, with descriptors.

    `on_packet(data, descriptors)` owns the descriptors it gets; `on_close()` comes once, when the other end is gone.
    """

    def __init__(
        self, sock: socket.socket, on_packet: Callable[[bytes, list[int]], None], on_close: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.on_packet, self.on_close = on_packet, on_close
        self.loop = asyncio.get_running_loop()
        self.sending = asyncio.Lock()
        self.blocked: asyncio.Future[None] | None = None  # who waits for room
        self.closed = False
        self.loop.add_reader(sock.fileno(), self._read)

    def send_now(self, data: bytes) -> bool:
        """Send without waiting; False when the other end is gone or has not kept up."""
        try:
            self.sock.send(data)
        except OSError:
            return False
        return True

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send, waiting for room. Raises ConnectionError when the other end is gone."""
        async with self.sending:  # one writer at a time: the loop keeps one callback per descriptor
            while True:
                if self.closed:
                    raise ConnectionResetError
                try:
                    socket.send_fds(self.sock, [data], list(descriptors))
                    return
                except BlockingIOError:
                    await self._room()

    async def _room(self) -> None:
        self.blocked = self.loop.create_future()
        self.loop.add_writer(self.sock.fileno(), settle, self.blocked)
        try:
            await self.blocked
        finally:
            self.blocked = None
            if not self.closed:
                self.loop.remove_writer(self.sock.fileno())

    def close(self) -> None:
        """Close this end. No callback comes after it."""
        if not self.closed:
            self.closed = True
            self.loop.remove_reader(self.sock.fileno())
            self.loop.remove_writer(self.sock.fileno())
            self.sock.close()
            if self.blocked is not None:
                settle(self.blocked)

    def _read(self) -> None:
        while not self.closed:
            try:
                data, descriptors, flags, _ = socket.recv_fds(self.sock, PACKET_BYTES, MOST_DESCRIPTORS)
            except BlockingIOError:
                return
            except ConnectionError:
                data, descriptors, flags = b"", [], 0
            if data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                self.on_packet(data, descriptors)
                continue
            for descriptor in descriptors:
                os.close(descriptor)
            self.close()
            self.on_close()


class Pipes:
    """Reads several pipes in turn, only when asked: what nobody reads stays in the pipe and holds its writer back."""

    def __init__(self, ends: dict[str, int]) -> None:
        self.ends = ends
        self.closed = False
        self.waiting: asyncio.Future[None] | None = None
        for end in ends.values():
            os.set_blocking(end, False)

    async def read(self) -> AsyncIterator[tuple[str, bytes]]:
        """(name, piece) until every writer is gone, or until `close`."""
        while self.ends and not self.closed:
            pieces = self.read_now()
            for name, piece in pieces:
                yield name, piece
                if self.closed:
                    return
            if pieces:
                await asyncio.sleep(0)  # a flood must not keep the loop from other sandboxes
            elif self.ends:
                await self.readable()

    def read_now(self) -> list[tuple[str, bytes]]:
        """At most one piece of each pipe that has one. Ends that are at their end are closed.

        Read from the last pipe to the first and given from the first to the last: what was written to an earlier pipe
        before something was written to a later one also comes before it. (One read empties a pipe of 64 KB.)
        """
        pieces = []
        for name, end in reversed(list(self.ends.items())):
            try:
                piece = os.read(end, CHUNK_BYTES)
            except BlockingIOError:
                continue
            if piece:
                pieces.append((name, piece))
            else:
                os.close(self.ends.pop(name))
        return pieces[::-1]

    def close(self) -> None:
        """Stop reading, whoever is at it."""
        self.closed = True
        if self.waiting is not None:
            settle(self.waiting)
        for end in self.ends.values():
            asyncio.get_running_loop().remove_reader(end)
            os.close(end)
        self.ends = {}

    async def readable(self) -> None:
        """Until one of them has something to say, or its last writer is gone."""
        loop = asyncio.get_running_loop()
        self.waiting = waiting = loop.create_future()
        ends = list(self.ends.values())
        for end in ends:
            loop.add_reader(end, settle, waiting)
        try:
            await waiting
        finally:
            self.waiting = None
            if not self.closed:
                for end in ends:
                    loop.remove_reader(end)


async def writable(descriptor: int) -> None:
    """Until there is room to write, or nobody left to read."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def settle(future: "asyncio.Future[None]") -> None:
    """Wake who waits, unless it has been woken or has gone."""
    if not future.done():
        future.set_result(None)
