"""The wheel, as a stranger gets it, and the dependencies that it declares."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("genaim", "samplers", "apps")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {
    "huggingface-hub": "huggingface_hub",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "torch-fidelity": "torch_fidelity",
}
UNSEEN = {"tensorboard"}  # accelerate imports it for us
OPTIONAL = {
    "matplotlib",
    "cv2",
    "gradio",
    "skimage",
    "torch_fidelity",
    "torchmetrics",
    "torchvision",
    "xformers",
}  # of extras


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed, in an environment that does not know the checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy, so that no stale build folder gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, folder / "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A fresh virtual environment with the wheel; it borrows the dependencies of ours."""
    folder = wheel.parent / "venv"
    venv.create(folder, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    site = Path(
        run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", scripts / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # A path file appends behind the environment's own packages, and path files in that folder (ours) are not followed.
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(ours)))
    return scripts


def test_the_wheel_carries_every_module_and_bundled_file(wheel: Path) -> None:
    wanted = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    bundled = ROOT / "genaim" / "pretrained" / "bundled"
    wanted |= {path.relative_to(ROOT).as_posix() for path in bundled.rglob("*") if path.is_file()}
    wanted |= {"genaim/pretrained/imagenet_classes.txt"}
    wanted |= {f"apps/examples/{path.name}" for path in (ROOT / "apps" / "examples").iterdir()}
    wanted |= {f"genaim/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} | {"genaim/py.typed"}
    carried = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert carried == wanted


@pytest.mark.slow
def test_an_installed_wheel_lists_the_recipes(installed: Path, tmp_path: Path) -> None:
    code = "import genaim.config as c\nfor name, path in c.recipes().items(): print(name, path, sep='\\t')"
    rows = [line.split("\t") for line in run(installed / "python", "-c", code, cwd=tmp_path).splitlines()]
    source = {path.stem: path.read_text() for path in (ROOT / "configs").glob("*.yaml")}
    assert {name: Path(path).read_text() for name, path in rows} == source
    assert all(Path(path).is_relative_to(installed.parent) for _, path in rows)


@pytest.mark.slow
def test_an_installed_wheel_has_the_command(installed: Path, tmp_path: Path) -> None:
    assert "sample" in run(installed / "genaim", "--help", cwd=tmp_path)


def test_declared_dependencies_are_those_imported() -> None:
    required = {requirement.split(">")[0].strip() for requirement in PROJECT["dependencies"]}
    declared = {IMPORT_NAMES.get(name, name) for name in required - UNSEEN}
    found: set[str] = set()
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    found -= {*sys.stdlib_module_names, *PACKAGES}
    assert found - OPTIONAL == declared, "pyproject.toml must declare what the code imports, and nothing else"


def test_constraints_pin_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    requirements = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    direct = {r.split(">")[0].strip().lower() for r in requirements if not r.startswith("genaim[")}
    assert direct <= pinned, f"not pinned: {sorted(direct - pinned)}"
