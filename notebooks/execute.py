"""Executes the notebooks in place, each from top to bottom in a fresh kernel, on the CPU.

    python notebooks/execute.py

writes the outputs that are committed. What differs from one machine to the next and says nothing
to a reader (the Python version, the time of day) is left out. `test_notebooks.py` then expects
to see the same text again.
"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted(Path(__file__).parent.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> NotebookNode:
    """The notebook with fresh outputs; raises the first error of a cell."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,  # seconds a cell
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    # Where it is set, ipykernel does not catch what libraries write to the process's stderr.
    env.pop("PYTEST_CURRENT_TEST", None)
    client.execute(env=env)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main() -> None:
    """Execute them all and write them back."""
    for path in NOTEBOOKS:
        nbformat.write(execute(path), path)
        print(f"executed {path.name}")


if __name__ == "__main__":
    main()
