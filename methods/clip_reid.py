"""CLIP-ReID: persons get learned words first, then the image tower is tuned towards them.

Paper: Li et al., "CLIP-ReID: Exploiting Vision-Language Model for Image Re-identification without
Concrete Text Labels", AAAI 2023.
Trains: tokens of each training identity, then the image tower, two necks and camera embeddings.
Parameters: 88,693,248 at ViT-B/16, 307,620,864 at ViT-L/14 (751 identities, whose tokens are
1,538,048 and 2,307,072 of them).
Published: mAP / rank-1 with ViT-B/16 at 256x128 pixels (tables of others that quote the paper):
Market-1501 89.6 / 95.5, MSMT17 73.4 / 88.7; with camera embeddings and overlapping patches
90.5 / 95.4 and 75.8 / 89.7.
Run: snakemake --cores all results/clip_reid/tables --config results=results/clip_reid
'datasets=[synthetic_reid/reid]' 'methods=[full_finetune,clip_reid]'

Stage ``prompts`` learns the X of "A photo of a X X X X person." for each identity against frozen
image features; stage ``image`` tunes the image tower by the protocol's identity and pair losses at
several depths and by a cross-entropy against the texts of all identities, which stay fixed. What is
compared are the class token behind the last norm and its projection, side by side.

Overlapping patches are the protocol's ``patch_stride``, the weight of the identity losses its
``id_loss_weight``. The authors' code lets Adam move identities that a batch lacks by their weight
decay alone, and computes gradients of the text tower that nothing uses; neither is the default
here. All differences: docs/decisions/reid.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pedbench.contracts import BaseMethod, Batch, Output, PedbenchError, Stage, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.reid import BNNeck

BIBTEX = """
@inproceedings{li2023clipreid,
  author = {Li, Siyuan and Sun, Li and Li, Qingli},
  title = {{CLIP-ReID}: Exploiting Vision-Language Model for Image Re-identification without
           Concrete Text Labels},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2023},
}
"""

BEFORE, AFTER = "A photo of a", "person."  # the learned tokens
PROMPTS, IMAGE = "prompts", "image"  # the stages
# learning rate of the prompts at the start of their warm-up and at their end: released code
WARMUP_FROM, FINAL = 1e-5 / 3.5e-4, 1e-6 / 3.5e-4


@dataclass(frozen=True)
class Params:
    context_length: int = 4  # learned tokens of an identity
    prompt_epochs: int = 120  # of the first stage
    prompt_warmup_epochs: int = 5  # of these, with a rising learning rate
    prompt_schedule: Literal["cosine", "epoch_cosine"] = "cosine"  # afterwards
    prompt_lr: float = 3.5e-4  # learning rate of the learned tokens
    prompt_weight_decay: float = 1e-4  # of the learned tokens
    decay_absent_ids: Literal["off", "released"] = "off"  # or of those whose identity is not there
    freeze_text_stage1: bool = True  # else its gradients are computed, and not used
    i2t_weight: float = 1.0  # of the cross-entropy against the texts of all identities
    sie: Literal["off", "cls", "all_tokens"] = "off"  # what a camera's embedding is added to
    sie_coefficient: float = 3.0  # of the camera's embedding
    bias_lr_factor: float = 2.0  # of the biases' learning rate, in the second stage
    lr: float = 5e-6  # learning rate of the second stage


class IdentityTexts(nn.Module):
    """The text of each training identity, with tokens of its own.

    As the head of the first stage: ``forward(features (B, E), identities (B,)) -> Output`` with
    similarities to the batch's U identities as logits and, in ``extras``, ``features`` and their
    ``texts (B, E)``, neither normalised, and the ``context (U, K, Wt)`` of the texts.

    Raises PedbenchError for more tokens than the backbone reads.
    """

    before: Tensor
    after: Tensor

    def __init__(self, backbone: Backbone, identities: int, length: int) -> None:
        super().__init__()
        self.backbone = backbone
        tokenizer, words = backbone.tokenizer, backbone.clip.token_embedding.weight.detach()
        before = [tokenizer.sot, *tokenizer.encode(BEFORE)]
        after = [*tokenizer.encode(AFTER), tokenizer.eot]
        self.length = len(before) + length + len(after)
        if length < 1 or self.length > backbone.context_length:
            room = backbone.context_length - self.length + length
            raise PedbenchError(
                f"context_length {length}: {backbone.name} has room for 1 to {room} learned tokens"
            )
        self.context = nn.Parameter(0.02 * torch.randn(identities, length, backbone.text_width))
        self.register_buffer("before", words[torch.tensor(before)], persistent=False)
        self.register_buffer("after", words[torch.tensor(after)], persistent=False)

    def embed(self, identities: Tensor) -> Tensor:
        """Tokens without positions, up to end-of-text: ``(U,) -> (U, L, Wt)``."""
        count = len(identities)
        fixed = (self.before.expand(count, -1, -1), self.after.expand(count, -1, -1))
        return torch.cat([fixed[0], self.context[identities], fixed[1]], dim=1)

    def texts(self, identities: Tensor) -> Tensor:
        """Features of the identities' texts, not normalised: ``(U,) -> (U, E)``."""
        x = self.embed(identities) + self.backbone.clip.positional_embedding[: self.length]
        return self.backbone.encode_text(x, eot=torch.full_like(identities, self.length - 1))

    def forward(
        self, features: Tensor, identities: Tensor, cameras: Tensor | None = None
    ) -> Output:
        present, place = identities.unique(return_inverse=True)
        texts = self.texts(present)
        known = {"features": features, "texts": texts[place], "context": self.context[present]}
        return Output(features @ texts.T, known)


class ClipReid(nn.Module):
    """``forward(images (B, 3, H, W), identities (B,), cameras (B,)) -> Output``.

    With ``identities``, which only training knows, ``extras`` hold the features ``last`` (before
    the last block) and ``before``, ``(B, Wv)``, ``projected (B, E)``, and the scores
    ``projected_logits`` and ``i2t``, ``(B, C)``. Without ``cameras`` nothing is added for them.

    While ``prompting``, that is in the first stage, it has a ``stem``, and training goes through
    ``head``.
    """

    reads = ("identities", "cameras")
    text_features: Tensor

    def __init__(self, backbone: Backbone, task: Task, params: Params) -> None:
        super().__init__()
        self.backbone = backbone
        self.sie, self.sie_coefficient = params.sie, params.sie_coefficient
        self.prompting = False
        self.head = IdentityTexts(backbone, task.identities, params.context_length)
        self.neck = BNNeck(backbone.visual_width, task)
        self.projected_neck = BNNeck(backbone.embed_dim, task)
        self.camera = None
        if params.sie != "off":
            self.camera = nn.Parameter(torch.empty(task.cameras, backbone.visual_width))
            nn.init.trunc_normal_(self.camera, std=0.02)
        texts = torch.zeros(task.identities, backbone.embed_dim)
        self.register_buffer("text_features", texts, persistent=False)

    @property
    def stem(self) -> Callable[[Tensor], Tensor]:
        """``images -> (B, E)``, without camera embeddings: frozen in the first stage alone."""
        if not self.prompting:
            raise AttributeError("stem")
        return self.backbone.encode_image

    def fix_texts(self) -> None:
        """Compute the texts of all identities that the second stage compares with."""
        everybody = torch.arange(len(self.text_features), device=self.text_features.device)
        with torch.no_grad():
            self.text_features.copy_(self.head.texts(everybody))

    def forward(
        self, images: Tensor, identities: Tensor | None = None, cameras: Tensor | None = None
    ) -> Output:
        if self.prompting and identities is not None:
            return self.head(self.stem(images), identities)
        last, normed, projected = self.backbone.image_features(images, self._shift(cameras))
        first, second = self.neck(normed), self.projected_neck(projected)
        features = torch.cat([first.features, second.features], dim=1)
        if identities is None:
            return Output(first.logits, features=features)
        extras = {
            "last": last,
            "before": normed,
            "projected": projected,
            "projected_logits": second.logits,
            "i2t": projected @ self.text_features.T,
        }
        return Output(first.logits, extras, features)

    def _shift(self, cameras: Tensor | None) -> Tensor | None:
        """What the cameras' embeddings add to the tokens (SIE: He et al., "TransReID",
        ICCV 2021, section 3.3)."""
        if self.camera is None or cameras is None:
            return None
        rows, columns = self.backbone.grid
        tokens = 1 if self.sie == "cls" else 1 + rows * columns
        return self.sie_coefficient * self.camera[cameras][:, None].expand(-1, tokens, -1)


def text_tower(backbone: Backbone) -> list[nn.Parameter]:
    """The parameters that the authors' code leaves unfrozen in the first stage."""
    clip = backbone.clip
    blocks = (*clip.transformer.parameters(), *clip.ln_final.parameters())
    return [*blocks, clip.positional_embedding, clip.text_projection]


class Method(BaseMethod[Params]):
    tasks = ("reid",)
    search = {"lr": (1e-6, 1e-2), "prompt_lr": (1e-4, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        if reason := super().supports(task, backbone):
            return reason
        if self.params.sie == "off":
            return None
        if not backbone.tokens:
            return f"sie adds to patch tokens, and {backbone.name} has none: set it to off"
        return None if task.cameras else "sie needs the images' cameras, which are not known"

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        model = ClipReid(backbone, task, self.params)
        backbone.clip.visual.requires_grad_(True)
        return model

    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        p, context = self.params, model.head.context
        tuned = [
            (name.endswith("bias"), tensor)
            for name, tensor in model.named_parameters()
            if tensor.requires_grad and tensor is not context
        ]
        decay = p.prompt_weight_decay if p.decay_absent_ids == "released" else 0.0
        weights, biases = ([t for bias, t in tuned if bias is wanted] for wanted in (False, True))
        return [
            {"name": PROMPTS, "params": [context], "lr": p.prompt_lr, "weight_decay": decay},
            {"name": IMAGE, "params": weights, "lr": p.lr},
            {"name": "biases", "params": biases, "lr": p.lr * p.bias_lr_factor},
        ]

    def stages(self, groups: tuple[str, ...]) -> tuple[Stage, ...]:
        p = self.params
        prompts = {
            "epochs": p.prompt_epochs,
            "sampler": "shuffle",
            "optimiser": "adam",
            "schedule": p.prompt_schedule,
            "warmup_epochs": p.prompt_warmup_epochs,
            "warmup_from": WARMUP_FROM,
            "final_lr_fraction": FINAL,
            "flip": False,
            "crop_padding": 0,
            "random_erasing": 0.0,
        }
        rest = tuple(name for name in groups if name != PROMPTS)
        first = Stage(PROMPTS, (PROMPTS,), settings=prompts, selects=False)  # images alone compare
        return first, Stage(IMAGE, rest)

    def start_stage(self, model: Any, stage: Stage) -> None:
        model.prompting = stage.name == PROMPTS
        if not self.params.freeze_text_stage1:
            for tensor in text_tower(model.backbone):
                tensor.requires_grad_(model.prompting).grad = None
        if not model.prompting:
            model.fix_texts()

    def loss(self, output: Output, batch: Batch, task: Task) -> dict[str, Tensor]:
        """Of the first stage, or of the second: the output tells."""
        identities = batch.identities
        if identities is None:
            raise PedbenchError("the batch has no identities, which CLIP-ReID learns")
        with torch.autocast(output.logits.device.type, enabled=False):
            known = {name: tensor.float() for name, tensor in output.extras.items()}
            if "context" in known:
                return self._of_prompts(known, identities)
            return self._of_images(output.logits.float(), known, identities, task)

    def _of_prompts(self, known: dict[str, Tensor], identities: Tensor) -> dict[str, Tensor]:
        from pedbench.tasks.reid_losses import supcon

        features, texts, p = known["features"], known["texts"], self.params
        terms = {
            "i2t": supcon(features, identities, texts, identities),
            "t2i": supcon(texts, identities, features, identities),
        }
        if p.decay_absent_ids == "off":  # decay of the identities that are there
            terms["decay"] = p.prompt_weight_decay / 2 * known["context"].square().sum()
        return terms

    def _of_images(
        self, logits: Tensor, known: dict[str, Tensor], identities: Tensor, task: Task
    ) -> dict[str, Tensor]:
        from pedbench.tasks.reid_losses import identity_loss, pair_loss, settings_of

        settings, terms = settings_of(task), {}
        if settings.id_loss_weight:
            scores = {"id": logits, "id_projected": known["projected_logits"]}
            for name, score in scores.items():
                terms[name] = settings.id_loss_weight * identity_loss(score, identities, settings)
        if settings.compares:
            for name in ("last", "before", "projected"):
                loss = pair_loss(settings.pair_loss, known[name], identities, settings.margin)
                terms[f"pair_{name}"] = settings.pair_loss_weight * loss
        if self.params.i2t_weight:
            smoothing = settings.label_smoothing
            i2t = F.cross_entropy(known["i2t"], identities, label_smoothing=smoothing)
            terms["i2t"] = self.params.i2t_weight * i2t
        return terms
