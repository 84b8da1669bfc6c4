"""Compares frozen, SFA and full fine-tuning on the embedded scenes, and writes benchmarks/results/RECIPE.md.

    python -m benchmarks.scenes [--recipe scenes-fpn] [--out runs/scenes-fpn] [--seeds 0 1 2] [--jobs 2]

Every method that starts from the checkpoint gets the same number of learning-rate trials (--rates), of --trial-steps
steps each, on the validation split with a seed of their own; with a single rate there is nothing to try. Training from
scratch takes full's rate and the first seed alone. The table is of the test split, with paired seeds (head, data order
and augmentation are shared). Runs that are done are kept, so the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sfa_ext import tasks
from sfa_ext.files import write_text
from sfa_ext.report import compare, plots
from sfa_ext.report.run import task_meta
from sfa_ext.training.recipe import load

RESULTS = Path(__file__).parent / "results"
METHODS = {
    "frozen": ["method.name=frozen"],
    "sfa-s": ["method.name=sfa-s"],
    "sfa-b": ["method.name=sfa-b"],
    "full": ["method.name=full"],
}
SCRATCH = "full from scratch"
TRIAL_SEED = 1000


def rate_of(method: str, rate: float) -> list[str]:
    """The override that tries a learning rate: of the backbone's part, or of the head where nothing else is trained."""
    return [f"optim.head_lr={rate}"] if method == "frozen" else [f"optim.lr={rate}"]


def folder_of(out: Path, method: str, rate: float, seed: int) -> Path:
    return out / f"{method.replace(' ', '-')}-lr{rate}-seed{seed}"


def fit(recipe: str, out: Path, method: str, rate: float, seed: int, extra: Sequence[str]) -> None:
    folder = folder_of(out, method, rate, seed)
    if (folder / "report.md").is_file():
        return
    chosen = METHODS.get(method) or [*METHODS["full"], "backbone.pretrained=false"]
    overrides = [*chosen, *rate_of(method, rate), f"seed={seed}", "threads=1", *extra]
    command = [sys.executable, "-m", "sfa_ext.cli", "fit", recipe, *overrides, "--quiet", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
    print(folder.name, done.stdout.strip().splitlines()[-2:][0], flush=True)


def in_parallel(jobs: int, work: Iterator[tuple]) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(fit, *item) for item in work]:
            future.result()


def best_rates(out: Path, rates: Sequence[float], task: str) -> dict[str, float]:
    """The rate with the best validation headline of each method's trials."""
    if len(rates) == 1:
        return dict.fromkeys(METHODS, rates[0])

    headline = tasks.figures(task)[0]

    def score(method: str, rate: float) -> float:
        return task_meta(folder_of(out, method, rate, TRIAL_SEED))["results"]["val"][headline.name]

    return {m: headline.best({rate: score(m, rate) for rate in rates}) for m in METHODS}


def trial(steps: int) -> list[str]:
    """Overrides of a learning-rate trial: a shorter run that never sees the test split."""
    return [f"optim.steps={steps}", "data.test=null", "save_every=0"]


def write(
    recipe: str, out: Path, rates: dict[str, float], seeds: Sequence[int], tried: Sequence[float], steps: int
) -> Path:
    runs = {m: [folder_of(out, m, rates[m], seed) for seed in seeds] for m in METHODS}
    runs[SCRATCH] = [folder_of(out, SCRATCH, rates[SCRATCH], seeds[0])]
    groups = {m: [compare.read(run) for run in found] for m, found in runs.items()}
    resolved = task_meta(runs["frozen"][0])["recipe"]
    headline = tasks.figures(resolved["task"]["name"])[0]
    optim = resolved["optim"]
    tuned = f"The learning rate is {tried[0]:g} for every method; none was tuned."
    if len(tried) > 1:
        best = ", ".join(f"{m} {rates[m]:g}" for m in METHODS)
        tuned = (
            f"Learning rates were chosen among {', '.join(f'{r:g}' for r in tried)} on the validation split, by runs "
            f"of {steps} steps with a seed that the table does not use: {best} (frozen: of its head)."
        )
    text = [
        f"# {headline.title} on the embedded scenes",
        "",
        f"Written by `python -m benchmarks.scenes --recipe {recipe}`. swinv2_pico with the embedded checkpoint (or "
        f"from scratch), head {resolved['task']['name']}, {optim['steps']} steps of {optim['batch']} images, test "
        "split.",
        "",
        *compare.table(groups),
        "",
        f"{tuned} The head's is {optim['head_lr']:g}.",
        "Training from scratch was run with one seed. Seconds are of training alone, one thread a run.",
        "",
        f"![{headline.title} against the share of trainable weights]({recipe}-trade-off.png)",
        "",
    ]
    points = {m: (g[0].share, compare.scores(headline, g)) for m, g in groups.items() if m != SCRATCH}
    plots.trade_off(points, RESULTS / f"{recipe}-trade-off.png", headline.heading)
    write_text(RESULTS / f"{recipe}.md", "\n".join(text))
    return RESULTS / f"{recipe}.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="scenes-fpn", help="a recipe of the package")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/RECIPE)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3], help="learning rates to try")
    parser.add_argument("--trial-steps", type=int, default=250, help="steps of a learning-rate trial")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    options, rest = parser.parse_known_args()
    extra = [*options.overrides, *rest]
    recipe, out = options.recipe, options.out or Path("runs", options.recipe)
    if len(options.rates) > 1:
        short = [*extra, *trial(options.trial_steps)]
        trials = ((recipe, out, m, rate, TRIAL_SEED, short) for rate in options.rates for m in METHODS)
        in_parallel(options.jobs, trials)
    rates = best_rates(out, options.rates, load(recipe, extra).task.name)
    rates[SCRATCH] = rates["full"]
    print("learning rates:", rates, flush=True)
    runs = [(m, seed) for seed in options.seeds for m in METHODS] + [(SCRATCH, options.seeds[0])]
    in_parallel(options.jobs, ((recipe, out, m, rates[m], seed, extra) for m, seed in runs))
    print(write(recipe, out, rates, options.seeds, options.rates, options.trial_steps))


if __name__ == "__main__":
    main()
