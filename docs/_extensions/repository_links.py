"""Links of a page to files outside of docs/, which the site does not have.

The repository's own view of a page needs a relative link, and the site leads to the
same file in the repository. A link to nothing is MyST's warning.
"""

import pathlib

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class RepositoryLinks(SphinxTransform):
    """Resolves the links that lead out of docs/, before MyST does."""

    default_priority = 5

    def apply(self) -> None:
        """Called by Sphinx for every page."""
        root = pathlib.Path(self.env.srcdir).parent.resolve()
        for node in list(self.document.findall(_is_link)):
            file = self._outside(node)
            if file is None or not file.is_relative_to(root):
                continue
            url = self.config.repository_url
            if file.parent.name == "notebooks" and file.suffix == ".ipynb":
                # A page of the site, by another path.
                link = addnodes.pending_xref("", *node.children, **node.attributes)
                link.attributes |= {
                    "refdomain": "doc",
                    "reftarget": f"notebooks/{file.stem}",
                    "reftargetid": None,
                }
            elif url:
                kind = "tree" if file.is_dir() else "blob"
                address = f"{url}/{kind}/main/{file.relative_to(root)}"
                link = nodes.reference("", "", *node.children, refuri=address)
            else:
                link = nodes.inline("", "", *node.children)
            node.replace_self(link)

    def _outside(self, node: nodes.Element) -> pathlib.Path | None:
        """The file that a link leads to, if it is there and not in docs/."""
        target = node["reftarget"].partition("#")[0]
        if not target:
            return None
        if node["refdomain"] == "doc":  # a page, without its suffix
            target += ".md"
        page = pathlib.Path(self.env.doc2path(self.env.docname)).parent
        file = (page / target).resolve()
        inside = file.is_relative_to(pathlib.Path(self.env.srcdir).resolve())
        return None if inside or not file.exists() else file


def _is_link(node: nodes.Node) -> bool:
    links = addnodes.download_reference | addnodes.pending_xref
    return isinstance(node, links) and node.get("reftype") == "myst"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_config_value("repository_url", "", "env", (str,))
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True}
