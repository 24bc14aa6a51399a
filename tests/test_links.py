"""Links between pages of the repository lead to files and headings that are there."""

import re

import pytest

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)", re.DOTALL)


def pages(repository):
    folders = (".", "docs", "docs/guide", "docs/how-to", "notebooks")
    return [page for folder in folders for page in (repository / folder).glob("*.md")]


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in headings
    }


def test_links_lead_somewhere(repository):
    found, wrong = 0, []
    for page in pages(repository):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M)
        for match in _LINK.finditer(text):
            target = match.group(1) or match.group(2)
            if re.match(r"\w+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            found += 1
            if not file.exists():
                wrong.append(f"{page.name}: {target}")
            elif anchor and file.suffix == ".md":
                if anchor not in anchors(file.read_text()):
                    wrong.append(f"{page.name}: {target}")
    assert not wrong
    assert found > 30


@pytest.mark.parametrize(
    "heading, anchor",
    [("# A data set", "a-data-set"), ("## GPT-FL: `glyphs`!", "gpt-fl-glyphs")],
)
def test_anchors_are_those_of_github(heading, anchor):
    assert anchors(f"{heading}\n") == {anchor}
