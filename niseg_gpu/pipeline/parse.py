"""YAML, TOML, Python and the command line become one ``Pipeline`` through one parse and one check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.paths import read_path
from niseg_gpu.pipeline.parameters import check_model, parameters_of
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.stack import NamesFile

ARRAYS = ("image", "spots", "labels", "spectra")


class Input(BaseModel):
    """What to read."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, NamesFile("")] = Field(description="Folder, file or glob of the run.")
    open_beam: Annotated[str | None, NamesFile("")] = Field(None, description="Folder, file or glob of the open beam.")
    dark: Annotated[str | None, NamesFile("")] = Field(None, description="Folder, file or glob of the dark current.")
    dims: list[str] | None = Field(None, description="Axes as they lie in the file, such as y,x,tof.")
    unsigned: bool = Field(False, description="Signed counts that wrapped are read as unsigned.")
    tof: Literal["auto", "spectra", "headers"] = Field("auto", description="Whose time of flight to believe.")
    bad_frames: Literal["error", "skip", "interpolate"] = Field(
        "error",
        description="Frames of a folder that are missing, broken or unlike the others: refuse them, leave them out, or "
        "take the mean of their neighbours.",
    )
    bad_values: Literal["error", "keep"] = Field(
        "error", description="NaN, Inf, negative counts and saturated values: refuse them, or go on and report them."
    )


class Output(BaseModel):
    """Where the results go."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, NamesFile("")] = Field("niseg-out", description="Folder of the results.")
    arrays: list[Literal["image", "spots", "labels", "spectra"]] = Field(
        list(ARRAYS),
        description="What to keep in result.zarr; leave out image where the corrected stack is not needed.",
    )


class Compute(BaseModel):
    """Where the work is done."""

    model_config = ConfigDict(extra="forbid")

    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto takes a GPU where one can be used.")
    kernels: Literal["auto", "library", "own"] = Field(
        "auto",
        description="auto: kernels of our own on the CPU, the libraries' on a GPU; either can be asked for by name.",
    )
    workers: Annotated[int, Ge(1), Le(1024)] | None = Field(
        None, description="Threads; all cores of this process by default."
    )
    cluster: str | None = Field(
        None,
        description="Where k-means goes over the spectra: gpus, a worker for each GPU of this machine; or a Dask "
        "scheduler's address (tcp://node1:8786) or its .json file.",
    )


@dataclass(frozen=True)
class Step:
    """A step by name with its parameters."""

    name: str
    parameters: Mapping[str, Any]

    def as_mapping(self) -> dict[str, Any]:
        return {self.name: dict(self.parameters)}


@dataclass(frozen=True)
class Pipeline:
    """What to read, what to do, where to put it; every name and type checked."""

    input: Input
    steps: tuple[Step, ...]
    output: Output
    compute: Compute

    def as_mapping(self) -> dict[str, Any]:
        """The pipeline with every default written out."""
        return {
            "input": self.input.model_dump(),
            "steps": [step.as_mapping() for step in self.steps],
            "output": self.output.model_dump(),
            "compute": self.compute.model_dump(),
        }


def check_pipeline(pipeline: Any, *, who: str) -> None:
    """Refuse what is no checked pipeline."""
    if not isinstance(pipeline, Pipeline):
        raise UserError(
            f"{who} got a {type(pipeline).__name__}; needed: a Pipeline, which read_pipeline makes of a file and "
            "parse_pipeline of a mapping"
        )


def parse_pipeline(mapping: Any, *, base: Path | None = None) -> Pipeline:
    """Check a pipeline given as a mapping.

    Parameters
    ----------
    mapping : mapping
        With ``input``, ``steps`` and, where the defaults don't do, ``output`` and ``compute``.
    base : Path, optional
        Folder that relative paths start from.

    Raises
    ------
    UserError
        An unknown name, answered with the nearest right one; a value of the wrong kind.
    """
    sections = {"input": Input, "steps": None, "output": Output, "compute": Compute}
    if not isinstance(mapping, Mapping):
        raise UserError(f"a pipeline is a mapping with {', '.join(sections)}; got {type(mapping).__name__}")
    for name in mapping:
        if name not in sections:
            raise UserError(f"the pipeline has no section {name!r}{suggest(str(name), sections)}")
    for name in ("input", "steps"):
        if not mapping.get(name):
            raise UserError(f"the pipeline needs a section {name!r}")
    given = mapping["input"]
    read = check_model(Input, dict(given) if isinstance(given, Mapping) else {"path": given}, where="input")
    output = check_model(Output, mapping.get("output") or {}, where="output")
    compute = check_model(Compute, mapping.get("compute") or {}, where="compute")
    assert isinstance(read, Input) and isinstance(output, Output) and isinstance(compute, Compute)
    steps = parse_steps(mapping["steps"], base=base)
    if compute.cluster is not None and all(OPS[step.name].apply is not None for step in steps):
        last = ", ".join(name for name, op in OPS.items() if op.apply is None)
        raise UserError(f"compute.cluster is given, but no step would go there; allowed with {last}")
    return Pipeline(_based(read, base), steps, _based(output, base), _based(compute, base))


def parse_steps(steps: Any, *, base: Path | None = None) -> tuple[Step, ...]:
    """Check a list of steps: names, ``{name: parameters}`` or ``{use: name, **parameters}``."""
    if not isinstance(steps, list | tuple):
        raise UserError(f"steps is a list; got {type(steps).__name__}")
    parsed = tuple(step if isinstance(step, Step) else _parse_step(step, base) for step in steps)
    for step in parsed[:-1]:
        if OPS[step.name].apply is None:
            raise UserError(f"{step.name} ends the pipeline; let it be the last step")
    return parsed


def _parse_step(step: Any, base: Path | None) -> Step:
    if isinstance(step, str):
        step = {step: {}}
    if not isinstance(step, Mapping) or not step:
        raise UserError(f"a step is a name with its parameters; got {step!r}")
    if "use" in step:
        name, parameters = step["use"], {k: v for k, v in step.items() if k != "use"}
    elif len(step) == 1:
        ((name, parameters),) = step.items()
    else:
        raise UserError(f"a step has one name; got {', '.join(map(str, step))} (indent its parameters under it)")
    if not isinstance(name, str) or name not in OPS:
        raise UserError(f"unknown step {name!r}{suggest(str(name), OPS)}")
    parameters = dict(parameters or {}) if isinstance(parameters, Mapping | None) else parameters
    model = parameters_of(name)
    values = check_model(model, parameters, where=name).model_dump()
    return Step(
        name, values if base is None else {k: _file_based(v, model.model_fields[k], base) for k, v in values.items()}
    )


def _file_based(value: Any, field: FieldInfo, base: Path) -> Any:
    """Let a relative name of a file, where a parameter may be one or have them as keys, start from `base`."""
    suffixes = [mark.suffix for mark in field.metadata if isinstance(mark, NamesFile)]
    if isinstance(value, str) and any(value.lower().endswith(suffix) for suffix in suffixes):
        return _place(value, base)
    if isinstance(value, dict) and suffixes:
        return {_place(name, base): weight for name, weight in value.items()}
    return value


def _place(name: str, base: Path) -> str:
    """Where a file is that is named from `base`."""
    try:
        return str(base / Path(name).expanduser())
    except RuntimeError:
        raise UserError(f"{name} begins with a home folder that is not known here; name it in full") from None


def _based(section: Any, base: Path | None) -> Any:
    """Let relative paths start from `base`."""
    if base is None:
        return section
    changes = {}
    for name in ("path", "open_beam", "dark", "cluster"):
        value = getattr(section, name, None)
        if value is not None and (name != "cluster" or value.endswith(".json")):
            changes[name] = _place(value, base)
    return section.model_copy(update=changes)


def read_pipeline(path: str | Path, *, overrides: list[str] | None = None) -> Pipeline:
    """Read a pipeline file, YAML or TOML; relative paths in it start from its folder.

    Parameters
    ----------
    path : str or Path
    overrides : list of str, optional
        ``step.parameter=value`` or ``section.key=value``; values are read as YAML.
    """
    path = read_path(path, who="read_pipeline")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"can't read the pipeline {path}: {error}; save it as UTF-8 text") from None
    except OSError as error:
        raise UserError(f"can't read the pipeline {path}: {error.strerror}; check the path") from None
    mapping = _load_toml(path, text) if path.suffix.lower() == ".toml" else _load_yaml(str(path), text)
    if not isinstance(mapping, dict):
        raise UserError(f"{path} holds no pipeline: a mapping with input and steps was expected")
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides or ()):
        raise UserError(f"read_pipeline got overrides {overrides!r}; allowed: a list of step.parameter=value")
    for override in overrides or ():
        _override(mapping, override)
    return parse_pipeline(mapping, base=path.parent)


def _load_yaml(where: str, text: str) -> Any:
    import yaml

    try:
        _refuse_twice(where, yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None


def _refuse_twice(where: str, root: Any) -> None:
    """Refuse a name that stands twice in one mapping: YAML's reader takes the last one and says nothing."""
    left, seen = [root] if root is not None else [], set()
    while left:
        node = left.pop()
        if id(node) in seen or not isinstance(node.value, list):  # an alias may lead back
            continue
        seen.add(id(node))
        if node.id == "mapping":
            names = [key.value for key, _ in node.value if isinstance(key.value, str)]
            for name in names:
                if names.count(name) > 1:
                    line = node.start_mark.line + 1
                    raise UserError(f"{where} names {name!r} twice in the mapping of line {line}; keep one of them")
            left += [value for _, value in node.value]
        else:
            left += node.value


def _load_toml(path: Path, text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _override(mapping: dict[str, Any], override: str) -> None:
    key, mark, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not mark or not dot:
        raise UserError(f"--set got {override!r}; allowed: step.parameter=value, such as kmeans.n_clusters=4")
    value = _load_yaml(f"--set {key}", text)
    if section in ("input", "output", "compute"):
        current = mapping.get(section) or {}
        current = {"path": current} if isinstance(current, str) and section == "input" else current
        mapping[section] = _with(current, name, value, where=section)
        return
    steps = mapping.get("steps") or []
    if not isinstance(steps, list):
        raise UserError(f"steps is a list; got {type(steps).__name__}")
    named = [i for i, step in enumerate(steps) if _name_of(step) == section]
    if not named:
        raise UserError(
            f"--set got {override!r}: the pipeline has no step {section!r}{suggest(section, map(_name_of, steps))}"
        )
    if len(named) > 1:
        raise UserError(
            f"--set got {override!r}: the pipeline has {len(named)} steps {section!r}; change the file instead"
        )
    step = steps[named[0]]
    if isinstance(step, dict) and "use" in step:
        steps[named[0]] = {**step, name: value}
    else:
        current = (step[section] or {}) if isinstance(step, dict) else {}
        steps[named[0]] = {section: _with(current, name, value, where=section)}


def _with(parameters: Any, name: str, value: Any, *, where: str) -> dict[str, Any]:
    if not isinstance(parameters, dict):
        raise UserError(f"{where} got {parameters!r}; allowed: parameters by name, such as {{{name}: {value}}}")
    return {**parameters, name: value}


def _name_of(step: Any) -> str:
    if isinstance(step, Mapping):
        return str(step.get("use") or next(iter(step), ""))
    return str(step)
