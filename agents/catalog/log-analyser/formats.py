"""How log lines are written: each format gives the time, the level and the message of a line."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus

LEVELS = {
    "trace": "debug", "debug": "debug", "info": "info", "information": "info", "notice": "info", "warn": "warning",
    "warning": "warning", "err": "error", "error": "error", "severe": "error", "exception": "error", "crit": "critical",
    "critical": "critical", "fatal": "critical", "alert": "critical", "emerg": "critical", "emergency": "critical",
    "panic": "critical",
}  # fmt: skip
TRAILING = ' ]>:|-\t"'
LETTERS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
WORDS = "|".join(sorted(LEVELS, key=len, reverse=True))
# In capitals anywhere near the start; else only where punctuation marks it: `[error]`, `error:`, `level=error`.
LEVEL_WORD = re.compile(
    rf"(?<![\w/.-])(?P<loud>{WORDS.upper()})(?![\w/.-])|[\[<:=\"](?P<marked>(?i:{WORDS}))\b|(?<![\w/.-])(?P<titled>(?i:{WORDS})):"
)
FAILURE = re.compile(
    r"\b(error|fail(ed|ure|s)?|exception|fatal|denied|refused|timed? ?out|panic|segfault|unable|cannot|invalid)\b",
    re.I,
)
ISO = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|[+-]\d\d:?\d\d))?"
MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"


STATUSES = {str(int(status)) for status in HTTPStatus}


def access(match):
    """A web server's request: 5xx is an error, 4xx a warning."""
    status = match["status"]
    level = "error" if status >= "500" else "warning" if status >= "400" else "info"
    method, path = [*match["request"].split(" "), ""][:2]
    parts = path.partition("?")[0].split("/")  # the first two parts of a path say what was asked for
    path = "/".join(parts[:3]) + ("/…" if len(parts) > 3 else "")
    return level, f"{method} {path} → {HTTPStatus(int(status)).phrase if status in STATUSES else status}"


def lettered(match):
    """Google's log: the first letter is the level."""
    return LETTERS[match["letter"]], match["message"]


def worded(match):
    """A level as a word in front of the message, else what the words of the message sound like."""
    message = match["message"].strip()
    found = LEVEL_WORD.search(message[:90])
    if found is None:
        return sounds_like(message), message
    return level_of(found), message[found.end() :].lstrip(TRAILING) or message


def level_of(found):
    """The level that LEVEL_WORD found."""
    return LEVELS[found[found.lastgroup].lower()]


def sounds_like(message):
    """A level for a line that names none."""
    return "error" if FAILURE.search(message) else "info"


FORMATS = {
    "web server access log": (
        re.compile(r'\S+ \S+ \S+ \[(?P<time>[^\]]+)\] "(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3})\b'), access),
    "Google log (glog, klog)": (
        re.compile(r"(?P<letter>[IWEF])(?P<time>\d{4} \d\d:\d\d:\d\d)\.\d+\s+\d+ \S+:\d+\] (?P<message>.*)"), lettered),
    "Apache error log": (
        re.compile(rf"\[(?P<time>\w+ {MONTH} +\d+ [\d:]{{8}})(?:\.\d+)? (?P<year>\d+)\] (?P<message>.*)"), worded),
    "syslog": (
        re.compile(rf"(?:<\d+>)?(?P<time>{MONTH} +\d+ \d\d:\d\d:\d\d) \S+ (?P<message>.*)"), worded),
    "syslog (RFC 5424)": (
        re.compile(rf"<\d+>1 (?P<time>{ISO}) \S+ (?P<message>.*)"), worded),
    "application log": (
        re.compile(rf".{{0,40}}?\[?(?P<time>{ISO})\]?(?P<message>.*)"), worded),
}  # fmt: skip


def parse(line):
    """(format, time or None, level, message) of a line; None for one that goes on with the line before."""
    if line.startswith("{"):
        return parse_json(line)
    for name, (pattern, split) in FORMATS.items():
        match = pattern.match(line)
        if match:
            level, message = split(match)
            return name, when(match["time"], match.groupdict().get("year") or ""), level, message
    found = LEVEL_WORD.match(line)
    if found:
        return "levels without times", None, level_of(found), line[found.end() :].lstrip(TRAILING)
    return None


def parse_json(line):
    """A line that is a JSON object, by the names that loggers commonly use."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    time = first(record, "time", "timestamp", "@timestamp", "ts", "asctime", "date")
    level = str(first(record, "level", "severity", "levelname", "lvl", "log.level") or "info").lower()
    message = first(record, "message", "msg", "event", "error") or line
    if isinstance(level, str) and level.isdigit():  # bunyan, pino: 30 is info, 50 is error
        level = (
            "critical"
            if int(level) >= 60
            else "error"
            if int(level) >= 50
            else "warning"
            if int(level) >= 40
            else "info"
        )
    return "JSON lines", when(str(time), ""), LEVELS.get(level, "info"), str(message)


def first(record, *names):
    """The first of these values that is there."""
    return next((record[name] for name in names if record.get(name) is not None), None)


@lru_cache(maxsize=10_000)
def when(text, year):
    """A time as a naive datetime to the second (in UTC where the line names a zone); None where it is not one."""
    text = re.sub(r"(\d\d:\d\d:\d\d)[.,]\d+", r"\1", text)
    if re.fullmatch(r"\d{10}(\.\d+)?|\d{13}", text):  # seconds or milliseconds since 1970
        return datetime.fromtimestamp(int(text[:10]), UTC).replace(tzinfo=None)
    moment = None
    try:
        moment = datetime.fromisoformat(text.replace("/", "-"))
    except ValueError:
        for form in ("%d/%b/%Y:%H:%M:%S %z", "%Y %b %d %H:%M:%S", "%Y %a %b %d %H:%M:%S", "%Y %m%d %H:%M:%S"):
            stamp = text if form.startswith("%d") else f"{year or date.today().year} {text}"
            try:
                moment = datetime.strptime(stamp, form)
            except ValueError:
                continue
            if form.startswith("%Y") and not year and moment > datetime.now() + timedelta(days=1):
                moment = moment.replace(
                    year=moment.year - 1
                )  # a year that is not written is the last one possible
            break
    if moment is None or moment.tzinfo is None:
        return moment
    return moment.astimezone(UTC).replace(tzinfo=None)
