"""Reader of KITTI's depth: raw images with the annotated depth maps, by lists of files such as the Eigen split's."""

from __future__ import annotations

from sfa_ext.data.depth_lists import DepthList


class KITTI(DepthList):
    """KITTI: 16-bit PNG with 256 units a metre, 0 where the laser measured nothing. Arguments and samples: `DepthList`.

    The Eigen split (23158 training images with depth, 652 of 697 test images) is not part of the data set; its lists
    are published with most depth estimators under the names in `lists`. The depth maps may lie as
    data_depth_annotated.zip unpacks (train, val), or together in one folder.
    """

    marks = ("kitti_eigen_*.txt", "eigen_*_files_with_gt.txt", "*_drive_*_sync", "*/*_drive_*_sync")
    lists = {
        "train": ("kitti_eigen_train.txt", "eigen_train_files_with_gt.txt", "train.txt"),
        "test": ("kitti_eigen_test.txt", "eigen_test_files_with_gt.txt", "test.txt"),
    }
    scale = 256.0
    image_folders = ("", "input", "raw")
    depth_folders = ("", "gt_depth", "train", "val", "data_depth_annotated/train", "data_depth_annotated/val")
