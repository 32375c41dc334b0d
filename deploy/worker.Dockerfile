# A worker, and whatever else `manage.py` does (Fly runs the web process from it, too). No secret is in the image; docs/deployment.md says what it is given.
#   docker build -f deploy/worker.Dockerfile -t engine-worker .
# A digest pins the base harder: --build-arg DEBIAN=debian:12.12-slim@sha256:...
ARG DEBIAN=debian:12.12-slim

# --- Python packages, exactly those of requirements/runtime.lock, and the pages' static files ---
FROM ${DEBIAN} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 UV_LINK_MODE=copy UV_NO_CACHE=1
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/engine
COPY requirements requirements
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements/uv.lock \
    && .venv/bin/uv pip install --python .venv/bin/python --require-hashes --compile-bytecode -r requirements/runtime.lock
COPY . .
# The key signs nothing: collectstatic only wants one to be there.
RUN .venv/bin/uv pip install --offline --no-deps --python .venv/bin/python --editable . \
    && .venv/bin/python -m compileall -q agents apikeys engine engine_client jobs \
    && ENGINE_ENV=production ENGINE_HOME=/tmp/build ENGINE_STATIC_DIR=/opt/engine/collected ALLOWED_HOSTS=build.invalid \
       SECRET_KEY="$(.venv/bin/python -c 'import secrets; print(secrets.token_urlsafe(50))')" \
       .venv/bin/python manage.py collectstatic --no-input --verbosity 0 \
    && chmod -R a+rX /opt/engine

# --- the Python that agents see inside a sandbox ---
FROM build AS runtime
RUN ENGINE_HOME=/tmp/build ENGINE_RUNTIME_DIR=/opt/runtime .venv/bin/python manage.py build_runtime

# --- what runs ---
FROM ${DEBIAN}
LABEL org.opencontainers.image.title="engine-worker" org.opencontainers.image.licenses="MIT"
# bubblewrap is for ENGINE_SANDBOX=local, and needs no capability, but a container that lets it make namespaces and
# mounts: --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends bubblewrap ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/engine --create-home engine \
    && chmod 700 /var/lib/engine
COPY --from=build /opt/engine /opt/engine
# The runtime is root's. Beside it the worker puts what agents' requirements name, so the folder itself is the worker's.
COPY --from=runtime /opt/runtime /opt/runtime
RUN chown 10001:10001 /opt/runtime
WORKDIR /opt/engine
ENV PATH=/opt/engine/.venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/var/lib/engine \
    ENGINE_ENV=production ENGINE_HOME=/var/lib/engine ENGINE_STATIC_DIR=/opt/engine/collected \
    ENGINE_HOST=0.0.0.0 PORT=8000 LOG_FORMAT=json \
    ENGINE_RUNTIME_DIR=/opt/runtime ENGINE_WORKER_HEALTH_FILE=/tmp/worker.json
USER 10001:10001
STOPSIGNAL SIGTERM
# Written at each heartbeat, every 5 s, also while the database is away: a restart would not bring it back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "test -n \"$(find \"$ENGINE_WORKER_HEALTH_FILE\" -newermt '30 seconds ago')\""]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/engine/.venv/bin/python", "/opt/engine/manage.py"]
# SIGTERM: 25 s to finish or to reach a step's end, then jobs are handed back. Give the container 45 s to stop.
CMD ["runworker", "--concurrency", "8", "--grace", "25"]
