"""What a U-Net learns from and is validated on: images with masks out of files, or simulated while it learns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.errors import UserError

log = logging.getLogger("niseg_gpu")
# Sides of a simulated image where none are given, by what it shows and its dimensions.
SIDES = {("radiograph", 2): 1024, ("roots", 2): 512, ("roots", 3): 96}
VALIDATION, TRAINING = range(2)  # streams of seeds


class Pairs(NamedTuple):
    """Images (Y, X) or volumes (Z, Y, X), and a mask for each."""

    images: list[np.ndarray]
    masks: list[np.ndarray]


def read_pairs(
    images: Sequence[str] | None,
    masks: Sequence[str] | None,
    *,
    dims: Sequence[str] | None,
    spatial_dims: int,
    classes: int,
) -> Pairs:
    """Read images and their masks; stacks give as many as they have frames (volumes).

    Raises
    ------
    UserError
        Images and masks that do not fit each other, labels that are no classes, too few axes.
    """
    from niseg_gpu.io.open import open_stack
    from niseg_gpu.unet.samples import check_pairs, cut_frames

    names, masks = list(images or ()), list(masks or ())
    if len(names) != len(masks):
        raise UserError(f"unet train got {len(names)} images and {len(masks)} masks; allowed: a mask for each image")
    values, labels = ([open_stack(path, dims=dims).values for path in paths] for paths in (names, masks))
    check_pairs(values, labels, names, classes=classes)
    return Pairs(*(cut_frames(part, spatial_dims=spatial_dims) for part in (values, labels)))


def split_pairs(learn: Pairs, check: Pairs, *, rows: float, grid: int) -> tuple[Pairs, Pairs, str]:
    """Training and validation images, and how they came to be, in words.

    Parameters
    ----------
    learn, check : Pairs
        The second may hold none: then the last fifth of the first is taken.
    rows : float
        Share of each image's rows to validate on; 0: none.
    grid : int
        Rows that a part must have at least.
    """
    if check.images:
        return learn, check, f"validated on {len(check.images)} other images"
    if rows:
        ends = [max(grid, round(image.shape[-2] * (1 - rows))) for image in learn.images]
        first, last = (
            Pairs(*([a[..., cut(end), :] for a, end in zip(part, ends, strict=True)] for part in learn))
            for cut in (slice, lambda end: slice(end, None))
        )
        if any(image.shape[-2] < grid for image in last.images):
            raise UserError(f"unet train got validation_rows {rows:g}; that leaves less than {grid} rows; take more")
        said = (
            f"validated on the last {100 * rows:g} % of the rows of the training images themselves: expect figures "
            "to be worse on other images"
        )
        log.warning("%s", said)
        return first, last, said
    if len(learn.images) < 2:
        raise UserError(
            "unet train got one image and none to validate on; give --validation-image and --validation-mask, or "
            "insist on the same image with --validation-rows 0.25"
        )
    kept = max(1, round(len(learn.images) / 5))
    return (
        Pairs(*(part[:-kept] for part in learn)),
        Pairs(*(part[-kept:] for part in learn)),
        f"validated on the last {kept} images",
    )


def gather_images(
    given: tuple[Sequence[str] | None, Sequence[str] | None],
    validation: tuple[Sequence[str] | None, Sequence[str] | None],
    *,
    simulation: Simulation | None,
    rows: float,
    grid: int,
    **reading: Any,
) -> tuple[Pairs, Pairs, str]:
    """Training images (of the first epoch, where they are simulated), validation images, and how they came to be.

    Parameters
    ----------
    given, validation : pair of sequence of str
        Files of images and of masks.
    simulation : Simulation or None
        Makes the training images in place of files, and the validation images where none are given.
    rows, grid
        See `split_pairs`.
    **reading
        See `read_pairs`.
    """
    check = read_pairs(*validation, **reading)
    if simulation is None:
        learn, check, said = split_pairs(read_pairs(*given, **reading), check, rows=rows, grid=grid)
        if not any(mask.any() for mask in learn.masks):
            raise UserError(
                "unet train got masks that are 0 in every pixel to learn from: there is nothing but background to "
                "learn; give a mask that marks something"
            )
        if reading["classes"] == 1 and all(mask.all() for mask in learn.masks):
            raise UserError(
                "unet train got masks that are 0 in no pixel to learn from: there is no background to learn; "
                "give masks that are 0 for background"
            )
        if all(_is_constant(image) for image in learn.images):
            raise UserError(
                "unet train got images to learn from that hold one value in all of their pixels: there is nothing to "
                "see in them; give images that show what the masks mark"
            )
        return learn, check, said
    other = "other" if check.images else "simulated"
    check = check if check.images else simulation.draw_validation()
    said = f"validated on {len(check.images)} {other} images; learnt from new simulated ones in each epoch"
    return simulation.draw(1), check, said


def _is_constant(image: np.ndarray) -> bool:
    """Whether what is finite in an image is one value; not where nothing is, which has a complaint of its own."""
    values = image[np.isfinite(image)]
    return values.size > 0 and bool(values.min() == values.max())


class Simulation(NamedTuple):
    """Images that a simulator makes.

    Attributes
    ----------
    kind : {"radiograph", "roots"}
    shape : tuple of int
        Sides of each, in pixels.
    images : int
        For an epoch.
    options : mapping
        Of `make_radiograph_frame` or `make_root_sample`.
    seed : int
        Each epoch has seeds of its own that follow from it, and so has validation.
    """

    kind: str
    shape: tuple[int, ...]
    images: int
    options: Mapping[str, Any]
    seed: int

    def draw(self, epoch: int) -> Pairs:
        """Images for an epoch, the first is 1: the same whenever they are asked for."""
        return self._draw([TRAINING, epoch], self.images)

    def draw_validation(self) -> Pairs:
        """Images that no epoch has, a quarter as many."""
        return self._draw([VALIDATION, 0], max(1, round(self.images / 4)))

    def as_mapping(self) -> dict[str, Any]:
        """What a model's folder says of it, by the names of `train_unet`'s parameters."""
        return {
            "simulate": self.kind,
            "simulate_shape": list(self.shape),
            "simulate_images": self.images,
            "simulate_options": dict(self.options),
        }

    def _draw(self, stream: list[int], images: int) -> Pairs:
        from niseg_gpu.simulate.radiograph import make_radiograph_sample
        from niseg_gpu.simulate.roots import make_root_sample

        make = {"radiograph": make_radiograph_sample, "roots": make_root_sample}[self.kind]
        seeds = np.random.SeedSequence([self.seed, *stream]).generate_state(images)
        made = [make(self.shape, seed=int(seed), **self.options) for seed in seeds]
        return Pairs(*map(list, zip(*made, strict=True)))


def plan_simulation(
    kind: str, shape: Sequence[int] | None, *, spatial_dims: int, images: int, options: Mapping[str, Any], seed: int
) -> Simulation:
    """Check what is to be simulated.

    Raises
    ------
    UserError
        A shape of another number of sides than the network's, or radiographs for a network of volumes.
    """
    if (kind, spatial_dims) not in SIDES:
        raise UserError(f"unet train got simulate {kind} and spatial_dims {spatial_dims}; allowed: roots for volumes")
    sides = tuple(shape or (SIDES[kind, spatial_dims],))
    sides *= spatial_dims if len(sides) == 1 else 1
    if len(sides) != spatial_dims:
        raise UserError(f"unet train got simulate_shape {list(sides)}; allowed: one side, or {spatial_dims}")
    for name in ("seed", "frame"):
        if name in options:
            raise UserError(f"simulate_options has {name}, which each image has its own of; give unet train's seed")
    return Simulation(kind, sides, images, options, seed)


class Renewed:
    """What is learnt from in each epoch, made by a function; the next while the last is learnt from.

    Parameters
    ----------
    make : callable
        Of the number of an epoch.
    epochs : int
        After which there is no next.
    """

    def __init__(self, make: Callable[[int], Any], *, epochs: int) -> None:
        self._make, self._epochs = make, epochs
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="simulate")
        self._ahead: tuple[int, Future[Any]] | None = None

    def __enter__(self) -> Renewed:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, epoch: int) -> Any:
        known, future = self._ahead or (None, None)
        if known != epoch:
            future = self._pool.submit(self._make, epoch)
        found = future.result()
        self._ahead = (epoch + 1, self._pool.submit(self._make, epoch + 1)) if epoch < self._epochs else None
        return found
