"""The code interpreter of a local sandbox: runs pieces of Python one after another and keeps their variables.

Runs inside, as the program. One request and one answer are JSON lines; stdout and stderr are the process's own.
Code it runs can forge answers: they are about that code alone, and the host reads them as hostile.
"""

import ast
import base64
import builtins
import io
import json
import linecache
import os
import signal
import sys
import traceback
import types
import warnings
from typing import Any

OUTPUT_BYTES = 1_500_000  # one answer line stays below Limits.record_bytes
REPRESENTATIONS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "application/json": "_repr_json_",
}


class Interpreter:
    """One namespace, the module `__main__`, and the channel its results go to."""

    def __init__(self, records: int) -> None:
        self.records = records
        self.call = ""  # the id of the request at work
        self.count = 0
        self.main = types.ModuleType("__main__")
        self.main.__dict__.update(__builtins__=builtins, display=self.display)
        sys.modules["__main__"] = self.main

    def run(self, call: str, code: str) -> None:
        """Run `code`, show its last expression, its open figures and its error, then say that it is done."""
        self.call, self.count = call, self.count + 1
        name = f"<cell {self.count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        error = None
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.execute(code, name)
            self.show_open_figures()
        except (
            BaseException
        ) as thrown:  # whatever the code throws is its result, SystemExit and interrupts too
            error = describe(thrown)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt that comes late has nothing to stop
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.send({"kind": "done", "error": error})

    def execute(self, code: str, name: str) -> None:
        """Run all statements; a last one that is an expression (not closed by `;`) is shown."""
        tree = ast.parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            statement = tree.body.pop()
            assert isinstance(statement, ast.Expr)  # noqa: S101  (for the type checker)
            last = ast.Expression(statement.value)
        exec(compile(tree, name, "exec"), self.main.__dict__)  # noqa: S102  (what we are for)
        if last is not None:
            value = eval(compile(last, name, "eval"), self.main.__dict__)  # noqa: S307
            if value is not None:
                self.main.__dict__["_"] = value
                self.show(value, main=True)

    def display(self, *values: object) -> None:
        """What notebooks call `display`: show values in the middle of the code."""
        for value in values:
            self.show(value)

    def show(self, value: object, *, main: bool = False) -> None:
        """Send one value in every form it has."""
        data = bundle(value)
        if len(json.dumps(data)) > OUTPUT_BYTES:
            kept = data.get("text/plain", "")[:10_000]
            data = {"text/plain": f"{kept}\n[left out: {', '.join(data)} over {OUTPUT_BYTES:,} bytes]"}
        self.send({"kind": "output", "data": data, "main": main})

    def show_open_figures(self) -> None:
        """Send the figures that pyplot still holds, as notebooks do at the end of a cell."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            for number in pyplot.get_fignums():
                self.show(pyplot.figure(number))
            pyplot.close("all")

    def send(self, answer: dict[str, Any]) -> None:
        """Write one line, whole."""
        line = memoryview(json.dumps({"id": self.call, **answer}).encode() + b"\n")
        while line:
            line = line[os.write(self.records, line) :]


def bundle(value: Any) -> dict[str, str]:
    """The value as a MIME bundle; bytes as base64. A representation that fails is left out."""
    data = {"text/plain": repr(value)}
    figure = sys.modules.get("matplotlib.figure")
    if figure is not None and isinstance(value, figure.Figure):
        file = io.BytesIO()
        value.savefig(file, format="png", bbox_inches="tight")
        sys.modules["matplotlib.pyplot"].close(value) if "matplotlib.pyplot" in sys.modules else None
        data["image/png"] = base64.b64encode(file.getvalue()).decode()
        return data
    if isinstance(value, type):
        return data
    for mime, method in REPRESENTATIONS.items():
        represent = getattr(value, method, None)
        if represent is None:
            continue
        try:
            form = represent()
        except Exception:  # noqa: S112  (the value's own code, of any kind)
            continue
        if isinstance(form, bytes):
            data[mime] = base64.b64encode(form).decode()
        elif isinstance(form, str):
            data[mime] = form
        elif form is not None and mime == "application/json":
            data[mime] = json.dumps(form)
    return data


def describe(error: BaseException) -> dict[str, str]:
    """Name, message and traceback of what the code threw, without this file's frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == describe.__code__.co_filename:
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return {"name": type(error).__name__, "value": str(error)[:10_000], "traceback": "".join(lines)[-50_000:]}


def main(records: int, replies: int) -> int:
    """Serve requests until the channel closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings(
        "ignore", message="FigureCanvasAgg is non-interactive"
    )  # show() waits for the cell's end
    interpreter = Interpreter(records)
    with os.fdopen(replies, "rb") as requests:
        for line in requests:
            request = json.loads(line)
            interpreter.run(request["id"], request["code"])
    return 0
