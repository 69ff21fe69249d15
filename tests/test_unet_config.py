"""A U-Net's configuration: what it allows, and how far a pixel reaches."""

from __future__ import annotations

import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.unet.config import UNetConfig, spot_config


def test_the_spot_network_reaches_22_pixels_on_a_grid_of_4() -> None:
    config = spot_config()
    assert (config.grid, config.reach, config.halo) == (4, 22, 24)


def test_one_level_reaches_as_far_as_its_convolutions() -> None:
    assert UNetConfig(levels=1).reach == 2
    assert UNetConfig(levels=1, block="recurrent-residual").reach == 6


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"block": "residul"}, "unet has no block 'residul'; did you mean 'residual'?"),
        ({"norm": "group"}, "unet has no norm 'group'; allowed: none, batch, layer"),
        ({"spatial_dims": 4}, "unet got spatial_dims 4; allowed: 2 to 3"),
        ({"levels": 0}, "unet got levels 0; allowed: 1 to 8"),
        ({"base_depth": 2.5}, "unet got base_depth 2.5"),
        ({"attention": 1}, "unet got attention 1; allowed: true, false"),
        ({"output": "relu", "out_classes": 3}, "allowed with relu: 1"),
    ],
)
def test_what_makes_no_network_is_refused(parameters: dict, message: str) -> None:
    with pytest.raises(UserError) as refused:
        UNetConfig(**parameters)
    assert message in str(refused.value)


def test_a_mapping_goes_there_and_back() -> None:
    config = UNetConfig(spatial_dims=3, block="residual", attention=True, out_classes=4)
    assert UNetConfig.from_mapping(config.as_mapping()) == config
    with pytest.raises(UserError, match="no parameter 'depth'"):
        UNetConfig.from_mapping({"depth": 3})
