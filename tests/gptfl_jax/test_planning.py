import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax import convolution, planning


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_flops_of_products_and_of_loops():
    a, b = shape(8, 16), shape(16, 4)
    assert planning.flops(jnp.matmul, a, b) == 2 * 8 * 16 * 4

    def loops(x, y):
        def inner(carry, _):
            return jax.lax.map(lambda row: row @ y, x).sum() + carry, None

        return jax.lax.scan(jax.jit(inner), 0.0, length=5)[0]

    once = 2 * 16 * 4 * 8  # of all rows
    assert planning.flops(loops, a, b) == pytest.approx(5 * once, rel=0.05)


def test_flops_of_a_convolution_are_those_of_its_direct_form():
    def conv(inputs, kernel):
        return convolution.conv(inputs, kernel, padding="VALID")

    inputs, kernel = shape(2, 18, 18, 8), shape(3, 3, 8, 16)
    assert planning.flops(conv, inputs, kernel) == 2 * 2 * 16 * 16 * 9 * 8 * 16


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (42.4, "42.4"),
        (999, "999"),
        (999.6, "1.00 k"),
        (865_910_724, "866 M"),
        (3.4636e9, "3.46 G"),
        (12_345e15, "12.3 E"),
    ],
)
def test_amount(number, text):
    assert planning.amount(number) == text
    assert planning.amount(2048, "B") == "2.05 kB"


def make_plan():
    double = jax.jit(lambda x: jnp.concatenate([x, x]))
    return planning.Plan(
        "a run",
        [("data", "many " * 40), ("model", "https://" + "x" * 40)],
        resident=[
            planning.Resident("weights", {"w": shape(250)}, copies=2),
            planning.Resident("pictures", shape(3000, dtype=jnp.uint8), "fewer pixels"),
        ],
        programs=[planning.Program("a step", double.lower(shape(500)), "fewer rows")],
        work=[planning.Work("step", 1e9, 50), planning.Work("test", 2e9, 5)],
    )


def test_memory_is_what_is_resident_and_the_largest_program():
    found = planning.memory(make_plan())
    assert found.resident == (("weights", 2000), ("pictures", 3000))
    ((name, size),) = found.programs
    assert name == "a step" and 4000 <= size < 8000  # its output, and perhaps more
    assert found.needed == 5000 + size


def test_table_is_narrow_and_says_what_to_lower(monkeypatch):
    lines = planning.table(make_plan()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "It fits: at most 1% of what there is." in lines
    (total,) = (line.split() for line in lines if "the run" in line)
    assert total[-2:] == ["60.0", "G"]
    monkeypatch.setattr(planning, "device_memory", lambda: 6000)
    text = planning.table(make_plan())
    assert "IT DOES NOT FIT" in text
    assert "pictures, 3.00 kB: fewer pixels" in text and ": fewer rows" in text


def test_rows_and_what_each_device_holds():
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    example = shape(4, dtype=jnp.uint8), shape()
    inputs, labels = planning.rows(example, 10, mesh, "data")
    assert (inputs.shape, labels.shape) == ((10, 4), (10,))
    assert planning.bytes_on_device((inputs, labels)) == 10 * 4 + 10 * 4
    assert planning.parameters({"a": shape(3, 5), "b": np.zeros(2)}) == 17
