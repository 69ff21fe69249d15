"""One parse and one check for YAML, TOML, Python and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.pipeline.parameters import parameters_of, summary_of
from niseg_gpu.pipeline.parse import parse_pipeline, parse_steps, read_pipeline
from niseg_gpu.pipeline.steps import OPS

YAML = """
input: {path: run42/, open_beam: ob/}
steps:
  - overlap_correct: {}
  - remove_spots: {threshold: 20}
  - scale_spectra
  - kmeans: {n_clusters: 3}
output: {path: out}
"""
TOML = """
[input]
path = "run42/"
open_beam = "ob/"
[[steps]]
use = "overlap_correct"
[[steps]]
use = "remove_spots"
threshold = 20
[[steps]]
use = "scale_spectra"
[[steps]]
use = "kmeans"
n_clusters = 3
[output]
path = "out"
"""
PYTHON = {
    "input": {"path": "run42/", "open_beam": "ob/"},
    "steps": ["overlap_correct", {"remove_spots": {"threshold": 20.0}}, "scale_spectra", {"kmeans": {"n_clusters": 3}}],
    "output": {"path": "out"},
}


def written(tmp_path: Path, text: str, name: str = "p.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_yaml_toml_and_python_mean_the_same(tmp_path: Path) -> None:
    by_yaml = read_pipeline(written(tmp_path, YAML))
    assert read_pipeline(written(tmp_path, TOML, "p.toml")) == by_yaml
    assert parse_pipeline(PYTHON, base=tmp_path) == by_yaml
    assert by_yaml.input.path == str(tmp_path / "run42/"), "relative paths start from the file's folder"
    assert by_yaml.steps[1].parameters["threshold"] == 20.0 and by_yaml.steps[1].parameters["kind"] == "both"


def test_what_is_written_out_reads_back_the_same() -> None:
    pipeline = parse_pipeline(PYTHON)
    assert parse_pipeline(pipeline.as_mapping()) == pipeline


def test_overrides(tmp_path: Path) -> None:
    overrides = ["kmeans.n_clusters=5", "compute.device=cpu", "input.bad_values=keep", "scale_spectra.method=standard"]
    for name, text in (("p.yaml", YAML), ("p.toml", TOML)):
        pipeline = read_pipeline(written(tmp_path, text, name), overrides=overrides)
        assert pipeline.steps[3].parameters["n_clusters"] == 5
        assert pipeline.steps[2].parameters["method"] == "standard"
        assert (pipeline.compute.device, pipeline.input.bad_values) == ("cpu", "keep")


@pytest.mark.parametrize(
    "override, message",
    [
        ("kmeans", "allowed: step.parameter=value"),
        ("kmens.n_clusters=2", "no step 'kmens'; did you mean 'kmeans'"),
        ("kmeans.clusters=2", "kmeans has no parameter 'clusters'; did you mean 'n_clusters'"),
        ("kmeans.n_clusters=many", "kmeans: n_clusters is 'many'"),
        ("kmeans.n_clusters=true", "kmeans: n_clusters is true; a number is needed: Number of clusters"),
        ("kmeans.features={x: 1, x: 2}", "--set kmeans.features names 'x' twice"),
    ],
)
def test_a_wrong_override_is_told(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pipeline(written(tmp_path, YAML), overrides=[override])


@pytest.mark.parametrize(
    "text, override, message",
    [
        ("input: a\nsteps: [kmeans]\noutput: 5", "output.path=out", "output got 5; allowed: parameters by name"),
        ("input: a\nsteps: 5", "kmeans.n_clusters=2", "steps is a list; got int"),
        ("input: a\nsteps: [{kmeans: 5}]", "kmeans.n_clusters=2", "kmeans got 5; allowed: parameters by name"),
    ],
)
def test_an_override_of_what_is_no_mapping_is_told(tmp_path: Path, text: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pipeline(written(tmp_path, text), overrides=[override])


@pytest.mark.parametrize(
    "text, name, line",
    [
        ("input: a\nsteps: [kmeans]\ninput: b", "input", 1),
        ("input: a\nsteps:\n  - kmeans: {n_clusters: 2, seed: 1, n_clusters: 3}", "n_clusters", 3),
    ],
)
def test_a_name_given_twice_is_told(tmp_path: Path, text: str, name: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"p\.yaml names '{name}' twice in the mapping of line {line}; keep one"):
        read_pipeline(written(tmp_path, text))


def test_a_list_inside_itself_ends(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a step is a name"):
        read_pipeline(written(tmp_path, "input: a\nsteps: &steps [*steps]"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": ["remove_spot"]}, "unknown step 'remove_spot'; did you mean 'remove_spots'"),
        ({"steps": [{"remove_spots": {}}]}, "remove_spots needs threshold: Least difference"),
        ({"steps": [{"remove_spots": {"treshold": 3}}]}, "no parameter 'treshold'; did you mean 'threshold'"),
        (
            {"steps": [{"remove_spots": {"threshold": -1}}]},
            "threshold is -1; input should be greater than or equal to 0",
        ),
        ({"steps": [{"remove_spots": {"threshold": 1, "kind": "white"}}]}, "kind is 'white'; input should be 'bright'"),
        ({"steps": [{"remove_spots": 5}]}, "remove_spots got 5; allowed: parameters by name"),
        ({"steps": [{"kmeans": {"n_clusters": 2.5}}]}, "n_clusters is 2.5"),
        ({"steps": [{"use": ["kmeans"]}]}, r"unknown step \['kmeans'\]; did you mean"),
        ({"steps": [{"kmeans": {}}, "scale_spectra"]}, "kmeans ends the pipeline"),
        ({"steps": [{"kmeans": {}, "scale_spectra": {}}]}, "a step has one name; got kmeans, scale_spectra"),
        ({"steps": "kmeans"}, "steps is a list; got str"),
        ({"steps": [{"select_tof": {"tof_s": [1]}}]}, r"select_tof got tof_s \[1\], which is too few: Keep the bins"),
        ({"steps": [{"rebin_tof": {"factor": True}}]}, "a number is needed: Join this many bins of a shutter window$"),
        ({"steps": []}, "needs a section 'steps'"),
        ({"input": {}}, "needs a section 'input'"),
        ({"compute": {"workers": 10**30}}, "input should be less than or equal to 1024"),
        ({"input": 20261127}, "input: path is 20261127; input should be a valid string; put the name in quotes"),
        ({"input": {"path": "a", "dark": 20261127}}, "dark is 20261127; .*; put the name in quotes"),
        ({"input": ["a", "b"]}, r"input: path is \['a', 'b'\]; input should be a valid string"),
        ({"input": {"path": "a", "openbeam": "b"}}, "input has no parameter 'openbeam'; did you mean 'open_beam'"),
        ({"inputs": "a"}, "no section 'inputs'; did you mean 'input'"),
        ({"compute": {"device": "tpu"}}, "device is 'tpu'; input should be 'auto', 'cpu' or 'gpu'"),
        ({"compute": {"workers": 0}}, "workers is 0"),
        ({"output": {"arrays": ["labls"]}}, "arrays is 'labls'"),
    ],
)
def test_a_wrong_pipeline_is_told_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_pipeline({**PYTHON, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.yaml", "input: [", "is not valid YAML"),
        ("p.toml", "input = ", "is not valid TOML"),
        ("p.yaml", "just words", "holds no pipeline"),
        ("p.yaml", "", "holds no pipeline"),
    ],
)
def test_a_file_that_is_no_pipeline(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pipeline(written(tmp_path, text, name))


def test_a_pipeline_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes("input: \xfcber".encode("latin-1"))
    with pytest.raises(UserError, match="can't read the pipeline .*byte 0xfc.*; save it as UTF-8 text"):
        read_pipeline(tmp_path / "p.yaml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't read the pipeline .*nope.yaml: No such file"):
        read_pipeline(tmp_path / "nope.yaml")


@pytest.mark.parametrize("step", OPS)
def test_every_parameter_of_every_step_is_explained(step: str) -> None:
    assert summary_of(step).endswith(".")
    for name, field in parameters_of(step).model_fields.items():
        assert field.description, f"{step}.{name}"


def test_steps_may_be_values_already() -> None:
    steps = parse_steps(["scale_spectra"])
    assert parse_steps(steps) == steps


@pytest.mark.parametrize(
    "change, told",
    [
        ("input.path=''", "input: path is ''; give a name: Folder, file or glob of the run"),
        ("input.open_beam=''", "input: open_beam is ''; give a name, or leave it out: Folder, file or glob of the"),
        ("input.dark=' '", "input: dark is ' '; give a name, or leave it out"),
        ("output.path=''", "output: path is ''; give a name, or leave it out: Folder of the results"),
        ("remove_spots.dead_pixels=''", "remove_spots: dead_pixels is ''; give a name, or leave it out"),
        ("kmeans.init=''", "kmeans: init is ''; give a name, or leave it out: Starting centroids"),
        ("kmeans.images={'': 1}", "kmeans: images is {'': 1}; give a name, or leave it out"),
    ],
)
def test_an_empty_name_is_not_the_folder_that_relative_names_start_from(tmp_path: Path, change: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        read_pipeline(written(tmp_path, YAML), overrides=[change])
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize("name, value, allowed", [("n_init", 10**30, 10_000), ("smooth_sigma_px", 1e30, 1000)])
def test_what_would_never_end_is_refused(tmp_path: Path, name: str, value: float, allowed: int) -> None:
    with pytest.raises(UserError, match=f"kmeans: {name} is .*; input should be less than or equal to {allowed}$"):
        read_pipeline(written(tmp_path, YAML), overrides=[f"kmeans.{name}={value}"])


def test_a_home_folder_of_nobody_is_told(tmp_path: Path) -> None:
    for change in ("input.path=~nobody-of-that-name/run", "remove_spots.dead_pixels=~nobody-of-that-name/dead.tif"):
        with pytest.raises(UserError, match="~nobody-of-that-name/.* begins with a home folder that is not known here"):
            read_pipeline(written(tmp_path, YAML), overrides=[change])
