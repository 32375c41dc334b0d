"""Stored bytes in a bucket of S3, or of any server that speaks its protocol."""

from typing import IO, Any

from botocore.config import Config
from django.conf import settings
from storages.backends.s3 import S3Storage

# Within the seconds of the settings; botocore's own deadlines would be minutes. A slip of the bucket costs no job.
TRIES = 2
MOST_CONNECT_SECONDS = 2.0
# A worker's program has run already: it waits longer, and tries again (jobs/storage.py). A request's client can do so.
patient = False
# Below this a file is fetched into memory, above it onto disk.
IN_MEMORY_BYTES = 1024 * 1024


class BucketStorage(S3Storage):
    """django-storages' S3 with our deadlines: private objects, overwritten in place (their names are their content)."""

    def __init__(self, **options: Any) -> None:
        style = options.pop("addressing_style", None)
        whole = settings.ENGINE_S3_WORKER_SECONDS if patient else settings.ENGINE_S3_REQUEST_SECONDS
        super().__init__(
            **options,
            default_acl=None,
            file_overwrite=True,
            max_memory_size=IN_MEMORY_BYTES,
            client_config=Config(
                connect_timeout=min(MOST_CONNECT_SECONDS, whole / TRIES),
                read_timeout=whole / TRIES,
                retries={"total_max_attempts": TRIES, "mode": "standard"},
                s3={"addressing_style": style or "auto"},
                signature_version="s3v4",
                # Other servers than Amazon's do not all know the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def stream(self, name: str, start: int, length: int) -> IO[bytes]:
        """So many bytes as they come from the server: nothing is kept here. Raises FileNotFoundError."""
        client = self.connection.meta.client
        key = self._normalize_name(name)
        span = f"bytes={start}-{start + length - 1}"
        try:
            body: IO[bytes] = client.get_object(Bucket=self.bucket_name, Key=key, Range=span)["Body"]
        except client.exceptions.NoSuchKey as error:
            raise FileNotFoundError(name) from error
        return body
