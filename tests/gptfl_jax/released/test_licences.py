import pytest

from gptfl_jax.released import licences
from gptfl_jax.released.licences import licence_of


@pytest.mark.parametrize(
    "card, licence",
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\r\ntags: [a]\r\nlicense: 'mit' # free\r\n---\r\n# A", "mit"),
        ("\ufeff---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n- apache-2.0\ntags:\n- a\n---\n", "mit, apache-2.0"),
        ("---\nlicense: [mit, 'cc0-1.0']\n---\n", "mit, cc0-1.0"),
        ("---\nlicense: \x1b[2J\n---\n", "\\x1b[2J"),
        ("---\nlicense: " + 200 * "x" + "\n---\n", 100 * "x"),
        ("---\ntags: a\n---\nlicense: mit\n", "unknown"),
        ("license: mit\n", "unknown"),
        ("---\nlicense: mit\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_cards_say_it(tmp_path, card, licence):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licence_of(tmp_path) == licence


def test_shipped_models_and_folders_without_a_card(tmp_path):
    for name in ("drums", "glyphs", "voices"):
        assert licence_of(name) == "apache-2.0"
    assert licence_of(tmp_path) == "unknown"
    (tmp_path / "README.md").mkdir()
    assert licence_of(tmp_path) == "unknown"


def test_some_repositories_are_known(monkeypatch):
    def snapshot(*_):
        raise licences.hub.ModelNotFound("out of reach")

    monkeypatch.setattr(licences.hub, "snapshot", snapshot)
    assert licence_of("cvssp/audioldm-s-full-v2") == "cc-by-nc-sa-4.0"
    assert licence_of("CompVis/stable-diffusion-v1-4") == "creativeml-openrail-m"
    assert licence_of("someone/stable-diffusion") == "unknown"
