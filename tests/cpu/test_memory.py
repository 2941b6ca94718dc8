"""The memory that large arrays take again."""

import gc
import threading

from branchynet import cpu
from branchynet.cpu import memory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = [memory._SMALLEST, memory._SMALLEST + 4, memory._PAGE, memory._PAGE * 2 + 4096]


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    monkeypatch.setattr(memory, '_kept', memory.Kept())


def take(size):
    return memory.empty((size // 4,))


@given(st.lists(st.tuples(st.sampled_from(SIZES), st.booleans(), st.integers(0, 5)), max_size=40))
@settings(deadline=None)
def test_arrays_have_memory_of_their_own_and_no_more_is_held_than_was_in_use(steps):
    memory._kept = memory.Kept()
    alive, most = [], 0
    for i, (size, drops, which) in enumerate(steps):
        array = take(size)
        array[[0, -1]] = i
        alive.append((i, array[1:], array[-1:], size))  # views keep the memory as well
        del array
        most = max(most, sum(size for *_, size in alive))
        if drops:
            del alive[which % len(alive)]
        used = sum(size for *_, size in alive)
        assert memory._kept.used == used
        assert used <= memory._kept.held <= most
        assert all(end[0] == number for number, _, end, _ in alive)
    del alive
    memory.release()
    assert memory._kept.used == memory._kept.held == 0


def test_the_next_array_takes_the_memory_of_one_that_is_gone():
    first = take(SIZES[2])
    address = first.ctypes.data
    view = first.reshape(2, -1).T
    del first
    second = take(SIZES[2])
    assert second.ctypes.data != address
    del view
    assert take(SIZES[2]).ctypes.data == address
    assert address % memory._PAGE == 0


def test_small_arrays_are_numpys():
    assert memory.empty((3, 5)).shape == (3, 5)
    assert memory.empty((0,)).size == 0
    assert memory._kept.held == 0


def test_threads_share_the_memory():
    errors = []

    def work(number):
        random = np.random.RandomState(number)
        for _ in range(60):
            arrays = [take(SIZES[i]) for i in random.randint(0, 3, 4)]
            for i, array in enumerate(arrays):
                array[::1000] = number * 10 + i
            if any((array[::1000] != number * 10 + i).any() for i, array in enumerate(arrays)):
                errors.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    gc.collect()
    assert memory._kept.used == 0
    assert 0 < memory._kept.held <= 8 * 4 * SIZES[2]


def test_memory_that_there_is_not_is_not_counted():
    array = take(SIZES[2])
    with pytest.raises(MemoryError):
        memory.empty((1 << 46,))
    assert memory._kept.held == memory._kept.used == SIZES[2]
    address = array.ctypes.data
    del array
    assert take(SIZES[2]).ctypes.data == address


def test_disable_gives_the_memory_back():
    take(SIZES[3])
    assert memory._kept.held == SIZES[3]
    cpu.disable()
    assert memory._kept.held == 0


def test_addresses_are_numpys():
    x = np.zeros((2, 3, 4, 5), np.float32)
    read_only = np.zeros(3, np.float32)
    read_only.flags.writeable = False
    for array in x, x.transpose(0, 3, 1, 2), x[0, 0], x[0, 0].T, x[1:], x.transpose(3, 2, 1, 0), x[:0], read_only:
        assert memory.address(array) == array.ctypes.data
