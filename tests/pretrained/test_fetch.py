"""Official names: downloaded and converted once, shared, and explained where that cannot be."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import genaim.pretrained.convert as converting
import genaim.pretrained.fetch as fetching
from genaim.core.progress import SilentProgress
from genaim.models.aim import PRESETS as AIM_SIZES
from genaim.models.mar import PRESETS as MAR_SIZES
from genaim.models.var import PRESETS as VAR_SIZES
from genaim.pretrained import OFFICIAL, find, from_pretrained, load_encoder, load_generator, load_tokenizer
from genaim.pretrained.convert import FAMILIES, EncoderFamily, GeneratorFamily, TokenizerFamily
from genaim.pretrained.fetch import cached, fetch
from genaim.pretrained.official import KINDS, MAR, VAR, Official, RemoteFile
from samplers import generate
from tests.parity_sets import ParitySet
from tests.pretrained.test_convert import VQVAE_FILE
from tests.pretrained.test_var_parity import load_var
from tests.web import Site

ROOT = Path(__file__).parents[2]
HUB = "/FoundationVision/var/resolve/main"


class Told(SilentProgress):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENAIM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def published(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Site:
    """The Hub holds a small VAR and its tokenizer, which stand for official ones."""
    for name, path in (("var_a", "var_tiny.pth"), ("vqvae_a", "vae_tiny.pth")):
        torch.save(ParitySet(name, torch.float32).state(), tmp_path / path)
        site.files[f"{HUB}/{path}"] = (tmp_path / path).read_bytes()
    repo = "FoundationVision/var"
    tiny = {
        "var-vqvae": Official("var-vqvae", (RemoteFile("vae_tiny.pth", repo),), VAR, "1M", None),
        "var-tiny": Official("var", (RemoteFile("var_tiny.pth", repo),), VAR, "2M", 24),
    }
    monkeypatch.setattr(fetching, "OFFICIAL", tiny)
    for module in ("names", "store"):
        monkeypatch.setattr(f"genaim.pretrained.{module}.OFFICIAL", tiny)
    family = FAMILIES["var-vqvae"]
    assert isinstance(family, TokenizerFamily)
    small = converting.convert("var-vqvae", [VQVAE_FILE]).module.config.model_dump(mode="json")
    monkeypatch.setitem(converting.FAMILIES, "var-vqvae", replace(family, published=small))
    return site


@pytest.mark.parametrize("family", FAMILIES)
def test_what_official_models_are_is_told_without_their_families(family: str) -> None:
    classes = {"generator": GeneratorFamily, "tokenizer": TokenizerFamily, "encoder": EncoderFamily}
    assert isinstance(FAMILIES[family], classes[KINDS[family]]) and KINDS.keys() == FAMILIES.keys()


def test_an_official_model_of_another_kind_was_downloaded_first(home: Path) -> None:
    with pytest.raises(ValueError, match=r"'aim-7b' is an encoder, not a generator; .*Allowed: emoji-mar, .*var-d16"):
        load_generator("aim-7b")
    with pytest.raises(ValueError, match=r"'var-d16' is a generator, not an encoder; .*Allowed: aim-600m"):
        load_encoder("var-d16")
    assert not home.exists()


def test_a_name_is_downloaded_once_and_then_a_folder(published: Site, home: Path) -> None:
    progress = Told()
    model = load_generator("var-tiny", progress=progress)
    official = load_var(ParitySet("var_a", torch.float32))
    assert all(model.state_dict()[name].equal(weight) for name, weight in official.state_dict().items())
    labels = torch.tensor([3, 4])
    assert generate(model, labels).equal(generate(official, labels))
    licences = [line for line in progress.lines if "licence of these weights is MIT (https://github.com/" in line]
    assert len(licences) == 2, "one for the model, one for its tokenizer"
    published.files.clear()
    before = len(published.requests)
    again = Told()
    assert load_generator("var-tiny", progress=again).state_dict().keys() == model.state_dict().keys()
    assert load_tokenizer("var-tiny").patch_nums == model.tokenizer.patch_nums
    assert (again.lines, len(published.requests)) == ([], before)
    assert find("var-tiny") == home / "models" / "var-tiny" == cached("var-tiny")


def test_the_tokenizer_is_stored_once_and_the_downloads_are_removed(published: Site, home: Path) -> None:
    fetch("var-tiny", SilentProgress())
    files = sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file() and p.suffix != ".lock")
    assert files == [
        f"models/{name}/{f}" for name in ("var-tiny", "var-vqvae") for f in ("config.json", "model.safetensors")
    ]
    config = json.loads((home / "models" / "var-tiny" / "config.json").read_text())
    assert (config["tokenizer"], config["tokenizer_changes"]) == ("var-vqvae", {"patch_nums": [1, 2, 3, 4, 6]})
    assert len(load_tokenizer("var-vqvae").patch_nums) == 10
    assert sum(path.endswith("vae_tiny.pth") and method == "GET" for method, path, _ in published.requests) == 1


def test_an_interrupted_download_goes_on(published: Site, home: Path) -> None:
    published.cut_after = 300_000
    with pytest.raises(ValueError, match="cannot be downloaded"):
        fetch("var-tiny", SilentProgress())
    assert cached("var-tiny") is None
    published.cut_after = None
    fetch("var-tiny", SilentProgress())
    assert published.sent == sum(map(len, published.files.values()))


def test_without_network_one_line_says_what_to_bring_and_to_run(
    published: Site, home: Path, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    progress = Told()
    with pytest.raises(ValueError, match="'var-tiny' cannot be downloaded") as error:
        load_generator("var-tiny", progress=progress)
    text = str(error.value)
    assert "\n" not in text
    assert progress.lines == []
    urls = re.findall(r"https://[^']+", text)
    assert urls == [f"https://huggingface.co{HUB}/var_tiny.pth", f"https://huggingface.co{HUB}/vae_tiny.pth"]
    commands = text.partition("then run here: ")[2].split(" && ")
    assert commands == [
        f"genaim convert var-tiny var_tiny.pth {home}/models/var-tiny",
        f"genaim convert var-vqvae vae_tiny.pth {home}/models/var-vqvae",
    ]
    for command in commands:  # what was said works
        _, _, name, file, out = command.split()
        converted = fetching.convert_official(name, [tmp_path / file])
        fetching.save_converted(Path(out), converted)
    assert from_pretrained("var-tiny").config.num_classes == 10


def test_a_missing_tokenizer_alone_is_asked_for_alone(published: Site, home: Path) -> None:
    fetch("var-tiny", SilentProgress())
    shutil.rmtree(home / "models" / "var-vqvae")
    published.files.clear()
    with pytest.raises(ValueError, match="'var-vqvae' cannot be downloaded") as error:
        load_generator("var-tiny", progress=SilentProgress())
    assert "var_tiny" not in str(error.value)


def test_a_file_of_another_size_is_not_taken_for_the_named_one(published: Site, home: Path, monkeypatch) -> None:
    rows = fetching.OFFICIAL
    monkeypatch.setitem(rows, "var-tiny", replace(rows["var-tiny"], preset="d16"))
    with pytest.raises(
        ValueError, match="'var-tiny' should have size 'd16', but these shapes are of no published size"
    ):
        fetch("var-tiny", SilentProgress())
    assert cached("var-tiny") is None
    with pytest.raises(ValueError, match=r"'var-tiny' is made of var_tiny\.pth, not of 2 files; give 1"):
        fetching.convert_official("var-tiny", [VQVAE_FILE, VQVAE_FILE])


def test_a_failed_conversion_leaves_no_model_and_keeps_the_download(published: Site, home: Path, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("genaim.pretrained.save.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            fetch("var-tiny", SilentProgress())
    left = [p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert sorted(left) == ["downloads/var-tiny/var_tiny.pth", "downloads/var-vqvae/vae_tiny.pth"]
    sent = published.sent
    fetch("var-tiny", SilentProgress())
    assert published.sent == sent


def test_a_folder_of_that_name_goes_first(published: Site, home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    converted = converting.convert("var-vqvae", [VQVAE_FILE])
    fetching.save_converted(Path("var-tiny"), converted)
    assert find("var-tiny") == Path("var-tiny")
    assert cached("var-tiny") is None


def test_processes_take_turns(home: Path) -> None:
    """While one makes a model, another waits, and then finds it made."""
    code = (
        "import sys, pathlib; from genaim.pretrained.fetch import fetch, _alone\n"
        "with _alone('var-d16'):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
        "    folder = pathlib.Path(sys.argv[1], 'models', 'var-d16'); folder.mkdir()\n"
        "    (folder / 'config.json').write_text('{}')\n"
    )
    command = [sys.executable, "-c", code, str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        asked = [sys.executable, "-c", "from genaim.pretrained.fetch import fetch; print(fetch('var-d16'))"]
        waiting = subprocess.Popen(asked, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=8)
        holder.stdin.write("\n")
        holder.stdin.flush()
        out, err = waiting.communicate(timeout=60)
    assert (out.strip(), err) == (str(home / "models" / "var-d16"), "")


# The table


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_row_can_be_downloaded_and_converted(name: str) -> None:
    row = OFFICIAL[name]
    assert row.family in FAMILIES
    assert row.files
    for file in row.files:
        assert file.url.startswith("https://")
        assert (file.repo is None) == bool(file.address)
        assert re.fullmatch(r"main|[0-9a-f]{40}", file.revision)
        assert re.fullmatch(r"|[0-9a-f]{8}", file.sha256)
    assert row.licence.url.startswith("https://")
    assert re.fullmatch(r"[\d.]+[MB]", row.parameters)
    presets = {"var": VAR_SIZES, "mar": MAR_SIZES, "aim": AIM_SIZES, "aimv2": AIM_SIZES}
    assert row.preset is None or row.preset in presets[row.family]


def test_every_generator_has_its_tokenizer_among_the_rows() -> None:
    for family in FAMILIES.values():
        if isinstance(family, GeneratorFamily):
            assert OFFICIAL[family.tokenizer].family == family.tokenizer
            assert isinstance(FAMILIES[family.tokenizer], TokenizerFamily)


def test_published_facts() -> None:
    """Addresses, revisions, checksums and guidance of some rows, as their authors state them."""
    assert OFFICIAL["var-d30"].files[0].url == "https://huggingface.co/FoundationVision/var/resolve/main/var_d30.pth"
    backbone, head = OFFICIAL["aim-7b-best"].files
    assert (backbone.sha256, head.sha256) == ("184ed94c", "73ecd732")
    assert head.url == "https://huggingface.co/apple/AIM/resolve/main/aim_7b_5bimgs_attnprobe_head_best_layers.pth"
    layers = [
        OFFICIAL[name].config["feature_layers"][::5] for name in ("aim-1b", "aim-1b-best", "aim-7b", "aim-7b-best")
    ]
    assert layers == [(18, 23), (12, 17), (26, 31), (14, 19)]
    assert OFFICIAL["aimv2-large-patch14-native"].files[0].revision == "cfe7bdbbc924a5f65272d5e2c27fe5f61771a629"
    mar = OFFICIAL["mar-huge"]
    assert mar.licence == MAR
    assert mar.config["sampling"]["guidance_scale"] == 3.2
    assert mar.files[0].url.startswith(
        "https://www.dropbox.com/scl/fi/1qmfx6fpy3k7j9vcjjs3s/checkpoint-last.pth?rlkey="
    )
