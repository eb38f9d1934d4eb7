# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What leaks, and what stops it
#
# Three attacks on federated learning between hospitals, each played for real, first where nothing
# defends and then on what this system shows:
#
# 1. a private chest X-ray rebuilt from one gradient;
# 2. a hospital's case mix read from answers about natural images;
# 3. a CKKS key computed from one published sum, and an X-ray rebuilt from what was encrypted.
#
# By default it plays a small federation on phantoms (images made on the spot, nobody's) and
# attacks that. To attack a run of your own, set `NATFL_RUN` to its folder before starting, or `RUN`
# below. The figures then show **its private images**. `NATFL_FAST=1` attacks fewer targets: about
# half a minute instead of some minutes. Nothing is downloaded.

# %%
import os
from pathlib import Path

import numpy as np
import torch

from attacks.answers.table import label_row
from attacks.cryptanalysis import recover_key
from attacks.gradients.analytic import image_of_transformer
from attacks.gradients.inversions import WARM, invert
from attacks.gradients.table import gradient_rows
from attacks.image_scores import identified, ssim
from attacks.rows import Budget
from protocols.errors import NatflError
from secure_natfl.leakage import notebook
from secure_natfl.leakage.gradient_lab import gradient_lab
from secure_natfl.leakage.notebook_figures import Tile, gallery, key_map, share_panels

RUN = os.environ.get("NATFL_RUN", "")
FAST = os.environ.get("NATFL_FAST") == "1"
figures, pictures = {}, {}

# %% [markdown]
# ## The federation under attack
#
# Without `RUN`, three hospitals with the default mechanism, `dp-sgd` at ε = 8 for each patient, and
# the default encryption, CKKS under one-time keys shared among the hospitals. What is attacked here
# is printed below; where the text speaks of ε = 8 or of phantoms, it speaks of those three.

# %%
FEDERATION = {
    "run": {"name": "leakage", "seed": 0, "baselines": False},
    "data": {
        "size": 64,
        "hospitals": [
            {
                "name": "children",
                "kind": "phantom",
                "hospital": "children",
                "images": 240 if FAST else 360,
                "positive_rate": 0.5,
                "sites": 3,
                "architectures": ["test_resnet"],
            }
        ],
    },
    "proxies": {"kind": "made", "images": 300, "per_round": 150},
    "models": {"central": "test_resnet", "pretrain_epochs": 2},
    "system": {"kind": "natimg-fl", "rounds": 1, "local_epochs": 1, "distill_epochs": 1},
    "privacy": {"mechanism": "dp-sgd", "epsilon": 8.0, "steps": 8 if FAST else 32},
}
try:
    run = notebook.open_run(RUN, FEDERATION)
except NatflError as error:
    raise SystemExit(str(error)) from None
privacy = run.config.privacy
sizes = {site.name: len(site.train) for site in run.federation.sites}
own = f"ε = {privacy.epsilon:g}" if hasattr(privacy, "epsilon") else "ε = ∞"
print(f"{len(run.federation.sites)} sites, {run.config.mode}, {privacy.mechanism}, {own}")
print(f"training images per site: {sizes}")

# %% [markdown]
# ## 1. An X-ray from a gradient
#
# In federated averaging a hospital sends the gradient of its loss. The attacker knows the network,
# gets the gradient of one image, and nothing else. Two networks, two attacks: for a vision
# transformer the image is the solution of a **linear system**; for a convolutional network images
# are tried until one has that gradient.

# %%
lab = gradient_lab(run)
count, search = (1, (2, 200, 30.0)) if FAST else (3, (4, 400, 20.0))


def by_matching(observation):
    """The best of some restarts; the attacker chooses by its own objective."""
    restarts, steps, seconds = search
    return invert(
        WARM,
        observation,
        lab.prior(),
        restarts=restarts,
        steps=steps,
        seconds=seconds,
        generator=torch.Generator().manual_seed(0),
    ).images


ATTACKS = {"transformer": image_of_transformer, "image": by_matching}
rebuilt = {
    (scene, arm): [
        (trial.truth, attack(trial.observation))
        for trial in notebook.attacked_clients(lab, scene, arm, count)
    ]
    for scene, attack in ATTACKS.items()
    for arm in ("undefended", "dp-sgd")
}

# %% [markdown]
# What the protocol of this system shows in their place is **no gradient at all**. Whoever sees none
# can still guess: the mean of similar images, which is the last column and what every attack has to
# beat. SSIM is 1 for the same image.

# %%
COLUMNS = {
    "gradient of a\nvision transformer": ("transformer", "undefended"),
    "gradient of a\nconvolutional network": ("image", "undefended"),
    "transformer,\nunder DP-SGD": ("transformer", "dp-sgd"),
    "convolutional,\nunder DP-SGD": ("image", "dp-sgd"),
}
mean = lab.prior().mean(0, keepdim=True)


def tile(truth, guess):
    """A guess with its SSIM; it leaks if it is nearer to its original than to other patients'."""
    found = bool(identified(guess, truth.images, truth.lures))
    among = f" · 1st of {len(truth.lures) + 1}" if found else ""
    return Tile(guess[0, 0].numpy(), f"SSIM {similarity(guess, truth):.2f}{among}", leaks=found)


def similarity(guess, truth):
    """SSIM of a guess."""
    return float(ssim(guess, truth.images))


for key, pairs in rebuilt.items():
    gains = [similarity(guess, truth) - similarity(mean, truth) for truth, guess in pairs]
    figures[f"SSIM gain of {', '.join(key)}"] = float(np.mean(gains))
truths = [truth for truth, _ in rebuilt["transformer", "undefended"]]
noise = "the noise of this run" if privacy.mechanism == "dp-sgd" else "noise as large as its clip"
pictures["gradients"] = gallery(
    ["private\nX-ray", *COLUMNS, "nothing shown:\nthe mean image"],
    [
        [
            Tile(truth.images[0, 0].numpy(), "original"),
            *(tile(*rebuilt[key][at]) for key in COLUMNS.values()),
            tile(truth, mean),
        ]
        for at, truth in enumerate(truths)
    ],
    "Orange: nearer to its original than to other patients' images. Without protection, one "
    f"gradient can be as good as the image. Under DP-SGD, with {noise}, the same "
    "attacks meet noise. Where no gradient is shown, the best guess is the mean of other images.",
)
pictures["gradients"]

# %% [markdown]
# An attacker who knows about the noise draws its guess back towards the mean image. So the next
# table plays the attack as `natfl attack` scores it: it rehearses on images of its own, adapts, and
# is held against the best guess without looking.

# %%
row = next(one for one in gradient_rows(lab) if one.id == "G4")
budget = Budget(targets=4 if FAST else 40, seconds=60.0)
print(f"{row.title}; {budget.targets} targets\n{'arm':16}{'SSIM':>6}{'blind':>8}{'gain':>8}")
for arm in row.arms:
    measured = row.play(arm, budget, np.random.default_rng(0))
    score, base = measured.scores.mean(), max(one.mean() for one in measured.baselines.values())
    figures[f"G4 gain, {arm}"] = float(score - base)
    print(f"{arm:16}{score:6.2f}{base:8.2f}{score - base:8.2f}")

# %% [markdown]
# ## 2. The case mix, from answers about natural images
#
# Here hospitals send no gradients. They say what their models make of natural images, which show no
# patient. The attacker trains shadow hospitals on its own patients, with label shares that it
# chose, and learns to read the shares from the answers. The dotted line is its prior, the
# guess without looking.

# %%
sites, shadows = (12, 36) if FAST else (32, 64)
panels, budgets = {}, (0.1,) if FAST else (1.0, 0.1)
try:
    attack = notebook.ShareAttack(run)
    panels["clear answers"] = attack("clear", sites, shadows)
    panels[f"coalition, {own}"] = attack("protected", sites, shadows)
    panels[f"sum of {attack.lab.arms.group} sites, {own}"] = attack("aggregate", sites, shadows)
    for epsilon in budgets if hasattr(privacy, "epsilon") else ():
        attack = notebook.ShareAttack(run, epsilon)
        panels[f"coalition, ε = {epsilon:g}"] = attack("protected", sites, shadows)
except NatflError as error:
    print(f"not tested on this run: {error}")

# %%
if panels:
    seen = (
        f"the sum of {attack.lab.arms.honest} sites" if attack.lab.arms.honest > 1 else "one site"
    )
    pictures["shares"] = share_panels(
        panels,
        label_row(attack.lab).margin,
        "Each point is one hospital: its true share of a class, and the attacker's guess. On the "
        "diagonal every guess is right; on the dotted line the attacker knows no more than before. "
        f"The coalition is the worst that this run's promise holds against ({run.config.mode}, "
        f"{privacy.mechanism}): what it sees is {seen}.",
    )
    for name, found in panels.items():
        figures[f"L1 saved, {name}"] = found.saved
        print(f"{name:28} saves {found.saved:6.1%} of the prior's divergence")
pictures.get("shares")

# %% [markdown]
# **The case mix is not what ε protects.** An ε such as 8 bounds what is told of one patient. A
# share of classes is a fact about all of them together, and the answers of one hospital still tell
# it. Adding hospitals up dilutes it, as far as the others do not collude. On phantoms ε = 1 leaks
# nearly as much, and 0.1 stops this attack; how much is then left to learn is for `natfl check`
# and a study to say.

# %% [markdown]
# ## 3. A CKKS key from one published sum
#
# Many systems encrypt like this: real numbers in the slots of CKKS ciphertexts, one key for all
# hospitals, and the decrypted sum is given to everybody. The server has ciphertexts, the sum, and
# no key. But CKKS is approximate: decrypted numbers carry the errors of the encryption, and with
# these, key and ciphertext are linear equations (Li and Micciancio, 2021). What three hospitals
# encrypt here are gradients as in section 1, of the two layers that the closed form reads.

# %%
clients = notebook.attacked_clients(lab, "transformer", "undefended", 3)
numbers, unit = notebook.as_numbers([one.observation for one in clients])
slots = notebook.SlotsRound(numbers)
guesses = {
    "slots": recover_key([slots.published(slots.values)]),
    "slots, rounded": recover_key([slots.published(np.rint(slots.values))]),
}
for name, guess in guesses.items():
    found = int((guess.coefficients == slots.key).sum())
    figures[f"C2 key coefficients, {name}"] = found
    print(f"{name:16} {found} of {len(slots.key)} key coefficients (a guess has a third)")

# %% [markdown]
# With the key, the server opens the upload of a single hospital, which was never published, and
# goes on as in section 1.


# %%
def from_upload(guess):
    """The first hospital's X-ray, from its upload alone."""
    read = slots.read(0, guess) * unit
    return image_of_transformer(notebook.as_gradient(clients[0].observation, read))


truth = clients[0].truth
stolen = {name: from_upload(guess) for name, guess in guesses.items()}
for name, image in stolen.items():
    figures[f"SSIM from an encrypted upload, {name}"] = similarity(image, truth)
    print(f"{name:16} SSIM {figures[f'SSIM from an encrypted upload, {name}']:.2f}")

# %% [markdown]
# Under `ckks` this system puts **exact integers** into coefficients and publishes exact integers:
# the errors are rounded away before anything leaves, provably, and a one-time key opens one sum.
# The same attack on a sum as the run's own mode encrypts it, if that has such sums:

# %%
exact, sums = None, notebook.exact_sum(run)
if sums is None:
    print(f"{run.config.mode} has no sum of exact integers under a key")
else:
    published, key = sums
    exact = recover_key(published)
    found = int((exact.coefficients == key).sum())
    figures["C2 share of key, exact integers"] = found / len(key)
    figures["C2 key believed, exact integers"] = exact.checked
    print(f"{found} of {len(key)} coefficients, {found / len(key):.1%}; a guess has 33.3%")


# %%
def key_tile(guess, secret):
    """Which coefficients of a key are known; `checked` tells the attacker as much itself."""
    right = float((guess.coefficients == secret).mean())
    return Tile(key_map(guess, secret), f"{right:.0%} right; chance: 33%", leaks=guess.checked == 1)


titles = ["CKKS in slots,\nas it is sent", "its key, from\nthe published sum",
          "its key, from\na rounded sum"]  # fmt: skip
keys = [
    Tile(slots.seen(0), "one upload, encrypted"),
    key_tile(guesses["slots"], slots.key),
    key_tile(guesses["slots, rounded"], slots.key),
]
images = [
    Tile(truth.images[0, 0].numpy(), "the private X-ray behind it"),
    tile(truth, stolen["slots"]),
    tile(truth, stolen["slots, rounded"]),
]
if exact is not None:
    titles.append(f"a key as in this run\n({run.config.mode})")
    keys.append(key_tile(exact, key))
    images.append(Tile(np.full((64, 64), 0.93), "no gradient is ever sent", leaks=False))
pictures["keys"] = gallery(
    titles,
    [keys, images],
    "Above: a pixel for each coefficient of the secret key, orange where the attacker is right. "
    "Below: what it rebuilds of a hospital's X-ray from the upload that only the key opens. "
    "Rounding the sum in slots defeats this attack, and nobody proved that it defeats the next; "
    "exact integers carry no error that could tell of the key (docs/protocol.md).",
)
pictures["keys"]

# %% [markdown]
# ## What still leaks, and what was not tested
#
# **Still leaks**
#
# - *The case mix of a hospital*, on phantoms at ε = 8 and at ε = 1, to a server with whom the other
#   hospitals collude; and the case mix of all together, to everybody who sees the sum. ε is for
#   patients.
# - *What the sum itself says.* Encryption hides single contributions, not the result. Only noise
#   bounds what the result tells of a patient; ε = 8 is a weak bound, and no noise is none.
# - *Everything, to enough key holders.* Under `ckks/threshold` as many as the threshold, with the
#   server, open whatever they like. Under `slots` anybody does, and under `plain` nothing is shut.
# - *A model that a hospital gives away.* Personal models have no noise.
#
# **Not tested here**
#
# - Membership of single patients, stealing a model, pictures from answers, crafted proxies,
#   poisoned contributions, sums that differ by one hospital, traffic: rows L2 to L6, P1, P2, A1 to
#   A12 and C1 of `natfl attack RUN --tier full`, which gives intervals and verdicts. The figures
#   above are points, from few targets.
# - Attackers with more time, better priors, or ideas that nobody has published. That an attack
#   fails is no proof that all do.
# - Real patients, unless `RUN` is a run on real images; and trained networks in section 1, whose
#   gradients are those of a first step.

# %%
width = max(map(len, figures))
print("\n".join(f"{name:{width}} {value:10.3f}" for name, value in figures.items()))
if "NATFL_FIGURES" in os.environ:
    for name, picture in pictures.items():
        picture.write(Path(os.environ["NATFL_FIGURES"]) / f"{name}.png")
