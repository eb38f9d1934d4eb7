"""Chest-X-ray-like phantoms made on the spot: class signal, hospital shift and label skew.

They carry no patient and no licence. The differences between the hospitals follow those measured
between public collections: each is easy for itself and misleading for the next, since exposure,
view and age go with the label differently (Zech et al., PLoS Medicine 15:e1002683, 2018).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.data.anatomy import (
    Anatomy,
    cage,
    draw_anatomy,
    lung_fields,
    lung_vessels,
    mediastinum,
    place,
    torso,
)
from secure_natfl.data.opacities import PATTERNS, atelectasis, pneumonia
from secure_natfl.data.records import Records
from secure_natfl.data.spectra import coloured_noise, grid

Images = NDArray[np.floating[Any]]

Target = Literal["labels", "pattern", "view", "mask"]

CLASS_NAMES = ("normal", "pneumonia")
TARGETS: dict[Target, tuple[str, ...]] = {
    "labels": CLASS_NAMES,
    "pattern": ("normal", *PATTERNS),
    "view": ("upright", "bedside"),
    "mask": ("background", "lung"),
}
"""What phantoms may be labelled with, and its classes."""

_BATCH = 64


@dataclass(frozen=True)
class Hospital:
    """How a hospital's chest images look.

    `contrast` steepens the film curve, `exposure` shifts it (grey values), `blur` is the
    detector's (pixels at 64), `noise` the quantum noise (grey values), `scatter` the share of
    light that forms no image. `bedside_normal` and `bedside_pneumonia` are the shares of
    anteroposterior bedside views by class, `darker_pneumonia` how much darker (grey values) the
    sick are exposed: both go with the label here and elsewhere the other way round. `difficulty`
    divides the strength of opacities, `marker` is the share of images with a lead letter.
    """

    name: str
    paediatric: bool = False
    contrast: float = 1.0
    exposure: float = 0.0
    blur: float = 0.5
    noise: float = 3.0
    scatter: float = 0.2
    bedside_normal: float = 0.3
    bedside_pneumonia: float = 0.3
    darker_pneumonia: float = 0.0
    difficulty: float = 1.0
    marker: float = 0.5


HOSPITALS: dict[str, Hospital] = {
    hospital.name: hospital
    for hospital in (
        Hospital("children", paediatric=True, contrast=1.25, exposure=-8, blur=0.4, noise=4,
                 scatter=0.1, bedside_normal=0.2, bedside_pneumonia=0.5, darker_pneumonia=-10,
                 difficulty=0.7, marker=0.9),
        Hospital("county", contrast=0.9, exposure=18, blur=0.9, noise=3, scatter=0.35,
                 bedside_normal=0.65, bedside_pneumonia=0.35, darker_pneumonia=14,
                 difficulty=0.75, marker=0.4),
        Hospital("clinic", contrast=1.05, exposure=0, blur=0.5, noise=2, scatter=0.2,
                 bedside_normal=0.05, bedside_pneumonia=0.25, difficulty=0.75, marker=0.6),
        Hospital("intensive", contrast=0.8, exposure=8, blur=0.7, noise=6, scatter=0.4,
                 bedside_normal=0.8, bedside_pneumonia=0.95, darker_pneumonia=-4,
                 difficulty=0.65, marker=0.2),
    )
}  # fmt: skip


@dataclass(frozen=True)
class PhantomSource:
    """Phantoms of one of `HOSPITALS` as a source; the same `seed` gives the same images."""

    hospital: str
    images: int
    size: int
    positive_rate: float
    seed: int
    target: Target = "labels"

    def load(self) -> Records:
        """The images. Raises DataError for an unknown hospital, or as `chest_phantoms` does."""
        if self.hospital not in HOSPITALS:
            raise DataError(
                f"no phantom hospital {self.hospital!r}",
                fix=f"choose one of {', '.join(HOSPITALS)}",
            )
        rng = np.random.default_rng((self.seed, list(HOSPITALS).index(self.hospital)))
        return chest_phantoms(
            self.images, self.size, HOSPITALS[self.hospital], self.positive_rate, rng, self.target
        )


def chest_phantoms(
    n: int,
    size: int,
    hospital: Hospital,
    positive_rate: float,
    rng: np.random.Generator,
    target: Target = "labels",
) -> Records:
    """`n` images of `hospital`, uint8 n×size×size, labelled by `target`; unit: patient.

    About `positive_rate` (0 to 1) of the images show pneumonia, in one of three patterns. A patient
    has one to four images of the same anatomy and health in different positioning. `target` picks
    one of `TARGETS`; the mask is that of the lungs, without the heart. The images do not depend on
    it. Deterministic in `rng`. Raises
    DataError for n < 1, size < 16 or a rate outside 0…1.
    """
    if n < 1 or size < 16 or not 0 <= positive_rate <= 1:
        raise DataError(
            f"cannot make {n} phantoms of {size} pixels at rate {positive_rate}",
            where=hospital.name,
            fix="ask for ≥ 1 image of size ≥ 16 and a rate from 0 to 1",
        )
    patient = _draw_patients(n, rng)
    label = _draw_labels(patient, positive_rate, rng)
    anatomy = draw_anatomy(int(patient[-1]) + 1, hospital.paediatric, rng)
    order = rng.permutation(n)
    patient, label = patient[order], label[order]
    shots = []
    for start in range(0, n, _BATCH):
        batch = slice(start, start + _BATCH)
        sick = label[batch, None, None] == 1
        shots.append(_expose(anatomy.of(patient[batch]), sick, size, hospital, rng))
    images = np.concatenate([shot.images for shot in shots])
    labels = label if target == "labels" else np.concatenate([shot.truth[target] for shot in shots])
    ids = tuple(f"{hospital.name}-{number}" for number in patient)
    return Records(images, labels, TARGETS[target], ids, "patient", hospital.name)


@dataclass(frozen=True, eq=False)
class _Shot:
    """Images N×H×W with what is known of them beside their health, by target."""

    images: NDArray[np.uint8]
    truth: dict[Target, NDArray[np.int64]]


def _draw_patients(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The patient of each image, ascending from 0: seven in ten have one image, others up to 4."""
    visits = rng.choice((1, 2, 3, 4), n, p=(0.7, 0.16, 0.09, 0.05))
    return np.repeat(np.arange(n, dtype=np.int64), visits)[:n]


def _draw_labels(
    patient: NDArray[np.int64], rate: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Whole patients are made sick until `rate` of the images is reached."""
    visits = np.bincount(patient)
    order = rng.permutation(len(visits))
    sick = np.zeros(len(visits), dtype=np.int64)
    sick[order] = np.cumsum(visits[order]) <= round(rate * len(patient))
    return sick[patient]


def _expose(
    body: Anatomy,
    sick: NDArray[np.bool_],
    size: int,
    hospital: Hospital,
    rng: np.random.Generator,
) -> _Shot:
    """Attenuation of body and opacities, then the hospital's film; uint8 N×size×size."""
    n = len(sick)
    share = np.where(sick, hospital.bedside_pneumonia, hospital.bedside_normal)
    bedside = rng.random((n, 1, 1)) < share
    body = _supine(body, bedside, rng)
    frame = place(n, size, rng)
    lungs = lung_fields(frame, body)
    air = 0.62 * lungs * (1 - 0.15 * bedside)
    filled = atelectasis(frame, body, rng) * lungs
    opacity, pattern = pneumonia(frame, body, lungs, hospital.difficulty, rng)
    filled = filled + sick * opacity
    filled = filled + lung_vessels(n, size, rng, frame) * lungs
    breast = (
        0.3
        * body.breast
        * np.exp(-8 * ((np.abs(frame.across) - 0.4) ** 2 + (frame.down - 0.3) ** 2))
    )
    soft = torso(frame, body)
    inside = np.clip(2 * soft, 0, 1)
    depth = (
        soft
        - air
        + np.minimum(filled, air)
        + inside * (mediastinum(frame, body) + cage(frame, body) + breast)
    )
    truth: dict[Target, NDArray[np.int64]] = {
        "pattern": np.where(sick[:, 0, 0], 1 + pattern, 0),
        "view": bedside[:, 0, 0].astype(np.int64),
        "mask": (lungs > 0.5).astype(np.int64),
    }
    return _Shot(_film(depth.astype(np.float32), sick, hospital, rng), truth)


def _supine(body: Anatomy, bedside: NDArray[np.bool_], rng: np.random.Generator) -> Anatomy:
    """Lying down: heart magnified, diaphragm raised by an amount that varies with the breath."""
    breath = rng.normal(0, 0.05, bedside.shape).astype(np.float32)
    return replace(
        body,
        base=body.base - np.float32(0.09) * bedside + breath,
        heart=body.heart * (1 + np.float32(0.13) * bedside),
    )


def _film(
    depth: Images, sick: NDArray[np.bool_], hospital: Hospital, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Scatter, blur, the film curve, noise and the lead marker."""
    n, size = depth.shape[:2]
    blurred = _blur(depth, hospital.blur * size / 64)
    scattered = blurred + hospital.scatter * (_blur(depth, size / 8) - blurred)
    contrast = hospital.contrast * np.exp(rng.normal(0, 0.12, (n, 1, 1)))
    exposure = hospital.exposure + rng.normal(0, 14, (n, 1, 1)) - hospital.darker_pneumonia * sick
    grey = 128 + exposure + 105 * np.tanh(1.7 * contrast * (scattered - 0.62))
    grain = coloured_noise(n, size, rng, slope=(0.0, 0.4))
    grey = (grey + hospital.noise * grain).astype(np.float32)
    return _mark(np.clip(grey, 0, 255).astype(np.uint8), hospital.marker, rng)


def _blur(images: Images, sigma: float) -> Images:
    """Gaussian blur by `sigma` pixels, in the frequency domain, where borders wrap around."""
    size = images.shape[1]
    down = np.fft.fftfreq(size).astype(np.float32)[:, None]
    across = np.fft.rfftfreq(size).astype(np.float32)
    gain = np.exp(np.float32(-2 * np.pi**2 * sigma**2) * (down**2 + across**2))
    return np.fft.irfft2(np.fft.rfft2(images) * gain, s=(size, size)).astype(np.float32)


def _mark(images: NDArray[np.uint8], share: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A bright side marker in an upper corner of a `share` of the images."""
    size = images.shape[1]
    across, down = grid(size)
    column, row = rng.uniform((-0.93, -0.9), (-0.8, -0.55), (len(images), 2)).T[:, :, None, None]
    right, low = (across - column) / 0.045, (down - row) / 0.07
    # An R at any resolution: stem, bowl and leg.
    bowl = np.abs(np.hypot(right * 0.8, (low + 0.5) * 1.8) - 0.7) < 0.3
    letter = (np.abs(right + 0.7) < 0.3) | bowl | ((np.abs(right - low) < 0.35) & (low > 0))
    inside = (np.abs(right) < 1) & (np.abs(low) < 1)
    shown = letter & inside & (rng.random((len(images), 1, 1)) < share)
    return np.where(shown, np.uint8(245), images)
