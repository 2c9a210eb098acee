"""Sample grids: many small images on one labelled picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont, PngImagePlugin

from synth_common.errors import DataError
from synth_common.reporting.files import replace_bytes

_INK: Final = (27, 36, 48)
_PAPER: Final = (255, 255, 255)
_OUTLINE: Final = (255, 176, 0)  # amber: seen on grey, on stained tissue and on black
_MARGIN: Final = 12


@dataclass(frozen=True)
class GridLook:
    """How a grid is drawn. Letters are large because reports show grids at about half size.

    Attributes:
        cell: Smallest side of a drawn image in pixels; images are enlarged by the
            smallest whole factor that reaches it.
        gap: Pixels between images.
        text: Height of the row labels in pixels.
        headings: A text above each column; none if empty.
    """

    cell: int = 96
    gap: int = 4
    text: int = 22
    headings: tuple[str, ...] = ()


def write_grid(
    images: npt.NDArray[np.floating],
    rows: Sequence[str],
    path: Path,
    title: str,
    masks: npt.NDArray[np.integer | np.bool_] | None = None,
    look: GridLook | None = None,
) -> None:
    """Write a PNG of ``images`` in labelled rows, enlarged without smoothing.

    Args:
        images: (N, C, H, W) in [0, 1], C = 1 or 3, row by row; N is a multiple of the
            number of rows.
        rows: Label of each row, usually a class name.
        path: The PNG to write; its directory is made if it is missing.
        title: Printed above the grid and stored as the PNG's title.
        masks: (N, H, W), not 0 inside; drawn as an outline on the image.
        look: Sizes, in pixels.

    Raises:
        DataError: Shapes that do not fit each other, or values that are no image.
        StorageError: The file cannot be written.
    """
    look = look or GridLook()
    _check(images, rows, masks)
    count, _, height, width = images.shape
    columns = count // len(rows)
    if look.headings and len(look.headings) != columns:
        raise DataError(f"{len(look.headings)} headings cannot stand above {columns} columns")
    factor = max(1, -(-look.cell // min(height, width)))
    tiles = [_tile(images[i], None if masks is None else masks[i], factor) for i in range(count)]
    picture = _compose(tiles, rows, columns, title, look)
    note = PngImagePlugin.PngInfo()
    note.add_itxt("Title", title)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, pnginfo=note)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, buffer.getvalue())


def _check(
    images: npt.NDArray[np.floating],
    rows: Sequence[str],
    masks: npt.NDArray[np.integer | np.bool_] | None,
) -> None:
    """Refuse what is not a grid of images."""
    shape = images.shape
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise DataError(f"images have shape {shape}; expected (N, 1 or 3, H, W), none of them 0")
    if not rows or shape[0] % len(rows):
        raise DataError(f"{shape[0]} images cannot fill {len(rows)} rows evenly")
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise DataError("image values leave [0, 1] or are not numbers")
    if masks is not None and masks.shape != (shape[0], *shape[2:]):
        raise DataError(f"masks have shape {masks.shape}; expected {(shape[0], *shape[2:])}")


def _tile(
    image: npt.NDArray[np.floating],
    mask: npt.NDArray[np.integer | np.bool_] | None,
    factor: int,
) -> Image.Image:
    """One image (C, H, W), enlarged by a whole factor, with its mask's outline."""
    pixels = np.rint(np.asarray(image, dtype=np.float64) * 255).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
    size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    tile = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.NEAREST)
    if mask is None or not np.any(mask):
        return tile
    inside = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    inside = inside.resize(size, Image.Resampling.NEAREST)
    # The rim is what erosion takes away; the pad makes the image's own edge count as outside.
    padded = Image.new("L", (size[0] + 4, size[1] + 4))
    padded.paste(inside, (2, 2))
    core = padded.filter(ImageFilter.MinFilter(5)).crop((2, 2, size[0] + 2, size[1] + 2))
    rim = (np.asarray(inside) > 0) & (np.asarray(core) == 0)
    tile.paste(_OUTLINE, mask=Image.fromarray(np.where(rim, 255, 0).astype(np.uint8)))
    return tile


def _compose(
    tiles: Sequence[Image.Image], rows: Sequence[str], columns: int, title: str, look: GridLook
) -> Image.Image:
    """Tiles, labels and title on one sheet."""
    label_font, title_font = _font(look.text), _font(look.text + 2, bold=True)
    width, height = tiles[0].size
    left = _MARGIN + max(_length(label_font, name) for name in rows) + _MARGIN
    heading = _MARGIN + look.text + 2 + _MARGIN
    top = heading + (look.text + _MARGIN if look.headings else 0)
    grid_width = columns * (width + look.gap) - look.gap
    sheet_width = max(left + grid_width, _MARGIN + _length(title_font, title)) + _MARGIN
    sheet_height = top + len(rows) * (height + look.gap) - look.gap + _MARGIN
    sheet = Image.new("RGB", (sheet_width, sheet_height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, font=title_font, fill=_INK)
    for column, name in enumerate(look.headings):
        x = left + column * (width + look.gap) + width // 2
        pen.text((x, heading), name, font=label_font, fill=_INK, anchor="mt")
    for row, name in enumerate(rows):
        y = top + row * (height + look.gap)
        pen.text((left - _MARGIN, y + height // 2), name, font=label_font, fill=_INK, anchor="rm")
        for column in range(columns):
            x = left + column * (width + look.gap)
            sheet.paste(tiles[row * columns + column], (x, y))
    return sheet


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same letters on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def _length(font: ImageFont.FreeTypeFont, text: str) -> int:
    """Width of a text in whole pixels."""
    return int(np.ceil(font.getlength(text)))
