"""Random changes of pictures and sounds, and what a config asks for."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from gptfl_jax import augmentation, configuration
from gptfl_jax.augmentation import Augmentation, SpecAugment
from gptfl_jax.data import datasets, sources
from gptfl_jax.errors import ConfigError

RNG = np.random.default_rng(0)
PICTURES = sources.load("sklearn_digits")


@pytest.fixture(scope="module")
def sounds():
    features = np.random.default_rng(0).normal(size=(2, 12, 4)).astype(np.float32)
    inputs = features, np.array([12, 9], np.int32)
    part = datasets.Dataset(inputs, np.arange(2, dtype=np.int32), ("a", "b"))
    return datasets.Source(part, part, (), (), datasets.Sounds())


def settings(section, **fields):
    config = configuration.default_config("train", "federated")
    config[section].update(fields)
    configuration.validate(config)
    return config[section]


@pytest.mark.parametrize("section", ["train", "federated"])
def test_each_kind_of_data_has_its_fields(section, sounds):
    """Every field of the config has an effect, at its own place."""
    of_pictures = {
        **{"crop_padding": 1, "flip": True, "cutout": 2, "shift": 0.1},
        **{"scale": 0.2, "rotate": 3.0, "shear": 4.0, "crop_area": 0.3},
        **{"crop_aspect": 1.5, "brightness": 0.1, "contrast": 0.2},
        **{"saturation": 0.3, "hue": 0.1},
    }
    made = augmentation.from_config(section, settings(section, **of_pictures), PICTURES)
    assert made == Augmentation(**of_pictures, cutout_fill=(0.5,))
    of_sounds = {
        **{"tempo": 0.1, "warp": 0.2, "time_shift": 3, "time_masks": 1},
        **{"time_mask_width": 4, "time_mask_share": 0.5},
        **{"frequency_masks": 2, "frequency_mask_width": 5},
    }
    made = augmentation.from_config(section, settings(section, **of_sounds), sounds)
    assert made == SpecAugment(0.1, 0.2, 1, 4, 0.5, 2, 5, 3)
    inputs = made(jax.random.key(0), jax.tree.map(jnp.asarray, sounds.train.inputs))
    assert np.abs(inputs[0] - sounds.train.inputs[0]).max() > 0

    both = set(of_pictures) | set(of_sounds)
    assert both == {n for kind in configuration.AUGMENTATION.values() for n in kind}
    for source in (PICTURES, sounds):
        assert augmentation.from_config(section, settings(section), source) is None


def test_a_field_for_the_other_kind_of_data_is_refused(sounds):
    with pytest.raises(ConfigError, match=r"train.flip = True is for pictures, and th"):
        augmentation.from_config("train", settings("train", flip=True), sounds)
    with pytest.raises(ConfigError, match=r"federated.time_masks = 2 is for sounds"):
        some = settings("federated", time_masks=2)
        augmentation.from_config("federated", some, PICTURES)
    with pytest.raises(ConfigError, match="set it back to 0.2, or see config.train.cr"):
        some = settings("train", time_mask_share=0.5)
        augmentation.from_config("train", some, PICTURES)


# Pictures ---------------------------------------------------------------------------


def pictures(count=64, size=6, channels=2):
    rng = np.random.default_rng(0)
    return rng.uniform(0.1, 1, (count, size, size, channels)).astype(np.float32)


def augment(changes, x):
    return np.asarray(jax.jit(changes.__call__)(jax.random.key(0), jnp.asarray(x)))


def test_no_augmentation_is_the_identity():
    x = jnp.asarray(pictures())
    assert Augmentation()(jax.random.key(0), x) is x


def test_flip_mirrors_about_half_of_the_pictures():
    x = pictures()
    y = augment(Augmentation(flip=True), x)
    mirrored = (y == x[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (y == x).all((1, 2, 3))).all()
    assert 20 < mirrored.sum() < 44


def test_crops_are_windows_of_the_padded_picture():
    x = pictures(200, size=4)
    y = augment(Augmentation(crop_padding=2), x)
    around = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = np.stack(
        [around[:, i : i + 4, j : j + 4] for i in range(5) for j in range(5)]
    )
    same = (windows == y).all((2, 3, 4))
    assert (same.sum(0) == 1).all()
    assert (same.sum(1) > 0).all()  # all 25 places occur in 200 draws


def test_cutout_paints_one_square():
    x = pictures(200, size=6)
    augmentation = Augmentation(cutout=2, cutout_fill=(0.0, -1.0))
    y = augment(augmentation, x)
    painted = (y != x).any(-1)
    np.testing.assert_array_equal(y[painted], np.tile([0, -1], (painted.sum(), 1)))
    # A centre at the top or left edge leaves half of the square outside.
    assert set(painted.sum((1, 2))) == {1, 2, 4}
    rows, columns = painted.any(2).sum(1), painted.any(1).sum(1)
    np.testing.assert_array_equal(rows * columns, painted.sum((1, 2)))


def test_bilinear_reads_between_pixels():
    image = jnp.array([[1.0, 2.0], [3.0, 5.0]])[..., None]
    rows = jnp.array([[0.0, 0.5, 1.0, -0.5, 3.0]])
    columns = jnp.array([[1.0, 0.5, 0.25, 0.0, 0.0]])
    values = augmentation.bilinear(image, rows, columns)[0, :, 0]
    np.testing.assert_allclose(values, [2, 2.75, 3.5, 0.5, 0])


def test_affine_map_is_that_of_scipy():
    augmentation = Augmentation(shift=0.2, scale=0.3, rotate=40.0, shear=20.0)
    image = pictures(1, size=7, channels=1)[0]
    key = jax.random.key(3)
    warped = jax.jit(augmentation._warp)(key, jnp.asarray(image))
    draw = np.asarray(jax.random.uniform(key, (5,), jnp.float32, -1, 1), np.float64)
    angle, slant = np.deg2rad(draw[0] * 40), np.deg2rad(draw[1] * 20)
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    shear = np.array([[1, 0], [np.tan(slant), 1]])
    matrix = shear @ rotation / (1 + draw[2] * 0.3)
    centre = np.array([3.0, 3.0])
    offset = centre - matrix @ (centre + draw[3:] * 0.2 * 7)
    expected = scipy.ndimage.affine_transform(
        image[..., 0].astype(np.float64), matrix, offset, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(warped[..., 0], expected, atol=1e-5)


def test_resized_crop_by_hand():
    image = jnp.arange(12.0).reshape(3, 4, 1)
    whole = augmentation.resized_crop(image, jnp.zeros(2), jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(whole, image, atol=1e-6)
    # One row of two columns, 5 and 6: between them by quarters of a pixel.
    box = augmentation.resized_crop(image, jnp.ones(2), jnp.array([1.0, 2.0]))
    expected = np.tile([5, 5.25, 5.75, 6], (3, 1))[..., None]
    np.testing.assert_allclose(box, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 20, 1), (8, 30, 2)])
def test_resized_crops_are_boxes_of_the_area_and_aspect(shape):
    # A picture of its own coordinates says which box was taken.
    height, width = shape[:2]
    at = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    x = np.tile(at[None].astype(np.float32), (300, 1, 1, 1))
    changes = Augmentation(crop_area=0.25, crop_aspect=2.0)
    y = augment(changes, x)
    first, last = y[:, 0, 0], y[:, -1, -1]
    rows, columns = (np.rint(last - first) + 1).T
    assert (first >= 0).all() and (last <= [height - 1, width - 1]).all()
    np.testing.assert_allclose(first, np.rint(first), atol=1e-4)
    share, aspect = rows * columns / (height * width), columns / rows
    # Up to the rounding to whole pixels, and to the middle where none fits.
    assert 0.22 < share.min() < 0.3 and share.max() <= 1
    assert 0.4 < aspect.min() and aspect.max() < 2.3
    assert np.unique(first, axis=0).shape[0] > 40
    if height == width:
        assert aspect.min() < 0.6 and aspect.max() > 1.7 and share.max() > 0.9
        assert abs(np.log(aspect).mean()) < 0.1


def test_a_crop_that_never_fits_is_the_largest_in_the_middle():
    x = np.tile(np.arange(40, dtype=np.float32)[None, :, None], (1, 4, 1, 1))
    y = augment(Augmentation(crop_area=0.99, crop_aspect=1.5), x)
    # 4 rows, hence 6 columns, 17 to 22.
    assert y[0, 0, 0, 0] == 17 and y[0, -1, -1, 0] == 22


def test_colours_by_hand():
    image = jnp.array([[[0.2, 0.4, 0.6], [1.0, 0.5, 0.0]]])
    luma = [0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6, 0.299 + 0.587 * 0.5]
    np.testing.assert_allclose(augmentation.grey(image)[0, :, 0], luma, atol=1e-6)
    np.testing.assert_allclose(augmentation.grey(image[..., :2])[0, 0], [0.3])
    half = jnp.float32(0.5)
    dark = augmentation.blend(image, 0, half)
    np.testing.assert_allclose(dark, image / 2)
    pale = augmentation.blend(image, augmentation.grey(image), half)
    expected = (np.asarray(image) + np.asarray(luma)[None, :, None]) / 2
    np.testing.assert_allclose(pale, expected, atol=1e-6)
    bright = augmentation.blend(image, 0, jnp.float32(2))
    np.testing.assert_allclose(bright[0], [[0.4, 0.8, 1], [1, 1, 0]], atol=1e-6)
    # A third of the circle turns red to green, and orange to spring green.
    turned = augmentation.turn_hue(image, jnp.float32(1 / 3))
    np.testing.assert_allclose(turned[0], [[0.6, 0.2, 0.4], [0, 1, 0.5]], atol=1e-6)


@pytest.mark.parametrize("turn", [0.0, 0.13, -0.4, 0.5])
def test_hue_turns_as_in_colorsys(turn):
    x = pictures(1, size=6, channels=3)[0]
    x[0, 0], x[0, 1] = 0.3, 0  # grey and black have no hue
    y = jax.jit(augmentation.turn_hue)(jnp.asarray(x), jnp.float32(turn))
    for old, new in zip(x.reshape(-1, 3), np.asarray(y).reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, old))
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        np.testing.assert_allclose(new, expected, atol=1e-5)


def test_jitter_draws_its_factors():
    x = np.full((400, 2, 2, 3), 0.4, np.float32)
    factors = augment(Augmentation(brightness=0.5), x)[:, 0, 0, 0] / 0.4
    assert 0.5 <= factors.min() < 0.55 and 1.45 < factors.max() <= 1.5
    assert abs(factors.mean() - 1) < 0.05
    wide = augment(Augmentation(brightness=1.2), x)[:, 0, 0, 0] / 0.4
    assert 0 <= wide.min() < 0.1 and 2.1 < wide.max() < 2.21
    # What has neither contrast nor colour stays; so does grey under hue.
    flat = augment(Augmentation(contrast=0.5, saturation=0.5, hue=0.5), x)
    np.testing.assert_allclose(flat, x, atol=1e-6)
    x = pictures(100, channels=1)
    same = augment(Augmentation(saturation=0.5, hue=0.5), x)
    np.testing.assert_array_equal(same, x)
    y = augment(Augmentation(contrast=0.5), x * 0.2 + 0.4)
    spread = y.std((1, 2, 3)) / (x * 0.2).std((1, 2, 3))
    assert 0.5 < spread.min() < 0.55 and 1.45 < spread.max() < 1.51
    means = y.mean((1, 2, 3)), (x * 0.2 + 0.4).mean((1, 2, 3))
    np.testing.assert_allclose(*means, atol=1e-5)


def test_an_examples_draw_depends_on_its_row_alone():
    x = jnp.asarray(pictures(8, channels=3))
    changes = Augmentation(2, True, 2, 0.1, 0.1, 10.0, 10.0, 0.5, 1.2, *[0.2] * 4)
    augmentation = jax.jit(changes.__call__)
    whole = augmentation(jax.random.key(0), x)
    part = augmentation(jax.random.key(0), x[:3])
    np.testing.assert_allclose(part, whole[:3], atol=1e-6)
    assert (augmentation(jax.random.key(1), x) != whole).any()


# Sounds -----------------------------------------------------------------------------


def batch_of(frames=40, bands=30, lengths=(40, 25, 10, 1)):
    features = RNG.uniform(1, 2, (len(lengths), frames, bands)).astype(np.float32)
    real = np.arange(frames) < np.asarray(lengths)[:, None]
    features = features * real[..., None]
    return jnp.asarray(features), jnp.asarray(lengths, jnp.int32)


def runs_of(hidden):
    """Number of stretches of True and the longest."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden, [0]])))
    sizes = edges[1::2] - edges[::2]
    return len(sizes), sizes.max(initial=0)


def test_masks_are_stripes_of_real_frames():
    features, lengths = batch_of(lengths=(40, 25, 10, 1) * 60)
    augment = jax.jit(
        SpecAugment(
            time_masks=2, time_width=6, frequency_masks=1, frequency_width=5
        ).__call__
    )
    changed, same = augment(jax.random.key(0), (features, lengths))
    assert same.tolist() == lengths.tolist()
    arrays = map(np.asarray, (changed, features, lengths))
    widths, heights = set(), set()
    for row, old, length in zip(*arrays, strict=True):
        hidden = row == 0
        np.testing.assert_array_equal(row[~hidden], old[~hidden])
        times, bands = hidden[:length].all(1), hidden[:length].all(0)
        np.testing.assert_array_equal(hidden[:length], times[:, None] | bands[None])
        number, longest = runs_of(times)
        # One fifth of 25 frames is 5, of 10 is 2.
        assert number <= 2 and longest <= 2 * min(6, length // 5)
        assert runs_of(bands)[0] <= 1
        widths.add((int(length), int(longest)))
        heights.add(int(runs_of(bands)[1]))
    assert heights == set(range(6))
    assert {(40, 6), (25, 5), (10, 2), (10, 0), (1, 0)} <= widths


def test_shift_moves_the_clip():
    features, lengths = batch_of(lengths=(40, 25, 10, 1) * 40)
    changed, new = jax.jit(SpecAugment(shift=3, fill=-7.0).__call__)(
        jax.random.key(0), (features, lengths)
    )
    arrays = map(np.asarray, (changed, features, lengths, new))
    seen = set()
    for row, old, length, after in zip(*arrays, strict=True):
        fits = []
        for move in range(-min(3, length - 1), 4):
            expected = np.zeros_like(old)
            source = np.arange(40) - move
            real = (source >= 0) & (source < length)
            expected[source < 0] = -7
            expected[real] = old[source[real]]
            if np.array_equal(row, expected) and after == min(length + move, 40):
                fits.append(move)
        assert len(fits) == 1
        seen.add((int(length), fits[0]))
    assert {move for length, move in seen if length == 25} == set(range(-3, 4))
    assert {move for length, move in seen if length == 1} == set(range(4))


def test_stretches_follow_a_plane():
    # Features a t + b f + 1 stay planes: their slopes tell the factors.
    frames, bands = 30, 20
    lengths = np.asarray([20, 12, 1] * 30, np.int32)
    t, f = np.arange(frames)[:, None], np.arange(bands)
    features = (0.5 * t + 0.25 * f + 1).astype(np.float32)
    features = features * (t < lengths[:, None, None])
    augment = jax.jit(SpecAugment(tempo=0.3, warp=0.2).__call__)
    changed, new = augment(
        jax.random.key(0), (jnp.asarray(features), jnp.asarray(lengths))
    )
    tempos, warps = [], []
    for row, length, after in zip(
        np.asarray(changed), lengths.tolist(), np.asarray(new).tolist(), strict=True
    ):
        assert not row[after:].any() and row[:after].all()
        warp = (row[0, 1] - row[0, 0]) / 0.25
        warps.append(warp)
        assert np.exp(-0.2) - 1e-5 <= warp <= np.exp(0.2) + 1e-5
        pace = (row[1, 0] - row[0, 0]) / 0.5 if after > 1 else 0
        expected = 0.5 * np.minimum(pace * t, length - 1)
        expected = expected + 0.25 * np.minimum(warp * f, bands - 1) + 1
        np.testing.assert_allclose(row[:after], expected[:after], atol=2e-4)
        if length == 1:
            assert after == 1
        else:
            tempo = ((length - 1) / pace + 1) / length
            assert np.exp(-0.3) - 1e-4 <= tempo <= np.exp(0.3) + 1e-4
            assert abs(after - length * tempo) <= 0.501
            tempos.append(tempo)
    # Both reach far, either way, and are drawn apart.
    for factors, most in ((tempos, 0.3), (warps, 0.2)):
        assert min(factors) < np.exp(-0.7 * most) and max(factors) > np.exp(0.7 * most)


def test_an_examples_draw_is_its_own():
    features, lengths = batch_of()
    augment = jax.jit(
        SpecAugment(
            tempo=0.2,
            warp=0.1,
            shift=2,
            time_masks=1,
            time_width=6,
            frequency_masks=2,
            frequency_width=5,
        ).__call__
    )
    key = jax.random.key(3)
    all_of_them, new = augment(key, (features, lengths))
    two, new_two = augment(key, (features[:2], lengths[:2]))
    np.testing.assert_array_equal(two, all_of_them[:2])
    np.testing.assert_array_equal(new_two, new[:2])
    nothing, same = SpecAugment()(key, (features, lengths))
    np.testing.assert_array_equal(nothing, features)
    np.testing.assert_array_equal(same, lengths)
