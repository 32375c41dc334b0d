"""What Engine runs inside an E2B sandbox: starts and watches the agent's program, and tells its output from any offset.

Runs on the template's own Python (3.8 or later) and imports nothing of the project. One file, five commands:

    prepare KEPT        unpack what the worker uploaded, in the current folder; prints what Python there is
    run PLAN OFFSETS    start the program unless it was started, then print frames from these offsets on
    list FOLDER MOST    the regular files below `outputs` or `workspace`
    file PATH MOST      one regular file, links never followed: its bytes, or the name of a copy to download
    keep MARK           write down what this folder holds, for a job that waits and comes back

The program writes to files that only grow (`engine/stdout`, `stderr`, `journal`), so that a stream which is cut loses
nothing: the next `run` goes on at the offset where the last one was. Its supervisor is a daemon and needs no stream.
Messages to it (replies for the program, a signal, a stop) are files that appear in `engine/in/` by renaming.

A frame is one line of ASCII: `<kind> <offset> <base64>`; kinds: o stdout, e stderr, r records, h alive, x the end.
"""

from __future__ import annotations

# Each command is a start of Python: what it imports is what it costs.
# ruff: noqa: PTH100, PTH101, PTH103, PTH105, PTH108, PTH109, PTH116, PTH123, PTH208, S103
import base64
import binascii
import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import stat
import sys
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

PRIVATE = "engine"  # what is the supervisor's own, below HOME
READ_ONLY = ("agent", "sdk", "inputs", "layer")
WRITABLE = ("workspace", "outputs")
PIECE_BYTES = 48 * 1024  # of one frame
INLINE_BYTES = 256 * 1024  # a file up to here comes in the answer itself
JOURNAL_BYTES = 1024**3  # of all records together
LEAST_FILE_BYTES = 128 * 1024**2  # the journal and the log are files, too
HEARTBEAT_SECONDS = 10.0
LINGER_SECONDS = 60.0  # after the last frame: a command that ends may take its last output along
FASTEST, SLOWEST = 0.01, 0.05  # between two looks
MEMORY_SECONDS, DISK_SECONDS = 0.1, 1.0
MOST_DEPTH = 64
MOST_PATH = 1024
MOST_OTHERS = 10_000  # folders, links and odd names that a listing walks past
DONE = "engine-done"  # the last line of every answer: output without it was cut

PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38


class Refused(Exception):
    """A request that cannot be met; the word goes to whoever asked."""


# --- prepare ---


def prepare(kept: list[str]) -> None:
    """Unpack the uploaded archives here, put every folder in place, and say what this sandbox has.

    A sandbox that was kept for its job is emptied first, but for the folders in `kept`.
    """
    import shutil
    import tarfile

    os.umask(0o022)
    for folder in {*READ_ONLY, *WRITABLE, PRIVATE} - set(kept):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (*READ_ONLY, *WRITABLE, PRIVATE):
        os.makedirs(folder, exist_ok=True)
    for name in sorted(os.listdir(".")):
        if name.endswith(".tar"):
            with tarfile.open(name) as archive:
                for member in archive:
                    archive.extract(member, set_attrs=False)  # the worker made it
                    if member.mode & 0o100:
                        os.chmod(member.name, 0o755)
            os.unlink(name)
    for folder in READ_ONLY:
        for path, _, files in os.walk(folder, topdown=False):
            for name in files:
                os.chmod(f"{path}/{name}", 0o555 if os.stat(f"{path}/{name}").st_mode & 0o100 else 0o444)
            os.chmod(path, 0o555)
    owner = os.stat("guest.py")  # uploaded as the template's own user
    if os.geteuid() == 0 and owner.st_uid != 0:
        for folder in WRITABLE:
            change_owner(folder, owner.st_uid, owner.st_gid)
    version = sys.version_info
    answer({"python": f"{version[0]}.{version[1]}", "machine": os.uname().machine})


def keep(mark: str) -> None:
    """Leave a mark by which a later attempt knows that this is its job's folder, and that its files are still there."""
    write_whole(f"{PRIVATE}/mark", mark)
    os.sync()
    answer({})


def change_owner(folder: str, uid: int, gid: int) -> None:
    """Give a folder and all below to a user."""
    for path, _, files in os.walk(folder):
        for entry in (path, *(f"{path}/{name}" for name in files)):
            os.chown(entry, uid, gid, follow_symlinks=False)


# --- run: the supervisor ---


class Supervisor:
    """Runs the program to its end, whatever becomes of the worker's streams."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.home = os.getcwd()
        owner = os.stat("workspace")
        self.uid, self.gid = owner.st_uid, owner.st_gid
        self.taken = 0  # the last message
        self.reason, self.detail = "", ""
        self.begun_at = time.monotonic()
        self.looked_at_memory = self.looked_at_disk = 0.0
        self.disk_every = DISK_SECONDS
        self.unsent = b""
        self.oom_kills = oom_kills()

    def run(self) -> None:
        """Until the program and all its children have ended, and how is written down."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # daemons of the program become our children, not the machine's
        signal.signal(signal.SIGCHLD, lambda *_: None)
        reader, writer = os.pipe()
        waker, wake_writer = os.pipe()
        for end in (writer, waker, wake_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        self.logs = {name: append_only(f"{PRIVATE}/{name}") for name in ("stdout", "stderr", "journal")}
        self.program = os.fork()
        if self.program == 0:
            self.become_program(reader)
        os.close(reader)
        self.replies = writer
        pause, status = FASTEST, None
        while status is None:
            busy = self.obey() or bool(self.unsent)
            self.push_replies()
            self.watch()
            status = self.reap()
            if status is None:
                pause = FASTEST if busy else min(pause * 1.2, SLOWEST)
                if select.select([waker], [], [], pause)[0]:
                    os.read(waker, 4096)
        self.end_children()
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        write_whole(f"{PRIVATE}/end.json", json.dumps(self.conclude(code)))

    def become_program(self, replies: int) -> NoReturn:
        """In the child: lower every right and limit, then exec. Never returns."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(self.logs["stdout"], 1)
        os.dup2(self.logs["stderr"], 2)
        try:
            environment = self.environment(replies)
            for descriptor in (self.logs["journal"], replies):
                os.set_inheritable(descriptor, True)
            set_limits(self.plan, self.uid)
            if os.geteuid() == 0 and self.uid != 0:
                os.setgroups([self.gid])
                os.setgid(self.gid)
                os.setuid(self.uid)
            prctl(PR_SET_NO_NEW_PRIVS, 1)  # the template's user may sudo; its programs may not
            os.chdir(f"{self.home}/workspace")
            argv = list(self.plan["argv"])
            if argv[0] == "python":
                argv[0] = sys.executable
            os.execvpe(argv[0], argv, environment)  # noqa: S606  (what we are for)
        except OSError as error:
            os.write(2, f"{self.plan['argv'][0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)

    def environment(self, replies: int) -> dict[str, str]:
        """Nothing of the sandbox's own but where programs are."""
        kept = {name: os.environ[name] for name in ("PATH", "JAVA_HOME") if name in os.environ}
        return {
            **kept,
            "HOME": self.home,
            "USER": "agent",
            "TZ": "UTC",
            "LANG": "C.UTF-8",
            "TMPDIR": "/tmp",  # noqa: S108  (inside, where nobody else is)
            "PYTHONPATH": f"{self.home}/layer",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONUTF8": "1",
            "MPLBACKEND": "Agg",
            **self.plan["env"],
            "ENGINE_RECORDS": f"fd:{self.logs['journal']}",
            "ENGINE_REPLIES": f"fd:{replies}",
        }

    def obey(self) -> bool:
        """Take messages in their order, each once, however often it was sent; whether there was one."""
        folder = f"{PRIVATE}/in"
        names = sorted(name for name in os.listdir(folder) if name.isdigit())
        for name in names:
            if int(name) == self.taken + 1:
                with open(f"{folder}/{name}", encoding="utf-8") as file:
                    messages = json.load(file)
                self.taken = int(name)
                for message in messages:
                    self.take(message)
            os.unlink(f"{folder}/{name}")
        return bool(names)

    def take(self, message: dict[str, Any]) -> None:
        """Carry out one message."""
        if "reply" in message:
            self.unsent += message["reply"].encode("latin-1") + b"\n"
        elif "signal" in message:
            self.reason, self.detail = self.reason or "killed", self.detail or "terminated"
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.program, message["signal"])
        else:
            self.stop(message["stop"], message["detail"])

    def push_replies(self) -> None:
        """As much as the program's pipe takes."""
        try:
            while self.unsent:
                self.unsent = self.unsent[os.write(self.replies, self.unsent[:65536]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unsent = b""

    def watch(self) -> None:
        """The limits that no kernel holds for us."""
        now, plan = time.monotonic(), self.plan
        printed = sum(os.fstat(self.logs[name]).st_size for name in ("stdout", "stderr"))
        if printed > plan["output_bytes"]:
            self.stop("output", f"over {plan['output_bytes']:,} bytes of output")
        elif os.fstat(self.logs["journal"]).st_size > JOURNAL_BYTES:
            self.stop("output", f"over {JOURNAL_BYTES:,} bytes of records")
        elif now - self.begun_at > plan["wall_seconds"]:
            self.stop("timeout", f"over {plan['wall_seconds']:g} seconds")
        elif now - self.looked_at_memory > MEMORY_SECONDS:
            self.looked_at_memory = now
            if memory_of(descendants(os.getpid())) > plan["memory_mb"] << 20:
                self.stop("memory", f"over {plan['memory_mb']} MB of memory")
        elif now - self.looked_at_disk > self.disk_every:
            if disk_of(*WRITABLE) > plan["disk_mb"] << 20:
                self.stop("disk", f"its {plan['disk_mb']} MB of disk are full")
            self.looked_at_disk = time.monotonic()
            self.disk_every = max(DISK_SECONDS, 20 * (self.looked_at_disk - now))

    def stop(self, reason: str, detail: str) -> None:
        """End the program now; its files stay."""
        if self.reason in ("", "killed"):
            self.reason, self.detail = reason, detail
        for process in (self.program, *descendants(os.getpid())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def reap(self) -> int | None:
        """The program's status once it has ended; orphans of its are reaped on the way."""
        ended = None
        with contextlib.suppress(ChildProcessError):
            while True:
                process, status = os.waitpid(-1, os.WNOHANG)
                if process == 0:
                    break
                if process == self.program:
                    ended = status
        return ended

    def end_children(self) -> None:
        """Nothing of the program goes on after it, and nothing of it is left for another to reap."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for process in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return
            time.sleep(0.002)

    def conclude(self, code: int) -> dict[str, Any]:
        """How it ended."""
        reason, detail, plan = self.reason or "exited", self.detail, self.plan
        if reason == "exited" and code < 0:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            late = code == -signal.SIGKILL and used.ru_utime + used.ru_stime >= plan["cpu_seconds"]
            if code == -signal.SIGXCPU or late:
                reason, detail = "timeout", f"over {plan['cpu_seconds']} seconds of CPU time"
            elif code == -signal.SIGKILL and oom_kills() > self.oom_kills:
                reason, detail = "memory", "the sandbox's own memory was used up"
        return {"reason": reason, "exit_code": code, "detail": detail}


def set_limits(plan: dict[str, Any], uid: int) -> None:
    """For the program's process and its children."""
    others = sum(1 for process in processes() if owner_of(process) == uid)  # the kernel counts them, too
    limits = {
        resource.RLIMIT_NPROC: (plan["processes"] + others, plan["processes"] + others),
        resource.RLIMIT_CPU: (plan["cpu_seconds"], plan["cpu_seconds"] + 2),
        resource.RLIMIT_FSIZE: (max(plan["disk_mb"] << 20, plan["output_bytes"], LEAST_FILE_BYTES),) * 2,
        resource.RLIMIT_CORE: (0, 0),
    }
    for limit, (soft, hard) in limits.items():
        with contextlib.suppress(ValueError, OSError):  # the template's own limit is lower
            resource.setrlimit(limit, (soft, hard))


def start_once(plan: dict[str, Any]) -> None:
    """Start the supervisor unless it was started: a worker whose stream was cut says the same again."""
    try:
        os.close(os.open(f"{PRIVATE}/started", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    os.makedirs(f"{PRIVATE}/in", exist_ok=True)
    if os.geteuid() == 0 and os.stat("workspace").st_uid != 0:
        os.chmod(PRIVATE, 0o700)
        for folder in (*READ_ONLY, PRIVATE):
            change_owner(folder, 0, 0)
        os.chown("guest.py", 0, 0)
        os.chown(".", 0, 0)
        os.chmod(".", 0o1777)  # the program may add to its HOME, and neither replace nor rename what is ours
    lock = os.open(f"{PRIVATE}/alive", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # kept by the supervisor as long as it lives
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        null, errors = os.open(os.devnull, os.O_RDWR), append_only(f"{PRIVATE}/errors")
        for number, descriptor in enumerate((null, null, errors)):
            os.dup2(descriptor, number)
        try:
            Supervisor(plan).run()
        except BaseException:  # said to the worker, whatever it was: it is our own fault
            import traceback

            write_whole(
                f"{PRIVATE}/end.json",
                json.dumps({"reason": "lost", "exit_code": None, "detail": traceback.format_exc()[-2000:]}),
            )
            raise
        finally:
            os._exit(0)
    os.close(lock)


# --- run: the frames ---


def follow(offsets: dict[str, int]) -> None:
    """Print what the files hold beyond these offsets until the program has ended, or another follower took over."""
    token = f"{os.getpid()} {time.time()}"
    write_whole(f"{PRIVATE}/follower", token)
    alive = os.open(f"{PRIVATE}/alive", os.O_RDWR)
    pause, said_at = FASTEST, time.monotonic()
    while read_whole(f"{PRIVATE}/follower") == token:
        end = last_word(alive)  # looked at first: after it nothing is written any more
        records = size_of("journal")  # before the output: what was printed before a record comes before it
        moved = tell("o", "stdout", offsets, size_of("stdout"))
        moved |= tell("e", "stderr", offsets, size_of("stderr"))
        moved |= tell("r", "journal", offsets, records)
        if end is not None and not moved:
            say("x", 0, json.dumps(end).encode())
            linger(token)
            return
        if moved:
            pause, said_at = FASTEST, time.monotonic()
        else:
            if time.monotonic() - said_at > HEARTBEAT_SECONDS:
                said_at = time.monotonic()
                say("h", 0, b"")
            time.sleep(pause)
            pause = min(pause * 1.2, SLOWEST)


def tell(kind: str, name: str, offsets: dict[str, int], end: int) -> bool:
    """Print one file from its offset to `end`; whether there was anything."""
    begin = offsets[kind]
    if begin < end:
        with open(f"{PRIVATE}/{name}", "rb") as file:
            file.seek(begin)
            while offsets[kind] < end:
                piece = file.read(min(PIECE_BYTES, end - offsets[kind]))
                say(kind, offsets[kind], piece)
                offsets[kind] += len(piece)
    return begin < end


def last_word(alive: int) -> dict[str, Any] | None:
    """How the program ended, or None while it runs."""
    with contextlib.suppress(FileNotFoundError):
        end = json.loads(read_whole(f"{PRIVATE}/end.json"))
        return end if isinstance(end, dict) else None
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    with contextlib.suppress(FileNotFoundError):  # between the two looks
        return dict(json.loads(read_whole(f"{PRIVATE}/end.json")))
    return {"reason": "killed", "exit_code": None, "detail": "the program's supervisor was killed"}


def linger(token: str) -> None:
    """Until the worker has heard the last frame and ends this process, or nobody cares any more."""
    deadline = time.monotonic() + LINGER_SECONDS
    while time.monotonic() < deadline and read_whole(f"{PRIVATE}/follower") == token:
        time.sleep(SLOWEST)


def say(kind: str, offset: int, data: bytes) -> None:
    """Print one frame, whole."""
    line = memoryview(f"{kind} {offset} ".encode() + binascii.b2a_base64(data))
    while line:
        line = line[os.write(1, line) :]


# --- files ---


def list_files(folder: str, most: int) -> None:
    """Regular files below a folder; links, devices and names that are no text are passed over."""
    if folder not in WRITABLE:
        raise Refused(f"no folder to list: {folder!r}")
    found: list[tuple[str, int]] = []
    others = 0
    waiting = [(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), "", 0)]
    try:
        while waiting:
            descriptor, prefix, depth = waiting.pop()
            try:
                entries = list(scan(descriptor))
            finally:
                os.close(descriptor)
            for name, info in entries:
                path = f"{prefix}{name}"
                if stat.S_ISREG(info.st_mode) and len(path) <= MOST_PATH and path.isprintable():
                    found.append((path, info.st_size))
                else:
                    others += 1
                if len(found) > most or others > MOST_OTHERS:
                    raise Refused(f"more than {most} files in {folder}")
                if stat.S_ISDIR(info.st_mode) and depth < MOST_DEPTH:
                    with contextlib.suppress(OSError):
                        inner = open_below(f"{folder}/{path}", os.O_RDONLY | os.O_DIRECTORY)
                        waiting.append((inner, f"{path}/", depth + 1))
    finally:
        for descriptor, _, _ in waiting:
            os.close(descriptor)
    answer(found)


def scan(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """Names and what they are; whatever vanishes meanwhile was not there."""
    for number, name in enumerate(sorted(os.listdir(folder))):
        if number > 10 * MOST_OTHERS:
            raise Refused("too many names in one folder")
        with contextlib.suppress(OSError):
            yield name, os.lstat(name, dir_fd=folder)


def give_file(path: str, most: int) -> None:
    """One file: in the answer when it is small, else as a copy that nobody else can touch while it is downloaded."""
    parts = path.split("/")
    if parts[0] not in WRITABLE or len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise Refused(f"not a file of the program: {path!r}")
    try:
        descriptor = open_below(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(f"not a regular file in the sandbox: {path!r} ({error.strerror})") from None
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise Refused(f"not a regular file in the sandbox: {path!r}")
        if info.st_size > most:
            raise Refused(f"{path!r} is over {most:,} bytes")
        if info.st_size <= INLINE_BYTES:
            data = file.read(min(most, INLINE_BYTES) + 1)
            if len(data) > most:
                raise Refused(f"{path!r} is over {most:,} bytes")
            answer({"data": base64.b64encode(data).decode()})
            return
        copy = f"{PRIVATE}/copy-{os.getpid()}-{time.monotonic_ns()}"
        room = most
        with open(copy, "xb") as target:
            while piece := file.read(1 << 20):
                room -= len(piece)
                if room < 0:
                    os.unlink(copy)
                    raise Refused(f"{path!r} is over {most:,} bytes")
                target.write(piece)
        answer({"copy": os.path.abspath(copy), "size": most - room})


def open_below(path: str, flags: int) -> int:
    """Open one part at a time: no part may be a link, whoever races with us."""
    *folders, name = path.split("/")
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


# --- what the kernel knows ---


def processes() -> list[int]:
    """All that run here."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def owner_of(process: int) -> int:
    """A process's user; -1 when it has ended."""
    try:
        return os.stat(f"/proc/{process}").st_uid
    except OSError:
        return -1


def descendants(ancestor: int) -> list[int]:
    """Children, their children, and so on; zombies that have not been reaped are left out."""
    children: dict[int, list[int]] = {}
    for process in processes():
        try:
            fields = read_whole(f"/proc/{process}/stat").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(process)
    found, waiting = [], [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def memory_of(these: list[int]) -> int:
    """Bytes that these processes hold, what they share counted once for each."""
    total = 0
    for process in these:
        with contextlib.suppress(OSError, ValueError, IndexError):
            resident = read_whole(f"/proc/{process}/statm").split()[1]
            total += int(resident) * resource.getpagesize()
    return total


def disk_of(*folders: str) -> int:
    """Bytes that the files below take; what vanishes meanwhile does not count."""
    total = 0
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(f"{path}/{name}").st_blocks * 512
    return total


def oom_kills() -> int:
    """How often this machine's kernel has killed for want of memory."""
    with contextlib.suppress(OSError, ValueError):
        for line in read_whole("/proc/vmstat").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def prctl(option: int, value: int) -> None:
    """One setting of this process; a kernel that does not know it goes without."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


# --- small helpers ---


def append_only(path: str) -> int:
    """A file that only grows, open for writing."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def size_of(name: str) -> int:
    """Bytes that one of the program's files has by now."""
    try:
        return os.stat(f"{PRIVATE}/{name}").st_size
    except FileNotFoundError:
        return 0


def read_whole(path: str) -> str:
    """A small file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def write_whole(path: str, text: str) -> None:
    """All of it or nothing, whoever reads at the same time."""
    part = f"{path}.{os.getpid()}.part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


def answer(value: object) -> None:
    """Print the answer of a short command, and stay until it was fetched: what is left in a pipe may be dropped."""
    line = memoryview((json.dumps(value) + f"\n{DONE}\n").encode())
    while line:
        line = line[os.write(1, line) :]
    deadline = time.monotonic() + 2
    with contextlib.suppress(OSError):  # not a pipe: nothing can be lost
        while time.monotonic() < deadline:
            left = fcntl.ioctl(1, termios.FIONREAD, b"\0" * 4)
            if left == b"\0" * 4:
                break
            time.sleep(0.002)


def main(arguments: list[str]) -> None:
    """One command. The current folder is the sandbox's HOME."""
    command, *rest = arguments
    try:
        if command == "prepare":
            prepare(rest)
        elif command == "run":
            start_once(json.loads(base64.b64decode(rest[0])))
            follow(json.loads(rest[1]))
        elif command == "list":
            list_files(rest[0], int(rest[1]))
        elif command == "file":
            give_file(rest[0], int(rest[1]))
        elif command == "keep":
            keep(rest[0])
    except Refused as refusal:
        answer({"refused": str(refusal)})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        answer({"refused": "the sandbox's disk is full"})


if __name__ == "__main__":
    main(sys.argv[1:])
