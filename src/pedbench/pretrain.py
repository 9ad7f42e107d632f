"""Pre-training of the tiny CLIP on captioned pictures of the synthetic world.

The result is a plain CLIP, but its image tower did not learn from captions alone: two auxiliary
heads are taught with labels (see `Objective`). ``docs/tiny-clip.md`` says so, too.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from pedbench.checkpoint import Checkpoints, load_optimiser, load_trained, optimiser_tensors
from pedbench.contracts import PedbenchError
from pedbench.files import digest, file_sha256, read_json, write_atomic, write_json, write_text
from pedbench.nn.backbone import TINY, Backbone, tiny_config
from pedbench.nn.heads import Similarity
from pedbench.nn.sentences import attribute_sentences
from pedbench.nn.tokenizer import Tokenizer, build_vocabulary
from pedbench.registry import suggest
from pedbench.tasks.par import attribute_metrics
from pedbench.world.attributes import ATTRIBUTES, NAMES
from pedbench.world.captions import NAMED, captions, words
from pedbench.world.domains import PRETRAIN, TARGET_A, TARGET_B, Domain
from pedbench.world.render import PARTS, render, sample_people

_HUES = [i for i, name in enumerate(NAMES) if name.split()[0] in ("red", "blue")]
_DOMAINS = {"pretrain": PRETRAIN, "target_a": TARGET_A, "target_b": TARGET_B}
_MAX_LOGIT_SCALE = math.log(100)  # CLIP's own bound
_DRAW, _ORDER, _AUGMENT, _HELD_OUT = range(4)  # streams of random numbers


@dataclass(frozen=True)
class Phase:
    """Weights of the loss terms (see `Objective`) until ``pictures`` have been seen in all."""

    pictures: int
    parts: float
    attributes: float
    contrastive: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the checkpoint."""

    seed: int
    people: int  # identities drawn
    views: int  # pictures of each
    captions: int  # of each picture
    workers: int  # processes of one thread; the people are dealt out to them
    batch_size: int  # pictures per step, all workers together
    learning_rate: float  # peak; one cosine over all phases
    weight_decay: float  # of matrices
    warmup_steps: int
    clip_norm: float
    shuffle: float  # share of pictures with permuted colour channels, if no caption names a colour
    template: str  # of the prompt pairs in evaluations
    phases: tuple[Phase, ...]
    held_out: int  # pictures per domain of each evaluation
    evaluate_every: int  # pictures
    checkpoint_every: int  # steps

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Recipe:
        """Raises PedbenchError on an unknown or missing key."""
        known = _keys(cls, values)
        known["phases"] = tuple(Phase(**_keys(Phase, phase)) for phase in known["phases"])
        return cls(**known)

    @property
    def steps(self) -> int:
        return self.phases[-1].pictures // self.batch_size

    def phase(self, step: int) -> Phase:
        seen = step * self.batch_size
        return next(phase for phase in self.phases if seen < phase.pictures)

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def _keys(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise PedbenchError(f"pre-training recipe: unknown key '{key}'{suggest(key, known)}")
    if missing := [key for key in known if key not in values]:
        raise PedbenchError(f"pre-training recipe: the key '{missing[0]}' is missing; add it")
    return dict(values)


@dataclass(frozen=True)
class Pictures:
    """``images (M, H, W, 3)`` uint8, ``parts (M, P, rows, columns)`` bool (what each patch
    shows), ``labels (M, A)`` int8 and ``ids (M, C, L)``, the token ids of the captions, of which
    only the last of a picture may name colours."""

    images: np.ndarray
    parts: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def draw_pictures(
    domain: Domain,
    people: int,
    views: int,
    sentences: int,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
) -> Pictures:
    """``views`` pictures of each of ``people`` new identities by random cameras, captioned by
    ``sentences`` sentences each."""
    crowd = sample_people(people, rng)
    who = np.repeat(np.arange(people), views)
    cameras = rng.integers(len(domain.cameras), size=len(who))
    images, parts = render(crowd, who, cameras, domain, rng)
    labels = crowd.labels[who]
    return Pictures(images, parts, labels, _encode(captions(labels, rng, sentences), tokenizer))


def _encode(sentences: list[list[str]], tokenizer: Tokenizer) -> np.ndarray:
    """Token ids ``(M, C, L)``; word by word, because the tokenizer is slow and words are few."""
    word = cache(tokenizer.encode)
    rows = [
        [tokenizer.sot, *(i for w in text.split() for i in word(w)), tokenizer.eot]
        for texts in sentences
        for text in texts
    ]
    ids = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    if ids.shape[1] > tokenizer.context_length:
        raise PedbenchError(f"a caption takes more than {tokenizer.context_length} tokens")
    return ids.reshape(len(sentences), -1, ids.shape[1])


@dataclass(frozen=True)
class Lesson:
    """A batch: ``images (B, 3, H, W)`` normalised, ``parts (B, N, P)``, ``labels`` and ``known
    (B, A)`` of the named attributes, ``ids (B, L)`` of one caption each; floats but for ids."""

    images: Tensor
    parts: Tensor
    labels: Tensor
    known: Tensor
    ids: Tensor


def draw_lesson(
    pictures: Pictures,
    rows: np.ndarray,
    shuffle: float,
    backbone: Backbone,
    rng: np.random.Generator,
) -> Lesson:
    """Augment the pictures ``rows``: mirrored, brighter or darker, tinted, channels permuted."""
    n = len(rows)
    choice = rng.integers(pictures.ids.shape[1], size=n)
    images = pictures.images[rows].transpose(0, 3, 1, 2).astype(np.float32) / 255
    parts = pictures.parts[rows]
    mirrored = rng.random(n) < 0.5
    images[mirrored], parts[mirrored] = images[mirrored, ..., ::-1], parts[mirrored, ..., ::-1]

    shuffled = (rng.random(n) < shuffle) & (choice < pictures.ids.shape[1] - 1)
    order = rng.random((n, 3)).argsort(axis=1)
    images[shuffled] = images[np.arange(n)[:, None], order][shuffled]
    gain = rng.uniform(0.75, 1.25, (n, 1, 1, 1)) * rng.uniform(0.9, 1.1, (n, 3, 1, 1))
    images = (images - 0.5) * gain + 0.5 + rng.uniform(-0.1, 0.1, (n, 3, 1, 1))
    images = torch.from_numpy(images.clip(0, 1).astype(np.float32))

    known = np.ones((n, len(NAMES)), dtype=np.float32)
    known[np.ix_(shuffled, _HUES)] = 0
    ids = pictures.ids[rows, choice]
    return Lesson(
        normalise(images, backbone),
        torch.from_numpy(parts.reshape(n, len(PARTS), -1).transpose(0, 2, 1).astype(np.float32)),
        torch.from_numpy(pictures.labels[rows][:, list(NAMED)].astype(np.float32)),
        torch.from_numpy(known[:, list(NAMED)]),
        torch.from_numpy(ids[:, : ids.argmax(axis=1).max() + 1]),
    )


def normalise(images: Tensor, backbone: Backbone) -> Tensor:
    """``(B, 3, H, W)`` in [0, 1] as the backbone wants it."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    return (images - mean) / std


def initialise(backbone: Backbone, rng: np.random.Generator) -> None:
    """Sine-cosine positions and the mimetic initialisation in the image tower.

    Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023: with Z
    Gaussian of variance 1/d, q'k ~ .7 Z + .7 I and v o ~ .4 Z - .4 I, factored by their SVDs.
    """
    visual, d = backbone.clip.visual, backbone.visual_width
    with torch.no_grad():
        visual.positional_embedding.copy_(torch.from_numpy(sine_cosine(backbone.grid, d)))
        for block in visual.transformer.resblocks:
            attn, k = block.attn, d // backbone.visual_heads
            queries, keys = [], []
            for _ in range(backbone.visual_heads):
                u, s, vt = _mimetic(d, 0.7, 0.7, rng)
                queries.append((u[:, :k] * np.sqrt(s[:k])).T)
                keys.append(vt[:k] * np.sqrt(s[:k])[:, None])
            u, s, vt = _mimetic(d, 0.4, -0.4, rng)
            weights = {
                "q_proj": np.concatenate(queries),
                "k_proj": np.concatenate(keys),
                "v_proj": (u * np.sqrt(s)).T,
                "out_proj": (np.sqrt(s)[:, None] * vt).T,
            }
            for name, weight in weights.items():
                getattr(attn, name).weight.copy_(torch.from_numpy(weight))
                getattr(attn, name).bias.zero_()


def _mimetic(
    d: int, noise: float, identity: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    matrix = noise * rng.normal(0, d**-0.5, (d, d)) + identity * np.eye(d)
    u, s, vt = np.linalg.svd(matrix)
    return u, s, vt


def sine_cosine(grid: tuple[int, int], width: int) -> np.ndarray:
    """Positions ``(1 + rows * columns, width)``: zero for CLS, half a width each for row and
    column of a patch (Vaswani et al., 2017, section 3.5, in two dimensions)."""
    frequency = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    halves = []
    for index in np.indices(grid).reshape(2, -1):
        angle = index[:, None] * frequency
        halves += [np.sin(angle), np.cos(angle)]
    return np.concatenate([np.zeros((1, width)), np.concatenate(halves, axis=1)]).astype(np.float32)


class Objective(nn.Module):
    """The tiny CLIP with everything that teaches it; only the CLIP is kept.

    Terms, each a mean: ``parts``, BCE of every patch token before the last block on the parts of
    body, clothes and luggage it shows; ``attributes``, BCE of a linear head on the image feature;
    ``contrastive``, CLIP's loss over the worker's own pictures and captions.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(True)
        width = backbone.visual_width
        self.part_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(PARTS)))
        self.attribute_head = nn.Linear(backbone.embed_dim, len(NAMED))
        self.patches = torch.empty(0)  # what the last block reads, filled by its hook
        last = backbone.clip.visual.transformer.resblocks[-1]
        last.ln_1.register_forward_pre_hook(self._keep_patches)

    def _keep_patches(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.patches = inputs[0][:, 1:]

    def forward(self, lesson: Lesson, phase: Phase) -> dict[str, Tensor]:
        """The terms that weigh something in ``phase``."""
        image = self.backbone.encode_image(lesson.images)
        found = self.attribute_head(image)
        terms = {
            "parts": F.binary_cross_entropy_with_logits(self.part_head(self.patches), lesson.parts),
            "attributes": F.binary_cross_entropy_with_logits(found, lesson.labels, lesson.known),
        }
        if phase.contrastive:
            text = F.normalize(self.backbone.encode_text(lesson.ids), dim=-1)
            logits = self.backbone.scale * F.normalize(image, dim=-1) @ text.T
            own = torch.arange(len(logits))
            both = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
            terms["contrastive"] = both / 2
        return terms


def evaluate(objective: Objective, name: str, pictures: Pictures, template: str) -> dict[str, Any]:
    """Zero-shot mA and AUC in percent over the attributes of a domain and over the named ones,
    AUC of the attribute head (``head``), and zero-shot AUC per attribute."""
    backbone, attributes = objective.backbone, _DOMAINS[name].attributes
    images = torch.from_numpy(pictures.images).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = torch.cat(
            [backbone.encode_image(normalise(part / 255, backbone)) for part in images.split(250)]
        )
        head = objective.attribute_head(features).sigmoid().numpy()
        texts = attribute_sentences(ATTRIBUTES, template)
        texts = backbone.encode_text(backbone.tokenizer(texts))
        pairs = Similarity("pair", backbone, len(ATTRIBUTES))(features, texts).sigmoid().numpy()
    scores = attribute_metrics(pairs, pictures.labels)
    annotated = np.array([attribute in attributes for attribute in NAMES])
    named = annotated & np.isin(np.arange(len(NAMES)), NAMED)
    head_auc = attribute_metrics(head, pictures.labels[:, list(NAMED)])["AUC"]
    return {
        "domain": name,
        **{m: _percent(scores[m][annotated]) for m in ("mA", "AUC")},
        **{f"{m}_named": _percent(scores[m][named]) for m in ("mA", "AUC")},
        "AUC_head": _percent(head_auc[annotated[list(NAMED)]]),
        "AUC_of": {NAMES[i]: round(float(scores["AUC"][i]), 3) for i in np.flatnonzero(annotated)},
    }


def _percent(values: np.ndarray) -> float:
    return round(100 * float(np.nanmean(values)), 2)


def pretrain(recipe: Mapping[str, Any], out: Path) -> None:
    """Train by ``recipe`` (see `Recipe`) and write ``tiny_clip.safetensors``, its sha256,
    ``vocabulary.json`` and ``train_log.jsonl`` into ``out``.

    Killed at any step it goes on from its last checkpoint, to the same result.
    Raises PedbenchError on a bad recipe or a damaged checkpoint.
    """
    parsed = Recipe.read(recipe)
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(out / "checkpoint", digest(dict(recipe)))
    write_json(out / "vocabulary.json", build_vocabulary(words()))
    (out / "rendezvous").unlink(missing_ok=True)
    spawn(_work, (parsed, out, checkpoints), parsed.workers)
    (out / "rendezvous").unlink(missing_ok=True)
    shutil.rmtree(checkpoints.folder)  # or the next call would go on from here, not start anew


def _work(rank: int, recipe: Recipe, out: Path, checkpoints: Checkpoints) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{(out / 'rendezvous').resolve()}", rank=rank, world_size=recipe.workers
    )
    vocabulary = read_json(out / "vocabulary.json")
    backbone = Backbone.from_config(
        tiny_config(), name=TINY, vocabulary=vocabulary, seed=recipe.seed
    )
    initialise(backbone, np.random.default_rng(recipe.seed))
    pictures = draw_pictures(
        PRETRAIN,
        recipe.people // recipe.workers,
        recipe.views,
        recipe.captions,
        backbone.tokenizer,
        np.random.default_rng([recipe.seed, _DRAW, rank]),
    )
    torch.manual_seed(recipe.seed)
    objective = Objective(backbone)
    optimiser = _optimiser(objective, recipe)
    start = _resume(objective, optimiser, checkpoints)
    log = _Log(out / "train_log.jsonl", start, recipe, objective) if rank == 0 else None

    batch = recipe.batch_size // recipe.workers
    per_epoch = len(pictures) // batch
    for step in range(start, recipe.steps):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([recipe.seed, _ORDER, rank, epoch]).permutation(len(pictures))
        rows = order[place * batch : (place + 1) * batch]
        rng = np.random.default_rng([recipe.seed, _AUGMENT, rank, step])
        lesson = draw_lesson(pictures, rows, recipe.shuffle, backbone, rng)
        phase = recipe.phase(step)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        terms = objective(lesson, phase)
        loss = torch.stack([getattr(phase, name) * term for name, term in terms.items()]).sum()
        optimiser.zero_grad()
        loss.backward()
        _average_gradients(objective, recipe.workers)
        nn.utils.clip_grad_norm_(objective.parameters(), recipe.clip_norm, error_if_nonfinite=True)
        optimiser.step()
        with torch.no_grad():
            backbone.clip.logit_scale.clamp_(max=_MAX_LOGIT_SCALE)
        if log is not None:
            log.step(step + 1, terms)
            if (step + 1) % recipe.checkpoint_every == 0:
                tensors = objective.state_dict() | optimiser_tensors(optimiser)
                checkpoints.save(tensors, {"stage": "pretrain", "step": step + 1})
    if rank == 0:
        ship(backbone, out)
    dist.destroy_process_group()


def _optimiser(objective: Objective, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, as in CLIP."""
    parameters = list(objective.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _average_gradients(objective: Objective, workers: int) -> None:
    """One sum over the workers of all gradients; a term without weight leaves none anywhere."""
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / workers
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _resume(
    objective: Objective, optimiser: torch.optim.Optimizer, checkpoints: Checkpoints
) -> int:
    """Put the latest checkpoint back, if there is one; the step to go on from."""
    saved = checkpoints.load()
    if saved is None:
        return 0
    tensors, meta = saved
    load_optimiser(optimiser, tensors)
    weights = {n: t for n, t in tensors.items() if not n.startswith("optimiser/")}
    load_trained(objective, weights, checkpoints.folder)
    return meta["step"]


class _Log:
    """One JSON line per evaluation: mean loss terms since the last one, speed, scores."""

    def __init__(self, path: Path, start: int, recipe: Recipe, objective: Objective) -> None:
        self.path, self.recipe, self.objective = path, recipe, objective
        rows = path.read_text().splitlines(keepends=True) if start and path.is_file() else []
        seen = start * recipe.batch_size
        write_text(path, "".join(row for row in rows if json.loads(row)["pictures"] <= seen))
        self.sums: dict[str, float] = {}
        self.steps, self.clock = 0, time.monotonic()
        self.held_out = {
            name: draw_pictures(
                domain,
                recipe.held_out,
                1,
                1,
                objective.backbone.tokenizer,
                np.random.default_rng([recipe.seed, _HELD_OUT, number]),
            )
            for number, (name, domain) in enumerate(_DOMAINS.items())
        }

    def step(self, step: int, terms: Mapping[str, Tensor]) -> None:
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.item()
        self.steps += 1
        every = max(1, self.recipe.evaluate_every // self.recipe.batch_size)
        if step % every and step != self.recipe.steps:
            return
        speed = self.steps * self.recipe.batch_size / (time.monotonic() - self.clock)
        row = {
            "pictures": step * self.recipe.batch_size,
            "pictures_per_second": round(speed),
            "scale": round(self.objective.backbone.scale.item(), 2),
            "loss": {name: round(total / self.steps, 4) for name, total in self.sums.items()},
            "zero_shot": [
                evaluate(self.objective, name, pictures, self.recipe.template)
                for name, pictures in self.held_out.items()
            ],
        }
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        brief = " | ".join(
            f"{s['domain']} mA {s['mA']} AUC {s['AUC']} head {s['AUC_head']}"
            for s in row["zero_shot"]
        )
        print(f"{row['pictures']} pictures, {row['pictures_per_second']}/s, {row['loss']}, {brief}",
              flush=True)  # fmt: skip
        self.sums, self.steps, self.clock = {}, 0, time.monotonic()


def ship(backbone: Backbone, out: Path) -> None:
    """Write the plain CLIP and its checksum; open_clip can load it."""
    path = out / f"{TINY}.safetensors"
    data = save({name: tensor.contiguous() for name, tensor in backbone.clip_state().items()})
    write_atomic(path, lambda temporary: temporary.write_bytes(data))
    write_text(out / f"{TINY}.sha256", f"{file_sha256(path)}  {path.name}\n")
