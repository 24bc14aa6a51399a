"""GPT-FL in JAX: make labelled data, train on it, fine-tune by federated learning.

    import gptfl_jax as gf

    federation = gf.federate(images, labels, owner=writers, test=(x, y))
    run = gf.simulate(federation, "convnet", "fedavg", rounds=30)

The library is pure: arrays in, arrays out, keys passed explicitly. The programs in
`generate/`, `train/` and `federated/` are built from it. Paper: "GPT-FL: Generative
Pre-trained Model-Assisted Federated Learning" (arXiv 2306.02210).
"""

import importlib
import importlib.util

# Name -> where it is. Imported when asked for: programs need only some of it.
_FACE = {
    **dict.fromkeys(
        ("federate", "simulate", "plot", "Federation", "Run"), "gptfl_jax.federation"
    ),
    **dict.fromkeys(("generate", "train"), "gptfl_jax.synthesis"),
    "Augmentation": "gptfl_jax.augmentation",
    "Classifier": "gptfl_jax.classifier",
    "load_classifier": "gptfl_jax.classifier",
    "Dataset": "gptfl_jax.data.datasets",
    "Source": "gptfl_jax.data.datasets",
    "load": "gptfl_jax.data.sources",
    "setup": "gptfl_jax.launch",
    "LocalTraining": "gptfl_jax.fl.local_training",
    "StableDiffusion": "gptfl_jax.generators.pictures.stable_diffusion",
}

__all__ = [*_FACE]


def __getattr__(name: str):
    if name in _FACE:
        return getattr(importlib.import_module(_FACE[name]), name)
    if importlib.util.find_spec(f"{__name__}.{name}"):  # gf.fl, gf.models, ...
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
