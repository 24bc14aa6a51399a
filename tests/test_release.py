"""What a release says of itself: the page of licences, the version to cite."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import licences


@pytest.mark.parametrize(
    ("metadata", "classifiers", "said"),
    [
        ({"License-Expression": "MIT", "License": "other"}, (), "MIT"),
        ({"License": "BSD"}, ["License :: OSI Approved :: BSD License"], "BSD"),
        ({"License": "x" * 99}, ["License :: OSI Approved :: ISC"], "ISC"),
        ({"License": "UNKNOWN"}, ["Topic :: Sound"], "not said"),
        ({}, (), "not said"),
    ],
)
def test_the_licence_that_metadata_name(metadata, classifiers, said):
    assert licences.licence(metadata, classifiers) == said


def test_what_is_needed_is_followed_through_extras(tmp_path, monkeypatch):
    packages = {
        "a": ["b[more]", 'd ; extra == "other"', "e ; python_version < '3'"],
        "b": ['C_c ; extra == "more"', "a"],
        "c-c": [],
        "d": [],
        "e": [],
    }
    for name, needs in packages.items():
        folder = tmp_path / f"{name.replace('-', '_')}-1.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", "Version: 1", f"License: of {name}"]
        lines += [f"Requires-Dist: {need}" for need in needs]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert licences.needed(["a>=1", "absent"]) == {
        "a": "of a",
        "b": "of b",
        "c-c": "of c-c",
    }


def test_no_dependency_is_missing_from_the_page(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    page = (repository / "docs" / "licences.md").read_text()
    for line in project["dependencies"]:
        assert f"\n| {canonicalize_name(Requirement(line).name)} | " in page


def test_the_version_to_cite_is_the_version(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert (
        f"\nversion: {project['version']}\n"
        in (repository / "CITATION.cff").read_text()
    )
    assert f"\n## {project['version']}\n" in (repository / "CHANGELOG.md").read_text()
