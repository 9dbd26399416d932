"""What somebody says about files of their own, so that they become a task."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn

from unistd.messages import shown
from unistd.metrics import DEFAULT_METRICS
from unistd.schema import PathText, Section
from unistd.tasks.spec import TaskSpec

FORMS = ("frames", "strips", "video", "npy", "hdf5", "xarray", "well")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_Patterns = Annotated[list[PathText], Field(min_length=1, max_length=1000)]
_Variable = Annotated[str, Field(min_length=1, max_length=200)]


class Splits(Section):
    """What is held out; the rest is trained on."""

    by: Literal["time", "file"] = "time"
    """'time': the last share of all frames is the test split and the one before it the val split; 'file': whole files
    (recordings of pictures: folders), drawn by their names"""
    val: Annotated[float, Field(gt=0, lt=1)] | _Patterns = 0.2
    """share of the frames or files, or a list of patterns of file names"""
    test: Annotated[float, Field(gt=0, lt=1)] | _Patterns = 0.2
    """likewise"""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if isinstance(self.val, list) != isinstance(self.test, list):
            raise ValueError("splits.val and splits.test: expected two shares, or two lists of patterns of file names")
        if not isinstance(self.val, list) and self.val + self.test >= 1:
            raise ValueError(
                f"splits.val and splits.test are {self.val:g} and {self.test:g}, expected less than 1 together"
            )
        return self

    @property
    def named(self) -> bool:
        """Whether files are listed by name."""
        return isinstance(self.val, list)


class OwnTask(Section):
    """A task of one's own. What is null is found out from the files, once; a run keeps what was found."""

    title: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    """name for people; null: the task's name"""
    discipline: Literal["traffic", "motion", "driving", "weather", "other"] = "other"
    """what kind of data it is; pictures are coloured by it"""
    files: PathText | _Patterns
    """pattern of the files' names, or several, as radar/**/*.png: below data.root, or, where that is null, below the
    folder of the description. A folder stands for all that is in it"""
    form: Literal["frames", "strips", "video", "npy", "hdf5", "xarray", "well"] | None = None
    """'frames': a picture a frame; 'strips': pictures of square frames side by side; 'video'; 'npy' (also .npz);
    'hdf5'; 'xarray' (netCDF, zarr); 'well': HDF5 of The Well; null: by the files' names"""
    variable: _Variable | Annotated[list[_Variable], Field(min_length=1, max_length=64)] | None = None
    """data set of an HDF5 file, variable of a netCDF, zarr or npz; of several each is a channel"""
    axes: Annotated[str, Field(pattern=r"^[ntchw]{3,5}$")] | None = None
    """what the axes of an array are, as nthwc: n sequences, t time, c channels, h, w; null: by their sizes"""
    time: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """where the times are: a data set or variable of stamps; of pictures, how names say it, as %Y-%m-%d_%H%M; null:
    frames follow one another, pictures by the last number in their names that changes"""
    interval: float | None = Field(None, gt=0, le=1e12)
    """from one frame to the next, in seconds, or in what times are counted in; null: the usual one. Where the step is
    less than half or more than one and a half times that, a recording has a break, which no sample crosses"""
    channels: int | None = Field(None, ge=1, le=64)
    """channels of a frame; of pictures and videos the first ones"""
    height: int | None = Field(None, ge=1, le=4096)
    """frame height in pixels; null: as in the files"""
    width: int | None = Field(None, ge=1, le=4096)
    """frame width in pixels"""
    fit: Literal["resize", "crop", "cover"] = "resize"
    """how files of another size are brought to it: 'resize', whatever that does to the aspect; 'crop': the middle;
    'cover': scaled until it covers the size, then its middle"""
    frames_in: int = Field(4, ge=1, le=1024)
    """frames the model sees"""
    frames_out: int = Field(4, ge=1, le=1024)
    """frames the model forecasts"""
    step: int = Field(1, ge=1, le=10_000)
    """every step-th frame of a recording is used"""
    stride: int = Field(1, ge=1, le=10**6)
    """frames of a recording between the beginnings of two samples"""
    patch: int | None = Field(None, ge=1, le=256)
    """pixels per side of a token; null: the power of two that makes about 256 tokens"""
    range: Literal["minmax"] | Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """values, of frames of the task's size, that become 0 and 1; 'minmax': the smallest and the largest of the train
    split; null: [0, 255] of bytes, else 'minmax'"""
    missing: bool | float | Annotated[list[float], Field(max_length=100)] = False
    """whether values may be missing: true where NaN stands for that, or the numbers that do, too"""
    splits: Splits = Splits()
    """what is held out"""
    unit: str = Field("1", min_length=1, max_length=40)
    """unit of the values"""
    metrics: list[str] | None = Field(None, max_length=64)
    """measures of the task, of unistd.metrics.MEASURES; null: those of any task"""
    thresholds: list[float] = Field(default=[], max_length=64)
    """of the events that csi and its like count, in `unit`, increasing"""

    @field_validator("range")
    @classmethod
    def _range_rises(cls, value: str | list[float] | None) -> str | list[float] | None:
        if isinstance(value, list) and not value[0] < value[1]:
            raise ValueError(f"expected two numbers, the second above the first, found {shown(value)}")
        return value

    @field_validator("axes")
    @classmethod
    def _axes_are_axes(cls, value: str | None) -> str | None:
        if value is not None and (len(set(value)) < len(value) or not set("thw") <= set(value)):
            raise ValueError(f"expected each letter once, t, h and w among them, found {value!r}")
        return value

    @model_validator(mode="after")
    def _sizes_go_together(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width: expected both or none of them")
        return self

    @property
    def patterns(self) -> list[str]:
        """`files` as a list."""
        return self.files if isinstance(self.files, list) else [self.files]

    @property
    def variables(self) -> list[str]:
        """`variable` as a list."""
        return [] if self.variable is None else self.variable if isinstance(self.variable, list) else [self.variable]

    @property
    def missing_values(self) -> list[float]:
        """The numbers that stand for nothing measured, beside NaN."""
        if isinstance(self.missing, bool):
            return []
        return self.missing if isinstance(self.missing, list) else [self.missing]

    @property
    def may_miss(self) -> bool:
        """Whether values may be missing."""
        return self.missing is not False

    @property
    def is_complete(self) -> bool:
        """Whether nothing has to be found out from the files any more."""
        found = (self.form, self.channels, self.height, self.patch)
        return None not in found and isinstance(self.range, list)

    def spec(self, name: str) -> TaskSpec:
        """Shapes and scale of the task, once it is complete; raises ValueError where they do not fit together."""
        low, high = self.range
        return TaskSpec(
            name=name,
            title=self.title or name,
            discipline=self.discipline,
            channels=self.channels,
            height=self.height,
            width=self.width,
            frames_in=self.frames_in,
            frames_out=self.frames_out,
            patch=self.patch,
            scale=high - low,
            offset=low,
            unit=self.unit,
            missing=self.may_miss,
            metrics=DEFAULT_METRICS if self.metrics is None else self.metrics,
            thresholds=self.thresholds,
        )


def check_name(name: str) -> None:
    """Raises ValueError for what cannot be the name of a task: it is a word in configs, and names parts of a model."""
    if not _NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"{shown(name)} cannot be the name of a task, expected a letter, then letters, digits and underscores, "
            "at most 40, and no word of torch's"
        )
