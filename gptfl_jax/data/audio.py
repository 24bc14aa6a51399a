"""Recordings to features: loading, log-mel spectrograms and MFCC, and augmentation.

The features are those of the original's audio side: torchaudio's `MelSpectrogram` in
decibels and its `MFCC`, restated here in numpy. Examples are the pair (features
[examples, frames, bands], lengths [examples]): clips shorter than the longest are
padded with zeros, and `lengths` counts each one's real frames.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float, Float32, Int32, Shaped
from tqdm.auto import tqdm

from gptfl_jax import artifacts, user_files
from gptfl_jax.data import speech_models
from gptfl_jax.data.noise import Noise, add_noise
from gptfl_jax.errors import UserError

SAMPLE_RATE_HZ = 16_000
ENDINGS = {".wav", ".flac", ".ogg", ".mp3"}
"""Of the names of recordings, in small letters."""

# Of the windows that loudness is measured in, and of what is left of the silence.
_WINDOW_S, _HOP_S, _MARGIN_S = 0.02, 0.005, 0.02

# Of one recording, and of all that are in work at a time, whatever their number: 35
# minutes at 16 kHz. A sample takes up to 20 bytes on the way to its features.
_SAMPLES = user_files.Allowance(2**25)
_MOST_BYTES = 16 * _SAMPLES.most
# Spectra are computed of so many frames at a time: 80 s by default, in 200 MB.
_FRAMES = 8192

# Below this power a band is silent; -100 dB.
_POWER_FLOOR = 1e-10
# Keeps constant bands finite when they are standardised.
_STANDARD_DEVIATION_FLOOR = 1e-5
# Part of the cache's keys: to be changed with what the features are.
_CACHE_VERSION = "1"


class FeatureSettings(NamedTuple):
    """What is computed from a recording; the defaults are the original's."""

    kind: str = "log_mel"
    """`log_mel` (decibels), `mfcc`, or a pretrained network of speech: its folder, or
    owner/name on Hugging Face, as `ntu-spml/distilhubert`. Of the other fields such a
    network goes by `max_duration_s`, `standardise`, `by_band` and `channel` alone."""
    sample_rate_hz: int = SAMPLE_RATE_HZ
    """Recordings at another rate are resampled to it."""
    num_mels: int = 128
    """Mel bands."""
    num_coefficients: int = 40
    """Bands of `mfcc`: the first so many coefficients."""
    fft_size: int = 1024
    """Samples of a window, all of which are used. The original's MFCC take 800."""
    hop: int = 160
    """Samples from one frame to the next."""
    max_duration_s: float = 0.0
    """Clips are cut to it; 0 keeps all of a clip."""
    least_duration_s: float = 0.0
    """Shorter clips are followed by silence up to it."""
    range_db: float = 0.0
    """In `log_mel` nothing is further below the loudest value of the clip; 0: as is."""
    standardise: bool = True
    """Whether each band of each clip has mean 0 and deviation 1 over time."""
    by_band: bool = True
    """False: all bands of a clip together have. The loudness of bands beside each other
    stays, by which a low drum differs from a cymbal."""
    channel: str = "mean"
    """`mean` of all channels of a recording, or the `first`, as the original."""

    @property
    def num_bands(self) -> int:
        """Features of a frame."""
        return self.num_mels if self.kind == "log_mel" else self.num_coefficients


class Clip(NamedTuple):
    """A recording, or a part of one, and the noise to be added to it."""

    path: str | os.PathLike
    start_s: float = 0.0
    duration_s: float = 0.0
    """0 reaches to the end of the file."""
    noise: Noise | None = None
    sha256: str | None = None
    """Digest of the file, where one is known."""


# Waveforms --------------------------------------------------------------------------


def read(
    path: str | os.PathLike | io.BytesIO,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    start_s: float = 0.0,
    duration_s: float = 0.0,
    channel: str = "mean",
) -> Float32[np.ndarray, " samples"]:
    """Decodes WAV, FLAC, OGG, MP3, ... and converts to one channel and a sample rate.

    Samples of integer files are scaled to -1..1.

    Args:
        path: a file, or its content.
        sample_rate_hz: of the result.
        start_s, duration_s: the part to read; duration 0 reaches to the end.
        channel: `mean` of all channels, or the `first`.

    Raises:
        UserError: the file is missing, damaged or empty, or ends before the part
            begins.
    """
    with _read(path, sample_rate_hz, start_s, duration_s, channel) as waveform:
        return waveform


@contextlib.contextmanager
def _read(
    path: str | os.PathLike | io.BytesIO,
    sample_rate_hz: int,
    start_s: float,
    duration_s: float,
    channel: str,
) -> Iterator[Float32[np.ndarray, " samples"]]:
    """`read`; meanwhile other threads leave the memory that the samples need."""
    name = getattr(path, "name", path)
    with contextlib.ExitStack() as stack:
        with _opened(path) as file:
            rate, frames = file.samplerate, file.frames
            start = round(start_s * rate)
            if frames and start >= frames:
                raise UserError(
                    f"{name}: has {frames / rate:g} s, hence no sample at {start_s:g} s"
                )
            count = frames - start
            if duration_s:
                count = min(count, round(duration_s * rate))
            needed = max(count * file.channels, count * sample_rate_hz // rate)
            if needed > _SAMPLES.most:
                raise user_files.Unreadable(
                    name,
                    f"holds {count / rate:,.0f} s of {file.channels} channels at {rate}"
                    f" Hz, which are {needed:,} samples, more than {_SAMPLES.most:,}",
                    "cut it into parts",
                )
            stack.enter_context(_SAMPLES.hold(needed))
            file.seek(start)
            samples = file.read(count, dtype="float32", always_2d=True)
        if not len(samples) or not np.isfinite(samples).all():
            what = "samples that are no numbers" if len(samples) else "no sound"
            raise UserError(f"{name}: holds {what}: get the file again")
        try:
            mono = samples[:, 0] if channel == "first" else samples.mean(1)
            waveform = resample(mono, rate, sample_rate_hz)
        except Exception as error:  # at a rate that no recorder has
            reason = f"cannot be resampled from {rate} Hz ({user_files.brief(error)})"
            raise user_files.Unreadable(name, reason) from error
        del samples
        yield waveform


def duration_s(path: str | os.PathLike) -> float:
    """Length of a recording in seconds.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _opened(path) as file:
        return file.frames / file.samplerate


@contextlib.contextmanager
def _opened(path: str | os.PathLike | io.BytesIO) -> Iterator[soundfile.SoundFile]:
    name = getattr(path, "name", path)
    with contextlib.ExitStack() as stack:
        if not isinstance(path, io.BytesIO):
            path = stack.enter_context(user_files.open_plain(path, _MOST_BYTES))
        try:
            with soundfile.SoundFile(path) as file:
                yield file
        except (soundfile.SoundFileError, OSError) as error:
            reason = f"cannot be read as sound ({user_files.brief(error)})"
            raise user_files.Unreadable(name, reason) from error


def resample(
    waveform: Float32[np.ndarray, " samples"], from_hz: int, to_hz: int
) -> Float32[np.ndarray, " new_samples"]:
    """Band-limited conversion of the sample rate (`librosa.resample`, soxr's HQ).

    The original uses torchaudio's windowed sinc; nothing is done at equal rates, as in
    Speech Commands, so that the features of such data are the same.
    """
    if from_hz == to_hz:
        return waveform
    import librosa  # slow to import

    return librosa.resample(waveform, orig_sr=from_hz, target_sr=to_hz)


def trim_silence(
    wave: Float[np.ndarray, " samples"], rate: int, decibels: int | float
) -> Float[np.ndarray, " rest"]:
    """`wave` from its first to its last sound, and 20 ms around them.

    Args:
        rate: in Hz.
        decibels: a window of 20 ms is silent where its mean power is this far below the
            loudest one's; 0: nothing is cut.
    """
    window, hop, margin = (
        max(1, round(seconds * rate)) for seconds in (_WINDOW_S, _HOP_S, _MARGIN_S)
    )
    if decibels == 0 or len(wave) <= window:
        return wave
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    starts = np.arange(0, len(wave) - window + 1, hop)
    power = energy[starts + window] - energy[starts]
    loud = starts[power > power.max() * 10 ** (-decibels / 10)]
    if not len(loud):
        return wave
    return wave[max(0, loud[0] - margin) : loud[-1] + window + margin]


# Features ---------------------------------------------------------------------------


def log_mel(
    waveform: Float[np.ndarray, " samples"], settings: FeatureSettings
) -> Float32[np.ndarray, "frames mels"]:
    """Mel spectrogram in decibels, as torchaudio's defaults give it.

    Power spectra of periodic Hann windows, centred at multiples of the hop (the ends
    are mirrored), are summed by triangles on the HTK mel scale, without normalisation,
    and turned into 10 log10(max(power, 1e-10)). There are 1 + samples // hop frames.
    Computed in float64.
    """
    decibels = _decibels(_mel_power(waveform, settings))
    if settings.range_db:
        decibels = np.maximum(decibels, decibels.max() - settings.range_db)
    return decibels.astype(np.float32)


def mfcc(
    waveform: Float[np.ndarray, " samples"], settings: FeatureSettings
) -> Float32[np.ndarray, "frames coefficients"]:
    """Mel-frequency cepstral coefficients, as torchaudio's defaults give them.

    The orthonormal DCT-II over the bands of `log_mel`, in which nothing is more than 80
    dB below the loudest value of the clip.
    """
    decibels = _decibels(_mel_power(waveform, settings))
    decibels = np.maximum(decibels, decibels.max() - 80)
    matrix = _dct(settings.num_mels, settings.num_coefficients)
    return (decibels @ matrix).astype(np.float32)


def standardise(
    features: Float32[np.ndarray, "frames bands"], by_band: bool = True
) -> Float32[np.ndarray, "frames bands"]:
    """(x - mean) / (std + 1e-5), each band by its own mean and deviation over time.

    With `by_band` False all bands by the mean and the deviation of all.
    """
    wide = features.astype(np.float64)
    axes = 0 if by_band else None
    deviation = wide.std(axes) + _STANDARD_DEVIATION_FLOOR
    return ((wide - wide.mean(axes)) / deviation).astype(np.float32)


def standardise_groups(
    features: Float32[np.ndarray, "clips frames bands"],
    lengths: Int32[np.ndarray, " clips"],
    groups: Shaped[np.ndarray, " clips"],
    by_band: bool = True,
) -> None:
    """`standardise`, in place, over the frames of all clips of a group together.

    Args:
        features: padded with zeros, which stay.
        lengths: frames of each clip.
        groups: what each clip belongs to, as its speaker.
        by_band: as `standardise` takes it.
    """
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        clips = [features[row, : lengths[row]] for row in rows]
        together = standardise(np.concatenate(clips), by_band)
        for clip, new in zip(
            clips, np.split(together, np.cumsum(lengths[rows])[:-1]), strict=True
        ):
            clip[:] = new


def compute(
    waveform: Float[np.ndarray, " samples"], settings: FeatureSettings
) -> Float32[np.ndarray, "frames bands"]:
    """The features that `settings` asks for.

    Raises:
        UserError: settings out of range.
    """
    if settings.max_duration_s:
        waveform = waveform[
            : max(1, round(settings.max_duration_s * settings.sample_rate_hz))
        ]
    missing = round(settings.least_duration_s * settings.sample_rate_hz) - len(waveform)
    waveform = np.pad(waveform, (0, max(0, missing)))
    features = _kind(settings)(waveform, settings)
    if settings.standardise:
        features = standardise(features, settings.by_band)
    return features


def resolved(settings: FeatureSettings) -> FeatureSettings:
    """The settings, with rate, hop and bands of the network that they name, if any.

    Raises:
        UserError: there is no such network.
    """
    if not _is_network(settings.kind):
        return settings
    shape = speech_models.shape(settings.kind)
    return settings._replace(
        sample_rate_hz=shape.sample_rate_hz,
        hop=shape.hop,
        num_coefficients=shape.num_features,
    )


def _is_network(kind: str) -> bool:
    return kind not in _KINDS and ("/" in kind or pathlib.Path(kind).is_dir())


def _kind(settings: FeatureSettings):
    if _is_network(settings.kind):
        _check_channel(settings)
        return lambda waveform, settings: speech_models.compute(waveform, settings.kind)
    if settings.kind not in _KINDS:
        raise UserError(
            f"features.kind = {settings.kind!r}: takes one of {', '.join(_KINDS)}, or "
            "a network of speech: its folder, or owner/name on Hugging Face"
        )
    for name in ("sample_rate_hz", "num_mels", "num_coefficients", "fft_size", "hop"):
        if getattr(settings, name) < 1:
            raise UserError(
                f"features.{name} = {getattr(settings, name)}: takes a whole number > 0"
            )
    _check_channel(settings)
    if settings.kind == "mfcc" and settings.num_coefficients > settings.num_mels:
        raise UserError(
            f"features.num_coefficients = {settings.num_coefficients}: there are no "
            f"more than num_mels = {settings.num_mels}"
        )
    return _KINDS[settings.kind]


def _check_channel(settings: FeatureSettings) -> None:
    if settings.channel not in ("mean", "first"):
        raise UserError(
            f"features.channel = {settings.channel!r}: takes one of mean, first"
        )


_KINDS = {"log_mel": log_mel, "mfcc": mfcc}


def _mel_power(waveform, settings):
    size = settings.fft_size
    padded = np.pad(waveform.astype(np.float64), size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: settings.hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    filters = _mel_filters(settings.sample_rate_hz, size, settings.num_mels)
    parts = [
        np.abs(np.fft.rfft(frames[start : start + _FRAMES] * window)) ** 2 @ filters
        for start in range(0, len(frames), _FRAMES)
    ]
    return np.concatenate(parts)


def _decibels(power):
    return 10 * np.log10(np.maximum(power, _POWER_FLOOR))


@functools.cache
def _mel_filters(sample_rate_hz: int, fft_size: int, num_mels: int) -> np.ndarray:
    """[frequencies, mels]: triangles that are evenly spaced in mel, of height 1."""
    highest = sample_rate_hz // 2
    frequency = np.linspace(0, highest, fft_size // 2 + 1)
    top = 2595 * np.log10(1 + highest / 700)
    corners = 700 * (10 ** (np.linspace(0, top, num_mels + 2) / 2595) - 1)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequency[:, None] - left) / (middle - left)
    falling = (right - frequency[:, None]) / (right - middle)
    return np.minimum(rising, falling).clip(0)


@functools.cache
def _dct(size: int, count: int) -> np.ndarray:
    """[size, count]: the first columns of the orthonormal DCT-II."""
    angle = np.pi / size * (np.arange(size)[:, None] + 0.5) * np.arange(count)
    matrix = np.cos(angle) * np.sqrt(2 / size)
    matrix[:, 0] /= np.sqrt(2)
    return matrix


# Many clips -------------------------------------------------------------------------


def extract(
    clips: Sequence[Clip],
    settings: FeatureSettings,
    cache: str | os.PathLike = "",
    description: str = "",
    broken: dict[int, str] | None = None,
    quiet: bool = False,
) -> tuple[Float32[np.ndarray, "clips frames bands"], Int32[np.ndarray, " clips"]]:
    """Features of many clips, computed in threads, with a progress bar.

    Args:
        cache: a folder for the features of each clip, by a hash of the file's content,
            the settings and the noise; a file that changes is computed again, one that
            moves is not. A kill loses the few hundred clips under way. Empty keeps
            nothing.
        description: of the progress bar.
        broken: where given, a clip whose file is truncated or cannot be read is no
            error: its number and the reason are put here, and it is left out.
        quiet: show no progress bar.

    Returns:
        the features, padded with zeros to the longest clip, and the frames of each
            clip.

    Raises:
        UserError: a file that cannot be read, or settings out of range.
    """
    settings = resolved(settings)
    _kind(settings)

    @functools.lru_cache(maxsize=256)
    def background(path: str) -> tuple[bytes, np.ndarray]:
        content = user_files.read_bytes(path, _MOST_BYTES)
        waveform = read(
            _as_file(content, path), settings.sample_rate_hz, channel=settings.channel
        )
        return hashlib.sha256(content).digest(), waveform

    def compute_one(index: int) -> tuple[np.ndarray | None, pathlib.Path | None]:
        try:
            if broken is not None:
                _require_whole(clips[index].path)
                if artifacts.is_changed(clips[index].path, clips[index].sha256):
                    raise UserError(artifacts.CHANGED)
            return _features_of(clips[index], settings, cache, background)
        except UserError as error:
            if broken is None:
                raise
            # The file's name stands first, and is known to the caller.
            reason = str(error).removeprefix(f"{clips[index].path}: ")
            broken[index] = reason.removesuffix(": get the file again")
            return None, None

    found = []
    workers = min(32, (os.cpu_count() or 1) + 4)
    bar = tqdm(
        total=len(clips),
        desc=description,
        unit="clip",
        disable=quiet or None,
        mininterval=0.5,
    )
    with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(clips), 256):
            fresh = {}
            block = range(start, min(start + 256, len(clips)))
            for features, path in pool.map(compute_one, block):
                if features is not None:
                    found.append(features)
                if path is not None:
                    fresh[path] = _to_bytes(features)
                bar.update()
            if fresh:
                artifacts.write_files(fresh)
    return pad(found, settings.num_bands)


def encode_wav(wave: Float[np.ndarray, " samples"], rate: int) -> bytes:
    """WAV file, 16 bits a sample, of a waveform in [-1, 1]; `rate` in Hz."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def is_whole_wav(path: str | os.PathLike) -> bool:
    """Whether a file is a WAV file and as long as its first bytes say."""
    try:
        with user_files.open_plain(path) as file:
            begin = file.read(12)
            size = os.fstat(file.fileno()).st_size
    except (OSError, user_files.Unreadable):
        return False
    named = int.from_bytes(begin[4:8], "little")
    return begin[:4] + begin[8:] == b"RIFFWAVE" and named == size - 8


def _require_whole(path: str | os.PathLike) -> None:
    """Refuses a truncated WAV file, of which the decoder would give what is there."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() == ".wav" and not is_whole_wav(path):
        raise UserError(f"{path}: truncated, or no WAV file")


def pad(
    features: Sequence[Float32[np.ndarray, "_frames bands"]], num_bands: int
) -> tuple[Float32[np.ndarray, "clips frames bands"], Int32[np.ndarray, " clips"]]:
    """Puts clips of several lengths into one array, zeros behind the shorter ones."""
    lengths = np.asarray([len(clip) for clip in features], np.int32)
    padded = np.zeros((len(features), lengths.max(initial=0), num_bands), np.float32)
    for row, clip in zip(padded, features, strict=True):
        row[: len(clip)] = clip
    return padded, lengths


def _features_of(
    clip: Clip,
    settings: FeatureSettings,
    cache: str | os.PathLike,
    background: Callable[[str], tuple[bytes, np.ndarray]],
) -> tuple[np.ndarray, pathlib.Path | None]:
    """The features, and where to keep them when they are new."""
    content = user_files.read_bytes(clip.path, _MOST_BYTES)
    digest, added = b"", None
    if clip.noise is not None and clip.noise.recording:
        digest, added = background(clip.noise.recording)
    kept = None
    if cache:
        key = hashlib.sha256(content)
        heard = (clip.start_s, clip.duration_s, clip.noise and clip.noise[:2])
        key.update(repr((_CACHE_VERSION, *settings, heard)).encode() + digest)
        if _is_network(settings.kind):
            key.update(speech_models.digest(settings.kind).encode())
        name = key.hexdigest()
        kept = pathlib.Path(cache) / name[:2] / f"{name}.npy"
        features = _from_cache(kept, settings.num_bands)
        if features is not None:
            return features, None
    file = _as_file(content, clip.path)
    rate = settings.sample_rate_hz
    part = clip.start_s, clip.duration_s, settings.channel
    with _read(file, rate, *part) as waveform:
        if clip.noise is not None:
            waveform = add_noise(waveform, clip.noise, added)
        return compute(waveform, settings), kept


def _as_file(content: bytes, path: str | os.PathLike) -> io.BytesIO:
    file = io.BytesIO(content)
    file.name = str(path)  # for messages and for formats told by their ending
    return file


def _from_cache(path: pathlib.Path, num_bands: int) -> np.ndarray | None:
    try:
        kept = user_files.read_array(path, _MOST_BYTES)
    except user_files.Unreadable:  # there is none, or a damaged one
        return None
    fits = kept.dtype == np.float32 and kept.ndim == 2 and kept.shape[1] == num_bands
    return kept if fits else None


def _to_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
