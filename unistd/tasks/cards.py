"""A data card for each task: what is in the data, how they were made, what they are not for, where they come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What people have to know of a data set before they train on it.

    Args:
        content: what a frame shows.
        made: how the data came about.
        limits: what they must not be used for, or do not show.
        source: where they are to be had, and the paper to cite.
        licence: as far as it is known.
        forms: layouts below the root that are read, the fastest first.
        splits: which samples are train, val and test.
        prepare: what to do before the first run; "" where nothing is.
    """

    content: str
    made: str
    limits: str
    source: str
    licence: str
    forms: tuple[str, ...]
    splits: str
    prepare: str = ""


_SLOW = "`unistd data prepare {} SRC DST`, once: the published form is slow to read"

CARDS: dict[str, Card] = {
    "taxibj": Card(
        content="Taxis that enter (channel 0) and leave (1) each cell of a 32 x 32 grid over Beijing in half an hour.",
        made="Counted from GPS tracks of taxis in four spans of 2013 to 2016; 7 % of the half hours are missing.",
        limits="Taxis are not traffic, and not people: no statements on single persons, streets or other cities.",
        source="DeepST (Zhang, Zheng, Qi: Deep Spatio-Temporal Residual Networks, AAAI 2017); OpenSTL's release v0.1.0",
        licence="none stated; cite the paper",
        forms=(
            "taxibj/BJ16_M32x32_T30_InOut.h5 and its like (DeepST)",
            "taxibj/train.npy, val.npy, test.npy (PredBench)",
            "taxibj/dataset.npz (OpenSTL)",
        ),
        splits="DeepST: the last 28 days (1,344 half hours) are test, the 28 before them val, train the rest (BJ16 has"
        " 7,220); the others: as published, the last twentieth of train is val where none is",
    ),
    "traffic4cast": Card(
        content="Volume and speed of vehicles by direction (NE, NW, SE, SW), cells of 100 m, every 5 minutes of a day.",
        made="Aggregated by HERE from the probe points of a fleet, 2019 and 2020, scaled to 8 bits.",
        limits="Volumes are relative to the fleet, not counts; speed 0 also means that nobody was there.",
        source="IARAI's Traffic4cast 2021 (developer.here.com/sample-data)",
        licence="academic and non-commercial use",
        forms=(
            "traffic4cast/CITY/training/2019-01-02_CITY_8ch.h5, and index.txt, the release's list of files, if at hand",
        ),
        splits="of each city the last tenth of its days (those of index.txt) is test, the tenth before it val:"
        " of the release's 2,164 days 1,732, 216 and 216, 28 samples each",
        prepare=_SLOW.format("traffic4cast"),
    ),
    "moving_mnist": Card(
        content="Two handwritten digits that move straight and bounce off the borders of a 64 x 64 frame.",
        made="Put together from MNIST's digits; the test sequences by Srivastava et al. (ICML 2015).",
        limits="A toy: the motion is exact and knows no noise; no evidence for anything but other toys.",
        source="www.cs.toronto.edu/~nitish/unsupervised_video, and MNIST",
        licence="MNIST: CC BY-SA 3.0 by most accounts; the test sequences: none stated",
        forms=(
            "moving_mnist/{train,t10k}-images-idx3-ubyte(.gz) (MNIST)",
            "MNIST/raw/{train,t10k}-images-idx3-ubyte(.gz) (torchvision)",
            "moving_mnist/mnist_test_seq.npy (20, n, 64, 64), MovingMNIST/mnist_test_seq.npy (torchvision)",
            "moving_mnist/mnist_test_seq.npy, mnist_val_seq_1.npy (n, 20, 64, 64) (PredBench)",
            "moving_mnist/mm_dis01_seq0.npy (1, 20, 64, 64), floats in [0, 1] (Earthformer)",
        ),
        splits="train and val from disjoint digits of the training file, test as published, or from other digits",
    ),
    "bair": Card(
        content="A robot arm that pushes toys about in a box, seen by a fixed camera, 64 x 64, 30 frames.",
        made="Random motions of a Sawyer arm (Ebert et al., CoRL 2017).",
        limits="The arm moves at random: soon many futures are right, which a mean error does not honour.",
        source="rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar",
        licence="not verified; CC BY 4.0 is often cited",
        forms=("bair/train.npy, val.npy, test.npy (PredBench)", "softmotion30_44k/{train,test}/*.tfrecords"),
        splits="43,264 train and 256 test sequences as published; val is the last twentieth of train where none is",
        prepare=_SLOW.format("bair"),
    ),
    "human36m": Card(
        content="One person who walks, sits, eats and so on in a studio, 256 x 256 here; every fifth frame.",
        made="Four cameras filmed eleven actors (Ionescu et al., PAMI 2014).",
        limits="Shows persons who agreed to research only: no identification. The customary split is over clips:"
        " the same persons and scenes are in all of its parts.",
        source="vision.imar.ro/human3.6m (registration); lists of clips: OpenSTL",
        licence="academic use only, not to be redistributed",
        forms=("human/images/*.jpg with train.txt, test.txt (and val.txt)",),
        splits="as listed: 73,404 train and 8,582 test clips (OpenSTL), 66,063, 7,341 and 8,582 (PredBench); val is the"
        " last twentieth of train where none is listed",
        prepare=_SLOW.format("human36m"),
    ),
    "kth": Card(
        content="25 persons who box, clap, wave, walk, jog and run before a plain background, grey.",
        made="Filmed with a fixed camera, 160 x 120, 25 frames a second (Schuldt, Laptev, Caputo, ICPR 2004).",
        limits="Shows persons: research on motion only, no identification.",
        source="www.csc.kth.se/cvap/actions; as pictures: OpenSTL's releases",
        licence="free for research, as far as known",
        forms=(
            "kth/ACTION/personNN_ACTION_dM_uncomp/image_0001.jpg",
            "kth/ACTION/personNN_ACTION_dM_uncomp.avi with 00sequences.txt",
        ),
        splits="persons 1-14 train, 15-16 val, 17-25 test, of 2,391 sequences together",
        prepare=_SLOW.format("kth"),
    ),
    "cityscapes": Card(
        content="Streets of German cities from a driving car, 30 frames each, 128 x 128 here.",
        made="Filmed by day in fair weather, 2048 x 1024 (Cordts et al., CVPR 2016).",
        limits="Non-commercial; no statement on night, rain or other countries.",
        source="www.cityscapes-dataset.com (registration), package leftImg8bit_sequence",
        licence="non-commercial, not to be redistributed",
        forms=(
            "Cityscapes128_h5/{train,val,test}/shard_0001.hdf5 (MCVD)",
            "leftImg8bit_sequence/{train,val,test}/CITY/*_leftImg8bit.png",
        ),
        splits="as published, by city: 2,975, 500 and 1,525 videos; three samples each in train and val, one in test",
        prepare=_SLOW.format("cityscapes"),
    ),
    "kitti": Card(
        content="Streets in and around Karlsruhe from a driving car, 128 x 160 here, 10 frames a second.",
        made="Filmed by day, 1242 x 375 (Geiger et al., IJRR 2013).",
        limits="Non-commercial; one city, one season.",
        source="www.cvlibs.net/datasets/kitti/raw_data.php; PredNet's hkl files",
        licence="CC BY-NC-SA 3.0, not verified",
        forms=(
            "kitti_hkl/X_train.hkl with sources_train.hkl (PredNet)",
            "kitti/DATE/DATE_drive_NNNN_sync/image_02/data/0000000000.png",
            "kitti/DATE_drive_NNNN_sync/0.png and so on, with train.json, val.json, test.json or without (PredBench)",
        ),
        splits="by drive: the last tenth is test, the tenth before it val; as listed (PredBench: 50, 6 and 6 drives) or"
        " published (PredNet) where lists or files say it",
        prepare=_SLOW.format("kitti"),
    ),
    "sevir": Card(
        content="Storms over the United States: vertically integrated liquid (VIL) by radar, 384 km wide, every 5 min.",
        made="NEXRAD mosaics around storm reports and random events of 2017 to 2019 (Veillette et al., NeurIPS 2020).",
        limits="Chosen for storms: rain rates are no climatology. Not a warning system.",
        source="registry.opendata.aws/sevir (aws s3 cp --no-sign-request s3://sevir/...)",
        licence="no restrictions on use",
        forms=("sevir/CATALOG.csv with sevir/data/vil/YEAR/SEVIR_VIL_*.h5 (or vis, ir069, ir107 alone)",),
        splits="by time: train to 2019-01-01, val to 2019-06-01, test after; three samples an event",
    ),
    "enso": Card(
        content="Monthly anomalies of the sea-surface temperature of the Pacific, 24 x 48 cells of 5 degrees.",
        made="Simulations of CMIP5 and CMIP6, put together for a contest by ICAR.",
        limits="Climate models, not observations: skill on them is no skill on the real El Niño.",
        source="tianchi.aliyun.com/dataset/98942 (registration)",
        licence="not verified",
        forms=("enso_round1_train_20210201/CMIP_train.nc",),
        splits="15 runs of CMIP6 and 15 of CMIP5 train, the last but one of CMIP5 val, the last test: 52,350, 1,679 and"
        " 1,679 samples",
    ),
}
