"""What a run would take, before it is started: memory, operations, steps.

A `Plan` holds the programs that a run compiles, lowered for the shapes of its arrays;
no array of that size is made. XLA compiles them and says what memory they need beside
what lies on the devices all the time. A program says what else is worth knowing in
`facts`, and prints `table(plan)`.

Operations are counted by XLA's cost analysis, in the direct form of convolutions: the
figure is that of the model on any backend.
"""

import math
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.stages
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from gptfl_jax import convolution, devices

EVERYWHERE = PartitionSpec()

_WIDTH = 80
_LABEL = 16


class Resident(NamedTuple):
    """Arrays that lie on the devices during the whole run."""

    name: str
    arrays: PyTree[jax.ShapeDtypeStruct]
    """As `shapes` gives them."""
    remedy: str = ""
    """What makes it smaller, as "lower config.train.batch_size"."""
    copies: int = 1
    """How many of them there are at once."""
    in_place: bool = False
    """Whether the CPU devices of a process use one copy, which came from the host."""


class Program(NamedTuple):
    """A compiled program of the run."""

    name: str
    lowered: jax.stages.Lowered
    remedy: str = ""


class Work(NamedTuple):
    """What a run does again and again."""

    name: str
    flops: int | float
    """Of one time."""
    times: int | float


class Plan(NamedTuple):
    """A run that has not been started."""

    title: str
    facts: Sequence[tuple[str, str]]
    """What is said about it: (label, text)."""
    resident: Sequence[Resident] = ()
    programs: Sequence[Program] = ()
    work: Sequence[Work] = ()


class Memory(NamedTuple):
    """Bytes of arrays on each device of this process; of CPU devices, on all."""

    resident: tuple[tuple[str, int], ...]
    programs: tuple[tuple[str, int], ...]
    """Beside what is resident, while the program runs."""
    there_is: int | None
    """None: the device does not say."""

    @property
    def needed(self) -> int:
        """Of the largest program, with what is resident."""
        most = max((size for _, size in self.programs), default=0)
        return sum(size for _, size in self.resident) + most


def shapes(
    tree: PyTree, mesh: Mesh | None = None, spec: PartitionSpec = EVERYWHERE
) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes of arrays that lie on a mesh; None: on one device."""
    sharding = None if mesh is None else NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def rows(
    example: PyTree, count: int, mesh: Mesh | None = None, split: str | None = None
) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes of `count` examples.

    Args:
        example: shape and type of one, as `training.example_of` gives it.
        count: how many.
        mesh: where they lie.
        split: the mesh's axis that they are split over, filled up to a multiple of the
            devices; None: each device has all of them.
    """
    if mesh is not None and split:
        count = math.ceil(count / mesh.size) * mesh.size
    spec = PartitionSpec(split) if split else EVERYWHERE
    of_all = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), example
    )
    return shapes(of_all, mesh, spec)


def flops(function: Callable[..., Any], *arguments: PyTree) -> float:
    """Floating-point operations of a function of arrays like these.

    A loop counts as often as it runs, where that is known; else once.
    """
    with convolution.form("lax"):
        # A function of its own: what was traced in another form is not taken.
        traced = jax.make_jaxpr(lambda *xs: function(*xs))(*shapes(arguments))
        return _flops(traced)


def _flops(jaxpr: core.ClosedJaxpr) -> float:
    total = _counted_by_xla(jaxpr)
    for scan in _scans(jaxpr.jaxpr):
        body = scan.params["jaxpr"]
        # XLA counts the body once, and so all the loops in it.
        total += scan.params["length"] * _flops(body) - _counted_by_xla(body)
    return total


def _counted_by_xla(jaxpr: core.ClosedJaxpr) -> float:
    lowered = jax.jit(core.jaxpr_as_fun(jaxpr)).lower(*jaxpr.in_avals)
    return float((lowered.cost_analysis() or {}).get("flops", 0))


def _scans(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The outermost scans."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
            continue
        for leaf in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, core.ClosedJaxpr)
        ):
            if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr):
                yield from _scans(getattr(leaf, "jaxpr", leaf))


def total_flops(plan: Plan) -> float:
    """Floating-point operations of a whole run."""
    return float(sum(each.flops * each.times for each in plan.work))


def parameters(tree: PyTree) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def bytes_on_device(tree: PyTree[jax.ShapeDtypeStruct]) -> int:
    """What arrays of these shapes take on each device that holds a part of them."""
    total = 0
    for x in jax.tree.leaves(tree):
        sharding = getattr(x, "sharding", None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        total += math.prod(shape) * x.dtype.itemsize
    return total


def memory(plan: Plan) -> Memory:
    """Compiles the programs and adds up what the run holds."""
    resident = tuple(
        (each.name, each.copies * _held(each.arrays, each.in_place))
        for each in plan.resident
    )
    programs = []
    for program in plan.programs:
        compiled = program.lowered.compile()
        stats = compiled.memory_analysis()
        if stats is None:
            continue
        size = (
            stats.temp_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
            + stats.generated_code_size_in_bytes
        )
        if jax.default_backend() == "cpu":
            size *= _devices_of(compiled)
        programs.append((program.name, size))
    return Memory(resident, tuple(programs), device_memory())


def _held(tree: PyTree[jax.ShapeDtypeStruct], in_place: bool) -> int:
    """On one device, or of a CPU's devices on all of them."""
    if jax.default_backend() != "cpu":
        return bytes_on_device(tree)
    total = 0
    for x in jax.tree.leaves(tree):
        of_one = in_place and x.sharding is not None and x.sharding.is_fully_replicated
        alone = x.sharding is None or of_one
        copies = 1 if alone else len(x.sharding.addressable_devices)
        total += copies * bytes_on_device(x)
    return total


def _devices_of(compiled: jax.stages.Compiled) -> int:
    """Of this process, those that run a program."""
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    return max((len(each.addressable_devices) for each in shardings), default=1)


def device_memory() -> int | None:
    """Bytes of one device, of a CPU those of the machine; None: it does not say."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform == "cpu":
        return devices.machine_memory()
    return None


def table(plan: Plan) -> str:
    """The plan as text, at most 80 columns wide; compiles its programs."""
    start = time.perf_counter()
    of_run = memory(plan) if plan.programs or plan.resident else None
    seconds = time.perf_counter() - start
    lines = [f"dry run of {plan.title}: nothing is written", ""]
    facts = [*plan.facts]
    if plan.programs or plan.resident:
        facts.insert(0, ("devices", _devices()))
    for label, text in facts:
        lines += _entry(label, text)
    if plan.work:
        lines += ["", _row("operations", "FLOPs", "times", "in all")]
        total = 0.0
        for each in plan.work:
            in_all = each.flops * each.times
            total += in_all
            cells = amount(each.flops), f"{each.times:,.0f}", amount(in_all)
            lines.append(_row(f"  {each.name}", *cells))
        if len(plan.work) > 1:
            lines.append(_row("  the run", "", "", amount(total)))
    if of_run is not None:
        lines += ["", *_memory_lines(plan, of_run, seconds)]
    return "\n".join(lines)


def _devices() -> str:
    all_devices = jax.devices()
    kind = all_devices[0].device_kind
    kind = kind.upper() if kind.lower() == all_devices[0].platform else kind
    text = f"{len(all_devices)} x {kind}"
    if jax.process_count() > 1:
        text += f" in {jax.process_count()} processes"
    return text


def _memory_lines(plan: Plan, of_run: Memory, seconds: float) -> list[str]:
    on_cpu = jax.default_backend() == "cpu"
    where = "of the machine" if on_cpu else "of a device"
    lines = [_row(f"memory {where}", "bytes")]
    for name, size in of_run.resident:
        lines.append(_row(f"  {name}", amount(size, "B")))
    if of_run.programs:
        lines.append("  beside these, one at a time")
    for name, size in of_run.programs:
        lines.append(_row(f"    {name}", amount(size, "B")))
    lines.append(_row("  needed at most", amount(of_run.needed, "B")))
    if of_run.there_is is not None:
        lines.append(_row("  there are", amount(of_run.there_is, "B")))
    lines.append("")
    if plan.programs:
        lines += _sentence(f"Compiled in {seconds:.0f} s.")
    if of_run.there_is is None:
        lines += _sentence("The device does not say what it has.")
    elif of_run.needed <= of_run.there_is:
        share = max(of_run.needed / of_run.there_is, 0.01)
        lines += _sentence(f"It fits: at most {share:.0%} of what there is.")
        return lines
    else:
        lines += _sentence("IT DOES NOT FIT.")
    sizes = dict((*of_run.resident, *of_run.programs))
    parts = sorted((*plan.resident, *plan.programs), key=lambda x: -sizes[x.name])
    for part in parts:
        if part.remedy and sizes[part.name] > of_run.needed / 10:
            size = amount(sizes[part.name], "B")
            lines += _sentence(f"{part.name}, {size}: {part.remedy}")
    return lines


def _entry(label: str, text: str) -> list[str]:
    wrapped = _wrapped(text, _WIDTH - _LABEL) or [""]
    labels = [label, *[""] * (len(wrapped) - 1)]
    return [f"{name:<{_LABEL}}{line}" for name, line in zip(labels, wrapped)]  # noqa: B905


def _sentence(text: str) -> list[str]:
    return _wrapped(text, _WIDTH)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _row(name: str, *cells: str) -> str:
    return f"{name:<40}" + "".join(f"{cell:>12}" for cell in cells)


def amount(number: int | float, unit: str = "") -> str:
    """A number in three digits: 866 M, 1.66 T, 3.46 GB."""
    number, prefixes = float(number), ["", "k", "M", "G", "T", "P", "E", "Z"]
    while abs(number) >= 999.5 and len(prefixes) > 1:
        number /= 1000
        prefixes.pop(0)
    digits = 2 - int(math.log10(abs(number))) if abs(number) >= 1 else 2
    whole = not prefixes[0] and number == int(number)
    text = f"{number:.0f}" if whole else f"{number:.{max(digits, 0)}f}"
    return f"{text} {prefixes[0]}{unit}".rstrip()
