"""Methods commongen and chat of generate.prompts."""

import json
import threading

import jax
import pytest
import small_t5

from generate import prompts, text_models
from generate.samples import read_prompts
from gptfl_jax import configuration, labels, prompting
from gptfl_jax.errors import UserError
from gptfl_jax.generators.text.decoding import Decoding
from gptfl_jax.generators.text.text_to_text import T5
from gptfl_jax.interruption import Interrupted

from ..chat_server import ChatServer, Reply, completion
from ..programs import in_two_processes


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """Folder of a T5 that says random words."""
    folder = tmp_path_factory.mktemp("t5")
    small_t5.model(seed=1).save_pretrained(folder)
    return folder


def make_config(**fields):
    config = configuration.default_config("data", "prompts")
    config.prompts.classes = ("cat", "hot dog", "bird")
    for name, value in fields.items():
        config.prompts[name] = value
    configuration.validate(config)
    return config


def make(config, workdir):
    prompts.run(config, workdir)
    return json.loads((workdir / "prompts.json").read_text())


# commongen --------------------------------------------------------------------------


@pytest.fixture
def commongen(tiny_t5):
    def config(**fields):
        usual = {"per_class": 5, "batch_size": 16, "max_length": 8, "top_k": 10}
        usual |= {"classes": ("cat", "bird"), "text_model": str(tiny_t5)}
        return make_config(method="commongen", **usual | fields)

    return config


@pytest.fixture
def batches(monkeypatch):
    """The texts of the batches that the T5 is asked for."""
    asked = []
    generate = T5.generate

    def recorded(self, texts, how, **options):
        asked.extend(texts)
        return generate(self, texts, how, **options)

    monkeypatch.setattr(T5, "generate", recorded)
    return asked


@pytest.fixture(scope="module")
def alone(tiny_t5):
    """Sentences 0 to 199 of each class, one batch, by hand."""
    model, key = T5.from_pretrained(tiny_t5), jax.random.key(0)
    how = Decoding("sample", max_length=8, top_k=10)
    sentences = {}
    for name in ("cat", "bird"):
        keys = prompting.sentence_keys(key, name, range(200))[None]
        (sentences[name],) = model.generate([name], how, key=keys, num_sequences=200)
    return sentences


def first_of(sentences, name, count):
    """The first sentences that name the class, each once."""
    found = []
    for sentence in sentences[name]:
        words = [word for word in sentence.split() if word != "<extra_id_0>"]
        if name in words:
            found.append(" ".join(words))
    return list(dict.fromkeys(found))[:count]


def test_prompts_are_the_first_that_name_their_class(commongen, alone, tmp_path):
    made = make(commongen(), tmp_path)
    assert list(made["prompts"]) == ["cat", "bird"]
    for name, sentences in made["prompts"].items():
        assert sentences == first_of(alone, name, 5)
        assert not any("<" in sentence for sentence in sentences)
    assert (
        made["made"]["method"] == "commongen" and made["made"]["template"] == "{name}"
    )
    assert made["made"]["config"]["prompts.top_k"] == 10
    assert "prompts.batch_size" not in made["made"]["config"]
    assert "prompts.chat_url" not in made["made"]["config"]
    assert sum(made["made"]["dropped"]["without_class"].values()) > 0


def test_batch_size_and_more_prompts_change_no_sentence(
    commongen, alone, batches, tmp_path
):
    make(commongen(batch_size=7, per_class=3), tmp_path)
    batches.clear()
    made = make(commongen(per_class=8), tmp_path)
    assert batches  # some had to be drawn
    for name, sentences in made["prompts"].items():
        assert sentences == first_of(alone, name, 8)


def test_what_was_drawn_is_not_drawn_again(commongen, batches, tmp_path, monkeypatch):
    made = make(commongen(), tmp_path)
    (tmp_path / "prompts.json").unlink()
    batches.clear()
    monkeypatch.setattr(T5, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    # Neither for the same nor for fewer.
    assert make(commongen(), tmp_path) == made
    make(commongen(per_class=2, draws_per_prompt=90, batch_size=1), tmp_path)
    assert not batches


def test_an_interrupted_run_goes_on(commongen, batches, tmp_path):
    """The second class is cut in the middle of a line."""
    whole = make(commongen(per_class=8), tmp_path / "whole")
    expected = batches.copy()
    drawn = (tmp_path / "whole" / "prompts_drawn.jsonl").read_bytes()
    lines = drawn.splitlines(keepends=True)
    assert len(lines) == len(expected)
    for cut in (0, 1, len(lines) - 1):
        part = b"".join(lines[:cut]) + lines[cut][:-20]
        (tmp_path / str(cut)).mkdir()
        (tmp_path / str(cut) / "prompts_drawn.jsonl").write_bytes(part)
        batches.clear()
        assert make(commongen(per_class=8), tmp_path / str(cut)) == whole
        assert batches == expected[cut:]
        assert (tmp_path / str(cut) / "prompts_drawn.jsonl").read_bytes() == drawn


@pytest.mark.parametrize("fields", [{"temperature": 2.0}, {"max_length": 5}], ids=str)
def test_other_settings_draw_anew(commongen, tmp_path, fields):
    one = make(commongen(per_class=2), tmp_path)
    other = make(commongen(per_class=2, **fields), tmp_path)
    assert other["prompts"] != one["prompts"]
    # The first ones are still there.
    assert make(commongen(per_class=2), tmp_path) == one


def test_another_model_in_the_same_folder_draws_anew(commongen, tmp_path):
    small_t5.model(seed=1).save_pretrained(tmp_path / "t5")
    config = commongen(per_class=2, text_model=str(tmp_path / "t5"))
    one = make(config, tmp_path / "run")
    small_t5.model(seed=2).save_pretrained(tmp_path / "t5")
    assert make(config, tmp_path / "run")["prompts"] != one["prompts"]


def test_a_class_that_cannot_give_enough_is_named(commongen, tmp_path):
    config = commongen(per_class=4, draws_per_prompt=10, classes=("cat", "horse"))
    message = (
        r"class 'horse' gave 0 of 4 prompts in 40 sentences \(40 do not name it, 0 are "
        r"duplicates\): lower config.prompts.per_class, raise"
    )
    with pytest.raises(UserError, match=message):
        make(config, tmp_path)
    assert not (tmp_path / "prompts.json").exists()


def test_the_text_is_the_phrase_of_the_class(commongen, batches, tmp_path):
    config = commongen(classes=("bird",), per_class=1)
    config.data.source = "cifar10"
    make(config, tmp_path)
    assert set(batches) == {"a Bird"}
    batches.clear()
    config.prompts.template = "red, {name}"
    make(config, tmp_path)
    assert set(batches) == {"red  a Bird"}


def test_images_see_which_prompts_they_have(commongen, tmp_path):
    make(commongen(per_class=2), tmp_path)
    found, _ = read_prompts(tmp_path, commongen(per_class=2, batch_size=3))
    assert list(found) == ["cat", "bird"]
    with pytest.raises(UserError, match=r"with config.prompts.top_k = 10, now it is 9"):
        read_prompts(tmp_path, commongen(per_class=2, top_k=9))


def test_two_processes_make_what_one_makes(commongen, tiny_t5, tmp_path, repository):
    """The first draws, the other waits for it."""
    one = make(commongen(), tmp_path / "one")
    fields = {
        "template": "{name}",
        "classes": "cat,bird",
        "text_model": str(tiny_t5),
        "per_class": 5,
    }
    fields |= {"method": "commongen", "batch_size": 16, "max_length": 8, "top_k": 10}
    codes, outputs = in_two_processes(
        "generate.prompts",
        repository,
        *("--config=digits", f"--workdir={tmp_path / 'two'}"),
        *(f"--config.prompts.{name}={v}" for name, v in fields.items()),
    )
    assert codes == [0, 0], outputs
    assert "10 prompts for 2 classes" in outputs[0]
    assert "prompts for" not in outputs[1]
    two = json.loads((tmp_path / "two" / "prompts.json").read_text())
    assert two["prompts"] == one["prompts"]


# chat -------------------------------------------------------------------------------


def sentence(body):
    """One of three misses the class, one of five is the same as others."""
    text, seed = body["messages"][0]["content"], body["seed"]
    name = text.split("_ _ _ _ ")[1].split(" _ _")[0]
    if seed % 3 == 0:
        return f'"Something {seed} without it"'
    return f"A {name} number {seed if seed % 5 else 0}."


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ChatServer()
    server.reply = lambda body: completion(sentence(body))
    yield server
    server.close()


def chat_config(server, **fields):
    return make_config(
        method="chat",
        **{"per_class": 9, "chat_url": server.url, "chat_requests": 4} | fields,
    )


def test_chat_answers_become_prompts(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "hidden")
    config = chat_config(server, chat_key_variable="MY_KEY", top_p=0.9)
    made = make(config, tmp_path)
    for name in ("cat", "hot dog", "bird"):
        keys = prompting.sentence_keys(jax.random.key(0), name, range(60))
        seeds = [int(jax.random.bits(key)) // 2 for key in keys]
        answers = [s if s % 5 else 0 for s in seeds if s % 3]
        expected = [f"A {name} number {number}." for number in dict.fromkeys(answers)]
        assert made["prompts"][name] == expected[:9]
    keys = {request.headers["Authorization"] for request in server.requests}
    assert keys == {"Bearer hidden"}
    body = server.requests[0].body
    assert body["model"] == "gpt-4o-mini"
    assert body["temperature"] == 1.0 and body["top_p"] == 0.9
    assert "Fill in the blanks" in body["messages"][0]["content"]
    # The key is written nowhere.
    for path in tmp_path.iterdir():
        assert b"hidden" not in path.read_bytes()


def seeds(server):
    return [request.body["seed"] for request in server.requests]


def test_answers_are_asked_for_once(server, tmp_path):
    made = make(chat_config(server), tmp_path)
    asked = seeds(server)
    assert len(set(asked)) == len(asked) > 27
    assert make(chat_config(server, chat_requests=1), tmp_path) == made
    assert seeds(server) == asked


def test_what_was_answered_before_a_failure_is_kept(server, tmp_path):
    whole = make(chat_config(server), tmp_path / "whole")
    # A failure amid the requests of a round, which the others survive.
    failing = seeds(server)[14]

    def reply(body):
        return Reply(403) if body["seed"] == failing else completion(sentence(body))

    server.reply = reply
    server.requests.clear()
    config = chat_config(server)
    with pytest.raises(UserError, match="status 403, .*environment variable with the"):
        make(config, tmp_path / "part")
    assert len(server.requests) == 16
    server.reply = lambda body: completion(sentence(body))
    assert make(config, tmp_path / "part") == whole
    asked = seeds(server)
    assert {seed for seed in asked if asked.count(seed) > 1} == {failing}


def test_what_was_answered_before_ctrl_c_is_kept(server, tmp_path, told):
    whole = make(chat_config(server), tmp_path / "whole")
    asked = seeds(server)
    server.requests.clear()

    def reply(body):
        # The others of the round wait, and are not asked again.
        return completion(sentence(body)) if told.is_set() else Reply(503)

    server.reply = reply
    timer = threading.Timer(0.3, told.set)
    timer.start()
    with pytest.raises(Interrupted, match="goes on"):
        make(chat_config(server), tmp_path / "part")
    assert len(server.requests) <= 8
    told.clear()
    server.requests.clear()
    server.reply = lambda body: completion(sentence(body))
    assert make(chat_config(server), tmp_path / "part") == whole
    assert set(seeds(server)) <= set(asked)


def test_a_question_of_ones_own(server, tmp_path):
    config = chat_config(
        server,
        template="What is a {name}?",
        per_class=1,
        chat_options={"temperature": None, "max_tokens": 9},
    )
    server.reply = lambda body: completion(body["messages"][0]["content"])
    made = make(config, tmp_path)
    assert made["prompts"]["hot dog"] == ["What is a hot dog?"]
    for request in server.requests:
        assert "temperature" not in request.body and request.body["max_tokens"] == 9


# Both -------------------------------------------------------------------------------


def test_every_field_is_accounted_for():
    """A new field is one that sentences depend on, or not."""
    shared = {"method", "method_options", "classes", "template", "domains"}
    shared |= {"per_class", "imported_file"}
    known = shared | {*text_models.WITHOUT_EFFECT}
    for fields in text_models.FIELDS.values():
        known |= {*fields}
    assert known == {*configuration.SCHEMA["prompts"]}
    assert text_models.FIELDS.keys() == prompting.TEXT_MODELS.keys()


def test_200_prompts_are_made_where_no_number_is_given(server, tmp_path):
    made = make(chat_config(server, per_class=0, classes=("bird",)), tmp_path)
    assert len(made["prompts"]["bird"]) == 200


def test_templates_take_the_name():
    label_set = labels.label_set_of(["cat"])
    request = prompting.Request(label_set, template="{name} {domain}")
    with pytest.raises(UserError, match="for method chat"):
        prompting.chat(request)
