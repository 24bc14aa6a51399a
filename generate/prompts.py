"""Stage 1a: the prompts of every class, in `<workdir>/prompts.json`.

    python -m generate.prompts --config=configs/digits.py --workdir=runs/digits

Methods, set by `config.prompts.method`: `class_prompt` (one sentence a class),
`multi_domain` (a sentence a class and domain), `ucg` (class prompts; stage 1b draws the
guidance scale), `imported` (the original's pickled lists, or JSON), `commongen` (a T5
draws sentences around the class, as the original's does) and `chat` (a chat model does,
at any OpenAI-compatible endpoint), or a function in a file of your own. Classes are
those of `config.data.source`, or any names in `config.prompts.classes`. Sentences that
were drawn are not drawn again when the program is started again. `run.json` beside the
file has the command and versions.
"""

import hashlib
import pathlib
import textwrap
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from generate import text_models
from gptfl_jax import artifacts, choices, families, labels, planning, prompting
from gptfl_jax.data import outline, sources
from gptfl_jax.devices import wait_for_processes
from gptfl_jax.errors import UserError
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import say

_ROWS_SHOWN = 20
# Of the table: a sentence is cut to fit, but not to less than so much.
_COLUMNS, _LEAST_OF_PROMPT = 80, 30


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the prompts, prints what was kept and dropped, and writes the file."""
    prepare(config)
    request = _request(config, label_set_of_config(config))
    with artifacts.lock(workdir):
        if jax.process_index() == 0:
            _make(config, request, workdir)
        wait_for_processes("prompts made")


def label_set_of_config(
    config: ConfigDict,
    class_names: Callable[..., tuple[str, ...]] = sources.class_names,
) -> labels.LabelSet:
    """The classes that prompts are made of.

    Args:
        class_names: gives those of a source that is no known data set.
    """
    known = sources.known_labels(config.data.source, **config.data.options)
    return labels.label_set_of(_classes(config, class_names), known)


def _request(config: ConfigDict, label_set: labels.LabelSet) -> prompting.Request:
    return prompting.Request(
        label_set,
        config.prompts.template,
        tuple(config.prompts.domains),
        config.prompts.imported_file,
    )


def _selections(
    config: ConfigDict, request: prompting.Request, workdir: pathlib.Path
) -> dict[str, prompting.Selection]:
    """The prompts of each class, and what was dropped."""
    method, per_class = config.prompts.method, config.prompts.per_class
    if method in prompting.TEXT_MODELS:
        sentences, per_class = text_models.draw(config, request, workdir), 0
    else:
        options = config.prompts.method_options.to_dict()
        sentences = choices.bind(families.PROMPTS, method, options, request=request)
    if missing := [c for c in request.label_set.classes if c not in sentences]:
        raise UserError(
            f"config.prompts.method = {method!r}: gave no sentences for "
            f"{', '.join(missing)}"
        )
    key = jax.random.key(config.seed)
    names = request.label_set.phrases
    selections = {
        name: prompting.select(sentences[name], (name, names[name]), key, per_class)
        for name in request.label_set.classes
    }
    empty = [name for name, selection in selections.items() if not selection.kept]
    if empty:
        raise UserError(
            f"no prompt is left for {', '.join(empty)}: every sentence misses the "
            "class; name the class in the sentences, or drop it from "
            "config.prompts.classes"
        )
    return selections


def _make(
    config: ConfigDict, request: prompting.Request, workdir: pathlib.Path
) -> None:
    selections = _selections(config, request, workdir)
    path, record = workdir / "prompts.json", workdir / "run.json"
    before = path.read_bytes() if path.is_file() else b""
    artifacts.write_json(path, _content(config, request, selections))
    # Started again, it leaves the record of when they were made.
    if path.read_bytes() != before or not record.exists():
        artifacts.write_run_record(workdir, config)
    say(_summary(selections, path))


def settings(config: ConfigDict) -> dict[str, Any]:
    """The config fields that prompts are made from."""
    used = text_models.FIELDS.get(config.prompts.method, ())
    others = {name for each in text_models.FIELDS.values() for name in each} - {*used}
    others |= {*text_models.WITHOUT_EFFECT}
    if not config.prompts.method_options:
        others.add("method_options")  # which earlier versions did not have
    fields = {
        f"prompts.{name}": value
        for name, value in config.prompts.to_dict().items()
        if name not in others
    }
    if chosen := config.data.options.get("labels"):
        fields["data.options.labels"] = chosen
    return {"data.source": config.data.source, **fields}


def _classes(config: ConfigDict, class_names: Callable) -> tuple[str, ...]:
    """The names asked for, or those of the data set."""
    if config.prompts.classes:
        return tuple(config.prompts.classes)
    data = config.data
    return class_names(data.source, data.folder, **data.options)


def _content(
    config: ConfigDict,
    request: prompting.Request,
    selections: dict[str, prompting.Selection],
) -> dict[str, Any]:
    """What prompts.json holds: the prompts by class, and how they were made."""
    method = config.prompts.method
    made: dict[str, Any] = {
        "method": method,
        "seed": config.seed,
        "data_set": request.label_set.name,
        "guidance_choices": list(prompting.UCG_GUIDANCE) if method == "ucg" else [],
    }
    made["config"] = settings(config)
    if method == "imported":
        file = pathlib.Path(request.imported_file)
        made["imported_file"] = file.name
        made["imported_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    elif method in prompting.TEXT_MODELS:
        made["template"] = request.template or prompting.TEXT_MODELS[method]
    else:
        known = request.label_set.templates
        made["template"] = request.template or known.get(method, "")
    if method == "multi_domain":
        made["domains"] = list(request.domains or request.label_set.domains)
    made["dropped"] = {
        reason: {n: getattr(s, reason) for n, s in selections.items()}
        for reason in ("without_class", "duplicates", "over_limit")
        if any(getattr(s, reason) for s in selections.values())
    }
    prompts = {name: list(selection.kept) for name, selection in selections.items()}
    return {"prompts": prompts, "made": made}


def _summary(selections: dict[str, prompting.Selection], path: pathlib.Path) -> str:
    shown = list(selections.items())[:_ROWS_SHOWN]
    width = max(len("class"), *(len(name) for name, _ in shown))
    lines = [f"{'class':<{width}}  kept  dropped  first prompt"]
    for name, selection in shown:
        dropped = selection.without_class + selection.duplicates + selection.over_limit
        row = f"{name:<{width}}  {len(selection.kept):>4}  {dropped:>7}  "
        room = max(_COLUMNS - len(row), _LEAST_OF_PROMPT)
        first = textwrap.shorten(selection.kept[0], room, placeholder=" ...")
        lines.append(row + first)
    if len(selections) > len(shown):
        lines.append(f"... and {len(selections) - len(shown)} classes more")
    total = {
        field: sum(getattr(s, field) for s in selections.values())
        for field in ("without_class", "duplicates", "over_limit", "cleaned")
    }
    kept = sum(len(selection.kept) for selection in selections.values())
    words = {
        "without_class": "dropped because they do not name their class",
        "duplicates": "dropped as duplicates",
        "over_limit": "dropped beyond config.prompts.per_class",
        "cleaned": "cleaned of special tokens and loose spaces",
    }
    lines += [f"{total[field]:,} {words[field]}" for field in words if total[field]]
    lines.append(f"{kept:,} prompts for {len(selections)} classes: {path}")
    return "\n".join(lines)


def dry_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what a run would take, or where no model draws them, what it would make."""
    prepare(config)
    label_set = label_set_of_config(config, outline.class_names)
    method = config.prompts.method
    if method in prompting.TEXT_MODELS:
        plan = text_models.plan(config, len(label_set.classes))
    else:
        selections = _selections(config, _request(config, label_set), workdir)
        kept = sum(len(selection.kept) for selection in selections.values())
        name = choices.stem(method)
        text = f"{kept:,} of {len(selections)} classes by {name}, which no model draws"
        plan = planning.Plan("generate.prompts", [("prompts", text)])
    say(planning.table(plan))


def then(config: ConfigDict, workdir: pathlib.Path) -> str:
    """The command of stage 1b."""
    if "generate" not in config:
        return ""
    others = "# spoken words: generate.speech; sounds: generate.sounds"
    return f"python -m generate.images {{same}}  {others}"


def main() -> None:
    launch(run, ("data", "prompts"), dry_run=dry_run, then=then)


if __name__ == "__main__":
    main()
