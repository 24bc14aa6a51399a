"""Released models: a folder, a shipped asset or a Hugging Face repository, as arrays.

Weights are read from safetensors files, or from what `torch.save` writes (`.bin`,
`.pth`), without torch. Nothing in a file is ever executed.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from gptfl_jax import artifacts, safe_pickle, user_files
from gptfl_jax.errors import UserError
from gptfl_jax.released import torch_files

PathLike = str | os.PathLike[str]

# The largest are indices of weights, of a few megabytes.
_MOST_JSON_BYTES = 2**24

ASSETS = pathlib.Path(__file__).parents[1] / "assets"


class ModelNotFound(UserError):
    """There is no such folder, asset or repository, or it cannot be reached."""


class BadWeights(UserError):
    """A file of weights that is damaged, unsafe or not of the kind its name says."""


# Folders and repositories -----------------------------------------------------------


def snapshot(
    path_or_id: PathLike,
    patterns: Sequence[str],
    revision: str | None = None,
    repo_type: str = "model",
) -> pathlib.Path:
    """The folder that holds a model's files.

    Args:
        path_or_id: in this order, a local folder, the name of a folder in the package's
            own `assets`, or a Hugging Face repository ("owner/name"), which is
            downloaded unless the cache has it. `HF_HUB_OFFLINE=1` keeps to the cache.
        patterns: the files needed, as shell patterns; nothing else is downloaded.
        revision: branch, tag or commit of the repository.
        repo_type: of the repository: "model" or "dataset".

    Raises:
        ModelNotFound: if there is none of these, or the download fails.
    """
    name = os.fspath(path_or_id)
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    plain = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith(".")
    if plain and (ASSETS / name).is_dir():
        return ASSETS / name
    if not plain or folder.exists():
        raise ModelNotFound(
            f"{name}: there is no such folder. Name a folder in the format of Hugging "
            "Face, or a repository there as owner/name"
        )
    # Deferred: the client takes a moment to load, and local folders do without it.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                repo_type=repo_type,
            )
        )
    except errors.GatedRepoError as error:
        remedy = (
            "accept its licence on huggingface.co, then log in with `hf auth login`"
        )
        raise ModelNotFound(f"{name}: access is restricted: {remedy}") from error
    except errors.RepositoryNotFoundError as error:
        remedy = "check the name, or log in with `hf auth login` if it is private"
        raise ModelNotFound(
            f"{name}: neither a folder, a shipped asset nor a Hugging Face repository: "
            + remedy
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"{name}: not in the local cache, and huggingface.co is out of reach (or "
            "HF_HUB_OFFLINE is set). Go online, or name a local folder"
        ) from error
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelNotFound(
            f"{name}: cannot be downloaded ({reason}). Try again, or name a "
            "local folder"
        ) from error


def part(
    path_or_id: PathLike, name: str, patterns: Sequence[str]
) -> pathlib.Path | None:
    """A folder that a model has of its own, as its `vocoder`; None where it has none.

    Args:
        path_or_id: as for `snapshot`.
        name: of the folder.
        patterns: the files needed of it.

    Raises:
        ModelNotFound: as `snapshot`.
    """
    folder = snapshot(path_or_id, [f"{name}/{pattern}" for pattern in patterns]) / name
    return folder if folder.is_dir() else None


def kind(folder: pathlib.Path) -> str:
    """What a model's folder says it is: "StableDiffusionPipeline", "speecht5", ...

    Empty where it does not say.
    """
    for file, field in (
        ("model_index.json", "_class_name"),
        ("config.json", "model_type"),
    ):
        if (folder / file).is_file():
            found = read_json(folder / file).get(field)
            return found if isinstance(found, str) else ""
    return ""


def model_digest(path_or_id: PathLike) -> str:
    """Digest of a local model: names, sizes, and both ends of each file.

    A repository on the hub is known by its name alone.
    """
    name = os.fspath(path_or_id)
    folder = pathlib.Path(name).expanduser()
    folder = folder if folder.is_dir() else ASSETS / name
    digest = hashlib.sha256()
    end = 1 << 20
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and path.suffix != ".md" and not path.name.startswith("."):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
            with open(path, "rb") as file:
                digest.update(file.read(end))
                file.seek(max(end, size - end))
                digest.update(file.read())
    return f"sha256:{digest.hexdigest()}"


def weight_patterns(stem: str) -> list[list[str]]:
    """Patterns for `snapshot`, the forms weights come in from best to worst.

    `stem` is the file's path without its ending: "unet/diffusion_pytorch_model". Larger
    or smaller variants of the same weights, which repositories hold as well, match none
    but the last.
    """
    return [
        [f"{stem}{part}{ending}" for part in ("", "-*-of-*")]
        + [f"{stem}{ending}.index.json"]
        for stem in (stem, f"{stem}.fp16")
        for ending in (".safetensors", ".bin")
    ]


def fetch_weights(
    folder: pathlib.Path,
    path_or_id: PathLike,
    stems: Mapping[str, Sequence[str]],
    revision: str | None = None,
) -> dict[str, pathlib.Path]:
    """The file (or index of files) with the weights of each network of a model.

    Of a repository, what is missing is downloaded, in the best form that there is.

    Args:
        folder: what `snapshot` gave for the model.
        path_or_id: as for `snapshot`.
        stems: for each network, the paths its weights may have in the folder, without
            their endings.
        revision: branch, tag or commit of the repository.

    Raises:
        BadWeights: if the model has no weights of a network.
        ModelNotFound: if the download fails.
    """

    def find():
        found = {
            network: [find_weights(folder / stem) for stem in each]
            for network, each in stems.items()
        }
        return {network: next(filter(None, f), None) for network, f in found.items()}

    files = find()
    for form in range(len(weight_patterns(""))):
        lacking = [network for network, file in files.items() if file is None]
        if not lacking or folder == pathlib.Path(path_or_id).expanduser():
            break
        wanted = [
            pattern
            for network in lacking
            for stem in stems[network]
            for pattern in weight_patterns(stem)[form]
        ]
        snapshot(path_or_id, wanted, revision)
        files = find()
    for network, file in files.items():
        if file is None:
            paths = [folder / stem for stem in stems[network]]
            endings = (".safetensors", ".bin")
            names = [f"{path.name}{ending}" for path in paths for ending in endings]
            raise missing_weights(names, paths[0].parent)
    return files


def read_json(path: PathLike) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        BadWeights: if the file is missing or holds something else, or names Python code
            of the model's own (`auto_map`), which is never run.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise BadWeights(f"{path}: missing: the folder is not a complete model")
    try:
        value = json.loads(user_files.read_bytes(path, _MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise BadWeights(
            f"{path}: not JSON ({user_files.brief(error)}): get the file again"
        ) from error
    if not isinstance(value, dict):
        raise BadWeights(f"{path}: not a JSON object: get the file again")
    if "auto_map" in value:
        raise BadWeights(
            f"{path}: auto_map asks for Python code that comes with the model, which "
            "is never run: name a model without it"
        )
    return value


# Weights ----------------------------------------------------------------------------


def find_weights(stem: PathLike) -> pathlib.Path | None:
    """The file (or index of files) with weights at `stem` plus an ending, if any."""
    stem = pathlib.Path(stem)
    for name in (stem.name, f"{stem.name}.fp16"):
        for ending in (".safetensors", ".bin"):
            # An index may be named before or after the variant.
            for file in (
                f"{name}{ending}",
                f"{name}{ending}.index.json",
                f"{stem.name}{ending}.index.fp16.json",
            ):
                if (stem.parent / file).is_file():
                    return stem.parent / file
    return None


def read_weights(path: PathLike) -> dict[str, np.ndarray]:
    """Weights by name from a `.safetensors`, `.bin`, `.pth` or index file.

    Raises:
        BadWeights: if a file is missing, damaged, unsafe or not a file of weights.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise BadWeights(f"{path}: missing: download the model again")
    if path.suffix == ".json":
        return _read_sharded(path)
    if path.suffix == ".safetensors":
        return dict(open_weights(path))
    weights = _read_torch(path)
    for within in ("state_dict", "model"):
        if isinstance(weights, Mapping) and isinstance(weights.get(within), Mapping):
            weights = weights[within]
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, np.ndarray)
        for name, value in weights.items()
    ):
        raise BadWeights(f"{path}: holds no weights by name: is it the right file?")
    return dict(weights)


class Weights(Mapping[str, np.ndarray]):
    """Weights by name, each read when it is asked for and not kept."""

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]):
        self.readers = dict(readers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def open_weights(path: PathLike) -> Mapping[str, np.ndarray]:
    """`read_weights`, but of safetensors files one weight at a time.

    So whoever puts them elsewhere one by one never holds all of them twice.

    Raises:
        BadWeights: as `read_weights`; damage that an index cannot show, when the weight
            is asked for.
    """
    path = pathlib.Path(path)
    if path.suffix == ".json":
        readers: dict[str, Callable[[], np.ndarray]] = {}
        for file in _shards(path):
            weights = open_weights(file)
            for name in weights:
                readers[name] = functools.partial(weights.__getitem__, name)
        return _complete(path, Weights(readers))
    if path.suffix != ".safetensors" or not path.is_file():
        return read_weights(path)

    def read(name: str) -> np.ndarray:
        # Opened anew: closing it gives back the memory that reading has touched.
        with _opened(path) as file:
            return file.get_tensor(name)

    with _opened(path) as file:
        return Weights({name: functools.partial(read, name) for name in file.keys()})


def read_metadata(path: PathLike) -> dict[str, str]:
    """The texts that a safetensors file holds beside its weights.

    Raises:
        BadWeights: the file is damaged.
    """
    with _opened(pathlib.Path(path)) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            yield file
    except Exception as error:  # a damaged file raises almost anything
        raise BadWeights(
            f"{path}: damaged ({user_files.brief(error)}): download the file again"
        ) from error


def _read_torch(path: pathlib.Path) -> Any:
    try:
        return torch_files.read(path)
    except safe_pickle.Forbidden as error:
        raise BadWeights(
            f"{path}: refused: {error}: it could run code, and weights do not need "
            "it. Use the model's safetensors files, or plain weights without it"
        ) from error
    except safe_pickle.Damaged as error:
        raise BadWeights(
            f"{path}: damaged or not written by torch.save ({error}): download it again"
        ) from error


def write_weights(path: PathLike, weights: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file, whole or not at all."""
    artifacts.write_bytes(path, packed(weights))


def packed(
    weights: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The content of a safetensors file.

    Args:
        metadata: texts that it holds beside the weights.
    """
    # ascontiguousarray would give numbers an axis.
    contiguous = {name: np.asarray(value, order="C") for name, value in weights.items()}
    # The metadata is what PyTorch's readers look for.
    about = {"format": "pt", **(metadata or {})}
    return safetensors.numpy.save(contiguous, metadata=about)


def _read_sharded(index: pathlib.Path) -> dict[str, np.ndarray]:
    weights = {}
    for file in _shards(index):
        weights |= read_weights(file)
    return _complete(index, weights)


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise BadWeights(f"{index}: has no weight_map: download the file again")
    for file in shards.values():
        # An index of indices could name itself.
        plain = isinstance(file, str) and pathlib.PurePath(file).name == file
        plain = plain and user_files.printable(file) == file
        if not plain or file.endswith(".json"):
            raise BadWeights(
                f"{index}: {reprlib.repr(file)} is not the name of a file beside it "
                "with weights: download the file again"
            )
    return [index.parent / file for file in sorted(set(shards.values()))]


def _complete(index: pathlib.Path, weights: Any) -> Any:
    """`weights`, if they are all that the index names."""
    missing = sorted(set(read_json(index)["weight_map"]) - set(weights))
    if missing:
        raise BadWeights(
            f"{index}: the files it names do not hold {missing[0]}: download them again"
        )
    return weights


def missing_weights(names: Iterable[str], folder: PathLike) -> BadWeights:
    """The error for a folder without weights under any of the names."""
    return BadWeights(
        f"{os.fspath(folder)}: holds none of {', '.join(names)}: download the model "
        "again"
    )


# Tokenizers -------------------------------------------------------------------------


def load_tokenizer(
    folder: PathLike, kind: str | None, named_in: PathLike | None = None
) -> Any:
    """The tokenizer in a folder, without running anything that the folder holds.

    Args:
        folder: with the tokenizer's files.
        kind: its class in `transformers`; without `named_in`, the class when the folder
            has no tokenizer_config.json that names one.
        named_in: the file that names the class.

    Raises:
        UserError: if the class is unknown, or files are missing or damaged.
    """
    # Deferred: it takes seconds to import, and only loading from files needs it.
    import tokenizers
    import transformers

    folder = pathlib.Path(folder)
    configs = {
        file: read_json(file)
        for name in ("config.json", "tokenizer_config.json")
        if (file := folder / name).is_file()
    }
    if named_in is None:
        named_in = folder / "tokenizer_config.json"
        kind = configs.get(named_in, {}).get("tokenizer_class") or kind
    found = getattr(transformers, str(kind), None)
    if needs := getattr(found, "_backends", None):
        raise UserError(
            f"{os.fspath(named_in)}: tokenizer {kind} needs {' and '.join(needs)}: "
            f"pip install {' '.join(needs)}"
        )
    base = transformers.PreTrainedTokenizerBase
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"{os.fspath(named_in)}: tokenizer {kind} is unknown to "
            f"transformers {transformers.__version__}: update transformers"
        )
    # Without its files, a tokenizer is made that knows no words.
    names = dict(found.vocab_files_names)
    whole = {names.pop("tokenizer_file", "tokenizer.json")}
    present = {path.name for path in folder.glob("*")}
    if not present & whole and not (names and present >= set(names.values())):
        raise UserError(
            f"{folder}: holds no tokenizer.json or {' and '.join(names.values())}: "
            "download the model again"
        )
    with damage_to_tokenizer(folder):
        file = folder / "tokenizer.json"
        if file.is_file():
            with damage_to_tokenizer(file):
                # By itself, so that the message names the file. No text: a vocabulary
                # need not have a word for what it does not know.
                tokenizers.Tokenizer.from_file(os.fspath(file)).encode("")
        return found.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )


@contextlib.contextmanager
def damage_to_tokenizer(path: pathlib.Path) -> Iterator[None]:
    """What reading a tokenizer raises, as an error that names the file or folder."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # the readers of damaged files raise almost anything
        # A panic in Rust is no Exception, and neither is what stops a program.
        panic = type(error).__module__ == "pyo3_runtime"
        if not (panic or isinstance(error, Exception)):
            raise
        raise UserError(
            f"{path}: its tokenizer is damaged ({user_files.brief(error)}): download "
            "the model again"
        ) from error
