"""pyproject.toml, environment-gpu.yml and what the package imports, held against each other."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = {"gpu", "gpu-cu12", "hpc", "bench", "test"}

# Names that are not the same in both worlds.
CONDA_NAMES = {
    "cucim-cu13": "cucim",
    "cuml-cu13": "cuml",
    "cupy-cuda13x": "cupy",
    "matplotlib": "matplotlib-base",
}
IMPORT_NAMES = {
    "PIL": "pillow",
    "cucim": "cucim-cu13",
    "cuml": "cuml-cu13",
    "cupy": "cupy-cuda13x",
    "cupyx": "cupy-cuda13x",
    "jaxlib": "jax",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Used where it happens to be installed, needed nowhere: HDF5's further compressions, and what recomputes the tables of
# cross sections.
IF_PRESENT = {"hdf5plugin", "NCrystal"}
# Only conda needs these: the interpreter, the CUDA release, JAX's compiled half in its CUDA build, and pip itself.
CONDA_ONLY = {"python", "pip", "cuda-version", "jaxlib"}


def read_project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_requirements(*extras: str) -> dict[str, Requirement]:
    """Return the base dependencies, or those of the extras, by their canonical names."""
    project = read_project()
    lines = [line for extra in extras for line in project["optional-dependencies"][extra]]
    requirements = [Requirement(line) for line in (lines if extras else project["dependencies"])]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def read_environment() -> dict:
    return yaml.safe_load((ROOT / "environment-gpu.yml").read_text())


def read_conda() -> dict[str, tuple[SpecifierSet, str]]:
    """Return every conda package of the environment with its bound, as pip would write it, and its build string."""
    packages = {}
    for line in read_environment()["dependencies"]:
        if isinstance(line, str):
            name, bound, build = re.fullmatch(r"([a-z0-9_.-]+) ?([^ ]*) ?([^ ]*)", line).groups()
            assert name not in packages, f"{name} is named twice"
            packages[name] = SpecifierSet(re.sub(r"^=([0-9.]+)$", r"==\1.*", bound)), build
    return packages


def without_cuda(text: str) -> str:
    """Return a wheel's or an extra's name without its CUDA release: ``cuml-cu12`` -> ``cuml``."""
    return re.sub(r"-?cu(da)?1[23]x?$", "", text)


def iter_imports(source: str) -> Iterator[str]:
    """Yield the top-level names a module imports, wherever in it; ``import_module("...")`` is seen too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(a.value).partition(".")[0] for a in node.args[:1] if isinstance(a, ast.Constant))


def find_distribution(name: str) -> str:
    return IMPORT_NAMES.get(name, canonicalize_name(name))


def test_the_extras_are_there():
    assert set(read_project()["optional-dependencies"]) == EXTRAS


def test_channels():
    # RAPIDS' own channel first, or conda-forge's packages of the same names would win.
    assert read_environment()["channels"] == ["rapidsai", "conda-forge"]


def test_every_wheel_has_its_conda_package_with_the_same_bound():
    wheels = read_requirements() | read_requirements("gpu")
    expected = {CONDA_NAMES.get(name, name): requirement.specifier for name, requirement in wheels.items()}
    found = {name: bound for name, (bound, _) in read_conda().items() if name not in CONDA_ONLY}
    assert found == expected


def test_conda_takes_the_cuda_13_builds():
    packages = read_conda()
    assert packages["cuda-version"][0] == SpecifierSet("==13.*")
    assert packages["jaxlib"] == (packages["jax"][0], "*cuda*")


def test_python_is_bound_alike():
    project = read_project()
    bound = read_conda()["python"][0]
    assert {s for s in bound if s.operator == ">="} == set(SpecifierSet(project["requires-python"]))
    minors = {f"3.{minor}" for minor in range(8, 30)}
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line}
    assert set(bound.filter(minors)) == named


def test_pip_installs_the_checkout_and_nothing_else():
    # conda hands these lines to pip as a requirements file, run in the folder of the yml; it knows no --no-deps.
    dependencies = read_environment()["dependencies"]
    assert "pip" in dependencies
    assert [line["pip"] for line in dependencies if isinstance(line, dict)] == [["."]]


def test_both_cuda_releases_name_the_same_projects_with_the_same_bounds():
    def normalise(extra: str) -> dict[str, tuple[SpecifierSet, set[str]]]:
        requirements = read_requirements(extra).items()
        return {without_cuda(n): (r.specifier, {without_cuda(e) for e in r.extras}) for n, r in requirements}

    assert normalise("gpu") == normalise("gpu-cu12")


@pytest.mark.parametrize(("extra", "release"), [("gpu", "13"), ("gpu-cu12", "12")])
def test_an_extra_keeps_to_one_cuda_release(extra, release):
    requirements = read_requirements(extra)
    names = [*requirements, *(e for requirement in requirements.values() for e in requirement.extras)]
    assert {match[1] for name in names if (match := re.search(r"cu(?:da)?(1\d)", name))} == {release}


def test_rapids_moves_as_one_set():
    requirements = read_requirements("gpu")
    assert len({str(requirements[name].specifier) for name in ("cucim-cu13", "cuml-cu13", "dask-cuda")}) == 1


def test_dask_and_its_scheduler_are_bound_alike():
    # Each release of distributed takes exactly the Dask of the same release.
    assert read_requirements("hpc")["distributed"].specifier == read_requirements()["dask"].specifier


def test_every_package_is_installed_and_the_benchmarks_within():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "niseg_gpu").rglob("__init__.py")}
    assert set(setuptools["packages"]) == found | {"niseg_gpu.benchmarks"}
    assert setuptools["package-dir"] == {"niseg_gpu.benchmarks": "benchmarks"}


def test_every_import_of_the_package_is_declared():
    # Not `bench` or `test`: the package itself must run without its peers and without pytest.
    declared = set(read_requirements()) | set(read_requirements("gpu", "hpc"))
    own_or_standard = sys.stdlib_module_names | IF_PRESENT | {"niseg_gpu"}
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "niseg_gpu").rglob("*.py"))
        for name in iter_imports(path.read_text(encoding="utf-8"))
        if name not in own_or_standard and find_distribution(name) not in declared
    }
    assert not missing


@pytest.mark.parametrize(
    "source",
    [
        "import PIL.Image",
        "from PIL import Image",
        "def f():\n    from PIL.Image import open",
        "import importlib\nx = importlib.import_module('PIL.Image')",
        "from importlib import import_module\nx = import_module('PIL')",
        "__import__('PIL')",
    ],
)
def test_imports_are_seen_wherever_they_stand(source):
    assert "PIL" in set(iter_imports(source))


def test_relative_imports_are_not_taken_for_packages():
    assert set(iter_imports("from . import a\nfrom .b import c\nfrom .. import d")) == set()
