"""Sandboxes on this machine, made by bubblewrap.

    worker (LocalProvider, LocalSandbox)  --packets-->  launcher.py  --fork, exec-->  bwrap  --exec-->  inside.py
        ^------------------- control socket, stdout, stderr, records, replies -----------------------------'

Every sandbox is used once. A few are started ahead ("warm"); they differ in nothing else.
"""

import asyncio
import errno
import itertools
import logging
import platform
import re
import resource
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import bubblewrap, probe, runtime
from .base import (
    Limits,
    Provider,
    ProviderHealth,
    RequirementsFailed,
    SandboxBusy,
    SandboxError,
    SandboxRefused,
    SandboxSpec,
    SandboxUnavailable,
)
from .limits import RUN_PREFIX
from .local_sandbox import LocalSandbox, close_all
from .scratch import Scratch, make_box, own_scratch
from .supervisor import Exit, Ready, Supervisor
from .warm import IMPORTS, WarmPool

logger = logging.getLogger(__name__)

LEAST_MEMORY_MB = 32
LAYER_KEPT_SECONDS = 30 * 86_400.0
MOST_DESCRIPTORS = 65_536


@dataclass(frozen=True)
class Host:
    """What all sandboxes of a provider stand on."""

    runtime: runtime.Runtime
    guest: Path
    scratch: Scratch
    supervisor: Supervisor
    ready: Ready
    fonts: tuple[str, ...]


class LocalProvider(Provider):
    """Opens bubblewrap sandboxes on this machine."""

    name = "local"
    sandbox_type: type[LocalSandbox] = LocalSandbox
    # What the probe says of every such sandbox, and what is as it should be.
    accepted: frozenset[str] = frozenset({"runs on the host's kernel"})

    def __init__(
        self,
        *,
        runtime_folder: Path,
        lock: Path,
        scratch_folder: Path,
        warm: int = 2,
        cgroups: bool = True,
        bwrap: Path | None = None,
    ) -> None:
        self.runtime_folder, self.lock, self.scratch_folder = runtime_folder, lock, scratch_folder
        self.cgroups, self.bwrap = cgroups, bwrap
        self.health = ProviderHealth(False, self.name, "not started")
        self.numbers = itertools.count(1)
        self.sandboxes: dict[str, LocalSandbox] = {}
        self.pool = WarmPool(warm, lambda: self._launch(Limits(), warm=True))
        self.layers: dict[tuple[str, ...], asyncio.Future[Path]] = {}
        self.host: Host | None = None
        self.starting = asyncio.Lock()
        self.closed = False

    @property
    def warm(self) -> int:
        """How many the pool holds."""
        return len(self.pool.ready)

    async def start(self) -> ProviderHealth:
        """Look for everything a sandbox needs, then open one and let a program in it try to leave."""
        try:
            if sys.platform != "linux":
                raise SandboxUnavailable("local sandboxes need Linux", remedy=bubblewrap.NOT_LINUX)
            host = await self._ensure_host()
            await probe.try_to_leave(self)
            self.health = ProviderHealth(True, self.name, f"{self.sandbox_type.program}, {host.ready.limits}")
            self.pool.start()
        except (SandboxError, OSError) as error:
            # Of a full disk; where bubblewrap says the same, it is namespaces that there is no room for.
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            remedy = (
                "make room under ENGINE_HOME and ENGINE_RUNTIME_DIR" if full else getattr(error, "remedy", "")
            )
            remedy = remedy or self.sandbox_type.remedy_for(str(error))
            self.health = ProviderHealth(False, self.name, str(error), remedy)
        return self.health

    async def _prepare(self) -> Host:
        """Everything below a sandbox: runtime, bubblewrap, launcher. Raises SandboxUnavailable."""
        found = await asyncio.to_thread(runtime.find, self.runtime_folder, self.lock)
        if found is None:
            raise SandboxUnavailable(
                "the Python runtime for sandboxes has not been built", remedy="python manage.py build_runtime"
            )
        bwrap = self.bwrap or await asyncio.to_thread(bubblewrap.find_bwrap, self.runtime_folder)
        if bwrap is None:
            raise SandboxUnavailable("bubblewrap is not installed", remedy=bubblewrap.INSTALL)
        raise_descriptor_limit()
        guest = await asyncio.to_thread(runtime.build_guest, self.runtime_folder)
        await asyncio.to_thread(
            runtime.delete_unused_layers, self.runtime_folder, older_than_seconds=LAYER_KEPT_SECONDS
        )
        scratch = await asyncio.to_thread(own_scratch, self.scratch_folder)
        supervisor = Supervisor(self._exited)
        try:
            ready = await supervisor.start(
                bwrap=bwrap, runtime=self.runtime_folder, scratch=scratch.path, cgroups=self.cgroups
            )
        except SandboxUnavailable:
            await supervisor.close()
            scratch.release()
            raise
        fonts = tuple(path.name for path in (found.folder / "etc" / "matplotlib").glob("fontlist-*.json"))
        return Host(found, guest, scratch, supervisor, ready, fonts)

    async def open(self, spec: SandboxSpec) -> LocalSandbox:
        """A sandbox from the pool if one fits, else a new one."""
        if not self.health.ok:
            raise SandboxUnavailable(self.health.detail, remedy=self.health.remedy)
        return await self.open_unchecked(spec)

    async def open_unchecked(self, spec: SandboxSpec) -> LocalSandbox:
        """`open` for the probe, which runs before the provider is called healthy."""
        if spec.limits.allow_hosts:
            raise SandboxRefused(
                "the agent needs the network, which local sandboxes do not have: use ENGINE_SANDBOX=e2b"
            )
        if spec.limits.memory_mb < LEAST_MEMORY_MB or min(spec.limits.disk_mb, spec.limits.processes) < 1:
            raise SandboxRefused(
                f"no sandbox has so little: at least {LEAST_MEMORY_MB} MB of memory, 1 MB of disk"
            )
        layer = await self._layer(spec.requirements) if spec.requirements else None
        sandbox = None if layer else self.pool.take(spec.limits)
        try:
            if sandbox is None:
                sandbox = await self._launch(spec.limits, layer=layer)
                # While bubblewrap and init start, the files are written.
                results = await asyncio.gather(
                    sandbox.wait_ready(), sandbox.place(spec.files), return_exceptions=True
                )
                for problem in filter(None, results):
                    raise problem
            else:
                sandbox.limits = spec.limits
                await sandbox.place(spec.files)
        except BaseException:  # cancellation, too: nothing may stay behind
            if sandbox is not None:
                await sandbox.close()
            raise
        sandbox.env = dict(spec.env)
        return sandbox

    async def _launch(self, limits: Limits, *, layer: Path | None = None, warm: bool = False) -> LocalSandbox:
        host = await self._ensure_host()
        name = str(next(self.numbers))
        folder = host.scratch.path / name
        try:
            make_box(folder)
        except OSError as error:
            raise SandboxBusy(f"no folder for a sandbox: {error}") from error
        ref = f"{self.name}:{platform.node()}:{host.ready.run}:{name}"
        sandbox = self.sandbox_type(name, ref, folder, limits, host.supervisor)
        visible = host.ready.runtime
        places = bubblewrap.Places(
            python=visible / host.runtime.folder.name,
            guest=visible / host.guest.name,
            box=host.ready.scratch / name,
            layer=visible / layer.relative_to(self.runtime_folder) if layer else None,
            font_caches=host.fonts,
        )
        try:
            argv = self._command(places, folder, limits, IMPORTS if warm else ())
            descriptors = sandbox.channels()
        except OSError as error:
            raise SandboxBusy(f"no channels to a sandbox: {error}") from error
        self.sandboxes[name] = sandbox
        try:
            await host.supervisor.launch(
                name, argv, descriptors, files=sandbox.open_files, **sandbox.host_limits()
            )
        except ConnectionError:
            self._exited(name, Exit(-1, "launcher gone"))
        except asyncio.CancelledError:
            self._exited(name, Exit(-1, "asked"))  # if it did start, it ends when its control socket closes
            sandbox.begin_close()
            raise
        finally:
            close_all(descriptors)
        return sandbox

    def _command(
        self, places: bubblewrap.Places, folder: Path, limits: Limits, warm: tuple[str, ...]
    ) -> list[str]:
        """The command line that the launcher becomes. `folder` is the sandbox's own. Raises OSError."""
        return bubblewrap.arguments(places, memory_mb=limits.memory_mb, disk_mb=limits.disk_mb, warm=warm)

    async def _ensure_host(self) -> Host:
        """What sandboxes stand on; made anew if something killed the launcher. Raises SandboxUnavailable."""
        async with self.starting:
            if self.closed:
                raise SandboxUnavailable("the provider is closed")
            if self.host is not None and self.host.supervisor.gone:
                logger.warning("The sandbox launcher died: starting a new one.")
                await self._drop_host()
            if self.host is None:
                self.host = await self._prepare()
            return self.host

    async def _drop_host(self) -> None:
        if self.host is not None:
            host, self.host = self.host, None
            await host.supervisor.close()
            await asyncio.to_thread(shutil.rmtree, host.scratch.path, ignore_errors=True)
            host.scratch.release()

    def _exited(self, name: str, how: Exit) -> None:
        sandbox = self.sandboxes.pop(name, None)
        if sandbox is not None:
            sandbox.exited(how)

    # --- requirements ---

    async def _layer(self, requirements: Sequence[str]) -> Path:
        """The layer, built by the first who needs it; whoever is cancelled leaves the others their build."""
        host = await self._ensure_host()
        key = tuple(requirements)
        building = self.layers.get(key)
        if building is None:
            building = asyncio.ensure_future(
                asyncio.to_thread(runtime.layer, self.runtime_folder, host.runtime, requirements)
            )
            self.layers[key] = building
            building.add_done_callback(lambda _: self.layers.pop(key, None))
        try:
            return await asyncio.shield(building)
        except OSError as error:
            raise RequirementsFailed("the requirements could not be installed", output=str(error)) from error

    # --- the rest of the interface ---

    def tick(self, seconds: float) -> None:
        """Hand the lease on to the launcher."""
        if self.host is not None:
            self.host.supervisor.tick(seconds)

    async def kill(self, ref: str) -> None:
        """Ours at once; another worker's on this host through its control group. Elsewhere its own launcher does it."""
        match = re.fullmatch(rf"{self.name}:([^:]+):({RUN_PREFIX}\d+-\d+-\d+):(\d+)", ref)
        if match is None or self.host is None or match[1] != platform.node():
            return
        if match[2] != self.host.ready.run:
            self.host.supervisor.kill_other(match[2], match[3])
        elif match[3] in self.sandboxes:
            await self.sandboxes[match[3]].close()

    async def close(self) -> None:
        """Kill what is left and stop."""
        self.closed = True
        await self.pool.close()
        await asyncio.gather(*(sandbox.close() for sandbox in list(self.sandboxes.values())))
        await self._drop_host()
        self.health = ProviderHealth(False, self.name, "closed")


def raise_descriptor_limit() -> None:
    """Each sandbox takes six of this process's descriptors, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MOST_DESCRIPTORS:
        wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
