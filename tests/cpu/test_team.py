"""Machine code that threads share: every call is made once, whoever is busy, asleep or gone."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

from branchynet.cpu import team, threads

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip('llvmlite')


@pytest.fixture(autouse=True)
def count_put_back():
    yield
    threads.set_num_threads(None)


@pytest.fixture(scope='module')
def functions():
    """'count' adds 1 to the number at an address and returns a second one; 'wait' returns when the number is not 0."""
    from branchynet.cpu.emitter import INT, Emitter, integer

    emit = Emitter()

    def pointer(frame):
        (address,) = emit.words(frame, 1)
        return emit.builder.inttoptr(address, INT.as_pointer())

    def count(frame):
        emit.builder.atomic_rmw('add', pointer(frame), integer(1), 'monotonic')
        return emit.words(frame, 2)[1]

    def wait(frame):
        number, head = pointer(frame), emit.builder.append_basic_block()
        emit.builder.branch(head)
        emit.builder.position_at_end(head)
        is_zero = emit.builder.icmp_signed('==', emit.builder.load_atomic(number, 'acquire', 8), integer(0))
        after = emit.builder.append_basic_block()
        emit.builder.cbranch(is_zero, head, after)
        emit.builder.position_at_end(after)

    for function in (count, wait):
        emit.function(function.__name__, 1, function)
    return emit.compiled('count', 'wait')


def check_all_are_counted(function, calls, results=None):
    numbers = np.zeros(calls, np.int64)
    results = [0] * calls if results is None else results
    found = team.run_frames(function, [(numbers.ctypes.data + 8 * i, results[i]) for i in range(calls)])
    assert (numbers == 1).all()
    assert found == np.bitwise_or.reduce(results)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 9), st.lists(st.integers(0, 2**62), min_size=1, max_size=200))
def test_every_frame_is_taken_once_and_the_results_are_combined(functions, count, results):
    threads.set_num_threads(count)
    check_all_are_counted(functions['count'], len(results), results)


@pytest.mark.parametrize('pause', [0, 1e-5, 1e-4, 1e-3, 1e-2])
def test_members_who_sleep_are_woken_and_those_who_fall_asleep_lose_nothing(functions, pause):
    threads.set_num_threads(4)
    for _ in range(300 if pause < 1e-3 else 30):
        check_all_are_counted(functions['count'], 8)
        time.sleep(pause)


def word(member):
    """What a member's first number says."""
    first = (member.address - member._memory.ctypes.data) // 8
    return np.frombuffer(member._memory, np.int64)[first]


def wait_until(condition):
    deadline = time.time() + 30
    while not condition():
        assert time.time() < deadline
        time.sleep(0.001)


@contextlib.contextmanager
def all_busy(functions, count):
    """Threads, another one and all members, that work until the end of the context."""
    threads.set_num_threads(count)
    flag = np.zeros(1, np.int64)
    leader = threading.Thread(target=team.run_frames, args=(functions['wait'], [(flag.ctypes.data, 0)] * count))
    leader.start()
    try:
        wait_until(lambda: [word(member) for member in team._team[: count - 1]] == [team._BUSY] * (count - 1))
        yield
        assert leader.is_alive()
    finally:
        flag[0] = 1
        leader.join(30)
    assert not leader.is_alive()


def test_the_work_is_shared(functions):
    with all_busy(functions, 2):
        pass


def test_nobody_waits_for_a_member_who_is_busy(functions):
    with all_busy(functions, 3):
        for _ in range(100):
            check_all_are_counted(functions['count'], 10)
    check_all_are_counted(functions['count'], 10)


def test_no_more_members_are_asked_than_there_are_frames(functions, monkeypatch):
    asked, members = [], team._members
    monkeypatch.setattr(team, '_members', lambda count: asked.append(count) or members(count))
    threads.set_num_threads(5)
    for calls in (2, 3, 9):
        check_all_are_counted(functions['count'], calls)
    assert asked == [1, 2, 4]


@pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='reads the state of a thread from /proc')
def test_a_signal_does_not_keep_a_member_awake(functions):
    def state():
        with open(f'/proc/self/task/{member.native_id}/stat') as f:
            return f.read().rsplit(')', 1)[1].split()[0]

    threads.set_num_threads(2)
    check_all_are_counted(functions['count'], 10)
    (member,) = team._team[:1]
    wait_until(lambda: word(member) == team._ASLEEP and state() == 'S')
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        for _ in range(20):
            signal.pthread_kill(member.ident, signal.SIGUSR1)
            time.sleep(0.001)
    finally:
        signal.signal(signal.SIGUSR1, before)
    wait_until(lambda: word(member) == team._ASLEEP and state() == 'S')
    check_all_are_counted(functions['count'], 10)


def test_a_signals_handler_may_run_a_kernel_while_members_start(functions, monkeypatch):
    start = team._Member.start

    def interrupted(self):
        if not team._team:
            monkeypatch.setattr(team._Member, 'start', start)
            check_all_are_counted(functions['count'], 5)
        start(self)

    monkeypatch.setattr(team, '_team', [])
    monkeypatch.setattr(team._Member, 'start', interrupted)
    threads.set_num_threads(3)
    check_all_are_counted(functions['count'], 10)
    assert len(team._team) >= 2


def test_a_member_who_has_not_begun_gives_its_order_back(functions, monkeypatch):
    """A member whose thread never runs, as when the system gives it no core."""

    class Absent(team._Member):
        def start(self):
            pass

    monkeypatch.setattr(team, '_team', [])
    monkeypatch.setattr(team, '_Member', Absent)
    threads.set_num_threads(4)
    for _ in range(10):
        check_all_are_counted(functions['count'], 10)
    assert len(team._team) == 3


def test_many_threads_lead_at_once(functions):
    threads.set_num_threads(3)
    errors = []

    def work():
        try:
            for _ in range(200):
                check_all_are_counted(functions['count'], 7)
        except BaseException as e:
            errors.append(e)

    leaders = [threading.Thread(target=work) for _ in range(16)]
    for leader in leaders:
        leader.start()
    for leader in leaders:
        leader.join(60)
    assert not errors and not any(leader.is_alive() for leader in leaders)
    assert len(team._team) < 9


def test_a_task_of_pythons_threads_leads_nobody(functions, monkeypatch):
    threads.set_num_threads(2)
    monkeypatch.setattr(team, '_members', lambda count: 1 // 0)
    threads.run(lambda i: check_all_are_counted(functions['count'], 5), 4)


def test_without_semaphores_pythons_threads_share(functions, monkeypatch):
    monkeypatch.setattr(team, '_has_semaphores', lambda: False)
    monkeypatch.setattr(team, '_members', lambda count: 1 // 0)
    threads.set_num_threads(3)
    check_all_are_counted(functions['count'], 50)


def test_where_no_thread_starts_the_leader_does_all(functions, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team, '_team', [])
    monkeypatch.setattr(team, '_most', team._most)
    monkeypatch.setattr(team._Member, 'start', start)
    threads.set_num_threads(3)
    check_all_are_counted(functions['count'], 50)
    assert not team._team
    monkeypatch.setattr(team, '_Member', lambda: 1 // 0)  # and nobody tries again
    check_all_are_counted(functions['count'], 50)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_forked_child_has_a_team_of_its_own(functions):
    threads.set_num_threads(3)
    check_all_are_counted(functions['count'], 10)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # Python 3.12 warns of any fork with threads
        child = os.fork()
    if not child:
        try:
            for _ in range(20):
                check_all_are_counted(functions['count'], 10)
            os._exit(len(team._team) != 2)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    check_all_are_counted(functions['count'], 10)


def run(code):
    environment = {**os.environ, 'BRANCHYNET_NUM_THREADS': '3'}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.onednn
@pytest.mark.parametrize('channels', [16, 20])  # 20: by oneDNN
@pytest.mark.parametrize('attempt', range(3))
def test_a_program_ends_while_a_thread_of_its_own_computes(attempt, channels):
    run(f"""
        import threading, time
        import numpy as np
        from branchynet.cpu import convolution
        from branchynet.cpu.geometry import Geometry

        shape, w_shape = (64, {channels}, 30, 30), ({channels}, {channels}, 3, 3)
        geometry = Geometry(shape, w_shape, shape, (1, 1), (1, 1))
        x, w = np.ones(shape, np.float32), np.ones(w_shape, np.float32)

        def work():
            while True:
                convolution.convolution_gradients(x, w, x, geometry, True, True)

        convolution.convolution_gradients(x, w, x, geometry, True, True)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
    """)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('attempt', range(3))
def test_a_child_that_is_forked_after_the_first_call_makes_machine_code_of_its_own(attempt):
    run("""
        import os
        import numpy as np
        from branchynet.cpu import adam, elementwise

        elementwise.relu(np.ones(1 << 20, np.float32))
        child = os.fork()
        if not child:
            import faulthandler
            faulthandler.dump_traceback_later(60, exit=True)
            adam._machine_code()
            elementwise.relu(np.ones(1 << 20, np.float32))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """)
