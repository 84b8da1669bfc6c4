"""The rules of the house: who may import whom, what `import sfa_ext` loads, and what no file of ours may hold."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sfa_ext"

# Each room of the package and the rooms it may import. Listed from the ground up.
FLOORS = {
    "files": set(),
    "ops": set(),
    "ranks": set(),
    "data": {"files"},
    "selection": {"ops", "ranks"},
    "optim": {"ops", "ranks", "selection"},
    "env": {"ops"},
    "backbones": {"ops", "files"},
    "tasks": {"ops", "data", "ranks"},
    "methods": {"files", "ops", "selection", "optim", "backbones"},
    "deltas": {"files", "ops", "selection", "optim", "backbones", "data", "tasks", "methods"},
    "report": {"data", "tasks", "selection", "deltas", "files"},
    "training": {
        "ops",
        "ranks",
        "data",
        "selection",
        "optim",
        "backbones",
        "tasks",
        "methods",
        "deltas",
        "env",
        "files",
    },
}
FLOORS["serve"] = {"deltas", "tasks", "training"}
FLOORS["studies"] = {"backbones", "tasks", "training", "report"}
FLOORS["demo"] = {"data", "report", "training", "files"}
FLOORS["cli"] = set(FLOORS)
FLOORS["__main__"] = {"cli"}

# What a room may import from outside the standard library; the other rooms may use all that pyproject.toml declares.
OUTSIDE = {
    "ops": {"torch", "triton"},
    "ranks": {"torch"},
    "selection": {"torch"},
    "optim": {"torch"},
    "env": {"torch"},
    "methods": {"torch"},
}
DECLARED_AS = {
    "skimage": "scikit-image",
    "yaml": "jsonargparse",
    "numpy": "torchvision",
    "PIL": "torchvision",
    "werkzeug": "flask",
}
HEAVY = (
    "timm",
    "transformers",
    "torchvision",
    "matplotlib",
    "scipy",
    "skimage",
    "torchmetrics",
    "jsonargparse",
)
TEXT = {".py", ".cpp", ".h", ".cu", ".cuh", ".yaml", ".md", ".toml", ".txt", ".sh", ".json", ""}


def our_files() -> list[Path]:
    tops = [path for path in ROOT.iterdir() if not path.name.startswith(".") or path.name in (".ci", ".clang-format")]
    skipped = {"build", "dist", "runs", "_lib", "__pycache__"}
    files = []
    for top in tops:
        found = [path for path in top.rglob("*") if path.is_file()] if top.is_dir() else [top]
        files += [path for path in found if not skipped.intersection(path.relative_to(ROOT).parts)]
    return [path for path in files if path.suffix in TEXT and not path.parent.name.endswith(".egg-info")]


def imported_names(source: str, module: str) -> set[str]:
    """Full dotted names that `source` imports; `module` is its own name, which relative imports start from."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def violations(source: str, module: str) -> list[str]:
    """Imports in `source` that the room of `module` ("sfa_ext.methods.sfa") has no right to."""
    room = module.split(".")[1]
    wrong = []
    for name in imported_names(source, module):
        top, *rest = name.split(".")
        if top == "sfa_ext":
            # A name of the package itself, such as adapt or SFA, comes from a room: import it from there.
            if rest[:1] not in ([room], ["__version__"], ["_C"]) and not FLOORS[room].intersection(rest[:1]):
                wrong.append(f"{module} imports {name}")
        elif top not in sys.stdlib_module_names and top not in OUTSIDE.get(room, {top}):
            wrong.append(f"{module} imports {name}")
    return wrong


def modules() -> list[tuple[str, Path]]:
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in paths]


def read_module(name: str, path: Path) -> tuple[str, str]:
    """Source and the name from which relative imports count, which for a package is one step longer."""
    return path.read_text(), f"{name}.__init__" if path.name == "__init__.py" else name


def test_every_room_has_its_floor() -> None:
    rooms = {name.split(".")[1] for name, _ in modules()}
    assert rooms <= set(FLOORS), f"give these rooms a line in FLOORS: {rooms - set(FLOORS)}"


def test_rooms_import_only_what_their_floor_allows() -> None:
    assert not [wrong for name, path in modules() for wrong in violations(*read_module(name, path))]


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("import timm", "sfa_ext.ops.checks"),
        ("from sfa_ext.methods import sfa", "sfa_ext.backbones.swinv2"),
        ("from ..training import fit", "sfa_ext.report.table"),
        ("from .. import methods", "sfa_ext.tasks.segmentation"),
        ("def late():\n    from sfa_ext.cli import main", "sfa_ext.training.fit"),
        ("from sfa_ext import adapt", "sfa_ext.training.fit"),
    ],
)
def test_a_forbidden_import_is_found(line: str, module: str) -> None:
    assert violations(line, module)


def test_rooms_form_no_circle() -> None:
    edges: dict[str, set[str]] = {}
    for name, path in modules():
        room = name.split(".")[1]
        targets = {
            full.split(".")[1] for full in imported_names(*read_module(name, path)) if full.startswith("sfa_ext.")
        }
        edges.setdefault(room, set()).update(targets - {room})
    assert list(graphlib.TopologicalSorter(edges).static_order())


def test_outside_imports_are_declared() -> None:
    declared = set(re.findall(r'^\s+"([\w-]+)', (ROOT / "pyproject.toml").read_text(), re.M)) | {
        "torch",
        "triton",
        "sfa_ext",
    }
    used = {
        name.split(".")[0] for path_name, path in modules() for name in imported_names(*read_module(path_name, path))
    }
    undeclared = {name for name in used - set(sys.stdlib_module_names) if DECLARED_AS.get(name, name) not in declared}
    assert not undeclared


def test_importing_the_package_is_light() -> None:
    code = f"import sys, sfa_ext; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_no_file_is_too_long_to_be_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): path.read_text().count("\n") for path in our_files() if path.name != "LICENSE"
    }
    assert {name: length for name, length in lengths.items() if length > 450 and "results" not in name} == {}


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    pattern = re.compile(r"(?<![\w.}>*~])/(work|tmp|home|root|Users)/\w")
    found = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in our_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    }
    assert not found


def test_nothing_unpickles() -> None:
    """torch.load only with weights_only=True, yaml only with safe_load, and no pickle: a file must not run code."""
    found = []
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                found += [f"{name}: {bad}" for bad in names & {"pickle", "cPickle", "dill", "cloudpickle", "marshal"}]
            elif isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
                if call in ("yaml.load", "yaml.unsafe_load") or (call == "torch.load" and not safe):
                    found.append(f"{name}: {ast.unparse(node)}")
    assert not found
