"""What `genaim evaluate fid` and `rfid` compare with: images of data sets, folders and files, or statistics alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from apps.extractors import NamedExtractor
from apps.quality_request import WORDS, QualityRequest
from apps.splits import data_for, is_recipe, source_names, whole_split
from genaim.data import ImageDataset, SourceConfig
from genaim.data.sources import detect_format, digest
from genaim.evaluation.extractors import INCEPTION
from genaim.evaluation.image_sets import ImageSet, evenly, from_folder, real, size_in_words, some
from genaim.evaluation.npz import ReferenceFile, read_npz
from genaim.evaluation.quality import Statistics, check_count


@dataclass(frozen=True)
class LoadedReference:
    """Images, or statistics alone."""

    name: str
    images: ImageSet | None
    statistics: Statistics | None = None
    count: int | None = None
    """Number of images, also of those behind statistics; None where these do not say it."""
    size: tuple[int, int] | None = None
    """Their height and width; None as above."""
    data: ImageDataset | None = None
    """The data set that the images are of."""
    chosen: tuple[int, ...] = ()
    """Which of its images are compared."""
    others: tuple[int, ...] = ()
    """Which could have been, and are not."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures should know."""

    @property
    def digest(self) -> str:
        """Equal for equal content."""
        if self.statistics is None:
            assert self.images is not None
            return self.images.key
        parts = [hashlib.sha256(np.ascontiguousarray(part).data).hexdigest() for part in self.statistics]
        return digest("statistics", parts, None if self.images is None else self.images.key)


def find_reference(
    request: QualityRequest,
    given: str,
    size: tuple[int, int],
    classes: Sequence[int] | None,
    class_names: Sequence[str] | None,
    extractor: NamedExtractor,
) -> LoadedReference:
    """The images or statistics of a reference.

    Args:
        request: What is asked for.
        given: What ``--reference`` says.
        size: Height and width of the measured images; those of a data set are brought to it, files are taken as they
            are.
        classes: Which are compared; None takes all.
        class_names: Their numbering; None takes the reference's own.
        extractor: Which statistics must be of.

    Raises:
        ValueError: If there are none, or they are of another extractor.
    """
    if given.endswith(".npz"):
        return _from_file(Path(given), request.reference_count, classes is not None, extractor)
    if request.sampling is None and _is_image_folder(given):
        images = some(from_folder(Path(given)), request.reference_count)
        return LoadedReference(Path(given).name, images, count=images.count, size=images.size)
    if size[0] != size[1]:
        raise ValueError(
            f"images of data sets are square, and those of '{request.images}' have {size_in_words(size)} pixels; "
            "give a folder of such images by --reference."
        )
    part = given if given in WORDS else "train"
    config = data_for(request.sampling.model if request.sampling else given, None if given in WORDS else given)
    data = whole_split(config, part, image_size=size[0], class_names=class_names)
    return _from_data(source_names(config, part), data, request.reference_count, classes)


def _from_file(path: Path, count: int | None, by_class: bool, extractor: NamedExtractor) -> LoadedReference:
    file = read_npz(path)
    check_extractor(path.name, file, extractor)
    notes = [f"'{path.name}' does not tell classes: all of it is compared, not the --classes alone"] if by_class else []
    if file.images is not None:
        images = some(file.images, count)
        # Statistics are of all images, so they do not stand for some of them.
        statistics = file.statistics if images is file.images else None
        return LoadedReference(path.name, images, statistics, images.count, images.size, notes=tuple(notes))
    if file.size is None:
        notes.append(f"'{path.name}' does not say of which size its images were: unknown")
    return LoadedReference(path.name, None, file.statistics, file.count, file.size, notes=tuple(notes))


def _from_data(name: str, data: ImageDataset, count: int | None, classes: Sequence[int] | None) -> LoadedReference:
    candidates: Sequence[int] = range(len(data))
    if classes is not None:
        labels = data.labels(candidates).tolist()
        candidates = [i for i in candidates if labels[i] in classes]
        check_count(len(candidates), f"images of '{name}' in these --classes")
    chosen = evenly(candidates, count)
    others = sorted(set(candidates) - set(chosen))
    images = real(name, data, chosen)
    return LoadedReference(
        name,
        images,
        count=images.count,
        size=images.size,
        data=data,
        chosen=tuple(chosen),
        others=tuple(others),
        notes=_resized(name, data, chosen[0]),
    )


def _resized(name: str, data: ImageDataset, index: int) -> tuple[str, ...]:
    """A note where images of a data set are not compared in the size that they have, as far as the first one tells."""
    which, local = data.place(index)
    side = data.transform.image_size
    try:
        image = data.sources[which].read(local)[0]
    except Exception:  # decoders raise any type; the file will be named when the images are read
        return ()
    if not isinstance(image, Image.Image) or image.size == (side, side):
        return ()
    width, height = image.size
    return (f"images of '{name}' are cropped and resized to {side}x{side} pixels; the first one has {width}x{height}",)


def _is_image_folder(given: str) -> bool:
    return Path(given).is_dir() and detect_format(SourceConfig(path=given)) == "folder"


def images_of(given: str, size: int | None) -> ImageSet:
    """Images by themselves: of a recipe or data set, prepared as for validation, or of files as they are.

    Raises:
        ValueError: If there are none.
    """
    path = Path(given)
    if path.suffix == ".npz":
        images = read_npz(path).images
        if images is None:
            raise ValueError(f"'{path}' holds statistics and no images arr_0; give images.")
        return images
    if size is None and _is_image_folder(given):
        return from_folder(path)
    if not path.exists() and not is_recipe(given) and not given.startswith("{"):
        raise ValueError(f"there is no '{given}'; give a folder of images, an npz file of arr_0, or a recipe.")
    if size is None and not is_recipe(given):
        raise ValueError(
            f"the images of '{given}' may differ in size; name a recipe, which says it, or where there is a --size "
            "(genaim evaluate statistics) give that."
        )
    config = data_for(given, given)
    data = whole_split(config, "train", image_size=size)
    return real(source_names(config, "train"), data, range(len(data)))


def check_extractor(name: str, file: ReferenceFile, extractor: NamedExtractor) -> None:
    """Raises ValueError if a file has statistics of another extractor; ADM's do not say it, and are of Inception."""
    of = file.extractor or INCEPTION
    if file.statistics is not None and of not in (extractor.name, extractor.identity):
        raise ValueError(
            f"'{name}' holds statistics of extractor '{of}', and this is '{extractor.identity}'; use one for both."
        )


def floor_images(reference: LoadedReference, count: int) -> ImageSet:
    """As many other images of a reference's data set.

    Raises:
        ValueError: If there are not so many.
    """
    if reference.data is None:
        raise ValueError("--floor needs a data set as the first --reference.")
    if len(reference.others) < count:
        raise ValueError(
            f"--floor needs {count} images besides the reference's {len(reference.chosen)}, and '{reference.name}' has "
            f"{len(reference.others)} more; lower -n or --reference-count."
        )
    return real(f"{reference.name}, others", reference.data, evenly(reference.others, count))


def check_sizes(images: ImageSet, reference: LoadedReference) -> None:
    """Raises ValueError if images and reference differ in size, which extractors would hide by resizing."""
    if reference.size is not None and reference.size != images.size:
        told = "is of images" if reference.images is None else "begins with an image"
        raise ValueError(
            f"'{images.name}' has images of {size_in_words(images.size)} pixels, and reference '{reference.name}' "
            f"{told} of {size_in_words(reference.size)}; resize one of them."
        )
