"""`manage.py doctor` names the remedy that fits what it was told."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from engine.database import direct_dsn
from engine.diagnosis import storage
from engine.remedies import database_remedy, storage_remedy
from tests.buckets import bucket_server, storages_in


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"dbname": "not_there"}, "create the database"),
        ({"user": "nobody_of_that_name"}, "create the role"),
        ({"host": "no.such.host.invalid"}, "correct the host"),
        ({"host": "127.0.0.1", "port": "1"}, "start PostgreSQL"),
    ],
)
@pytest.mark.django_db
def test_a_database_that_cannot_be_reached_gets_the_remedy_that_fits(change, remedy):
    parameters = {**conninfo_to_dict(direct_dsn()), **change}

    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(make_conninfo(**parameters))

    assert remedy in database_remedy(refused.value)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('FATAL:  password authentication failed for user "engine"', "password"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.7", no encryption', "sslmode"),
        ("connection timeout expired", "firewall"),
        ("FATAL:  sorry, too many clients already", "max_connections"),
        ("unsupported startup parameter: options", "ENGINE_DIRECT_DATABASE_URL"),
    ],
)
def test_what_a_server_refuses_with_gets_the_remedy_that_fits(said, remedy):
    assert remedy in database_remedy(psycopg.OperationalError(said))


@pytest.mark.parametrize(
    ("key", "bucket", "remedy"),
    [("wrong", "engine-artifacts", "AWS_ACCESS_KEY_ID"), ("test", "not-there", "create the bucket")],
)
def test_a_bucket_that_refuses_gets_the_remedy_that_fits(settings, key, bucket, remedy):
    with bucket_server() as server:
        settings.STORAGES = {
            **settings.STORAGES,
            "artifacts": storages_in(server.url, key=key, bucket=bucket),
        }
        finding = storage("artifacts")

    assert not finding.ok
    assert remedy in finding.remedy


def test_a_full_disk_is_called_so():
    assert "room" in storage_remedy(OSError(28, "No space left on device"))
