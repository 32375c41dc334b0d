"""Python's garbage collector, once a process has started."""

import gc


def calm() -> None:
    """Leave alone what start-up made, and look less often: the objects of requests and jobs die by themselves.

    Measured: p99 of a web process at one connection 61 to 8 ms; no-op jobs of a worker +10 %.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 1_000)
