"""Folders of latent diffusion pipelines in the format of `diffusers`."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion.solvers import DDIM, LCM, DPMSolver, Solver
from gptfl_jax.released import hub, lora, torch_weights

_SOLVERS = {"dpmsolver++": DPMSolver, "ddim": DDIM, "lcm": LCM}


class Component(NamedTuple):
    """A network of a pipeline: its files and classes."""

    library: str
    stem: str
    """Of its weights, in the component's folder."""
    config: type
    network: type
    current_name: Callable[[str], str | None] = lambda name: name
    prefix: str = ""
    """Before the names of its weights in a file that every version reads."""
    wide: bool = False
    """Whether its activations leave float16's range: then it stays in float32."""

    def dtype(self, dtype: DTypeLike) -> np.dtype:
        """Its own, of parameters and computation, where `dtype` is asked for."""
        dtype = jnp.dtype(dtype)
        return jnp.dtype(jnp.float32) if self.wide and dtype == jnp.float16 else dtype


def find(
    path_or_id: str | pathlib.Path,
    components: Mapping[str, Component],
    kinds: Callable[[str], bool],
    refusal: str,
    revision: str | None = None,
) -> pathlib.Path:
    """The pipeline's folder, with all but the weights.

    Args:
        path_or_id: as for `hub.snapshot`.
        components: by the names of their folders.
        kinds: whether a pipeline of this class is one of the kind wanted.
        refusal: what another is not, and what to name instead.
        revision: branch, tag or commit of a repository.

    Raises:
        UserError: there is none, or it is a pipeline of another kind.
    """
    patterns = ["model_index.json", "config.json", "scheduler/*", "tokenizer/*"]
    patterns += [f"{name}/config.json" for name in components]
    folder = hub.snapshot(path_or_id, patterns, revision)
    kind, index = hub.kind(folder), folder / "model_index.json"
    usable = not kind or kinds(kind)
    if not usable or "unet" not in hub.read_json(index):
        where = index if index.is_file() else path_or_id
        raise UserError(f"{where}: {kind} is no {refusal}")
    return folder


def read_networks(
    folder: pathlib.Path, components: Mapping[str, Component], dtype: DTypeLike
) -> dict[str, Any]:
    """The networks that a pipeline's config files describe, without weights.

    Raises:
        UserError: a file is missing or damaged, or describes another network.
    """
    configs = {}
    for name, component in components.items():
        path = folder / name / "config.json"
        configs[name] = component.config.from_json(hub.read_json(path), str(path))
    return make_networks(configs, components, dtype)


def make_networks(
    configs: Mapping[str, Any],
    components: Mapping[str, Component],
    dtype: DTypeLike = jnp.float32,
) -> dict[str, Any]:
    """The networks of these configs."""
    return {
        name: component.network(configs[name], dtype=component.dtype(dtype))
        for name, component in components.items()
    }


def fetch_weights(
    folder: pathlib.Path,
    path_or_id: str | pathlib.Path,
    components: Mapping[str, Component],
    revision: str | None = None,
) -> dict[str, pathlib.Path]:
    """The file with each network's weights, as `hub.fetch_weights`."""
    stems = {name: [f"{name}/{c.stem}"] for name, c in components.items()}
    for name, component in components.items():
        if component.library == "transformers":  # so it names its `.bin` files
            stems[name].append(f"{name}/pytorch_model")
    return hub.fetch_weights(folder, path_or_id, stems, revision)


def read_params(
    component: Component,
    shapes: Any,
    file: pathlib.Path,
    dtype: DTypeLike,
    updates: Mapping[str, lora.Update] | None = None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """The parameters of a network, on the first device.

    Args:
        component: the network.
        shapes: of its parameters.
        file: with its weights.
        dtype: of the parameters.
        updates: of `lora.read`, for this network.
        scale: of the updates.

    Raises:
        UserError: the file or the updates do not fit the shapes.
    """
    weights = hub.open_weights(file)
    if updates:
        weights = lora.merged(weights, updates, scale, component.current_name)
    return torch_weights.from_torch(
        shapes,
        weights,
        str(file),
        component.current_name,
        component.dtype(dtype),
        torch_weights.on_device,
    )


def check_solver(solver: str | Solver) -> None:
    """Refuses the name of a sampler that there is not.

    Raises:
        UserError: it is one.
    """
    if isinstance(solver, str) and solver not in (known := ("auto", *_SOLVERS)):
        raise UserError(f"solver = {solver!r}: takes {' or '.join(known)}")


def solver_of(name: str, usual: str) -> Solver:
    """A sampler by its name, with settings of its own; "auto" is `usual`.

    Raises:
        UserError: there is none of the name.
    """
    check_solver(name)
    return _SOLVERS[usual if name == "auto" else name]()


def read_solver(folder: pathlib.Path, solver: str | Solver, usual: str) -> Solver:
    """A sampler with the settings of the pipeline's scheduler, or as it is given.

    Args:
        folder: of the pipeline.
        solver: the sampler, or its name; "auto" is "lcm" for a model whose own
            scheduler it is, and `usual` for others.
        usual: a name.

    Raises:
        UserError: the scheduler's file is missing, damaged or asks for what the sampler
            does not do.
    """
    if not isinstance(solver, str):
        return solver
    path = folder / "scheduler" / "scheduler_config.json"
    options = hub.read_json(path)
    if solver == "auto":
        solver = "lcm" if options.get("_class_name") == LCM.torch_class else usual
    return _SOLVERS[solver].from_json(options, str(path))


def load_tokenizer(folder: pathlib.Path) -> Any:
    """The pipeline's tokenizer.

    Raises:
        UserError: as `hub.load_tokenizer`; or none is named.
    """
    path = folder / "model_index.json"
    match hub.read_json(path).get("tokenizer"):
        case [_, str(name)]:
            return hub.load_tokenizer(folder / "tokenizer", name, path)
    raise UserError(f"{path}: names no tokenizer: download the model again")


def save(
    folder: pathlib.Path,
    index: Mapping[str, Any],
    components: Mapping[str, Component],
    configs: Mapping[str, Any],
    weights: Mapping[str, Mapping[str, np.ndarray]],
    solver: Solver,
    tokenizer: Any,
    dtype: DTypeLike | None,
) -> None:
    """Writes a pipeline; files that are there already are replaced.

    Args:
        folder: where to.
        index: what model_index.json says beside the parts.
        components: the networks' classes.
        configs: of each network.
        weights: likewise, as PyTorch names them.
        solver: its scheduler.
        tokenizer: of `transformers`.
        dtype: of the weights; None: as they are.
    """
    index = dict(index) | {
        "scheduler": ["diffusers", solver.torch_class],
        "tokenizer": ["transformers", _tokenizer_class(tokenizer)],
    }
    for name, component in components.items():
        index[name] = [component.library, configs[name].torch_class]
        named = {component.prefix + key: value for key, value in weights[name].items()}
        if dtype is not None:
            named = {key: value.astype(dtype) for key, value in named.items()}
        hub.write_weights(folder / name / f"{component.stem}.safetensors", named)
        artifacts.write_json(folder / name / "config.json", configs[name].to_json())
    artifacts.write_json(folder / "scheduler/scheduler_config.json", solver.to_json())
    tokenizer.save_pretrained(folder / "tokenizer")
    # Last: a folder with an index is a whole one.
    artifacts.write_json(folder / "model_index.json", index)


def weights_of(params: Any) -> dict[str, np.ndarray]:
    """The weights of a PyTorch checkpoint that hold a network's parameters."""
    return torch_weights.to_torch(jax.device_get(params))


def _tokenizer_class(tokenizer) -> str:
    name = type(tokenizer).__name__
    # Older versions know the general class under its older name alone.
    return "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name
