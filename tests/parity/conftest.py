"""Makes tests/references importable; without PyTorch the folder is left out."""

import importlib.util
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "references"))

if not all(map(importlib.util.find_spec, ("torch", "diffusers"))):
    collect_ignore_glob = ["test_*.py"]
