"""Models of one's own on the Hub, as the folders that `genaim.pretrained.save` writes."""

from pathlib import Path
from tempfile import TemporaryDirectory

from genaim.config import one_line
from genaim.models import Encoder, GenerativeModel
from genaim.pretrained.save import CARD, FILES, save_model
from genaim.tokenizers import Tokenizer

TEMPLATE = """---
library_name: genaim
tags: [{tags}]
---

# {name}

A {kind} of {side}x{side} images, made with genaim.

    {command}
"""


def save_pretrained(module: GenerativeModel | Encoder | Tokenizer, folder: str | Path) -> None:
    """Writes a model folder, a generator's with its own copy of the tokenizer; `from_pretrained` reads it.

    Raises:
        ValueError: If the folder holds something else than a model.
    """
    save_model(Path(folder), module)


def push_to_hub(
    module: GenerativeModel | Encoder | Tokenizer,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    card: str | None = None,
    commit_message: str = "Upload a genaim model",
) -> str:
    """Uploads a model to a repository of the Hub, which is made if it is not there.

    Args:
        module: Generator, encoder or tokenizer.
        repo_id: ``owner/name``; `from_pretrained` takes it.
        private: Whether a new repository is private; None is the account's default.
        token: Access token; None takes that of the machine's login.
        card: Text of the README.md; None writes a short one, unless the repository has one.
        commit_message: Title of the commit.

    Returns:
        The address of the repository.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    url = str(api.create_repo(repo_id, private=private, exist_ok=True))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(folder, module)
        if card is not None or not api.file_exists(repo_id, CARD):
            (folder / CARD).write_text(card or default_card(module, repo_id))
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return url


def default_card(module: GenerativeModel | Encoder | Tokenizer, repo_id: str) -> str:
    """A short model card: what it is, and how to use it."""
    kind: str = getattr(module.config, "kind", type(module).__name__)
    if isinstance(module, GenerativeModel):
        side, command = module.tokenizer.image_size, f"genaim sample --model {repo_id}"
        return TEMPLATE.format(tags="image-generation", name=repo_id, kind=f"{kind} model", side=side, command=command)
    what = "encoder" if isinstance(module, Encoder) else "tokenizer"
    command = f"from genaim.pretrained import from_pretrained; {what} = from_pretrained({repo_id!r})"
    return TEMPLATE.format(tags=what, name=repo_id, kind=f"{kind} {what}", side=module.image_size, command=command)


def hub_folder(name: str) -> Path:
    """A local copy of a model on the Hub; the same files are downloaded once.

    Args:
        name: ``owner/name``.

    Raises:
        ValueError: If it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*FILES, CARD]))
    except Exception as error:  # of the library's HTTP client, which has changed from version to version
        reason = one_line(error)
        raise ValueError(
            f"there is no folder '{name}' here, and no model of that name can be had from the Hub ({reason}); check "
            "the path, or the name and the network."
        ) from None
    if not (folder / "config.json").is_file():
        raise ValueError(f"'{name}' on the Hub holds no config.json of a genaim model.")
    return folder
