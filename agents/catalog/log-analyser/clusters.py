"""One pass over the lines: levels over time, and messages gathered by their pattern (Drain)."""

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from engine_agent import log, progress
from files import encoding_of
from formats import parse, sounds_like

EPOCH = datetime(1970, 1, 1)
SERIOUS = ("warning", "error", "critical")
LONGEST_LINE = 2000  # characters that are looked at
EXCEPTION = re.compile(r"^(?:Caused by: )?([\w.$]+(?:Error|Exception|Failure|Interrupt|Timeout)\b.*)")
MASKS = {
    "URL": r"https?://[^\s\"']+",
    "UUID": r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b",
    "IP": r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b",
    "HEX": r"\b0x[0-9a-fA-F]+\b|\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b",
    "NUM": r"(?<![A-Za-z0-9_])[-+]?\d+(?:[.,:]\d+)*",
}


@dataclass
class Record:
    """One entry of the log: a line, and the lines that go on with it."""

    minute: int | None
    level: str
    message: str
    place: str
    more: list[str] = field(default_factory=list)


@dataclass
class Cluster:
    """Messages of one pattern. `at` counts them by minute, or by hundred lines where the log has no times."""

    level: str
    place: str
    example: str
    at: Counter = field(default_factory=Counter)


def analyse(files):
    """Counts by level and time, and the clusters, the largest first."""
    first_lines = [line for _, line in islice(lines_of(files, quiet=True), 300)]
    parsed = [entry for entry in map(parse, first_lines) if entry]
    timed = sum(entry[1] is not None for entry in parsed) > len(parsed) / 2 if parsed else False
    formats = Counter(entry[0] for entry in parsed)
    form = formats.most_common(1)[0][0] if formats else "plain lines"
    log(f"Format: {form}, " + ("with times" if timed else "without times"))

    levels, at, miners, clusters = Counter(), Counter(), {}, {}
    position = 0
    for position, record in enumerate(records(files, timed), start=1):
        moment = record.minute if timed else position // 100
        levels[record.level] += 1
        at[moment, record.level] += 1
        if record.level in SERIOUS:
            key = record.level, cluster_id(miners, record)
            cluster = clusters.get(key) or clusters.setdefault(
                key, Cluster(record.level, record.place, example(record))
            )
            cluster.at[moment] += 1
    ranked = sorted(
        clusters.items(), key=lambda item: (SERIOUS.index(item[1].level) < 1, -item[1].at.total())
    )
    return {
        "format": form,
        "timed": timed,
        "records": position,
        "levels": dict(levels),
        "at": [[moment, level, count] for (moment, level), count in at.items()],
        "clusters": [
            {
                "template": miners[level].drain.id_to_cluster[number].get_template()[:400],
                "level": level,
                "count": cluster.at.total(),
                "place": cluster.place,
                "example": cluster.example,
                "at": list(cluster.at.items()),
            }
            for (level, number), cluster in ranked
        ],
    }


def lines_of(files, *, quiet=False):
    """(place, line) of all files in turn, with progress by bytes."""
    total = sum(path.stat().st_size for path in files) or 1
    done = 0
    for path in files:
        name = f"{path.name}:" if len(files) > 1 else "line "
        with path.open(encoding=encoding_of(path), errors="replace") as file:
            for number, line in enumerate(file, start=1):
                done += len(line)
                if number % 20_000 == 0 and not quiet:
                    progress(0.05 + 0.75 * min(done / total, 1), f"{number:,} lines of {path.name} read")
                yield f"{name}{number}", line[:LONGEST_LINE].rstrip("\r\n")


def records(files, timed):
    """The entries of the log. In a log with times, a line without one belongs to the entry before."""
    current = None
    for place, line in lines_of(files):
        if not line.strip():
            continue
        entry = parse(line)
        goes_on = entry is None or entry[1] is None if timed else line[:1].isspace()
        if current and goes_on:
            if len(current.more) < 60:
                current.more.append(line)
            continue
        if current:
            yield current
        time, level, message = entry[1:] if entry else (None, sounds_like(line), line)
        minute = int((time - EPOCH).total_seconds() // 60) if time else None
        current = Record(minute, level, message, place)
    if current:
        yield current


def cluster_id(miners, record):
    """The pattern that this message belongs to; an exception below it is part of the message."""
    if record.level not in miners:
        miners[record.level] = new_miner()
    thrown = next((match[1] for match in map(EXCEPTION.match, record.more) if match), "")
    message = f"{record.message} | {thrown}" if thrown else record.message
    return miners[record.level].add_log_message(message)["cluster_id"]


def new_miner():
    """Drain, a fixed-depth tree over the words of messages, with numbers, addresses and ids masked first."""
    from drain3 import TemplateMiner
    from drain3.masking import MaskingInstruction
    from drain3.template_miner_config import TemplateMinerConfig

    config = TemplateMinerConfig()
    config.drain_max_clusters = 5000
    config.masking_instructions = [MaskingInstruction(pattern, name) for name, pattern in MASKS.items()]
    return TemplateMiner(config=config)


def example(record):
    """The first message of a pattern, with the first lines below it."""
    return "\n".join([record.message, *record.more[:12]])[:1500]
