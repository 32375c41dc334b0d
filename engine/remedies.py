"""What to do about what a database or a storage says when it refuses."""

from django.conf import settings
from django.db import DatabaseError, OperationalError
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, UndefinedColumn, UndefinedTable

# What libpq and PostgreSQL say, and what to do about it.
REFUSALS = (
    ("create extension", "let a superuser run CREATE EXTENSION vector in that database, once"),
    ('extension "vector"', "install pgvector on the database server"),
    ("password authentication failed", "correct the user and the password in DATABASE_URL"),
    ("no password supplied", "put the password into DATABASE_URL: postgresql://user:password@host/database"),
    ("no pg_hba.conf entry", "let this host in (pg_hba.conf), or add sslmode=require to DATABASE_URL"),
    ("resolve host", "correct the host in DATABASE_URL: no such name is known here"),
    ("role ", "create the role, or correct the user in DATABASE_URL"),
    ('database "', "create the database (createdb), or correct its name in DATABASE_URL"),
    ("too many clients", "raise max_connections on the server, or put PgBouncer in front"),
    ("remaining connection slots", "raise max_connections on the server, or put PgBouncer in front"),
    ("permission denied", "grant the role of DATABASE_URL its database and its schema"),
    (
        "lock timeout",
        "try again once the transaction that holds the lock has ended (pg_stat_activity says whose)",
    ),
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


# What a statement failed with where the server lacks something, not our code.
LACKS = (UndefinedTable, UndefinedColumn, InsufficientPrivilege, FeatureNotSupported)


def is_for_operators(error: DatabaseError) -> bool:
    """Whether mending the database or the settings helps, not the code: it is away, refuses us, or lacks something."""
    return isinstance(error, OperationalError) or isinstance(error.__cause__, LACKS)


def refuses_as_pooler(error: str) -> bool:
    """Whether these are PgBouncer's words for what a session is given at its start."""
    return "startup parameter" in error


def database_remedy(error: BaseException) -> str:
    """What to do about a database that refuses."""
    if refuses_as_pooler(str(error)):
        if settings.DIRECT_DATABASE is not None:
            return "ENGINE_DIRECT_DATABASE_URL leads through a pooler: let it name the database itself"
        return "DATABASE_URL is a pooler: set ENGINE_DIRECT_DATABASE_URL to the database itself"
    if isinstance(error.__cause__, UndefinedTable | UndefinedColumn):
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
