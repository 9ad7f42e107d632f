"""Pre-training of the tiny CLIP: recipe, initialisation, batches, losses, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from pedbench import pretrain as stage
from pedbench.checkpoint import Checkpoints
from pedbench.config import ROOT
from pedbench.contracts import PedbenchError
from pedbench.files import file_sha256
from pedbench.nn.backbone import Backbone, load_backbone, tiny_config, tiny_vocabulary
from pedbench.nn.tokenizer import build_vocabulary
from pedbench.pretrain import Objective, Phase, Recipe, draw_lesson, draw_pictures
from pedbench.world.attributes import NAMES
from pedbench.world.captions import NAMED, words
from pedbench.world.domains import PRETRAIN

SHIPPED = ROOT / "resources/tiny_clip"
FIRST = Phase(100, parts=10.0, attributes=3.0, contrastive=0.0)
SECOND = Phase(200, parts=3.0, attributes=0.9, contrastive=1.0)


@pytest.fixture(scope="module")
def shipped_recipe() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config/pretrain.yaml").read_text())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.from_config(tiny_config(), vocabulary=build_vocabulary(words()))


@pytest.fixture(scope="module")
def pictures(backbone: Backbone) -> stage.Pictures:
    return draw_pictures(PRETRAIN, 8, 2, 4, backbone.tokenizer, np.random.default_rng(0))


def small(recipe: dict[str, Any]) -> dict[str, Any]:
    phases = [
        recipe["phases"][0] | {"pictures": 16},
        recipe["phases"][1] | {"pictures": 32},
    ]
    changes = {"people": 16, "workers": 1, "batch_size": 8, "held_out": 24, "checkpoint_every": 2}
    return recipe | changes | {"phases": phases, "evaluate_every": 16}


def test_the_recipe_names_a_mistyped_or_missing_key(shipped_recipe):
    with pytest.raises(PedbenchError, match="'peple'.*'people'"):
        Recipe.read(shipped_recipe | {"peple": 3})
    with pytest.raises(PedbenchError, match="'seed' is missing"):
        Recipe.read({k: v for k, v in shipped_recipe.items() if k != "seed"})


def test_the_schedule_warms_up_then_falls_to_zero(shipped_recipe):
    recipe = Recipe.read(shipped_recipe)
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    assert np.argmax(rates) == recipe.warmup_steps - 1
    assert rates[0] < 0.02 * recipe.learning_rate and rates[-1] < 1e-5 * recipe.learning_rate
    assert (
        recipe.phase(0) == recipe.phases[0] and recipe.phase(recipe.steps - 1) == recipe.phases[-1]
    )


def test_positions_tell_patches_apart():
    positions = stage.sine_cosine((8, 4), 96)
    assert positions.shape == (33, 96) and not positions[0].any()
    assert len(np.unique(positions.round(4), axis=0)) == 33
    close = np.linalg.norm(positions[1] - positions[2])  # neighbours in a row
    assert close < np.linalg.norm(positions[1] - positions[4])


def test_mimetic_initialisation_looks_at_like_and_subtracts_itself(backbone):
    fresh = Backbone.from_config(tiny_config(), vocabulary=tiny_vocabulary())
    stage.initialise(fresh, np.random.default_rng(0))
    attention = fresh.clip.visual.transformer.resblocks[0].attn
    out = attention.out_proj.weight @ attention.v_proj.weight
    assert out.diagonal().mean() == pytest.approx(-0.4, abs=0.05)
    for head in range(fresh.visual_heads):
        rows = slice(32 * head, 32 * head + 32)
        looks = attention.q_proj.weight[rows].T @ attention.k_proj.weight[rows]
        assert looks.diagonal().mean() > 5 * looks.mean().abs()


def test_pictures_are_deterministic_and_captions_end_with_end_of_text(backbone, pictures):
    again = draw_pictures(PRETRAIN, 8, 2, 4, backbone.tokenizer, np.random.default_rng(0))
    assert np.array_equal(again.images, pictures.images)
    assert np.array_equal(again.ids, pictures.ids)
    tokenizer = backbone.tokenizer
    assert (pictures.ids[..., 0] == tokenizer.sot).all()
    assert (pictures.ids.max(axis=-1) == tokenizer.eot).all()


def test_word_by_word_ids_equal_the_tokenizers(backbone):
    text = "a photo of a person wearing a hat and with short hair and who is a child"
    ids = stage._encode([[text]], backbone.tokenizer)[0, 0]
    expected = backbone.tokenizer(text)[0, : len(ids)]
    assert ids.tolist() == expected.tolist()


def test_a_lesson_mirrors_pictures_and_parts_together(backbone, pictures):
    rows = np.arange(len(pictures))
    lesson = draw_lesson(pictures, rows, 0.0, backbone, np.random.default_rng(0))
    grid = lesson.parts.transpose(1, 2).reshape(len(rows), -1, *backbone.grid).numpy()
    straight = (grid == pictures.parts).all(axis=(1, 2, 3))
    mirrored = (grid == pictures.parts[..., ::-1]).all(axis=(1, 2, 3))
    assert (straight | mirrored).all() and not straight.all() and not mirrored.all()
    shown = lesson.images.mean(1).numpy()  # tints do not move what is dark and what is bright
    for m in rows:
        plain = pictures.images[m].mean(-1)
        same = np.corrcoef(shown[m].ravel(), plain.ravel())[0, 1]
        turned = np.corrcoef(shown[m].ravel(), plain[:, ::-1].ravel())[0, 1]
        assert (same >= turned) == straight[m] or straight[m] == mirrored[m]


def test_permuted_colours_make_hues_unknown_and_spare_captions_with_colours(backbone, pictures):
    rows = np.repeat(np.arange(len(pictures)), 8)
    lesson = draw_lesson(pictures, rows, 1.0, backbone, np.random.default_rng(1))
    hues = [NAMED.index(i) for i in stage._HUES]
    others = [i for i in range(len(NAMED)) if i not in hues]
    assert lesson.known[:, others].all()
    shuffled = lesson.known[:, hues[0]] == 0
    assert 0 < shuffled.float().mean() < 1
    unnamed = {int(row) for row in torch.where(~shuffled)[0]}
    last = pictures.ids[rows, -1][:, : lesson.ids.shape[1]]
    assert all((lesson.ids[m].numpy() == last[m]).all() for m in unnamed)


def test_the_first_phase_leaves_the_text_tower_alone(backbone, pictures):
    fresh = Backbone.from_config(tiny_config(), vocabulary=build_vocabulary(words()))
    objective = Objective(fresh)
    lesson = draw_lesson(pictures, np.arange(8), 0.4, fresh, np.random.default_rng(0))
    terms = objective(lesson, FIRST)
    assert set(terms) == {"parts", "attributes"}
    torch.stack(list(terms.values())).sum().backward()
    assert fresh.clip.token_embedding.weight.grad is None
    terms = objective(lesson, SECOND)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None for p in objective.parameters())


class Killed(Exception):
    pass


def run(recipe: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Pre-train in this process and return the weights."""

    def spawn(work: Callable[..., None], arguments: tuple[Any, ...], workers: int) -> None:
        assert workers == 1
        try:
            work(0, *arguments)
        finally:
            if stage.dist.is_initialized():
                stage.dist.destroy_process_group()

    monkeypatch.setattr(stage, "spawn", spawn)
    stage.pretrain(recipe, out)
    return load_backbone("tiny_clip", weights=out / "tiny_clip.safetensors").clip_state()


def test_a_killed_run_resumes_to_the_same_bits(shipped_recipe, tmp_path, monkeypatch):
    recipe = small(shipped_recipe)
    whole = run(recipe, tmp_path / "whole", monkeypatch)

    save = Checkpoints.save

    def save_and_die(self: Checkpoints, *arguments: Any) -> None:
        save(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            run(recipe, tmp_path / "killed", monkeypatch)
    resumed = run(recipe, tmp_path / "killed", monkeypatch)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [
        [
            json.loads(line)
            for line in (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "killed")
    ]
    assert [row["pictures"] for row in logs[1]] == [16, 32]
    assert logs[0][-1]["zero_shot"] == logs[1][-1]["zero_shot"]


def test_the_shipped_checkpoint_is_the_one_described():
    expected = (SHIPPED / "tiny_clip.sha256").read_text().split()[0]
    assert file_sha256(SHIPPED / "tiny_clip.safetensors") == expected
    assert tiny_vocabulary() == build_vocabulary(words())
    last = json.loads((SHIPPED / "train_log.jsonl").read_text().splitlines()[-1])
    own = next(row for row in last["zero_shot"] if row["domain"] == "pretrain")
    assert own["AUC_named"] > 85 and set(own["AUC_of"]) == set(NAMES)
