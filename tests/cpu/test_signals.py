"""Signals while oneDNN works: each program runs apart, since a fault ends it."""

import os
import signal
import subprocess
import sys
import threading

from branchynet.cpu import signals

import pytest

pytestmark = pytest.mark.onednn

PROGRAM = """if True:
    import signal, sys, time
    if 'without' in sys.argv:
        sys.modules['llvmlite'] = None
    import branchynet
    import numpy as np
    from branchynet.cpu import convolution, linear, pointwise, threads
    from branchynet.cpu.geometry import Geometry

    threads.set_num_threads(2)
    random = np.random.RandomState(0)
    x, w, gy = (random.rand(*shape).astype('f') for shape in ((64, 300), (300, 300), (64, 300)))
    images, of_images = (random.rand(8, 32, 12, 12).astype('f') for _ in range(2))
    long = random.rand(4, 3, 32, 32).astype('f'), random.rand(16, 3, 31, 31).astype('f')
    geometry = Geometry(long[0].shape, long[1].shape, (4, 16, 11, 11), (3, 3), (15, 15))
    tasks = {
        'linear': lambda: [linear.linear(x, w, None), linear.linear_gx(w, gy), linear.linear_gw(x, gy)],
        'pointwise': lambda: pointwise.gradients_of_w(images, of_images, 8),
        'convolution': lambda: [convolution.convolution(*long, None, geometry)],
    }
    task = tasks[sys.argv[1]]
    expected = [array.copy() for array in task()]
    count = 0

    def handle(number, frame):
        global count
        count += 1

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    start = time.time()
    while time.time() < start + 2 or count <= 100:
        assert time.time() < start + 60, count
        assert all(map(np.array_equal, task(), expected))
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


@pytest.mark.parametrize('isa', ['', 'AVX2'])
@pytest.mark.parametrize('options', [[], ['without']])
@pytest.mark.parametrize('task', ['linear', 'pointwise', 'convolution'])
def test_signals_change_nothing(task, options, isa):
    """An empty handler; oneDNN alone writes over the heap."""
    environment = {**os.environ, 'ONEDNN_MAX_CPU_ISA': isa} if isa else None
    program = [sys.executable, '-c', PROGRAM, task, *options]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert not done.returncode, (done.returncode, done.stderr)


def test_a_handler_runs_when_the_call_has_ended_also_where_it_raises():
    def interrupt():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        order.append('called')

    def handle(number, frame):
        order.append('handled')
        raise KeyboardInterrupt

    order, before = [], signal.signal(signal.SIGUSR1, handle)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        with pytest.raises(KeyboardInterrupt):
            signals.undisturbed(interrupt)
        assert order == ['called', 'handled']
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGUSR1, before)
