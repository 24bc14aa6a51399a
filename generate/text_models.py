"""Sentences that text models draw for generate.prompts: methods commongen and chat.

What was drawn is kept in `<workdir>/prompts_drawn.jsonl`, so that no sentence is drawn
twice: not after an interruption, nor when more prompts are wanted. A line holds
sentences of a class with their numbers, and a digest of what they depend on.
"""

import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from generate import wording
from gptfl_jax import (
    artifacts,
    choices,
    families,
    interruption,
    planning,
    prompting,
)
from gptfl_jax.artifacts import checked_json
from gptfl_jax.errors import UserError
from gptfl_jax.generators.text.chat import Chat
from gptfl_jax.generators.text.decoding import Decoding
from gptfl_jax.generators.text.text_to_text import T5, lower, network_of
from gptfl_jax.progress import Progress
from gptfl_jax.released import hub

# As many as GPT-FL made (arXiv 2306.02210).
_PROMPTS = 200

# By method, the fields of config.prompts that its sentences depend on.
FIELDS = {
    "commongen": (
        *("text_model", "temperature", "top_k", "top_p", "max_length", "dtype"),
    ),
    "chat": ("chat_url", "chat_model", "temperature", "top_p", "chat_options"),
}
# Those that decide when and where sentences are drawn, but not which.
WITHOUT_EFFECT = (
    *("batch_size", "draws_per_prompt", "chat_requests", "chat_key_variable"),
)


class _TextModel(NamedTuple):
    """Draws the sentences of a class with the given numbers.

    They come in parts, when they are ready: (numbers, sentences).
    """

    draw: Callable[[str, Sequence[int]], Iterator[tuple[Sequence[int], Sequence[str]]]]
    at_once: int


def draw(
    config: ConfigDict, request: prompting.Request, workdir: pathlib.Path
) -> dict[str, list[str]]:
    """Draws the sentences of each class that are not in the workdir yet.

    For a process that holds the workdir's lock.

    Returns:
        all that was drawn of each class, in order, up to the sentence with which there
        are as many prompts as wanted.

    Raises:
        UserError: a class cannot give as many, or the text model cannot be had.
    """
    options = config.prompts
    count = options.per_class or _PROMPTS
    texts = choices.bind(families.PROMPTS, options.method, {}, request=request)
    store = _Store(workdir / "prompts_drawn.jsonl")
    model = {"commongen": _commongen, "chat": _chat}[options.method](config, texts)
    settings = _settings(config)
    sentences = {}
    with (
        interruption.deferred("batch of sentences"),
        Progress(len(texts), "class", name=options.method) as progress,
    ):
        for name, text in texts.items():
            names = (name, request.label_set.phrases[name])
            known = store.of(name, settings | {"text": text})
            sentences[name] = prompting.until_enough(
                lambda start, name=name, known=known: known.after(start, model, name),
                names,
                count,
                most=count * options.draws_per_prompt,
            )
            _check_enough(config, name, names, sentences[name], count)
            progress.update()
    return sentences


def _check_enough(config, name, names, drawn, count):
    kept = prompting.select(drawn, names, jax.random.key(config.seed))
    if len(kept.kept) < count:
        raise UserError(
            f"class {name!r} gave {len(kept.kept)} of {count} prompts in {len(drawn):,}"
            f" sentences ({kept.without_class:,} do not name it, {kept.duplicates:,} "
            "are duplicates): lower config.prompts.per_class, raise "
            "config.prompts.draws_per_prompt or temperature, or leave the class out "
            "of config.prompts.classes; what was drawn is kept"
        )


def _settings(config: ConfigDict) -> dict[str, Any]:
    """What the sentences of any class depend on."""
    options = config.prompts.to_dict()
    settings = {name: options[name] for name in ("method", *FIELDS[options["method"]])}
    if options["method"] == "commongen":
        settings["model"] = hub.model_digest(options["text_model"])
    return settings | {"seed": config.seed}


# The shape of a line of prompts_drawn.jsonl.
_DRAWN = {
    **dict.fromkeys(("class", "source"), "text"),
    "numbers": ["whole"],
    "sentences": ["text"],
}


class _Store:
    """The file of sentences."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._records = artifacts.read_records(path)
        for record in self._records:
            fault = checked_json.fault(record, _DRAWN)
            if not fault and len(record["numbers"]) != len(record["sentences"]):
                fault = "there are more numbers than sentences, or fewer"
            if fault:
                raise UserError(
                    f"{path}: a line holds no drawn sentences ({fault}). Remove the "
                    "line, or the file: what is missing is drawn again"
                )

    def of(self, name: str, settings: dict[str, Any]) -> "_Drawn":
        """The sentences of a class that were drawn with these settings."""
        text = json.dumps(settings, sort_keys=True)
        source = hashlib.sha256(text.encode()).hexdigest()
        drawn = _Drawn(self._path, {"class": name, "source": source})
        for record in self._records:
            if drawn.source.items() <= record.items():
                drawn.add(record["numbers"], record["sentences"])
        return drawn


class _Drawn:
    """The sentences of one class, by number."""

    def __init__(self, path: pathlib.Path, source: dict[str, str]):
        self.source = source
        self._path = path
        self._sentences: dict[int, str] = {}

    def add(self, numbers: Sequence[int], sentences: Sequence[str]) -> None:
        self._sentences |= dict(zip(numbers, sentences, strict=True))

    def after(self, start: int, model: _TextModel, name: str) -> list[str]:
        """The sentences from `start` on, as far as they are there; some are drawn."""
        if start not in self._sentences:
            missing = (n for n in itertools.count(start) if n not in self._sentences)
            wanted = list(itertools.islice(missing, model.at_once))
            for numbers, sentences in model.draw(name, wanted):
                record = self.source | {"numbers": numbers, "sentences": sentences}
                artifacts.append_records(self._path, [record])
                self.add(numbers, sentences)
            interruption.check("what was drawn is kept; the same command goes on")
        found = []
        while start + len(found) in self._sentences:
            found.append(self._sentences[start + len(found)])
        return found


def _decoding(config: ConfigDict) -> Decoding:
    options = config.prompts
    return Decoding(
        "sample",
        max_length=options.max_length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )


def plan(config: ConfigDict, classes: int) -> planning.Plan:
    """What drawing the sentences of so many classes takes, at least.

    Raises:
        UserError: the text model is unknown.
    """
    options = config.prompts
    count = options.per_class or _PROMPTS
    wanted = f"{count:,} of each of {classes} classes, drawn until they differ"
    if options.method == "chat":
        return planning.Plan(
            "generate.prompts",
            [
                ("prompts", wanted),
                (
                    "requests",
                    f"at least {classes * count:,} to {options.chat_model} at "
                    f"{options.chat_url}, {options.chat_requests} at once",
                ),
            ],
        )
    network = network_of(options.text_model, options.dtype)
    lowered = lower(network, _decoding(config), options.batch_size)
    batches = classes * -(-count // options.batch_size)
    parameters = planning.amount(planning.parameters(lowered.params))
    return planning.Plan(
        "generate.prompts",
        [
            ("model", f"{options.text_model}, {parameters} parameters"),
            ("prompts", wanted),
            (
                "batches",
                f"at least {batches:,} of {options.batch_size} sentences of at most "
                f"{options.max_length} tokens",
            ),
        ],
        resident=[
            planning.Resident(
                "weights", lowered.params, "set config.prompts.dtype='bfloat16'"
            )
        ],
        programs=[
            planning.Program(
                "a batch",
                lowered.program,
                "lower config.prompts.batch_size or max_length",
            )
        ],
        work=[
            planning.Work("texts", lowered.reading, batches),
            planning.Work("tokens", lowered.step, batches * options.max_length),
        ],
    )


def _commongen(config: ConfigDict, texts: dict[str, str]) -> _TextModel:
    """A batch at once of a T5 that makes a sentence of words."""
    options, how = config.prompts, _decoding(config)
    # Loaded when a sentence is missing.
    loaded: list[T5] = []

    def draw(name, numbers):
        if not loaded:
            loaded.append(T5.from_pretrained(options.text_model, dtype=options.dtype))
            wording.warn(loaded[0].tokenizer, {n: [t] for n, t in texts.items()})
        key, count = jax.random.key(config.seed), len(numbers)
        keys = prompting.sentence_keys(key, name, numbers)[None]
        text = texts[name].replace(",", " ")  # the model takes words, as the original
        answers = loaded[0].generate([text], how, key=keys, num_sequences=count)
        yield numbers, answers[0]

    return _TextModel(draw, options.batch_size)


def _chat(config: ConfigDict, texts: dict[str, str]) -> _TextModel:
    """Several requests at once to a chat model, each for one sentence."""
    options = config.prompts
    sampling = {"temperature": options.temperature, "top_p": options.top_p}
    chat = Chat(
        options.chat_url,
        options.chat_model,
        key=os.environ.get(options.chat_key_variable, ""),
        options=sampling | options.chat_options.to_dict(),
    )

    def draw(name, numbers):
        keys = prompting.sentence_keys(jax.random.key(config.seed), name, numbers)
        seeds = np.asarray(jax.vmap(jax.random.bits)(keys) >> 1).tolist()
        failure = None
        with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
            asked = {
                pool.submit(chat, texts[name], seed): number
                for number, seed in zip(numbers, seeds, strict=True)
            }
            for future in concurrent.futures.as_completed(asked):
                try:
                    yield [asked[future]], [future.result()]
                except (UserError, interruption.Interrupted) as error:
                    failure = error  # once the other answers are kept
        if failure is not None:
            raise failure

    return _TextModel(draw, options.chat_requests)
