import multiprocessing
import subprocess
import sys

from branchynet import augment

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def images(n, c=3, seed=0):
    return np.random.RandomState(seed).randn(n, c, 32, 32).astype(np.float32)


def labels(n):
    return np.arange(n, dtype=np.int32)


def in_one_go(x):
    return augment.normalize(augment.crops(x))


def test_crops():
    x = images(2)
    views = augment.crops(x).reshape(2, 36, 3, 24, 24)
    assert views.dtype == np.float32
    np.testing.assert_array_equal(views[1, 0], x[1, :, :24, :24])
    np.testing.assert_array_equal(views[1, 1], x[1, :, :24, 4:28])
    np.testing.assert_array_equal(views[1, 8], x[1, :, 8:, 8:])
    np.testing.assert_array_equal(views[:, 18:], views[:, :18, :, :, ::-1])


def test_resized_windows_are_pillows_nearest_neighbour():
    image = pytest.importorskip('PIL.Image')
    x = images(1, 1)
    views = augment.crops(x).reshape(36, 24, 24)
    for v, (top, left) in enumerate(((i, j) for i in (0, 2, 4) for j in (0, 2, 4)), 9):
        window = image.fromarray(x[0, 0, top : top + 28, left : left + 28])
        np.testing.assert_array_equal(views[v], np.asarray(window.resize((24, 24), image.NEAREST)))


def test_views_of_an_image_differ():
    assert len({view.tobytes() for view in augment.crops(images(1))}) == 36


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.floats(-100, 100), st.floats(0.1, 10))
def test_normalize_subtracts_mean_and_then_std(n, mean, std):
    x = (images(n) * std + mean).astype(np.float32)
    y = augment.normalize(x)
    assert y.dtype == np.float32 and y.shape == x.shape
    for before, after in zip(x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:])):
        expected = before.astype(np.float64) - before.mean(dtype=np.float64) - before.std(dtype=np.float64)
        np.testing.assert_allclose(after, expected, atol=1e-3)
    x = x.astype(np.float64)  # in which 1e-5 is seen
    expected = x - x.mean(axis=(2, 3), keepdims=True) - x.std(axis=(2, 3), keepdims=True) - 1e-5
    np.testing.assert_allclose(augment.normalize(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('batchsize', [1, 3, 7, 100])
def test_batches_in_order(batchsize):
    x, y = images(7), labels(7)
    batches = list(augment.augmentation(x, y, batchsize))
    assert [len(t) for _, t in batches] == [36 * min(batchsize, 7 - i) for i in range(0, 7, batchsize)]
    np.testing.assert_array_equal(np.concatenate([t for _, t in batches]), np.repeat(y, 36))
    np.testing.assert_array_equal(np.concatenate([v for v, _ in batches]), in_one_go(x))
    assert batches[0][0].dtype == np.float32 and batches[0][1].dtype == np.int32
    assert not multiprocessing.active_children()


def test_worker_ends_when_the_generator_is_closed():
    batches = augment.augmentation(images(50), labels(50), 5)
    next(batches)
    assert len(multiprocessing.active_children()) == 1
    batches.close()
    assert not multiprocessing.active_children()


def test_worker_ends_when_the_consumer_raises():
    with pytest.raises(KeyError):
        for _ in augment.augmentation(images(50), labels(50), 5):
            raise KeyError
    assert not multiprocessing.active_children()


def test_nothing_starts_before_the_first_batch_is_asked_for():
    batches = augment.augmentation(images(5), labels(5), 5)
    assert not multiprocessing.active_children()
    batches.close()


def test_two_at_once():
    x = images(6)
    pairs = list(zip(augment.augmentation(x, labels(6), 2), augment.augmentation(x[::-1], labels(6), 2)))
    for of_both, samples in zip(zip(*pairs), (x, x[::-1])):
        np.testing.assert_array_equal(np.concatenate([a for a, _ in of_both]), in_one_go(samples))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(multiprocessing.get_start_method() != 'fork', reason='the worker must inherit the fault')
def test_workers_exception_arrives_with_its_traceback(monkeypatch):
    def faulty(x):
        raise FloatingPointError('a fault in the worker')

    monkeypatch.setattr(augment, 'normalize', faulty)
    with pytest.raises(FloatingPointError, match='a fault in the worker') as caught:
        list(augment.augmentation(images(3), labels(3), 1))
    assert 'in faulty' in str(caught.value.__cause__)
    assert not multiprocessing.active_children()


def test_killed_worker():
    batches = augment.augmentation(images(200), labels(200), 1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(RuntimeError, match='the augmentation worker ended with exit code -9'):
        list(batches)
    assert not multiprocessing.active_children()


SPAWNED = """
import multiprocessing
import numpy as np
from branchynet import augment

if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')
    x, y = np.random.rand(5, 3, 32, 32).astype('f'), np.arange(5, dtype='i')
    views = np.concatenate([v for v, _ in augment.augmentation(x, y, 2)])
    assert (views == augment.normalize(augment.crops(x))).all()
    batches = augment.augmentation(x, y, 2)
    next(batches)
    batches.close()
    assert not multiprocessing.active_children()
    print('done')
"""


def test_spawned_worker(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SPAWNED)
    run = subprocess.run([sys.executable, '-W', 'error::ResourceWarning', str(script)], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ('done\n', '')


@pytest.mark.parametrize(
    'x, y, batchsize, error, message',
    [
        (np.zeros((2, 3, 32, 32)), labels(2), 1, TypeError, '^x must be a NumPy array of float32, not of float64$'),
        (images(2).tolist(), labels(2), 1, TypeError, '^x must be a NumPy array, not a list$'),
        (images(2), [0, 1], 1, TypeError, '^y must be a NumPy array, not a list$'),
        (np.zeros((2, 3, 28, 28), 'f'), labels(2), 1, ValueError, r'\(N, C, 32, 32\), not \(2, 3, 28, 28\)'),
        (images(2), labels(3), 1, ValueError, r'one label per image, not \(3,\)'),
        (images(2), labels(2), 0, ValueError, 'batchsize must be at least 1, not 0'),
    ],
)
def test_bad_arguments_are_named_at_once(x, y, batchsize, error, message):
    with pytest.raises(error, match=message):
        augment.augmentation(x, y, batchsize)
