"""Prints what is exported at full size for accelerators: see test_full_size.py.

No array of that size is made: eight devices of a CPU and shapes are enough.
"""

import collections
import json
import os
import re
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from gptfl_jax import models, planning, training
from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import algorithms
from gptfl_jax.fl.execution import clients_mesh
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.generators.diffusion import sampling as diffusion
from gptfl_jax.generators.diffusion.solvers import DPMSolver
from gptfl_jax.generators.pictures import sampling, stable_diffusion


class Noted:
    """A compiled function that notes what it is lowered for."""

    def __init__(self, function):
        self.function = function
        self.arguments = None

    def lower(self, *arguments):
        self.arguments = arguments
        return self.function.lower(*arguments)


def stable_diffusion_2_1():
    """The sampling of 16 pictures of 768 pixels in 50 guided steps, and its sizes."""
    networks = stable_diffusion.networks_of("stable-diffusion-2-1", "bfloat16")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    programs_of, noted = diffusion.programs_of, []

    def note(*arguments):
        programs = programs_of(*arguments)
        noted.append(Noted(programs.whole))
        return programs._replace(whole=noted[0])

    with mock.patch.object(diffusion, "programs_of", note):
        lowered = sampling.lower(
            networks,
            networks.latent_shape(),
            mesh,
            batch=16,
            num_steps=50,
            guided=True,
            solver=DPMSolver(),
        )
    decoder = {
        name: lowered.params["vae"][name] for name in ("decoder", "post_quant_conv")
    }
    sizes = {
        "convolutions": kernels((lowered.params["unet"], decoder)),
        "flops": lowered.flops,
    }
    return noted[0].function, noted[0].arguments, sizes


def resnet_50():
    """A round of 16 clients with pictures of 224 pixels, two a device, and sizes."""
    mesh = clients_mesh()
    example = jax.ShapeDtypeStruct((224, 224, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((), jnp.int32)
    model = models.create("resnet_imagenet", 100, depth=50)
    learner = training.make_learner(model, example, dtype="bfloat16")
    algorithm = algorithms.fedavg(
        learner,
        LocalTraining(optax.sgd(0.1), batch_size=32, drop_last=True),
        mesh=mesh,
        collectives=True,
        lanes=2,
    )
    key = jax.eval_shape(jax.random.key, 0)
    data = FederatedData(
        *planning.rows((example, label), 10_000, mesh), planning.rows(label, 101, mesh)
    )
    lowered = algorithm.lower(jax.eval_shape(learner.init, key), data, 16)
    variables = lowered.state.variables
    arguments = lowered.state, data, jax.ShapeDtypeStruct((16,), jnp.int32), key
    sizes = {
        "convolutions": kernels(variables["params"]),
        "flops": training.operations(learner, variables, example, 32),
        "leaves": len(jax.tree.leaves(variables)),
        "bytes_up": lowered.bytes_up,
    }
    return jax.jit(algorithm.round), arguments, sizes


def kernels(params) -> int:
    """How many weights are of convolutions."""
    return sum(leaf.ndim == 4 for leaf in jax.tree.leaves(params))


def exported(function, arguments, platform: str) -> dict:
    """What the exported program consists of."""
    result = jax.export.export(function, platforms=(platform,))(*arguments)
    text = result.mlir_module()
    shapes = re.findall(r"stablehlo\.convolution.*-> tensor<([^>]+)>", text)
    # What a device runs is the body of one computation, indented by six; what it runs
    # in a loop is indented by more, or in a function of its own.
    functions = text.split("\n  func.func ")
    (once,) = (each for each in functions if "sdy.manual_computation" in each)
    sums = re.findall(r'^ {6}%\S+ = "stablehlo\.all_reduce"', once, re.MULTILINE)
    added = re.findall(
        r'"stablehlo\.all_reduce".*?\}\) : \(tensor<(?:\d+x)*(\w+)>\) -> tensor',
        text,
        re.DOTALL,
    )
    products = re.findall(r"stablehlo\.dot_general.*-> tensor<([^>]+)>", text)
    return {
        "devices": result.nr_devices,
        "platforms": result.platforms,
        "operations": collections.Counter(re.findall(r"stablehlo\.(\w+)", text)),
        "custom calls": sorted(set(re.findall(r"custom_call @(\w+)", text))),
        "types": sorted({shape.rpartition("x")[2] for shape in shapes}),
        "products": sorted(set(products)),
        "sums": text.count('"stablehlo.all_reduce"'),
        "sums that run once": len(sums),
        "types of sums": sorted(set(added)),
    }


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    jax.config.update("jax_num_cpu_devices", 8)
    make = {"sampling": stable_diffusion_2_1, "round": resnet_50}[sys.argv[1]]
    # What is decided by the backend while tracing is decided as on a GPU.
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
        function, arguments, found = make()
        for platform in ("cuda", "tpu"):
            found[platform] = exported(function, arguments, platform)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
