"""The checks of a whole config."""

from ml_collections import ConfigDict

from gptfl_jax import choices
from gptfl_jax.configuration.fields import Field
from gptfl_jax.configuration.renamed import no_such_field
from gptfl_jax.configuration.schema import SCHEMA, SECTIONS, fields, find
from gptfl_jax.configuration.sections.compare import Method, methods_of
from gptfl_jax.configuration.values import default_config, get, present, put
from gptfl_jax.errors import ConfigError, refused, unknown


def validate(config: ConfigDict) -> None:
    """Checks every field of a config, and the fields against each other.

    Raises:
        ConfigError: an unknown section or field, a missing field, or a value out of
            range. The message names the field and says what it takes.
    """
    known = dict(fields())
    for name in config.keys():
        entry = SCHEMA.get(name)
        if entry is None:
            raise unknown(name, known=SCHEMA, what="section", prefix=True)
        if isinstance(entry, Field):
            continue
        if not isinstance(config[name], ConfigDict):
            raise ConfigError(f"config.{name} = {config[name]!r}: takes a section")
        for key in config[name].keys():
            if f"{name}.{key}" not in known:
                raise no_such_field(f"{name}.{key}", known)
    for dotted, field in fields(*present(config)):
        section, _, key = dotted.rpartition(".")
        holder = config[section] if section else config
        if key not in holder:
            raise ConfigError(f"config.{dotted} is missing: takes {field.takes}")
        if not field.valid(holder[key]):
            raise refused(dotted, holder[key], field.takes)
    _check_options(config)
    for name in SECTIONS:
        if name in config and hasattr(SECTIONS[name], "check"):
            SECTIONS[name].check(config)
    if "compare" in config and "federated" in config:
        for method in methods_of(config):
            _check_method(config, method)


def _check_options(config: ConfigDict) -> None:
    """Checks every choice with its options, as their signatures state them."""
    for dotted, field in fields(*present(config)):
        family = field.options_of
        if family is not None:
            values = get(config, dotted).to_dict()
            name = get(config, family.field)
            if values or name not in choices.names_alone(family):
                choices.check(family, name, values)


def _check_method(config: ConfigDict, named: Method) -> None:
    """Checks the federated section that a method of `compare` makes."""
    method = default_config("federated").unlock()
    put(method, "federated", config.federated.to_dict())
    for key, value in named.changes.items():
        dotted = f"federated.{key}"
        if find(dotted) is None:
            known = [field for field, _ in fields("federated")]
            raise no_such_field(dotted, known, said=f"{named.place}.{key}")
        put(method, dotted, value)
    try:
        validate(method)
    except ConfigError as error:
        raise ConfigError(f"config.{named.place}: {error}") from None
