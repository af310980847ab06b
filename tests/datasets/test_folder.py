"""Folders of images as data sets: classes, splits, CelebA."""

import numpy as np
import pytest
from comparing import last
from pictures import grey, levels, save

from gancli.datasets.folder import CelebA, Folder, natural_order
from gancli.errors import SettingError, UserError
from gancli.training.run_folder import RunFolder


def test_rectangular_and_grey_images(photos, read_folder):
    assert read_folder(photos, resolution=[4, 6]).shape == (3, 4, 6)
    data = read_folder(photos, resolution=[6, 4], channels=1)
    assert data.shape == (1, 6, 4) and levels(data) == list(range(0, 200, 20))


def test_top_folders_are_the_classes(tmp_path, read_folder):
    for name, level in (("cat", 10), ("ant", 20), ("bee", 30)):
        for number in range(3):
            save(tmp_path / "in" / name / f"sub{number}" / "a.png", grey(level))
    data = read_folder(tmp_path / "in", labels=True)
    assert data.num_classes == 3
    assert {(int(row[0, 0, 0]), int(label)) for row, label in zip(data.images, data.labels, strict=True)} == {
        (20, 0),
        (30, 1),
        (10, 2),
    }
    save(tmp_path / "in" / "loose.png", grey(1))
    with pytest.raises(UserError, match=r"dataset\.labels=true: .* outside of class folders, such as loose\.png"):
        read_folder(tmp_path / "in", labels=True)


@pytest.mark.parametrize("parts", [("test",), ("Val",), ("VALIDATION",), ("val", "TEST")])
def test_folders_train_and_test_are_the_split(tmp_path, read_folder, parts):
    for part in ("Train", *parts):
        for name in ("cat", "dog"):
            for number in range(4 if part == "Train" else 2):
                level = number + 10 * (name == "dog") + 100 * (part != "Train")
                save(tmp_path / "in" / part / name / f"{number}.png", grey(level))
    data = read_folder(tmp_path / "in", labels=True)
    assert (len(data), len(data.holdout_indices), data.num_classes) == (8, 4 * len(parts), 2)
    assert (data.images[data.train_indices] < 100).all() and (data.images[data.holdout_indices] >= 100).all()
    assert data.labels[data.holdout_indices].tolist() == [0, 0, 1, 1] * len(parts)


def test_a_folder_train_beside_others_is_a_class(tmp_path, read_folder):
    for part in ("train", "test", "more"):
        for number in range(5):
            save(tmp_path / "in" / part / f"{number}.png", grey(number))
    data = read_folder(tmp_path / "in", labels=True, holdout=0.2)
    assert (len(data), len(data.holdout_indices), data.num_classes) == (12, 3, 3)


def test_a_folder_around_all_others_is_not_a_class(tmp_path, read_folder):
    for kind in ("cat", "dog"):
        for number in range(4):
            save(tmp_path / "zipped" / "photos" / kind / f"{number}.png", grey(40 * number))
    assert read_folder(tmp_path / "zipped", labels=True).num_classes == 2


@pytest.mark.parametrize(
    "settings",
    [
        *({"resolution": 0}, {"resolution": [4]}, {"holdout": 0.0}, {"holdout": 1.0}, {"limit": 0}),
        *({"white": 0.0}, {"path": ""}),
    ],
)
def test_wrong_settings_are_refused(photos, settings):
    with pytest.raises(SettingError, match=f"{next(iter(settings))}="):
        Folder(**{"path": str(photos), **settings})


def test_celebas_test_part_is_held_out_and_every_tenth_where_no_list_tells(tmp_path):
    settings = {"root": str(tmp_path), "download": False, "resolution": 8, "cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"CelebA is not there, and dataset\.download=false") as caught:
        CelebA(**settings)
    assert str(tmp_path / "celeba" / "img_align_celeba") in str(caught.value)
    for number in range(20):
        save(tmp_path / "celeba" / "img_align_celeba" / f"{number:06}.jpg", grey(10 * number), size=(18, 22))
    data = CelebA(**settings)
    assert (len(data), data.holdout_indices.tolist(), data.shape, data.flip) == (18, [0, 10], (3, 8, 8), True)
    rows = [f"{number:06}.jpg {2 if number > 15 else number % 2}" for number in range(20)]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    assert CelebA(**settings).holdout_indices.tolist() == [16, 17, 18, 19]


def test_classes_are_in_natural_order_and_the_log_shortens_only_itself(tmp_path, read_folder, caplog):
    caplog.set_level("INFO")
    names = [str(number) for number in range(25)]
    for name in names:
        for number in range(2):
            save(tmp_path / "in" / name / f"{number}.png", grey(int(name)))
    data = read_folder(tmp_path / "in", labels=True)
    assert data.class_names == names and data.images[:, 0, 0, 0].tolist() == data.labels.tolist()
    assert "classes: 0 0, 1 1, 2 2," in caplog.text and "19 19 and 5 more" in caplog.text
    assert sorted(["b10", "b9", "a", "b09", "10", "9", "B"], key=natural_order) == [
        "9",
        "10",
        "B",
        "a",
        "b09",
        "b9",
        "b10",
    ]


def test_classes_without_an_image_to_train_on_are_named(tmp_path, read_folder, caplog):
    for name, part in (("cat", "train"), ("dog", "train"), ("dog", "test"), ("bee", "test")):
        for number in range(3):
            save(tmp_path / "in" / part / name / f"{number}.png", grey(number))
    (tmp_path / "in" / "train" / "empty").mkdir()
    (tmp_path / "in" / "outputs").mkdir()
    data = read_folder(tmp_path / "in", labels=True)
    assert data.class_names == ["bee", "cat", "dog"]
    assert "class folders without an image to train on: bee, empty" in caplog.text


def test_one_image_is_too_few(tmp_path, read_folder):
    save(tmp_path / "in" / "a.png", grey(0))
    with pytest.raises(UserError, match=r"has 1, and at least 2 are needed, .* \(dataset\.holdout\)"):
        read_folder(tmp_path / "in")


def test_a_split_beside_other_folders_is_told(tmp_path, read_folder, caplog):
    for part in ("train", "test", "more"):
        save(tmp_path / "in" / part / "a.png", grey(1))
    read_folder(tmp_path / "in")
    assert "folders test, train are not taken as the split, since beside them there are more" in caplog.text


def test_a_run_goes_on_with_the_same_images_only_wherever_they_lie(photos, train, read_folder):
    words = ["dataset=folder", "dataset.resolution=16", "train.batch_size=4", "log.holdout=1", "diagnostic=none"]
    run = train(*words, f"dataset.path={photos}", images=8)
    photos = photos.rename(photos.with_name("moved"))
    before = read_folder(photos, resolution=16).content_hash
    assert last(run)["content_hash"] == before
    train(*words, f"dataset.path={photos}", "resume=auto", images=12)
    save(photos / "1" / "deep" / "3.png", grey(61))
    with pytest.raises(UserError, match=r"other images than it had(.|\n)*dataset\.path=…(.|\n)*init=.*run"):
        train(*words, f"dataset.path={photos}", "resume=auto", images=16)
    save(photos / "1" / "deep" / "33.png", grey(61))
    with pytest.raises(UserError, match="had 9 samples, and has 10 now"):
        train(*words, f"dataset.path={photos}", "resume=auto", images=16)


def test_the_names_of_classes_stay_with_the_run(tmp_path, train, cli):
    for name in ("cat", "dog"):
        for number in range(4):
            save(tmp_path / "in" / name / f"{number}.png", grey(number))
    words = ["dataset=folder", "dataset.path=in", "dataset.labels=true", "conditional=true", "dataset.resolution=16"]
    run = train(*words, "train.batch_size=4", "log.holdout=1", "diagnostic=none", images=8)
    assert RunFolder(run).class_names() == ["cat", "dog"]
    assert cli("sample", "run=run", "labels=[dog]", "format=npz", "count=2", "out=a.npz").status == 0
    with np.load("a.npz") as arrays:
        assert arrays["labels"].tolist() == [1, 1]
