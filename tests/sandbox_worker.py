"""A worker that holds one sandbox, as a process of its own that tests may stop and kill. Needs no Django.

    sandbox_worker.py RUNTIME LOCK SCRATCH TOKEN LEASE

Prints one JSON line per thing that happens. The program inside carries TOKEN on its command line.
"""

import asyncio
import json
import sys
from pathlib import Path
from uuid import uuid4

from jobs.sandboxes.base import Ended, Limits, SandboxSpec
from jobs.sandboxes.local import LocalProvider


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def main() -> None:
    runtime, lock, scratch, token, lease = sys.argv[1:]
    provider = LocalProvider(
        runtime_folder=Path(runtime), lock=Path(lock), scratch_folder=Path(scratch), warm=0
    )
    health = await provider.start()
    say(ok=health.ok, detail=health.detail, remedy=health.remedy)

    async def tick() -> None:
        while float(lease):
            provider.tick(float(lease))
            await asyncio.sleep(float(lease) / 5)

    ticking = asyncio.create_task(tick())
    while True:
        sandbox = await provider.open(SandboxSpec(job_id=uuid4(), attempt=1, limits=Limits()))
        await sandbox.start(["sh", "-c", f"echo started; sleep {token}"])
        async for output in sandbox.outputs():
            if isinstance(output, Ended):
                say(ended=output.reason, detail=output.detail)
            else:
                say(ref=sandbox.ref)
        await sandbox.close()
        if not ticking.done():
            provider.tick(float(lease) or 3600)


asyncio.run(main())
