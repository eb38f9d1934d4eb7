"""Chest anatomy as attenuation maps: what X-rays meet on their way through a phantom.

Coordinates run from −1 to 1 across and down; the patient faces the viewer, so the heart points to
the right of the image. Maps are in arbitrary units of attenuation (1 ≈ the chest's soft tissue).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_natfl.data.spectra import coloured_noise, grid

Images = NDArray[np.floating[Any]]
Column = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Anatomy:
    """Shape of each patient's chest; every field is float32 N×1×1, in half image widths."""

    width: Column  # lateral edge of the lungs
    apex: Column  # height of the lungs' tops
    base: Column  # height of the diaphragm's right dome
    heart: Column  # radius of the heart
    spacing: Column  # distance between ribs
    bone: Column  # attenuation of bone against soft tissue
    girth: Column  # soft tissue around the cage
    breast: Column  # breast shadows, 0 = none

    def of(self, patients: NDArray[np.int64]) -> "Anatomy":
        """The anatomy of each image, given the index of its patient."""
        return Anatomy(*(getattr(self, f)[patients] for f in self.__dataclass_fields__))


def draw_anatomy(patients: int, paediatric: bool, rng: np.random.Generator) -> Anatomy:
    """Random anatomies; children have shorter, wider lungs, a larger heart and finer ribs."""

    def normal(mean: float, deviation: float) -> Column:
        return rng.normal(mean, deviation, (patients, 1, 1)).astype(np.float32)

    breast = np.clip(normal(-0.1, 0.3), 0, 0.35) * (0 if paediatric else 1)
    return Anatomy(
        width=normal(0.72 if paediatric else 0.78, 0.045),
        apex=normal(-0.66 if paediatric else -0.76, 0.05),
        base=normal(0.42 if paediatric else 0.44, 0.07),
        heart=normal(0.33 if paediatric else 0.29, 0.03),
        spacing=np.maximum(normal(0.155 if paediatric else 0.185, 0.012), 0.11),
        bone=np.maximum(normal(0.2 if paediatric else 0.15, 0.03), 0.05),
        girth=np.maximum(normal(0.1 if paediatric else 0.16, 0.05), 0.04),
        breast=breast.astype(np.float32),
    )


@dataclass(frozen=True)
class Frame:
    """Where each pixel lies in the patient: float32 N×H×W, after shift, turn and magnification."""

    across: Images
    down: Images


def place(n: int, size: int, rng: np.random.Generator) -> Frame:
    """Random positioning before the detector: a few per cent of shift, turn and scale."""
    across, down = grid(size)
    shift, lift, turn, zoom = rng.normal(0, (0.05, 0.05, 0.045, 0.06), (n, 4)).T[:, :, None, None]
    scale = np.exp(zoom)
    moved = ((across - shift) * scale + (down - lift) * turn).astype(np.float32)
    return Frame(moved, ((down - lift) * scale - (across - shift) * turn).astype(np.float32))


def step(signed: Images, softness: float) -> Images:
    """A soft edge: 0 where `signed` is far below 0, 1 far above, over ± 2 `softness`."""
    ramp: Images = np.clip(signed * np.float32(0.25 / softness) + np.float32(0.5), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def bump(offset: Images, width: float) -> Images:
    """A Gaussian ridge of the given width."""
    scaled: Images = offset * np.float32(1 / width)
    ridge: Images = np.exp(np.float32(-0.5) * scaled * scaled)
    return ridge


def lung_fields(frame: Frame, body: Anatomy) -> Images:
    """How much lung each pixel shows, 0 to 1, N×H×W: both fields less heart and diaphragm."""
    side, down = np.abs(frame.across), frame.down
    left = (frame.across > 0).astype(np.float32)
    # The left dome stands lower; both fall off towards the costophrenic angles.
    dome = body.base + 0.06 * left + 1.3 * np.maximum(side - 0.34, 0) ** 2 - 0.1 * side
    depth = np.clip((down - body.apex) / (body.base + 0.25 - body.apex), 0, 1)
    lateral = body.width * (0.34 + 0.66 * np.sqrt(1 - (1 - depth) ** 2.2))
    medial = 0.1 + 0.06 * depth + 0.1 * np.clip(0.35 - depth, 0, 1)
    field = step(lateral - side, 0.025) * step(side - medial, 0.04)
    top = down - body.apex - 0.7 * (side - 0.28) ** 2
    field = field * step(dome - down, 0.02) * step(top, 0.03)
    lungs: Images = field * (1 - 0.9 * heart_shadow(frame, body))
    return lungs


def heart_shadow(frame: Frame, body: Anatomy) -> Images:
    """The heart's silhouette, 0 to 1, N×H×W, sitting on the diaphragm, and the aortic knob."""
    below = (frame.down - body.base + 0.45 * body.heart) / body.heart
    slant = frame.across - 0.1 - 0.3 * body.heart * below
    left_ventricle = np.hypot(slant / (1.15 * body.heart), below * 0.95)
    atrium = np.hypot((frame.across + 0.06) / (0.55 * body.heart), below * 0.8)
    hilum = np.hypot(frame.across / 0.19, (frame.down - body.base + 1.25 * body.heart) / 0.3)
    knob = np.hypot((frame.across - 0.1) / 0.11, (frame.down + 0.26) / 0.12)
    nearest: Images = np.minimum(np.minimum(left_ventricle, atrium), np.minimum(hilum, knob))
    return step(1 - nearest, 0.07)


def torso(frame: Frame, body: Anatomy) -> Images:
    """Soft tissue, N×H×W: torso, sloping shoulders and neck, thicker towards the abdomen."""
    side, down = np.abs(frame.across), frame.down
    reach = body.width + body.girth
    upper = np.clip((-0.35 - down) / 0.6, 0, 1)
    shoulders = reach + 0.06 + 0.4 * np.sin(np.float32(np.pi) * np.minimum(upper * 1.2, 1))
    outline = np.maximum(shoulders - 1.25 * upper**4, 0.24)
    thickness = 0.72 + 0.3 * step(down - body.base - 0.1, 0.15)
    roundness = np.clip(1.12 - (side / (outline + 0.12)) ** 4, 0.05, 1)
    tissue: Images = thickness * step(outline - side, 0.03) * np.sqrt(roundness)
    return tissue


def mediastinum(frame: Frame, body: Anatomy) -> Images:
    """Spine with its vertebrae, great vessels, heart, and the dark band of the trachea."""
    side, down = np.abs(frame.across), frame.down
    discs = 1 + 0.18 * np.cos(np.float32(2 * np.pi) * down / (0.8 * body.spacing))
    spine = body.bone * 1.2 * step(0.085 - side, 0.015) * discs
    trachea = 0.16 * bump(frame.across, 0.035) * step(-0.2 - down, 0.05)
    vessels = 0.24 * bump(frame.across - 0.02, 0.14)
    middle: Images = spine + vessels + 0.15 * heart_shadow(frame, body) - trachea
    return middle


def cage(frame: Frame, body: Anatomy) -> Images:
    """Ribs (posterior arcs falling outward, fainter anterior ones) and clavicles, N×H×W."""
    side, down = np.abs(frame.across), frame.down
    inside = step(body.width + 0.05 - side, 0.02) * step(down - body.apex + 0.1, 0.04)
    inside = inside * step(body.base + 0.3 - down, 0.1)
    behind = down - 0.55 * (side - 0.15) ** 2 + 0.1 * side
    before = down + 0.45 * side - 0.25 * side * side
    ribs = _arcs(behind / body.spacing) + 0.45 * _arcs(before / (1.15 * body.spacing) + 0.4)
    line = down - body.apex - 0.13 + 0.22 * side - 0.12 * np.sin(5 * side)
    clavicle = bump(line, 0.028) * step(side - 0.1, 0.03) * step(0.78 - side, 0.04)
    bones: Images = body.bone * (inside * ribs + 0.9 * clavicle)
    return bones


def _arcs(phase: Images) -> Images:
    """One rib per unit of phase: flat with brighter rims, about 40 % of the spacing."""
    offset = np.abs(phase - np.round(phase))
    rib: Images = step(0.2 - offset, 0.03) * (0.7 + 6 * offset * offset)
    return rib


def lung_vessels(n: int, size: int, rng: np.random.Generator, frame: Frame) -> Images:
    """Branching vessels as ridged noise, stronger around the hila, N×H×W, about 0 to 0.4."""
    ridges = np.exp(-5 * np.abs(coloured_noise(n, size, rng, slope=(0.9, 1.3))))
    hilum = np.hypot(np.abs(frame.across) - 0.2, (frame.down - 0.02) * 0.8)
    vessels: Images = ridges * (0.12 + 0.3 * bump(hilum, 0.26))
    return vessels
