"""The form "winograd_strips": a few rows of the outputs at a time, outside of loops."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from gptfl_jax.convolution.before import with_added
from gptfl_jax.convolution.geometry import dense_obstacle, pad
from gptfl_jax.convolution.unfolded import patches
from gptfl_jax.convolution.winograd import (
    axis_transform,
    of_two_axes,
    parts_of_window,
    rounds_as_usual,
    winograd,
    winograd_obstacle,
    winograd_pays,
    winograd_products,
    winograd_weights,
)

# Outside of loops, from so many numbers a window of one axis on winograd pays.
_LONG_WINDOW = 768

# What a strip of winograd's holds at least, in bytes; more where the weights, which are
# read for each strip, are more themselves.
_STRIP_BYTES = 16 * 2**20


def strips_obstacle(inputs, kernel, geometry) -> str:
    """The same for strips, which take dilated windows on one axis as well."""
    if kernel.ndim == 4:
        return winograd_obstacle(inputs, kernel, geometry)
    if kernel.ndim != 3 or kernel.shape[0] < 3:
        return f"window {kernel.shape[:-2]}"
    return dense_obstacle(inputs, kernel, geometry)


def strips_pay(inputs, kernel, geometry, precision) -> bool:
    """Whether it applies, and is faster than the forms without a transform."""
    if kernel.ndim != 3:
        return winograd_pays(inputs, kernel, geometry, precision)
    # On one axis half of the multiplications are saved; with few of them, hardly time,
    # and a loop takes longer to compile, and more memory, than "lax".
    if strips_obstacle(inputs, kernel, geometry) or not rounds_as_usual(precision):
        return False
    return kernel.shape[0] * min(kernel.shape[1:]) >= _LONG_WINDOW


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def winograd_strips(inputs, kernel, bias, before, plus, geometry, precision):
    """The form, with what goes before it and is added after it."""
    if inputs.ndim == 4:
        return _strips_of_rows(inputs, kernel, bias, before, plus, geometry, precision)
    geometry = of_two_axes(geometry)
    plus = None if plus is None else plus[:, :, None]
    operands = inputs[:, :, None], kernel[:, None], bias, before, plus
    return _strips_of_rows(*operands, geometry, precision)[:, :, 0]


def _strips_forward(inputs, kernel, bias, before, plus, geometry, precision):
    form = patches if winograd_obstacle(inputs, kernel, geometry) else winograd

    def plainly(inputs, kernel, bias, before, plus):
        if before is not None:
            inputs = before(inputs)
        return with_added(form(inputs, kernel, geometry, precision), bias, plus)

    return jax.vjp(plainly, inputs, kernel, bias, before, plus)


def _strips_backward(geometry, precision, pull, gradient):
    return pull(gradient)


winograd_strips.defvjp(_strips_forward, _strips_backward)


def _strips_of_rows(inputs, kernel, bias, before, plus, geometry, precision):
    down, along = transforms = [axis_transform(r) for r in kernel.shape[:2]]
    parts = parts_of_window(kernel.shape[0], down)
    batch, height, width, channels = inputs.shape
    features = kernel.shape[-1]
    sizes = geometry.out_sizes((height, width), kernel.shape[:2])
    # Rows that a dilated window sees are `apart`; those between stand beside them.
    apart = geometry.dilation[0]
    step = down.m * apart
    tiles = [-(-sizes[0] // step), -(-sizes[1] // along.m)]
    products, itemsize = down.n * along.n, inputs.dtype.itemsize
    row = products * tiles[1] * apart * (channels + parts * features) * itemsize
    weight_bytes = products * channels * parts * features * itemsize
    at_once = max(_STRIP_BYTES, weight_bytes) // row
    examples, rows = _strips(batch, tiles[0], at_once)
    # Always 0, but known only with the inputs: XLA would transform the weights of a
    # whole network at its start, and hold four times their memory to its end; and make
    # room for the outputs of all layers.
    zero = jnp.where(inputs[0, 0, 0, 0] > jnp.inf, 1, 0).astype(kernel.dtype)
    weights = winograd_weights(kernel, transforms, 1 - zero)
    strips = -(-tiles[0] // rows)
    made = min(rows * step, sizes[0])
    (top, _), (left, _) = geometry.padding
    tall = ((rows + parts - 1) * down.m + down.r - 1) * apart
    read = min(tall, height)
    # Each strip is padded by itself: a padded copy of the inputs would be large.
    below = max(0, sizes[0] - made + tall - top - height)
    wide = tiles[1] * along.m + along.r - 1
    edges = {1: (top, below), 2: (left, wide - left - width)}
    numbers = None if before is None else before.numbers(inputs)

    def strip(number):
        """Some rows of outputs, and where they begin."""
        example, place = lax.div(number, strips), lax.rem(number, strips)
        # The last strip of an example begins where whole tiles end with it.
        first = jnp.minimum(place * (rows * step), sizes[0] - made)
        start = first - top
        inside = jnp.clip(start, 0, height - read)
        begin = (example * examples, inside, 0, 0)
        part = lax.dynamic_slice(inputs, begin, (examples, read, width, channels))
        if before is not None:
            part = before.part(
                part, jax.tree.map(functools.partial(of, begin), numbers)
            )
        part = pad(part, edges)
        part = lax.dynamic_slice_in_dim(part, start - inside + top, tall, 1)
        part = part.reshape(examples, tall // apart, apart * wide, channels)
        y = winograd_products(part, weights, transforms, precision, parts)[0]
        y = y.reshape(examples, rows * step, -1, features)[:, :made, : sizes[1]]
        return with_added(y, bias, None), place, (example * examples, first, 0, 0)

    def of(begin, array):
        """What `array` holds for a strip that begins there."""
        sizes = examples, made, *array.shape[2:]
        sizes = [min(size, most) for size, most in zip(array.shape, sizes, strict=True)]
        whole = [size == most for size, most in zip(array.shape, sizes, strict=True)]
        begin = [0 if w else b for w, b in zip(whole, begin, strict=True)]
        return lax.dynamic_slice(array, begin, sizes)

    def add(number, outputs):
        """Adds a strip in the place of what it is added to."""
        y, place, begin = strip(number)
        there = lax.dynamic_slice(outputs, begin, y.shape)
        if strips * rows * step > sizes[0] > made:
            row = jnp.arange(made)[:, None, None]
            y = jnp.where(row + begin[1] < place * (rows * step), 0, y)
        return lax.dynamic_update_slice(outputs, there + y, begin)

    def write(number, outputs):
        y, _, begin = strip(number)
        return lax.dynamic_update_slice(
            outputs, y if plus is None else y + of(begin, plus), begin
        )

    shape = batch, *sizes, features
    count = batch // examples * strips
    if count == 1:
        return with_added(strip(jnp.arange(1)[0])[0], None, plus)
    if plus is not None and plus.shape == shape:
        return lax.fori_loop(0, count, add, plus)
    return lax.fori_loop(0, count, write, jnp.broadcast_to(zero, shape))


def _strips(batch, rows, at_once):
    """Examples and rows of tiles of a strip: whole examples, or rows of one.

    Examples are split evenly, as the last strip cannot be smaller than the others; rows
    are padded.
    """
    examples = at_once // rows
    if examples:
        return next(
            n for n in range(min(examples, batch), 0, -1) if batch % n == 0
        ), rows
    count = -(-rows // max(1, at_once))
    return 1, -(-rows // count)
