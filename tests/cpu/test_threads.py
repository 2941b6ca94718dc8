"""The number of threads changes the time and nothing else; what goes wrong in a thread reaches the caller."""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
import weakref
from functools import partial

import branchynet
from branchynet import cpu
from branchynet.cpu import team, threads
from branchynet.links.resnet import ResBlock
from branchynet.networks import alex_cifar10, lenet_mnist

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st

COUNTS = [1, 2, 3, 8]


@pytest.fixture(autouse=True)
def count_put_back():
    yield
    cpu.set_num_threads(None)


# The same bits


def small_resnet():
    relu = branchynet.FL(F.relu)
    return branchynet.BranchyNet(
        [
            L.Convolution2D(3, 6, 3, pad=1),
            L.BatchNormalization(6),
            relu,
            ResBlock(6, 6),
            branchynet.Branch([L.Linear(6 * 24 * 24, 4)]),
            ResBlock(6, 12, 2),
            branchynet.FL(F.average_pooling_2d, 2),
            branchynet.FL(F.local_response_normalization),
            branchynet.Branch([branchynet.FL(F.dropout, 0.5), L.Linear(12 * 6 * 6, 4)]),
        ]
    )


# Batches of several blocks, the last of them smaller.
NETS = {'lenet': (lenet_mnist.get_network, (97, 1, 28, 28)), 'resblock': (small_resnet, (51, 3, 24, 24))}


def train(name, steps=2):
    """Everything that comes out of some joint steps: losses, outputs, gradients, weights, statistics."""
    make, shape = NETS[name]
    np.random.seed(0)
    net = make()
    x = np.random.RandomState(1).randn(*shape).astype(np.float32)
    t = np.random.RandomState(2).randint(0, 4, shape[0]).astype(np.int32)
    found = {}
    with cpu.fast():
        for i in range(steps):
            losses, accuracies = net.train(x, t)
            found['losses %d' % i] = np.array([losses, accuracies], dtype=np.float64)
        for path, param in net.namedparams():
            found[path] = param.array.copy()
            if param.grad is not None:
                found[path + ' gradient'] = param.grad.copy()
        for path, link in net.namedlinks():
            for key in getattr(link, '_persistent', ()):
                found[f'{path} {key}'] = np.array(getattr(link, key))
        with chainer.no_backprop_mode(), chainer.using_config('train', False):
            found['output'] = chainer.as_array(net.main.test(x))
    return found


def digest(found):
    """One hash of all bits."""
    sha = hashlib.sha256()
    for key in sorted(found):
        sha.update(key.encode())
        sha.update(np.ascontiguousarray(found[key]).tobytes())
    return sha.hexdigest()


REFERENCE = {}  # name of the net: what one thread gives


def with_one_thread(name):
    if name not in REFERENCE:
        cpu.set_num_threads(1)
        REFERENCE[name] = train(name)
    return REFERENCE[name]


@pytest.mark.parametrize('count', COUNTS)
@pytest.mark.parametrize('name', NETS)
def test_bits_do_not_depend_on_the_threads_of_the_pool(name, count):
    expected = with_one_thread(name)
    cpu.set_num_threads(count)
    found = train(name)
    assert not [key for key in expected if not np.array_equal(found[key], expected[key])]
    assert same(found, expected)


@pytest.mark.onednn
@pytest.mark.parametrize(
    'variables',
    [
        dict(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', BRANCHYNET_NUM_THREADS='3'),
        dict(OMP_NUM_THREADS='2', OPENBLAS_NUM_THREADS='1', BRANCHYNET_NUM_THREADS='8'),
        dict(
            OMP_NUM_THREADS='8',
            OPENBLAS_NUM_THREADS='2',
            OMP_DYNAMIC='true',
            OMP_THREAD_LIMIT='1',
            BRANCHYNET_NUM_THREADS='1',
        ),
        dict(OMP_NUM_THREADS='2,2', OMP_PROC_BIND='close', BRANCHYNET_NUM_THREADS='2'),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_the_environment(variables):
    expected = {name: digest(with_one_thread(name)) for name in NETS}
    found = run(
        """
        from cpu.test_threads import NETS, digest, train
        for name in NETS:
            print(name, digest(train(name)))
    """,
        **variables,
    )
    assert dict(line.split() for line in found.splitlines()) == expected


LAYERS = {
    'linear': [
        (F.linear, (51, 3456), (4, 3456)),
        (F.linear, (402, 6), (373, 6)),
        (F.linear, (285, 625), (7, 625)),
        (F.linear, (128, 9), (3456, 9)),
        (F.linear, (128, 3456), (1, 3456)),
    ],
    'convolution': [
        (F.convolution_2d, (8, 128, 7, 7), (256, 128, 7, 7)),
        (F.convolution_2d, (8, 3, 24, 24), (40, 3, 5, 5)),
        (F.convolution_2d, (2, 512, 2, 2), (300, 512, 2, 2)),
        (F.convolution_2d, (2, 24, 40, 40), (32, 24, 15, 15)),
        (F.convolution_2d, (8, 16, 1, 300), (16, 16, 1, 64)),
        (partial(F.convolution_2d, stride=2), (8, 64, 16, 16), (128, 64, 1, 1)),
        (partial(F.convolution_2d, dilate=2), (8, 48, 16, 16), (64, 48, 3, 3)),
        (partial(F.convolution_2d, groups=2), (8, 64, 16, 16), (128, 32, 3, 3)),
        (partial(F.convolution_2d, groups=32), (8, 32, 32, 32), (32, 1, 3, 3)),
        (partial(F.convolution_2d, groups=2), (2, 48, 40, 40), (32, 24, 15, 15)),
    ],
}


@pytest.mark.onednn
@pytest.mark.parametrize('kind', LAYERS)
def test_bits_of_layers_that_no_published_network_has_do_not_depend_on_the_threads_of_openblas(kind):
    code = f"""
        from branchynet import cpu
        import chainer
        from cpu.test_threads import LAYERS, array, digest

        for f, *shapes in LAYERS['{kind}']:
            x, w = (chainer.Variable(array(0, shape)) for shape in shapes)
            with cpu.fast():
                y = f(x, w)
                y.grad = array(1, y.shape)
                y.backward()
            print(shapes, digest({{'y': y.array, 'gx': x.grad, 'gw': w.grad}}))
    """
    found = {run(code, OPENBLAS_CORETYPE='Haswell', OPENBLAS_NUM_THREADS=count) for count in ('1', '2', '3')}
    assert len(found) == 1


def array(seed, shape):
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


def run(code, timeout=100, **variables):
    """What the code prints, in a Python of its own."""
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([tests, os.path.dirname(tests)]), **variables}
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.onednn
def test_one_core_gives_the_same_bits():
    if not hasattr(os, 'sched_setaffinity'):
        pytest.skip('no affinity here')
    found = run("""
        import os
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        from cpu.test_threads import digest, train
        print(digest(train('lenet')))
    """)
    assert found.strip() == digest(with_one_thread('lenet'))


@settings(max_examples=30, deadline=None, derandomize=True)
@pytest.mark.filterwarnings('ignore:A batch with no more than one sample')
@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 12), st.integers(1, 20), st.integers(1, 3))
def test_bits_of_any_shape_do_not_depend_on_the_threads(b, c, size, o, kernel):
    rng = np.random.RandomState(b)
    arrays = [
        rng.randn(*shape).astype(np.float32)
        for shape in ((b, c, size, size), (o, c, kernel, kernel), (o,), (5, o * size * size))
    ]

    def step():
        x, w, b, u = (chainer.Variable(a) for a in arrays)
        h = F.max_pooling_2d(F.relu(F.convolution_2d(x, w, b, pad=kernel // 2)), 3, 1, 1, cover_all=False)
        h = F.local_response_normalization(h)[:, :, :size, :size]
        h = F.batch_normalization(h, b, b)
        y = F.linear(h, u)
        loss = F.softmax_cross_entropy(y, np.arange(len(y), dtype=np.int32) % 5)
        loss.backward()
        return [y.array, loss.array] + [v.grad for v in (x, w, b, u)]

    results = []
    with cpu.fast():
        for count in COUNTS:
            cpu.set_num_threads(count)
            results.append([a.tobytes() for a in step()])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize('name,size', [('alexnet', 9), ('resblock', 2), ('resblock', 1), ('wide', 3), ('wide', 20)])
def test_bits_of_small_and_large_batches_do_not_depend_on_the_threads(name, size):
    make, x_shape = {
        'alexnet': (alex_cifar10.get_network, (3, 32, 32)),
        'resblock': (small_resnet, (3, 24, 24)),
        'wide': (Wide, (3, 80, 80)),
    }[name]
    x = np.random.RandomState(1).randn(size, *x_shape).astype(np.float32)
    t = np.arange(size, dtype=np.int32) % 4
    results = []
    for count in COUNTS:
        cpu.set_num_threads(count)
        np.random.seed(0)
        net = make()
        with cpu.fast():
            losses = net.train(x, t)[0]
        results.append((losses, digest({path: param.array for path, param in net.namedparams()})))
    assert all(result == results[0] for result in results)


class Wide(chainer.Chain):
    """Batch normalisation of more than 8 MB, in parts, and a parameter of several blocks."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.convolution = L.Convolution2D(3, 20, 3, pad=1)
            self.norm = L.BatchNormalization(20)
            self.linear = L.Linear(20 * 40 * 40, 10)
        self.optimizer = chainer.optimizers.Adam().setup(self)

    def train(self, x, t):
        h = self.convolution(x)
        y = self.linear(F.average_pooling_2d(F.relu(self.norm(h) + h), 2))
        loss = F.softmax_cross_entropy(y, t)
        self.cleargrads()
        loss.backward()
        self.optimizer.update()
        return loss.item(), None


def test_the_threads_do_work(monkeypatch):
    pytest.importorskip('llvmlite')
    monkeypatch.setattr(team, '_team', [])
    cpu.set_num_threads(3)
    train('lenet', 1)
    assert len(team._team) == 2 and all(member.is_alive() for member in team._team)


def test_repeated_steps_give_the_same_bits():
    assert same(train('resblock'), train('resblock'))


# The number of threads


@pytest.mark.parametrize('count', [0, -1, 'x', '', 1.5, '1.5', True, '²', [2], 0.0])
def test_a_wrong_number_of_threads_is_refused(count):
    cpu.set_num_threads(3)
    with pytest.raises(ValueError) as e:
        cpu.set_num_threads(count)
    assert str(count) in str(e.value) and '\n' not in str(e.value) and 'expected' in str(e.value)
    assert threads.num_threads() == 3


def test_the_number_is_what_was_set_or_the_environments_or_the_cores(monkeypatch):
    monkeypatch.setenv('BRANCHYNET_NUM_THREADS', '5')
    assert threads.num_threads() == 5
    cpu.set_num_threads(2)
    assert threads.num_threads() == 2
    cpu.set_num_threads(np.int64(3))
    assert threads.num_threads() == 3
    cpu.set_num_threads(None)
    assert threads.num_threads() == 5
    monkeypatch.delenv('BRANCHYNET_NUM_THREADS')
    if hasattr(os, 'sched_getaffinity'):
        assert threads.num_threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv('BRANCHYNET_NUM_THREADS', 'many')
    with pytest.raises(ValueError, match='many'):
        threads.num_threads()


def test_there_are_no_more_threads_than_asked_for():
    before = threading.active_count()
    for count in (1, 2, 4, 2):
        cpu.set_num_threads(count)
        seen = set()
        threads.run(lambda i: (seen.add(threading.get_ident()), time.sleep(0.001)), 50)
        assert len(seen) <= count
        assert threading.active_count() <= before + count
    cpu.set_num_threads(None)
    deadline = time.time() + 5
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


# The pool


@pytest.mark.parametrize('count', COUNTS)
@pytest.mark.parametrize('tasks', [0, 1, 2, 3, 100, 1000])
def test_every_task_runs_once(count, tasks):
    cpu.set_num_threads(count)
    done = []
    threads.run(done.append, tasks)
    assert sorted(done) == list(range(tasks))


def test_tasks_may_share_work_themselves():
    cpu.set_num_threads(3)
    done = []
    threads.run(lambda i: threads.run(lambda j: done.append((i, j)), 5), 7)
    assert sorted(done) == [(i, j) for i in range(7) for j in range(5)]


def check_pool_works():
    x = np.random.RandomState(0).randn(40, 3, 33, 33).astype(np.float32)
    w = np.random.RandomState(1).randn(4, 3, 3, 3).astype(np.float32)
    expected = F.max_pooling_2d(F.relu(F.convolution_2d(x, w)), 2).array
    with cpu.fast():
        found = F.max_pooling_2d(F.relu(F.convolution_2d(x, w)), 2).array
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    done = []
    threads.run(done.append, 100)
    assert sorted(done) == list(range(100))


@pytest.mark.parametrize('count', COUNTS)
@pytest.mark.parametrize('failing', [{0}, {17}, {99}, set(range(100))], ids=['first', 'middle', 'last', 'all'])
def test_a_workers_exception_reaches_the_caller(count, failing):
    cpu.set_num_threads(count)
    running = []

    def broken_task(i):
        running.append(i)
        time.sleep(0.0005)
        if i in failing:
            raise KeyError('task %d' % i)
        running.remove(i)

    with pytest.raises(KeyError, match='task') as e:
        threads.run(broken_task, 100)
    text = ''.join(traceback.format_exception(e.type, e.value, e.tb))
    assert 'broken_task' in text and "raise KeyError('task %d' % i)" in text
    assert text.count('KeyError: ') == 1  # once, not one for every worker
    # Nothing works on after it was raised.
    left = list(running)
    time.sleep(0.01)
    assert running == left and set(left) <= failing
    check_pool_works()


@pytest.mark.parametrize('error', [SystemExit, KeyboardInterrupt, MemoryError, GeneratorExit])
def test_other_exceptions_of_workers_reach_the_caller_too(error):
    cpu.set_num_threads(2)

    def task(i):
        if i == 7:
            raise error('mine')

    with pytest.raises(error, match='mine'):
        threads.run(task, 20)
    check_pool_works()


def test_a_raised_exception_keeps_nothing_alive():
    cpu.set_num_threads(2)
    array = np.zeros(10)
    alive = weakref.ref(array)

    def task(i, array=array):
        raise KeyError(i)

    with contextlib.suppress(KeyError):
        threads.run(task, 20)
    threads.run(lambda i: None, 20)
    del array, task
    gc.collect()
    assert alive() is None


def test_an_error_in_a_kernel_reaches_the_caller(monkeypatch):
    from branchynet.cpu import local_response

    cpu.set_num_threads(2)
    x = np.ones((40, 3, 33, 33), np.float32)
    with cpu.fast():
        expected = F.local_response_normalization(x).array
        with monkeypatch.context() as m:
            m.setattr(local_response, '_window_sum', lambda *args: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                F.local_response_normalization(x)
        np.testing.assert_array_equal(F.local_response_normalization(x).array, expected)
    check_pool_works()


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
@pytest.mark.parametrize('count', [1, 2, 3])
def test_an_interrupt_of_the_caller_ends_promptly(count):
    cpu.set_num_threads(count)
    done = []

    def task(i):
        if i == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append(i)

    with pytest.raises(KeyboardInterrupt):
        threads.run(task, 3000)
    assert len(done) < 1000
    left = len(done)
    time.sleep(0.05)
    assert len(done) == left
    check_pool_works()


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
def test_a_signal_ends_training_promptly_and_leaves_the_pool_usable():
    run(
        """
        import os, signal, threading
        import numpy as np
        from branchynet import cpu
        import chainer, chainer.functions as F
        from cpu.test_threads import check_pool_works

        cpu.set_num_threads(3)
        x = np.ones((64, 8, 40, 40), np.float32)
        w = np.ones((16, 8, 5, 5), np.float32)

        def step():
            v = chainer.Variable(x)
            F.sum(F.max_pooling_2d(F.relu(F.convolution_2d(v, w, pad=2)), 2)).backward()

        with cpu.fast():
            step()  # makes the machine code; Python loses a signal that comes while an object is destroyed
        for wait in (.05, .17):
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                with cpu.fast():
                    while True:
                        step()
            except KeyboardInterrupt:
                pass
            check_pool_works()
    """,
        timeout=60,
    )


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
def test_control_c_ends_the_program_promptly():
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    script = textwrap.dedent("""
        from branchynet.cpu import set_num_threads, threads
        import time
        set_num_threads(2)
        print('runs', flush=True)
        threads.run(lambda i: time.sleep(.01), 100000)
    """)
    process = subprocess.Popen(
        [sys.executable, '-c', script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        env={**os.environ, 'PYTHONPATH': os.path.dirname(tests)},
    )
    try:
        assert process.stdout.readline() == 'runs\n'
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode not in (0, None) and 'KeyboardInterrupt' in errors


# Processes and Python's own threads


def compute(seed=0):
    """Something that uses convolution, pooling, LRN, batch normalisation and matrix products, fast."""
    rng = np.random.RandomState(seed)
    x, w, u = (rng.randn(*shape).astype(np.float32) for shape in ((20, 5, 30, 30), (8, 5, 5, 5), (10, 8 * 15 * 15)))
    x, w, u = (chainer.Variable(a) for a in (x, w, u))
    h = F.max_pooling_2d(F.relu(F.convolution_2d(x, w, pad=2)), 2)
    h = F.batch_normalization(F.local_response_normalization(h), np.ones(8, np.float32), np.zeros(8, np.float32))
    y = F.linear(h, u)
    y.grad = np.ones_like(y.array)
    y.backward()
    return [y.array, x.grad, w.grad, u.grad]


def compute_in_a_child(queue, count):
    if count is not None:
        cpu.set_num_threads(count)
    with cpu.fast():
        queue.put([a.tobytes() for a in compute()])


@pytest.mark.parametrize('method,count', [('fork', None), ('fork', 1), ('fork', 2), ('spawn', 2), ('forkserver', None)])
def test_other_processes(method, count, monkeypatch):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f'no {method} here')
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([tests, os.path.dirname(tests)]))
    cpu.set_num_threads(3)
    with cpu.fast(), warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # Python 3.12 warns of any fork with threads
        expected = [a.tobytes() for a in compute()]
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=compute_in_a_child, args=(queue, count))
        child.start()
        assert [a.tobytes() for a in compute()] == expected  # the parent works on beside it
        assert queue.get(timeout=60) == expected
        child.join(60)
        assert child.exitcode == 0
        assert [a.tobytes() for a in compute()] == expected


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_fork_in_the_middle_of_work():
    run(
        """
        import os, threading, warnings
        warnings.simplefilter('ignore')
        from branchynet import cpu
        from cpu.test_threads import compute

        cpu.set_num_threads(2)
        with cpu.fast():
            expected = [a.tobytes() for a in compute()]
            stop = threading.Event()
            def work():
                while not stop.is_set():
                    compute()
            worker = threading.Thread(target=work)
            worker.start()
            for _ in range(5):
                child = os.fork()
                if not child:
                    import faulthandler
                    faulthandler.dump_traceback_later(100, exit=True)
                    os._exit([a.tobytes() for a in compute()] != expected)
                assert os.waitpid(child, 0)[1] == 0
            stop.set()
            worker.join()
    """,
        timeout=300,
    )


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_children_of_children():
    run(
        """
        import os, warnings
        warnings.simplefilter('ignore')
        from branchynet import cpu
        from cpu.test_threads import compute

        cpu.set_num_threads(2)
        with cpu.fast():
            expected = [a.tobytes() for a in compute()]
            for _ in range(2):
                child = os.fork()
                assert [a.tobytes() for a in compute()] == expected
                if child:
                    status = os.waitpid(child, 0)[1]
                    os._exit(status != 0)
    """,
        timeout=60,
    )


def test_a_task_for_which_no_thread_starts_is_waited_for(monkeypatch):
    cpu.set_num_threads(3)
    threads.run(lambda i: time.sleep(0.01), 3)  # starts threads
    pool = threads._get_pool()

    def fails():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pool, '_adjust_thread_count', fails)
    begun, done = [], []
    both = threading.Barrier(2)

    def task(i):
        begun.append(i)
        if i < 2:
            both.wait(60)  # a thread of the pool has the other one
        time.sleep(0.2 * (threading.current_thread() is not threading.main_thread()))
        done.append(i)

    threads.run(task, 2)
    assert sorted(done) == sorted(begun) == [0, 1]
    monkeypatch.undo()
    threads.run(done.append, 9)
    assert len(done) == 11


@pytest.mark.parametrize('count', [1, 2, 3])
def test_several_python_threads_at_once(count):
    cpu.set_num_threads(count)
    found, errors = {}, []

    def work(seed):
        try:
            for _ in range(4):
                found.setdefault(seed, set()).add(digest({str(i): a for i, a in enumerate(compute(seed))}))
        except BaseException as e:
            errors.append(e)

    with cpu.fast():
        expected = {seed: {digest({str(i): a for i, a in enumerate(compute(seed))})} for seed in range(4)}
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert not errors
    assert found == expected


def test_the_number_of_threads_changes_while_others_work():
    errors, stop = [], threading.Event()

    def work():
        try:
            while not stop.is_set():
                assert digest({str(i): a for i, a in enumerate(compute())}) == expected
        except BaseException as e:
            errors.append(e)

    with cpu.fast():
        expected = digest({str(i): a for i, a in enumerate(compute())})
        worker = threading.Thread(target=work)
        worker.start()
        for i in range(60):
            cpu.set_num_threads(1 + i % 4)
            time.sleep(0.005)
        stop.set()
        worker.join(60)
    assert not errors


def test_a_pool_at_the_end_of_python():
    """Threads of the pool do not keep a program from ending, nor from a last step in atexit."""
    assert (
        run(
            """
        import atexit
        from branchynet import cpu
        from cpu.test_threads import compute
        cpu.set_num_threads(2)
        cpu.enable()
        atexit.register(lambda: print(compute()[0].shape))
        compute()
    """,
            timeout=60,
        )
        == '(20, 10)\n'
    )


def threads_at_work():
    """How many threads share tasks."""
    seen = set()
    threads.run(lambda i: (time.sleep(0.01), seen.add(threading.get_ident())), 8)
    return len(seen)


def test_a_task_that_sets_the_number_leaves_a_pool_that_works():
    cpu.set_num_threads(2)
    caller = threading.get_ident()

    def task(i):
        time.sleep(0.02)
        if threading.get_ident() != caller:
            cpu.set_num_threads(2)

    threads.run(task, 4)
    assert threads_at_work() == 2


def test_the_number_is_set_while_other_threads_work(monkeypatch):
    """The pool may be forgotten after it was looked for."""
    cpu.set_num_threads(2)
    find = threads._get_pool

    def find_and_forget():
        pool = find()
        threads._forget_pool()
        return pool

    monkeypatch.setattr(threads, '_get_pool', find_and_forget)
    done = []
    threads.run(done.append, 20)
    assert sorted(done) == list(range(20))


def test_after_several_interrupts_no_thread_works_on():
    program = """if True:
        import signal, threading, time
        from branchynet.cpu import threads

        threads.set_num_threads(2)
        caller, working = threading.get_ident(), [0]

        def task(i):
            if threading.get_ident() == caller:
                time.sleep(60)
            working[0] = 1
            time.sleep(1)
            working[0] = 0

        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.1)
        try:
            threads.run(task, 2)
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            print('works' if working[0] else 'rests')
    """
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60)
    assert run.stdout == 'rests\n', run.stderr


@pytest.mark.parametrize('given, name', [('four', 'BRANCHYNET_NUM_THREADS'), (2.5, 'number of threads')])
def test_a_wrong_number_is_named_with_what_was_expected(monkeypatch, given, name):
    with pytest.raises(ValueError, match=f'{name} is {given}: expected a whole number, 1 or more'):
        if name == 'number of threads':
            cpu.set_num_threads(given)
        else:
            monkeypatch.setenv(name, given)
            threads.num_threads()


def test_disable_gives_scratch_memory_back():
    x = np.random.RandomState(0).rand(16, 32, 32, 32).astype(np.float32) + np.float32(50)
    with cpu.fast():
        L.BatchNormalization(32)(x)  # whose mean is far from zero: it needs scratch memory
    assert hasattr(threads._local, 'scratch') or threads.SCRATCHES
    cpu.disable()
    assert not hasattr(threads._local, 'scratch') and not threads.SCRATCHES
