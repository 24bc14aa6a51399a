"""Signatures as they stand in the source, and links from the names in them.

jaxtyping's Float[Array, "lanes width"] is shown as Float['lanes width']: what is an
array is clear from the type of its numbers.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

_ARRAYS = re.compile(
    r"\b(\w+)\[(?:Array|np\.ndarray|jax\.Array|PyTree),\s*(['\"])\s*(.*?)\s*\2\]"
)


def short(annotation: str) -> str:
    """An annotation of the source, shortened.

    A shape is one quoted string to Python; `"` and `'` around it say nothing.
    """
    return _ARRAYS.sub(lambda found: f"{found[1]}['{found[3]}']", annotation)


def _annotation(node: ast.expr | None) -> str:
    return "" if node is None else short(ast.unparse(node))


def signature_of(function: Any, bound: bool) -> tuple[str, str]:
    """(parameters, what is returned) of a function, from its source."""
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    node = ast.parse(text).body[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        raise TypeError("not a function")
    arguments = node.args
    for each in (
        *(arguments.posonlyargs + arguments.args + arguments.kwonlyargs),
        *(x for x in (arguments.vararg, arguments.kwarg) if x),
    ):
        if each.annotation is not None:
            each.annotation = ast.parse(_annotation(each.annotation)).body[0].value
    if bound:
        (arguments.posonlyargs or arguments.args).pop(0)
    return f"({ast.unparse(arguments)})", _annotation(node.returns)


def process(
    app: Sphinx, what: str, name: str, of: Any, options: Any, given: str, returns: str
) -> tuple[str, str] | None:
    """The signature of one function or method, in place of autodoc's."""
    if what not in ("function", "method"):
        return _of_class(of, given) if what == "class" else None
    bound = what == "method" and not isinstance(
        inspect.getattr_static(_owner(name), name.rpartition(".")[2], None),
        staticmethod,
    )
    try:
        return signature_of(getattr(of, "__func__", of), bound)
    except (OSError, TypeError, SyntaxError, IndexError):
        return None


def _owner(name: str) -> Any:
    """The class of a method, by the method's full name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:-1]:
            found = getattr(found, part)
        return found
    return None


def _of_class(of: Any, given: str) -> tuple[str, str] | None:
    """Fields and their defaults, as the source has them."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if not isinstance(node, ast.ClassDef) or not given:
        return None
    names = {node.name for node in ast.walk(node) if isinstance(node, ast.FunctionDef)}
    if "__init__" in names or "__new__" in names:
        init = of.__init__ if "__init__" in names else of.__new__
        try:
            return signature_of(init, True)[0], ""
        except (OSError, TypeError, SyntaxError, IndexError):
            return None
    fields = []
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            text = f"{each.target.id}: {_annotation(each.annotation)}"
            if each.value is not None:
                text += f" = {ast.unparse(each.value)}"
            fields.append(text)
    return f"({', '.join(fields)})", ""


def skip(
    app: Sphinx, what: str, name: str, of: Any, skipped: bool, options: Any
) -> bool | None:
    """Leaves out what a NamedTuple, a dataclass or Flax adds."""
    about = getattr(of, "__doc__", "") or ""
    if about.startswith("Alias for field number") or name in ("parent", "scope"):
        return True
    return None


class Names(SphinxPostTransform):
    """Links each name to the one thing that it can mean; else it is plain text."""

    default_priority = 5  # before Sphinx's own, which guesses

    def run(self, **_: Any) -> None:
        """Called by Sphinx for every page."""
        objects = self.env.domaindata["py"]["objects"]
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("refdomain") != "py":
                continue
            found = self._find(node["reftarget"], node.get("py:module") or "")
            content = list(node.children)
            if found is None:
                node.replace_self(content)
                continue
            entry = objects[found]
            place = entry.docname, entry.node_id
            link = make_refnode(
                self.app.builder, self.env.docname, *place, content, found
            )
            node.replace_self(link)

    def _find(self, name: str, module: str) -> str | None:
        """The full name of what a page of a module means."""
        if not hasattr(self.env, "ends_of_names"):
            self.env.ends_of_names = _ends(self.env.domaindata["py"]["objects"])
        name = name.removeprefix("gf.").removeprefix(".")
        found = self.env.ends_of_names.get(name, [])
        here = [each for each in found if each == f"{module}.{name}"]
        # A lone word, as `model`, is a name of its own module or an argument.
        found = here or ([] if name.islower() and "." not in name else found)
        return found[0] if len(found) == 1 else None


def _ends(objects: Iterable[str]) -> dict[str, list[str]]:
    """What full names end with -> the full names."""
    ends: dict[str, list[str]] = {}
    for full in objects:
        parts = full.split(".")
        for start in range(len(parts)):
            ends.setdefault(".".join(parts[start:]), []).append(full)
    return ends


def forget(app: Sphinx, env: BuildEnvironment) -> None:
    """The names of a former build."""
    if hasattr(env, "ends_of_names"):
        del env.ends_of_names


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-signature", process)
    app.connect("autodoc-skip-member", skip)
    app.connect("env-updated", forget)
    app.add_post_transform(Names)
    return {"parallel_read_safe": True}
