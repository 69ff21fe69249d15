"""Grey PNGs as stacks: values as painted, everything else refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from niseg_gpu.errors import UserError
from niseg_gpu.io.open import open_stack
from niseg_gpu.io.png import open_png


@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16]), hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_values_come_back_as_they_were_painted(tmp_path_factory, values) -> None:
    path = tmp_path_factory.mktemp("png") / "mask.png"
    Image.fromarray(values).save(path)
    stack = open_stack(path)
    assert (stack.dims, stack.dtype, stack.attrs["files"]) == (("y", "x"), values.dtype, [str(path)])
    np.testing.assert_array_equal(stack.values, values)


def test_a_part_can_be_read_and_the_reader_travels(tmp_path: Path) -> None:
    values = np.arange(70 * 50, dtype=np.uint16).reshape(70, 50)
    Image.fromarray(values).save(tmp_path / "MASK.PNG")
    array = pickle.loads(pickle.dumps(open_png(tmp_path / "MASK.PNG").array))
    part = array[slice(0, 1), slice(10, 20), slice(5, 9)]
    np.testing.assert_array_equal(part, values[None, 10:20, 5:9])
    assert part.dtype == np.uint16 and part.flags.owndata
    np.testing.assert_array_equal(open_stack(tmp_path / "MASK.PNG")[3:7].values, values[3:7])


def test_a_large_image_is_no_bomb(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(np.full((50, 60), 7, np.uint8)).save(tmp_path / "large.png")
    assert open_stack(tmp_path / "large.png").values.sum() == 7 * 3000


@pytest.mark.parametrize(
    ("mode", "complaint"),
    [
        ("RGB", "8-bit colour PNG"),
        ("RGBA", "8-bit colour with transparency PNG"),
        ("P", "8-bit palette PNG"),
        ("LA", "8-bit grey with transparency PNG"),
        ("1", "1-bit grey PNG"),
    ],
)
def test_what_is_not_grey_is_refused(tmp_path: Path, mode: str, complaint: str) -> None:
    path = tmp_path / "picture.png"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 9), np.uint8))
    image.convert("RGB").quantize(200).save(path) if mode == "P" else image.convert(mode).save(path)
    with pytest.raises(UserError, match=rf"picture.png is a {complaint}; allowed: grey of 8 or 16 bits"):
        open_stack(path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    with pytest.raises(UserError, match="mask.png: no such file"):
        open_stack(path)
    path.touch()
    with pytest.raises(UserError, match="mask.png is empty"):
        open_stack(path)
    path.write_bytes(b"GIF89a and more bytes than the header of a PNG takes")
    with pytest.raises(UserError, match="mask.png is not a whole PNG"):
        open_stack(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    with pytest.raises(UserError, match="mask.png is not a whole PNG"):
        open_stack(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"mask.png can't be decoded .*copy the file again"):
        open_stack(path).compute()


def test_a_mask_painted_by_hand(data_dir: Path) -> None:
    mask = open_stack(data_dir / "spots_annotated" / "mask.png").values
    assert mask.shape == (256, 128) and mask.dtype == np.uint8
    assert np.unique(mask).tolist() == [0, 255] and 0.012 < (mask > 0).mean() < 0.013
