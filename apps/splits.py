"""Splits of data, read in order: those of a model's recipe, or what `--data` names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from genaim.config import data_root, find_recipe, load_config, recipes, validate
from genaim.data import BadFiles, Batch, DataConfig, ImageDataset, Sample, SourceConfig, build_dataset
from genaim.data.loader import Item, in_order
from genaim.data.sources import detect_format, split_folder, split_folders
from genaim.evaluation.image_sets import evenly
from genaim.pretrained import bundled
from genaim.training.config import parse_run


def data_for(model: str, given: str | None) -> DataConfig:
    """The data that a model is evaluated on, with a training and a held-out part.

    Args:
        model: Name or folder of the model: a run folder holds its recipe, a bundled model has the one of its name.
        given: What `--data` says: a recipe by name or file, a data set's path, or a YAML mapping: a recipe's key
            ``data``, or one data set, ``{path: photos, split: val}``, which is then both parts; None takes the model's
            recipe.

    Raises:
        ValueError: If the model has no recipe and nothing is given, or there is no such data.
    """
    if given is None:
        run = Path(model) / "config.yaml"
        if run.is_file():
            return located(parse_run(yaml.safe_load(run.read_text()), str(run)).data)
        if model in bundled() and model in recipes():
            given = model
        else:
            raise ValueError(
                f"'{model}' does not say which images it was trained on; give --data, or for FID --reference."
            )
    elif given.lstrip().startswith("{"):
        mapping = load_mapping(given)
        if mapping.keys() & {"train", "val"}:
            return validate(DataConfig, {"image_size": 1, **mapping}, "--data")
        source = validate(SourceConfig, mapping, "--data")
        return DataConfig(train=[source], val=[source], image_size=1)
    elif not is_recipe(given):
        train, val = (SourceConfig(path=given, split=split) for split in ("train", held_out_split(given)))
        return DataConfig(train=[train], val=[val], image_size=1)
    return parse_run(load_config(find_recipe(given)), given).data


def is_recipe(given: str) -> bool:
    """Whether `--data` names a recipe and no data set."""
    path = Path(given)
    return path.suffix in (".yaml", ".yml") or (given in recipes() and not path.exists())


def held_out_split(path: str) -> str:
    """What the held-out split of a data set is called; of a folder without one it is the whole folder."""
    if detect_format(SourceConfig(path=path)) != "folder":
        return "test"
    splits = split_folders(Path(path).expanduser())
    return next((name for name in ("test", "val") if name in splits), "train")


def load_mapping(text: str) -> dict[str, Any]:
    """A YAML mapping on the command line.

    Raises:
        ValueError: If it is something else.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"--data '{text}' is not a YAML mapping; write it as {{path: photos, split: val}}.")
    return found


def located(data: DataConfig) -> DataConfig:
    """The data of a run; where their folder is not on this machine, the one of that name in `data_root`."""

    def find(source: SourceConfig) -> SourceConfig:
        root = data_root()
        if Path(source.path).exists() or root is None:
            return source
        return source.model_copy(update={"path": str(root / Path(source.path).name)})

    return data.model_copy(update={"train": [find(s) for s in data.train], "val": [find(s) for s in data.val]})


@dataclass(frozen=True)
class Split:
    """Images of a part of the data, prepared as for validation."""

    dataset: ImageDataset
    """The whole part."""
    indices: list[int]
    """Which of its images are read, in order."""
    what: str
    """Such as ``500 of mnist (test), 10,000 images``."""
    bad_files: BadFiles
    """Counts those that cannot be read."""

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int, num_workers: int = 0) -> Iterator[Batch]:
        """The images in order; those that cannot be read are left out.

        Raises:
            ValueError: If too many cannot be read.
        """
        items: list[list[Item]] = [
            [(index, (0, index), row) for row, index in enumerate(self.indices[first : first + batch_size])]
            for first in range(0, len(self), batch_size)
        ]
        for batch in in_order(self.dataset, items, num_workers):
            self.bad_files.add(batch.bad, len(batch))
            yield batch

    def augmented(self, data: DataConfig) -> "Chosen":
        """The same images of the training part as training sees them, cropped and flipped as the data say."""
        sources = [source.model_copy(update={"limit": None}) for source in data.train]
        dataset = build_dataset(data.model_copy(update={"train": sources}), "train")
        assert isinstance(dataset, ImageDataset)
        return Chosen(dataset, self.indices)


class Chosen:
    """Some images of a data set, map-style."""

    def __init__(self, dataset: ImageDataset, indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices
        self.lengths, self.weights = [len(indices)], [1.0]

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Labels of some of them, see `ImageDataset.labels`."""
        return self.dataset.labels([self.indices[index] for index in indices])

    def sample(self, index: int, key: tuple[int, ...]) -> Sample:
        """One of them, see `ImageDataset.sample`."""
        return self.dataset.sample(self.indices[index], key)


def open_split(
    data: DataConfig, part: str, image_size: int, count: int | None = None, class_names: Sequence[str] | None = None
) -> Split:
    """Opens a part of the data.

    Args:
        data: The data.
        part: train or val.
        image_size: Side of the images.
        count: How many images, evenly over the part; None takes all.
        class_names: The numbering of classes of a model.

    Raises:
        ValueError: If there are no such data, or not so many images.
    """
    dataset = whole_split(data, part, image_size=image_size, class_names=class_names)
    total, what = len(dataset), in_words(dataset, data, part)
    if count is not None and not 1 <= count <= total:
        raise ValueError(f"{count:,} images are wanted of {what}; ask for 1 to {total:,}.")
    indices = evenly(range(total), count)
    if len(indices) < total:
        what = f"{len(indices):,} of {what}"
    return Split(dataset, indices, what, BadFiles(data.max_bad_share, total=len(indices)))


def whole_split(
    data: DataConfig, part: str, *, image_size: int | None = None, class_names: Sequence[str] | None = None
) -> ImageDataset:
    """A part of the data, train or val, prepared as for validation, without the limits of its recipe.

    Args:
        data: The data.
        part: train or val.
        image_size: Side of the images; None takes that of the data.
        class_names: The numbering of classes of a model.

    Raises:
        ValueError: If there are no such data, or they have no known length or are no images.
    """
    chosen = data.train if part == "train" else data.val
    if not chosen:
        raise ValueError(f"the recipe names no {part} data; give --data.")
    sources = [source.model_copy(update={"limit": None}) for source in chosen]
    size = {} if image_size is None else {"image_size": image_size}
    check_there(sources)
    dataset = build_dataset(data.model_copy(update={"val": sources, **size}), "val", class_names=class_names)
    if not isinstance(dataset, ImageDataset):
        kind = detect_format(sources[0])
        raise ValueError(
            f"'{sources[0].path}' ({kind}) cannot be read in any order as images; use a folder, IDX, parquet or a Hub "
            "data set that is not streamed."
        )
    return dataset


def check_there(sources: Sequence[SourceConfig]) -> None:
    """Raises ValueError for a data set that is not on this machine; recipes name theirs by whole paths."""
    for source in sources:
        path = Path(source.path).expanduser()
        pattern = source.path.endswith(".tar")  # such as x-{000..009}.tar
        if path.is_absolute() and not path.exists() and not pattern:
            raise ValueError(
                f"there is no data set '{path}'; set GENAIM_DATA to the folder that holds '{path.name}', or name other "
                "data by --data, for FID by --reference."
            )


def in_words(dataset: ImageDataset, data: DataConfig, part: str) -> str:
    """Such as ``mnist (test), 10,000 images``."""
    return f"{source_names(data, part)}, {len(dataset):,} images"


def source_names(data: DataConfig, part: str) -> str:
    """Such as ``mnist (test)``."""
    found = []
    for source in data.train if part == "train" else data.val:
        folder = Path(source.path).expanduser()
        whole = detect_format(source) == "folder" and not split_folder(folder, source.split)
        found.append(Path(source.path).name + ("" if whole else f" ({source.split})"))
    return " and ".join(found)
