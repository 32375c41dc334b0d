"""What this process counts and times. `jobs/metering` adds it up with what other processes do, dead ones included.

Labels take few values each: routes, outcomes, providers; never an id, a slug or an address.
"""

from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs
REGISTRY: Final = CollectorRegistry()
QUICK: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
LONG: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)


def _counter(name: str, about: str, *labels: str) -> Counter:
    return Counter(name, about, labels, registry=REGISTRY)


def _histogram(name: str, about: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(name, about, labels, registry=REGISTRY, buckets=buckets)


# --- web processes ---
HTTP_REQUESTS = _counter(
    "engine_http_requests", "HTTP requests answered, by class of status.", "route", "status"
)
HTTP_SECONDS = _histogram(
    "engine_http_request_seconds",
    "From a request's head to the end of its answer; streams and waits are left out.",
    "route",
    buckets=QUICK,
)
RATE_LIMIT_REFUSALS = _counter("engine_rate_limit_refusals", "Requests that a key's rate window refused.")
DISCOVERY_SECONDS = _histogram(
    "engine_discovery_seconds", "From a task to the agents found for it.", buckets=QUICK
)

# --- workers ---
CLAIMS = _counter("engine_claims", "Claims that found jobs, and that found none.", "found")
CLAIMED_JOBS = _counter("engine_claimed_jobs", "Jobs that workers have taken.")
CLAIM_SECONDS = _histogram("engine_claim_seconds", "One claim in the database.", buckets=QUICK)
ATTEMPTS = _counter("engine_attempts", "Attempts that have ended.", "outcome")
JOBS_ENDED = _counter("engine_jobs_ended", "Jobs that workers have brought to their end.", "status")
WAIT_SECONDS = _histogram("engine_job_wait_seconds", "From due to started.", buckets=LONG)
RUN_SECONDS = _histogram("engine_job_run_seconds", "From started to ended, an attempt.", buckets=LONG)
EVENTS = _counter("engine_events", "Events that workers have stored.")
LATE_WRITES = _counter(
    "engine_late_writes_refused", "Attempts whose writes came after they had lost their lease."
)
SWEEPS = _counter("engine_sweeps", "Looks for workers whose lease ran out.")
SWEPT_JOBS = _counter("engine_swept_jobs", "Jobs taken from such workers.", "next")
SANDBOX_SECONDS = _histogram(
    "engine_sandbox_start_seconds", "Sandboxes opened, and how long it took.", "provider", buckets=QUICK
)
SANDBOX_FAILURES = _counter(
    "engine_sandbox_start_failures", "Sandboxes that could not be opened.", "provider"
)
MODEL_SECONDS = _histogram(
    "engine_model_call_seconds", "Replies of the model server, whole.", "outcome", buckets=LONG
)


class Sample(NamedTuple):
    """One number of one series."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


def samples() -> list[Sample]:
    """What this process has counted since it began; series that never were are not there."""
    return [
        Sample(sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in REGISTRY.collect()
        for sample in family.samples
    ]


def observe_http(route: str, status: int, seconds: float | None) -> None:
    """Count a request; its time, unless it was a stream's."""
    HTTP_REQUESTS.labels(route, f"{status // 100}xx" if status else "none").inc()
    if seconds is not None:
        HTTP_SECONDS.labels(route).observe(seconds)
