"""Tables as people send them: CSV of any kind, Excel, JSON; read in pieces, so that size does not matter."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import pandas as pd
from engine_agent import UserError, log, step
from files import encoding_of, kind_of, read_text

SAVE_AS_CSV = "Send the table as CSV (UTF-8) or as an Excel workbook (.xlsx)."
DATE_FORMATS = (
    "ISO8601", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%m-%Y", "%m/%d/%y", "%d/%m/%y", "%b %d, %Y",
    "%B %d, %Y", "%d %b %Y", "%d %B %Y", "%b %Y", "%B %Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S",
    "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S",
)  # fmt: skip
CURRENCY = r"[\s\u00a0\u202f$€£¥₹%']"
DECIMAL_COMMA = r"-?(\d{1,3}(\.\d{3})+|\d+),\d{1,2}|-?\d{1,3}(\.\d{3})+,\d+|-?\d+,(\d{4,}|\d{1,2})"
BOOLEANS = {"yes", "no", "true", "false", "y", "n", "t", "f", "0", "1"}
PANDAS_SAYS = "Error tokenizing data. C error: "
NO_DELIMITER = "\x1f"  # the unit separator, which no text holds: each line is one cell
SAMPLE_ROWS = 2000
csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Table:
    """A table in a file. Cells are read as text; `numbers` and `dates` below turn a column into values."""

    name: str  # of the file as it was sent
    path: Path  # the file that is read: that one, or what it was converted to
    encoding: str
    delimiter: str
    columns: list[str]
    rows: int
    header: bool  # whether the first line names the columns

    def chunks(self, size: int, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """The rows in order, `size` at a time; the index is the row number from 0."""
        return read_csv(self, [self.columns.index(name) for name in columns or self.columns], size)

    def read(self, columns: list[str] | None = None) -> pd.DataFrame:
        """All rows, of these columns or of all."""
        return pd.concat(self.chunks(200_000, columns))

    def sample(self) -> pd.DataFrame:
        """The first rows."""
        return next(self.chunks(SAMPLE_ROWS))


def open_table(path: Path) -> Table:
    """Find out how the table is written and check that all of it can be read. Raises UserError."""
    facts = step("open the table", inspect, path)
    converted = facts.pop("converted")
    table = Table(name=path.name, path=Path(converted) if converted else path, **facts)
    log(f"{table.name}: {table.rows:,} rows, {len(table.columns)} columns: {', '.join(table.columns[:12])}")
    return table


def inspect(path: Path) -> dict:
    """The facts of a `Table` as JSON; a workbook or JSON file is converted to CSV in the workspace first."""
    kind = kind_of(path)
    converted = None
    if kind == "empty":
        raise UserError(
            f"{path.name} is empty.", remedy="Send a file with a header line and at least one row."
        )
    if kind == "an Excel workbook":
        converted = write_csv(excel_rows(path))
    elif kind != "text":
        raise UserError(f"{path.name} is {kind}, not a table.", remedy=SAVE_AS_CSV)
    elif path.suffix.lower() in {".json", ".jsonl", ".ndjson"}:
        converted = write_csv(json_rows(path))
    if converted:
        log(f"Converted {path.name} to CSV")
    source = Path(converted) if converted else path
    encoding = encoding_of(source)
    lines = first_lines(source, encoding)
    delimiter = find_delimiter(lines)
    header, columns = find_header(lines, delimiter)
    overlong = sum(len(row) > len(columns) for row in cells(lines, delimiter))
    if overlong:
        log(
            f"{overlong} of the first {len(lines)} lines have more cells than the header: the rest is left out",
            level="warning",
        )
    facts = {"encoding": encoding, "delimiter": delimiter, "columns": columns, "header": header}
    rows = count_rows(Table(name=path.name, path=source, rows=0, **facts))
    if rows == 0:
        raise UserError(
            f"{path.name} has a header line but no rows.", remedy="Send a file with at least one row of data."
        )
    return {**facts, "rows": rows, "converted": converted}


def read_csv(table: Table, positions: list[int], size: int) -> Iterator[pd.DataFrame]:
    """Some columns as text, `size` rows at a time. Raises UserError where the file breaks off."""
    try:
        with pd.read_csv(
            table.path,
            sep=table.delimiter,
            header=0 if table.header else None,
            names=table.columns,
            usecols=positions,
            index_col=False,
            chunksize=size,
            dtype=str,
            quoting=csv.QUOTE_NONE if table.delimiter == NO_DELIMITER else csv.QUOTE_MINIMAL,
            skipinitialspace=True,
            encoding=table.encoding,
            encoding_errors="replace",
        ) as reader:
            yield from reader
    except pd.errors.EmptyDataError:
        return
    except pd.errors.ParserError as error:
        raise UserError(
            f"{table.name} cannot be read as a table: {str(error).removeprefix(PANDAS_SAYS)}.",
            remedy="Look for a quotation mark that never closes, or export the file again as CSV.",
        ) from error


def first_lines(path: Path, encoding: str) -> list[str]:
    """The first lines that are not blank."""
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        lines = islice(file, 300)
        return [line for line in lines if line.strip()]


def find_delimiter(lines: list[str]) -> str:
    """The delimiter under which most lines have as many cells as the first; none means one column of whole lines."""
    best, best_score = NO_DELIMITER, 0.7
    for delimiter in ",;\t|":
        widths = [len(row) for row in cells(lines, delimiter)]
        agree = sum(width == widths[0] for width in widths) / len(widths)
        if widths[0] > 1 and agree + widths[0] / 1000 > best_score:
            best, best_score = delimiter, agree + widths[0] / 1000
    if best == NO_DELIMITER and any(line.startswith('"') for line in lines):
        return ","  # one quoted column, cells may span lines
    return best


def find_header(lines: list[str], delimiter: str) -> tuple[bool, list[str]]:
    """Whether the first line names the columns, and their names, made unique."""
    if delimiter == NO_DELIMITER:
        first = lines[0].strip()
        header = len(first.split()) <= 3 and not re.search(r"[.!?]$", first)
        return header, [first if header else "text"]
    rows = cells(lines, delimiter)
    first = [cell.strip() for cell in rows[0]]
    header = not any(
        looks_like_value(cell, [row[at] for row in rows[1:] if len(row) > at])
        for at, cell in enumerate(first)
    )
    names: list[str] = []
    for at, cell in enumerate(first, start=1):
        name = cell if header and cell else f"column_{at}"
        while name in names:
            name += f"_{at}"
        names.append(name)
    return header, names


def cells(lines: list[str], delimiter: str) -> list[list[str]]:
    """Lines as rows of cells."""
    return [row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row]


def looks_like_value(cell: str, below: list[str]) -> bool:
    """Whether a cell of the first line is a number among numbers; a year may well name a column."""
    if not re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell) or re.fullmatch(r"(19|20)\d\d", cell):
        return False
    return all(re.fullmatch(r"[-+]?[\d.,]*", value.strip()) for value in below)


def count_rows(table: Table) -> int:
    """Read the whole file once: how many rows it has, and that each can be read."""
    return sum(len(chunk) for chunk in table.chunks(200_000, table.columns[:1]))


def excel_rows(path: Path) -> Iterator[list]:
    """The rows of a workbook's first sheet."""
    from openpyxl import load_workbook

    try:
        with path.open("rb") as file:  # openpyxl would refuse another suffix
            sheet = load_workbook(file, read_only=True, data_only=True).worksheets[0]
            for row in sheet.iter_rows(values_only=True):
                if any(cell is not None for cell in row):
                    yield ["" if cell is None else cell for cell in row]
    except (
        KeyError,
        ValueError,
        IndexError,
        AttributeError,
        SyntaxError,
        OSError,
        BadZipFile,
        ZlibError,
    ) as error:
        raise UserError(f"{path.name} is a damaged workbook: {error}", remedy=SAVE_AS_CSV) from error


def json_rows(path: Path) -> Iterator[list]:
    """The objects of a JSON array, or of JSON lines, as rows under a header of all their keys."""
    text = read_text(path)
    try:
        records = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except json.JSONDecodeError as error:
        raise UserError(f"{path.name} is not valid JSON: {error}.", remedy=SAVE_AS_CSV) from error
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path.name} is not a list of JSON objects.", remedy=SAVE_AS_CSV)
    keys = list(dict.fromkeys(key for record in records for key in record))
    yield keys
    for record in records:
        yield [record.get(key, "") for key in keys]


def write_csv(rows: Iterator[list]) -> str:
    """Write rows to a CSV file in the workspace and return its name."""
    target = Path("converted.csv")
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return target.name


def numbers(column: pd.Series) -> pd.Series:
    """A text column as numbers: currency signs, percent signs and both ways to write thousands are understood."""
    plain = column.astype("str").str.replace(CURRENCY, "", regex=True)
    filled = plain.dropna().head(SAMPLE_ROWS)
    if filled.str.contains(",", regex=False).any():
        commas = filled[filled.str.contains(",", regex=False)]
        if commas.str.fullmatch(DECIMAL_COMMA).mean() > 0.9:
            plain = plain.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
        else:
            plain = plain.str.replace(",", "", regex=False)
    return pd.to_numeric(plain, errors="coerce").replace([np.inf, -np.inf], np.nan)


def dates(column: pd.Series) -> pd.Series:
    """A text column as dates, by the first format that nine cells of ten fit; empty where none does.

    03/04/2025 is March 4th unless the column holds a day after the 12th in that place.
    """
    cells = column.astype("str").str.strip()
    filled = cells.dropna()
    for form in DATE_FORMATS:
        for part in (filled.head(SAMPLE_ROWS), filled, cells):
            parsed = pd.to_datetime(part, format=form, errors="coerce", utc=True)
            if parsed.notna().sum() < 0.9 * min(len(filled), len(part)) or filled.empty:
                break
        else:
            return parsed.dt.tz_localize(None)
    return pd.Series(pd.NaT, index=column.index)


def bin_edges(values: pd.Series, most: int = 20) -> np.ndarray:
    """Edges of a histogram of the middle 99 %; values in steps get as many steps in each bin, so none looks empty."""
    low, high = values.quantile(0.005, interpolation="lower"), values.quantile(0.995, interpolation="higher")
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    steps = np.sort(values[values.between(low, high)].unique())
    unit, width = np.diff(steps).min(), (high - low) / most
    if width < most * unit:
        width = unit * np.ceil(width / unit - 1e-9)
    return np.arange(steps[0] - min(unit, width) / 2, steps[-1] + width, width)


def columns_in_words(kinds: dict[str, str]) -> str:
    """The columns with their kinds, for an error message."""
    words = [f"{name} ({kind})" for name, kind in kinds.items()]
    return ", ".join(words[:30]) + (f" and {len(words) - 30:,} more" if len(words) > 30 else "")


def column_kind(column: pd.Series) -> str:
    """What a text column holds: `empty`, `number`, `date`, `boolean`, `id`, `category` or `text`."""
    filled = column.dropna()
    if filled.empty:
        return "empty"
    values = filled.head(SAMPLE_ROWS).astype("str").str.strip()
    distinct = set(values.str.lower().unique())
    if len(distinct) == 2 and distinct <= BOOLEANS:
        return "boolean"
    if numbers(values).notna().mean() > 0.9:
        return "number"
    if values.str.contains(r"\d", regex=True).mean() > 0.9 and dates(values).notna().mean() > 0.9:
        return "date"
    words = values.str.count(r"\S+").mean()
    if words >= 4 and len(distinct) > len(values) / 5:
        return "text"
    return "id" if len(distinct) > 0.98 * len(values) > 20 and words < 1.5 else "category"
