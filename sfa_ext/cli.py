"""The `sfa` command. Parses, calls, prints; every failure is one line, with exit status 2 (130 for Ctrl-C)."""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. SFA_DEBUG=1 shows the traceback of a failure."""
    options = _parse(arguments)
    # At its end the interpreter would look through every object for cycles, for seconds after an import of torch; ranks
    # that are told to stop have 30.
    atexit.register(gc.freeze)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt as stop:
        what = str(stop) or "interrupted; a run resumes from its last checkpoint with the same command"
        print(f"\nsfa: {what}", file=sys.stderr)
        return getattr(stop, "status", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if os.environ.get("SFA_DEBUG"):
            raise
        print(
            f"sfa: error: this command needs {error.name}, which is not installed: run pip install '.[vision]' in the "
            "source folder ('sfa env' lists all that is missing)",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("SFA_DEBUG"):
            raise
        print(f"sfa: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse does not let positional overrides follow an option; users write them there all the same.
    if rest and hasattr(options, "overrides") and all("=" in r and not r.startswith("-") for r in rest):
        options.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sfa", description="Adapt a vision transformer to dense tasks within a budget."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = _command(commands, "demo", _demo, "fit frozen, sfa-s, sfa-b and full on embedded scenes, write a report")
    demo.add_argument("--quick", action="store_true", help="fewer steps: under 90 seconds on 2 cores")
    demo.add_argument("--out", default="runs/demo", help="folder to write (default: %(default)s)")

    fit = _command(commands, "fit", _fit, "train a recipe; resumes a run that was stopped")
    _recipe_arguments(fit)
    fit.add_argument("--out", help="folder of the run (default: runs/RECIPE-METHOD-seedN)")
    fit.add_argument("--quiet", action="store_true", help="no progress bar")
    fit.add_argument("--nproc", type=int, metavar="N", help="train with N processes on this machine (or use torchrun)")

    pretrain = _command(commands, "pretrain", _pretrain, "make a backbone checkpoint from the embedded source domain")
    _recipe_arguments(pretrain, default="pretrain-swinv2-pico")
    pretrain.add_argument("--out", default="runs/pretrain", help="folder of the run (default: %(default)s)")
    pretrain.add_argument("--quiet", action="store_true", help="no progress bar")

    evaluate = _command(commands, "eval", _eval, "figures of a finished run, overall and per class")
    evaluate.add_argument("folder", metavar="RUN", help="folder of a finished run")
    evaluate.add_argument("--split", choices=("val", "test"), default="val", help="(default: %(default)s)")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    _view_arguments(evaluate)
    evaluate.add_argument("--device", default="auto")

    predict = _command(commands, "predict", _predict, "draw what a run finds in image files")
    predict.add_argument("folder", metavar="RUN", help="folder of a finished run")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    predict.add_argument("--out", help="folder for the pictures (default: RUN/predictions)")
    _view_arguments(predict)
    predict.add_argument("--device", default="auto")

    params = _command(commands, "params", _params, "what recipes or methods train, counted without training")
    params.add_argument("recipes", metavar="RECIPE", nargs="*", help="recipes or key=value overrides for all of them")
    params.add_argument("--methods", nargs="+", metavar="NAME", default=[], help="methods by name (default: all)")
    params.add_argument(
        "--backbones", nargs="+", metavar="NAME", default=[], help="backbones by name (default: paper's)"
    )
    params.add_argument("--budget", type=float, help="a share of the backbone, for the methods by name")
    params.add_argument("--json", action="store_true", help="print JSON")

    plan = _command(
        commands, "plan", _plan, "memory and communication of a rank, for any backbone on any number of ranks"
    )
    plan.add_argument("--backbone", required=True, metavar="NAME", help="a backbone by name, for example swinv2_giant")
    plan.add_argument("--ranks", type=int, nargs="+", required=True, metavar="N", help="numbers of ranks")
    plan.add_argument("--method", default="sfa-s", metavar="NAME", help="(default: %(default)s)")
    plan.add_argument("--budget", type=float, help="a share of the backbone, for the method")
    plan.add_argument("--batch", type=int, default=1, help="images of each rank (default: %(default)s)")
    plan.add_argument("--crop", type=int, default=384, metavar="PIXELS", help="side of an image (default: %(default)s)")
    plan.add_argument("--json", action="store_true", help="print JSON")

    env = _command(commands, "env", _env, "versions, instruction sets, backends, and what is missing")
    env.add_argument("--json", action="store_true", help="print JSON")

    _data_commands(commands)
    _compare_command(commands)
    _delta_commands(commands)
    _selection_commands(commands)

    serve = _command(commands, "serve", _serve, "try the tasks of a folder on images of your own, in a browser")
    serve.add_argument("folder", metavar="BANK_DIR", help="folder that holds task files, or folders of runs")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    serve.add_argument("--backbone", metavar="FILE", help="weights of the backbone (default: as the recipes say)")
    serve.add_argument("--keep", choices=("device", "host", "disk"), default="device", help="where unused tasks wait")
    serve.add_argument("--limit", type=float, default=20, metavar="MB", help="largest upload (default: %(default)s)")
    serve.add_argument("--device", default="auto")
    return parser


def _data_commands(commands) -> None:
    parts = commands.add_parser("data", help="data sets in folders: check").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    check = _command(parts, "check", _check, "read every file of a data set; status 2 where one is missing or broken")
    check.add_argument("folder", metavar="DIR", help="folder of the data set")
    check.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings of the reader, for example year=2014"
    )
    check.add_argument("--format", default="auto", help="ade20k, cityscapes, coco, ... (default: told by the folder)")
    check.add_argument("--split", nargs="+", metavar="NAME", default=[], help="splits to look at (default: all)")
    check.add_argument("--workers", type=int, default=0, help="processes that read (default: this one)")
    check.add_argument("--json", action="store_true", help="print JSON")


def _compare_command(commands) -> None:
    compare = _command(commands, "compare", _compare, "run a study: methods or variants, paired seeds, tuned alike")
    compare.add_argument("study", metavar="STUDY", help="a YAML file, or the name of a study in the package")
    compare.add_argument("overrides", metavar="key=value", nargs="*", help="for example jobs=8 overrides+=device=cuda")
    compare.add_argument("--out", help="folder of records and runs (default: runs/STUDY)")
    compare.add_argument("--report", metavar="FILE.md", help="report to write (default: OUT/report.md)")
    compare.add_argument("--report-only", action="store_true", help="run nothing, write the report of what is there")
    compare.add_argument("--time-limit", type=float, metavar="SECONDS", help="start no run after so many seconds")
    compare.add_argument("--quiet", action="store_true", help="no line for each run")


def _delta_commands(commands) -> None:
    delta = commands.add_parser("delta", help="task files: export, look into, check, merge, compare, fold")
    parts = delta.add_subparsers(title="commands", metavar="COMMAND", required=True)
    file = {"metavar": "TASK", "help": "a task file, or the folder of a run"}
    weights = {"metavar": "FILE", "help": "weights of the backbone (default: as the task's recipe says)"}

    export = _command(parts, "export", _export, "write a run's task file, in another dtype if wanted")
    export.add_argument("file", metavar="RUN", help="folder of a finished run, or a task file")
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of values (default: as trained)")
    export.add_argument("--out", help="file to write (default: RUN.safetensors)")

    info = _command(parts, "info", _info, "what a task file holds: where its bytes go, where its weights are")
    info.add_argument("file", **file)
    info.add_argument("--json", action="store_true", help="print JSON")
    info.add_argument("--picture", metavar="PNG", help="also draw the share of selected weights by layer")

    verify = _command(parts, "verify", _verify, "check a task file to the last byte, and that it fits its backbone")
    verify.add_argument("file", **file)
    verify.add_argument("--backbone", **weights)

    apply = _command(parts, "apply", _apply, "write the whole model: a checkpoint for timm, or a module of its own")
    apply.add_argument("file", **file)
    apply.add_argument("--out", required=True, help="file to write: .safetensors, or .pt2 with --module")
    apply.add_argument("--module", action="store_true", help="backbone, method and head as one exported torch program")
    apply.add_argument("--backbone", **weights)

    diff = _command(parts, "diff", _diff, "how two tasks differ: what they select, their values, their results")
    diff.add_argument("first", **file)
    diff.add_argument("second", **file)
    diff.add_argument("--json", action="store_true", help="print JSON")

    fold = _command(parts, "fold", _fold, "make a task's selected weights part of the backbone, for later tasks")
    fold.add_argument("file", **file)
    fold.add_argument("--out", required=True, help="folder to write: backbone.safetensors and the task on it")
    fold.add_argument("--rebase", metavar="TASK", nargs="*", default=[], help="other tasks to carry over")
    fold.add_argument("--backbone", **weights)


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    arity = {} if default is None else {"nargs": "?", "default": default}
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe in the package", **arity)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="for example optim.lr=0.001 method.name=full")


def _view_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta", metavar="ZOOM", nargs="*", type=float, help="average over zooms and mirror images (default: the usual)"
    )
    parser.add_argument(
        "--window", metavar="PIXELS", nargs="?", type=int, const=0, help="slide a window (default: the training crop)"
    )


def _demo(options: argparse.Namespace) -> None:
    from sfa_ext.demo import demo

    print(f"report: {demo(Path(options.out), quick=options.quick)}")


def _fit(options: argparse.Namespace) -> int:
    from sfa_ext.report import run as report
    from sfa_ext.training import distributed, faults, loop, recipe

    chosen = recipe.load(options.recipe, options.overrides)
    name = Path(options.recipe).name.removesuffix(".yaml")
    folder = Path(options.out or f"runs/{name}-{chosen.method.name}-seed{chosen.seed}")
    if options.nproc is not None:
        quiet = ["--quiet"] * options.quiet
        arguments = ["fit", options.recipe, *options.overrides, "--out", str(folder), *quiet]
        return distributed.launch(arguments, options.nproc)
    with distributed.joined(chosen.device, chosen.timeout) as first:
        say = print if first else lambda *line, **where: None
        fit = loop.Fit(chosen, folder, quiet=options.quiet)
        say(f"{chosen.method.name}: {fit.model.adaptation.report()}")
        try:
            results = fit.run()
        except faults.Stopped as stop:
            say(f"sfa: {stop}", file=sys.stderr)
            return stop.status
        for split, figures in results.items():
            say(f"{split}: " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items() if "/" not in k and k != "at"))
        if first:
            print(f"report: {report.write(folder)}")
    return 0


def _pretrain(options: argparse.Namespace) -> None:
    from sfa_ext.training import pretrain, recipe

    if "=" in options.recipe:
        options.overrides.insert(0, options.recipe)
        options.recipe = "pretrain-swinv2-pico"
    path, digest = pretrain.pretrain(recipe.load(options.recipe, options.overrides), options.out, options.quiet)
    print(f"checkpoint: {path}  sha256 {digest}")


def _eval(options: argparse.Namespace) -> None:
    from sfa_ext.training import evaluate

    figures = evaluate.evaluate_run(options.folder, options.split, options.device, options.tta, options.window)
    print(json.dumps(figures) if options.json else evaluate.table(figures))


def _check(options: argparse.Namespace) -> None:
    import yaml

    from sfa_ext.data import check

    pairs = (setting.split("=", 1) for setting in options.overrides if "=" in setting)
    settings = {name: yaml.safe_load(value) for name, value in pairs}
    if len(settings) != len(options.overrides):
        raise ValueError(f"settings must be written key=value; got {' '.join(options.overrides)}")
    report = check.check(options.folder, options.format, options.split, settings, options.workers, quiet=False)
    print(json.dumps(report) if options.json else check.render(report))
    if not report["ok"]:
        problems = sum(len(split["problems"]) for split in report["splits"].values())
        raise ValueError(f"{options.folder}: {problems} missing or broken, named above; repair them before training")


def _predict(options: argparse.Namespace) -> None:
    from sfa_ext.training import predict, run

    _, model, _ = run.open_run(options.folder, options.device, True, options.tta, options.window)
    folder = options.out or Path(options.folder) / "predictions"
    for image, overlay in predict.predict_files(model, options.images, folder):
        print(f"{image} -> {overlay}")


def _compare(options: argparse.Namespace) -> None:
    from sfa_ext.studies import compare, study

    chosen = study.load(options.study, options.overrides)
    folder = Path(options.out or f"runs/{Path(options.study).name.removesuffix('.yaml')}")
    report = None if options.report is None else Path(options.report)
    if options.report_only:
        path = compare.write_report(chosen, folder, report)
    else:
        path = compare.compare(chosen, folder, report, options.time_limit, options.quiet)
    print(f"{path.read_text(encoding='utf-8')}\n{path}")


def _selection_commands(commands) -> None:
    selection = commands.add_parser("selection", help="where the selected weights are, and what two runs both select")
    parts = selection.add_subparsers(title="commands", metavar="COMMAND", required=True)

    show = _command(parts, "show", _show, "the share of selected weights by block and matrix, table and picture")
    show.add_argument("files", metavar="RUN", nargs="+", help="folders of finished runs, or task files")
    show.add_argument("--out", default="runs/selection", help="folder to write (default: %(default)s)")

    compare = _command(parts, "compare", _overlap, "what two runs both select, against chance, table and picture")
    compare.add_argument("first", metavar="RUN", help="folder of a finished run, or a task file")
    compare.add_argument("second", metavar="RUN", help="folder of a finished run, or a task file")
    compare.add_argument("--out", default="runs/selection", help="folder to write (default: %(default)s)")


def _show(options: argparse.Namespace) -> None:
    from sfa_ext.report import selection
    from sfa_ext.training.run import task_file

    path = selection.show({file: task_file(file) for file in options.files}, Path(options.out))
    print(f"{path.read_text(encoding='utf-8')}\n{path}")


def _overlap(options: argparse.Namespace) -> None:
    from sfa_ext.report import selection
    from sfa_ext.training.run import task_file

    names = (options.first, options.second)
    path = selection.compare(*map(task_file, names), names, Path(options.out))
    print(f"{path.read_text(encoding='utf-8')}\n{path}")


def _export(options: argparse.Namespace) -> None:
    from sfa_ext import deltas
    from sfa_ext.training.run import task_file

    path = task_file(options.file)
    task = deltas.read(path)
    out = Path(options.out or f"{deltas.task_name(path)}.safetensors")
    deltas.write(out, task if options.dtype is None else task.to(deltas.DTYPES[options.dtype]))
    print(f"{path} -> {out}  {out.stat().st_size:,} bytes")


def _info(options: argparse.Namespace) -> None:
    from sfa_ext.deltas import account
    from sfa_ext.training.run import task_file

    facts = account.account(task_file(options.file))
    print(json.dumps(facts) if options.json else account.render(facts))
    if options.picture:
        from sfa_ext.report import selection

        print(f"picture: {selection.draw(task_file(options.file), Path(options.picture))}")


def _verify(options: argparse.Namespace) -> None:
    from sfa_ext import deltas
    from sfa_ext.training.run import backbone_of, task_file

    path = task_file(options.file)
    task = deltas.read(path)
    print(f"{path}: whole; its checksum and every position are right")
    deltas.TaskBank(backbone_of(task, str(path), options.backbone)).add(path)
    print(f"{path}: fits its backbone, fingerprint {task.meta['fingerprint'][:12]}")


def _apply(options: argparse.Namespace) -> None:
    from sfa_ext.deltas import whole
    from sfa_ext.training.run import backbone_of, task_file

    path = task_file(options.file)
    write = whole.write_module if options.module else whole.write_checkpoint
    print(write(path, lambda task: backbone_of(task, str(path), options.backbone, "cpu"), options.out))


def _diff(options: argparse.Namespace) -> None:
    from sfa_ext import deltas
    from sfa_ext.deltas import account
    from sfa_ext.training.run import task_file

    paths = [task_file(f) for f in (options.first, options.second)]
    found = account.compare(*(deltas.read(p) for p in paths))
    print(json.dumps(found) if options.json else account.render_comparison(found, tuple(map(str, paths))))


def _fold(options: argparse.Namespace) -> None:
    from sfa_ext.deltas import whole
    from sfa_ext.training.run import backbone_of, task_file

    paths = [task_file(f) for f in (options.file, *options.rebase)]
    build = lambda task: backbone_of(task, str(paths[0]), options.backbone, "cpu")  # noqa: E731
    for written in whole.write_folded(paths[0], paths[1:], build, options.out):
        print(written)


def _serve(options: argparse.Namespace) -> None:
    from sfa_ext.serve import serve

    serve(
        options.folder,
        host=options.host,
        port=options.port,
        checkpoint=options.backbone,
        keep=options.keep,
        limit=int(options.limit * 1e6),
        device=options.device,
    )


def _params(options: argparse.Namespace) -> None:
    from sfa_ext.training import params, recipe

    overrides = [r for r in options.recipes if "=" in r]
    names = [r for r in options.recipes if "=" not in r]
    if overrides and not names:
        raise ValueError(f"params: {overrides[0]!r} needs a recipe, such as scenes-fpn, in front of it")
    rows = [params.account(Path(n).name.removesuffix(".yaml"), recipe.load(n, overrides)) for n in names]
    if options.methods or options.backbones or options.budget or not names:
        settings = {"budget": options.budget} if options.budget else {}
        rows += params.account_methods(options.methods, options.backbones, settings)
    print(json.dumps(params.as_json(rows)) if options.json else params.table(rows))


def _plan(options: argparse.Namespace) -> None:
    from sfa_ext.training import plan

    settings = {"budget": options.budget} if options.budget else {}
    plans = list(
        plan.plan(options.backbone, options.ranks, options.method, options.batch, options.crop, settings=settings)
    )
    print(json.dumps(plan.as_json(plans)) if options.json else plan.table(plans))


def _env(options: argparse.Namespace) -> None:
    from sfa_ext import env

    facts = env.environment()
    print(json.dumps(facts) if options.json else env.render(facts))


if __name__ == "__main__":
    sys.exit(main())
