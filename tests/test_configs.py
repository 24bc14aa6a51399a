"""The config files: each can be read, and takes all the names that it lists."""

import importlib.util

import pytest
from ml_collections import ConfigDict

from federated.sweep.points import points
from gptfl_jax import choices, configuration, families, launch
from gptfl_jax.configuration import presets
from gptfl_jax.data import sources
from gptfl_jax.errors import ConfigError
from gptfl_jax.labels import label_set

NAMES = launch.installed_configs()


def module_of(name):
    path = launch.find_config(name)
    spec = importlib.util.spec_from_file_location(f"_tested_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value_of(config, dotted):
    """A value of the field that its config string takes."""
    value = configuration.get(config, dotted)
    if isinstance(value, ConfigDict):
        return value.to_dict()
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_so_is_its_config_string(name):
    config = launch.read_config(name)
    configuration.validate(config)
    module = module_of(name)
    for argument, dotted in getattr(module, "ARGUMENTS", {}).items():
        try:
            value = value_of(config, dotted)
        except KeyError:
            # An option that the config leaves alone, of the source or another choice.
            source = choices.find(families.SOURCE, config.data.source)
            known = choices.options(families.SOURCE, source)
            option = known.get(dotted.removeprefix("data.options."))
            value = 1 if option is None else option.default
        pairs = f"{argument}={value}"
        if dotted.startswith("federated.partition_options"):
            pairs += ",partition=dirichlet_balanced" * ("partition" in module.ARGUMENTS)
        configuration.validate(launch.read_config(f"{name}:{pairs}"))
    assert f"configs/{name}.py" in module.__doc__


def test_audio_configs_have_the_settings_of_the_original():
    words = launch.read_config("speech_commands")
    assert 35 * int(words.generate.samples_per_class) == 59_990
    assert words.federated.cohort_size == round(0.05 * 2112)
    assert (words.federated.batch_size, words.federated.local_epochs) == (16, 1)
    assert words.federated.client_learning_rate == 0.1
    assert words.compare.methods["fedopt-gptfl"].to_dict() == {
        "algorithm": "fedopt",
        "init": "synthetic",
        "client_learning_rate": 0.05,
        "algorithm_options": {"server_learning_rate": 1e-3},
    }
    sounds = launch.read_config("esc50")
    assert (sounds.generate.num_steps, sounds.generate.guidance_scale) == (100, 2.5)
    assert 50 * int(sounds.generate.samples_per_class) == 2000
    street, actors = map(launch.read_config, ("urbansound8k", "crema_d"))
    assert (street.federated.cohort_size, street.federated.rounds) == (10, 5000)
    assert street.data.options.segment_s == 3
    assert (actors.federated.cohort_size, actors.federated.rounds) == (7, 1000)
    for config in (street, actors):
        fedprox = config.compare.methods.fedprox.to_dict()
        options = {"mu": 1.0}
        assert fedprox == {"algorithm": "fedprox", "algorithm_options": options}
    for config in (street, sounds):
        assert config.federated.partition == "dirichlet_balanced"
        assert config.federated.num_clients == 50
    talks, lines = map(launch.read_config, ("iemocap", "meld:task=emotion"))
    assert (talks.federated.cohort_size, talks.federated.rounds) == (8, 5000)
    assert talks.federated.client_learning_rate == 0.0025
    assert lines.data.options.task == "emotion"
    for config in (actors, talks, lines):
        assert config.data.options.standardise == "speaker"
    faithful = launch.read_config("crema_d:faithful=True,standardise=clip").data.options
    assert (faithful.actors, faithful.standardise) == ("original", "clip")
    heard = launch.read_config("meld:faithful=True").data.options
    features = {"max_duration_s": 8.0, "channel": "first"}
    assert heard.features.to_dict() == features
    for name in (
        *("speech_commands", "esc50", "urbansound8k", "crema_d", "iemocap", "meld"),
    ):
        assert launch.read_config(name).federated.eval_every == 2
        faithful = launch.read_config(f"{name}:faithful=True")
        configuration.validate(faithful)
        assert faithful.model.options.masked is False
        assert faithful.data.options.features.channel == "first"
        assert faithful.data.options.flaws.label_equal is True
        assert faithful.train.validation_fraction == 0
    generate = launch.read_config("speech_commands:faithful=True").generate
    # Of the longest words, nine letters between two marks, SpeechT5 makes 3.52 s.
    assert generate.trim_db == 0 and generate.max_seconds > 11 * 0.32
    for config in (words, sounds):
        assert (config.train.epochs, config.train.batch_size) == (200, 32)
        assert config.train.learning_rate == 1e-4
        assert config.model.name == "audio_conv_rnn"


@pytest.mark.parametrize(
    ("name", "per_class", "least", "cutout"),
    [("cifar10", 7575, 32, 16), ("cifar100", 758, 5, 0)],
)
def test_picture_configs_have_the_settings_of_the_original(
    name, per_class, least, cutout
):
    config = launch.read_config(name)
    generate, train, federated = config.generate, config.train, config.federated
    assert int(generate.samples_per_class) == per_class
    assert (generate.num_steps, generate.guidance_choices) == (50, (1, 2, 3, 4, 5))
    assert (config.prompts.method, config.prompts.per_class) == ("commongen", 200)
    assert (train.epochs, train.batch_size, train.learning_rate) == (200, 32, 1e-4)
    assert (train.optimizer, train.weight_decay) == ("adamw", 0.9)
    assert (federated.num_clients, federated.cohort_size) == (100, 10)
    assert (federated.rounds, federated.batch_size) == (1000, 32)
    assert (federated.client_optimizer, federated.client_learning_rate) == ("sgd", 0.1)
    options = {"alpha": 0.1, "min_examples": least}
    assert federated.partition_options.to_dict() == options
    assert (federated.cutout, federated.crop_padding, federated.flip) == (cutout, 4, 1)
    assert (train.crop_area, train.crop_padding, train.flip) == (0.08, 0, 1)
    assert federated.crop_area == 0 and federated.drop_last
    assert config.compare.methods["fedopt-gptfl"].to_dict() == {
        "algorithm": "fedopt",
        "init": "synthetic",
        "algorithm_options": {"server_learning_rate": 1e-6},
    }
    assert (config.model.name, config.model.options.depth) == ("vgg", 19)


PICTURES = (
    *("cifar10", "cifar100", "flowers102", "food101", "eurosat", "covid"),
    *("caltech101", "mnist", "femnist"),
)


@pytest.mark.parametrize("name", PICTURES)
def test_variants_of_picture_configs(name):
    def read(arg):
        config = launch.read_config(f"{name}:{arg}")
        configuration.validate(config)
        return config

    def starts(config):
        return {m.rpartition("-")[2]: f.init for m, f in config.compare.methods.items()}

    for model, (module, options) in presets.PICTURE_MODELS.items():
        config = read(f"model={model}")
        if module == "vit" and not config.data.image_size:
            options = {**options, "patch": 4}
        assert (config.model.name, config.model.options.to_dict()) == (module, options)
    for init, weights, initial in (
        *(("random", "", "random"), ("synthetic", "", "synthetic")),
        *(("vgg19.pth", "", "vgg19.pth"), ("imagenet", "imagenet", "weights")),
        ("imagenet+synthetic", "imagenet", "synthetic"),
        ("imagenet,weights=mine.pth", "mine.pth", "weights"),
    ):
        config = read(f"init={init}")
        assert (config.model.weights, config.federated.init) == (weights, initial)
        expected = {"scratch": "random", "gptfl": "synthetic"}
        expected |= {"released": "weights"} if weights else {}
        assert starts(config) == expected
    for ratio in (1, 2.5, 10):
        config = read(f"ratio={ratio},method=fedopt")
        assert config.generate.samples_per_class == f"{ratio}x"
        assert config.federated.algorithm == "fedopt"
        options = {"server_learning_rate": 1e-6}
        assert config.federated.algorithm_options.to_dict() == options
    train = read("data=real").train
    sgd = train.optimizer, train.momentum, train.weight_decay, train.learning_rate
    assert sgd == ("sgd", 0.9, 5e-4, 1e-4)
    if not config.data.image_size:
        assert train.crop_padding == config.federated.crop_padding > train.crop_area
    config = read("partition=dirichlet_balanced,alpha=0.5")
    assert config.federated.partition_options.alpha == 0.5

    config = read("model=vgg19,faithful=True")
    federated = config.federated
    assert federated.sampling == "with_replacement"
    assert federated.weighting == "uniform"
    assert config.train.validation_fraction == 0
    cosine = federated.local_schedule, federated.local_schedule_steps
    assert cosine == ("cosine", 100)
    assert config.model.weights == "imagenet"
    assert starts(config) == {"scratch": "random", "gptfl": "synthetic"}
    plain = read("model=resnet20,faithful=True").model
    assert plain.weights == "" and plain.options.track_running_stats is False
    config = read("faithful=False")
    assert config.federated.local_schedule == "constant"

    for arg, message in (
        ("model=vgg20", "vgg20: no such model in the config string"),
        ("method=sgd", "sgd: no such method in the config string"),
        ("faithful=yes", "'faithful=yes': takes True or False"),
        ("ratio=many", "config.generate.samples_per_class = 'manyx': takes"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(arg)


def test_further_picture_configs():
    known = {"flowers102": 102, "food101": 101, "eurosat": 10, "covid": 3}
    known |= {"caltech101": 101, "mnist": 10, "femnist": 62}
    for name, classes in known.items():
        config = launch.read_config(name)
        options = config.data.options.to_dict()
        known = sources.known_labels(config.data.source, **options)
        assert len(label_set(known).classes) == classes
        usual = (0.0, 2) if "mnist" in name else (0.08, 0)
        crops = {"covid": (0.0, 0), "eurosat": (0.765625, 0)}.get(name, usual)
        for stage in (config.train, config.federated):
            assert (stage.crop_area, stage.crop_padding) == crops
            assert stage.rotate == (90 if name == "eurosat" else 0)
        assert config.data.image_size == (0 if "mnist" in name else 224)
        # A mirrored letter is another, or none.
        assert config.train.flip == config.federated.flip == ("mnist" not in name)
        wanted = config.generate.samples_per_class
        if name == "covid":
            assert set(wanted) == set(label_set(known).classes)
            assert sum(wanted.values()) == 15_153
        if name == "flowers102":
            assert int(wanted) * classes == 75_786
        if name == "food101":
            assert int(wanted) * classes == 75_750
    assert launch.read_config("femnist:writers=9").data.options.writers == 9
    assert launch.read_config("eurosat").train.weight_decay == 0.3
    # Where there are no sentences to draw from, ucg draws the guidance.
    assert launch.read_config("food101").generate.guidance_choices == ()


def test_starts_are_searched_without_the_speakers_they_are_tested_on():
    tested = launch.read_config("fsdd:starts=True").compare.data
    (search,) = launch.read_config("fsdd:starts=True,tune=True").compare.data.values()
    assert (
        not {*tested} & {*search.speakers} and search.test_speakers in search.speakers
    )
    search = launch.read_config("digits:starts=True,tune=True")
    final = launch.read_config("digits:starts=True")
    assert search.data.options.blocks == 11
    assert not {*search.compare.seeds} & {*final.compare.seeds}
    assert len(final.compare.seeds) == 5


def test_searches_of_rates_leave_out_what_is_tested_on():
    # Starts, settings, and rates of FedAvg, FedProx and FedOpt.
    counts = {"digits": 2 * (5 + 5 * 2 + 5 * 4), "fsdd": 2 * 2 * (5 + 5 * 4)}
    counts["drumkits"] = 2 * (4 + 4 * 2)
    for name, count in counts.items():
        config = launch.read_config(f"{name}:tune=True,init=pretrain")
        configuration.validate(config)
        assert len(points(config)) == count
        tested = launch.read_config(name).compare
        assert not {*config.compare.seeds} & {*tested.seeds}
        for turn, options in config.compare.data.items():
            (held_out,) = tested.data[turn.partition("-")[0]].values()
            held_out = (held_out,) if isinstance(held_out, str) else held_out
            (heard,) = (options[key] for key in ("kits", "speakers") if key in options)
            assert held_out and not {*held_out} & {*heard}


@pytest.mark.parametrize(
    ("argument", "turns"),
    [
        ("fsdd", ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]),
        ("fsdd:test_speaker=theo,partition=dirichlet", ["theo"]),
        ("drumkits", ["forzee", "millo", "pacific", "pearl"]),
        ("drumkits:test_kits=VariBreaks", ["chosen"]),
        ("esc50", ["fold1", "fold2", "fold3", "fold4", "fold5"]),
        ("esc50:test_fold=3", ["fold3"]),
        ("urbansound8k:test_fold=10", ["fold10"]),
        ("crema_d", ["fold1", "fold2", "fold3", "fold4", "fold5"]),
        ("iemocap", ["fold1", "fold2", "fold3", "fold4", "fold5"]),
        ("iemocap:test_fold=2", ["fold2"]),
    ],
)
def test_turns_of_the_comparison(argument, turns):
    config = launch.read_config(argument)
    assert sorted(config.compare.data) == turns
    if ":" in argument:
        (options,) = config.compare.data.values()
        assert all(config.data.options[key] == v for key, v in options.items())
