"""A real step at full size, with random weights: its time and its memory.

    python -m benchmarks.full_size unet
    python -m benchmarks.full_size resnet50

`unet` is a guided step of Stable Diffusion 2.1 for one picture of 768 pixels in
bfloat16 (`--dtype=float32` for float32). `resnet50` is a federated round of one client
with three batches of 32 pictures of 224 pixels. A JSON object a line is printed.
"""

import argparse
import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptfl_jax import models, training
from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion.solvers import DPMSolver
from gptfl_jax.generators.pictures import sampling, stable_diffusion


def random(shapes):
    """Arrays of these shapes: small numbers, drawn by numpy a leaf at a time."""
    generator = np.random.default_rng(0)

    def draw(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            values = generator.random(leaf.shape, np.float32) * 0.02 - 0.01
            return jnp.asarray(values, leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(draw, shapes)


def unet(dtype: str):
    """(program, its arguments, floating-point operations)."""
    networks = stable_diffusion.networks_of("stable-diffusion-2-1", dtype)
    lowered = sampling.lower(
        networks,
        networks.latent_shape(),
        placement.mesh(),
        batch=1,
        num_steps=50,
        guided=True,
        solver=DPMSolver(),
    )
    program = lowered.programs["a step"]
    arguments, _ = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.args_info
    )
    return program, random(arguments), lowered.flops["steps"][0]


def resnet50(dtype: str):
    """The same of a round."""
    example = jax.ShapeDtypeStruct((224, 224, 3), jnp.uint8)
    learner = training.make_learner(
        models.create("resnet_imagenet", 100, depth=50), example, dtype=dtype
    )
    local = LocalTraining(optax.sgd(0.1), batch_size=32)
    algorithm = algorithms.fedavg(learner, local)
    rows = 96
    generator = np.random.default_rng(0)
    data = FederatedData(
        jnp.asarray(generator.integers(0, 255, (rows, 224, 224, 3), np.uint8)),
        jnp.asarray(generator.integers(0, 100, rows, np.int32)),
        jnp.asarray([0, rows], jnp.int32),
    )
    variables = learner.init(jax.random.key(0))
    state = algorithm.init(variables, 1)
    lowered = algorithm.lower(variables, data, 1).programs["a round"]
    cohort, key = jnp.zeros(1, jnp.int32), jax.random.key(1)
    arguments = state, (), data, cohort, key, None  # the optimizer has its rate
    gradient, _ = training.operations(learner, variables, example, 32)
    return lowered, arguments, 3 * gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("unet", "resnet50"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--times", type=int, default=2)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 1)
    make = {"unet": unet, "resnet50": resnet50}[options.what]
    start = time.perf_counter()
    lowered, arguments, flops = make(options.dtype)
    made = time.perf_counter()
    compiled = lowered.compile()
    ready = time.perf_counter()
    seconds = []
    for _ in range(options.times):
        # The last argument may be overwritten.
        last = jax.block_until_ready(jax.tree.map(jnp.copy, arguments[-1]))
        begun = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments[:-1], last))
        seconds.append(time.perf_counter() - begun)
        del result
    stats = compiled.memory_analysis()
    print(
        json.dumps(
            {
                "what": options.what,
                "dtype": options.dtype,
                "made_s": made - start,
                "compiled_s": ready - made,
                "seconds": seconds,
                "flops": flops,
                "xla_arguments": stats.argument_size_in_bytes,
                "xla_beside": stats.temp_size_in_bytes + stats.output_size_in_bytes,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
