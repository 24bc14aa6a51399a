"""Set-up shared by all tests."""

import gc
import os
import pathlib
import shutil
import tempfile

import jax
import pytest

QUICK_COMPILATION = " ".join(
    (
        # The older code generator, which JAX 0.11 has no more.
        *(["--xla_cpu_use_fusion_emitters=false"] * (jax.__version_info__ < (0, 11))),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_disable_hlo_passes=cpu-parallel-task-assigner,constant_folding,"
        "tree_reduction_rewriter,while-loop-constant-sinking,"
        "while-loop-invariant-code-motion",
    )
)


def pytest_configure(config: pytest.Config) -> None:
    # Workers and the programs that tests start compile many of the same functions: let
    # them share what they compile during this one run.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="gptfl-jax-tests-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    if "GPTFL_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="gptfl-jax-tests-")
        os.environ["GPTFL_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    # The many small programs of these tests take longer to compile than to run: XLA's
    # older code generator, optimising little, in one thread a worker, without passes
    # that only make programs faster. `make long` and `make parity` run what users run.
    markers, paths = config.option.markexpr, " ".join(config.args)
    if markers == "not long" and "parity" not in paths:
        of_user = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{QUICK_COMPILATION} {of_user}"
    os.environ.setdefault("MPLBACKEND", "agg")
    # Stages that tests call would otherwise make a device of every core. Programs that
    # tests start are not told.
    jax.config.update("jax_num_cpu_devices", 1)


def pytest_collection_finish() -> None:
    # What is imported stays: the collector need not walk it again and again while JAX
    # makes its many small objects.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the checkout."""
    return pathlib.Path(__file__).parent.parent


@pytest.fixture
def told():
    """An event: set, the process was told to stop, as if by Ctrl-C."""
    from gptfl_jax import interruption  # once the types are checked

    yield interruption._state.told
    interruption._state.told.clear()


@pytest.fixture
def web_server():
    """A web server on this machine, whose files the test makes up."""
    from .web_server import WebServer

    server = WebServer()
    yield server
    server.close()
