"""Recipes: the package's own load and count, and a wrong key or value is named."""

from __future__ import annotations

import pytest

from sfa_ext.training import params, recipe


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_of_the_package_loads_and_can_be_counted(name):
    row = params.account(name, recipe.load(name))
    assert row.share > 0
    assert row.recipe in params.table([row])


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("ade20k-swinv2-base-sfa-s", 4.8),
        ("ade20k-swinv2-base-sfa-b", 19.5),
        ("ade20k-swinv2-large-sfa-s", 4.5),
        ("ade20k-swinv2-large-sfa-b", 19.0),
    ],
)
def test_shares_are_the_papers(name, percent):
    assert 100 * params.account(name, recipe.load(name)).share == pytest.approx(percent, abs=0.1)


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


def test_unknown_recipes_list_the_known_ones():
    with pytest.raises(FileNotFoundError, match="'nope': no such file, and no recipe of the package: ade20k-"):
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
