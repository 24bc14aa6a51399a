import json
import pickle

import pytest
from PIL import Image

from generate import prompts
from gptfl_jax import artifacts, configuration, launch
from gptfl_jax.errors import UserError


def make_config(**fields):
    config = configuration.default_config("data", "prompts")
    for name, value in fields.items():
        config.prompts[name] = value
    configuration.validate(config)
    return config


def make(workdir, **fields):
    prompts.run(make_config(**fields), workdir)
    return json.loads((workdir / "prompts.json").read_text())


def test_classes_are_those_of_the_data_source(tmp_path):
    made = make(tmp_path, template="{name}!")
    assert made["prompts"] == {
        **{"0": ["zero!"], "1": ["one!"], "2": ["two!"], "3": ["three!"]},
        **{"4": ["four!"], "5": ["five!"], "6": ["six!"], "7": ["seven!"]},
        **{"8": ["eight!"], "9": ["nine!"]},
    }
    assert list(made["prompts"]) == list("0123456789")
    assert made["made"]["method"] == "class_prompt" and made["made"]["seed"] == 0
    assert made["made"]["template"] == "{name}!"
    assert made["made"]["data_set"] == "sklearn_digits"


def test_classes_of_picture_folders_are_their_names(tmp_path):
    # Pictures of several sizes, which a config gives a size, or broken ones.
    for name, size in (("red fox", 4), ("owl", 5)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (size, size)).save(folder / "0.png")
        (folder / "1.png").write_bytes(b"not a picture")
    config = make_config()
    config.data.source, config.data.folder = "image_folder", str(tmp_path / "photos")
    prompts.run(config, tmp_path)
    made = json.loads((tmp_path / "prompts.json").read_text())
    assert made["prompts"] == {
        "owl": ["a photo of owl"],
        "red fox": ["a photo of red fox"],
    }


def test_picture_folders_of_a_known_data_set_have_its_prompts(tmp_path):
    for name in ("COVID", "Normal", "Viral Pneumonia"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    config = make_config()
    config.data.source, config.data.folder = "image_folder", str(tmp_path / "photos")
    config.data.options.labels = "covid_radiography"
    prompts.run(config, tmp_path)
    made = json.loads((tmp_path / "prompts.json").read_text())
    assert list(made["prompts"]) == ["NORMAL", "Viral Pneumonia", "COVID"]
    sentence = (
        "a high-resolution chest X-ray image showing typical features of COVID-19"
    )
    assert made["prompts"]["COVID"] == [sentence]
    assert made["made"]["config"]["data.options.labels"] == "covid_radiography"


def test_ucg_and_multi_domain_are_recorded(tmp_path):
    made = make(tmp_path, method="ucg", classes=("fox",))
    assert made["prompts"] == {"fox": ["a photo of fox"]}
    assert made["made"]["guidance_choices"] == [1, 2, 3, 4, 5]
    made = make(
        tmp_path, method="multi_domain", classes=("fox",), domains=("photo", "map")
    )
    assert made["prompts"] == {"fox": ["a photo of fox", "a map of fox"]}
    assert made["made"]["domains"] == ["photo", "map"]
    assert made["made"]["guidance_choices"] == []


def test_import_is_cleaned_counted_and_summed_up(tmp_path, capsys):
    lists = {
        "a Cat": ["a cat<extra_id_20> sits", "A CAT SITS", "a catalog", "my cats"],
        "a hot dog": ["hot dogs" + " in a row" * 9, "a dog"],
    }
    file = tmp_path / "lists.pkl"
    file.write_bytes(pickle.dumps(lists))
    made = make(
        tmp_path,
        method="imported",
        classes=("hot_dog", "cat"),
        imported_file=str(file),
        per_class=1,
    )
    assert list(made["prompts"]) == ["hot_dog", "cat"]
    assert made["prompts"]["hot_dog"] == ["hot dogs" + " in a row" * 9]
    assert made["prompts"]["cat"][0] in ("a cat sits", "my cats")
    assert made["made"]["imported_file"] == "lists.pkl"
    assert len(made["made"]["imported_sha256"]) == 64
    assert made["made"]["dropped"] == {
        "without_class": {"hot_dog": 1, "cat": 1},
        "duplicates": {"hot_dog": 0, "cat": 1},
        "over_limit": {"hot_dog": 0, "cat": 1},
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "class    kept  dropped  first prompt"
    cut = "hot dogs" + " in a row" * 4 + " in a ..."  # to 80 columns
    assert lines[1] == f"hot_dog     1        1  {cut}"
    assert lines[2].startswith("cat         1        3  ")
    assert lines[3:] == [
        "2 dropped because they do not name their class",
        "1 dropped as duplicates",
        "1 dropped beyond config.prompts.per_class",
        "1 cleaned of special tokens and loose spaces",
        f"2 prompts for 2 classes: {tmp_path / 'prompts.json'}",
    ]


def test_a_class_left_without_prompts_is_an_error(tmp_path):
    file = tmp_path / "lists.json"
    file.write_text(json.dumps({"cat": ["a catalog"], "dog": ["a dog"]}))
    with pytest.raises(UserError, match="no prompt is left for cat: every sentence mi"):
        make(
            tmp_path, method="imported", classes=("cat", "dog"), imported_file=str(file)
        )
    assert not (tmp_path / "prompts.json").exists()


def test_long_class_lists_are_cut_in_the_summary(tmp_path, capsys):
    config = make_config()
    config.data.source = "food101"
    prompts.run(config, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 20 + 2
    assert lines[-2:] == [
        "... and 81 classes more",
        f"101 prompts for 101 classes: {tmp_path / 'prompts.json'}",
    ]


def test_a_workdir_in_use_is_refused(tmp_path):
    with artifacts.lock(tmp_path):
        with pytest.raises(artifacts.WorkdirInUse, match="in use by another run"):
            make(tmp_path)


def test_the_record_is_of_when_the_prompts_were_made(tmp_path):
    make(tmp_path, template="{name}!")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["prompts"]["template"] == "{name}!"
    assert record["argv"] and record["versions"]["jax"]
    artifacts.write_json(tmp_path / "run.json", {"date": "before"})
    make(tmp_path, template="{name}!")
    assert json.loads((tmp_path / "run.json").read_text()) == {"date": "before"}
    make(tmp_path, template="{name}?")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["prompts"]["template"] == "{name}?"


def test_command_line(tmp_path, config_file, capsys):
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}"]
    launch.launch(
        prompts.run, ("data", "prompts"), [*arguments, "--config.prompts.method=ucg"]
    )
    made = json.loads((tmp_path / "prompts.json").read_text())
    assert made["prompts"]["cat/dog"] == ["a photo of cat/dog"]
    with pytest.raises(SystemExit) as leaving:
        launch.launch(
            prompts.run, ("data", "prompts"), [*arguments, "--config.prompts.method=x"]
        )
    assert leaving.value.code == 2
    assert "config.prompts.method = 'x': takes one of" in capsys.readouterr().err
