"""How often ``synth-audit metadata`` misses burned-in text, and takes other marks for text.

    python simulations/benchmarks/burned_in.py [--data FOLDER] [--images 100]

Plants lines of letters of several heights and contrasts near the border of images without text,
and counts the images in which nothing is found (misses), and the untouched ones in which something
is (false alarms). Images: drawn phantoms, and with ``--data`` the real sets that
docs/reference/data.md describes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from synth_common.images.phantom import draw
from synth_common.release.burned_in import text_like

_LINES = ("MILLER^HANS 12.03.1961", "ID 4711-0815", "St. Mary, Ward 3", "1961-03-12 M")
_HEIGHTS = (7, 9, 12, 16)
_CONTRASTS = (1.0, 0.5, 0.3)
Grey = npt.NDArray[np.float64]


def phantoms(count: int, size: int) -> Iterator[Grey]:
    """Drawn radiographs, (size, size), 0 to 1."""
    for seed in range(count):
        picture, _ = draw("radiograph", seed % 2 == 1, seed, size)
        yield np.asarray(picture, dtype=np.float64).reshape(size, size)


def real(path: Path, count: int) -> Iterator[Grey]:
    """Real images of an npz file, 0 to 1."""
    with np.load(path, allow_pickle=False) as arrays:
        images = arrays["images"]
    for index in np.random.default_rng(0).permutation(len(images))[:count]:
        grey = images[index].astype(np.float64) / 255
        yield grey if grey.ndim == 2 else grey.mean(axis=-1)


def planted(image: Grey, height: int, contrast: float, seed: int) -> Grey:
    """The image with a line of letters in a corner, white on dark or black on bright ground."""
    rng = np.random.default_rng(seed)
    rows, columns = image.shape
    font = ImageFont.load_default(size=height * 1.35)  # capital letters are lower than the size
    layer = Image.new("L", (columns, rows), 0)
    pen = ImageDraw.Draw(layer)
    text = _LINES[seed % len(_LINES)]
    top = 1 if rng.random() < 0.5 else rows - int(1.7 * height)
    pen.text((int(rng.integers(1, 4)), top), text, fill=255, font=font)
    alpha = np.asarray(layer, dtype=np.float64) / 255 * contrast
    under = image[alpha > 0.5 * contrast]
    ink = 1.0 if under.mean() < 0.5 else 0.0  # as machines choose it: so that it can be read
    return image * (1 - alpha) + ink * alpha


def main() -> None:
    """Print one table per set of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    sets = {f"phantom radiographs {size}": phantoms(given.images, size) for size in (64, 128, 256)}
    if given.data is not None:
        for name in (
            "cxr_site_a_guangzhou/cxr_site_a_64.npz",
            "cxr_site_b_nih/cxr_site_b_128.npz",
            "mednist64/mednist64.npz",
        ):
            sets[name] = real(given.data / name, given.images)
    for name, source in sets.items():
        _report(name, list(source))


def _report(name: str, images: list[Grey]) -> None:
    alarms = sum(bool(text_like(image)) for image in images)
    print(f"\n{name}: {len(images)} images, false alarms {alarms / len(images):.0%}")
    print("letters, px   " + "".join(f"contrast {c:<6g}" for c in _CONTRASTS) + " (missed)")
    for height in _HEIGHTS:
        cells = []
        for contrast in _CONTRASTS:
            found = sum(
                bool(text_like(planted(image, height, contrast, seed)))
                for seed, image in enumerate(images)
            )
            cells.append(f"{1 - found / len(images):<15.0%}")
        print(f"{height:<14}{''.join(cells)}")


if __name__ == "__main__":
    main()
