"""KITTI and NYUv2 against small folders and files as their makers, and those who use them, write them."""

import struct
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from sfa_ext import data
from sfa_ext.data.kitti import KITTI
from sfa_ext.data.nyuv2 import NYUv2, NYUv2Folders


def png16(path, values):
    """A PNG of 16 bits a pixel, written by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(data)


def picture(path, seed, size=(10, 14)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def depths(seed, size=(10, 14)):
    values = np.random.default_rng(seed).integers(1, 65536, size).astype(np.uint16)
    values[0, :3] = 0, 1, 65535
    return values


@pytest.fixture
def kitti(tmp_path):
    """Raw images as KITTI's archives unpack, depth maps as data_depth_annotated does, and an Eigen list."""
    drive, written, lines = "2011_09_26/2011_09_26_drive_0002_sync", {}, []
    for number, part in ((5, "train"), (12, "val")):
        image = f"{drive}/image_02/data/{number:010d}.png"
        depth = f"2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/{number:010d}.png"
        written[image.removesuffix(".png")] = picture(tmp_path / image, number), depths(number)
        png16(tmp_path / part / depth, written[image.removesuffix(".png")][1])
        lines.append(f"{image} {depth} 721.5377")
    lines.append(f"{drive}/image_02/data/0000000069.png None 721.5377")
    (tmp_path / "kitti_eigen_train.txt").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "eigen_test_files_with_gt.txt").write_text(f"/{lines[0]}\n")
    return tmp_path, written


def test_kitti_is_read_in_metres(kitti):
    root, written = kitti
    dataset = data.build("kitti", root=root)
    assert len(dataset) == 2 and dataset.class_names == () and dataset.palette.shape == (0, 3)
    for sample in dataset:
        image, values = written[sample["name"]]
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
        assert sample["depth"].dtype == torch.float32
        assert np.array_equal(sample["depth"].numpy(), values.astype(np.float64) / 256)  # exact in float32
    assert sample["depth"][0, :3].tolist() == [0, 1 / 256, 65535 / 256]


def test_a_list_may_have_other_names_and_leading_slashes(kitti):
    root, _ = kitti
    (root / "mine").mkdir()
    (root / "eigen_test_files_with_gt.txt").rename(root / "mine" / "list.txt")
    with pytest.raises(data.DataError, match="holds none of kitti_eigen_test.txt, .* the list of the test split"):
        KITTI(root, "test")
    assert len(data.build("kitti", root=root, split="test", list="mine/list.txt")) == 1


@pytest.mark.parametrize("gone", ["image_02/data/0000000005.png", "groundtruth/image_02/0000000012.png"])
def test_a_missing_file_of_a_list_is_named_before_training(kitti, gone):
    root, _ = kitti
    next(f for f in root.rglob("*.png") if str(f).endswith(gone)).unlink()
    with pytest.raises(data.DataError, match=f"{gone}: is missing; unpack .*`sfa data check {root}` names all"):
        data.build("kitti", root=root)


def test_bad_lists_and_depth_maps_are_named(kitti):
    root, _ = kitti
    (root / "kitti_eigen_train.txt").write_text("a.png b.png 1\nonly.png\n")
    with pytest.raises(data.DataError, match='kitti_eigen_train.txt: line 2 must be "image depth focal-length", got'):
        KITTI(root)
    (root / "kitti_eigen_train.txt").write_text("a.png None 1\n")
    with pytest.raises(data.DataError, match="kitti_eigen_train.txt: names no image with a depth map"):
        KITTI(root)
    with pytest.raises(data.DataError, match="nothing.txt: no such file"):
        KITTI(root, list="nothing.txt")
    depth = next(root.glob("train/*/proj_depth/groundtruth/image_02/*.png"))
    picture(depth, 0)
    with pytest.raises(data.DataError, match="0000000005.png: must hold two bytes a pixel, got mode RGB"):
        KITTI(root, "test")[0]
    png16(depth, depths(0, (9, 14)))
    with pytest.raises(data.DataError, match="0000000005.png: is 14 x 9 pixels but its image .* is 14 x 10"):
        KITTI(root, "test")[0]
    depth.write_bytes(depth.read_bytes()[:60])
    with pytest.raises(data.DataError, match="0000000005.png: cannot be read, it is truncated or no image"):
        KITTI(root, "test")[0]


def test_nyuv2_in_folders_is_read_in_metres(tmp_path):
    values = depths(3)
    pixels = picture(tmp_path / "sync" / "kitchen_0028b" / "rgb_00045.png", 3)
    png16(tmp_path / "sync" / "kitchen_0028b" / "sync_depth_00045.png", values)
    line = "/kitchen_0028b/rgb_00045.png /kitchen_0028b/sync_depth_00045.png 518.8579\n"
    (tmp_path / "nyudepthv2_train_files_with_gt.txt").write_text(line)
    sample = data.build("nyuv2-folders", root=tmp_path)[0]
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(sample["depth"].numpy(), values.astype(np.float32) / np.float32(1000))
    assert sample["name"] == "kitchen_0028b/rgb_00045"
    assert NYUv2Folders(tmp_path).class_names == ()


MATLAB = {"height": 12, "width": 16, "count": 7}


def write_mat(path, numbers, splits_version="5"):
    """The labelled set as MATLAB saves it: a HDF5 file in which the first dimension of a matrix is counted fastest."""
    h, w, n = MATLAB.values()
    images = numbers.integers(0, 256, (h, w, 3, n), np.uint8)  # as MATLAB sees them
    filled = numbers.uniform(0.7, 9.9, (h, w, n)).astype(np.float32)
    raw = np.where(numbers.random((h, w, n)) < 0.2, 0, filled).astype(np.float32)
    with h5py.File(path / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, matrix in {"images": images, "depths": filled, "rawDepths": raw}.items():
            flat = matrix.flatten(order="F")
            file.create_dataset(name, data=flat.reshape(matrix.shape[::-1]), chunks=True, compression="gzip")
    train, test = np.array([[1], [4], [7]], np.uint16), np.array([[6], [2], [3], [5]], np.uint16)
    if splits_version == "5":
        scipy.io.savemat(path / "splits.mat", {"trainNdxs": train, "testNdxs": test})
    else:
        with h5py.File(path / "splits.mat", "w", userblock_size=512) as file:
            file["trainNdxs"], file["testNdxs"] = train.T, test.T
    return images, filled, raw


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_the_labelled_set_is_read_upright_with_its_official_split(tmp_path, version):
    images, filled, raw = write_mat(tmp_path, np.random.default_rng(0), version)
    for split, rows in {"train": [0, 3, 6], "test": [1, 2, 4, 5], "all": range(7)}.items():
        dataset = data.build("nyuv2", root=tmp_path, split=split)
        assert [s["name"] for s in dataset] == [f"{r + 1:04d}" for r in rows]
        for row, sample in zip(rows, dataset, strict=True):
            assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), images[..., row])
            assert np.array_equal(sample["depth"].numpy(), raw[..., row]) and sample["depth"].dtype == torch.float32
    assert np.array_equal(NYUv2(tmp_path, "test", depths="filled")[3]["depth"].numpy(), filled[..., 5])


def test_several_processes_read_the_same_bits(tmp_path):
    write_mat(tmp_path, np.random.default_rng(0))
    dataset = NYUv2(tmp_path, "all")
    first = [s["image"] for s in dataset]
    transform = data.eval_loader(dataset, 1, workers=2)
    for image, batch in zip(first, transform, strict=True):
        assert torch.equal(batch["image"][0], data.normalise(image))


def test_what_is_wrong_with_the_mat_files_is_named(tmp_path):
    with pytest.raises(data.DataError, match="nyu_depth_v2_labeled.mat: no such file"):
        NYUv2(tmp_path)
    write_mat(tmp_path, np.random.default_rng(0))
    (tmp_path / "splits.mat").rename(tmp_path / "kept")
    with pytest.raises(data.DataError, match="splits.mat: no such file; it comes with NYU Depth v2"):
        NYUv2(tmp_path, "test")
    assert len(NYUv2(tmp_path, "all")) == 7
    (tmp_path / "splits.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(data.DataError, match="splits.mat: cannot be read, it is truncated or no MATLAB file"):
        NYUv2(tmp_path, "test")
    scipy.io.savemat(tmp_path / "splits.mat", {"testNdxs": [8]})
    with pytest.raises(data.DataError, match="splits.mat: testNdxs must be numbers of the 7 images, from 1"):
        NYUv2(tmp_path, "test")
    with pytest.raises(data.DataError, match="splits.mat: holds no trainNdxs"):
        NYUv2(tmp_path, "train")
    mat = tmp_path / "nyu_depth_v2_labeled.mat"
    mat.write_bytes(mat.read_bytes()[:-200])
    with pytest.raises(data.DataError, match="labeled.mat: cannot be read, it is truncated or no MATLAB 7.3 file"):
        NYUv2(tmp_path, "all")
    with h5py.File(mat, "w") as file:
        file["images"] = np.zeros((2, 4, 5, 3), np.uint8)
        file["rawDepths"] = np.zeros((2, 4, 5), np.float32)
    with pytest.raises(data.DataError, match="images must be H x W x 3 x N and rawDepths H x W x N; got"):
        NYUv2(tmp_path, "all")
    with pytest.raises(ValueError, match="depths must be one of raw, filled; got 'cooked'"):
        NYUv2(tmp_path, depths="cooked")


def test_a_damaged_block_of_the_mat_file_names_the_image(tmp_path):
    write_mat(tmp_path, np.random.default_rng(0))
    mat = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(mat, "r") as file:
        place = file["images"].id.get_chunk_info(0)
    whole = bytearray(mat.read_bytes())
    whole[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    mat.write_bytes(bytes(whole))
    with pytest.raises(data.DataError, match="labeled.mat: image 1 cannot be read, the file is damaged"):
        NYUv2(tmp_path, "all")[0]
