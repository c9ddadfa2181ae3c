"""`genaim convert`: a model folder from an official file on this machine."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from apps.describe import kind_of, millions
from apps.progress import make_progress
from genaim.config import nearest
from genaim.models import GenerativeModel
from genaim.pretrained import OFFICIAL, load_tokenizer
from genaim.pretrained.convert import FAMILIES
from genaim.pretrained.convert import convert as convert_files
from genaim.pretrained.fetch import convert_official, save_converted
from genaim.pretrained.save import check_model_folder


def convert(family: str, files: Sequence[Path], out: Path, tokenizer: str | None) -> None:
    """Converts, writes and tells what was found.

    Args:
        family: A family, or the name of an official checkpoint, which the files must then be.
        files: The parts of the checkpoint.
        out: Folder to write.
        tokenizer: Name, folder or official file of a generator's tokenizer; None refers to the official one.

    Raises:
        ValueError: If a file is not of the family, or could run code, or the folder holds something else than a model.
    """
    check_model_folder(out)
    if family not in OFFICIAL and family not in FAMILIES:
        known = dict.fromkeys([*FAMILIES, *OFFICIAL])
        raise ValueError(f"'{family}' is neither a family nor an official name; {nearest(family, known)}.")
    own = None
    if tokenizer is not None:
        own = Path(tokenizer) if Path(tokenizer).is_file() else load_tokenizer(tokenizer, progress=make_progress())
    if family in OFFICIAL:
        converted = convert_official(family, files, own)
    else:
        converted = convert_files(family, files, tokenizer=own)
    save_converted(out, converted)
    model = converted.module
    print(f"{out}: {kind_of(model)}, {millions(model)} parameters")
    if isinstance(model, GenerativeModel):
        side, shared = model.tokenizer.image_size, converted.shared_tokenizer
        print(f"images {side}x{side}, classes {model.config.num_classes}, tokenizer {shared or 'in that folder'}")
        print(f"look at it with: genaim sample --model {shlex.quote(str(out))}")
