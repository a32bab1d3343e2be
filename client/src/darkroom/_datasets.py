"""`client.datasets`: pictures to learn from. `_async_datasets` is its twin: change both."""

from collections.abc import Iterator
from contextlib import closing
from typing import Unpack

from darkroom import _dataset_calls
from darkroom._callers import Caller, Reader
from darkroom._dataset_calls import Invalid, SynthesisOptions
from darkroom._files import PictureFile
from darkroom._packing import Pictures, archive_of
from darkroom._paging import every
from darkroom._transfers import Told, Upload
from darkroom.types import Dataset, DatasetSummary
from darkroom.types.datasets import SynthesisRecipe


class DatasetLibrary:
    """The datasets that a service has. Each is named by the digest of its pictures and captions.

    >>> foxes = client.datasets.upload(picture_folder, prompt="a photo of sks fox")
    >>> [picture.file for picture in foxes.pictures]
    ['1.png', '2.png']
    """

    def __init__(self, call: Caller, read: Reader) -> None:
        self._call, self._read = call, read

    def upload(
        self,
        pictures: Pictures,
        *,
        prompt: str = "",
        invalid: Invalid = "refuse",
        name: str = "",
        progress: Told | None = None,
    ) -> Dataset:
        """Send pictures and get their dataset: a folder, an archive (zip, tar, tar.gz), or paths of pictures.

        PNG, JPEG and WebP are taken. `fox.txt` beside `fox.png` is its caption; pictures without one get `prompt`.
        A member that cannot be used refuses the upload, or, with `invalid="skip"`, is left out and listed in
        `.faults`. The same pictures again are the dataset that they were (`.existing`). `progress(sent, total)`
        hears of the bytes.

        Raises: `InvalidRequest` with all that is wrong in `.errors`; `ValueError` for an empty folder.
        """
        with archive_of(pictures) as archive:
            upload = Upload(archive, progress)
            return self._call(_dataset_calls.upload(upload, prompt=prompt, invalid=invalid, name=name))

    def synthesize(
        self,
        recipe: SynthesisRecipe | None = None,
        *,
        progress: Told | None = None,
        **options: Unpack[SynthesisOptions],
    ) -> Dataset:
        """Have the service make pictures: `"wrong"` is a set of bad ones, or give `prompts`. May take minutes.

        The same request again is the dataset that it was. `progress(done, total)` hears of the pictures. The client's
        `timeout` does not count, as the service says all the while that it is at work. Raises: `InvalidRequest` where
        it is not possible; `ConnectionFailed` where the connection breaks, and then nothing was kept: ask again.

        >>> bad = client.datasets.synthesize("wrong", seed=1)
        >>> len(bad.pictures), bad.pictures[0].caption
        (78, 'wrong')
        """
        call = _dataset_calls.synthesize(_dataset_calls.synthesis(recipe, options))
        with closing(self._read(call, _dataset_calls.of_synthesis)) as events:
            return next(made for event in events if (made := _dataset_calls.heard(event, progress)))

    def get(self, dataset: Dataset | DatasetSummary | str) -> Dataset:
        """A dataset by its id, with all its pictures. Raises: `NotFound`."""
        return self._call(_dataset_calls.get(dataset))

    def list(self) -> Iterator[DatasetSummary]:
        """All datasets, the newest first, page by page as you go."""
        yield from every(lambda cursor: self._call(_dataset_calls.page(cursor)))

    def picture(self, dataset: Dataset | DatasetSummary | str, place: int) -> PictureFile:
        """One picture as it is kept, by its place among `.pictures`, from 0. Raises: `NotFound`."""
        return self._call(_dataset_calls.picture(dataset, place))

    def delete(self, dataset: Dataset | DatasetSummary | str) -> None:
        """Delete a dataset; the same upload brings it back. Raises: `NotFound`."""
        self._call(_dataset_calls.delete(dataset))
