"""Every notebook runs without a complaint, and is committed with what it says.

Needs the extra ``notebooks``, and is no part of the default suite: ``pytest notebooks``. After a
change of a notebook, ``python notebooks/execute.py`` writes its outputs.

Text is compared exactly, so a notebook prints only as many digits as every machine agrees on. A
cell tagged ``volatile`` may say something else each time, but as much: the kinds of its outputs
are compared. Of pictures only the presence is.
"""

import re

import nbformat
import pytest
from execute import METADATA, NOTEBOOKS, execute
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook, new_output

MACHINE_PATH = re.compile(r"(?:/(?:home|root|tmp|usr|opt|Users|private)/|[A-Z]:\\)\S*")


def said(cell):
    """The outputs of a cell, as (kind, text, other formats); text is what a terminal would show."""
    streams, rest = {}, []
    for output in cell.outputs:
        if output.output_type == "stream":  # may come in any number of pieces
            streams[output.name] = streams.get(output.name, "") + output.text
        elif output.output_type == "error":
            rest.append(("error", output.ename, ()))
        else:
            formats = set(output.data) - {"text/plain"}
            rest.append((output.output_type, output.data.get("text/plain", ""), tuple(formats)))
    return [(name, text, ()) for name, text in sorted(streams.items())] + rest


def complaints(committed, fresh):
    """What is wrong with a committed notebook, given what it says when it is executed afresh."""
    found = []
    if committed.metadata != METADATA:
        found.append("metadata: says more or less than the kernel and the language")
    pairs = zip(committed.cells, fresh.cells, strict=True)
    code = [(old, new) for old, new in pairs if new.cell_type == "code"]
    for number, (old, new) in enumerate(code, start=1):
        before, now = said(old), said(new)
        if old.execution_count != number:
            found.append(f"cell [{number}]: committed without having been executed in order")
        for kind, text, _ in before + now:
            if kind in {"stderr", "error"}:
                found.append(f"cell [{number}]: wrote to {kind}: {text.strip()}")
            if match := MACHINE_PATH.search(text):
                found.append(f"cell [{number}]: names a path of this machine: {match[0]}")
        if "volatile" in old.metadata.get("tags", []):
            before, now = ([(kind, formats) for kind, _, formats in x] for x in (before, now))
        if before != now:
            found.append(f"cell [{number}]: committed as {before}, now {now}")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_says_what_is_committed(path):
    assert complaints(nbformat.read(path, as_version=4), execute(path)) == []


def test_there_are_notebooks():
    assert NOTEBOOKS


# The check itself, on notebooks that break a rule each.


def notebook(*outputs, count=1, tags=(), metadata=METADATA):
    cell = new_code_cell("...", execution_count=count, outputs=list(outputs))
    cell.metadata["tags"] = list(tags)
    return new_notebook(cells=[cell], metadata=metadata)


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def picture(text):
    return new_output("display_data", data={"text/plain": text, "image/png": "..."})


GOOD = notebook(stream("a\n"), picture("<Figure>"))


@pytest.mark.parametrize(
    ("committed", "fresh"),
    [
        (GOOD, GOOD),
        (GOOD, notebook(stream("a"), stream("\n"), picture("<Figure>"))),
        (GOOD, notebook(picture("<Figure>"), stream("a\n"))),
        (notebook(stream("1 s"), tags=["volatile"]), notebook(stream("2 s"), tags=["volatile"])),
    ],
    ids=["same", "in pieces", "stream later", "volatile"],
)
def test_accepts(committed, fresh):
    assert complaints(committed, fresh) == []


@pytest.mark.parametrize(
    ("committed", "fresh", "complaint"),
    [
        (notebook(), GOOD, "committed as"),
        (notebook(stream("b\n"), picture("<Figure>")), GOOD, "committed as"),
        (notebook(stream("a\n"), picture("<Figure with 2 axes>")), GOOD, "committed as"),
        (notebook(stream("a\n"), tags=["volatile"]), GOOD, "committed as"),
        (notebook(*GOOD.cells[0].outputs, count=None), GOOD, "executed in order"),
        (notebook(*GOOD.cells[0].outputs, count=7), GOOD, "executed in order"),
        (GOOD, notebook(*GOOD.cells[0].outputs, stream("hm", "stderr")), "stderr: hm"),
        (notebook(*GOOD.cells[0].outputs, stream("hm", "stderr")), GOOD, "stderr: hm"),
        (notebook(new_output("error", ename="E", evalue="", traceback=[])), GOOD, "error: E"),
        (notebook(stream("/home/me/x.py")), notebook(stream("/home/me/x.py")), "/home/me/x.py"),
        (notebook(*GOOD.cells[0].outputs, metadata={}), GOOD, "metadata"),
    ],
)
def test_complains(committed, fresh, complaint):
    assert complaint in "\n".join(complaints(committed, fresh))


def written(tmp_path, *sources):
    path = tmp_path / "bad.ipynb"
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), path)
    return path


def test_hears_warnings_and_what_libraries_write(tmp_path):
    path = written(
        tmp_path, "import warnings; warnings.warn('hm')", "import os; _ = os.system('echo ho >&2')"
    )
    found = "\n".join(complaints(nbformat.read(path, as_version=4), execute(path)))
    assert "UserWarning: hm" in found
    assert "stderr: ho" in found


def test_an_error_ends_it(tmp_path):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(written(tmp_path, "1 / 0"))
