# The web process: API, dashboard, live streams. No secret is in the image; docs/deployment.md says what it is given.
#   docker build -f deploy/web.Dockerfile -t engine-web .
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

# --- what runs ---
FROM ${DEBIAN}
LABEL org.opencontainers.image.title="engine-web" org.opencontainers.image.licenses="MIT"
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/engine --create-home engine \
    && chmod 700 /var/lib/engine
COPY --from=build /opt/engine /opt/engine
WORKDIR /opt/engine
ENV PATH=/opt/engine/.venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/var/lib/engine \
    ENGINE_ENV=production ENGINE_HOME=/var/lib/engine ENGINE_STATIC_DIR=/opt/engine/collected \
    ENGINE_HOST=0.0.0.0 PORT=8000 LOG_FORMAT=json
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=40s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as web; web.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health/live', timeout=4)"]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/engine/.venv/bin/python", "/opt/engine/manage.py"]
CMD ["serve"]
