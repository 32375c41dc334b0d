"""Django's PostgreSQL backend, with the embedded server started before the first connection."""
