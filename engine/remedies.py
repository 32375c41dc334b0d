"""What to do about what a database or a storage says when it refuses."""

from django.db import ProgrammingError

# What libpq and PostgreSQL say, and what to do about it.
REFUSALS = (
    ("password authentication failed", "correct the user and the password in DATABASE_URL"),
    ("no password supplied", "put the password into DATABASE_URL: postgresql://user:password@host/database"),
    ("no pg_hba.conf entry", "let this host in (pg_hba.conf), or add sslmode=require to DATABASE_URL"),
    ("resolve host", "correct the host in DATABASE_URL: no such name is known here"),
    ("role ", "create the role, or correct the user in DATABASE_URL"),
    ('database "', "create the database (createdb), or correct its name in DATABASE_URL"),
    ("too many clients", "raise max_connections on the server, or put PgBouncer in front"),
    ("remaining connection slots", "raise max_connections on the server, or put PgBouncer in front"),
    ("permission denied", "grant the role of DATABASE_URL its database and its schema"),
    ("timeout", "open the way to that host and port (firewall, security group), or correct DATABASE_URL"),
    ("session is read-only", "name the primary in DATABASE_URL, too, with target_session_attrs=read-write"),
)
STORAGE_REFUSALS = (
    (
        ("InvalidAccessKeyId", "SignatureDoesNotMatch"),
        "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the key to ENGINE_S3_BUCKET",
    ),
    (
        ("Unable to locate credentials",),
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
    ),
    (("NoSuchBucket",), "create the bucket, or correct ENGINE_S3_BUCKET and ENGINE_S3_REGION"),
    (
        ("AccessDenied", "Forbidden"),
        "let the key read, write, list and delete in ENGINE_S3_BUCKET (its policy)",
    ),
    (
        ("Could not connect to the endpoint", "timed out"),
        "correct ENGINE_S3_ENDPOINT, or start the server there",
    ),
    (
        ("No space left", "InsufficientStorage", "QuotaExceeded"),
        "make room where artifacts are stored: ENGINE_HOME, or ENGINE_S3_BUCKET",
    ),
)


def database_remedy(error: BaseException) -> str:
    """What to do about a database that refuses."""
    if "startup parameter" in str(error):  # PgBouncer's words
        return "DATABASE_URL is a pooler: set ENGINE_DIRECT_DATABASE_URL to the database itself"
    if isinstance(error, ProgrammingError):  # a table is missing
        return "python manage.py migrate"
    said = str(error).lower()
    return next(
        (remedy for words, remedy in REFUSALS if words in said), "start PostgreSQL, or set DATABASE_URL"
    )


def storage_remedy(error: BaseException) -> str:
    """What to do about a storage that refuses, by the name that S3 or the kernel has for it."""
    said = str(error)
    found = (remedy for words, remedy in STORAGE_REFUSALS if any(word in said for word in words))
    return next(
        found,
        "make the artifacts' storage writable; for a bucket check ENGINE_S3_* and AWS_*, and its policy",
    )


def first_line(error: BaseException) -> str:
    """The gist of a driver's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
