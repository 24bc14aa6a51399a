"""What a run says where its clients or its start are not what one hopes for."""

import jax
import numpy as np

from federated import advice, simulate
from gptfl_jax import artifacts, description, evaluation, exports
from gptfl_jax.data import federated_data

from .conftest import make_config


def _summary(sizes):
    sizes = np.array(sizes)
    return federated_data.Summary(sizes, sizes[:, None])


def test_clients_of_next_to_nothing():
    config = make_config(num_clients=100, cohort_size=10)
    few = _summary([1] * 59 + [2] * 41)
    assert advice.on_clients(config.federated, few) == (
        "advice: 141 examples are 1.4 for each of 100 clients, too few to learn from. "
        "Set config.federated.num_clients=14, for 10 each"
    )
    config.federated.cohort_size = 20
    assert advice.on_clients(config.federated, few).endswith(
        "for 10 each, and config.federated.cohort_size to 14 at most"
    )
    # The same client may come twice: a cohort of any size is drawn.
    config.federated.sampling = "with_replacement"
    assert advice.on_clients(config.federated, few).endswith("=14, for 10 each")
    assert "num_clients=1," in advice.on_clients(config.federated, _summary([2, 2, 1]))
    assert not advice.on_clients(config.federated, _summary([5] * 100))
    # Natural clients are as they are.
    config.federated.partition = "natural"
    assert not advice.on_clients(config.federated, few)


def test_a_start_of_other_classes(tmp_path, setting):
    names = setting.source.train.class_names
    config = make_config(init="synthetic")
    # Nobody says of which classes these weights are.
    assert not advice.on_classes(config, tmp_path, names)
    path = tmp_path / "pretrain"
    about = description.describe("convnet", {"width": 4, "depth": 1}, setting.source)
    about.save(path)
    assert not advice.on_classes(config, tmp_path, names)
    others = ("cat", *names[1:])
    assert advice.on_classes(config, tmp_path, others) == (
        f"advice: {path} learned other classes than the clients' data have: 'cat' is "
        f"{names[0]!r} there. Its last layer tells those. Train stage 2 on these "
        "classes (python -m train.downstream), or set config.federated.init='random'"
    )
    turned = advice.on_classes(config, tmp_path, names[::-1])
    assert "in another order" in turned and "and 7 more" in turned
    exported = tmp_path / "exported"
    exports.write(exported, about, setting.learner.init(jax.random.key(0)))
    config.federated.init = str(exported)
    assert not advice.on_classes(config, tmp_path, names)
    assert f"advice: {exported} learned" in advice.on_classes(config, tmp_path, others)
    # The last layer of these is left out.
    assert not advice.on_classes(config, tmp_path, others[:9])
    config.federated.init = "procedural"
    about.save(tmp_path / "procedural")
    assert not advice.on_classes(config, tmp_path, others)
    (path / description.FILE).write_text("{")
    config.federated.init = "synthetic"
    assert not advice.on_classes(config, tmp_path, others)


def test_a_start_that_tells_nothing(tmp_path, setting, capsys):
    """Weights of zero name class 0 always; two runs in a process say so once."""
    variables = jax.tree.map(np.zeros_like, setting.learner.init(jax.random.key(0)))
    with artifacts.Checkpoints(tmp_path / "pretrain" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"variables": variables})
    adviser = advice.Adviser()
    for run in ("one", "two"):
        config = make_config(init="synthetic", rounds=1, run=run)
        simulate.simulate(config, tmp_path, setting, quiet=True, adviser=adviser)
    told = capsys.readouterr().out
    labels = setting.source.test.labels
    zeros, most = np.mean(labels == 0), np.bincount(labels).max() / len(labels)
    assert told.count("advice:") == 1
    assert f"is right on {zeros:.1%} of the test set" in told
    assert f"most frequent class on {most:.1%}." in told
    assert not advice.on_start(config, tmp_path, 0.5, labels)
    config.federated.init = "random"
    assert not advice.on_start(config, tmp_path, zeros, labels)


def test_chance_is_the_most_frequent_class():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    text = "is right on {} of the test set, and always naming its most frequent class "
    text += "on 50.0%"
    assert evaluation.beside_chance(0.3, labels) == text.format("30.0%")
    # Two deviations of 100 throws of a coin are 10.
    luck = " (of 100 examples the difference may be luck)"
    assert evaluation.beside_chance(0.59, labels) == text.format("59.0%") + luck
    assert not evaluation.beside_chance(0.61, labels)
