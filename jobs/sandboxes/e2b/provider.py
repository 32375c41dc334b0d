"""Sandboxes at E2B, in its cloud or self-hosted: virtual machines with a kernel of their own.

    worker (E2BProvider, E2BSandbox)  --REST-->  control plane: create, prolong, pause, kill, list
        '--Connect, HTTP-->  envd in the sandbox: files, commands  --exec-->  guest.py  --fork, exec-->  the program

The journal and the database are the truth: a sandbox that is lost, or paused and not found again, costs time only.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

# Read by the SDK when it is imported. Each job holds one stream open, and over plain HTTP each stream a connection.
os.environ.setdefault("E2B_MAX_CONNECTIONS", "2000")

import e2b
import httpx
from e2b_code_interpreter import E2B, AsyncSandbox

from jobs.sandboxes import runtime
from jobs.sandboxes.base import (
    Limits,
    Provider,
    ProviderHealth,
    SandboxBusy,
    SandboxError,
    SandboxFileError,
    SandboxLost,
    SandboxRefused,
    SandboxSpec,
    SandboxUnavailable,
)

from . import guest
from .box import LIFE_SECONDS, Box
from .budget import Budget, Found
from .bundle import check_paths, layer, layer_key, pack
from .calls import NO_KEY, NO_TEMPLATE, REQUEST_SECONDS, Unclear, sdk_call
from .sandbox import E2BSandbox

logger = logging.getLogger(__name__)

CREATE_SECONDS = 90.0
CREATE_PAUSES = (0.5, 2.0, 0.0)
RENEW_SECONDS = 60.0
LEASE_SECONDS = 0.5  # between looks at the worker's lease
SWEEP_LOOK_SECONDS = 20.0
KILL_PAUSES = (0.0, 0.5, 2.0)
LAYER_KEPT_SECONDS = 30 * 86_400.0
CLOSE_SECONDS = 15.0
AT_ONCE = 20  # lifecycle calls
CUT_SECONDS = 60.0  # a sandbox that ends so much sooner than we asked is at its plan's limit
LEAST_MEMORY_MB = 32


class PerhapsMade(SandboxBusy):
    """A sandbox may have been made that nobody heard of: its slot stays taken until E2B ends it."""


class E2BProvider(Provider):
    """Opens sandboxes at E2B."""

    name = "e2b"

    def __init__(
        self,
        *,
        api_key: str,
        budget: Budget,
        layer_folder: Path,
        domain: str = "",
        template: str = "",
        pause: bool = True,
    ) -> None:
        self.api_key, self.budget, self.layer_folder = api_key, budget, layer_folder
        self.template, self.pause = template, pause
        options: dict[str, Any] = {"domain": domain} if domain else {}
        # The addresses of a self-hosted E2B stay in the environment, where the SDK reads them. Never its debug mode.
        self.remote: type[AsyncSandbox] = E2B(api_key=api_key or "none", debug=False, **options).AsyncSandbox
        self.health = ProviderHealth(False, self.name, "not started")
        self.sandboxes: dict[str, E2BSandbox] = {}
        self.slots: dict[str, UUID] = {}  # by ref
        self.installation = ""
        self.refused_template = ""  # what E2B said of it
        self.lease_until = float("inf")  # of the event loop's clock; before the first tick nobody holds one
        self.loops: list[asyncio.Task[None]] = []
        self.background: set[asyncio.Task[Any]] = set()
        self.lifecycle = asyncio.Semaphore(AT_ONCE)
        self.closed = False

    # --- health ---

    async def start(self) -> ProviderHealth:
        """Ask E2B whether it takes the key; after a template was refused, whether a sandbox can be made by now."""
        try:
            if not self.api_key:
                raise SandboxUnavailable("E2B_API_KEY is not set", remedy=NO_KEY)
            self.installation = self.installation or await self.budget.installation()
            await self.ask()
            if self.refused_template:
                await self._try_template()
            await asyncio.to_thread(
                runtime.delete_unused_layers, self.layer_folder, older_than_seconds=LAYER_KEPT_SECONDS
            )
            where = os.environ.get("E2B_API_URL") or os.environ.get("E2B_DOMAIN") or "e2b.app"
            detail = f"E2B at {where}, template {self.template or self.remote.default_template}"
            self.health = ProviderHealth(True, self.name, detail)
            if not self.loops and not self.closed:
                loops = (self._renew, self._watch_lease, self._sweep)
                self.loops = [asyncio.create_task(self._steadily(loop)) for loop in loops]
        except SandboxError as error:
            remedy = (
                getattr(error, "remedy", "") or "see whether this machine reaches E2B; the worker looks again"
            )
            self.health = ProviderHealth(False, self.name, str(error), remedy)
        return self.health

    async def ask(self, *, seconds: float = REQUEST_SECONDS) -> None:
        """Ask E2B for our sandboxes, which it answers if it takes the key. Raises SandboxError."""
        async with sdk_call("asking for our sandboxes", seconds=seconds):
            await self.remote.list(limit=1).next_items()

    async def _try_template(self) -> None:
        async with sdk_call("trying the template", seconds=CREATE_SECONDS):
            try:
                sandbox = await self.remote.create(
                    self.template or None, timeout=30, metadata={"engine": self.installation}
                )
            except e2b.SandboxException as error:
                raise SandboxUnavailable(self.refused_template, remedy=NO_TEMPLATE) from error
            await sandbox.kill()
        self.refused_template = ""

    # --- opening ---

    async def open(self, spec: SandboxSpec) -> E2BSandbox:
        """A sandbox that was kept for this job, or a new one."""
        if not self.health.ok or self.closed:
            raise SandboxUnavailable(self.health.detail, remedy=self.health.remedy)
        check_limits(spec.limits)
        check_paths(spec.files)
        slot = await self.budget.take(spec.job_id, spec.attempt)
        opening = asyncio.create_task(self._open(spec, slot))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # A create that was sent makes a sandbox, heard or not: it is waited for, and ended.
            self._later(self._abandon(opening))
            raise

    async def _abandon(self, opening: "asyncio.Task[E2BSandbox]") -> None:
        try:
            sandbox = await opening
        except SandboxError:
            return
        await sandbox.close()

    async def _open(self, spec: SandboxSpec, slot: UUID) -> E2BSandbox:
        box: Box | None = None
        try:
            box = await self._wake(spec) if spec.parked else None
            kept = await self._still_there(box, spec) if box is not None else None
            if box is not None and kept is None:
                await self._kill(box.id)
                await self._quietly_release(ref=box.id)
                box = None
            if box is None:
                box = await self._create(spec)
            else:
                await self.budget.release(ref=box.id)  # the slot of its sleep
            await self.budget.note(slot, box.id)
            await self._furnish(box, spec, kept)
        except BaseException as error:  # whatever it was, a cancel too, a sandbox nobody uses must not run on
            gone = not isinstance(error, PerhapsMade) if box is None else await self._kill(box.id)
            if gone:
                await self._quietly_release(slot)
            if isinstance(error, SandboxLost | Unclear):
                # Not the agent's doing, and nothing of it has run.
                raise SandboxBusy(f"the sandbox was lost before it was ready: {error}") from error
            raise
        mark = mark_of(self.installation, spec)
        sandbox = E2BSandbox(
            box,
            spec.limits,
            dict(spec.env),
            mark=mark,
            has_layer=bool(spec.requirements),
            on_close=self._let_go,
        )
        self.sandboxes[box.id], self.slots[box.id] = sandbox, slot
        return sandbox

    async def _create(self, spec: SandboxSpec) -> Box:
        """A new sandbox. An answer that is lost on the way is looked for by what the sandbox was marked with."""
        metadata = {"engine": self.installation, "job_id": str(spec.job_id), "attempt": str(spec.attempt)}
        for pause in CREATE_PAUSES:
            try:
                async with self.lifecycle, sdk_call("creating a sandbox", seconds=CREATE_SECONDS):
                    return Box(
                        await self.remote.create(
                            self.template or None,
                            timeout=LIFE_SECONDS,
                            metadata=metadata,
                            envs={},
                            lifecycle={"on_timeout": "kill"},
                            # The same for each try, so that the SDK's own repetitions make one sandbox.
                            idempotency_key=f"{spec.job_id}-{spec.attempt}",
                            **egress(spec.limits.allow_hosts),
                        )
                    )
            except SandboxBusy:
                await self.budget.cool_down()
                raise
            except Unclear as doubt:
                last: SandboxError = doubt
            except SandboxError as error:
                self._judge_refusal(error)
                last = error  # a conflict with an earlier try under the same key
            found = await self._find(metadata)
            if found is not None:
                return found
            await asyncio.sleep(pause)
        never_sent = isinstance(last.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
        raise (SandboxBusy if never_sent else PerhapsMade)(f"no sandbox could be made: {last}") from last

    def _judge_refusal(self, error: SandboxError) -> None:
        """Raises what a refused create means; returns when another try may go better."""
        cause = error.__cause__
        status = getattr(cause, "status_code", None)
        if isinstance(cause, e2b.TemplateException) or status == 404:
            self.refused_template = str(error)
            raise SandboxUnavailable(str(error), remedy=NO_TEMPLATE) from error
        if status in (402, 403):
            raise SandboxUnavailable(str(error), remedy="see what your E2B plan and key allow") from error
        if status == 400:
            raise SandboxRefused(str(error)) from error
        if status not in (409, 422):
            raise error

    async def _find(self, metadata: dict[str, str]) -> Box | None:
        """A sandbox that an unheard answer was about; more than one are none of ours to choose from, but one."""
        try:
            ids = [info.sandbox_id for info in await self._list(metadata)]
            for extra in ids[1:]:
                await self._kill(extra)
            if ids:
                async with sdk_call("connecting to a sandbox"):
                    remote = await self.remote.connect(ids[0], timeout=LIFE_SECONDS)
                if remote.sandbox_id == ids[0]:
                    return Box(remote)
        except SandboxBusy:
            raise
        except SandboxError as error:
            logger.info("A sandbox could not be adopted: %s", error)
        return None

    async def _furnish(self, box: Box, spec: SandboxSpec, kept: tuple[str, ...] | None) -> None:
        """Put the files in place, and the packages that the agent requires. `kept`: folders of a woken sandbox."""
        wanted = [file for file in spec.files if file.path.partition("/")[0] not in (kept or ())]
        woken = kept is not None
        try:
            with await asyncio.to_thread(pack, wanted) as archive:
                has = await box.prepare(archive, kept or (), woken=woken)
            if spec.requirements and "layer" not in (kept or ()):
                archive_of_layer = await asyncio.to_thread(
                    layer,
                    self.layer_folder,
                    spec.requirements,
                    python=str(has["python"]),
                    machine=str(has["machine"]),
                )
                everything = tuple({*guest.READ_ONLY, *guest.WRITABLE, guest.PRIVATE} - {"layer"})
                await box.add(archive_of_layer, everything, woken=woken)
        except SandboxFileError as error:
            raise SandboxRefused(f"the job's files do not fit into the sandbox: {error}") from error

    # --- sleeping and waking ---

    async def _wake(self, spec: SandboxSpec) -> Box | None:
        """The sandbox that sleeps for this job; None when it cannot be had, for whatever reason."""
        try:
            try:
                remote = await self._resume(spec.parked)
            except SandboxError as error:
                if not isinstance(error.__cause__, e2b.GuestUnresponsiveException):
                    raise
                remote = await self._resume(spec.parked, on_resume="reboot")
        except SandboxBusy:
            await self.budget.cool_down()
            raise
        except SandboxError as error:
            logger.info("Sandbox %s sleeps no more, its job gets another: %s", spec.parked, error)
            await self._quietly_release(ref=spec.parked)
            self._later(self._kill(spec.parked))
            return None
        if remote.sandbox_id != spec.parked:
            logger.warning("E2B woke sandbox %s in place of %s.", remote.sandbox_id, spec.parked)
            await asyncio.gather(self._kill(remote.sandbox_id), self._kill(spec.parked))
            await self._quietly_release(ref=spec.parked)
            return None
        return Box(remote)

    async def _resume(self, ref: str, **how: Any) -> AsyncSandbox:
        async with self.lifecycle, sdk_call("waking a sandbox"):
            return await self.remote.connect(ref, timeout=LIFE_SECONDS, **how)

    async def _still_there(self, box: Box, spec: SandboxSpec) -> tuple[str, ...] | None:
        """Which folders of a woken sandbox still hold what this attempt needs; None when its files are not there."""
        try:
            async with sdk_call("reading the mark"):
                path = f"{box.folder}/guest.py"  # as the template's user, whose home we do not know
                info = await box.remote.files.get_info(path)
            box.home = str(Path(info.path).parent)
            async with sdk_call("reading the mark"):
                mark = await box.remote.files.read(f"{box.home}/{guest.PRIVATE}/mark", user="root")
        except SandboxError as error:
            logger.info("Sandbox %s has lost its files, its job gets another: %s", box.id, error)
            return None
        parts = str(mark).split()
        wanted = mark_of(self.installation, spec).split()
        if len(parts) != len(wanted) or parts[0] != wanted[0]:
            logger.warning("Sandbox %s does not hold the files of its job.", box.id)
            return None
        digests = zip(("inputs", "layer"), parts[1:], wanted[1:], strict=True)
        return tuple(name for name, had, needed in digests if had == needed)

    async def _let_go(self, sandbox: E2BSandbox, keep: bool) -> None:
        """A sandbox is closed: end it, or let it sleep for its job."""
        ref = sandbox.ref
        slot = self.slots.pop(ref, None)
        await sandbox.box.stop_background()
        if keep and self.pause and slot is not None and not self.closed:
            self._later(self._put_to_sleep(sandbox, slot))
            return
        gone = await self._kill(ref)
        self.sandboxes.pop(ref, None)
        if gone and slot is not None:
            await self._quietly_release(slot)

    async def _put_to_sleep(self, sandbox: E2BSandbox, slot: UUID) -> None:
        """Pause it, with its mark on the disk. Any trouble ends it: its job finds all it needs elsewhere."""
        box = sandbox.box
        try:
            await box.ask("keep", sandbox.mark)
            async with self.lifecycle, sdk_call("pausing a sandbox", seconds=120):
                await box.remote.pause(strict=True)
            await self.budget.park(slot)
        except SandboxError as error:
            logger.info("Sandbox %s is ended, it could not be paused: %s", box.id, error)
            if await self._kill(box.id):
                await self._quietly_release(slot)
        finally:
            self.sandboxes.pop(box.id, None)

    # --- ending ---

    async def kill(self, ref: str) -> None:
        """Ours or another worker's."""
        if ref in self.sandboxes:
            await self.sandboxes[ref].close()
        elif ref.replace("-", "").isalnum() and self.api_key and await self._kill(ref):
            await self._quietly_release(ref=ref)

    async def _kill(self, ref: str) -> bool:
        """End it; False when E2B did not say that it did (it ends by itself after its life). Never raises."""
        for pause in KILL_PAUSES:
            await asyncio.sleep(pause)
            try:
                async with self.lifecycle, sdk_call("ending a sandbox"):
                    await self.remote.kill(ref)
            except SandboxLost:
                return True
            except SandboxError as error:
                logger.info("Sandbox %s could not be ended yet: %s", ref, error)
            else:
                return True
        return False

    async def _quietly_release(self, slot: UUID | None = None, *, ref: str = "") -> None:
        try:
            await self.budget.release(slot=slot, ref=ref)
        except SandboxError as error:
            logger.info("A slot runs out by itself: %s", error)

    # --- upkeep ---

    def tick(self, seconds: float) -> None:
        """The worker's lease holds for so long."""
        self.lease_until = asyncio.get_running_loop().time() + seconds

    async def _steadily(self, loop: Any) -> None:
        """Begin again after a fault: sandboxes that nobody prolongs would end under their jobs."""
        while True:
            try:
                await loop()
            except SandboxError as error:
                logger.info("E2B upkeep waits: %s", error)
            except Exception:  # an outer loop
                logger.exception("A part of the E2B provider met a fault, and begins again.")
            await asyncio.sleep(5)

    async def _renew(self) -> None:
        """Prolong what runs here, while the lease holds."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if asyncio.get_running_loop().time() < self.lease_until and self.slots:
                await self.budget.renew(list(self.slots.values()))
                await asyncio.gather(*(self._renew_one(sandbox) for sandbox in list(self.sandboxes.values())))

    async def _renew_one(self, sandbox: E2BSandbox) -> None:
        """E2B cuts a life that is longer than the plan's without a word: what it gave is read back."""
        try:
            async with self.lifecycle, sdk_call("prolonging a sandbox"):
                await sandbox.box.remote.set_timeout(LIFE_SECONDS)
            async with self.lifecycle, sdk_call("asking for the sandbox"):
                info = await sandbox.box.remote.get_info()
        except SandboxError as error:  # the next time; whether it lives its stream will tell
            logger.info("Sandbox %s could not be prolonged: %s", sandbox.ref, error)
            return
        left = (info.end_at - info.end_at.now(info.end_at.tzinfo)).total_seconds()
        if left < LIFE_SECONDS - CUT_SECONDS and not sandbox.cut_short:
            sandbox.cut_short = True
            logger.warning(
                "E2B ends sandbox %s in %.0f s: the plan's sandboxes live no longer.", sandbox.ref, left
            )

    async def _watch_lease(self) -> None:
        """When the worker has lost its lease, nothing of it goes on."""
        while True:
            await asyncio.sleep(LEASE_SECONDS)
            if asyncio.get_running_loop().time() > self.lease_until and self.sandboxes:
                logger.error("The worker's lease is over: its %s sandboxes are ended.", len(self.sandboxes))
                await asyncio.gather(*(sandbox.close() for sandbox in list(self.sandboxes.values())))

    async def _sweep(self) -> None:
        """One worker each minute: end what no job has any use for, running and paused."""
        while True:
            if await self.budget.is_turn_to_sweep():
                await self.sweep()
            await asyncio.sleep(SWEEP_LOOK_SECONDS)

    async def sweep(self) -> int:
        """End the orphans; returns how many there were."""
        found = [as_found(info) for info in await self._list({"engine": self.installation})]
        orphans = await self.budget.orphans(found)
        for ref in orphans - self.sandboxes.keys():
            logger.warning("Sandbox %s belongs to no job: it is ended.", ref)
            await self._kill(ref)
        return len(orphans)

    async def _list(self, metadata: dict[str, str]) -> list[e2b.SandboxInfo]:
        pages = self.remote.list(query=e2b.SandboxQuery(metadata=metadata))
        found: list[e2b.SandboxInfo] = []
        while pages.has_next:
            async with self.lifecycle, sdk_call("listing our sandboxes"):
                found += await pages.next_items()
        return found

    def _later(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def close(self) -> None:
        """End what is left and stop."""
        if self.closed:
            return
        self.closed = True
        for task in self.loops:
            task.cancel()
        await asyncio.gather(*self.loops, return_exceptions=True)
        await asyncio.gather(*(sandbox.close() for sandbox in list(self.sandboxes.values())))
        if self.background:  # pauses, mostly: what does not come to its end here E2B ends by itself
            await asyncio.wait(self.background, timeout=CLOSE_SECONDS)
        for task in list(self.background):
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        await self.budget.close()
        self.health = ProviderHealth(False, self.name, "closed")


def check_limits(limits: Limits) -> None:
    """Raises SandboxRefused for limits that nothing can run in."""
    if limits.memory_mb < LEAST_MEMORY_MB or min(limits.disk_mb, limits.processes) < 1:
        raise SandboxRefused(
            f"no sandbox has so little: at least {LEAST_MEMORY_MB} MB of memory, 1 MB of disk"
        )


def egress(hosts: Sequence[str]) -> dict[str, Any]:
    """Nothing goes out, or to these hosts alone (an allowed name needs everything else denied); nobody comes in."""
    if not hosts:
        return {"allow_internet_access": False, "network": {"allow_public_traffic": False}}
    return {
        "network": {
            "allow_out": list(hosts),
            "deny_out": [e2b.ALL_TRAFFIC],
            "allow_public_traffic": False,
        }
    }


def mark_of(installation: str, spec: SandboxSpec) -> str:
    """What a kept sandbox is known by: whose it is, and digests of what need not be uploaded again."""
    owner = hashlib.sha256(f"{installation} {spec.job_id}".encode()).hexdigest()
    inputs = hashlib.sha256()
    for file in spec.files:
        if file.path.startswith("inputs/"):
            size = len(file.source) if isinstance(file.source, bytes) else file.source.stat().st_size
            content = (
                hashlib.sha256(file.source).hexdigest() if isinstance(file.source, bytes) else file.source
            )
            inputs.update(f"{file.path} {size} {content}\n".encode())
    packages = layer_key(spec.requirements, "", "") if spec.requirements else "none"
    return f"{owner} {inputs.hexdigest()} {packages}"


def as_found(info: e2b.SandboxInfo) -> Found:
    """A listed sandbox; its metadata may be anybody's who has the key."""
    metadata = info.metadata or {}
    try:
        job_id: UUID | None = UUID(metadata.get("job_id", ""))
        attempt = int(metadata.get("attempt", ""))
    except ValueError:
        job_id, attempt = None, 0
    return Found(info.sandbox_id, job_id, attempt, info.state.value == "paused")
