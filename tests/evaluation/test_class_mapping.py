"""Classes are mapped by name: every accuracy equals one by hand, or the set is refused."""

import json
import logging

import numpy as np
import pytest
from small_runs import (
    assert_equal,
    by_hand,
    logits_by_hand,
    run_evaluate,
    save_run,
    tensors_of,
    write_images,
)

from dali_rsb.errors import UserError

ANIMALS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
SYNSETS = [f"n{3 * i:08d}" for i in range(1000)]


def evaluate_folder(monkeypatch, tmp_path, classes, names, right=None, options=()):
    """Evaluate a run with `classes` on images `names`; its results, and those by hand.

    Args:
        right: right classes of each image; by default the one that its folder names.
    """
    paths = write_images(tmp_path / "data", names)
    run = save_run(tmp_path / "run", classes)
    results = run_evaluate(monkeypatch, tmp_path, run, tmp_path / "data", *options)
    right = right or [{name.partition("/")[0]} for name in names]
    logits = logits_by_hand(tensors_of(len(classes)), paths)
    present = sorted(set().union(*right))
    return results, by_hand(logits, classes, right), by_hand(logits, classes, right, present)


def images_of(classes, count=3):
    return [f"{name}/{number}.png" for name in classes for number in range(count)]


@pytest.mark.parametrize(
    "classes",
    [
        ANIMALS,
        ANIMALS[::-1],
        ["fox", "bee", "gnu", "ant", "elk", "dog", "cat"],
        ["Cat", "cat", "CAT", "dog", "DOG", "elk"],  # these differ
        ["2", "0", "1", "3", "4", "5"],  # numbers that are names of the weights too
        ["10", "9", "1", "0"],
    ],
    ids=" ".join,
)
def test_any_order_of_the_classes_gives_the_accuracy_by_hand(monkeypatch, tmp_path, classes):
    found, expected, _ = evaluate_folder(monkeypatch, tmp_path, classes, images_of(classes, 6))
    assert len(found) == 1
    assert 0 < expected["top1"] < 100
    assert_equal(found[0], expected)


def test_a_missing_class_gives_a_row_among_the_others_too(monkeypatch, tmp_path, caplog):
    names = images_of([name for name in ANIMALS if name != "dog"], 4)
    (whole, part), expected, among = evaluate_folder(monkeypatch, tmp_path, ANIMALS, names)
    assert_equal(whole, expected)
    assert_equal(part, among)
    assert (whole["labelling"], part["labelling"], part["num_classes"]) == ("all", "present", 6)
    assert whole["loss"] > part["loss"]
    assert "1 of 7 classes have no image" in caplog.text


def test_a_subset_of_200_synsets_as_imagenet_a_and_r_have(monkeypatch, tmp_path):
    classes = np.random.default_rng(0).permutation(SYNSETS).tolist()
    names = images_of(SYNSETS[::5], 1)
    (whole, part), expected, among = evaluate_folder(monkeypatch, tmp_path, classes, names)
    assert part["num_classes"] == 200
    assert part["top5"] > whole["top5"]
    assert_equal(whole, expected)
    assert_equal(part, among)


def test_empty_folders_of_other_classes_do_not_matter(monkeypatch, tmp_path):
    (tmp_path / "data" / "zebra").mkdir(parents=True)
    (found,), expected, _ = evaluate_folder(monkeypatch, tmp_path, ANIMALS, images_of(ANIMALS))
    assert_equal(found, expected)


def test_a_list_of_images_is_mapped_as_a_folder_is(monkeypatch, tmp_path):
    names = images_of(ANIMALS[::-1], 2)
    paths = write_images(tmp_path / "images", [f"{number}.png" for number in range(len(names))])
    labels = [name.partition("/")[0] for name in names]
    lines = [f"images/{path.name}\t{label}" for path, label in zip(paths, labels, strict=True)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    run = save_run(tmp_path / "run", ANIMALS)
    (found,) = run_evaluate(monkeypatch, tmp_path, run, tmp_path / "list.txt")
    logits = logits_by_hand(tensors_of(len(ANIMALS)), paths)
    assert_equal(found, by_hand(logits, ANIMALS, [{label} for label in labels]))


def test_imagenet_v2s_numbers_mean_the_sorted_synsets(monkeypatch, tmp_path, caplog):
    classes = np.random.default_rng(1).permutation(SYNSETS).tolist()
    names = images_of(map(str, range(1000)), 1)
    right = [{SYNSETS[int(name.partition("/")[0])]} for name in names]
    (found,), expected, _ = evaluate_folder(monkeypatch, tmp_path, classes, names, right)
    assert expected["top5"] > 0
    assert_equal(found, expected)
    assert "are taken for ImageNet's synsets in their sorted order" in caplog.text


@pytest.mark.parametrize(
    ("classes", "folders", "message"),
    [
        (
            ANIMALS,
            [*ANIMALS, "zebra"],
            "class zebra of .*data is not among the classes of .*best.pt",
        ),
        (ANIMALS, [*ANIMALS[:-1], "zebra"], "class zebra .*, which have gnu instead"),
        (ANIMALS, ["Ant", *ANIMALS[1:]], "class Ant .*, ant is: names differ by case"),
        (ANIMALS, [name.upper() for name in ANIMALS], "class ANT .*, ant is: .* differ by case"),
        (ANIMALS, [str(i) for i in range(7)], "class 0 .*, which have ant instead"),
        (SYNSETS[:7], [str(i) for i in range(7)], "class 0 .*, which have n00000000 instead"),
        (SYNSETS, [str(i) for i in range(999)], r"class 0 .* \(n00000000, .*nor are 998 more"),
        (SYNSETS, [f"{i:04d}" for i in range(1000)], "class 0000 .* have n00000000 instead"),
    ],
)
def test_images_of_unknown_classes_are_refused(monkeypatch, tmp_path, classes, folders, message):
    write_images(tmp_path, [f"{number}.png" for number in range(len(folders))])
    lines = [f"{number}.png\t{name}\n" for number, name in enumerate(folders)]
    (tmp_path / "data").write_text("".join(lines))
    run = save_run(tmp_path / "run", classes)
    with pytest.raises(UserError, match=message) as caught:
        run_evaluate(monkeypatch, tmp_path, run, tmp_path / "data")
    assert "name its images' folders or labels after those" in str(caught.value)
    assert len(str(caught.value)) <= 300


# The flat validation folder of ImageNet's archive


def flat(tmp_path, numbers):
    return write_images(
        tmp_path / "val", [f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers]
    )


def write_devkit(tmp_path, synset_numbers):
    """The devkit's ground truth, with numbers of an order of its own; returns synset by number."""
    from scipy.io import savemat

    order = np.random.default_rng(2).permutation(SYNSETS).tolist()
    synsets = np.zeros(
        1002,
        [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")],
    )
    for i, name in enumerate([*order, "n99999998", "n99999999"]):
        synsets[i] = (i + 1, name, "a thing", 0 if i < 1000 else 5)
    savemat(tmp_path / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    path = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(f"{number}\n" for number in synset_numbers))
    return path, {i + 1: name for i, name in enumerate(order)}


def check_flat(monkeypatch, tmp_path, paths, right, *options):
    run = save_run(tmp_path / "run", SYNSETS[::-1])
    results = run_evaluate(monkeypatch, tmp_path, run, tmp_path / "val", *options)
    logits = logits_by_hand(tensors_of(1000), paths)
    assert_equal(results[0], by_hand(logits, SYNSETS[::-1], right))
    present = sorted(set().union(*right))
    assert_equal(results[1], by_hand(logits, SYNSETS[::-1], right, present))
    return results, logits


def test_the_devkits_numbers_go_through_its_meta_mat(monkeypatch, tmp_path):
    numbers = np.random.default_rng(3).integers(1, 1001, 60).tolist()
    labels, synset_of = write_devkit(tmp_path, numbers)
    present = [1, 2, 7, *range(20, 61)]  # not all of the images
    paths = flat(tmp_path, present)
    right = [{synset_of[numbers[number - 1]]} for number in present]
    check_flat(monkeypatch, tmp_path, paths, right, "--labels", labels)


@pytest.mark.parametrize(
    ("line", "header"),
    [
        ("{name}.JPEG {synset}", ""),
        ("val/{name}.JPEG\t{synset}\t12\t30", ""),
        ("{name}.JPEG,{synset}", "file,class\n"),
        ("{name},{synset} 85 1 499 272 {synset} 3 4 5 6", "ImageId,PredictionString\n"),
    ],
    ids=["two columns", "tabs", "CSV", "Kaggle"],
)
def test_a_file_with_names_and_synsets(monkeypatch, tmp_path, caplog, line, header):
    caplog.set_level(logging.INFO)
    paths = flat(tmp_path, range(1, 41))
    synsets = [SYNSETS[7 * i % 1000] for i in range(40)]
    lines = [
        line.format(name=path.stem, synset=synset)
        for path, synset in zip(paths, synsets, strict=True)
    ]
    labels = tmp_path / "labels"
    labels.write_text(header + "\n".join(lines[::-1]))
    check_flat(monkeypatch, tmp_path, paths, [{s} for s in synsets], "--labels", labels)
    assert "files that are not there" not in caplog.text  # nor is the header one


def test_real_has_several_right_answers_and_leaves_images_out(monkeypatch, tmp_path):
    rng = np.random.default_rng(4)
    real = [rng.choice(1000, rng.integers(0, 300), replace=False).tolist() for _ in range(50)]
    real[3] = real[9] = []
    (tmp_path / "real.json").write_text(json.dumps(real))
    present = list(range(1, 48))
    paths = flat(tmp_path, present)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"{path.name} {SYNSETS[5]}" for path in paths))
    options = ["--labels", labels, "--real", tmp_path / "real.json"]
    right = [{SYNSETS[5]}] * len(paths)
    (_, _, found), logits = check_flat(monkeypatch, tmp_path, paths, right, *options)
    answers = [{SYNSETS[label] for label in real[number - 1]} for number in present]
    expected = by_hand(logits, SYNSETS[::-1], answers)
    assert found["labelling"] == "real"
    assert 0 < expected["top1"] < 100
    assert expected["images"] <= 45
    assert_equal(found, expected, ("images", "top1", "top5", "ece"))
    assert (found["loss"], found["mean_per_class"]) == (None, None)
    # Without other labels it is the only row.
    run = tmp_path / "run"
    (alone,) = run_evaluate(monkeypatch, tmp_path, run, tmp_path / "val", *options[2:])
    assert_equal(alone, expected, ("images", "top1", "top5", "ece"))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no labels", "images lie directly in .*by --labels FILE"),
        ("an image without", r"1 of 4 images in .*val have no class in .*, the first is ILSVRC"),
        ("two classes", "gives ILSVRC2012_val_00000001.JPEG two classes"),
        ("one column", "has a line 'ILSVRC2012_val_00000001.JPEG'"),
        ("empty", "is empty: give lines with FILE and CLASS"),
        ("missing", "does not exist: give lines with FILE and CLASS"),
        ("no meta.mat", "put the devkit's meta.mat beside it"),
        ("damaged meta.mat", "is no meta.mat of ImageNet's devkit"),
        ("number of no synset", "line 2 of .* is 1001, which meta.mat beside it has no synset for"),
        ("other names", "cat.png has no number: name the files as in ImageNet's archive"),
        ("class folders", "no images lie directly in"),
        ("real of other classes", "numbers of ImageNet's 1,000 synsets, and .* are others"),
        ("real of other names", "cat.png is none by its name"),
        ("real is no list", "give real.json of ReaL"),
        ("real is cut off", "is no JSON .*: give real.json of ReaL"),
        ("real has no labels", "ReaL has no label for any image"),
    ],
)
def test_mistakes_in_ground_truth_are_one_line(monkeypatch, tmp_path, case, message):
    paths = flat(tmp_path, range(1, 5))
    labels, real = tmp_path / "labels.txt", tmp_path / "real.json"
    lines = [f"{path.name} {SYNSETS[0]}" for path in paths]
    options = [] if case == "no labels" else ["--labels", labels]
    if case == "an image without":
        lines.pop()
    elif case == "two classes":
        lines.append(f"{paths[0].name} {SYNSETS[1]}")
    elif case == "one column":
        lines[0] = paths[0].name
    elif case == "empty":
        lines = []
    elif case in ("no meta.mat", "damaged meta.mat", "number of no synset", "other names"):
        labels, _ = write_devkit(tmp_path, [1, 1001, 3, 4] if "no synset" in case else [1, 2, 3, 4])
        options = ["--labels", labels]
        if case == "no meta.mat":
            (tmp_path / "meta.mat").unlink()
        elif case == "damaged meta.mat":
            (tmp_path / "meta.mat").write_bytes((tmp_path / "meta.mat").read_bytes()[:200])
        elif case == "other names":
            paths[0].rename(tmp_path / "val" / "cat.png")
    elif case == "class folders":
        (tmp_path / "val" / "x").mkdir()
        for path in paths:
            path.rename(path.parent / "x" / path.name)
    elif case.startswith("real"):
        options += ["--real", real]
        content = {"real is no list": "{}", "real is cut off": "[[1,"}
        content["real has no labels"] = "[[], [], [], []]"
        real.write_text(content.get(case, "[[1], [2], [3], []]"))
        if case == "real of other names":
            paths[0].rename(tmp_path / "val" / "cat.png")
            lines.append(f"cat.png {SYNSETS[0]}")
    if labels.name == "labels.txt" and case != "missing":
        labels.write_text("\n".join(lines))
    classes = [*SYNSETS[:7]] if case == "real of other classes" else SYNSETS
    run = save_run(tmp_path / "run", classes)
    with pytest.raises(UserError, match=message) as caught:
        run_evaluate(monkeypatch, tmp_path, run, tmp_path / "val", *options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300
