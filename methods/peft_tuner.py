"""PEFT: any tuner of the peft library, named in the configuration.

Paper: of the default, Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper
than In-Context Learning" (IA3), NeurIPS 2022; each variant's is in the BibTeX of this file.
Trains: what the tuner adds to the layers ``targets``, and a linear head.
Parameters: 81,459 at ViT-B/16, 186,675 at ViT-L/14 (IA3, 51 attributes; 26,163 and 39,219 of
them are the head's).
Published: no pedestrian attributes.
Run: snakemake --cores all results/peft_tuner/tables --config results=results/peft_tuner
'methods=[linear_probe,peft_tuner/dora]'

A tuner is an entry of config/variants.yaml: ``tuner`` is the name of one of peft's configuration
classes without "Config", ``options`` are its keyword arguments. docs/decisions/peft.md says which
of them do not start from CLIP itself, and what keeps random projections and AdaLoRA repeatable.
The file is not named peft.py because Python finds the folder of a script, and with it this file,
before the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Batch, Output, PedbenchError, Task
from pedbench.nn.backbone import Backbone
from pedbench.nn.heads import ImageClassifier
from pedbench.nn.tuners import (
    ADAPTER,
    adapt,
    adapter_groups,
    classifier,
    peft_config,
    require_gradients,
    unsupported,
)

BIBTEX = """
@inproceedings{liu2022ia3,
  author = {Liu, Haokun and Tam, Derek and Muqeeth, Mohammed and Mohta, Jay and Huang, Tenghao
            and Bansal, Mohit and Raffel, Colin},
  title = {Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
           Learning},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2022},
}
@misc{mangrulkar2022peft,
  author = {Mangrulkar, Sourab and Gugger, Sylvain and Debut, Lysandre and Belkada, Younes
            and Paul, Sayak and Bossan, Benjamin},
  title = {{PEFT}: State-of-the-art Parameter-Efficient Fine-Tuning methods},
  year = {2022},
  howpublished = {https://github.com/huggingface/peft},
}
@inproceedings{liu2024dora,
  author = {Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo
            and Wang, Yu-Chiang Frank and Cheng, Kwang-Ting and Chen, Min-Hung},
  title = {{DoRA}: Weight-Decomposed Low-Rank Adaptation},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2024},
}
@misc{kalajdzievski2023rslora,
  author = {Kalajdzievski, Damjan},
  title = {A Rank Stabilization Scaling Factor for Fine-Tuning with {LoRA}},
  year = {2023},
  eprint = {2312.03732},
  archiveprefix = {arXiv},
}
@inproceedings{meng2024pissa,
  author = {Meng, Fanxu and Wang, Zhaohui and Zhang, Muhan},
  title = {{PiSSA}: Principal Singular Values and Singular Vectors Adaptation of Large Language
           Models},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2024},
}
@inproceedings{zhang2023adalora,
  author = {Zhang, Qingru and Chen, Minshuo and Bukharin, Alexander and He, Pengcheng and Cheng, Yu
            and Chen, Weizhu and Zhao, Tuo},
  title = {Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2023},
}
@inproceedings{kopiczko2024vera,
  author = {Kopiczko, Dawid J. and Blankevoort, Tijmen and Asano, Yuki M.},
  title = {{VeRA}: Vector-based Random Matrix Adaptation},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2024},
}
@inproceedings{albert2025randlora,
  author = {Albert, Paul and Zhang, Frederic Z. and Saratchandran, Hemanth
            and Rodriguez-Opazo, Cristian and van den Hengel, Anton and Abbasnejad, Ehsan},
  title = {{RandLoRA}: Full-rank Parameter-Efficient Fine-Tuning of Large Models},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2025},
}
@inproceedings{qiu2023oft,
  author = {Qiu, Zeju and Liu, Weiyang and Feng, Haiwen and Xue, Yuxuan and Feng, Yao and Liu, Zhen
            and Zhang, Dan and Weller, Adrian and Sch{\\"o}lkopf, Bernhard},
  title = {Controlling Text-to-Image Diffusion by Orthogonal Finetuning},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2023},
}
@inproceedings{liu2024boft,
  author = {Liu, Weiyang and Qiu, Zeju and Feng, Yao and Xiu, Yuliang and Xue, Yuxuan
            and Yu, Longhui and Feng, Haiwen and Liu, Zhen and Heo, Juyeon and Peng, Songyou
            and Wen, Yandong and Black, Michael J. and Weller, Adrian
            and Sch{\\"o}lkopf, Bernhard},
  title = {Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2024},
}
@inproceedings{yuan2024hra,
  author = {Yuan, Shen and Liu, Haotian and Xu, Hongteng},
  title = {Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
           Adaptation},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2024},
}
@inproceedings{hyeonwoo2022fedpara,
  author = {Hyeon-Woo, Nam and Ye-Bin, Moon and Oh, Tae-Hyun},
  title = {{FedPara}: Low-rank {Hadamard} Product for Communication-Efficient Federated Learning},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2022},
}
@inproceedings{yeh2024lycoris,
  author = {Yeh, Shih-Ying and Hsieh, Yu-Guan and Gao, Zhidong and Yang, Bernard B. W.
            and Oh, Giyeong and Gong, Yanmin},
  title = {Navigating Text-To-Image Customization: From {LyCORIS} Fine-Tuning to Model Evaluation},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2024},
}
@inproceedings{gao2024fourierft,
  author = {Gao, Ziqi and Wang, Qichao and Chen, Aochuan and Liu, Zijing and Wu, Bingzhe
            and Chen, Liang and Li, Jia},
  title = {Parameter-Efficient Fine-Tuning with Discrete {Fourier} Transform},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2024},
}
@inproceedings{zhao2024lntuning,
  author = {Zhao, Bingchen and Tu, Haoqin and Wei, Chen and Mei, Jieru and Xie, Cihang},
  title = {Tuning {LayerNorm} in Attention: Towards Efficient Multi-Modal {LLM} Finetuning},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2024},
}
"""

PENALTY = "orthogonality"


@dataclass(frozen=True)
class Params:
    tuner: str = "IA3"  # a configuration class of peft, without "Config"
    options: dict[str, Any] | None = None  # its keyword arguments; None: its own defaults
    targets: tuple[Literal["q", "k", "v", "out", "fc", "proj", "ln"], ...] = (
        "k",
        "v",
        "proj",
    )  # adapted layers; ln: the norms, for LNTuning
    tower: Literal["visual", "text", "both"] = "visual"  # where they are
    head: Literal["linear", "pair", "sigmoid"] = "linear"  # or against texts
    template: str = "a photo of a person {}"  # of the texts
    lr: float = 3e-3  # learning rate of what the tuner adds
    head_lr: float = 1e-3  # learning rate of what the head learns


class Method(BaseMethod[Params]):
    tasks = ("par", "reid")
    search = {"lr": (3e-4, 1e-1)}

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        p = self.params
        reason = super().supports(task, backbone)
        if reason is None and p.tuner == "AdaLora" and p.tower == "text":
            return (
                "AdaLora's penalty needs the whole model at every step, but with tower text image "
                "features come from a cache: tower must be visual or both"
            )
        return reason or unsupported(backbone, task, p.tower, p.head)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        p, options, phases = self.params, dict(self.params.options or {}), (0.0, 0.0)
        if p.tuner == "AdaLora":
            phases = options.pop("tinit", 0.0), options.pop("tfinal", 0.0)
            options["total_step"] = 1  # peft wants one; the engine tells it later
        tuner = adapt(backbone, peft_config(p.tuner, options), p.tower, p.targets)
        model = classifier(backbone, task, p.tower, p.head, p.template)
        return Budgeted(model, RankBudget(tuner, *phases)) if p.tuner == "AdaLora" else model

    def loss(self, output: Output, batch: Batch, task: Task) -> dict[str, Tensor]:
        penalty = {name: output.extras[name] for name in (PENALTY,) if name in output.extras}
        return super().loss(output, batch, task) | penalty

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return adapter_groups(model, self.params.lr, self.params.head_lr)

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        if step == 1:
            require_gradients(model)
        if isinstance(model, Budgeted):
            model.budget.share_out(step, steps)


class Budgeted(ImageClassifier):
    """A classifier whose adapters are AdaLoRA's; in training its output holds their penalty."""

    def __init__(self, plain: ImageClassifier, budget: RankBudget) -> None:
        super().__init__(plain.backbone, plain.head)
        self.budget = budget

    def forward(self, images: Tensor) -> Output:
        output = super().forward(images)
        if self.training:
            return replace(output, extras={**output.extras, **self.budget.penalty()})
        return output


class RankBudget(nn.Module):
    """AdaLoRA's sharing of ranks among layers (Zhang et al. 2023), by peft's allocator.

    What peft keeps in attributes is kept in buffers here, so that a resumed run goes on with it:
    ``averages (2, P)``, importance and uncertainty of the P adapter weights, smoothed over steps,
    and ``kept (R,)``, which of the R ranks of all layers are left. ``start``, ``end``: peft's
    ``tinit`` and ``tfinal``, the phases before and after the budget shrinks, as shares of all
    steps. Raises PedbenchError when nothing is left to shrink or no steps to do it in.
    """

    tuner: Any
    averages: Tensor
    kept: Tensor

    def __init__(self, tuner: Any, start: float = 0.0, end: float = 0.0) -> None:
        super().__init__()
        object.__setattr__(self, "tuner", tuner)  # no submodule: its weights are the backbone's
        self.config = tuner.peft_config[ADAPTER]
        self.start, self.end = start, end
        if min(start, end) < 0 or start + end >= 1:
            raise PedbenchError(
                f"options: tinit {start} and tfinal {end} are shares of all steps whose sum must "
                "be below 1"
            )
        if self.config.target_r >= self.config.init_r:
            raise PedbenchError(
                f"options: target_r {self.config.target_r} must be below init_r "
                f"{self.config.init_r}, from which AdaLora shrinks the ranks"
            )
        scalars = sum(p.numel() for p in self._adapters().values())
        ranks = sum(p.numel() for p in self._values().values())
        self.register_buffer("averages", torch.zeros(2, scalars))
        self.register_buffer("kept", torch.ones(ranks, dtype=torch.bool))

    def _adapters(self) -> dict[str, nn.Parameter]:
        named = self.tuner.model.named_parameters()
        return {name: p for name, p in named if "lora_" in name}

    def _values(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._adapters().items() if "lora_E" in name}

    def penalty(self) -> dict[str, Tensor]:
        """How far the factors of all layers are from orthogonal, as peft's model adds it to a
        loss that it owns."""
        terms = []
        for name, p in self._adapters().items():
            if "lora_E" not in name:
                product = p @ p.T if "lora_A" in name else p.T @ p
                terms.append(
                    torch.linalg.matrix_norm(product - torch.eye(len(product), device=p.device))
                )
        return {PENALTY: self.config.orth_reg_weight * torch.stack(terms).mean()}

    def share_out(self, step: int, steps: int) -> None:
        """After optimiser step ``step`` of ``steps``."""
        adapters, values = self._adapters(), self._values()
        self.config.total_step = steps
        self.config.tinit, self.config.tfinal = int(self.start * steps), int(self.end * steps)
        allocator = self.tuner.rankallocator
        allocator.ipt = dict.fromkeys(adapters)
        allocator.exp_avg_ipt = _cut(self.averages[0], adapters)
        allocator.exp_avg_unc = _cut(self.averages[1], adapters)
        pattern = {n: part.flatten().tolist() for n, part in _cut(self.kept, values).items()}
        self.config.rank_pattern = pattern
        self.tuner.update_and_allocate(step)
        self.kept.copy_(torch.tensor([*chain(*self.config.rank_pattern.values())]))
        averages = (allocator.exp_avg_ipt, allocator.exp_avg_unc)
        if allocator.ipt:
            rows = [torch.cat([value.flatten() for value in row.values()]) for row in averages]
            self.averages.copy_(torch.stack(rows))
        else:  # ranks are final, and what led to them is not needed any more
            self.averages.zero_()


def _cut(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts of ``flat`` in the shapes of ``like``, by its names."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {n: part.view_as(like[n]) for n, part in zip(like, parts, strict=True)}
