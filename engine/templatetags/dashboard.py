"""How the dashboard shows values: states, times, spans, and text from agents that nobody can trust."""

import difflib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from engine.dashboard import text
from engine.dashboard.text import HIDDEN, code_point, plain, sign
from jobs.figures import MOST_COUNTED

register = template.Library()

WORDS = {
    "waiting_for_input": "waiting",
    "handed_back": "handed back",
    "multi_choice": "choices",
    "noop": "no-op",
}


@register.simple_tag
def chip(state: str, label: str = "") -> SafeString:
    """A state as a coloured chip; the word carries the meaning, the colour repeats it."""
    return format_html(
        '<span class="e-chip e-is-{}">{}</span>', state, label or WORDS.get(state, state.replace("_", " "))
    )


@register.simple_tag
def icon(name: str, label: str = "") -> SafeString:
    """A symbol; hidden from screen readers unless it has a label."""
    if label:
        return format_html(
            '<span class="material-symbols-outlined e-icon" role="img" aria-label="{}">{}</span>', label, name
        )
    return format_html('<span class="material-symbols-outlined e-icon" aria-hidden="true">{}</span>', name)


@register.simple_tag
def sparkline(values: Sequence[int], label: str) -> SafeString:
    """Bars of one width, the oldest first, as high as their share of the highest; `label` says it in words."""
    most = max(values, default=0)
    bars = format_html_join(
        "",
        '<rect x="{}" y="{}" width="3" height="{}" rx=".5"/>',
        (
            (index * 4, f"{24 - height:g}", f"{height:g}")
            for index, value in enumerate(values)
            if (height := max(1.5, round(24 * value / most, 1)) if value else 0)
        ),
    )
    return format_html(
        '<svg class="e-spark" viewBox="0 0 {} 24" role="img" aria-label="{}" preserveAspectRatio="none">{}</svg>',
        len(values) * 4,
        label,
        bars,
    )


@register.filter
def when(moment: datetime | None) -> SafeString:
    """A moment as "3 min ago", kept true and given in the viewer's own zone by times.js."""
    return _time(moment, "ago")


@register.filter
def at(moment: datetime | None) -> SafeString:
    """A moment as date and time."""
    return _time(moment, "at")


@register.filter
def since(moment: datetime | None) -> SafeString:
    """The time that has passed since then, running on: "3 min 12 s"."""
    return _time(moment, "since")


def _time(moment: datetime | None, how: str) -> SafeString:
    if moment is None:
        return mark_safe('<span class="e-none">–</span>')
    return format_html(
        '<time datetime="{}" data-{}>{} UTC</time>',
        moment.isoformat(),
        how,
        moment.strftime("%Y-%m-%d %H:%M:%S"),
    )


@register.filter
def span(value: timedelta | float | None) -> str:
    """A length of time in two units at most; a bare number is milliseconds."""
    if value is None:
        return "–"
    milliseconds = value.total_seconds() * 1000 if isinstance(value, timedelta) else float(value)
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {smaller_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


@register.filter
def between(start: datetime | None, end: datetime | None) -> str:
    """How long it took; "–" while one end is missing."""
    return span(end - start) if start and end else "–"


@register.filter
def capped(count: int) -> str:
    """A count that was only taken so far: "10,000+"."""
    return f"{MOST_COUNTED:,}+" if count > MOST_COUNTED else f"{count:,}"


@register.filter
def whole(count: int) -> str:
    """A count that is exact: "12,345"."""
    return f"{count:,}"


@register.filter
def short_number(count: int) -> str:
    """A large count in three digits or so: "1.2 M"."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            return f"{count / (size if letter != 'k' else 1000):.1f}".removesuffix(".0") + f" {letter}"
    return f"{count:,}"


@register.filter
def percent(share: float | None) -> str:
    """0..1 as a percentage."""
    if share is None:
        return "–"
    return f"{share * 100:.1f}".removesuffix(".0") + " %"


@register.filter
def visible(source: object) -> SafeString:
    """Text with everything that would not show, or would reorder what shows, made visible."""
    parts = []
    last = 0
    raw = str(source)
    for found in HIDDEN.finditer(raw):
        parts.append(escape(raw[last : found.start()]))
        parts.append(_mark(found[0]))
        last = found.end()
    parts.append(escape(raw[last:]))
    return format_html_join("", "{}", ((part,) for part in parts))


register.filter("plain", plain)


@register.filter
def markdown(source: object) -> SafeString:
    """Markdown from agents, without what could do harm."""
    return mark_safe(text.markdown(source))  # noqa: S308 (the renderer escapes)


@register.filter
def markdown_line(source: object) -> SafeString:
    """Markdown from agents within a line."""
    return mark_safe(text.markdown_line(source))  # noqa: S308 (the renderer escapes)


def _mark(character: str) -> SafeString:
    return format_html(
        '<span class="e-hidden-char" title="{}">{}</span>', code_point(character), sign(character)
    )


@register.filter
def pretty(value: Any) -> SafeString:
    """JSON to read, as text."""
    return visible(json.dumps(value, indent=2, ensure_ascii=False))


@register.filter
def as_text(value: Any) -> SafeString:
    """Text as it is, anything else as JSON to read."""
    return visible(value) if isinstance(value, str) else pretty(value)


@register.filter
def changes(after: Any, before: Any) -> list[tuple[str, str]]:
    """The lines of two JSON values that differ or stay: ("+" | "-" | " ", line)."""
    old, new = (json.dumps(value, indent=2, ensure_ascii=False).split("\n") for value in (before, after))
    return [(line[0], line[2:]) for line in difflib.ndiff(old, new) if line[0] in "+- "]


@register.filter
def words(code: str) -> str:
    """A machine's word for people: "no_match" is "no match"."""
    return code.replace("_", " ")


@register.filter
def short(value: object) -> str:
    """The last block of a UUID: the part that differs between ids made at nearly the same time."""
    return str(value)[-12:]


@register.filter
def total(values: Sequence[int]) -> int:
    """Their sum."""
    return sum(values)


@register.filter
def used_words(minutes: int) -> str:
    """How much a key was used, in words."""
    return f"In use in {minutes:,} minute{'' if minutes == 1 else 's'} of the last 30 days"


@register.filter
def member(mapping: dict[str, int], name: str) -> int:
    """A count by its name; 0 where there is none."""
    return mapping.get(name, 0)


@register.filter
def unlocalized(number: float) -> str:
    """A number as HTML attributes take it, whatever the locale."""
    return f"{float(number or 0):g}"
