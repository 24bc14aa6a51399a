"""What the pages of stage 3 share: templates, and content that lies in the page."""

import base64
import pathlib

import jinja2


def template(folder: pathlib.Path) -> jinja2.Template:
    """`page.html.jinja` of a folder; what it is given is escaped, and must be there.

    It may include `page.css`: light and dark, for a desk and a phone.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, pathlib.Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


def data_uri(kind: str, data: bytes) -> str:
    """An address that holds its content, of a media type such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
