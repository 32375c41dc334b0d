"""The minute buckets behind the overview: workers append a row a batch, and each minute these become one.

Without it an hour of a busy queue is some hundred thousand rows, which every look at the overview would add up. Hours
that are over become rows of their own, for windows of a day and more.
"""

from django.db import connection

KEPT_DAYS = 400
# Of the minutes that are over; one that ends late just makes its bucket be folded again.
FOLD = """
WITH crowded AS (
    SELECT minute, project_id, agent_id, queue, outcome, error_code
      FROM jobs_minutestat
     WHERE minute BETWEEN date_trunc('minute', statement_timestamp()) - interval '2 hours'
                      AND date_trunc('minute', statement_timestamp()) - interval '2 minutes'
     GROUP BY 1, 2, 3, 4, 5, 6 HAVING count(*) > 1
     LIMIT 2000
), gone AS (
    DELETE FROM jobs_minutestat AS stat USING crowded
     WHERE stat.minute = crowded.minute AND stat.project_id = crowded.project_id
       AND stat.agent_id IS NOT DISTINCT FROM crowded.agent_id AND stat.queue = crowded.queue
       AND stat.outcome = crowded.outcome AND stat.error_code = crowded.error_code
    RETURNING stat.*
), histograms AS (
    SELECT minute, project_id, agent_id, queue, outcome, error_code,
           array_agg(wait ORDER BY place)::int[] AS waits, array_agg(run ORDER BY place)::int[] AS runs
      FROM (
        SELECT minute, project_id, agent_id, queue, outcome, error_code, place, sum(wait) AS wait, sum(run) AS run
          FROM gone, unnest(wait_histogram, run_histogram) WITH ORDINALITY AS bucket (wait, run, place)
         GROUP BY 1, 2, 3, 4, 5, 6, 7
      ) AS summed
     GROUP BY 1, 2, 3, 4, 5, 6
), totals AS (
    SELECT minute, project_id, agent_id, queue, outcome, error_code, sum(count) AS count, sum(wait_ms) AS wait_ms,
           sum(run_ms) AS run_ms
      FROM gone GROUP BY 1, 2, 3, 4, 5, 6
)
INSERT INTO jobs_minutestat (minute, project_id, agent_id, queue, outcome, error_code, count, wait_ms, run_ms,
                             wait_histogram, run_histogram)
SELECT total.minute, total.project_id, total.agent_id, total.queue, total.outcome, total.error_code, total.count,
       total.wait_ms, total.run_ms, waits, runs
  FROM totals AS total
  JOIN histograms AS histogram
    ON histogram.minute = total.minute AND histogram.project_id = total.project_id
   AND histogram.agent_id IS NOT DISTINCT FROM total.agent_id AND histogram.queue = total.queue
   AND histogram.outcome = total.outcome AND histogram.error_code = total.error_code
"""


# From the hour before the last one that is there, which late minutes may have reached since; all that a window can
# show where none is.
FOLD_HOURS = """
WITH folded AS (
    SELECT coalesce(max(hour) - interval '1 hour', statement_timestamp() - make_interval(days => %(days)s)) AS since
      FROM jobs_hourstat
), minutes AS (
    SELECT date_trunc('hour', minute) AS hour, outcome, error_code, count, wait_histogram, run_histogram
      FROM jobs_minutestat
     WHERE minute >= (SELECT date_trunc('hour', since) FROM folded)
       AND minute < date_trunc('hour', statement_timestamp())
), summed AS (
    SELECT hour, outcome, error_code, place, sum(wait) AS wait, sum(run) AS run
      FROM minutes, unnest(wait_histogram, run_histogram) WITH ORDINALITY AS bucket (wait, run, place)
     GROUP BY 1, 2, 3, 4
), histograms AS (
    SELECT hour, outcome, error_code, array_agg(wait ORDER BY place)::bigint[] AS waits,
           array_agg(run ORDER BY place)::bigint[] AS runs
      FROM summed GROUP BY 1, 2, 3
), totals AS (
    SELECT hour, outcome, error_code, sum(count) AS count FROM minutes GROUP BY 1, 2, 3
)
INSERT INTO jobs_hourstat AS stat (hour, outcome, error_code, count, wait_histogram, run_histogram)
SELECT hour, outcome, error_code, count, waits, runs
  FROM totals JOIN histograms USING (hour, outcome, error_code)
 ORDER BY hour, outcome, error_code
    ON CONFLICT (hour, outcome, error_code) DO UPDATE
   SET count = excluded.count, wait_histogram = excluded.wait_histogram, run_histogram = excluded.run_histogram
 WHERE stat.count <> excluded.count
"""
LONGEST_WINDOW_DAYS = 8


def fold() -> int:
    """Add up the rows of each past minute that say the same; how many remain of them.

    Safe beside other workers that fold: a row is deleted once, and its counts go where it went.
    """
    with connection.cursor() as cursor:
        cursor.execute(FOLD)
        return int(cursor.rowcount)


def fold_hours() -> int:
    """Add up the hours that are over and were not yet, or have changed since; how many rows these became."""
    with connection.cursor() as cursor:
        cursor.execute(FOLD_HOURS, {"days": LONGEST_WINDOW_DAYS})
        return int(cursor.rowcount)


def forget() -> None:
    """Delete what is older than anybody asks for."""
    with connection.cursor() as cursor:
        for table, moment in (("jobs_minutestat", "minute"), ("jobs_hourstat", "hour")):
            cursor.execute(
                f"DELETE FROM {table} WHERE {moment} < statement_timestamp() - make_interval(days => %s)",  # noqa: S608 (constants)
                [KEPT_DAYS],
            )
