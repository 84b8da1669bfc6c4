"""Studies as a person writes them: what runs they need, in which order, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from sfa_ext import __version__
from sfa_ext.studies import study
from sfa_ext.training import recipe

PLAIN = {
    "title": "Two methods",
    "recipe": "scenes-fpn",
    "baseline": "frozen",
    "seeds": [3, 4],
    "rates": [0.001, 0.002],
    "trial_steps": 7,
    "arms": {
        "frozen": {"overrides": ["method.name=frozen"], "rate_key": "optim.head_lr"},
        "full": {"overrides": ["method.name=full"], "trial": ["optim.warmup=1"], "rates": [0.003, 0.004]},
        "from scratch": {
            "overrides": ["method.name=full", "backbone.pretrained=false"],
            "rate_of": "full",
            "seeds": [4],
        },
    },
}


def write(tmp_path, **changes):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(PLAIN | changes, sort_keys=False))
    return path


def test_trials_come_before_the_table_and_seeds_one_by_one(tmp_path):
    chosen = study.load(write(tmp_path))
    trials = list(study.trials(chosen))
    assert [(r.arm, r.rate, r.seed) for r in trials] == [
        ("frozen", 0.001, 1000), ("full", 0.003, 1000), ("frozen", 0.002, 1000), ("full", 0.004, 1000),
    ]  # fmt: skip
    finals = list(study.finals(chosen, {"frozen": 0.002, "full": 0.003, "from scratch": 0.003}))
    assert [(r.seed, r.arm) for r in finals] == [
        (3, "frozen"), (3, "full"), (4, "frozen"), (4, "full"), (4, "from scratch"),
    ]  # fmt: skip
    assert len({r.name for r in [*trials, *finals]}) == 9


def test_a_trial_is_short_and_never_sees_the_test_split(tmp_path):
    chosen = study.load(write(tmp_path))
    trial = next(run for run in study.trials(chosen) if run.arm == "full")
    assert (trial.recipe.optim.steps, trial.recipe.data.test, trial.recipe.optim.warmup) == (7, None, 1)
    final = next(study.finals(chosen, {"full": 0.003}))
    assert final.recipe.optim.steps == 2400 and final.recipe.data.test is not None and final.recipe.optim.warmup == 30


def test_the_rate_goes_where_the_arm_wants_it(tmp_path):
    runs = {run.arm: run.recipe.optim for run in study.trials(study.load(write(tmp_path)))}
    assert runs["frozen"].head_lr == 0.002 and runs["full"].head_lr == 0.002  # the recipe's own
    assert runs["full"].lr == 0.004


def test_what_a_run_is_given_makes_the_recipe_it_is_known_by(tmp_path):
    chosen = study.load(write(tmp_path))
    for run in [*study.trials(chosen), *study.finals(chosen, {"frozen": 1e-3, "from scratch": 5e-5})]:
        assert recipe.load(chosen.recipe, run.overrides) == run.recipe
        assert study.fingerprint(run.recipe) == run.fingerprint


def test_a_fingerprint_follows_all_that_decides_the_figures_and_nothing_else(monkeypatch, tmp_path):
    base = recipe.load("scenes-fpn")
    same = recipe.load("scenes-fpn", ["threads=3", "device=cpu", "data.workers=1", "save_every=7"])
    assert study.fingerprint(same) == study.fingerprint(base)
    for override in ("optim.lr=0.1", "seed=1", "data.val.count=9", "method.settings.rounds=2", "data.augment.jitter=0"):
        assert study.fingerprint(recipe.load("scenes-fpn", [override])) != study.fingerprint(base)
    weights = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for i, path in enumerate(weights):
        path.write_bytes(bytes(i))
    made = {study.fingerprint(recipe.load("scenes-fpn", [f"backbone.checkpoint={path}"])) for path in weights}
    weights[0].write_bytes(b"other")
    made.add(study.fingerprint(recipe.load("scenes-fpn", [f"backbone.checkpoint={weights[0]}"])))
    assert len(made) == 3
    monkeypatch.setattr(study, "__version__", "9.9")
    assert study.fingerprint(same) != study.fingerprint(recipe.load("scenes-fpn", ["seed=1"]))
    before = study.fingerprint(base)
    monkeypatch.undo()
    assert study.fingerprint(base) != before


def test_defaults_are_those_that_records_of_this_version_were_made_with():
    """A fingerprint leaves them out. Where one must change, let the version change too, and these with it."""
    assert __version__ == "0.1.0"
    assert recipe.BackboneRecipe() == recipe.BackboneRecipe("swinv2_pico", True, None, 0.0)
    optim = recipe.OptimRecipe()
    assert (optim.steps, optim.batch, optim.accumulate, optim.lr, optim.head_lr) == (1000, 16, 1, 1e-3, None)
    assert (optim.weight_decay, optim.betas, optim.clip) == (0.05, (0.9, 0.999), 1.0)
    assert (optim.schedule, optim.power, optim.warmup, optim.floor) == ("cosine", 0.9, 50, 0.01)
    assert optim.precision == "fp32"
    data = recipe.DataRecipe()
    assert (data.name, data.settings, data.crop, data.augment) == ("scenes", {}, 96, {})
    assert (data.train, data.val, data.test) == ({"split": "train"}, {"split": "val"}, None)


def test_a_key_that_a_later_version_adds_leaves_records_valid():
    before = study.fingerprint(recipe.load("scenes-fpn"))

    @dataclasses.dataclass
    class Later(recipe.OptimRecipe):
        sharpness: str = "none"

    later = recipe.load("scenes-fpn")
    later.optim = Later(**vars(later.optim))
    assert study.fingerprint(later) == before
    later.optim.sharpness = "aware"
    assert study.fingerprint(later) != before


def record(run, figure):
    from sfa_ext.report.comparison import Record

    return Record(run.arm, run.stage, run.seed, run.rate, 1, {"val": {"miou": figure, "rmse": figure}}, 0, 0.0, 0, 0)


@pytest.mark.parametrize(("name", "best"), [("scenes-fpn", 0.004), ("scenes-depth", 0.003)])
def test_the_best_rate_is_that_of_the_best_validation_figure(tmp_path, name, best):
    chosen = study.load(write(tmp_path, recipe=name))
    found = {run.fingerprint: record(run, run.rate) for run in study.trials(chosen)}
    rates = study.best_rates(chosen, found)
    assert rates["full"] == rates["from scratch"] == best


def test_a_trial_that_came_to_nothing_never_wins_and_a_missing_one_leaves_the_arm_out(tmp_path):
    chosen = study.load(write(tmp_path, recipe="scenes-depth"))
    runs = list(study.trials(chosen))
    found = {run.fingerprint: record(run, float("nan") if run.rate == 0.003 else 1.0) for run in runs}
    assert study.best_rates(chosen, found) == {"frozen": 0.001, "full": 0.004, "from scratch": 0.004}
    del found[runs[0].fingerprint]
    assert study.best_rates(chosen, found) == {"full": 0.004, "from scratch": 0.004}


def test_a_single_rate_needs_no_trial(tmp_path):
    arms = {name: {k: v for k, v in arm.items() if k != "rates"} for name, arm in PLAIN["arms"].items()}
    chosen = study.load(write(tmp_path, rates=[0.01], arms=arms))
    assert not list(study.trials(chosen))
    assert study.best_rates(chosen, {}) == dict.fromkeys(arms, 0.01)


def changed(name, **changes):
    return {"arms": PLAIN["arms"] | {name: PLAIN["arms"][name] | changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "'seed' is not accepted"),
        (changed("full", rate=3), "'rate' is not accepted"),
        ({"metric": "rmse"}, "metric: the task has no 'rmse', but miou"),
        ({"baseline": "nobody"}, "must name an arm: frozen, full, from scratch; got 'nobody'"),
        (changed("from scratch", rate_of="nobody"), "got 'nobody'"),
        (changed("full", rates=[0.1]), "arm 'full': tries 1 rates, the study 2"),
        (changed("full", rates=[0.1, 0.1]), "must be one or more different numbers"),
        (changed("from scratch", rates=[0.1, 0.2]), "rate_of takes the rate of an arm"),
        (changed("from scratch", seeds=[5]), r"seeds \[5\] must be some of the study's, \[3, 4\]"),
        ({"trial_seed": 4}, "trial_seed: 4 is one of the seeds of the table"),
        ({"jobs": 0}, "jobs and trial_steps: must be 1 or more, got 0"),
        ({"seeds": []}, "seeds: must be one or more"),
        (changed("full", overrides=["method.name=frozen"], rate_key="optim.head_lr", rates=None), "the same recipe"),
        (changed("full", rate_key="optim.rate"), r"rate_key: a recipe has no such number \('rate'\)"),
        (changed("full", overrides=["method.nam=full"]), "arm 'full': .*method.nam"),
        ({"recipe": "nothing"}, "recipe 'nothing': no such file"),
    ],
    ids=str,
)
def test_a_study_that_makes_no_sense_is_refused_and_named(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        study.load(write(tmp_path, **changes))


def test_every_recipe_has_a_folder_of_its_own_whatever_its_arm_is_called(tmp_path):
    arms = {name: {"overrides": [f"method.name={m}"]} for name, m in (("a b", "full"), ("a/b", "ssf"))}
    path = write(tmp_path, arms=arms, baseline="a b")
    found = [run.name for steps in (5, 6) for run in study.trials(study.load(path, [f"trial_steps={steps}"]))]
    assert len(set(found)) == 8 and not any("/" in name or " " in name for name in found)


def test_an_unknown_study_names_the_nearest_known():
    with pytest.raises(FileNotFoundError, match="no study of the package; the nearest are scenes-segmentation, "):
        study.load("scenes-segmentatoin")


def test_the_metric_may_be_another_figure_of_the_task(tmp_path):
    names = [figure.name for figure in study.figures(study.load(write(tmp_path, metric="miou_objects")))]
    assert names[0] == "miou_objects" and "miou" in names


def test_overrides_of_a_study_are_typed(tmp_path):
    chosen = study.load(write(tmp_path), ["jobs=5", "overrides+=optim.batch=3", "seeds=[4]"])
    assert (chosen.jobs, chosen.seeds) == (5, [4])
    assert all(run.recipe.optim.batch == 3 for run in study.trials(chosen))
    with pytest.raises(ValueError, match="jobs"):
        study.load(write(tmp_path), ["jobs=many"])


@pytest.mark.parametrize("name", study.names())
def test_every_study_of_the_package_can_be_built(name):
    """Its arms' methods fit the backbone, and its searches fit the steps of trials and final runs."""
    import torch

    from sfa_ext import backbones
    from sfa_ext.methods import adapt, resolve

    chosen = study.load(name)
    finals = list(study.finals(chosen, {arm: study.rates_of(chosen, arm)[0] for arm in chosen.arms}))
    assert len({run.arm for run in finals}) == len(chosen.arms) and len(chosen.seeds) >= 3
    with torch.device("meta"):
        backbone = backbones.build(finals[0].recipe.backbone.name, size=finals[0].recipe.data.crop)
        for run in {(r.arm, r.stage): r for r in [*study.trials(chosen), *finals]}.values():
            adaptation = adapt(backbone, resolve(run.recipe.method.name, backbone, run.recipe.method.settings))
            head = [torch.nn.Parameter(torch.zeros(1))]
            adaptation.optimizer(head=head, steps=run.recipe.optim.steps)
            adaptation.detach()
            assert run.recipe.optim.warmup < run.recipe.optim.steps
