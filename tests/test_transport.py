"""Batches from workers, through memory that is used again: equal to torch's, and never overwritten while in use."""

import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from diffir_sr.data.transport import SharedBatches


class Numbered(Dataset):
    """Samples of every kind of value, whose tensors say which sample they are of."""

    def __len__(self):
        return 80

    def __getitem__(self, index):
        return {
            "path": f"p{index}",
            "lq": torch.full((3, 5, 7), index, dtype=torch.uint8),
            "label": index,
            "gt": torch.arange(11.0) + index,
            "empty": torch.zeros(0),
            "seed": torch.tensor(index),
            "size": (index, np.float32(0.5)),
            "turned": torch.arange(6).reshape(2, 3).T + index,
        }


class Growing(Numbered):
    """Samples whose size is the same within each batch of two."""

    def __getitem__(self, index):
        return {"x": torch.full(((index * 37) // 74 * 100 % 1700 + 1,), index)}


def loaded(data=None, *, workers=2, **more):
    more = dict(batch_size=4, collate_fn=SharedBatches()) | more
    return DataLoader(data or Numbered(), num_workers=workers, **more)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_of_torch_and_stay_so_while_they_are_kept(workers):
    torchs = [default_collate([Numbered()[4 * batch + place] for place in range(4)]) for batch in range(20)]
    loader = loaded(workers=workers)
    assert same(list(loader), torchs)
    assert same(list(loader), torchs)  # new workers, new memory
    assert same([{**batch} for batch in loader], torchs)


def test_batches_arrive_from_workers_that_are_started_anew():
    loader = loaded(workers=1, multiprocessing_context="spawn")
    assert [batch["label"].tolist() for batch in loader] == [
        [4 * n, 4 * n + 1, 4 * n + 2, 4 * n + 3] for n in range(20)
    ]


def test_memory_is_used_again_and_that_of_ended_workers_is_given_back():
    loader = loaded()
    for _ in range(3):
        places = []
        for batch in loader:
            places.append(batch["gt"].untyped_storage().data_ptr())
            held = loader.collate_fn._of_workers
        assert len(places) == 20
        assert len(set(places)) == sum(map(len, held.values())) <= 2 * 4  # two ahead, one here, one between
        assert len(held) == 2


def test_any_part_of_a_batch_keeps_its_memory():
    kept = [batch["lq"][2, 1, 3:] for batch in loaded()]
    assert [part.unique().tolist() for part in kept] == [[4 * number + 2] for number in range(20)]


def test_a_process_that_is_forked_meanwhile_gives_nothing_back():
    batches = iter(loaded(workers=1))
    batch = next(batches)
    child = os.fork()
    if not child:
        del batch
        os._exit(0)
    os.waitpid(child, 0)
    for _ in batches:
        pass
    assert batch["label"].tolist() == [0, 1, 2, 3]
    assert batch["lq"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_batches_of_several_sizes_fit():
    batches = list(loaded(Growing(), batch_size=2, workers=1))
    assert len({batch["x"].shape for batch in batches}) > 10
    one_by_one = [batch["x"].clone() for batch in loaded(Growing(), batch_size=2, workers=1)]
    assert same([batch["x"] for batch in batches], one_by_one)
    assert [batch["x"][:, 0].tolist() for batch in batches] == [[2 * n, 2 * n + 1] for n in range(40)]


def test_tensors_that_do_not_fit_together_are_refused_as_by_torch():
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size|resize"):
        list(loaded(Growing(), batch_size=8))
