"""Folders in COCO's format: their parts, their boxes, and what is said of those that do not fit together."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import boxes
from harness.errors import HarnessError
from tests.evals.boxes import edit, make


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("coco") / "toys", train=20, val=6)


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "toys")


def entries(root, part):
    return json.loads((root / f"annotations/instances_{part}2017.json").read_text())


# -- the parts --------------------------------------------------------------------------------------------------------


def test_a_tenth_of_train_is_for_choices_and_val_is_the_test_part(made):
    data, again = boxes.load(f"coco:{made}"), boxes.load(f"coco:{made}")
    assert (len(data.fit), len(data.select), data.test_n) == (18, 2, 6)
    assert sorted([*data.fit.index, *data.select.index]) == list(range(20))
    assert list(data.select.index) == list(again.select.index) and data.revision == again.revision
    assert (data.spec.name, data.spec.classes, data.names) == ("coco-toys", 3, ("square", "disc", "bar"))


def test_the_door_records_who_opened_it(made):
    data = boxes.load(f"coco:{made}")
    assert data.opened == []
    part = data.open_test(by="someone")
    assert len(part) == 6 and [look.by for look in data.opened] == ["someone"]


def test_boxes_are_corners_and_labels_count_from_one(made):
    part, listed = boxes.load(f"coco:{made}").train, entries(made, "train")
    for i in range(len(part)):
        own = [a for a in listed["annotations"] if a["image_id"] == 100 + i]
        found = part.objects(i)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        assert found.boxes.tolist() == corners
        assert found.labels.tolist() == [{3: 1, 7: 2, 8: 3}[a["category_id"]] for a in own]
        assert found.area.tolist() == [a["area"] for a in own] and not found.crowd.any()


def test_images_are_decoded_as_they_are_and_grey_ones_get_three_channels(made):
    part = boxes.load(f"coco:{made}").train
    assert part.image(0).shape == (3, 64, 64) and part.image(3).shape == (3, 48, 64) and part.size(3) == (64, 48)
    grey = part.image(4)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert np.array_equal(part.image(0).permute(1, 2, 0), np.asarray(Image.open(made / "train2017/train2017-0000.png")))


def test_crowds_are_kept_apart_and_a_missing_area_is_the_boxs(root):
    def change(content):
        content["annotations"][0]["iscrowd"] = 1
        del content["annotations"][0]["area"], content["annotations"][1]["iscrowd"]

    edit(root, "train", change)
    first = boxes.load(f"coco:{root}").train.objects(0)
    left, top, right, bottom = first.boxes[0].tolist()
    assert first.crowd[0] and first.area[0] == (right - left) * (bottom - top)


def test_an_image_without_boxes_is_an_example_too(root):
    def change(content):
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 101]

    edit(root, "train", change)
    assert boxes.load(f"coco:{root}").train.objects(1).boxes.shape == (0, 4)


def test_the_revision_is_a_copys_too_and_changes_with_what_is_annotated(made, root):
    same = boxes.load(f"coco:{root}").revision
    assert same == boxes.load(f"coco:{made}").revision and len(same) == 16
    edit(root, "val", lambda content: content["annotations"][0].update(category_id=8, bbox=[1, 1, 5, 5]))
    assert boxes.load(f"coco:{root}").revision != same


def test_a_subset_keeps_images_and_boxes_together(made):
    part = boxes.load(f"coco:{made}").train
    some = part.subset(np.array([7, 2]))
    assert torch.equal(some.image(0), part.image(7)) and torch.equal(some.objects(1).boxes, part.objects(2).boxes)


def test_plain_names_and_one_folder_of_images_are_read(root):
    (root / "images").mkdir()
    for part in ("train", "val"):
        (root / f"annotations/instances_{part}2017.json").rename(root / f"{part}.json")
        for file in (root / f"{part}2017").iterdir():
            file.rename(root / "images" / file.name)
        (root / f"{part}2017").rmdir()
    data = boxes.load(f"coco:{root}")
    assert data.train.folder == root / "images" and data.test_n == 6


def test_a_name_is_looked_up_in_the_data_folder(made, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_DATA", str(made.parent))
    monkeypatch.chdir(tmp_path)
    assert boxes.load("coco:toys").revision == boxes.load(f"coco:{made}").revision


# -- what does not fit ------------------------------------------------------------------------------------------------


def set_box(box):
    return lambda content: content["annotations"][2].update(bbox=box)


FAULTS = {
    "no list": (lambda c: c.pop("annotations"), "has no list 'annotations'"),
    "no annotations": (lambda c: c.update(annotations=[]), "has no annotations"),
    "no categories": (lambda c: c.update(categories=[]), "has no categories"),
    "no bbox": (lambda c: c["annotations"][2].pop("bbox"), "entry 2 of annotations has no 'bbox'"),
    "no width": (lambda c: c["images"][1].pop("width"), "entry 101 of images has no 'width'"),
    "odd width": (lambda c: c["images"][1].update(width="64"), "the image 101 is 64 x 64 px"),
    "no entry": (lambda c: c["images"].insert(1, 7), "entry number 2 of images has no 'id'"),
    "no id": (lambda c: c["images"][1].pop("id"), "entry number 2 of images has no 'id'"),
    "flat box": (set_box([3, 3, 0, 5]), "annotation 2 has the box .*, without extent"),
    "negative box": (set_box([3, 3, 5, -1]), "annotation 2 has the box .*, without extent"),
    "short box": (set_box([3, 3, 5]), r"annotation 2 has the box \[3, 3, 5\]\n.*four numbers"),
    "box of text": (set_box([3, 3, 5, "4"]), "four numbers"),
    "endless box": (set_box([3, 3, float("inf"), 5]), "four numbers"),
    "box outside": (set_box([64, 3, 5, 5]), "annotation 2 .* outside of its image"),
    "category": (lambda c: c["annotations"][2].update(category_id=99), "annotation 2 is of the unknown category 99"),
    "image": (lambda c: c["annotations"][2].update(image_id=7), "annotation 2 is of the image 7, which is not listed"),
    "twice": (lambda c: c["annotations"][2].update(id=1), "annotation 1 stands there twice"),
    "image twice": (lambda c: c["images"][1].update(id=100), "an image id twice"),
    "file": (lambda c: c["images"][2].update(file_name="gone.png"), r"lists gone.png, which is not in .*\(1 of"),
}


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(root, part, fault):
    change, said = FAULTS[fault]
    edit(root, part, change)
    with pytest.raises(HarnessError, match=said):
        boxes.load(f"coco:{root}")


def test_boxes_without_extent_are_left_out_when_asked(root):
    before = boxes.load(f"coco:{root}")
    edit(root, "train", set_box([3, 3, 0, 5]))
    data = boxes.load(f"coco:{root}?drop_empty=1")
    assert data.train.dropped == 1 and len(data.train.objects_flat.boxes) == len(before.train.objects_flat.boxes) - 1


def test_a_category_of_val_alone_is_refused(root):
    edit(root, "val", lambda content: content["categories"].append({"id": 12, "name": "cross"}))
    with pytest.raises(HarnessError, match=r"the category 12 \(cross\), which the train part lacks"):
        boxes.load(f"coco:{root}")
    edit(root, "val", lambda content: content["categories"].pop())
    edit(root, "val", lambda content: content["categories"][0].update(name="cross"))
    with pytest.raises(HarnessError, match=r"the category 3 \(cross\)"):
        boxes.load(f"coco:{root}")


def test_a_part_for_choices_without_boxes_is_refused(root):
    chosen = {100 + int(i) for i in boxes.load(f"coco:{root}").select.index}

    def crowd(content):
        for entry in content["annotations"]:
            entry["iscrowd"] = int(entry["image_id"] in chosen)

    edit(root, "train", crowd)
    with pytest.raises(HarnessError, match="no image of the select part"):
        boxes.load(f"coco:{root}")


def test_broken_files_are_named(root):
    (root / "train2017/train2017-0001.png").write_bytes(b"no image")
    data = boxes.load(f"coco:{root}")  # images are opened when they are asked for
    with pytest.raises(HarnessError, match=r"train2017-0001\.png cannot be decoded"):
        data.train.image(1)
    Image.new("RGB", (64, 60)).save(root / "train2017/train2017-0002.png")
    with pytest.raises(HarnessError, match="has 64 x 60 px\n  expected: 64 x 64 px"):
        data.train.image(2)
    (root / "annotations/instances_val2017.json").write_text("{")
    with pytest.raises(HarnessError, match=r"cannot read .*instances_val2017.json"):
        boxes.load(f"coco:{root}")


def test_missing_and_doubled_files_are_named(root, tmp_path):
    shutil.copy(root / "annotations/instances_val2017.json", root / "annotations/instances_val2014.json")
    with pytest.raises(HarnessError, match="several files of the val part: instances_val2014"):
        boxes.load(f"coco:{root}")
    (root / "annotations/instances_val2014.json").unlink()
    shutil.rmtree(root / "train2017")
    with pytest.raises(HarnessError, match=r"no folder of images for instances_train2017\.json"):
        boxes.load(f"coco:{root}")
    (root / "annotations/instances_val2017.json").unlink()
    with pytest.raises(HarnessError, match="no file of the val part"):
        boxes.load(f"coco:{root}")
    with pytest.raises(HarnessError, match="there is no folder"):
        boxes.load(f"coco:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("name", ["coco:", "toys", "coco:toys?drop_empty=2", "coco:toys?drop_emty=1"])
def test_odd_names_are_refused(name):
    with pytest.raises(HarnessError, match=r"cannot read|unknown option of coco: 'drop_emty'"):
        boxes.load(name)
