from django.db import migrations

# The only way out for an audit row: it is older than what the deleting transaction names, and that is 30 days or more.
FORGETTABLE = """
CREATE OR REPLACE FUNCTION apikeys_auditrow_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    kept int := coalesce(nullif(current_setting('engine.audit_days', true), ''), '0')::int;
BEGIN
    IF TG_OP = 'DELETE' AND kept >= 30 AND OLD.at < statement_timestamp() - make_interval(days => kept) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'audit rows are append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
"""
KEPT = """
CREATE OR REPLACE FUNCTION apikeys_auditrow_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit rows are append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("apikeys", "0004_key_use")]

    operations = [migrations.RunSQL(FORGETTABLE, KEPT)]
