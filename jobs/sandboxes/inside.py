"""Process 1 of a local sandbox: the only code of ours in there, running beside untrusted code of the same uid.

It runs on the sandbox's own Python and imports nothing of the project.

It forks the program's process at once. That process imports what was asked for, then blocks until it is told what to
run: before that moment nothing untrusted has run, which is what makes a pre-started sandbox safe to hand out. Python
programs run inside that process, without a second interpreter start.

The program cannot touch this process: it is undumpable, signals from inside its namespace do not reach process 1,
and seccomp refuses what else takes a process id. Whoever talks to it still treats every answer as hostile.

Requests (marshal, from the trusted side): see `Init.answer`. Answers (bytes): R ready, W warm, K put done, E ended,
F and f a listing, O an open file (its descriptor comes along), X a refusal.
"""

# Every cold start waits for these imports: `typing`, `pathlib`, `ctypes`, `signal` and `socket` alone would double it.
# ruff: noqa: PTH100, PTH103, PTH120, PTH123
from __future__ import annotations

import _ctypes
import _signal  # type: ignore[import-not-found]  # the C half of a module has no stubs
import _socket
import marshal
import os
import select
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

CONTROL, STDOUT, STDERR, RECORDS, REPLIES = 3, 4, 5, 6, 7
HOME = "/home/agent"
GUEST = "/opt/guest"
PACKET_BYTES = 128 * 1024  # no message is longer, either way
LISTING_BYTES = 60_000
MOST_DEPTH = 64
MOST_PATH = 1024
MOST_OTHERS = 10_000  # folders, links and odd names that a listing walks past

PR_SET_DUMPABLE = 4


class Refused(Exception):
    """A request that cannot be met; the word goes to whoever asked."""


class Init:
    """Reap, obey, and end everything when the program ends."""

    def __init__(self, warm: list[str]) -> None:
        self.warm = warm
        self.control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, CONTROL)
        self.wake, wake_writer = os.pipe()
        for end in (self.wake, wake_writer):
            os.set_blocking(end, False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.signal(
            _signal.SIGINT, _signal.SIG_IGN
        )  # Python's own handler would let the program interrupt us
        _signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        self.program = 0  # 0: none
        self.started = self.interpreting = False
        self.putting: int | None = None
        self.put_error = ""

    def serve(self) -> NoReturn:
        """Until the host closes the control socket: then leave, and the kernel kills whatever is left in here."""
        self.control.send(b"R")  # what follows waits for nobody, and nobody has to wait for it
        self.prepare_program()
        poll = select.poll()
        poll.register(CONTROL, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        poll.register(self.warmed, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == CONTROL:
                    request = self.control.recv(PACKET_BYTES)
                    if not request:
                        os._exit(0)
                    self.answer(marshal.loads(request))  # noqa: S302  (from the trusted side)
                elif descriptor == self.wake:
                    os.read(self.wake, 4096)
                    self.reap()
                else:
                    poll.unregister(self.warmed)
                    if os.read(self.warmed, 1):
                        self.control.send(b"W")
                    os.close(self.warmed)

    def answer(self, request: tuple[Any, ...]) -> None:
        """Meet one request: (verb, *arguments)."""
        verb, *arguments = request
        try:
            if verb == "put":
                self.put(*arguments)
            elif verb == "put_done":
                self.control.send(b"X" + self.put_error.encode() if self.put_error else b"K")
            elif verb == "start":
                self.start(*arguments)
            elif verb == "signal" and self.program:
                os.kill(self.program, arguments[0])
            elif verb == "stop" and self.program:
                os.kill(-1, _signal.SIGKILL)
            elif verb == "list":
                self.list_files(*arguments)
            elif verb == "open":
                self.open_file(*arguments)
        except Refused as refusal:
            self.control.send(b"X" + str(refusal).encode())

    # --- the program ---

    def prepare_program(self) -> None:
        """Fork the process that will run the program; it waits for `start`."""
        go_reader, self.go = os.pipe()
        self.warmed, warm_writer = os.pipe()
        self.program = os.fork()
        if self.program == 0:
            self.become_program()
            for descriptor in (self.go, self.warmed, self.wake):
                os.close(descriptor)
            _signal.set_wakeup_fd(-1)
            self.control.detach()  # its descriptor is closed with the others
            # Leaves through serve() and main(): an ordinary interpreter exit, with atexit and waiting threads.
            sys.exit(run_program(go_reader, warm_writer, self.warm))
        os.close(go_reader)
        os.close(warm_writer)

    def become_program(self) -> None:
        """What the program's process does before anything else; here it is already all that it may be."""

    def start(self, plan: dict[str, Any]) -> None:
        """Let the waiting process run `plan`; again only for an interpreter whose process has ended."""
        if self.started and not (self.interpreting and not self.program):
            return
        if not self.program:
            self.warm = []  # nobody waits for the imports of a second one
            self.prepare_program()
            os.close(self.warmed)
        self.started, self.interpreting = True, plan["argv"] is None
        blob = memoryview(marshal.dumps(plan))
        while blob:
            blob = blob[os.write(self.go, blob) :]
        os.close(self.go)

    def reap(self) -> None:
        """Collect the dead; when the program is among them, end the rest and say so."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.program:
                self.finish(status, usage.ru_utime + usage.ru_stime)

    def finish(self, status: int, cpu_seconds: float) -> None:
        """The program has ended: kill what it left behind, close its channels, report."""
        home = os.statvfs(HOME)
        disk_full = home.f_bavail == 0 or (home.f_files > 0 and home.f_favail == 0)  # gVisor counts no files
        while True:  # again and again: a fork may slip through while the first signal goes round
            try:
                os.kill(-1, _signal.SIGKILL)
                while os.wait4(-1, os.WNOHANG)[0]:
                    pass
                time.sleep(0.001)
            except (ProcessLookupError, ChildProcessError):
                break
        self.program = 0
        if not self.interpreting:
            for descriptor in (STDOUT, STDERR, RECORDS, REPLIES):
                os.close(descriptor)
        code = os.waitstatus_to_exitcode(status)
        self.control.send(f"E{code} {int(cpu_seconds * 1000)} {int(disk_full)}".encode())

    # --- files ---

    def put(self, path: str, executable: bool, last: bool, data: bytes) -> None:
        """One piece of a file to restore; only before anything untrusted has run, so plain paths are safe."""
        if self.started or self.put_error:
            return
        try:
            if self.putting is None:
                target = "/".join([HOME, *parts_of(path)])
                os.makedirs(os.path.dirname(target), exist_ok=True)
                mode = 0o755 if executable else 0o644
                self.putting = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(self.putting, view) :]
            if last:
                os.close(self.putting)
                self.putting = None
        except (OSError, Refused) as error:
            self.put_error = f"{path}: {error}"

    def list_files(self, folder: str, most: int) -> None:
        """Send the regular files below `folder`; refuse when there are more than `most`."""
        batch: list[bytes] = []
        room = LISTING_BYTES
        files = walk(open_below(folder, os.O_DIRECTORY), "", iter(range(most + MOST_OTHERS)))
        for found, (path, size) in enumerate(files, 1):
            if found > most:
                raise Refused("many")
            entry = f"{size} {path}".encode()
            if len(entry) >= room:
                self.control.send(b"F" + b"\0".join(batch))
                batch, room = [], LISTING_BYTES
            batch.append(entry)
            room -= len(entry) + 1
        self.control.send(b"f" + b"\0".join(batch))

    def open_file(self, path: str) -> None:
        """Send a descriptor of one regular file: the reader copies straight from the sandbox's memory."""
        descriptor = open_below(path, os.O_NONBLOCK)  # not blocking: opening a FIFO would wait for its writer
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refused("irregular")
            rights = descriptor.to_bytes(4, sys.byteorder)
            self.control.sendmsg([b"O"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        finally:
            os.close(descriptor)


def parts_of(path: str) -> list[str]:
    """The parts of a relative path below one of the two writable folders; anything else is refused."""
    parts = path.split("/")
    if parts[0] not in ("outputs", "workspace") or any(part in ("", ".", "..") for part in parts):
        raise Refused("missing")
    return parts


def open_below(path: str, flags: int) -> int:
    """Open `path` below HOME one part at a time: no part may be a link, whoever races with us."""
    parts = parts_of(path)
    descriptor = os.open(HOME, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for index, part in enumerate(parts):
            kind = flags if index == len(parts) - 1 else os.O_DIRECTORY
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    except OSError:
        os.close(descriptor)
        raise Refused("missing") from None
    return descriptor


def walk(folder: int, prefix: str, budget: Iterator[int], depth: int = 0) -> Iterator[tuple[str, int]]:
    """Pairs (path, size) of the regular files below an open folder, which this closes. One entry seen is one spent."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if next(budget, None) is None:
                    raise Refused("many")
                path = prefix + entry.name
                if len(path) > MOST_PATH or not path.isprintable() or "\\" in path:
                    continue  # a name that is no UTF-8 holds surrogates, and those are not printable either
                if entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False).st_size
                elif entry.is_dir(follow_symlinks=False) and depth < MOST_DEPTH:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    inner = os.open(entry.name, flags, dir_fd=folder)
                    yield from walk(inner, path + "/", budget, depth + 1)
    except OSError:
        return  # it was there a moment ago: the program is still at work in this folder
    finally:
        os.close(folder)


# --- in the program's process ---


def run_program(go: int, warm: int, modules: list[str]) -> int:
    """Import, take the program's place, wait for the word, then become the program. Returns its exit code."""
    import resource

    for name in modules:
        try:
            __import__(name)
        except ImportError:  # the runtime is not ours to judge: the program will see the same error
            continue
    take_place(keep=sorted((go, warm)))
    try:  # noqa: SIM105  (contextlib is not loaded)
        os.write(warm, b"w")
    except BrokenPipeError:  # an interpreter that replaces another is not waited for
        pass
    os.close(warm)
    with open(go, "rb") as pipe:
        blob = pipe.read()
    if not blob:
        os._exit(0)
    plan = marshal.loads(blob)  # noqa: S302  (from the trusted side)
    os.environ.update(plan["env"])
    for name, (soft, hard) in plan["limits"].items():
        resource.setrlimit(getattr(resource, name), (soft, hard))
    # Init is undumpable and fork handed that down; a program may read its own /proc/self.
    set_dumpable(True)
    if plan["argv"] is None:
        sys.path[0] = GUEST
        import interpreter  # type: ignore[import-not-found,unused-ignore]  # lies beside this file inside

        return int(interpreter.main(RECORDS, REPLIES))
    if plan["argv"][0] == "python":
        return run_python(plan["argv"][1:])
    return execute(plan["argv"])


def take_place(keep: list[int]) -> None:
    """Descriptors, signals and surroundings of a program; two more descriptors stay open until it starts."""
    os.setsid()
    for source, target in ((os.open("/dev/null", os.O_RDONLY), 0), (STDOUT, 1), (STDERR, 2)):
        os.dup2(source, target)
    for descriptor in (CONTROL, STDOUT, STDERR):
        os.close(descriptor)
    first = REPLIES + 1
    for kept in keep:
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, 256)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    # New streams: the old ones know their descriptors as seekable. Line buffering, where a pipe would get blocks:
    # somebody is watching the log. Not closing the descriptor spares a warning about unclosed files at the end.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
    sys.stdout = open(1, "w", 1, **options)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, **options)  # noqa: SIM115
    os.environ.update(ENGINE_RECORDS=f"fd:{RECORDS}", ENGINE_REPLIES=f"fd:{REPLIES}")
    os.chdir(f"{HOME}/workspace")


def run_python(arguments: list[str]) -> int:
    """Run a script or `-c` code as `__main__`, here; other command lines get an interpreter of their own."""
    while arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "-c") or arguments == ["-c"]:
        return execute([sys.executable, *arguments])
    main = type(sys)("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    try:
        if arguments[0] == "-c":
            source, name = arguments[1].encode(), "<string>"
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
        else:
            name = arguments[0]
            sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(name))
            main.__file__ = name
            with open(name, "rb") as file:
                source = file.read()
        exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)  # noqa: S102  (what we are for)
    except SystemExit:
        raise
    except BaseException as error:  # whatever the program throws: print it as an interpreter would
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next  # without this frame
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def execute(argv: list[str]) -> int:
    """Replace this process; 127 when there is no such program, as a shell says."""
    os.environ["PYTHONUNBUFFERED"] = "1"
    for descriptor in (RECORDS, REPLIES):
        os.set_inheritable(descriptor, True)
    try:
        os.execvp(argv[0], argv)  # noqa: S606  (no shell on purpose)
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        return 127


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same user may look into this one, by prctl(2). Raises OSError."""
    prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # None: this process
    if _ctypes.call_function(prctl, (PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)) != 0:
        raise OSError("prctl failed")


def main() -> None:
    """Harden this process before anything else, then serve."""
    set_dumpable(False)
    for descriptor in (CONTROL, STDOUT, STDERR, RECORDS, REPLIES):
        os.set_inheritable(descriptor, False)
    Init(sys.argv[1:]).serve()


if __name__ == "__main__":
    main()
