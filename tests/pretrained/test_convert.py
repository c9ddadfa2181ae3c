"""Official files to models of ours: whichever way they are packed, at the size that their shapes tell."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genaim.models import AIM, VAR, AIMConfig
from genaim.models.aim import PRESETS as AIM_SIZES
from genaim.models.mar import PRESETS
from genaim.pretrained import from_pretrained, load_encoder, load_generator, load_probe, load_tokenizer
from genaim.pretrained.aim import aim_config, load_official_aim, probe_config
from genaim.pretrained.convert import FAMILIES, convert
from genaim.pretrained.fetch import save_converted
from genaim.pretrained.mar import kl16_config, mar_config, mar_tokenizer
from genaim.pretrained.official import imagenet_classes
from genaim.pretrained.var import var_config, var_tokenizer, vqvae_config
from genaim.tokenizers import KLAutoencoderConfig, MultiScaleVQ, MultiScaleVQConfig
from samplers import generate
from tests.parity_sets import FOLDER, ParitySet
from tests.pretrained.test_mar_parity import load_mar
from tests.pretrained.test_mar_parity import load_tokenizer as load_kl
from tests.pretrained.test_var_parity import PUBLISHED_SCALES, load_var

VAR_FILE, VQVAE_FILE = FOLDER / "var_a.safetensors", FOLDER / "vqvae_a.safetensors"


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Official weights of a small VAR and of its tokenizer."""
    return ParitySet("var_a", torch.float32).state(), ParitySet("vqvae_a", torch.float32).state()


def packed(folder: Path, form: str) -> tuple[Path, Path]:
    """Files of a VAR and of its tokenizer in one of the published forms."""
    var, vqvae = states()
    if form == "safetensors":
        return VAR_FILE, VQVAE_FILE
    if form == "training":  # the checkpoint of the official trainer holds both
        path = folder / "ar-ckpt-last.pth"
        trainer = {"config": {"lr": 1.0}, "var_wo_ddp": var, "vae_local": vqvae, "var_opt": {"state": {}}}
        torch.save({"epoch": 3, "iter": 0, "trainer": trainer, "args": Namespace(depth=3, fp16=1)}, path)
        return path, path
    old = {"_use_new_zipfile_serialization": False} if form == "old pth" else {}
    torch.save(var, folder / "var.pth", **old)
    torch.save(vqvae, folder / "vae.pth", **old)
    return folder / "var.pth", folder / "vae.pth"


@pytest.mark.parametrize("form", ["safetensors", "pth", "old pth", "training"])
def test_a_converted_model_is_the_official_one(tmp_path: Path, form: str) -> None:
    file, tokenizer_file = packed(tmp_path, form)
    save_converted(tmp_path / "model", convert("var", [file], tokenizer=tokenizer_file))
    save_converted(tmp_path / "tokenizer", convert("var-vqvae", [tokenizer_file]))
    official = load_var(ParitySet("var_a", torch.float32))
    loaded = load_generator(str(tmp_path / "model"))
    expected, got = official.state_dict(), loaded.state_dict()
    assert got.keys() == expected.keys()
    assert all(got[name].equal(weight) for name, weight in expected.items())
    assert loaded.config.num_classes == 10
    assert loaded.tokenizer.patch_nums == official.tokenizer.patch_nums
    labels = torch.tensor([1, 7])
    assert generate(loaded, labels, guidance_scale=2.0).equal(generate(official, labels, guidance_scale=2.0))
    assert load_tokenizer(str(tmp_path / "tokenizer")).codebook_size == 64


def test_a_tokenizer_of_ones_own_gets_the_scales_of_the_generator(tmp_path: Path) -> None:
    save_converted(tmp_path / "tokenizer", convert("var-vqvae", [VQVAE_FILE]))
    own = load_tokenizer(str(tmp_path / "tokenizer"))
    assert isinstance(own, MultiScaleVQ)
    assert len(own.patch_nums) == 10
    model = convert("var", [VAR_FILE], tokenizer=own).module
    assert isinstance(model, VAR)
    assert model.tokenizer.patch_nums == (1, 2, 3, 4, 6)
    assert model.tokenizer.codebook.weight.equal(own.codebook.weight)


@pytest.mark.parametrize("depth", [16, 20, 24, 30, 36])
def test_published_sizes_are_recognised(depth: int) -> None:
    shapes = json.loads((FOLDER / "keys" / f"var-d{depth}.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    sides = PUBLISHED_SCALES[512 if depth == 36 else 256]
    state["lvl_1L"] = torch.cat([torch.full((side**2,), scale) for scale, side in enumerate(sides)])[None]
    assert state["lvl_1L"].shape == torch.Size(shapes["lvl_1L"])
    sampling = {"guidance_scale": 2.5, "top_k": 900, "top_p": 0.96}
    assert var_config(state) == {"kind": "var", "num_classes": 1000, "preset": f"d{depth}", "sampling": sampling}
    assert var_tokenizer(state, MultiScaleVQConfig()) == {"patch_nums": sides}


def test_the_published_tokenizer_is_recognised() -> None:
    shapes = json.loads((FOLDER / "keys" / "vqvae-ch160v4096z32.json").read_text())
    config = vqvae_config({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    assert MultiScaleVQConfig.model_validate(config) == MultiScaleVQConfig()
    assert MultiScaleVQConfig.model_validate(FAMILIES["var-vqvae"].published) == MultiScaleVQConfig()


def test_the_published_kl16_is_recognised() -> None:
    shapes = json.loads((FOLDER / "keys" / "mar-kl16.json").read_text())
    config = kl16_config({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    published = KLAutoencoderConfig(latent_scale=0.2325)
    assert KLAutoencoderConfig.model_validate(config) == published
    assert KLAutoencoderConfig.model_validate(FAMILIES["mar-kl16"].published) == published


@torch.no_grad()
def test_a_converted_kl_autoencoder_is_the_official_one(tmp_path: Path) -> None:
    data = ParitySet("marvae_a", torch.float32)
    torch.save({"model": data.state()}, tmp_path / "kl.ckpt")
    save_converted(tmp_path / "model", convert("mar-kl16", [tmp_path / "kl.ckpt"], config={"image_size": 24}))
    loaded, official = load_tokenizer(str(tmp_path / "model")), load_kl(data, data.state())
    assert all(loaded.state_dict()[name].equal(weight) for name, weight in official.state_dict().items())
    assert loaded.encode(data["in_image"]).equal(official.encode(data["in_image"]))


@pytest.mark.parametrize("preset", ["base", "large", "huge"])
def test_published_mars_are_recognised(preset: str) -> None:
    shapes = json.loads((FOLDER / "keys" / f"mar-{preset}.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert mar_config(state) == {"kind": "mar", "preset": preset, "num_classes": 1000}
    assert mar_tokenizer(state, KLAutoencoderConfig()) == {"image_size": 256, "patch_size": 1}


def mar_file(folder: Path) -> Path:
    """A checkpoint of the official trainer, with the arguments of its command line."""
    state = ParitySet("mar_a", torch.float32).state()
    raw = {key: torch.full_like(value, 9.0) for key, value in state.items()}
    args = Namespace(model="mar_base", lr=None, betas=(0.9, 0.95), buffer_size=4, eval_freq=40, device="cuda")
    torch.save({"model": raw, "model_ema": state, "optimizer": {}, "epoch": 400, "args": args}, folder / "mar.pth")
    return folder / "mar.pth"


def test_a_mar_is_read_from_its_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"encoder_depth": 2, "decoder_depth": 2, "width": 48, "num_heads": 4, "num_buffer": 4}
    monkeypatch.setitem(PRESETS, "a", size | {"head": {"kind": "diffusion", "depth": 2, "hidden": 48}})
    data, kl = ParitySet("mar_a", torch.float32), ParitySet("marvae_a", torch.float32)
    torch.save({"model": kl.state()}, tmp_path / "kl.ckpt")
    sampling = {"guidance_scale": 2.9, "num_steps": 4, "diffusion_steps": 4}
    converted = convert("mar", [mar_file(tmp_path)], tokenizer=tmp_path / "kl.ckpt", config={"sampling": sampling})
    save_converted(tmp_path / "model", converted)
    loaded, official = load_generator(str(tmp_path / "model")), load_mar(data)
    assert loaded.state_dict_without_tokenizer().keys() == official.state_dict_without_tokenizer().keys()
    for name, weight in official.state_dict_without_tokenizer().items():
        assert loaded.state_dict()[name].equal(weight), name
    assert (loaded.tokenizer.image_size, loaded.config.num_classes) == (8, 10)
    assert loaded.tokenizer.scale() == pytest.approx(0.2325)
    assert loaded.config.sampling.guidance_scale == 2.9
    assert generate(loaded, torch.tensor([1, 2])).shape == (2, 3, 8, 8)


def test_a_mar_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no published MAR has this size"):
        convert("mar", [mar_file(tmp_path)])
    torch.save({"model": {}, "epoch": 1}, tmp_path / "raw.pth")
    with pytest.raises(ValueError, match="nor one in 'model_ema'"):
        convert("mar", [tmp_path / "raw.pth"])


AIM_PRESETS = [
    *((f"aim-{size}", preset) for size, preset in (("600M", "0.6B"), ("1B", "1B"), ("3B", "3B"), ("7B", "7B"))),
    *((f"aimv2-{size}-patch14-224", f"v2-{size}") for size in ("large", "huge", "1B", "3B")),
    ("aimv2-large-patch14-native", "v2-large"),
]


@pytest.mark.parametrize(("name", "preset"), AIM_PRESETS)
def test_published_aims_are_recognised(name: str, preset: str) -> None:
    shapes = json.loads((FOLDER / "keys" / f"{name}.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = aim_config(state)
    assert (found["preset"], found["head_depth"]) == (preset, None)
    config = AIMConfig.model_validate(found)
    assert (config.image_size, config.positions) == (
        224,
        "sincos" if preset[0] != "v" or "native" in name else "learned",
    )
    first = {"width": config.width, "num_classes": 1000, "bias": False}
    assert probe_config(state) == (first if config.version == 1 else None)
    if config.positions == "learned":
        state["preprocessor.pos_embed"] = torch.empty(1, 32 * 32, config.width, device="meta")
        assert AIMConfig.model_validate(aim_config(state)).image_size == 448


def test_the_image_half_of_aimv2_lit_is_read() -> None:
    """No key list of it is stored; the names are those of AIMv2LiT in apple/ml-aim."""
    shapes = json.loads((FOLDER / "keys" / "aimv2-large-patch14-224.json").read_text())
    shapes |= {"head.cls_token": [1, 1, 1024], "head.k.weight": [1024, 1024], "head.v.weight": [1024, 1024]}
    shapes |= {"head.linear.weight": [1024, 1024], "head.linear.bias": [1024]}
    shapes = {f"image_encoder.{key}": shape for key, shape in shapes.items()}
    shapes |= {"text_encoder.trunk.post_trunk_norm.weight": [768], "image_projector.weight": [768, 1024]}
    shapes |= {"text_projector.weight": [768, 768], "log_logit_scale": []}
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = aim_config(state)
    assert (found["preset"], found["image_size"], probe_config(state)) == ("v2-large", 224, None)
    with torch.device("meta"):
        load_official_aim(AIM(AIMConfig.model_validate(found)), state)


@torch.no_grad()
def test_an_aim_is_read_with_its_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ParitySet("aim_a", torch.float32)
    c, state = data.config, data.state()
    size = {"depth": c["num_blocks"], "width": c["embed_dim"], "num_heads": c["num_heads"]}
    monkeypatch.setitem(AIM_SIZES, "a", {**size, "patch_size": c["patch_size"], "image_size": c["img_size"]})
    files = [tmp_path / "backbone.pth", tmp_path / "head.pth"]
    torch.save({key: value for key, value in state.items() if not key.startswith("head.")}, files[0])
    torch.save({key: value for key, value in state.items() if key.startswith("head.")}, files[1])
    save_converted(tmp_path / "aim", convert("aim", files, config={"feature_layers": c["probe_layers"]}))
    encoder, probe = load_encoder(str(tmp_path / "aim")), load_probe(str(tmp_path / "aim"))
    data.check("out_trunk_out", encoder.features(data["in_image"]))
    data.check("out_logits", probe(encoder.features(data["in_image"])))
    assert isinstance(from_pretrained(tmp_path / "aim"), AIM)
    save_converted(tmp_path / "bare", convert("aim", files[:1]))
    assert load_encoder(str(tmp_path / "bare")).state_dict().keys() == encoder.state_dict().keys()
    with pytest.raises(ValueError, match="is an encoder without a probe"):
        load_probe(str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="is a probe, not a generator"):
        load_generator(str(tmp_path / "aim" / "probe"))
    with pytest.raises(ValueError, match="is a probe, not a tokenizer or a generator"):
        load_tokenizer(str(tmp_path / "aim" / "probe"))


@torch.no_grad()
@pytest.mark.parametrize("name", ["aimv2_a", "aimv2_a_native"])
def test_an_aim_of_the_second_version_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ParitySet(name, torch.float32)
    c = data.config
    size = {"depth": c["num_blocks"], "width": c["embed_dim"], "num_heads": c["num_heads"], "version": 2}
    shape = {"patch_size": c["patch_size"], "mlp_hidden": c["mlp_hidden_dim"], "positions": "learned"}
    monkeypatch.setitem(AIM_SIZES, "a", size | shape)
    save_converted(tmp_path / "aim", convert("aimv2", [FOLDER / f"{name}.safetensors"]))
    encoder = load_encoder(str(tmp_path / "aim"))
    data.check("out_encoded", encoder.features(data["in_image"]))


def test_an_aim_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="no published AIM has this size"):
        convert("aim", [FOLDER / "aim_a.safetensors"])
    with pytest.raises(ValueError, match="family 'aim' has no generator, and takes no tokenizer"):
        convert("aim", [FOLDER / "aim_a.safetensors"], tokenizer=VQVAE_FILE)


def test_the_official_tokenizer_is_referred_to_by_name(tmp_path: Path) -> None:
    """No weights of it, and the keys in which it differs: the scales of the generator."""
    var, _ = states()
    width = var["word_embed.weight"].shape[0]
    var |= {"word_embed.weight": torch.zeros(width, 32), "head.weight": torch.zeros(4096, width)}
    save_file(var | {"head.bias": torch.zeros(4096)}, tmp_path / "var.safetensors")
    converted = convert("var", [tmp_path / "var.safetensors"])
    assert converted.shared_tokenizer == "var-vqvae"
    assert converted.tokenizer_changes == {"patch_nums": [1, 2, 3, 4, 6]}
    var["lvl_1L"] = torch.repeat_interleave(torch.arange(10), torch.tensor(PUBLISHED_SCALES[256]).square())[None]
    var |= {"pos_1LC": torch.zeros(1, 680, width), "lvl_embed.weight": torch.zeros(10, width)}
    save_file(var | {"head.bias": torch.zeros(4096)}, tmp_path / "var.safetensors")
    assert convert("var", [tmp_path / "var.safetensors"]).tokenizer_changes == {}
    save_converted(tmp_path / "model", converted)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_a_thousand_classes_are_those_of_imagenet(tmp_path: Path) -> None:
    var, _ = states()
    var["class_emb.weight"] = torch.zeros(1001, var["class_emb.weight"].shape[1])
    torch.save(var, tmp_path / "var.pth")
    names = convert("var", [tmp_path / "var.pth"], tokenizer=VQVAE_FILE).module.config.class_names
    assert names is not None
    assert (names[207], names[281], names[980]) == ("golden retriever", "tabby", "volcano")


def test_names_of_imagenet_can_be_told_apart() -> None:
    names = [name.casefold() for name in imagenet_classes()]
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() and "," not in name for name in names)
    assert (names.index("cardigan"), names.index("cardigan welsh corgi")) == (474, 264)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("place", ["beside", "inside", "namespace", "whole"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, place: str, old: bool) -> None:
    var, _ = states()
    bomb = Malicious(tmp_path / "owned")
    content: Any = {
        "beside": {"trainer": {"var_wo_ddp": var}, "args": bomb},
        "inside": var | {"head.bias": bomb},
        "namespace": {"trainer": {"var_wo_ddp": var}, "args": Namespace(depth=bomb)},
        "whole": bomb,
    }[place]
    torch.save(content, tmp_path / "var.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=r"var\.pth holds '\w+\.mkdir', which could run code; it was not opened"):
        convert("var", [tmp_path / "var.pth"], tokenizer=VQVAE_FILE)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("family", "content", "message"),
    [
        (
            "var",
            {"model": {}, "epoch": 1},
            r"nor one in 'trainer\.var_wo_ddp' \(its keys are model,",
        ),
        ("var", {"trainer": {"vae_local": {}}}, "no flat state dict"),
        ("var", [torch.zeros(1)], "it is no dictionary"),
        ("var", {"weight": torch.zeros(1)}, "lacks the key 'blocks.0.ffn.fc1.weight' of its family"),
        ("var-vqvae", {"weight": torch.zeros(1)}, "lacks the key 'encoder.conv_in.weight'"),
        ("vae", {}, "unknown family 'vae'; did you mean 'var'"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, family: str, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as error:
        convert(family, [tmp_path / "a.pth"])
    assert "\n" not in str(error.value)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    var, _ = states()
    torch.save(var | {"adapter.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"key 'adapter\.weight' is not of an official VAR checkpoint"):
        convert("var", [tmp_path / "a.pth"], tokenizer=VQVAE_FILE)


def test_a_tokenizer_takes_no_tokenizer() -> None:
    with pytest.raises(ValueError, match="has no generator, and takes no tokenizer"):
        convert("var-vqvae", [VQVAE_FILE], tokenizer=VQVAE_FILE)
