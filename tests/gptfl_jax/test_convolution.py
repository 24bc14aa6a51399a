"""Convolutions against `lax.conv`.

Everything is float64 unless a test is about another type.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from gptfl_jax import convolution, nn

FORMS = ("direct", "patches", "product", "row_split", "winograd", "winograd_strips")


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def values_and_gradients(form, arguments, inputs, kernel, cotangent):
    with convolution.form(form):
        outputs, pull = jax.vjp(lambda x, w: nn.conv(x, w, **arguments), inputs, kernel)
    return outputs, *pull(cotangent)


# batch, sizes, channels in and out, window, arguments of conv
GEOMETRIES = {
    "3x3": (2, (8, 8), 3, 4, (3, 3), {}),
    "odd sizes": (2, (9, 7), 3, 4, (3, 3), {}),
    "batch 1, valid": (1, (7, 14), 3, 4, (3, 3), dict(padding="VALID")),
    "padding beyond the window": (2, (5, 6), 3, 4, (3, 3), dict(padding=4)),
    "uneven padding": (2, (8, 8), 3, 4, (3, 3), dict(padding=((0, 3), (2, 1)))),
    "5x5": (2, (14, 14), 3, 4, (5, 5), {}),
    "5x5 uneven": (1, (9, 7), 2, 3, (5, 5), dict(padding=((0, 3), (2, 1)))),
    "one 5x5 window": (2, (5, 5), 2, 3, (5, 5), dict(padding="VALID")),
    "even window": (2, (8, 9), 3, 4, (4, 2), {}),
    "above only": (2, (8, 8), 2, 3, (4, 4), dict(padding=((5, 0), (0, 0)))),
    "1x1": (2, (3, 4), 3, 4, (1, 1), {}),
    "7x7": (1, (8, 8), 2, 2, (7, 7), {}),
    "stride 2": (1, (9, 8), 4, 6, (3, 3), dict(stride=2, padding=1)),
    "1x1 stride 2": (2, (9, 8), 4, 6, (1, 1), dict(stride=2, padding="VALID")),
    "stride (1, 3)": (2, (9, 8), 4, 6, (3, 3), dict(stride=(1, 3), groups=2)),
    "depthwise": (2, (9, 8), 4, 8, (3, 3), dict(groups=4)),
    "dilated": (2, (9, 10), 3, 4, (3, 3), dict(dilation=(1, 3))),
    "dilated, padded": (1, (9, 8), 2, 3, (2, 3), dict(dilation=2, padding=3)),
    "one axis": (2, (11,), 3, 4, (5,), {}),
    "one axis, uneven": (1, (10,), 3, 4, (3,), dict(padding=((0, 3),))),
    "three axes": (1, (5, 6, 4), 2, 3, (3, 2, 1), dict(stride=(1, 2, 1))),
    "negative padding": (2, (6, 6), 2, 2, (3, 3), dict(padding=((-1, 0), (0, 2)))),
    "no window fits": (2, (2, 2), 3, 4, (3, 3), dict(padding="VALID")),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_form_agrees_with_lax_conv(geometry):
    batch, sizes, channels, features, window, arguments = geometry
    groups = arguments.get("groups", 1)
    inputs = random(batch, *sizes, channels)
    kernel = random(*window, channels // groups, features, seed=1)
    out = jax.eval_shape(lambda x, w: nn.conv(x, w, **arguments), inputs, kernel)
    cotangent = random(*out.shape, seed=2)

    # Compiling is what takes time: one program for all forms, and fast, not well.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def all_forms(*operands):
        return {
            form: values_and_gradients(form, arguments, *operands)
            for form in ("lax", *FORMS)
        }

    results = all_forms(inputs, kernel, cotangent)
    for form in FORMS:
        for result, reference in zip(results[form], results["lax"], strict=True):
            np.testing.assert_allclose(result, reference, rtol=0, atol=2e-12)


@pytest.mark.parametrize(
    ("sizes", "window", "arguments"),
    [
        ((9, 8), (3, 3), dict(stride=(2, 1))),
        ((9, 8), (3, 2), dict(dilation=(1, 3), padding=((-1, 0), (0, 4)))),
        ((11,), (5,), dict(stride=2, padding="VALID")),
    ],
)
def test_shifts_agree_with_lax_conv(sizes, window, arguments):
    inputs, kernel = random(2, *sizes, 4), random(*window, 1, 4, seed=1)
    arguments = {**arguments, "groups": 4}
    shape = jax.eval_shape(lambda: nn.conv(inputs, kernel, **arguments)).shape
    cotangent = random(*shape, seed=2)
    with convolution.form("shifts"):
        jaxpr = str(jax.make_jaxpr(lambda x: nn.conv(x, kernel, **arguments))(inputs))
    assert "_shifts" in jaxpr
    result = values_and_gradients("shifts", arguments, inputs, kernel, cotangent)
    expected = values_and_gradients("lax", arguments, inputs, kernel, cotangent)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def chosen(*, sizes, channels, window=(3, 3), dtype=jnp.float32, precision=None, **kw):
    return convolution.choose(
        jnp.zeros((4, *sizes, channels[0] * kw.get("groups", 1)), dtype),
        jnp.zeros((*window, *channels), dtype),
        convolution.Geometry(
            convolution.each_axis(kw.get("stride", 1), len(sizes)),
            kw.get("padding", ((1, 1),) * len(sizes)),
            (1,) * len(sizes),
            kw.get("groups", 1),
        ),
        precision,
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice on a CPU")
def test_choice_on_a_cpu():
    wide, square = (128, 128), (16, 16)
    assert chosen(sizes=square, channels=wide) == "winograd"
    assert chosen(sizes=square, channels=wide, window=(5, 5)) == "winograd"
    highest = lax.Precision.HIGHEST
    assert chosen(sizes=square, channels=wide, precision=highest) == "row_split"
    with jax.default_matmul_precision("highest"):
        assert chosen(sizes=square, channels=wide) == "row_split"
    assert chosen(sizes=square, channels=(128, 16)) == "row_split"
    assert chosen(sizes=square, channels=wide, window=(7, 7)) == "row_split"
    # A single output a tile: nothing saved.
    assert chosen(sizes=(1, 1), channels=wide) == "row_split"
    assert chosen(sizes=square, channels=(3, 128)) == "patches"
    assert chosen(sizes=square, channels=(3, 64)) == "direct"
    assert chosen(sizes=square, channels=(1, 32)) == "direct"
    assert chosen(sizes=square, channels=(3, 32)) == "patches"
    assert chosen(sizes=square, channels=(3, 16), window=(7, 7)) == "direct"
    assert chosen(sizes=square, channels=(3, 128), window=(5, 5)) == "direct"
    assert chosen(sizes=square, channels=(3, 64), dtype=jnp.bfloat16) == "patches"
    with convolution.side_by_side():
        assert chosen(sizes=square, channels=(3, 64)) == "patches"
    assert chosen(sizes=square, channels=wide, stride=(2, 2)) == "patches"
    assert chosen(sizes=square, channels=wide, dtype=jnp.bfloat16) == "patches"
    assert chosen(sizes=(16,), channels=wide, window=(3,)) == "winograd"
    assert chosen(sizes=(16,), channels=wide, window=(7,)) == "patches"


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice on a CPU")
@pytest.mark.parametrize(
    ("sizes", "channels", "window", "options", "inside", "outside"),
    [
        # Of Stable Diffusion's UNet; a batch of 4.
        ((32, 32), (320, 320), (3, 3), {}, "winograd", "winograd_strips"),
        ((16, 16), (640, 640), (3, 3), {}, "winograd", "winograd_strips"),
        ((8, 8), (1280, 1280), (3, 3), {}, "winograd", "patches"),
        ((4, 4), (2560, 1280), (3, 3), {}, "winograd", "patches"),
        (
            (32, 32),
            (960, 320),
            (1, 1),
            {"padding": ((0, 0),) * 2},
            "row_split",
            "product",
        ),
        ((32, 32), (320, 320), (3, 3), {"stride": (2, 2)}, "patches", "lax"),
        ((8, 8), (1280, 1280), (3, 3), {"stride": (2, 2)}, "patches", "patches"),
        ((32, 32), (4, 320), (3, 3), {}, "patches", "lax"),
        ((32, 32), (320, 4), (3, 3), {}, "row_split", "lax"),
        # Of the autoencoder, in half precision, and of HiFi-GAN.
        ((256, 256), (128, 128), (3, 3), {}, "winograd", "winograd_strips"),
        ((256, 256), (128, 128), (3, 3), {"dtype": jnp.bfloat16}, "patches", "lax"),
        (
            *((3200,), (128, 128), (7,)),
            {"padding": ((3, 3),)},
            *("patches", "winograd_strips"),
        ),
        ((3200,), (64, 64), (7,), {"padding": ((3, 3),)}, "patches", "lax"),
        ((32,), (512, 512), (7,), {"padding": ((3, 3),)}, "patches", "patches"),
        ((32, 32), (320, 320), (3, 3), {"groups": 2}, "patches", "lax"),
        # Of MobileNetV2.
        ((32, 32), (192, 192), (3, 3), {"groups": 192}, "shifts", "lax"),
        ((32, 32), (192, 384), (3, 3), {"groups": 192}, "patches", "lax"),
        (
            *((32, 32), (192, 192), (3, 3)),
            {"groups": 192, "dtype": jnp.bfloat16},
            *("patches", "lax"),
        ),
    ],
)
def test_choice_by_place_and_shapes(sizes, channels, window, options, inside, outside):
    channels = channels[0] // options.get("groups", 1), channels[1]
    case = dict(sizes=sizes, channels=channels, window=window, **options)
    assert chosen(**case) == inside
    with convolution.outside_loops():
        assert chosen(**case) == outside
        with convolution.form("row_split"):
            assert chosen(sizes=(8, 8), channels=(32, 32)) == "row_split"
    assert chosen(**case) == inside


@pytest.mark.parametrize(("backend", "form"), [("gpu", "patches"), ("tpu", "lax")])
def test_choice_for_clients_side_by_side(monkeypatch, backend, form):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    case = dict(sizes=(32, 32), channels=(64, 64), window=(3, 3))
    depthwise = dict(sizes=(32, 32), channels=(1, 64), window=(3, 3), groups=64)
    assert chosen(**case) == chosen(**depthwise) == "lax"
    with convolution.side_by_side():
        assert chosen(**case) == form
        assert chosen(**depthwise) == ("shifts" if backend == "gpu" else "lax")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice on a CPU")
def test_a_compiled_function_follows_the_place():
    """One that was compiled before in another place is traced again."""
    places = []

    @jax.jit
    def function(x, kernel):
        places.append(convolution.places.is_outside.value)
        return nn.conv(x, kernel)

    x, kernel = random(4, 16, 16, 16), random(3, 3, 16, 16, seed=1)
    first = function(x, kernel)
    with convolution.outside_loops():
        second = function(x, kernel)
    function(x, kernel)
    assert places == [False, True]
    np.testing.assert_allclose(first, second, atol=1e-11)


@pytest.mark.parametrize(
    ("shape", "strips"),
    # Room for 16 tiles: whole examples, rows of one, or rows of one and padding.
    [((6, 8, 8), (3, 2)), ((2, 32, 16), (1, 4)), ((3, 44, 12), (1, 4))],
)
def test_winograd_in_strips_is_winograd(monkeypatch, shape, strips):
    inputs, kernel = random(*shape, 8), random(3, 3, 8, 12, seed=1)
    cotangent = random(*shape, 12, seed=2)
    whole = values_and_gradients("winograd", {}, inputs, kernel, cotangent)
    given = []
    split = convolution.strips._strips
    monkeypatch.setattr(convolution.strips, "_STRIP_BYTES", 16 * 36 * (8 + 12) * 8)
    monkeypatch.setattr(
        convolution.strips,
        "_strips",
        lambda *args: given.append(split(*args)) or given[-1],
    )
    with convolution.form("winograd_strips"):
        outputs = nn.conv(inputs, kernel)
    assert given == [strips]
    np.testing.assert_allclose(outputs, whole[0], rtol=0, atol=1e-12)
    again = values_and_gradients("winograd_strips", {}, inputs, kernel, cotangent)
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("length", "window", "dilation", "padding"),
    # A window of one part, and of several; strips that end with the outputs and do not.
    [(40, 3, 1, 1), (47, 7, 3, 9), (53, 11, 5, ((25, 20),)), (9, 4, 2, 3)],
)
def test_winograd_in_strips_on_one_axis(monkeypatch, length, window, dilation, padding):
    monkeypatch.setattr(convolution.strips, "_STRIP_BYTES", 1)
    inputs, kernel = random(2, length, 3), random(window, 3, 4, seed=1)
    options = dict(padding=padding, dilation=dilation)
    with convolution.form("lax"):
        expected = nn.conv(inputs, kernel, **options)
    with convolution.form("winograd_strips"):
        outputs, pull = jax.vjp(lambda x: nn.conv(x, kernel, **options), inputs)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-12)
    # The convolution is linear: <y, conv(x)> = <conv^T(y), x>.
    (gradient,) = pull(expected)
    np.testing.assert_allclose(
        jnp.vdot(gradient, inputs), jnp.vdot(expected, expected), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("sizes", "plus"),
    # The last strip of nine rows makes three again.
    [((9, 8), (2, 9, 8)), ((9, 8), (2, 1, 1)), ((23,), (2, 23)), ((8, 3), None)],
)
def test_what_strips_do_before_and_after_a_convolution(monkeypatch, sizes, plus):
    monkeypatch.setattr(convolution.strips, "_STRIP_BYTES", 1)
    inputs, kernel = random(2, *sizes, 4), random(*[3] * len(sizes), 4, 6, seed=1)
    weights = {"scale": random(4, seed=2), "bias": random(4, seed=3)}
    plus = None if plus is None else random(*plus, 6, seed=4)
    operands = inputs, kernel, weights, random(6, seed=5), plus

    def run(form, inputs, kernel, weights, bias, plus):
        norm = nn.GroupNorm(2, 0.1).bind({"params": weights})
        before = norm.then(inputs, jnp.tanh)
        with convolution.form(form):
            return nn.conv(inputs, kernel, bias=bias, before=before, plus=plus)

    @functools.partial(jax.jit, static_argnums=0)
    def values_and_gradients(form, cotangent):
        outputs, pull = jax.vjp(functools.partial(run, form), *operands)
        return run(form, *operands), outputs, pull(cotangent)

    results = [
        values_and_gradients(form, random(2, *sizes, 6, seed=6))
        for form in ("lax", "winograd_strips")
    ]
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(check, *results)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA holds on a CPU")
def test_strips_of_many_layers_hold_few_maps(monkeypatch):
    """And not the outputs of each, which do not depend on the inputs before they are
    written."""
    monkeypatch.setattr(convolution.strips, "_STRIP_BYTES", 1)
    x = jax.ShapeDtypeStruct((1, 64, 64, 32), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32)

    def layers(x, kernel):
        for _ in range(8):
            x = jnp.tanh(nn.conv(x, kernel))
        return x

    with convolution.form("winograd_strips"):
        lowered = jax.jit(layers).lower(x, kernel)
    options = {"xla_backend_optimization_level": 0}
    held = lowered.compile(options).memory_analysis().temp_size_in_bytes
    assert held < 4 * 64 * 64 * 32 * 4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice on a CPU")
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (
            {"sizes": (8, 8), "stride": (2, 2)},
            "which takes no stride (2, 2)",
        ),
        ({"sizes": (8, 8), "dtype": jnp.bfloat16}, "which takes no bfloat16"),
        ({"sizes": (8,), "window": (7,)}, "which takes no 1 spatial axes"),
        ({"sizes": (1, 8), "padding": ((0, 0),) * 2}, "no inputs smaller than the wi"),
    ],
)
def test_says_why_not_the_fast_form(caplog, case, reason):
    with caplog.at_level("INFO", "gptfl_jax.convolution"):
        assert chosen(channels=(32, 32), **case) == "patches"
    assert reason in caplog.text
    caplog.clear()
    assert chosen(sizes=(8, 8), channels=(32, 32)) == "winograd"
    assert chosen(sizes=(8, 8), channels=(3, 32), stride=(2, 2)) == "patches"
    assert not caplog.text


def test_other_backends_use_lax_conv(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chosen(sizes=(16, 16), channels=(128, 128)) == "lax"


@pytest.mark.parametrize(
    ("form", "window", "tolerance"),
    [
        ("direct", 3, 1.5e-6),
        ("row_split", 3, 1e-6),
        ("winograd", 3, 4e-6),
        ("row_split", 5, 1e-6),
        ("winograd", 5, 1.2e-5),
    ],
)
def test_float32_rounding(form, window, tolerance):
    """The errors that the module's docstring states, with room for chance."""
    inputs = jnp.maximum(random(2, 16, 16, 64), 0)
    kernel = random(window, window, 64, 32, seed=1) / window / 8
    cotangent = random(2, 16, 16, 32, seed=2)

    @jax.jit
    def both(*operands):
        single = [x.astype(jnp.float32) for x in operands]
        return (
            values_and_gradients("lax", {}, *operands),
            values_and_gradients(form, {}, *single),
        )

    exact, result = both(inputs, kernel, cotangent)
    for rounded, reference in zip(result, exact, strict=True):
        assert rounded.dtype == jnp.float32
        error = np.abs(rounded - reference).max() / np.abs(reference).max()
        assert error < tolerance


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA makes on a CPU")
def test_direct_stays_what_xla_runs_fast_in_a_loop():
    """With the channels last: those turned otherwise took 3 to 70 times as long."""
    operands = [random(*s).astype(jnp.float32) for s in ((8, 28, 28, 3), (5, 5, 3, 64))]

    def step(_, operands):
        with convolution.form("direct"):
            gradients = jax.grad(lambda x, w: jnp.sum(nn.conv(x, w) ** 2), (0, 1))(
                *operands
            )
        return [x - 0.1 * g for x, g in zip(operands, gradients, strict=True)]

    loop = jax.jit(lambda *operands: lax.fori_loop(0, 3, step, list(operands)))
    text = loop.lower(*operands).compile().as_text()
    labels = re.findall(r"convolution\(.*dim_labels=([^,\s]+)", text)
    assert labels == ["b01f_01io->b01f"] * 3


@pytest.mark.parametrize("batch", [6, 7])
def test_large_batches_are_split_by_rows_in_blocks(monkeypatch, batch):
    """Of three rows, or of all where nothing divides them."""
    inputs, kernel = random(batch, 5, 6, 2), random(3, 3, 2, 3, seed=1)
    cotangent = random(batch, 5, 6, 3, seed=2)
    monkeypatch.setattr(convolution.row_split, "_BLOCK_BYTES", 3 * inputs[0].nbytes)
    run = functools.partial(values_and_gradients, "row_split", {})
    jaxpr = jax.make_jaxpr(run)(inputs, kernel, cotangent)
    assert ("length=2" in str(jaxpr)) == (batch == 6)
    results = run(inputs, kernel, cotangent)
    known = values_and_gradients("lax", {}, inputs, kernel, cotangent)
    for result, reference in zip(results, known, strict=True):
        np.testing.assert_allclose(result, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_loops_lanes_and_compilation(form):
    """Weights of their own for every lane, in a loop, as clients train."""
    inputs, kernels = random(3, 2, 6, 6, 2), random(3, 3, 3, 2, 2, seed=1) / 4

    def train(form):
        def client(x, kernel):
            def step(_, kernel):
                def loss(kernel):
                    with convolution.form(form):
                        return jnp.sum(jnp.tanh(nn.conv(x, kernel)))

                return kernel - 0.01 * jax.grad(loss)(kernel)

            return lax.fori_loop(0, 3, step, kernel)

        return jax.jit(jax.vmap(client))

    expected = train("lax")(inputs, kernels)
    np.testing.assert_allclose(train(form)(inputs, kernels), expected, atol=1e-13)
    mesh = jax.make_mesh((1,), ("clients",), (jax.sharding.AxisType.Auto,))
    lanes = jax.shard_map(
        train(form), mesh=mesh, in_specs=(P("clients"),) * 2, out_specs=P("clients")
    )
    np.testing.assert_allclose(lanes(inputs, kernels), expected, atol=1e-13)


def test_half_precision_runs_and_keeps_its_type():
    inputs, kernel = random(1, 6, 6, 4), random(3, 3, 4, 2, seed=1)
    exact = nn.conv(inputs, kernel)
    for dtype, tolerance in ((jnp.bfloat16, 0.1), (jnp.float16, 0.02)):
        result = nn.conv(inputs.astype(dtype), kernel.astype(dtype))
        assert result.dtype == dtype
        np.testing.assert_allclose(result.astype(float), exact, atol=tolerance)


def test_shapes_that_do_not_fit_are_refused():
    x = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match="2 window axes"):
        nn.conv(x, jnp.zeros((3, 3, 4)))
    with pytest.raises(ValueError, match="3 input channels"):
        nn.conv(x, jnp.zeros((3, 3, 4, 2)))
    with pytest.raises(ValueError, match="each of 2 axes"):
        nn.conv(x, jnp.zeros((3, 3, 3, 2)), stride=(1, 1, 1))
    with pytest.raises(ValueError, match="SAME, VALID"):
        nn.conv(x, jnp.zeros((3, 3, 3, 2)), padding="same")
    with pytest.raises(ValueError, match="cast one"):
        nn.conv(x, jnp.zeros((3, 3, 3, 2), jnp.float32))
    with (
        pytest.raises(ValueError, match="takes one of lax"),
        convolution.form("fft"),
    ):
        pass
