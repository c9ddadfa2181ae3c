"""The arrows of the design, read from the import statements: what may import what, and what must stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("genaim", "samplers", "apps")

# Room -> what it may import, besides itself: a room, or one module of it.
MODELS = {"models", "heads", "tokenizers", "core", "config", "files"}
ALLOWED = {
    "apps": {"samplers", "genaim", "evaluation", "training", "pretrained", "data"} | MODELS,
    "samplers": {"genaim", "pretrained", "data"} | MODELS,
    "evaluation": {"training", "data"} | MODELS,
    "training": {"data"} | MODELS,
    "pretrained": MODELS,
    "models": {"heads", "tokenizers", "core", "config"},
    "heads": {"core", "config"},
    "tokenizers": {"core", "config"},
    "core": {"config"},
    "data": {"config", "files"},
    "config": set[str](),
    "files": set[str](),
    "genaim": set[str](),  # genaim/__init__.py
}
HEAVY = {"torch", "accelerate", "datasets", "gradio", "matplotlib", "torchvision", "xformers"}


def module_name(path: Path) -> str:
    """``genaim/core/__init__.py`` to ``genaim.core``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def room(module: str) -> str:
    """``genaim.core.noise`` to ``core``, ``samplers.decode`` to ``samplers``."""
    parts = module.split(".")
    return parts[1] if parts[0] == "genaim" and len(parts) > 1 else parts[0]


def imported(name: str, path: Path) -> Iterator[str]:
    """Our own modules that a file names in import statements, those in functions and in type-checking blocks too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from genaim.core import noise` names a module, `from genaim.core.noise import Noise` does not
            names = [f"{source}.{alias.name}" for alias in node.names]
            names = [full if full in SOURCES else source for full in names]
        else:
            continue
        yield from (module for module in names if module.split(".")[0] in PACKAGES)


GRAPH = {name: set(imported(name, path)) - {name} for name, path in SOURCES.items()}


@pytest.mark.parametrize("name", sorted({room(module) for module in SOURCES}))
def test_a_room_imports_only_what_the_design_allows(name: str) -> None:
    assert name in ALLOWED, f"genaim/{name} is a new room: say in ALLOWED what it may import"
    wrong = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in sorted(targets)
        if room(module) == name and room(target) != name and not {room(target), target} & ALLOWED[name]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_imported_module_exists() -> None:
    missing = [f"{module} imports {t}" for module, targets in GRAPH.items() for t in targets if t not in SOURCES]
    assert not missing, "\n".join(missing)


def test_rooms_have_no_cycle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, targets in GRAPH.items():
        rooms.setdefault(room(module), set()).update(room(target) for target in targets)
    list(TopologicalSorter({name: targets - {name} for name, targets in rooms.items()}).static_order())


def test_modules_have_no_cycle() -> None:
    list(TopologicalSorter(GRAPH).static_order())


def test_the_reader_sees_every_form_of_import(tmp_path: Path) -> None:
    file = tmp_path / "probe.py"
    file.write_text(
        "import genaim.config\n"
        "from genaim.core import noise\n"
        "from .base import Head\n"
        "from ..core.masks import step_mask\n"
        "def late():\n    from samplers import decode\n"
        "if TYPE_CHECKING:\n    from apps.cli import main\n"
        "import torch\n"
    )
    seen = set(imported("genaim.heads.probe", file))
    assert seen == {
        "genaim.config",
        "genaim.core.noise",
        "genaim.heads.base",
        "genaim.core.masks",
        "samplers.decode",
        "apps.cli",
    }


@pytest.mark.parametrize("module", ["genaim", "genaim.config", "genaim.pretrained.names", "apps.cli"])
def test_a_module_that_must_be_light_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.split()
