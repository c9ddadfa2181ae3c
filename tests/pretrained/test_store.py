"""Models on disk: round trips, sharing, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from genaim.models import AIM, AIMConfig
from genaim.pretrained import bundled, load_encoder, load_generator, load_tokenizer, save_model
from genaim.tokenizers import fingerprint
from samplers import generate
from tests.tiny import make_tokenizer, make_var


def test_a_saved_model_draws_the_same_pictures(tmp_path: Path) -> None:
    model, labels = make_var(), torch.tensor([0, 3])
    save_model(tmp_path / "model", model)
    loaded = load_generator(str(tmp_path / "model"))
    assert generate(loaded, labels).equal(generate(model, labels))
    assert fingerprint(load_tokenizer(str(tmp_path / "model"))) == fingerprint(model.tokenizer)


def test_a_saved_encoder_has_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = {"image_size": 8, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2, "order": "spiral"}
    model = AIM(AIMConfig.model_validate({**config, "head_depth": 1, "head_width": 8})).eval()
    save_model(tmp_path / "model", model)
    loaded = load_encoder(str(tmp_path / "model"))
    assert loaded.config == model.config
    images = torch.rand(2, 3, 8, 8)
    assert loaded.features(images).equal(model.features(images))
    with pytest.raises(ValueError, match=r"is an encoder, not a generator; .*Allowed: emoji-mar"):
        load_generator(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="is an encoder, not a tokenizer or a generator"):
        load_tokenizer(str(tmp_path / "model"))
    save_model(tmp_path / "tokenizer", make_tokenizer())
    with pytest.raises(ValueError, match="is a tokenizer, not an encoder"):
        load_encoder(str(tmp_path / "tokenizer"))


def test_saving_again_replaces_a_model_but_nothing_else(tmp_path: Path) -> None:
    save_model(tmp_path / "model", make_tokenizer())
    save_model(tmp_path / "model", make_tokenizer(codebook={"size": 8}))
    assert load_tokenizer(str(tmp_path / "model")).codebook_size == 8
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files than a model"):
        save_model(tmp_path / "thesis", make_tokenizer())
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "years of work"


def test_a_folder_with_the_config_of_another_program_is_kept(tmp_path: Path) -> None:
    files = {"config.json": '{"name": "my web app"}', "README.md": "# Mine", "src/precious.py": "print()"}
    for name, text in files.items():
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / name).write_text(text)
    with pytest.raises(ValueError, match="holds other files than a model, such as 'src'"):
        save_model(tmp_path / "app", make_tokenizer())
    assert {name: (tmp_path / "app" / name).read_text() for name in files} == files
    (tmp_path / "app" / "src" / "precious.py").unlink()
    (tmp_path / "app" / "src").rmdir()
    with pytest.raises(ValueError, match="is not a genaim model of format 1"):
        save_model(tmp_path / "app", make_tokenizer())
    (tmp_path / "app" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        save_model(tmp_path / "app", make_tokenizer())
    assert [p.name for p in tmp_path.iterdir()] == ["app"]


def test_saving_again_keeps_the_card_and_refuses_what_lies_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder, make_var())
    (folder / "README.md").write_text("# Written by hand")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    save_model(folder, make_var())
    assert (folder / "README.md").read_text() == "# Written by hand"
    assert (folder / ".gitattributes").is_file()
    (folder / "tokenizer" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"such as 'tokenizer/notes\.txt'; choose another one"):
        save_model(folder, make_var())
    assert (folder / "tokenizer" / "notes.txt").read_text() == "mine"


def test_a_failed_replacement_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model", make_tokenizer())

    def fail_for_the_new(source: Path, target: Path) -> None:
        if source.name.endswith(".tmp"):
            raise OSError("no space")
        source.rename(target)

    monkeypatch.setattr("genaim.files.os.replace", fail_for_the_new)
    with pytest.raises(OSError, match="no space"):
        save_model(tmp_path / "model", make_tokenizer(codebook={"size": 8}))
    assert load_tokenizer(str(tmp_path / "model")).codebook_size == 32
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder, make_var())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_generator(str(folder))
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not fit its config") as error:
        load_generator(str(folder))
    assert "\n" not in str(error.value)
    (folder / "config.json").write_text('{"architectures": ["Other"]}')
    with pytest.raises(ValueError, match="is not a genaim model"):
        load_generator(str(folder))


@pytest.mark.parametrize("name", bundled())
def test_bundled_models_load_and_are_small(name: str) -> None:
    """At most 5 MB a model and 2 MB a tokenizer, each with a card."""
    folder = bundled()[name]
    kind = json.loads((folder / "config.json").read_text())["kind"]
    assert (folder / "README.md").read_text().startswith("---\nlicense: ")
    assert (folder / "model.safetensors").stat().st_size <= (5e6 if kind == "generator" else 2e6)
    model = load_generator(name) if kind == "generator" else load_tokenizer(name)
    assert all(p.isfinite().all() for p in model.parameters())
    if kind == "tokenizer":
        with pytest.raises(ValueError, match=r"is a tokenizer, not a generator; .*mnist-var"):
            load_generator(name)
