"""Federated algorithms, a family a file; each public function is one, and found here.

Notation: x the server's weights, y_i those of client i after its local steps, d_i =
y_i - x its update, p_i its weight in the cohort (sum 1), eta the local learning rate, g
a gradient at y.

A function is an algorithm when its first parameters are `learner, local`. It composes
what `gptfl_jax.fl.composition.compose` takes, and hands its further keywords there. The
first line of its docstring is the name to show, a colon and what it does; the update as
a formula and the citation follow.
"""

import importlib
import inspect
import pkgutil

__all__ = []
for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _name, _function in inspect.getmembers(_module, inspect.isfunction):
        _defined_there = _function.__module__ == _module.__name__
        _first = [*inspect.signature(_function).parameters][:2]
        if (
            _defined_there
            and _first == ["learner", "local"]
            and not _name.startswith("_")
        ):
            globals()[_name] = _function
            __all__.append(_name)
