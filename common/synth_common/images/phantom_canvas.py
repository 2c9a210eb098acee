"""A drawing surface in body coordinates, for the phantoms.

Coordinates run over [-1, 1]: x to the right, y downwards. Shapes are given by their
signed distance in these units (negative inside) and turned into coverage with an edge at
least one pixel wide, so that nothing is jagged at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

Field = npt.NDArray[np.floating[Any]]
"""A value per pixel, (H, W), computed in float32."""
Value = float | Sequence[float] | Field
"""A grey value, a colour, or a grey value per pixel."""


@dataclass(frozen=True)
class Pose:
    """How a patient lies in one image: rotation (radians), shift and scale."""

    angle: float
    dx: float
    dy: float
    scale: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Pose:
        """A small random displacement, as between two visits."""
        return cls(
            angle=float(rng.normal(0.0, 0.04)),
            dx=float(rng.normal(0.0, 0.025)),
            dy=float(rng.normal(0.0, 0.025)),
            scale=float(rng.uniform(0.95, 1.05)),
        )


@dataclass(frozen=True)
class Canvas:
    """A square image being painted, or a window of one that shares its pixels.

    Attributes:
        image: float32, (H, W), or (H, W, 3) in colour; values about [0, 1].
        x: Body coordinate of every pixel, to the right.
        y: Body coordinate of every pixel, downwards.
        pixel: Width of a pixel in body coordinates.
        pose: How the body lies in the image.
        window: Rows and columns of the whole image that this canvas covers.
    """

    image: npt.NDArray[np.float32]
    x: Field
    y: Field
    pixel: float
    pose: Pose
    window: tuple[slice, slice]

    @classmethod
    def blank(cls, size: int, pose: Pose, colour: bool) -> Canvas:
        """A black canvas of ``size`` by ``size`` pixels."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2.0 / size) - np.float32(1.0)
        u, v = np.meshgrid(axis - np.float32(pose.dx), axis - np.float32(pose.dy))
        cos, sin = (np.float32(f(pose.angle) / pose.scale) for f in (np.cos, np.sin))
        return cls(
            image=np.zeros((size, size, 3) if colour else (size, size), dtype=np.float32),
            x=cos * u + sin * v,
            y=cos * v - sin * u,
            pixel=2.0 / (size * pose.scale),
            pose=pose,
            window=(slice(0, size), slice(0, size)),
        )

    def around(self, centre: tuple[float, float], reach: float) -> Canvas:
        """A window of a whole canvas with everything within ``reach`` of ``centre``.

        Small shapes are painted there at a fraction of the cost; the pixels are shared.
        """
        size, pose = self.image.shape[0], self.pose
        cos, sin = np.cos(pose.angle) * pose.scale, np.sin(pose.angle) * pose.scale
        column = cos * centre[0] - sin * centre[1] + pose.dx
        row = sin * centre[0] + cos * centre[1] + pose.dy
        far = reach * pose.scale + 4.0 / size

        def span(middle: float) -> slice:
            low, high = ((middle + d + 1.0) * size / 2 for d in (-far, far))
            return slice(min(max(int(low), 0), size), min(max(int(high) + 1, 0), size))

        window = (span(row), span(column))
        x, y = self.x[window], self.y[window]
        return Canvas(self.image[window], x, y, self.pixel, pose, window)

    def cover(self, distance: Field, soft: float = 0.0) -> Field:
        """Coverage in [0, 1] of a shape, with an edge ``soft`` wide (a pixel at least)."""
        return np.asarray(np.clip(np.float32(0.5) - distance / max(soft, self.pixel), 0.0, 1.0))

    def ellipse(
        self, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0
    ) -> Field:
        """Signed distance (exact on the axes) of an ellipse turned by ``angle`` radians."""
        u, v = self.x - np.float32(centre[0]), self.y - np.float32(centre[1])
        if angle:
            cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            u, v = cos * u + sin * v, cos * v - sin * u
        radius = np.hypot(u / np.float32(radii[0]), v / np.float32(radii[1]))
        return np.asarray((radius - 1.0) * min(radii))

    def blob(
        self, centre: tuple[float, float], radius: float, rng: np.random.Generator, rough: float
    ) -> Field:
        """Signed distance of a disc whose radius wavers by about ``rough`` of itself."""
        u, v = self.x - np.float32(centre[0]), self.y - np.float32(centre[1])
        theta = np.arctan2(v, u)
        waver = np.zeros_like(theta)
        for k in (2, 3, 5):
            waver += np.float32(rng.normal(0.0, rough / np.sqrt(k))) * np.cos(
                k * theta + np.float32(rng.uniform(0.0, 2 * np.pi))
            )
        return np.asarray(np.hypot(u, v) - radius * (1.0 + waver))

    def texture(
        self, rng: np.random.Generator, scale: tuple[float, float], angle: float = 0.0
    ) -> Field:
        """Smooth noise fixed to the body, variance about 1: a cubic B-spline of a lattice.

        ``scale`` is the grain in x and y, in body units, before turning by ``angle``.
        """
        cells = [int(np.ceil(4.0 / s)) + 4 for s in scale]
        lattice = rng.standard_normal((cells[1], cells[0])).astype(np.float32)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u = (cos * self.x + sin * self.y) / np.float32(scale[0]) + np.float32(cells[0] / 2)
        v = (cos * self.y - sin * self.x) / np.float32(scale[1]) + np.float32(cells[1] / 2)
        noise: Field = map_coordinates(
            lattice, [v, u], order=3, prefilter=False, mode="grid-wrap", output=np.float32
        )
        return noise * np.float32(2.1)  # the spline's weights leave a standard deviation of 0.48

    def paint(self, cover: Field, value: Value) -> None:
        """Replace what is there by ``value`` where covered."""
        if self.image.ndim == 3:
            cover = cover[..., None]
        image = self.image  # painted in place: a window shares it with the whole
        image += cover * (np.asarray(value, dtype=np.float32) - image)

    def add(self, field: Field) -> None:
        """Add to a grey image: superposition, as of shadows in a radiograph."""
        image = self.image
        image += field
