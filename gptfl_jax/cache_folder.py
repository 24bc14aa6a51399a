"""What is kept from one run of a program to the next, and may be deleted any time.

Decoded pictures, released weights, what XLA has compiled: a folder for each kind.
"""

import os
import pathlib

import platformdirs


def cache_folder(kind: str) -> pathlib.Path:
    """The folder of one kind of files, whether there is one or not.

    It lies in `$GPTFL_CACHE_DIR`, or else in `gptfl-jax` where the system keeps such
    files of a user, as `~/.cache`.
    """
    named = os.environ.get("GPTFL_CACHE_DIR")
    root = pathlib.Path(named) if named else platformdirs.user_cache_path("gptfl-jax")
    return root.expanduser().absolute() / kind
