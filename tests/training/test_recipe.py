"""Recipes: the package's own load and count, and a wrong key or value is named."""

from __future__ import annotations

import pytest

from sfa_ext.training import params, recipe


@pytest.mark.parametrize("name", [n for n in recipe.names() if not recipe.find(n).parent.name.startswith("table")])
def test_every_recipe_of_the_package_loads_and_can_be_counted(name):
    row = params.account(name, recipe.load(name))
    assert row.share > 0
    assert row.recipe in params.table([row])


def test_overrides_reach_every_depth():
    chosen = recipe.load("scenes", ["optim.lr=0.5", "method.name=sfa-b", "method.settings.rho=0.1", "data.test=null"])
    assert chosen.optim.lr == 0.5 and chosen.method.name == "sfa-b" and chosen.data.test is None
    assert chosen.method.settings == {"rounds": 5, "interval": 40, "rho": 0.1}


def test_another_method_keeps_only_the_settings_it_knows():
    assert recipe.load("scenes", ["method.name=full"]).method.settings == {}


def test_a_recipe_survives_being_written_down(tmp_path):
    import yaml

    chosen = recipe.load("scenes", ["optim.betas=[0.8, 0.9]"])
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(chosen.as_dict()))
    assert recipe.load(tmp_path / "copy.yaml").as_dict() == chosen.as_dict()


def test_a_run_of_before_a_key_existed_has_its_default():
    chosen = recipe.load("scenes")
    older = chosen.as_dict()
    del older["backbone"]["accelerate"]
    assert recipe.from_dict(older, "older").as_dict() == chosen.as_dict()
    assert recipe.load("scenes", ["backbone.accelerate=true"]).backbone.accelerate


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr"),
        ("optim.lr=fast", "optim.lr.*fast"),
        ("optim.precision=fp8", "optim.precision.*fp8"),
        ("nonsense", "'nonsense': must be written key=value"),
        ("method.name=sfa-xl", "unknown 'sfa-xl', known: frozen"),
    ],
)
def test_a_bad_override_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        recipe.load("scenes", [override])


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "row.yaml"


def test_a_recipe_extends_others_key_by_key(tmp_path):
    path = write(
        tmp_path,
        task="task: {name: fpn, settings: {width: 8}}\noptim: {steps: 7, lr: 0.5, betas: [0.1, 0.2]}\n",
        more="extends: task.yaml\noptim: {lr: 0.25}\ndata: {settings: {domain: source}}\n",
        row="extends: [more.yaml, scenes-fpn]\nmethod: {name: full}\noptim: {betas: [0.5, 0.5]}\ndata: {crop: 64}\n",
    )
    chosen, under = recipe.load(path, ["optim.batch=3"]), recipe.load("scenes-fpn")
    assert chosen.optim.steps == under.optim.steps and chosen.optim.lr == under.optim.lr  # the later goes over
    assert chosen.optim.betas == (0.5, 0.5) and chosen.optim.batch == 3
    assert chosen.task.settings == {"width": 8}  # which scenes-fpn does not speak of
    assert chosen.data.crop == 64 and chosen.data.settings == under.data.settings
    # The settings of a method that is not the row's are dropped with its name.
    assert under.method.settings and chosen.method.settings == {}
    assert "extends" not in chosen.as_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: row.yaml", "row.yaml: extends itself, by way of row.yaml"),
        ("extends: other.yaml", "row.yaml: extends itself, by way of row.yaml, other.yaml"),
        ("extends: nothing", "row.yaml: extends 'nothing', which is no file in its folder and no recipe"),
        ("extends: 3", "row.yaml: extends must be the name of a recipe or a list of names, got 3"),
        ("extends: broken.yaml", "broken.yaml: is not valid YAML"),
    ],
)
def test_a_bad_extension_is_named(tmp_path, text, message):
    path = write(tmp_path, row=text, other="extends: row.yaml", broken="a: [")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        recipe.load(path)


def test_bases_are_no_recipes():
    assert "ade20k" not in recipe.names()
    with pytest.raises(ValueError, match="bases/ade20k.yaml: .*method"):
        recipe.load("ade20k")


def test_unknown_recipes_name_the_nearest_known():
    with pytest.raises(FileNotFoundError, match="'nope': no such file, and no recipe of the package; the nearest are "):
        recipe.load("nope")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: {name: pretrain}\nmethod: {name: full}\nextra: 1\n", "extra"),
        ("task: {name: pretrain}\nmethod: {name: full}\noptim: {lrr: 1}\n", "lrr"),
        ("task: [", "is not valid YAML"),
        ("just words", "must hold keys and values, got str"),
        ("method: {name: full}\n", "task"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"bad.yaml: .*{message}"):
        recipe.load(path)
