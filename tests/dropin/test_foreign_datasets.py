"""Dataset objects and samplers of torch, torchvision and Accelerate: read whole, or refused.

Every composition gives the labels and pictures that torch's own DataLoader gives.
"""

import collections
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    random_split,
)
from torchvision import datasets
from torchvision import transforms as T

from dali_rsb import DaliLoader, UserError
from dali_rsb.dataset import image_list
from dali_rsb.dropin.foreign import read_dataset

SIZE = 16
OPTIONS = {"size_px": SIZE, "crop_ratio": 1.0, "device": "cpu", "num_threads": 1}


def _tree(root, counts):
    """Class folders of pictures that are each of one colour of their own."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            number += 1
            colour = (number * 7 % 256, number * 31 % 256, number * 101 % 256)
            Image.new("RGB", (20, 20), colour).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return _tree(tmp_path_factory.mktemp("foreign") / "t", {"b": 3, "a": 2, "c": 4})


def _loaded(loader):
    images, targets = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(targets)


def _assert_like_torch(dataset, batch_size=4):
    ours = _loaded(DaliLoader(dataset, batch_size, dtype=torch.uint8, **OPTIONS))
    theirs = _loaded(DataLoader(dataset, batch_size))
    assert torch.equal(ours[1], theirs[1])
    # One colour each: whatever the resize, the picture is that colour.
    assert torch.equal(ours[0][:, :, 0, 0], (theirs[0][:, :, 0, 0] * 255).round().to(torch.uint8))


def _folder(root, **options):
    return datasets.ImageFolder(str(root), T.ToTensor(), **options)


def test_subsets_concatenations_and_transformed_targets(tree):
    folder = _folder(tree)
    flipped = _folder(tree, target_transform=lambda y: 2 - y)
    first, second = random_split(folder, [5, 4], torch.Generator().manual_seed(0))
    any_loader = datasets.folder.default_loader
    for dataset in (
        folder,
        datasets.DatasetFolder(str(tree), any_loader, (".png",), transform=T.ToTensor()),
        flipped,
        first,
        second,
        Subset(folder, [3, 3, 0, -1]),
        Subset(flipped, torch.tensor([8, 1])),
        Subset(Subset(folder, np.array([8, 2, 5])), [2, 0, 2]),
        ConcatDataset([folder, folder]),
        Subset(ConcatDataset([first, folder, second]), range(3, 15, 2)),
    ):
        _assert_like_torch(dataset)


compositions = st.recursive(
    st.sampled_from([None, (0, 1, 2), (2, 1, 0), (0, 0, 1), (1, 2, 2)]),
    lambda inner: (
        st.tuples(st.just("subset"), inner, st.lists(st.integers(-9, 8), min_size=1))
        | st.tuples(st.just("concat"), inner, st.integers(1, 3))
    ),
    max_leaves=4,
)


def _compose(tree, composition):
    if composition is None or isinstance(composition[0], int):
        mapping = composition
        transform = None if mapping is None else (lambda y: mapping[y])
        return _folder(tree, target_transform=transform)
    kind, inner, argument = composition
    dataset = _compose(tree, inner)
    if kind == "concat":
        return ConcatDataset([dataset] * argument)
    return Subset(dataset, [i % len(dataset) - (len(dataset) if i < 0 else 0) for i in argument])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(compositions)
def test_any_composition_gives_torchs_samples(tree, composition):
    dataset = _compose(tree, composition)
    found = read_dataset(dataset)
    assert found.labels.tolist() == [dataset[i][1] for i in range(len(dataset))]
    colours = [Image.open(path).convert("RGB").getpixel((0, 0)) for path in found.paths]
    theirs = [dataset[i][0][:, 0, 0].mul(255).round().int().tolist() for i in range(len(dataset))]
    assert [list(colour) for colour in colours] == theirs


def test_classes_are_the_objects_own(tree, tmp_path):
    root = _tree(tmp_path / "e", {"a": 4, "c": 4})
    (root / "b").mkdir()
    empty = datasets.ImageFolder(str(root), allow_empty=True)
    loader = DaliLoader(empty, 4, train=True, mixup=0.2, **OPTIONS | {"crop_ratio": 0.9})
    assert loader.dataset.classes == ("a", "b", "c")
    assert next(iter(loader))[1].shape == (4, 3)
    assert loader.dataset.targets.tolist() == empty.targets
    merged = _folder(tree, target_transform=[0, 1, 0].__getitem__)
    assert DaliLoader(merged, 4, **OPTIONS).dataset.classes == ("a+c", "b")


class _Own(datasets.ImageFolder):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label + 1


class _Derived(datasets.ImageFolder):
    """Changes which files there are, not what a sample is."""

    def find_classes(self, directory):
        return ["c", "a", "b"], {"c": 0, "a": 1, "b": 2}


class _Pairs(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(3, 4, 4), index


class _Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3, 4, 4), 0


def _refusals(tree):
    folder = _folder(tree)
    other = datasets.FakeData(4)
    flags = iter(range(10**6))
    pair = (str(tree / "a" / "0.png"), 0)
    return {
        "__getitem__ of its own": _Own(str(tree)),
        "a loader of its own": datasets.ImageFolder(str(tree), loader=lambda path: None),
        "_Pairs": _Pairs(),
        "_Stream": _Stream(),
        "FakeData": other,
        "ChainDataset": ChainDataset([_Stream()]),
        "StackDataset": StackDataset(folder, folder),
        "index 9": Subset(folder, [0, 9]),
        "index -10": Subset(folder, [-10]),
        "truth values": Subset(folder, np.array([True, False])),
        "whole numbers": Subset(folder, [0.5]),
        "gives the label 0.5": _folder(tree, target_transform=lambda y: 0.5),
        "gives the label tensor": _folder(tree, target_transform=lambda y: torch.zeros(3)),
        "label -1": _folder(tree, target_transform=lambda y: y - 1),
        "make it a function of the label": _folder(tree, target_transform=lambda y: next(flags)),
        "fails for label 0": _folder(tree, target_transform={}.__getitem__),
        "gives the label True": [(pair[0], True)],
        "gives the label '0'": [(pair[0], "0")],
        "no (path, label) pair": [pair, pair[0]],
        "is empty": [],
        "class 1 is b in part 0 but x in part 1": ConcatDataset(
            [folder, _folder(_tree(tree.parent / "other", {"x": 1, "a": 1}))]
        ),
        "Dataset": collections.namedtuple("Dataset", "samples root")([pair], str(tree)),
    }


def test_what_decides_a_sample_in_its_own_way_is_refused_by_name(tree):
    for words, dataset in _refusals(tree).items():
        with pytest.raises(UserError) as caught:
            DaliLoader(dataset, 2, **OPTIONS)
        message = str(caught.value)
        assert words in message
        assert "\n" not in message
        assert len(message) <= 300


def test_a_derived_folder_keeps_its_numbers(tree):
    _assert_like_torch(_Derived(str(tree), T.ToTensor()))
    valid = _folder(tree, is_valid_file=lambda path: path.endswith(("0.png", "1.png")))
    _assert_like_torch(valid)


def test_a_file_from_elsewhere_among_a_folders_samples_is_loaded(tree, tmp_path):
    path = tmp_path / "elsewhere.png"
    Image.new("RGB", (20, 20), (1, 2, 3)).save(path)
    folder = _folder(tree)
    folder.samples.insert(2, (str(path), 1))
    _assert_like_torch(folder)


def test_labels_may_be_numpys_and_torchs(tree):
    path = str(tree / "a" / "0.png")
    for label in (1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1)):
        assert DaliLoader([(path, label)], 1, **OPTIONS).dataset.targets.tolist() == [1]


@pytest.mark.parametrize(
    "sampler",
    [
        lambda d: SubsetRandomSampler([0, 7, 3]),
        lambda d: WeightedRandomSampler([0.1] * 5 + [0.9] * 4, 12),
        lambda d: RandomSampler(d, replacement=True, num_samples=7),
        lambda d: [8, 0, 8],
        lambda d: torch.tensor([0, 7]),
        lambda d: np.array([3, 1], np.uint8),
        lambda d: (i for i in [4, 2, 0, 1, 3]),
    ],
)
def test_samplers_count_the_datasets_own_samples(tree, sampler):
    dataset = _folder(tree)
    torch.manual_seed(0)
    loader = DaliLoader(dataset, 4, sampler=sampler(dataset), **OPTIONS)
    targets = torch.cat([y for _, y in loader])
    assert len(targets) > 1
    if not hasattr(loader.sampler, "__len__"):
        assert targets.tolist() == [dataset.targets[i] for i in [4, 2, 0, 1, 3]]
    elif isinstance(loader.sampler, (list, np.ndarray, torch.Tensor)):
        assert targets.tolist() == [dataset.targets[int(i)] for i in loader.sampler]


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ([0, 9], "index 9"),
        ([0, -1], "index -1"),
        (np.array([True, False, True]), "truth values"),
        ([0.5, 1.0], "whole numbers"),
        ([[0, 1], [2, 3]], "whole numbers"),
        ((i for i in [0, 1, 9]), "index 9"),
        (BatchSampler(SequentialSampler(range(9)), 4, False), "give it as batch_sampler"),
    ],
)
def test_indices_that_are_none_are_named(tree, sampler, words):
    with pytest.raises(UserError, match=words):
        list(DaliLoader(_folder(tree), 4, sampler=sampler, **OPTIONS))


@pytest.mark.parametrize("drop_last", [False, True])
def test_batch_samplers(tree, drop_last):
    dataset = _folder(tree)
    batches = BatchSampler(SequentialSampler(dataset), 4, drop_last)
    expected = [y.tolist() for _, y in DataLoader(dataset, batch_sampler=batches)]
    for loader in (
        DaliLoader(dataset, batch_sampler=batches, **OPTIONS),
        DaliLoader(dataset, sampler=batches, **OPTIONS),  # as to a DataLoader with batch_size=None
    ):
        assert [y.tolist() for _, y in loader] == expected
    with pytest.raises(UserError, match="leave them out"):
        DaliLoader(dataset, 4, batch_sampler=batches, **OPTIONS)
    with pytest.raises(UserError, match="batches may be of any size"):
        DaliLoader(dataset, batch_sampler=[[0, 1], [2]], **OPTIONS)
    with pytest.raises(UserError, match="batch_size=None must be"):
        DaliLoader(dataset, **OPTIONS)


def test_excluding_keeps_order_and_repetitions(tree):
    dataset = Subset(_folder(tree), [8, 3, 3, 0])
    loader = DaliLoader(dataset, 4, exclude=["a/0.png"], **OPTIONS)
    assert [loader.dataset.filename(i)[-7:] for i in range(3)] == ["c/3.png", "b/1.png", "b/1.png"]


def test_accelerates_accumulation_synchronises_with_the_last_batch(tree):
    from accelerate import Accelerator

    def flags(loader):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, loader = accelerator.prepare(torch.nn.Linear(1, 1), loader)
        seen = []
        for _ in range(2):
            for _ in loader:
                with accelerator.accumulate(model):
                    seen.append(accelerator.sync_gradients)
        return seen

    expected = flags(DataLoader(_folder(tree), 2))
    assert expected == [False, True, False, True, True] * 2
    assert flags(DaliLoader(tree, 2, **OPTIONS)) == expected
    stream = DaliLoader(tree, 2, sampler=_Counting(9), **OPTIONS)
    assert flags(stream) == expected


class _Counting:
    """Indices without a length: the last batch is known only when no other follows."""

    def __init__(self, number):
        self.number = number

    def __iter__(self):
        return iter(range(self.number))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("skipped", [0, 2, 4])
def test_accelerates_skip_first_batches_gives_the_rest_of_the_epoch(tree, train, skipped):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    options = {**OPTIONS, "train": train, "drop_last": False, "seed": 3}
    whole = [list(loader) for loader in [DaliLoader(tree, 2, **options)] for _ in range(2)]
    loader = accelerator.prepare(DaliLoader(tree, 2, **options))
    rest = accelerator.skip_first_batches(loader, skipped)
    for epoch in whole:
        loaded = list(rest)
        assert len(loaded) == len(epoch) - skipped
        for (x, y), (images, targets) in zip(loaded, epoch[skipped:], strict=True):
            assert torch.equal(x, images)
            assert torch.equal(y, targets)
    loader.close()


def test_a_loader_says_what_it_is(tree):
    assert repr(DaliLoader(tree, 2, **OPTIONS)) == (
        f"DaliLoader({tree}: 9 images, 3 classes, evaluation, batch_size=2, shuffle=False, "
        "decoded by DALI on cpu)"
    )


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")
@pytest.mark.parametrize("shuffle", [False, True])
def test_lightnings_overfit_batches(tree, shuffle):
    import lightning

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(3, 3), []

        def training_step(self, batch, index):
            self.seen.append(batch[0].mean().item())
            return self.layer(batch[0].mean((2, 3))).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Model()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=3,
        overfit_batches=1,
        accelerator="cpu",
        enable_model_summary=False,
        **quiet,
    )
    loader = DaliLoader(tree, 4, shuffle=shuffle, **OPTIONS)
    if shuffle:
        with pytest.raises(ValueError, match="overfit_batches needs shuffle=False"):
            trainer.fit(model, loader)
        return
    trainer.fit(model, loader)
    assert len(model.seen) == 3
    assert len(set(model.seen)) == 1


def test_the_page_names_what_is_tested_here():
    page = (ROOT / "docs" / "drop_in.md").read_text()
    table = page.partition("## What is supported of other libraries")[2].partition("\n## ")[0]
    source = Path(__file__).read_text()
    rows = [row for row in table.splitlines() if row.startswith("| ") and "`" in row]
    assert len(rows) >= 8
    for name in re.findall(r"`([a-zA-Z_]+)=?(?:False)?`", "\n".join(rows)):
        assert name in source, f"{name} is in the table without a test"


@pytest.mark.parametrize("broken", [["a/0.png"], ["a/1.png", "b/0.png"], ["c/3.png"]])
def test_indices_count_files_that_cannot_be_read(tmp_path, broken):
    root = _tree(tmp_path / "t", {"b": 3, "a": 2, "c": 4})
    for name in broken:
        (root / name).write_bytes(b"<html>404</html>")
    folder = datasets.ImageFolder(str(root))
    good = [i for i, (path, _) in enumerate(folder.samples) if path[-7:] not in broken]
    for source in (str(root), folder):
        loader = DaliLoader(source, 2, sampler=good, **OPTIONS)
        assert len(loader.dataset) == len(folder)
        files = [loader.dataset.filename(i) for i in good]
        assert files == [folder.samples[i][0] for i in good]
        assert torch.cat([y for _, y in loader]).tolist() == [folder.targets[i] for i in good]
        # The next readable image stands in for a broken one, with its own label.
        for i in set(range(len(folder))) - set(good):
            stand_in = next(j for j in [*range(i + 1, len(folder)), *range(i)] if j in good)
            assert loader.dataset.filename(i) == folder.samples[stand_in][0]
            assert loader.dataset.targets[i] == folder.targets[stand_in]
    assert len(DaliLoader(root, 2, **OPTIONS).dataset) == len(good)


@pytest.mark.parametrize(
    "counts", [{"a": 2, "b": 1}, {"a": 2, "b/x": 1, "b/y": 2}, {"a/deep/er": 1, "b": 2}]
)
@pytest.mark.parametrize("empty", [False, True])
def test_an_image_folder_object_uses_the_stored_index_of_its_folder(
    tmp_path, monkeypatch, counts, empty
):
    root = _tree(tmp_path / "t", counts)
    if empty:
        (root / "aa").mkdir()
    folder = datasets.ImageFolder(str(root), T.ToTensor(), allow_empty=empty)
    monkeypatch.setattr(image_list, "index_samples", None)  # which reads all headers each time
    for dataset in (folder, Subset(folder, [2, 0]), ConcatDataset([folder, folder])):
        loader = DaliLoader(dataset, 2, **OPTIONS)
        assert loader.dataset.classes == tuple(folder.classes)
        assert loader.dataset.index.place is not None
        _assert_like_torch(dataset)
