import math

import pytest
from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import (
    SCHEMA,
    Field,
    apply_arguments,
    default_config,
    set_text,
    validate,
)
from gptfl_jax.errors import ConfigError, UserError

SECTIONS = [name for name, entry in SCHEMA.items() if not isinstance(entry, Field)]


def refusal(config: ConfigDict) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    return str(caught.value)


def test_every_default_is_taken_and_explained():
    for dotted, field in configuration.fields():
        assert field.valid(field.default), dotted
        assert field.takes and field.help, dotted
        assert not field.valid(object()), dotted
        assert not field.valid(math.nan), dotted
        assert not field.valid(None), dotted


def test_default_config_holds_the_sections_asked_for():
    config = default_config("data", "federated")
    assert sorted(config.keys()) == [
        *("data", "federated", "seed", "tracker", "tracker_options")
    ]
    assert config.federated.client_learning_rate == 0.1
    assert config.federated.rounds == 100
    assert config.data.options.to_dict() == {}
    validate(config)
    validate(default_config(*SECTIONS))
    assert default_config().to_dict() == {
        **{"seed": 0, "tracker": "none", "tracker_options": {}}
    }
    with pytest.raises(ConfigError, match="fedrated: no such section; did you mean"):
        default_config("fedrated")


def test_default_configs_do_not_share_state():
    first = default_config("data")
    first.data.options.folder = "x"
    assert default_config("data").data.options.to_dict() == {}
    assert SCHEMA["data"]["options"].default == {}


def test_unknown_fields_cannot_be_set_in_a_config_file():
    config = default_config("federated")
    with pytest.raises((AttributeError, KeyError)):
        config.federated.round = 3
    config.federated.client_options.momentum = 0.9
    validate(config)


@pytest.mark.parametrize(
    ("dotted", "value", "says"),
    [
        ("seed", -1, "config.seed = -1: takes a whole number >= 0 and < 2**32"),
        ("seed", True, "config.seed = True: takes a whole number >= 0 and < 2**32"),
        (
            "federated.client_learning_rate",
            -1,
            "config.federated.client_learning_rate = -1.0: takes a number > 0",
        ),
        (
            "federated.client_learning_rate",
            0,
            "config.federated.client_learning_rate = 0.0: takes a number > 0",
        ),
        (
            "federated.client_learning_rate",
            math.nan,
            "config.federated.client_learning_rate = nan: takes a number > 0",
        ),
        (
            "federated.client_learning_rate",
            math.inf,
            "config.federated.client_learning_rate = inf: takes a number > 0",
        ),
        (
            "federated.rounds",
            2.0,
            "config.federated.rounds = 2.0: takes a whole number >= 1 and < 2**31",
        ),
        (
            "federated.rounds",
            0,
            "config.federated.rounds = 0: takes a whole number >= 1 and < 2**31",
        ),
        (
            "train.label_smoothing",
            1.5,
            "config.train.label_smoothing = 1.5: takes a number >= 0 and <= 1",
        ),
        ("train.flip", 1, "config.train.flip = 1: takes True or False"),
        (
            "train.optimizer",
            "adam",
            "config.train.optimizer = 'adam': takes one of adamw, sgd",
        ),
        (
            "generate.samples_per_class",
            "x",
            "config.generate.samples_per_class = 'x': takes a whole number from 1 to a "
            "million, or such a multiple of the real count as 3x, or one of these by "
            "class, as {'cat': 300, 'dog': '2x'}, whose dots are left out",
        ),
        (
            "prompts.classes",
            "cat",
            "config.prompts.classes = 'cat': takes a list of names",
        ),
        (
            "prompts.classes",
            ("cat", 3),
            "config.prompts.classes = ('cat', 3): takes a list of names",
        ),
        (
            "prompts.chat_url",
            "file:///etc/hosts",
            "config.prompts.chat_url = 'file:///etc/hosts': takes an http or https "
            "address",
        ),
        (
            "prompts.chat_key_variable",
            "$KEY",
            "config.prompts.chat_key_variable = '$KEY': takes the name of an "
            "environment variable",
        ),
        (
            "federated.run",
            "../x",
            "config.federated.run = '../x': takes a folder name of at most 120 bytes, "
            "or empty",
        ),
        (
            "federated.client_optimizer",
            "cosine_decay_schedule",
            "config.federated.client_optimizer = 'cosine_decay_schedule': takes the "
            "name of an optax optimizer, as sgd or adam",
        ),
        (
            "data.channels",
            2,
            "config.data.channels = 2: takes 0, 1 or 3",
        ),
        (
            "data.options",
            {"not a keyword": 1},
            "config.data.options = {'not a keyword': 1}: takes keyword arguments, as "
            "in {'name': value}",
        ),
        (
            "report.targets",
            (0.9, 90),
            "config.report.targets = (0.9, 90): takes a list of numbers > 0 and <= 1",
        ),
    ],
)
def test_a_value_out_of_range_names_the_field_and_what_it_takes(dotted, value, says):
    config = default_config(*SECTIONS)
    section, _, key = dotted.rpartition(".")
    holder = config[section] if section else config
    with holder.ignore_type():
        holder[key] = ConfigDict(value) if isinstance(value, dict) else value
    assert refusal(config) == says


@pytest.mark.parametrize("name", ["synthetic", "federated", "random"])
def test_a_run_of_stage_2_has_no_name_that_is_taken(name):
    config = configuration.default_config("train")
    config.train.run = name
    with pytest.raises(ConfigError, match=f"train.run = '{name}': takes a name other"):
        configuration.validate(config)


@pytest.mark.parametrize(
    "value",
    [
        *("3x", "0.5x", "1e3x", "12", 12, "1", pytest.param(1, id="one")),
        *({"cat": 3, "a dog": "2x"}, ConfigDict({"cat": "12"})),
    ],
)
def test_samples_per_class_takes_counts_and_ratios(value):
    assert SCHEMA["generate"]["samples_per_class"].valid(value)


@pytest.mark.parametrize(
    "value",
    [
        *("0x", "-1x", "infx", "nanx", "0", 0, "1.5", 1.5, ""),
        *({}, {"cat": 0}, {"cat": 3, 4: 3}, {"cat": {"dog": 3}}, ["cat"]),
        {"St. Bernard": 3},
    ],
)
def test_samples_per_class_refuses(value):
    assert not SCHEMA["generate"]["samples_per_class"].valid(value)


@pytest.mark.parametrize("name", ["no_such_model", "../convnet", "", 3])
def test_models_are_the_modules_there_are(name):
    config = default_config("model")
    with config.model.ignore_type():
        config.model.name = name
    message = refusal(config)
    assert message.startswith(f"config.model.name = {name!r}: takes one of ")
    assert "convnet" in message and "resnet" in message


def test_unknown_and_missing_fields_of_a_config_built_by_hand():
    config = ConfigDict(default_config("federated").to_dict())
    config.federated.round = 3
    assert refusal(config) == (
        "config.federated.round: no such field; did you mean config.federated.rounds?"
    )
    del config.federated["round"], config.federated["rounds"]
    assert refusal(config) == (
        "config.federated.rounds is missing: takes a whole number >= 1 and < 2**31"
    )
    config = default_config("federated").unlock()
    config.federatde = ConfigDict()
    assert refusal(config) == (
        "config.federatde: no such section; did you mean config.federated?"
    )
    config = ConfigDict({"seed": 0, "federated": 3})
    assert refusal(config) == "config.federated = 3: takes a section"


def test_fields_that_depend_on_each_other():
    config = default_config(*SECTIONS)
    config.federated.partition = "dirichlet"
    config.federated.num_clients = 8
    config.federated.cohort_size = 9
    assert refusal(config) == (
        "config.federated.cohort_size = 9: takes at most the number of clients, "
        "which is 8"
    )
    config.federated.cohort_size = 8
    validate(config)

    config.prompts.method = "imported"
    assert "config.prompts.imported_file" in refusal(config)
    config.prompts.method = "ucg"
    config.prompts.template = "a photo"
    assert refusal(config) == (
        "config.prompts.template = 'a photo': takes a sentence with {name} in it"
    )
    config.prompts.template = "a photo of {name}"

    config.generate.height = 64
    assert "takes both or neither" in refusal(config)
    config.generate.width = 32
    validate(config)

    config.train.epochs = 2
    config.train.warmup_epochs = 2.5
    assert refusal(config) == (
        "config.train.warmup_epochs = 2.5: takes at most config.train.epochs = 2"
    )


def test_optimizer_options_are_keywords_of_the_optimizer():
    config = default_config("federated")
    config.federated.client_options = {"momentum": 0.9, "nesterov": True}
    validate(config)
    config.federated.client_options = {"b1": 0.9}
    assert refusal(config).startswith(
        "config.federated.client_options.b1: optax.sgd takes no such keyword, but "
        "momentum, nesterov"
    )


def test_methods_to_compare_are_checked_as_federated_sections():
    config = default_config("federated", "compare")
    config.compare.methods = {
        "fedavg": {"algorithm": "fedavg"},
        "gptfl": {"init": "synthetic", "client_options": {"momentum": 0.5}},
    }
    validate(config)
    config.compare.methods.gptfl.round = 3
    assert refusal(config) == (
        "config.compare.methods.gptfl.round: no such field; did you mean "
        "config.federated.rounds?"
    )
    del config.compare.methods.gptfl["round"]
    config.compare.methods.gptfl.rounds = 0
    assert refusal(config) == (
        "config.compare.methods.gptfl: config.federated.rounds = 0: takes a whole "
        "number >= 1 and < 2**31"
    )


@pytest.mark.parametrize(
    ("dotted", "text", "value"),
    [
        ("seed", "3", 3),
        ("federated.client_learning_rate", "1", 1.0),
        ("federated.client_learning_rate", "1e-3", 0.001),
        ("federated.run", "12", "12"),
        ("federated.run", "a-b", "a-b"),
        ("federated.run", "", ""),
        ("train.flip", "true", True),
        ("train.flip", "False", False),
        ("generate.samples_per_class", "3x", "3x"),
        ("generate.samples_per_class", "40", 40),
        ("generate.samples_per_class", "{'a cat': 3}", ConfigDict({"a cat": 3})),
        ("prompts.classes", "cat,dog", ("cat", "dog")),
        ("prompts.classes", "cat", ("cat",)),
        ("prompts.classes", "('a, b', 'c')", ("a, b", "c")),
        ("prompts.classes", "()", ()),
        ("prompts.classes", "1,2", ("1", "2")),
        ("prompts.template", "a photo, of {name}", "a photo, of {name}"),
        ("report.targets", "0.5", (0.5,)),
        ("report.targets", "0.5,0.75", (0.5, 0.75)),
        ("report.targets", "[0.5, 1]", (0.5, 1)),
        ("generate.guidance_choices", "1,2,3", (1, 2, 3)),
    ],
)
def test_text_becomes_the_fields_type(dotted, text, value):
    config = default_config(*SECTIONS)
    set_text(config, dotted, text)
    section, _, key = dotted.rpartition(".")
    found = (config[section] if section else config)[key]
    assert found == value
    assert type(found) is type(value)
    validate(config)


def test_text_sets_keywords():
    config = default_config("federated", "model")
    set_text(config, "federated.client_options.momentum", "0.9")
    set_text(config, "federated.client_options.nesterov", "true")
    set_text(config, "federated.algorithm", "fedopt")
    set_text(config, "federated.algorithm_options", "{'server_learning_rate': 0.5}")
    set_text(config, "model.options.norm", "group")
    assert config.federated.client_options.to_dict() == {
        "momentum": 0.9,
        "nesterov": True,
    }
    assert config.federated.algorithm_options.to_dict() == {"server_learning_rate": 0.5}
    assert config.model.options.to_dict() == {"norm": "group"}
    validate(config)


@pytest.mark.parametrize(
    ("dotted", "text", "says"),
    [
        (
            "federated.round",
            "5",
            "config.federated.round: no such field; did you mean "
            "config.federated.rounds?",
        ),
        (
            "rounds",
            "5",
            "config.rounds: no such field; did you mean config.federated.rounds?",
        ),
        (
            "federated.lr",
            "1",
            "config.federated.lr: no such field; here it is "
            "config.federated.client_learning_rate",
        ),
        (
            "num_rounds",
            "1",
            "config.num_rounds: no such field; here it is config.federated.rounds",
        ),
        (
            "train.cohort_size",
            "5",
            "config.train.cohort_size: no such field; did you mean "
            "config.federated.cohort_size?",
        ),
        (
            "data",
            "5",
            "config.data is a section; its fields are data.source, data.options, "
            "data.folder, data.image_size, data.channels",
        ),
        (
            "zzz",
            "5",
            "config.zzz: no such field; there are config.seed, config.tracker, "
            "config.tracker_options, config.data, config.federated",
        ),
        (
            "data.zzz",
            "5",
            "config.data.zzz: no such field; there are config.data.source, "
            "config.data.options, config.data.folder, config.data.image_size, "
            "config.data.channels",
        ),
        (
            "train.epochs",
            "5",
            "config.train.epochs: this config has no section `train`",
        ),
        (
            "federated.rounds",
            "many",
            "config.federated.rounds = 'many': takes a whole number >= 1 and < 2**31",
        ),
        (
            "federated.rounds",
            "5.5",
            "config.federated.rounds = 5.5: takes a whole number >= 1 and < 2**31",
        ),
        (
            "federated.diagnostics",
            "1",
            "config.federated.diagnostics = 1: takes True or False",
        ),
        (
            "federated.client_options",
            "3",
            "config.federated.client_options = 3: takes keyword arguments, as in "
            "{'name': value}",
        ),
        (
            "federated.client_options.a-b",
            "3",
            "config.federated.client_options.a-b: 'a-b' is not a keyword",
        ),
    ],
)
def test_text_that_is_refused(dotted, text, says):
    config = default_config("data", "federated")
    if dotted == "train.cohort_size":
        config = default_config("train", "federated")
    with pytest.raises(ConfigError) as caught:
        set_text(config, dotted, text)
    assert str(caught.value) == says


def test_config_string_sets_fields_by_their_aliases():
    aliases = {
        "alpha": "federated.client_learning_rate",
        "init": "federated.init",
        "seed": "seed",
    }
    aliases["options"] = "federated.client_options"
    config = default_config("federated")
    same = apply_arguments(
        config, " alpha=0.5, init=random,seed=4,options={'momentum': 0.9}", aliases
    )
    assert same is config
    assert config.federated.client_learning_rate == 0.5
    assert config.federated.init == "random"
    assert config.seed == 4
    assert config.federated.client_options.to_dict() == {"momentum": 0.9}
    assert apply_arguments(config, "", aliases).seed == 4


@pytest.mark.parametrize(
    ("arg", "says"),
    [
        ("alph=1", "alph: no such name in the config string; did you mean alpha?"),
        (
            "rounds=1",
            "rounds: no such name in the config string; there are alpha, init",
        ),
        ("alpha", "'alpha': takes name=value pairs separated by commas"),
        ("alpha=-1", "config.federated.client_learning_rate = -1: takes a number > 0"),
        ("alpha=x", "config.federated.client_learning_rate = 'x': takes a number > 0"),
    ],
)
def test_config_string_is_checked(arg, says):
    aliases = {"alpha": "federated.client_learning_rate", "init": "federated.init"}
    with pytest.raises(ConfigError) as caught:
        apply_arguments(default_config("federated"), arg, aliases)
    assert says in str(caught.value)


def test_testing_clients_needs_held_out_examples():
    config = default_config("federated")
    config.federated.personalisation_every = 5
    assert refusal(config) == (
        "config.federated.personalisation_every = 5: takes 0 while "
        "config.federated.client_test_fraction = 0 holds nothing out"
    )
    config.federated.client_test_fraction = 0.2
    validate(config)
    config.federated.client_test_fraction = 1.0
    assert "client_test_fraction = 1.0: takes a number >= 0 and < 1" in refusal(config)


def test_cohort_check_for_stages():
    federated = default_config("federated").federated
    federated.cohort_size = 4
    configuration.check_cohort(federated, 4)
    with pytest.raises(UserError, match="cohort_size = 4: takes at most .* is 3"):
        configuration.check_cohort(federated, 3)
    federated.sampling = "with_replacement"
    configuration.check_cohort(federated, 3)


def test_sampling_by_availability_needs_its_file():
    config = default_config("federated")
    config.federated.sampling = "availability"
    assert refusal(config) == (
        "config.federated.sampling_options.file is missing: takes a name in UTF-8"
    )


@pytest.mark.parametrize(
    ("dotted", "text", "says"),
    [
        ("federated.rounds", f"{10**23}", f"rounds = {10**23}: takes a whole number"),
        (
            "seed",
            f"{2**32}",
            "seed = 4294967296: takes a whole number >= 0 and < 2**32",
        ),
        ("compare.seeds", f"{2**32}", "takes a list of whole numbers >= 0 and < 2**32"),
        (
            "federated.client_learning_rate",
            f"{10**400}",
            "(401 characters): takes a number > 0",
        ),
        (
            "federated.client_learning_rate",
            "1" * 8000,
            "(8,002 characters): takes a number > 0",
        ),
        (
            "federated.client_learning_rate",
            "(" * 100_000,
            "(100,002 characters): takes a number > 0",
        ),
        ("generate.samples_per_class", "9" * 5000, "takes a whole number from 1 to a"),
        ("generate.samples_per_class", "1e300x", "= '1e300x': takes a whole number"),
        ("federated.run", "a" * 300, "takes a folder name of at most 120 bytes, or"),
        ("federated.run", "\u8336" * 41, "takes a folder name of at most 120 bytes"),
        ("federated.run", "caf\udce9", r"= 'caf\udce9': takes a folder name"),
        ("federated.run", "a\x1b[31m", r"= 'a\x1b[31m': takes a folder name"),
        ("data.folder", "caf\udce9", r"= 'caf\udce9': takes text in UTF-8"),
        ("federated.init", "caf\udce9", r"= 'caf\udce9': takes a name in UTF-8"),
    ],
)
def test_what_is_too_large_or_cannot_be_written_is_refused(dotted, text, says):
    config = default_config("data", "generate", "federated", "compare")
    with pytest.raises(ConfigError) as caught:
        set_text(config, dotted, text)
    message = str(caught.value)
    assert message.startswith(f"config.{dotted} = ") and says in message
    assert message.isprintable() and len(message) < 400


def test_options_that_a_new_choice_does_not_take_are_dropped():
    config = default_config("federated")
    texts = [
        ("federated.partition_options.alpha", "0.5"),
        ("federated.partition", "dirichlet"),
        ("federated.partition_options.min_examples", "5"),
    ]
    configuration.set_texts(config, texts)
    options = config.federated.partition_options
    assert options.to_dict() == {"alpha": 0.5, "min_examples": 5}
    set_text(config, "federated.partition", "quantity_skew")
    assert options.to_dict() == {"alpha": 0.5, "min_examples": 5}
    set_text(config, "federated.partition", "shards")
    assert options.to_dict() == {}
    options.alpha = 0.5
    assert refusal(config) == (
        "config.federated.partition_options.alpha: shards takes no such option; it "
        "takes shards_per_client"
    )
