"""The four looks of the phantoms. Proportions follow textbook plates, by eye.

Every look takes the canvas, the generator of the patient's anatomy, and the generator of
the lesion or None. The anatomy's draws never depend on the lesion, so that one patient
can be drawn with and without it. Each returns the lesion's coverage, float32 (H, W).
Positions are in body coordinates; the patient's right is at the image's left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from synth_common.images.phantom_canvas import Canvas, Field

Rng = np.random.Generator
Artist = Callable[[Canvas, Rng, Rng | None], Field]


def _vary(rng: Rng, amount: float) -> float:
    """A factor near 1."""
    return float(rng.uniform(1.0 - amount, 1.0 + amount))


def _none(c: Canvas) -> Field:
    """The mask of an image without lesion."""
    return np.zeros_like(c.x)


# ---------------------------------------------------------------- chest radiograph


def radiograph(c: Canvas, body: Rng, lesion: Rng | None) -> Field:
    """A frontal chest radiograph; the lesion is an opacity in one lung."""
    wide, tall, base = _vary(body, 0.07), _vary(body, 0.06), float(body.normal(0.40, 0.03))
    side = np.sign(c.x)
    flank = 0.80 * wide + 0.10 * np.clip(c.y, -1, 1) ** 2 - 0.55 * np.clip(-0.62 - c.y, 0, 1)
    torso = c.cover(np.abs(c.x) - flank - 0.45 * np.exp(-(((c.y + 0.62) / 0.16) ** 2)), 0.06)
    c.paint(torso, 0.50 + 0.10 * c.y)
    # Diaphragm: a dome under each lung, the right one (image left) higher by the liver.
    dome = (base + 0.035 * side + 0.95 * (np.abs(c.x) - 0.36 * wide) ** 2).astype(np.float32)
    lungs = np.zeros_like(c.x)
    for s in (-1, 1):
        field = c.ellipse((s * 0.40 * wide, -0.02), (0.335 * wide, 0.74 * tall), s * -0.10)
        lungs = np.maximum(lungs, np.minimum(c.cover(field, 0.05), c.cover(c.y - dome, 0.03)))
    c.paint(torso * c.cover(dome - c.y, 0.04), 0.74)
    c.paint(lungs, 0.15 + 0.05 * c.y)
    _lung_markings(c, body, lungs)
    _mediastinum(c, body, torso)
    mask = _opacity(c, lesion, wide, base, lungs) if lesion is not None else _none(c)
    _bones(c, body, wide, torso)
    return mask


def _lung_markings(c: Canvas, body: Rng, lungs: Field) -> None:
    """Vessels fanning out from the hila."""
    for s in (-1, 1):
        hilum = c.ellipse((s * 0.17, 0.0), (0.10, 0.20))
        c.add(lungs * 0.16 * c.cover(hilum, 0.25))
        reach = np.hypot(c.x - s * 0.15, c.y)
        fan = np.arctan2(c.y, s * (c.x - s * 0.15))
        for direction in body.uniform(-1.2, 1.2, size=7):
            line = np.abs(fan - np.float32(direction)) * reach
            c.add(lungs * 0.10 * c.cover(line - 0.012, 0.03) * np.clip(0.75 - reach, 0, 1))
    c.add(lungs * 0.012 * c.texture(body, (0.08, 0.08)))


def _mediastinum(c: Canvas, body: Rng, torso: Field) -> None:
    """Spine, great vessels, heart and windpipe."""
    size = _vary(body, 0.12)
    c.paint(torso * c.cover(np.abs(c.x) - 0.13, 0.06), 0.62)
    c.paint(c.cover(c.ellipse((0.13, -0.24), (0.09, 0.10)), 0.05), 0.64)
    heart = c.ellipse((0.15 * size, 0.21), (0.36 * size, 0.28 * size), 0.55)
    c.paint(0.94 * c.cover(heart, 0.05), 0.70)
    c.paint(0.9 * c.cover(c.ellipse((-0.10, 0.16), (0.13, 0.24)), 0.05), 0.66)
    vertebrae = 0.05 + 0.05 * np.cos(c.y * 40.0)
    c.add(torso * c.cover(np.abs(c.x) - 0.075, 0.03) * vertebrae)
    c.add(-0.20 * c.cover(np.abs(c.x) - 0.035, 0.03) * c.cover(c.y + 0.22, 0.10))


def _bones(c: Canvas, body: Rng, wide: float, torso: Field) -> None:
    """Ribs, collar bones and shoulder joints, laid over what is behind them."""
    cage = c.cover(c.ellipse((0.0, 0.0), (0.80 * wide, 0.92)), 0.05) * c.cover(c.y - 0.62, 0.3)
    x, step, slope = np.abs(c.x) / wide, 0.155 * _vary(body, 0.05), float(body.normal(0.42, 0.04))
    behind, front = np.zeros_like(c.x), np.zeros_like(c.x)
    for k in range(9):
        start = -0.86 + k * step
        arch = start - 0.10 + slope * x**1.6 + 0.10 * np.cos(2.4 * x)
        behind = np.maximum(behind, c.cover(np.abs(c.y - arch) - 0.026, 0.025))
        fore = start + 0.42 - 0.50 * x + 0.30 * x**3
        front = np.maximum(front, c.cover(np.abs(c.y - fore) - 0.022, 0.03))
    c.add(cage * 0.13 * behind * c.cover(0.07 - x, 0.04))
    c.add(cage * 0.05 * front * c.cover(0.28 - x, 0.05) * c.cover(x - 0.66, 0.06))
    collar = -0.66 - 0.16 * (x - 0.1) + 0.05 * np.sin(6.0 * x)
    along = c.cover(0.09 - x, 0.03) * c.cover(x - 0.80, 0.03)
    c.add(0.20 * along * c.cover(np.abs(c.y - collar) - 0.030, 0.025))
    for s in (-1, 1):
        c.add(torso * 0.20 * c.cover(c.ellipse((s * 0.93 * wide, -0.62), (0.13, 0.13)), 0.04))


def _opacity(c: Canvas, lesion: Rng, wide: float, base: float, lungs: Field) -> Field:
    """A consolidation or mass inside one lung."""
    side = 1.0 if lesion.random() < 0.5 else -1.0
    radius = float(lesion.uniform(0.15, 0.23))
    x = side * wide * float(lesion.uniform(0.38, 0.50))
    y = float(lesion.uniform(-0.40, base - 0.26))
    shape = c.cover(c.blob((x, y), radius, lesion, 0.16), 0.08) * lungs
    c.paint(shape * 0.92, float(lesion.uniform(0.62, 0.74)))
    return shape


# ---------------------------------------------------------------- abdominal CT slice


def ct(c: Canvas, body: Rng, lesion: Rng | None) -> Field:
    """An axial slice of the upper abdomen; the lesion is a dark mass in the liver."""
    wide, deep = 0.94 * _vary(body, 0.04), 0.74 * _vary(body, 0.06)
    fat = float(body.uniform(0.06, 0.13))
    c.paint(0.5 * c.cover(np.abs(c.y - 0.86 - 0.05 * c.x**2) - 0.012), 0.45)  # the table
    c.paint(c.cover(c.ellipse((0, 0), (wide, deep))), 0.46)  # skin
    c.paint(c.cover(c.ellipse((0, 0), (wide - 0.025, deep - 0.025))), 0.27)  # fat under it
    c.paint(c.cover(c.ellipse((0, 0.01), (wide - fat, deep - fat)), 0.02), 0.50)  # muscle
    inner = c.ellipse((0, -0.01), (wide - fat - 0.08, deep - fat - 0.07))
    cavity = c.cover(inner, 0.02)
    c.paint(cavity, 0.29)  # fat between the organs
    _ct_bones(c, wide - fat - 0.045, deep - fat - 0.04)
    _bowel(c, body)
    liver = _organs(c, body, cavity)
    c.add(0.012 * c.texture(body, (0.05, 0.05)) * c.cover(inner, 0.02))
    return _hypodense(c, lesion, liver) if lesion is not None else _none(c)


def _ct_bones(c: Canvas, a: float, b: float) -> None:
    """Ribs cut across in the body wall, the vertebra with its canal, the back muscles."""
    for degrees in (-155, -128, -52, -25, 8, 38, 142, 172):
        t = np.radians(degrees)
        centre = (a * float(np.cos(t)), b * float(np.sin(t)))
        rib = c.ellipse(centre, (0.055, 0.028), float(np.arctan2(b * np.cos(t), -a * np.sin(t))))
        c.paint(c.cover(rib), 0.92)
    for s in (-1, 1):
        c.paint(c.cover(c.ellipse((s * 0.20, 0.50), (0.15, 0.11)), 0.02), 0.52)
        c.paint(c.cover(c.ellipse((s * 0.15, 0.40), (0.13, 0.03), s * 0.35)), 0.85)
    c.paint(c.cover(c.ellipse((0, 0.29), (0.155, 0.125))), 0.95)
    c.paint(c.cover(c.ellipse((0, 0.29), (0.12, 0.09)), 0.03), 0.78)
    c.paint(c.cover(c.ellipse((0, 0.52), (0.03, 0.10))), 0.88)
    c.paint(c.cover(c.ellipse((0, 0.43), (0.065, 0.05))), 0.42)


def _bowel(c: Canvas, body: Rng) -> None:
    """Loops in front, with a bubble of gas in some."""
    for _ in range(7):
        x, y = float(body.uniform(-0.15, 0.55)), float(body.uniform(-0.38, -0.02))
        r, gas = float(body.uniform(0.06, 0.10)), float(body.random())
        c.paint(c.cover(c.ellipse((x, y), (r * 1.2, r), float(body.uniform(0, 3)))), 0.52)
        c.paint(c.cover(c.ellipse((x, y - 0.25 * r), (0.65 * r, 0.4 * r))) * (gas > 0.6), 0.03)


def _organs(c: Canvas, body: Rng, cavity: Field) -> Field:
    """Stomach, spleen, kidneys, vessels and liver. Returns the liver's coverage."""
    c.paint(cavity * c.cover(c.ellipse((0.36, -0.22), (0.26, 0.16), 0.5)), 0.50)
    c.paint(cavity * c.cover(c.ellipse((0.34, -0.29), (0.15, 0.05), 0.3)), 0.02)
    c.paint(cavity * c.cover(c.ellipse((0.60, 0.14), (0.13, 0.25), -0.25)), 0.62)
    for s in (-1, 1):
        centre = (s * 0.36 * _vary(body, 0.06), 0.30 * _vary(body, 0.08))
        c.paint(cavity * c.cover(c.ellipse(centre, (0.125, 0.155), s * 0.35)), 0.76)
        hilum = (centre[0] - s * 0.055, centre[1])
        c.paint(cavity * c.cover(c.ellipse(hilum, (0.065, 0.07)), 0.03), 0.34)
    size = _vary(body, 0.07)
    right = c.cover(c.ellipse((-0.46, -0.07), (0.40 * size, 0.38 * size), 0.30))
    left = c.cover(c.ellipse((-0.10, -0.25), (0.36 * size, 0.17 * size), -0.10))
    kidney = c.cover(c.ellipse((-0.37, 0.31), (0.17, 0.20), -0.35))
    liver = (cavity * np.maximum(right, left) * (1.0 - kidney)).astype(np.float32)
    c.paint(liver, 0.63)
    for angle in body.uniform(-0.9, 0.9, size=3):  # veins
        c.paint(liver * 0.6 * c.cover(c.ellipse((-0.42, -0.10), (0.20, 0.014), float(angle))), 0.74)
    c.paint(c.cover(c.ellipse((0.05, 0.11), (0.068, 0.068))), 0.84)  # aorta
    c.paint(c.cover(c.ellipse((-0.12, 0.10), (0.075, 0.055))), 0.74)  # vena cava
    return liver


def _hypodense(c: Canvas, lesion: Rng, liver: Field) -> Field:
    """A darker mass with a faint rim, inside the liver."""
    centre = (float(lesion.uniform(-0.58, -0.36)), float(lesion.uniform(-0.20, -0.02)))
    shape = c.blob(centre, float(lesion.uniform(0.13, 0.20)), lesion, 0.10)
    cover = c.cover(shape, 0.03) * liver
    c.paint(cover, 0.70)
    c.paint(c.cover(shape + 0.03, 0.03) * liver, float(lesion.uniform(0.34, 0.42)))
    return cover


# ---------------------------------------------------------------- brain MRI slice


def mri(c: Canvas, body: Rng, lesion: Rng | None) -> Field:
    """An axial T1 slice after contrast; the lesion is a bright tumour with a rim."""
    wide, tall = 0.72 * _vary(body, 0.04), 0.87 * _vary(body, 0.03)
    c.paint(c.cover(c.ellipse((0, 0), (wide, tall))), 0.72)  # scalp
    c.paint(c.cover(c.ellipse((0, 0), (wide - 0.05, tall - 0.05))), 0.07)  # skull
    c.paint(c.cover(c.ellipse((0, 0), (wide - 0.10, tall - 0.10))), 0.16)  # fluid
    brain = c.ellipse((0, 0), (wide - 0.125, tall - 0.125))
    fold = c.texture(body, (0.11, 0.11))
    sulci = c.cover(brain + 0.035 * np.clip(fold, -1.5, 2.0), 0.02)
    c.paint(sulci, 0.46)  # cortex
    cleft = np.abs(c.x) - 0.012 * (1.0 + 0.5 * fold) - 0.02 * np.clip(np.abs(c.y) - 0.35, 0, 1)
    c.paint(sulci * c.cover(cleft), 0.18)  # between the hemispheres
    depth = brain + 0.115 + 0.075 * np.clip(fold, -1.2, 1.6)
    white = c.cover(depth, 0.03) * c.cover(0.055 - np.abs(c.x) + 0.03 * fold, 0.03)
    bridge = c.cover(c.ellipse((0, 0), (0.20, 0.36)), 0.05)
    c.paint(np.maximum(white, bridge), 0.64)
    _deep_structures(c, body)
    c.add(0.012 * sulci * c.texture(body, (0.06, 0.06)))
    return _tumour(c, lesion, sulci) if lesion is not None else _none(c)


def _deep_structures(c: Canvas, body: Rng) -> None:
    """Deep grey matter and the ventricles."""
    size = _vary(body, 0.25)
    for s in (-1, 1):
        c.paint(c.cover(c.ellipse((s * 0.15, 0.10), (0.085, 0.14), s * 0.35), 0.04), 0.49)
        c.paint(c.cover(c.ellipse((s * 0.24, -0.08), (0.06, 0.15), s * -0.25), 0.04), 0.51)
        front = c.ellipse((s * 0.085, -0.17), (0.045 * size, 0.16), s * 0.30)
        back = c.ellipse((s * 0.14, 0.24), (0.045 * size, 0.16), s * -0.40)
        c.paint(c.cover(np.minimum(front, back), 0.015), 0.10)
    c.paint(c.cover(c.ellipse((0, 0.05), (0.018, 0.09)), 0.015), 0.12)


def _tumour(c: Canvas, lesion: Rng, brain: Field) -> Field:
    """Swelling, an enhancing rim and a duller core; the mask is rim and core."""
    side = 1.0 if lesion.random() < 0.5 else -1.0
    centre = (side * float(lesion.uniform(0.26, 0.34)), float(lesion.uniform(-0.38, 0.38)))
    shape = c.blob(centre, float(lesion.uniform(0.14, 0.20)), lesion, 0.10)
    c.paint(0.7 * brain * c.cover(shape - 0.07, 0.10), 0.36)
    tumour = brain * c.cover(shape)
    c.paint(tumour, 1.0)
    c.paint(brain * c.cover(shape + 0.06, 0.03), float(lesion.uniform(0.80, 0.90)))
    return tumour


# ---------------------------------------------------------------- stained tissue

_STROMA, _CLEAR = (0.90, 0.66, 0.78), (0.97, 0.95, 0.96)
_CYTOPLASM, _NUCLEUS, _MALIGNANT = (0.80, 0.55, 0.74), (0.40, 0.24, 0.56), (0.26, 0.12, 0.42)


def histology(c: Canvas, body: Rng, lesion: Rng | None) -> Field:
    """Glands in haematoxylin and eosin; the lesion is a nest of crowded, unequal nuclei."""
    c.paint(np.ones_like(c.x), _STROMA)
    fibres = c.texture(body, (0.40, 0.05), float(body.uniform(-0.6, 0.6)))
    c.paint(np.clip(0.30 * fibres, 0, 0.6), (0.82, 0.50, 0.68))
    c.paint(np.clip(0.35 * fibres - 0.40, 0, 0.8), _CLEAR)
    glands = _gland_places(body)
    for x, y, r in glands:
        _gland(c, body, (x, y), r)
    for x, y in body.uniform(-1.05, 1.05, size=(34, 2)):  # spindle cells of the stroma
        tilt, length = float(body.uniform(-0.6, 0.6)), float(body.uniform(0.05, 0.08))
        if all(np.hypot(x - gx, y - gy) > r + 0.09 for gx, gy, r in glands):
            _nucleus(c, (x, y), (length, 0.026), tilt, _NUCLEUS)
    return _nest(c, lesion) if lesion is not None else _none(c)


def _gland_places(body: Rng) -> list[tuple[float, float, float]]:
    """Centres and radii of glands that do not touch."""
    places: list[tuple[float, float, float]] = []
    for x, y, r in body.uniform((-0.9, -0.9, 0.24), (0.9, 0.9, 0.36), size=(24, 3)):
        if len(places) < 5 and all(np.hypot(x - a, y - b) > r + q + 0.07 for a, b, q in places):
            places.append((float(x), float(y), float(r)))
    return places


def _gland(c: Canvas, body: Rng, centre: tuple[float, float], radius: float) -> None:
    """A ring of cells around an open middle, nuclei at the outer edge."""
    shape = c.blob(centre, radius, body, 0.05)
    c.paint(c.cover(shape, 0.02), _CYTOPLASM)
    c.paint(c.cover(shape + 0.52 * radius, 0.03), _CLEAR)
    count = int(radius * 50)
    for k in range(count):
        t = 2 * np.pi * (k + float(body.uniform(-0.2, 0.2))) / count
        r = radius * float(body.uniform(0.78, 0.86))
        at = (centre[0] + r * float(np.cos(t)), centre[1] + r * float(np.sin(t)))
        _nucleus(c, at, (0.052, 0.036), float(t), _NUCLEUS)


def _nucleus(
    c: Canvas,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float,
    colour: tuple[float, float, float],
) -> None:
    """One nucleus."""
    near = c.around(centre, max(radii))
    near.paint(0.92 * near.cover(near.ellipse(centre, radii, angle), 0.02), colour)


def _nest(c: Canvas, lesion: Rng) -> Field:
    """Crowded nuclei of unequal size and darkness; the mask is the whole nest."""
    centre = (float(lesion.uniform(-0.35, 0.35)), float(lesion.uniform(-0.35, 0.35)))
    radius = float(lesion.uniform(0.42, 0.55))
    nest = c.cover(c.blob(centre, radius, lesion, 0.12), 0.05)
    c.paint(nest, (0.66, 0.44, 0.68))
    for k in range(60):
        # Vogel's sunflower spiral fills the disc evenly; the jitter hides it.
        r, t = radius * 0.97 * np.sqrt((k + 0.5) / 60), k * 2.39996
        dx, dy = lesion.normal(0, 0.018, 2)
        at = (centre[0] + r * np.cos(t) + float(dx), centre[1] + r * np.sin(t) + float(dy))
        large = float(lesion.lognormal(np.log(0.055), 0.30))
        radii = (large, large * float(lesion.uniform(0.6, 0.95)))
        near = c.around(at, large)
        cell = near.cover(near.ellipse(at, radii, float(lesion.uniform(0, np.pi))))
        near.paint(0.95 * cell * nest[near.window], _MALIGNANT)
    return nest


LOOKS: Mapping[str, Artist] = {
    "radiograph": radiograph,
    "ct": ct,
    "mri": mri,
    "histology": histology,
}
"""Artist of each look."""
