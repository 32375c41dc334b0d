"""What protects whoever operates Engine: its log's lines, its start, its sockets."""

from drills.guard import Guard

LOG_LINES = "tests/test_engine_log_lines.py"

OPERATIONS_GUARDS = [
    Guard(
        "operations: JSON lines hold nothing that ends a line",
        "engine/logs.py",
        "return json.dumps(of_installation().inside(self.document(record)))",
        "return json.dumps(of_installation().inside(self.document(record)), ensure_ascii=False)",
        f"{LOG_LINES}::test_no_text_ends_a_line_or_moves_a_cursor",
    ),
    Guard(
        "operations: lines of a traceback pass for no line of ours",
        "engine/logs.py",
        'f"    {printable(line)}" for line in',
        "line for line in",
        f"{LOG_LINES}::test_no_text_ends_a_line_or_moves_a_cursor",
    ),
    Guard(
        "operations: secrets are taken out before the text is JSON",
        "engine/logs.py",
        "return json.dumps(of_installation().inside(self.document(record)))",
        "return of_installation()(json.dumps(self.document(record)))",
        f"{LOG_LINES}::test_a_secret_with_quotation_marks_is_taken_out_of_json",
    ),
    Guard(
        "operations: what is printed is a line of the log",
        "engine/output.py",
        "        sys.stdout, sys.stderr = Lines(",
        "        _ = Lines(",
        f"{LOG_LINES}::test_prints_warnings_and_uncaught_exceptions_become_lines",
    ),
    Guard(
        "operations: a log that cannot write says so once",
        "engine/output.py",
        'and not getattr(_telling, "now", False)',
        "",
        f"{LOG_LINES}::test_a_log_that_cannot_write_does_not_speak_to_itself_for_ever",
    ),
    Guard(
        "operations: a socket needs no Redis",
        "jobs/consumers.py",
        'channel_layer_alias = "memory"',
        'channel_layer_alias = "default"',
        "tests/test_jobs_redis.py::test_jobs_run_before_during_and_after_its_death",
    ),
    Guard(
        "operations: a pooler that knows no transactions stops the start",
        "engine/database.py",
        'if "statement pooling" in str(error):',
        'if "no such words" in str(error):',
        "tests/test_engine_pooler.py::test_a_pooler_that_knows_no_transactions_stops_the_start",
    ),
]
