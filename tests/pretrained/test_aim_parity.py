"""AIM v1 and v2, the attentive probe and SemAIM's encoder blocks against stored outputs of the official code."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.core.masks import StepMask, step_mask
from genaim.core.order import prefix_steps
from genaim.core.transformer import Transformer, TransformerConfig
from genaim.models import AIM, AIMConfig, AttentiveProbe, AttentiveProbeConfig
from genaim.pretrained.aim import load_official_aim, load_official_probe, load_official_semaim
from tests.parity_sets import FOLDER, ParitySet


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def check_all(data: ParitySet, outputs: dict[str, Tensor]) -> None:
    """Every output of a set, and no other."""
    assert outputs.keys() == {key for key in data.meta["arrays"] if key.startswith("out_")}
    for key, output in outputs.items():
        data.check(key, output)


def load_aim(data: ParitySet, **settings: object) -> AIM:
    c = data.config
    config = AIMConfig(
        patch_size=c["patch_size"],
        depth=c["num_blocks"],
        width=c["embed_dim"],
        num_heads=c["num_heads"],
        head_depth=None,
        **settings,
    )
    model = AIM(config).to(data.dtype)
    load_official_aim(model, data.state())
    return model.eval()


@torch.no_grad()
def test_first_version(dtype: torch.dtype) -> None:
    data = ParitySet("aim_a", dtype)
    c = data.config
    layers = c["probe_layers"]
    model = load_aim(data, image_size=c["img_size"], feature_layers=layers)
    shape = AttentiveProbeConfig(width=c["embed_dim"], num_heads=c["num_heads"], num_classes=c["num_classes"])
    probe = AttentiveProbe(shape).to(dtype).eval()
    load_official_probe(probe, data.state())
    image, small, blocks = data["in_image"], data["in_small_x"], model.transformer.blocks

    prefix_length = (~data["in_prefix_mask"]).sum(1)
    assert prefix_length.tolist() == c["prefix"]
    prefix, causal = prefix_steps(prefix_length, model.num_tokens), torch.arange(model.num_tokens)
    evaluated: list[int] = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: evaluated.append(number))
    trunk = model.features(image)
    count = torch.tensor(len(evaluated))
    check_all(
        data,
        {
            "out_pos_embed": model.positions,
            "out_tokens": model.embed(image),
            "out_features": torch.stack(list(model.hidden_states(image))),
            "out_trunk_out": trunk,
            "out_unused_post_trunk_norm": model.features(image, layer="norm"),
            "out_logits": probe(torch.stack([model.features(image, layer=i) for i in layers]).mean(0)),
            "out_logits_max_block_id_none": probe(trunk),
            "out_num_features_max_block_id_none": count,
            "out_bn_of_trunk_out": probe.norm(trunk.mT).mT,
            "out_small_block0": blocks[0](small),
            "out_small_patch_norm": model.patch_embed.norm(small),
            "out_prefix_features": torch.stack(list(model.hidden_states(image, steps=prefix))),
            "out_prefix_logits": probe(model.features(image, steps=prefix)),
            "out_causal_features": torch.stack(list(model.hidden_states(image, steps=causal))),
        },
    )


def second_version(data: ParitySet, model: AIM) -> dict[str, Tensor]:
    image, small, block = data["in_image"], data["in_small_x"], model.transformer.blocks[0]
    return {
        "out_tokens": model.embed(image),
        "out_encoded": model.features(image),
        "out_features": torch.stack(list(model.hidden_states(image))),
        "out_small_block0": block(small),
        "out_small_post_trunk_norm": model.transformer.final_norm(small),
        "out_small_patch_norm": model.patch_embed.norm(small),
        "out_mlp0": block.mlp(block.norm2(model.embed(image))),
    }


@torch.no_grad()
def test_second_version(dtype: torch.dtype) -> None:
    data = ParitySet("aimv2_a", dtype)
    size, hidden = data.config["img_size"][0], data.config["mlp_hidden_dim"]
    model = load_aim(data, version=2, image_size=size, mlp_hidden=hidden, positions="learned")
    check_all(data, second_version(data, model))


@torch.no_grad()
def test_native_resolution(dtype: torch.dtype) -> None:
    """One model, images of 3x5 and 4x3 patches."""
    data = ParitySet("aimv2_a_native", dtype)
    model = load_aim(data, version=2, image_size=224, mlp_hidden=data.config["mlp_hidden_dim"])
    image = data["in_image"]
    others = {
        "out_pos_embed": model.embed(image)[0] - model.patch_embed(image)[0],
        "out_encoded_other_size": model.features(data["in_image_other_size"]),
    }
    check_all(data, second_version(data, model) | others)


@torch.no_grad()
def test_semaim_encoder_blocks(dtype: torch.dtype) -> None:
    """The plain encoder, and the content stream under its permuted mask; of the query stream its mask."""
    data = ParitySet("semaim_a", dtype)
    c, state = data.config, data.state()
    config = TransformerConfig(width=c["embed_dim"], depth=c["depth"], num_heads=c["num_heads"])
    model = Transformer(config).to(dtype).eval()
    load_official_semaim(model, state)
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = F.conv2d(data["in_image"], weight, bias, stride=c["patch_size"]).flatten(2).mT
    data.check("out_patch_embed", patches)
    x = torch.cat([state["cls_token"].expand(len(patches), -1, -1), patches], dim=1) + state["pos_embed"]
    data.check("out_enc_tokens", model(x))
    data.check("out_small_block0", model.blocks[0](data["in_small_x"]))
    data.check("out_small_norm", model.norm(data["in_small_x"]))

    score = data["out_perm_attention_center"]
    rank = (score[:, :, None] > score[:, None, :]).sum(-1)  # two patches have equal scores, and see each other
    steps = F.pad(rank + 1, (1, 0))  # the class token first
    data.check("out_mask_content", (~step_mask(steps, steps)).to(torch.uint8))
    data.check("out_mask_query", (~step_mask(F.pad(rank, (1, 0)), steps)).to(torch.uint8))
    *_, content = model.hidden_states(x, mask=StepMask(steps, steps))
    data.check("out_content_out", content)


def official_shapes(name: str) -> dict[str, Tensor]:
    """The published keys, on the meta device."""
    shapes = json.loads((FOLDER / "keys" / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


HEADS = {
    "0.6B": 12,
    "1B": 16,
    "3B": 24,
    "7B": 32,
    "v2-large": 8,
    "v2-huge": 12,
    "v2-1B": 16,
    "v2-3B": 24,
}


@pytest.mark.parametrize("preset", HEADS)
def test_published_head_counts(preset: str) -> None:
    """No weight tells the number of heads, and a wrong one runs."""
    assert AIMConfig(preset=preset).num_heads == HEADS[preset]


@pytest.mark.parametrize(("name", "preset"), [("600M", "0.6B"), ("1B", "1B"), ("3B", "3B"), ("7B", "7B")])
def test_published_first_versions_load_strictly(name: str, preset: str) -> None:
    """Every key of the official checkpoints has a place, and every weight a key."""
    state = official_shapes(f"aim-{name}")
    config = AIMConfig(preset=preset)
    probe_config = AttentiveProbeConfig(width=config.width, num_heads=config.num_heads, num_classes=1000)
    with torch.device("meta"):
        model, probe = AIM(config), AttentiveProbe(probe_config)
    load_official_aim(model, state)
    load_official_probe(probe, state)
    assert not model.positions.is_meta  # they are in no file
    del state["trunk.post_trunk_norm.bias"], state["head.v.weight"]
    with pytest.raises(ValueError, match=r"AIM v1 checkpoint does not fit the model: missing transformer\.norm\.bias"):
        load_official_aim(model, state)
    with pytest.raises(ValueError, match=r"missing v\.weight"):
        load_official_probe(probe, state)


V2 = [
    *((f"{size}-patch14-224", {"preset": f"v2-{size}"}) for size in ("large", "huge", "1B", "3B")),
    ("large-patch14-native", {"preset": "v2-large", "positions": "sincos"}),
]


@pytest.mark.parametrize(("name", "settings"), V2, ids=[name for name, _ in V2])
def test_published_second_versions_load_strictly(name: str, settings: dict[str, str]) -> None:
    state = official_shapes(f"aimv2-{name}")
    with torch.device("meta"):
        model = AIM(AIMConfig.model_validate({**settings, "head_depth": None}))
    load_official_aim(model, state)
    state["preprocessor.class_token"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"'preprocessor\.class_token' is not of an official AIM v2 checkpoint"):
        load_official_aim(model, state)
    with pytest.raises(ValueError, match="AIM v1 checkpoint does not fit"), torch.device("meta"):
        load_official_aim(AIM(AIMConfig(preset="1B", head_depth=None)), official_shapes("aimv2-1B-patch14-224"))


def test_published_semaim_blocks_load_strictly() -> None:
    with torch.device("meta"):
        model = Transformer(TransformerConfig(width=768, depth=12, num_heads=12))
    load_official_semaim(model, official_shapes("semaim-vit-base"))
