"""T5's tokenizer, from the files of either age."""

import pathlib
from typing import Any

from gptfl_jax import user_files
from gptfl_jax.errors import UserError
from gptfl_jax.released import hub

# In bytes; that of mT5, of a hundred languages, has 4 MB.
_LARGEST_VOCABULARY = 2**25
# Tokens of a text at most: any number is possible, but models were trained on this.
LONGEST_TEXT = 512


def read_sentencepiece(
    path: pathlib.Path,
) -> tuple[list[tuple[str, float]], bytes]:
    """The vocabulary in a file of SentencePiece.

    Gives each piece with its log-probability, and the rules that normalise a text's
    characters, compiled; empty if there are none.

    Raises:
        UserError: if this version of protobuf cannot read it.
        ValueError: if it has no pieces.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except Exception as error:  # of protobuf, where it is the older of the two
        raise UserError(
            f"{path}: cannot be read with this protobuf ({error}): "
            "pip install --upgrade protobuf"
        ) from error
    content = user_files.read_bytes(path, _LARGEST_VOCABULARY)
    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    if not model.pieces:
        raise ValueError(f"{path.name} has no pieces")
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    return pieces, model.normalizer_spec.precompiled_charsmap


def load_tokenizer(folder: pathlib.Path) -> Any:
    """The tokenizer of a model's folder, of `tokenizer.json` or `spiece.model`.

    Raises:
        UserError: if there is neither, or it is damaged.
    """
    if (folder / "tokenizer.json").is_file():
        return hub.load_tokenizer(folder, "T5Tokenizer")
    if not (folder / "spiece.model").is_file():
        raise UserError(
            f"{folder}: holds no tokenizer.json or spiece.model: download the model "
            "again"
        )
    # Deferred: it takes seconds to import, and only loading from files needs it.
    import transformers

    with hub.damage_to_tokenizer(folder / "spiece.model"):
        pieces, charsmap = read_sentencepiece(folder / "spiece.model")
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(100))]
        return transformers.T5Tokenizer(
            [*pieces, *((name, 0.0) for name in sentinels)],
            _spm_precompiled_charsmap=charsmap or None,
            extra_ids=100,
            model_max_length=LONGEST_TEXT,
        )
