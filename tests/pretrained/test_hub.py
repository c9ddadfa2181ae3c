"""Models of one's own: saved, shared on the Hub, and read again."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from genaim.models import AIM, AIMConfig, GenerativeModel
from genaim.pretrained import from_pretrained, load_generator, load_tokenizer, push_to_hub, save_pretrained
from genaim.pretrained.names import is_named, locate
from genaim.tokenizers import fingerprint
from samplers import generate
from tests.tiny import make_tokenizer, make_var


class LocalHub:
    """Repositories as folders; has the methods of ``HfApi`` and ``snapshot_download`` that are used."""

    def __init__(self, root: Path) -> None:
        self.root, self.private, self.token = root, None, None

    def __call__(self, token: str | None = None) -> "LocalHub":
        self.token = token
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        assert exist_ok
        self.private = private
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{repo_id}"

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return (self.root / repo_id / filename).exists()

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        if not (self.root / repo_id).is_dir():
            raise OSError(f"404 Client Error.\n\nRepository Not Found for {repo_id}.")
        paths = (p.relative_to(self.root / repo_id) for p in (self.root / repo_id).rglob("*") if p.is_file())
        copy = self.root / "downloaded" / repo_id
        for name in filter_repo_objects(map(str, paths), allow_patterns=allow_patterns):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / repo_id / name, copy / name)
        return str(copy)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    hub = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return hub


def assert_same(model: Any, expected: GenerativeModel) -> None:
    labels = torch.tensor([0, 3, 5])
    assert isinstance(model, GenerativeModel)
    assert generate(model, labels, seed=2).equal(generate(expected, labels, seed=2))


def test_saved_and_read_again(tmp_path: Path) -> None:
    model = make_var()
    save_pretrained(model, str(tmp_path / "model"))
    assert_same(from_pretrained(tmp_path / "model"), model)
    save_pretrained(model.tokenizer, tmp_path / "tokenizer")
    assert fingerprint(from_pretrained(tmp_path / "tokenizer")) == fingerprint(model.tokenizer)


def test_a_bundled_model_is_saved_with_its_own_tokenizer(tmp_path: Path) -> None:
    model = load_generator("mnist-var")
    save_pretrained(model, tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer" / "model.safetensors").is_file()
    labels = torch.tensor([4])
    assert generate(load_generator(str(tmp_path / "model")), labels).equal(generate(model, labels))


def test_pushed_and_read_again(hub: LocalHub) -> None:
    model = make_var()
    assert push_to_hub(model, "me/tiny", private=True, token="secret") == "https://hub/me/tiny"
    assert (hub.private, hub.token) == (True, "secret")
    files = sorted(p.relative_to(hub.root).as_posix() for p in hub.root.rglob("*") if p.is_file())
    own = ["README.md", "config.json", "model.safetensors", "tokenizer/config.json", "tokenizer/model.safetensors"]
    assert files == [f"me/tiny/{name}" for name in own]
    card = (hub.root / "me" / "tiny" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: genaim\n")
    assert "genaim sample --model me/tiny" in card
    assert_same(load_generator("me/tiny"), model)
    assert is_named("me/tiny")


def test_an_encoder_is_pushed_with_its_card_alone(hub: LocalHub) -> None:
    encoder = AIM(AIMConfig(depth=1, width=16, num_heads=2, image_size=8, patch_size=4, head_depth=None))
    push_to_hub(encoder, "me/aim")
    (hub.root / "me" / "aim" / "notes.txt").write_text("not a part of a model")
    read = from_pretrained("me/aim")
    assert all(a.equal(b) for a, b in zip(read.state_dict().values(), encoder.state_dict().values(), strict=True))
    assert sorted(p.name for p in (hub.root / "downloaded" / "me" / "aim").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_tokenizer_is_pushed(hub: LocalHub) -> None:
    tokenizer = make_tokenizer()
    push_to_hub(tokenizer, "me/vq", card="# Mine\n")
    assert (hub.root / "me" / "vq" / "README.md").read_text() == "# Mine\n"
    assert fingerprint(from_pretrained("me/vq")) == fingerprint(tokenizer)


def test_a_card_of_the_repository_stays(hub: LocalHub) -> None:
    push_to_hub(make_tokenizer(), "me/vq", card="# Mine\n")
    push_to_hub(make_tokenizer(codebook={"size": 8}), "me/vq")
    assert (hub.root / "me" / "vq" / "README.md").read_text() == "# Mine\n"
    assert from_pretrained("me/vq").codebook_size == 8


def test_what_is_not_on_the_hub_may_be_a_folder(hub: LocalHub) -> None:
    with pytest.raises(ValueError, match="no folder 'me/none' here, and no model of that name can be had") as error:
        from_pretrained("me/none")
    assert "\n" not in str(error.value)
    (hub.root / "me" / "other").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"'me/other' on the Hub holds no config\.json"):
        from_pretrained("me/other")


def test_a_missing_folder_was_asked_of_the_hub(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any, **options: Any) -> str:
        raise AssertionError("the Hub is asked for a folder")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    names = ["runs/missing", "mine/missing", "./a", "../elsewhere/missing", "/a/b", "~/a", "a/b/c"]
    Path("mine").mkdir()
    for name in names:
        with pytest.raises(ValueError, match=f"there is no folder '{name}'; give one that training"):
            from_pretrained(name)
    save_pretrained(make_var(), "mine/digits")
    save_pretrained(make_var(), "runs/emoji")
    for name, near in {"mine/digit": "mine/digits", "runs/emojis": "runs/emoji"}.items():
        with pytest.raises(ValueError, match=f"there is no folder '{name}'; did you mean '{near}'?"):
            from_pretrained(name)
    with pytest.raises(ValueError, match="model 'emojis' is neither bundled nor a folder, nor official; did you mean"):
        from_pretrained("emojis")


def test_other_kinds_were_offered(hub: LocalHub) -> None:
    save_pretrained(make_tokenizer(), "runs/emoji-tokenizer")
    save_pretrained(make_var(), "runs/emoji-generator")
    for name, start in {"emoji-vqq": "model 'emoji-vqq' is neither", "runs/emoji-tok": "there is no folder"}.items():
        with pytest.raises(ValueError, match=start) as error:
            load_generator(name)
        assert "runs/emoji-generator" in str(error.value)
        assert "vq" not in str(error.value).replace(name, "") and "runs/emoji-tokenizer" not in str(error.value)
        with pytest.raises(ValueError, match=r"did you mean '(emoji-vq|runs/emoji-tokenizer)'"):
            load_tokenizer(name)


def test_a_home_folder_that_no_shell_has_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_pretrained(make_var(), tmp_path / "model")
    assert locate("~/model") == tmp_path / "model" and not is_named("~/model")
