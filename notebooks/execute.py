"""Runs the notebooks from top to bottom, and keeps what they show.

    python -m notebooks.execute                 # all of them
    python -m notebooks.execute own_algorithm   # one

Text is in the `.md` files; `.ipynb` files are made from them here, with outputs.
"""

import os
import pathlib
import sys
import time

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent
_REPOSITORY = FOLDER.parent


def names() -> list[str]:
    """The notebooks, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def execute(name: str, folder: pathlib.Path | str) -> nbformat.NotebookNode:
    """The notebook with its outputs, run by a Python of its own.

    Args:
        name: of the file, without its ending.
        folder: where it runs, and writes what it writes.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell that failed.
    """
    notebook = jupytext.read(FOLDER / f"{name}.md")
    paths = [str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["GPTFL_CACHE_DIR"] = "cache"  # what is said of it is kept, too
    environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    # The Python that runs this, whatever kernels the user has installed.
    command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR"]
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(folder)}}
    )
    client.create_kernel_manager()
    client.km.kernel_spec.argv = [*command, "-f", "{connection_file}"]
    client.execute(env=environment)
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)  # else random: every run would change the file
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            # Progress bars, which end at nothing to read.
            cell.outputs = [
                output for output in cell.outputs if output.get("name") != "stderr"
            ]
            for output in cell.outputs:
                if output.output_type == "stream":  # no paths of this machine
                    output.text = output.text.replace(f"{folder}/", "")
    notebook.metadata.pop("language_info", None)
    return notebook


def main() -> None:
    """Executes the notebooks named on the command line, or all."""
    import tempfile

    for name in sys.argv[1:] or names():
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(name, folder)
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(notebook, path)
        size = path.stat().st_size / 1000
        print(f"{name}: {time.monotonic() - start:.0f} s, {size:.0f} kB")


if __name__ == "__main__":
    main()
