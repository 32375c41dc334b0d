"""Indexes that are built while others go on writing."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState

IS_INVALID = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(quote_ident(%s)) AND NOT indisvalid"


class BuildIndex(AddIndexConcurrently):
    """CREATE INDEX CONCURRENTLY that can be begun again, and that waits for whoever reads.

    It waits for every transaction that is older, a backup's for an hour if need be, and holds up nobody meanwhile: the
    lock timeout, meant for what does, would end it. Cut off, it leaves an index that is not valid and has the name.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """Build the index, in place of what an earlier try has left."""
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout')")
            timeout = cursor.fetchone()[0]
            cursor.execute("SET lock_timeout = 0")
            try:
                cursor.execute(IS_INVALID, [self.index.name])
                if cursor.fetchone() is not None:
                    name = schema_editor.quote_name(self.index.name)
                    cursor.execute(f"DROP INDEX CONCURRENTLY {name}")
                super().database_forwards(app_label, schema_editor, from_state, to_state)
            finally:
                cursor.execute("SELECT set_config('lock_timeout', %s, false)", [timeout])
