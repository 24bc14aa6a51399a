"""Sphinx's settings: `make docs` builds the site into build/site."""

import pathlib
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_extensions")]


def _repository() -> str:
    """The page of the repository that this checkout came from, or ""."""
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = done.stdout.strip().removesuffix(".git")
    if found.startswith("git@"):
        found = "https://" + found.removeprefix("git@").replace(":", "/", 1)
    return found if found.startswith("https://") else ""


def _copy_notebooks() -> None:
    """Sphinx takes pages from this folder only."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for old in target.glob("*.ipynb"):
        if old.name not in {source.name for source in sources}:
            old.unlink()
    for source in sources:
        text = source.read_text(encoding="utf-8")
        # Links are those of notebooks/, and the copy lies in docs/notebooks/.
        text = text.replace("](../", "](../../").replace("](../../docs/", "](../")
        (target / source.name).write_text(text, encoding="utf-8")


_copy_notebooks()

project = "gptfl-jax"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
copyright = "the authors of gptfl-jax"

extensions = [
    "myst_nb",
    "repository_links",
    "reference_pages",
    "docstrings",
    "signatures",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_extensions", "**/.ipynb_checkpoints", "jupyter_execute"]

# Outputs are those that notebooks/ keeps: tests execute them.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

repository_url = _repository()

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
# Extras that only some modules need.
autodoc_mock_imports = ["fontTools", "fontpkg", "hibari", "torch"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
maximum_signature_line_length = 72
python_maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "gptfl-jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "use_download_button": True,
    "navbar_persistent": [],  # the search is in the sidebar
    "use_fullscreen_button": False,
}
if repository_url:
    html_theme_options |= {
        "repository_url": repository_url,
        "path_to_docs": "docs",
        "use_repository_button": True,
    }
