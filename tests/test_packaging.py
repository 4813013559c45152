"""What a clone and a wheel hold, and that nothing in the repository shadows a package of others."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "dattn", "kernels", "pipelines", "apps")
PLACES = {"dattn": "dattn", "kernels": "dattn.kernels", "pipelines": "dattn.pipelines", "apps": "dattn.apps"}


def packages_on_disk():
    for top, name in PLACES.items():
        for file in (ROOT / top).rglob("*.py"):
            if "__pycache__" not in file.parts:
                yield ".".join((name, *file.parent.relative_to(ROOT / top).parts))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "-w", folder / "dist", folder], check=True, capture_output=True, cwd=folder)
    (path,) = (folder / "dist").glob("*.whl")
    return path


def test_every_folder_with_code_is_a_listed_package():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert set(packages_on_disk()) <= listed, "add the new folder to packages in pyproject.toml"


def test_every_listed_package_has_an_init():
    names = {name: top for top, name in PLACES.items()}
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        base = max((name for name in names if package == name or package.startswith(name + ".")), key=len)
        folder = ROOT / names[base] / package.removeprefix(base).replace(".", "/").lstrip("/")
        assert (folder / "__init__.py").is_file(), package


def test_the_wheel_holds_the_code_and_no_models(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        assert f"{package.replace('.', '/')}/__init__.py" in names
    assert "dattn/kernels/__init__.py" in names and "dattn/py.typed" in names
    strangers = {name.split("/")[0] for name in names} - {"dattn", f"dattn-{version('dattn')}.dist-info"}
    assert not strangers
    assert not [name for name in names if name.endswith((".safetensors", ".png", ".mp4")) or "assets" in name]


def test_the_wheel_brings_the_command_and_the_licence(wheel):
    files = zipfile.ZipFile(wheel)
    info = f"dattn-{version('dattn')}.dist-info"
    assert "dattn = dattn.apps.cli:main" in files.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in files.namelist()


def test_the_kernels_folder_shadows_nothing():
    assert ROOT not in [Path(place or ".").resolve() for place in sys.path]
    found = importlib.util.find_spec("kernels")
    assert found is None or ROOT not in Path(found.origin or ".").resolve().parents
    assert (ROOT / "kernels" / "__init__.py").read_text() == ""


def test_kernels_import_nothing_of_dattn_by_its_full_name():
    for file in (ROOT / "kernels").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) dattn", file.read_text(), re.M), file


def test_importing_does_nothing_by_itself(tmp_path):
    program = (
        "import os; before = dict(os.environ); import dattn, dattn.apps.running, sys; "
        "assert dict(os.environ) == before; "
        "torch = sys.modules['torch']; "
        "assert not torch.cuda.is_initialized() and not hasattr(torch.ops.dattn, 'attend'); "
        "assert os.listdir('.') == []"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True, cwd=tmp_path)


@pytest.mark.parametrize("module", ["dattn", "dattn.apps.cli", "dattn.apps.demo"])
def test_what_takes_long_to_load_waits_until_it_is_needed(module, tmp_path):
    program = (
        f"import {module}, sys; slow = 'torch._dynamo', 'torch._inductor', 'diffusers', 'transformers', 'triton', "
        "'gradio'; assert not [name for name in slow if name in sys.modules]"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True, cwd=tmp_path)


def test_versions_agree():
    assert version("dattn") == PROJECT["project"]["version"]
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_constraints_meet_the_floors():
    pins = dict(re.findall(r"^(\w+)==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M))
    assert pins["torch"] == "2.13.0"
    (range_of_triton,) = re.findall(r"^triton(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    told = [*SpecifierSet(range_of_triton).filter(["3.5.1", "3.6.0", "3.7.1", "3.9.0", "3.10.0"])]
    assert told == ["3.6.0", "3.7.1", "3.9.0"]  # the second is what CUDA builds of that PyTorch depend on
    assert f"triton{range_of_triton.split(',')[0]}; " in "".join(PROJECT["project"]["dependencies"])
    for requirement in PROJECT["project"]["dependencies"]:
        name, floor = re.match(r"(\w+)(?:>=([\d.]+))?", requirement).groups()
        if name in pins and floor:
            assert tuple(map(int, pins[name].split("."))) >= tuple(map(int, floor.split(".")))


def test_the_readme_names_only_files_that_exist():
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page} links to {target}"
