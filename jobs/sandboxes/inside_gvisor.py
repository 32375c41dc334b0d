"""Process 1 of a gVisor sandbox: `inside.py`, with three channels to the host rather than five.

runsc hands on the three standard descriptors and, in the versions that distributions carry, no others. So 0 is the
control socket, and 1 a stream socket: out of it come the program's stdout, stderr and records as frames (a byte that
names the channel, four bytes of length, the data; no data: its end), into it go the replies. 2 is for last words.

gVisor lets a process of the same user kill process 1. So process 1 stays root inside, with the one right to become
another user, and works as the program's user; the program's process is that user for good.
"""

# ruff: noqa: PTH103, PTH208, PTH211  (see inside.py)
from __future__ import annotations

import _thread
import os
import select
import sys

import inside  # type: ignore[import-not-found,unused-ignore]  # lies beside this file inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

AGENT_UID = 1000
FIRST_FREE = 60  # clear of the numbers that inside.py uses
PIPE_BYTES = 64 * 1024  # all that a pipe holds
PIECE_BYTES = 60 * 1024


class GvisorInit(inside.Init):  # type: ignore[misc,unused-ignore]
    """Relays what a pipe carries elsewhere, and sends files by value: no descriptor leaves gVisor."""

    def become_program(self) -> None:
        """Give up for good what process 1 may."""
        os.setresuid(AGENT_UID, AGENT_UID, AGENT_UID)

    def answer(self, request: tuple[Any, ...]) -> None:
        """One more request: a piece of a file."""
        if request[0] == "read":
            try:
                self.read_piece(*request[1:])
            except inside.Refused as refusal:
                self.control.send(b"X" + str(refusal).encode())
        else:
            super().answer(request)

    def read_piece(self, path: str, offset: int) -> None:
        """Send the size of a regular file and what it holds from an offset on."""
        descriptor = inside.open_below(path, os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not inside.stat.S_ISREG(found.st_mode):
                raise inside.Refused("irregular")
            piece = os.pread(descriptor, PIECE_BYTES, offset)
            self.control.send(b"O" + found.st_size.to_bytes(8, "big") + piece)
        except OSError:
            raise inside.Refused("unreadable") from None
        finally:
            os.close(descriptor)


def relay(stream: int, sources: dict[int, bytes], replies: int) -> None:
    """Carry frames out and replies in until the program's channels are at their end. A thread of its own."""
    poll = select.poll()
    for descriptor in (stream, *sources):
        poll.register(descriptor, select.POLLIN)
    waiting = b""  # a reply for which the program has made no room: then no other is taken
    while sources:
        ready = [descriptor for descriptor, _ in poll.poll()]
        # Read from the last to the first and sent from the first to the last, for the order: see packets.Pipes.
        pieces = [(source, read_now(source)) for source in reversed(sources)]
        for source, piece in reversed(pieces):
            if piece is None:
                continue
            send(stream, sources[source] + len(piece).to_bytes(4, "big") + piece)
            if not piece:
                poll.unregister(source)
                del sources[source]
        for descriptor in ready:
            if descriptor == stream:
                waiting = os.read(stream, PIPE_BYTES)
                poll.unregister(stream)
                if waiting:
                    poll.register(replies, select.POLLOUT)
            elif descriptor == replies:
                try:
                    waiting = waiting[os.write(replies, waiting) :]
                except BrokenPipeError:
                    poll.unregister(replies)
                    continue
                if not waiting:
                    poll.unregister(replies)
                    poll.register(stream, select.POLLIN)


def read_now(source: int) -> bytes | None:
    """What a pipe holds, b"" at its end, None when it holds nothing."""
    try:
        return os.read(source, PIPE_BYTES)
    except BlockingIOError:
        return None


def send(stream: int, data: bytes) -> None:
    """All of it; a host that reads slowly holds the program back."""
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]


def main() -> None:
    """Take the program's user, lay out the channels as inside.py knows them, then serve."""
    os.seteuid(AGENT_UID)
    inside.set_dumpable(False)
    lay_out_home()
    stdout, stderr, records, replies = (os.pipe() for _ in range(4))
    ours = [0, 1, stdout[0], stderr[0], records[0], replies[1]]
    theirs = [stdout[1], stderr[1], records[1], replies[0]]
    for number, descriptor in enumerate(ours + theirs):
        os.dup2(descriptor, FIRST_FREE + number, inheritable=False)
    os.closerange(3, FIRST_FREE)
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)
    control, stream, out, err, record, reply, *ends = range(FIRST_FREE, FIRST_FREE + len(ours + theirs))
    for number, descriptor in zip(range(inside.CONTROL, inside.REPLIES + 1), (control, *ends), strict=True):
        os.dup2(descriptor, number, inheritable=False)
        os.close(descriptor)
    for number in (out, err, record, reply):
        os.set_blocking(number, False)
    _thread.start_new_thread(relay, (stream, {out: b"o", err: b"e", record: b"r"}, reply))
    GvisorInit(sys.argv[1:]).serve()


def lay_out_home() -> None:
    """The folders on the fresh file system at HOME; what is read-only is mounted already."""
    for folder in ("workspace", "outputs"):
        os.makedirs(f"{inside.HOME}/{folder}")
    os.makedirs(f"{inside.HOME}/.config/matplotlib")
    for name in os.listdir("/etc/matplotlib"):
        if name.startswith("fontlist-"):
            os.symlink(f"/etc/matplotlib/{name}", f"{inside.HOME}/.config/matplotlib/{name}")


if __name__ == "__main__":
    main()
