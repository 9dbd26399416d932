"""One tiny file set of each of the ten tasks below one root, as published."""

from pathlib import Path

from support.forms.bair import write_bair_npy
from support.forms.cityscapes import write_cityscapes_h5
from support.forms.enso import write_enso
from support.forms.human36m import write_human36m
from support.forms.kitti import write_kitti_png
from support.forms.kth import write_kth_frames
from support.forms.moving_mnist import write_mnist_gz
from support.forms.sevir import write_sevir
from support.forms.taxibj import write_taxibj_h5
from support.forms.traffic4cast import write_traffic4cast

WRITERS = {
    "taxibj": write_taxibj_h5,
    "traffic4cast": write_traffic4cast,
    "moving_mnist": write_mnist_gz,
    "bair": write_bair_npy,
    "human36m": write_human36m,
    "kth": write_kth_frames,
    "cityscapes": write_cityscapes_h5,
    "kitti": write_kitti_png,
    "sevir": write_sevir,
    "enso": write_enso,
}


def write_all(root: Path, *, seed: int = 0) -> None:
    """The ten; `unistd data check --data-root root` finds them all and nothing wrong with them."""
    for write in WRITERS.values():
        write(root, seed=seed)
