"""LoRA: low-rank updates of frozen weight matrices.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; in CLIP: Zanella
and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024.
Trains: two factors per adapted matrix and, in the default, a linear head.
Parameters: 321,075 at ViT-B/16, 825,651 at ViT-L/14 (51 attributes;
26,163 and 39,219 of them are the head's); ``clip_lora``: 184,320 and 405,504.
Published: CLIP-LoRA, ViT-B/16, mean of 11 datasets, 16 images per class: 83.0 % accuracy; no
pedestrian attributes.
Run: snakemake --cores all results/lora/tables --config results=results/lora
'methods=[linear_probe,lora]'

The adapters are the peft library's. The defaults are the setting of Hu et al. for their smallest
encoder (RoBERTa base: queries and values, rank 8, alpha 8, no dropout), in the image tower alone,
under the linear head that methods which adapt the image tower share. The variant ``clip_lora`` is
CLIP-LoRA: against texts, rank 2, alpha 1, queries, keys and values of both towers, dropout 0.25
and, as in its code, the factor alpha / sqrt(rank), where Hu et al. have alpha / rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pedbench.contracts import BaseMethod, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.tuners import adapt, adapter_groups, classifier, peft_config, unsupported

BIBTEX = """
@inproceedings{hu2022lora,
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi
            and Wang, Shean and Wang, Lu and Chen, Weizhu},
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2022},
}
@inproceedings{zanella2024cliplora,
  author = {Zanella, Maxime and Ben Ayed, Ismail},
  title = {Low-Rank Few-Shot Adaptation of Vision-Language Models},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  year = {2024},
}
"""


@dataclass(frozen=True)
class Params:
    rank: int = 8  # columns of the factors
    alpha: float = 8.0  # numerator of the update's factor
    scaling: Literal["alpha_over_r", "alpha_over_sqrt_r"] = "alpha_over_r"  # the update's factor
    targets: tuple[Literal["q", "k", "v", "out", "fc", "proj"], ...] = ("q", "v")  # adapted layers
    tower: Literal["visual", "text", "both"] = "visual"  # where they are
    dropout: float = 0.0  # of what enters the update
    head: Literal["linear", "pair", "sigmoid", "softmax"] = "linear"  # or against texts
    template: str = "a photo of a person {}"  # of the texts
    lr: float = 5e-4  # learning rate of the factors
    head_lr: float = 1e-3  # learning rate of what the head learns


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    search = {"lr": (3e-4, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        p = self.params
        return super().supports(task, backbone) or unsupported(backbone, task, p.tower, p.head)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p = self.params
        options = {
            "r": p.rank,
            "lora_alpha": p.alpha,
            "use_rslora": p.scaling == "alpha_over_sqrt_r",
            "lora_dropout": p.dropout,
        }
        adapt(backbone, peft_config("Lora", options), p.tower, p.targets)
        return classifier(backbone, task, p.tower, p.head, p.template)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return adapter_groups(model, self.params.lr, self.params.head_lr)
