"""Makes tests/references importable for the tests here."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "references"))
