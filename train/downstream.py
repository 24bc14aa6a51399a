"""Stage 2: train a classifier centrally, on synthetic data, real data, or both.

    python -m train.downstream --config=configs/digits.py --workdir=runs/digits

The training set is `<workdir>/synthetic/` (stage 1), the real training set of
`data.source`, or the two together. A share of it, `train.validation_fraction` of each
class, is held out to tell which checkpoint is best. The test set is always real; its
accuracy, macro F1 and loss are reported and choose nothing.

`train.data=procedural` trains on fractals, or of sounds on calls, that are drawn by
rule (gptfl_jax/data/procedural.py): it tells the rules apart, and is tested on others
of their drawings. No real or generated example is used.

Written to `<workdir>/pretrain/`, of procedural data to `procedural/` (`train.run` gives
another name):

    run.json         the command, the config, versions
    classifier.json  what `gptfl_jax.load_classifier` needs besides the weights
    metrics.jsonl    a line an evaluation: epoch (`step`), train_loss, accuracy,
                     macro_f1 and loss on the test set, the validation set's, seconds;
                     where examples are streamed, the seconds that the devices waited
                     for them in this epoch
    checkpoints/     variables and optimizer state of the last epochs, and of the one
                     with the highest validation accuracy (the later of equals)

Training starts at random, or from the released weights `model.weights`.
Started again, a run continues from its last checkpoint and ends with the same weights.
Stage 3 starts from the last or the best one (`federated.init_checkpoint`).
"""

import hashlib
import math
import pathlib
import shlex
import time
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from gptfl_jax import (
    artifacts,
    augmentation,
    central_training,
    choices,
    configuration,
    description,
    devices,
    evaluation,
    interruption,
    models,
    planning,
    trackers,
    trainable,
    training,
    user_files,
)
from gptfl_jax.data.fingerprint import fingerprint
from gptfl_jax.errors import UserError
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import Progress, say
from train import training_data

# Every random draw comes from fold_in(key(seed), stage); the number is part of what a
# seed means.
_STAGE = 2

# Fields that may change when a run is continued.
_FREE_TO_CHANGE = (
    *("run", "eval_every", "eval_batch_size", "checkpoint_every"),
    "data_placement",
)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains `config.model` as `config.train` says, or continues to."""
    prepare(config)
    trackers.check(config)
    folder = workdir / run_name(config)
    with artifacts.lock(folder, workdir):
        _weights_file(config)  # a download fails before the data are read
        data = training_data.load(config, workdir)
        train(config, folder, data)


def run_name(config: ConfigDict) -> str:
    """Name of a run's folder."""
    usual = "procedural" if config.train.data == "procedural" else "pretrain"
    return config.train.run or usual


def make_learner(config: ConfigDict, data: training_data.Data) -> training.Learner:
    """The model with augmentation, normalisation and precision of the config."""
    settings = config.train
    model = models.create(
        config.model.name, data.train.num_classes, **config.model.options
    )
    return training.make_learner(
        model,
        training.example_of(data.train.inputs),
        normalisation=training.Normalisation(data.source.mean, data.source.std),
        augmentation=augmentation.from_config("train", settings, data.source),
        label_smoothing=settings.label_smoothing,
        dtype=settings.dtype,
        trainable=settings.trainable,
    )


def make_optimizer(
    config: ConfigDict, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of the config, and its learning rate by step."""
    settings = config.train
    schedule = training.make_schedule(
        settings.schedule,
        settings.learning_rate,
        steps=settings.epochs * steps_per_epoch,
        warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
    )
    optimizer = training.make_optimizer(
        settings.optimizer,
        schedule,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )
    return optimizer, schedule


def _tests_split() -> NamedSharding | None:
    """How examples to test on lie on the devices."""
    every_device = devices.all_along("data")
    return NamedSharding(every_device, P("data")) if every_device else None


def train(config: ConfigDict, folder: pathlib.Path, data: training_data.Data) -> None:
    """The loop over epochs."""
    settings = config.train
    num_examples = len(data.train.labels)
    steps_per_epoch = math.ceil(num_examples / settings.batch_size)
    learner = make_learner(config, data)
    optimizer, schedule = make_optimizer(config, steps_per_epoch)

    tests_split = _tests_split()
    key = jax.random.fold_in(jax.random.key(config.seed), _STAGE)
    begin = central_training.initial_state(learner, optimizer, key, settings.batch_size)

    best = "validation_accuracy" if data.validation is not None else None
    identity = _identity(config, data)
    remedy = "Give this run a name of its own (--config.train.run=NAME)"
    with artifacts.Checkpoints(
        folder / "checkpoints", identity, best=best, remedy=remedy
    ) as saved:
        done = saved.latest_step() or 0
        if done:
            restored = training.TrainState(**saved.restore(_stored(begin)))
            begin = restored._replace(
                variables=trainable.parted(restored.variables, begin.variables)
            )
            say(f"continuing after epoch {done} of {settings.epochs}")
        else:
            if config.model.weights:
                variables = _released(config, begin.variables)
                begin = central_training.initial_state(
                    learner, optimizer, key, settings.batch_size, variables
                )
            flops = _operations(config, folder.parent, learner, data)
            artifacts.write_run_record(folder, config, flops)
            if jax.process_index() == 0:
                description.describe(
                    config.model.name, config.model.options.to_dict(), data.source
                ).save(folder)
        log = folder / "metrics.jsonl"
        group = folder.parent.name
        tracking = trackers.start(config, folder, folder.name, group, done or None)
        # The last epoch with a line: one that Ctrl-C has saved may have none.
        tested = int(saved.metrics(done).get("tested", done)) if done else 0
        metrics = artifacts.Metrics(log, done or None, tested, follow=tracking.line)
        if not done:
            preview = folder.parent / "synthetic" / "preview.png"
            tracking.picture("preview", preview)
        past = artifacts.read_metrics(log, _line(best)) if done else []
        highest = max((line.get(best, -math.inf) for line in past), default=-math.inf)
        last_saved, last_whole, started = done, (done, None), time.perf_counter()

        held_out = [
            evaluation.split_examples(d.inputs, d.labels, tests_split)
            for d in (data.test, data.validation)
            if d
        ]

        streamed = _is_streamed(config, data)
        if settings.data_placement == "auto":
            how = "streamed, ahead of the steps" if streamed else "kept on the device"
            words = _room(config, data).words(how)
            say(f"{words} (config.train.data_placement)")

        count = planning.amount(
            training.number_of_parameters(trainable.whole(begin.variables))
        )
        say(
            f"{choices.stem(config.model.name)}, {count} parameters, trained for "
            f"{settings.epochs} x {steps_per_epoch:,} steps of {settings.batch_size} "
            f"examples, into {folder}"
        )

        def test(epoch, state, train_loss, **more):
            nonlocal highest, last_saved, tested
            results = [
                evaluation.evaluate_async(
                    learner,
                    state.variables,
                    *arrays,
                    data.test.num_classes,
                    settings.eval_batch_size,
                    tests_split,
                )
                for arrays in held_out
            ]
            scalars = evaluation.metrics(results[0])._asdict()
            if best:
                validation = evaluation.metrics(results[1])
                scalars |= {
                    f"validation_{name}": value
                    for name, value in validation._asdict().items()
                }
            metrics.write(
                epoch,
                train_loss=train_loss,
                **scalars,
                learning_rate=float(schedule(epoch * steps_per_epoch)),
                **more,
                seconds=time.perf_counter() - started,
            )
            tested = epoch
            bar.note(
                f"epoch {epoch}, loss {train_loss:.3f}, "
                f"test accuracy {scalars['accuracy']:.1%}"
            )
            better = bool(best) and scalars[best] >= highest
            due = epoch - last_saved >= settings.checkpoint_every
            if better or due or epoch >= settings.epochs:
                saved.save(epoch, _stored(state), scalars)
                last_saved = epoch
                highest = max(highest, scalars[best]) if best else highest

        def stop_where_told():
            if interruption.should_save():
                about = {"tested": float(tested), **({best: math.nan} if best else {})}
                raise _stopped(saved, *last_whole, settings.epochs, about)

        bar = Progress(
            settings.epochs * steps_per_epoch, "step", done * steps_per_epoch
        )
        with tracking, interruption.deferred("step"), bar:
            for epoch, state, train_loss, waited in central_training.fit(
                learner,
                optimizer,
                begin,
                data.train.inputs,
                data.train.labels,
                key,
                settings.epochs,
                settings.batch_size,
                done=done,
                streamed=streamed,
                before_step=stop_where_told,
                after_steps=bar.update,
            ):
                if not math.isfinite(train_loss):
                    raise UserError(
                        f"the training loss is {train_loss} in epoch {epoch}: "
                        "lower config.train.learning_rate, or set "
                        "config.train.clip_norm "
                        f"(checkpoints up to epoch {last_saved} are kept)"
                    )
                # A copy, to save at Ctrl-C: the next step overwrites the state.
                last_whole = epoch, jax.tree.map(np.array, _stored(state))
                if epoch % settings.eval_every and epoch < settings.epochs:
                    continue

                test(
                    epoch,
                    state,
                    train_loss,
                    **({"seconds_waited": waited} if streamed else {}),
                )
            if done >= settings.epochs and tested < done:
                # Saved by Ctrl-C, and now to be the last one.
                test(done, begin, math.nan)
        saved.wait()
        past = artifacts.read_metrics(log, _line(best))
        lines = {line["step"]: line for line in past}
        if (best_epoch := saved.best_step()) not in lines:
            raise UserError(
                f"{log} has no line of epoch {best_epoch}, the best one: put the file "
                f"back from a copy, or delete {folder} to train again"
            )
        _report(lines, best_epoch, data, config.train.data)


def _is_streamed(config: ConfigDict, data: training_data.Data) -> bool:
    """Whether the training set stays on the host."""
    if config.train.data_placement != "auto":
        return config.train.data_placement == "stream"
    return not _room(config, data).enough


def _room(config: ConfigDict, data: training_data.Data) -> devices.Room:
    mesh = devices.for_steps(config.train.batch_size)
    return devices.room_for(data.train.inputs, mesh)


def _stored(state: training.TrainState) -> dict[str, Any]:
    """What a checkpoint holds: the whole model, whatever of it is trained."""
    return state._replace(variables=trainable.whole(state.variables))._asdict()


def _stopped(
    saved: artifacts.Checkpoints,
    epoch: int,
    whole: dict[str, Any] | None,
    epochs: int,
    metrics: dict[str, float],
) -> interruption.Interrupted:
    """Saves the last whole epoch, unless it is, and says how to go on.

    Args:
        whole: the state after `epoch`; None: of an earlier run, which saved it.
        metrics: to save with it. It cannot be the best one.
    """
    if whole is not None:
        saved.save(epoch, whole, metrics)
    saved.wait()
    if not epoch:
        return interruption.Interrupted(
            "no epoch is done; the same command starts anew"
        )
    return interruption.Interrupted(
        f"saved after epoch {epoch} of {epochs}; the same command goes on from there"
    )


def _released(config: ConfigDict, variables: training.Variables) -> training.Variables:
    """The weights of `config.model.weights`; a head of other classes is left out."""
    file = _weights_file(config)
    loaded, complete = models.load_weights(
        config.model.name, trainable.whole(variables), file
    )
    head = "" if complete else ", but for the last layer, which is random"
    say(f"initial weights: {config.model.weights}{head}")
    return trainable.parted(loaded, variables)


def _weights_file(config: ConfigDict) -> pathlib.Path | None:
    """The file that `config.model.weights` stands for; None where it is empty."""
    model = config.model
    if not model.weights:
        return None
    return models.find_weights(model.weights, model.name, **model.options.to_dict())


def _operations(
    config: ConfigDict,
    workdir: pathlib.Path,
    learner: training.Learner,
    data: training_data.Data,
) -> dict[str, float | None]:
    """Floating-point operations of all steps, and of making their examples."""
    settings = config.train
    steps = math.ceil(len(data.train.labels) / settings.batch_size)
    variables = jax.eval_shape(learner.init, jax.eval_shape(jax.random.key, 0))
    gradient, _ = training.operations(
        learner,
        variables,
        training.example_of(data.train.inputs),
        settings.batch_size,
    )
    made: float | None = 0.0
    if settings.data in ("synthetic", "both"):
        made = artifacts.read_flops(workdir / "synthetic").get("generation")
    flops = {"generation": made, "stage 2": settings.epochs * steps * gradient}
    # What released weights took is not known.
    return {**flops, **({"released weights": None} if config.model.weights else {})}


def _identity(config: ConfigDict, data: training_data.Data) -> dict[str, Any]:
    """What must be the same for a run to continue from a checkpoint."""
    leaves = jax.tree.leaves(data.train.inputs)
    settings = configuration.without_unset(config.train.to_dict())
    epochs = settings.pop("epochs")
    if settings["schedule"] == "cosine":
        what = "epochs, over which the cosine schedule lowers the learning rate,"
        settings[what] = epochs
    model = configuration.model_identity(config)
    path = _weights_file(config)
    if path is not None:
        with user_files.open_plain(path) as file:
            model["content of the weights"] = hashlib.file_digest(
                file, "sha256"
            ).hexdigest()
    return {
        "model": model,
        "classes": data.train.class_names,
        "inputs": ", ".join(f"{x.dtype}{list(x.shape[1:])}" for x in leaves),
        "seed": config.seed,
        "train": {k: v for k, v in settings.items() if k not in _FREE_TO_CHANGE},
        "data": {
            "training examples": len(data.train.labels),
            "content": fingerprint(data.train, data.validation, data.test),
        },
    }


def _line(best: str | None) -> dict[str, Any]:
    """What a line of metrics.jsonl holds, as far as it is read again."""
    names = ("accuracy", "macro_f1", "loss", *([best] if best else []))
    return dict.fromkeys(names, artifacts.NUMBER)


def _report(
    tests: dict[int, dict[str, Any]],
    best_epoch: int,
    data: training_data.Data,
    kind: str,
) -> None:
    kind = kind if kind == "procedural" else "real"
    examples = f"{len(data.test.labels):,} {kind} test examples"
    for name, epoch in (("last", max(tests)), ("best", best_epoch)):
        line = tests[epoch]
        say(
            f"{name} (epoch {epoch}): accuracy {line['accuracy']:.2%}, macro F1 "
            f"{line['macro_f1']:.2%}, loss {line['loss']:.4f} on {examples}"
        )
    best = tests[best_epoch]["accuracy"]
    found = evaluation.beside_chance(best, data.test.labels)
    if kind == "real" and found:
        say(
            f"advice: the classifier {found}. See whether what it was trained on shows "
            "what the test set shows"
        )


def dry_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what a run would take."""
    prepare(config)
    say(planning.table(plan(config, workdir)))


def plan(config: ConfigDict, workdir: pathlib.Path) -> planning.Plan:
    """What a run takes.

    Real data that are not there count as the released ones; synthetic data that are not
    made yet, as `generate.samples_per_class` has it.
    """
    settings = config.train
    data, origin = training_data.outlined(config, workdir)
    count = len(data.train.labels)
    steps = math.ceil(count / settings.batch_size)
    learner = make_learner(config, data)
    optimizer, _ = make_optimizer(config, steps)
    example = training.example_of(data.train.inputs)
    streamed = _is_streamed(config, data)
    lowered = central_training.lower(
        *(learner, optimizer, example, count, settings.batch_size, jax.random.key(0)),
        streamed,
    )
    split = _tests_split()
    variables = jax.eval_shape(learner.init, jax.eval_shape(jax.random.key, 0))
    held_out = [
        evaluation.planned(name, each.inputs, settings.eval_batch_size, split)
        for name, each in (
            ("test examples", data.test),
            ("validation examples", data.validation),
        )
        if each
    ]
    test = evaluation.lower(
        learner,
        planning.shapes(variables, split and split.mesh),
        *held_out[0].arrays,
        data.test.num_classes,
        settings.eval_batch_size,
        split,
    )
    gradient, prediction = training.operations(
        learner, variables, example, settings.batch_size
    )
    tested = sum(len(each.labels) for each in (data.test, data.validation) if each)
    tests = math.ceil(settings.epochs / settings.eval_every)
    shape = " and ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(example))
    parameters = training.number_of_parameters(trainable.whole(variables))
    trained = training.number_of_parameters(variables)
    alone = f", {planning.amount(trained)} trained" if trained < parameters else ""
    held = len(data.validation.labels) if data.validation else 0
    facts = [
        (
            "model",
            f"{choices.stem(config.model.name)}, {planning.amount(parameters)} "
            f"parameters{alone}",
        ),
        (
            "data",
            f"{count:,} training, {held:,} validation and {len(data.test.labels):,} "
            f"test examples of {shape}, {data.test.num_classes} classes"
            + (", streamed ahead of the steps" if streamed else ""),
        ),
        *(("", text) for text in origin),
        (
            "steps",
            f"{settings.epochs} epochs of {steps:,} steps of {settings.batch_size} "
            f"examples by {settings.optimizer}, {tests} tests",
        ),
    ]
    return planning.Plan(
        f"train.downstream, {run_name(config)}",
        facts,
        resident=(
            # With a copy on the host, to save when told to stop.
            planning.Resident("training state", lowered.state),
            planning.Resident(
                "training examples",
                lowered.examples,
                "lower config.data.image_size"
                + ", or set config.train.data_placement='stream'" * (not streamed),
                # Of two computations that were started, and of two to come.
                copies=4 if streamed else 1,
                in_place=True,
            ),
            *held_out,
        ),
        programs=(
            planning.Program(
                "training steps", lowered.steps, "lower config.train.batch_size"
            ),
            planning.Program("a test", test, "lower config.train.eval_batch_size"),
        ),
        work=(
            planning.Work("training steps", gradient, settings.epochs * steps),
            planning.Work(
                f"tests of {settings.batch_size} examples",
                prediction,
                tests * tested / settings.batch_size,
            ),
        ),
    )


def then(config: ConfigDict, workdir: pathlib.Path) -> str:
    """The command of stage 3, with these weights as its start."""
    name = run_name(config)
    if "federated" not in config:
        run = shlex.join([f"--workdir={workdir}", f"--run={name}"])
        return f"python -m federated.predict {run} FILE ..."
    if name == "pretrain" and "compare" in config and config.compare.methods:
        return "python -m federated.compare {same}"
    start = {"pretrain": "synthetic"}.get(name, name)
    return f"python -m federated.simulate {{same}} --config.federated.init={start}"


def main() -> None:
    """Console script `gptfl-train`."""
    launch(run, ("data", "model", "train"), dry_run=dry_run, then=then)


if __name__ == "__main__":
    main()
