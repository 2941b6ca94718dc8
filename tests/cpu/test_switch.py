"""Chainer takes the kernels only while it is told to, and is its old self afterwards."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import textwrap
import threading
import warnings

from branchynet import cpu
from branchynet.cpu import onednn

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

X = np.random.RandomState(0).randn(4, 3, 9, 9).astype(np.float32)


def chainers_methods():
    """{(class, name): method} of every class in Chainer."""
    return {
        (cls, name): value
        for module_name, module in list(sys.modules.items())
        if module_name.split('.')[0] == 'chainer'
        for cls in list(vars(module).values())
        if isinstance(cls, type) and cls.__module__.startswith('chainer.')
        for name, value in list(vars(cls).items())
        if callable(value) or isinstance(value, (staticmethod, property))
    }


def chainers_functions():
    return {
        (module_name, name): value
        for module_name, module in list(sys.modules.items())
        if module_name.split('.')[0] == 'chainer'
        for name, value in list(vars(module).items())
        if callable(value)
    }


BEFORE = {**chainers_methods(), **chainers_functions()}


def changed():
    now = {**chainers_methods(), **chainers_functions()}
    return {key for key, value in BEFORE.items() if now.get(key) is not value}


def is_on():
    return bool(changed())


@pytest.fixture(autouse=True)
def off():
    assert not changed()
    yield
    cpu.disable()
    assert not changed()


def run(code, *options, env=None, errors=''):
    """What the code prints, in a Python of its own."""
    done = subprocess.run(
        [sys.executable, *options, '-c', textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    assert (done.stderr == '') == (errors == ''), done.stderr
    return done


def test_it_is_off_by_default():
    assert not is_on()
    run("""
        import branchynet, chainer.functions.connection.convolution_2d as c
        before = dict(vars(c.Convolution2DFunction))
        import branchynet.cpu
        branchynet.cpu.disable()
        assert dict(vars(c.Convolution2DFunction)) == before
    """)


def test_enable_and_disable():
    cpu.enable()
    assert is_on()
    cpu.enable()
    cpu.disable()
    assert not changed()
    cpu.disable()
    assert not changed()


def test_a_block_is_entered_once_at_a_time():
    block = cpu.fast()
    with block:
        with (
            pytest.raises(RuntimeError, match=r'^this cpu\.fast\(\) is in use already: '),
            block,
        ):
            pass
        assert is_on()
    assert not changed()
    with block:
        assert is_on()
    assert not changed()


def test_fast_and_nested():
    with cpu.fast():
        assert is_on()
        with cpu.fast():
            assert is_on()
        assert is_on()
    assert not changed()


def test_fast_within_enable_leaves_it_on():
    cpu.enable()
    with cpu.fast():
        assert is_on()
    assert is_on()
    cpu.disable()
    assert not changed()


def test_disable_within_fast_turns_off():
    with cpu.fast():
        cpu.disable()
        assert not changed()
        with cpu.fast():
            assert is_on()
        assert not changed()
    assert not changed()


def test_an_exception_puts_back():
    with pytest.raises(KeyError, match='mine'), cpu.fast():
        raise KeyError('mine')
    assert not changed()
    with pytest.raises(chainer.utils.type_check.InvalidType), cpu.fast():
        F.linear(np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32))
    assert not changed()


def test_a_generator_closed_early_puts_back():
    def steps():
        with cpu.fast():
            yield is_on()

    generator = steps()
    assert next(generator)
    generator.close()
    assert not changed()


def test_fast_as_a_decorator():
    @cpu.fast()
    def step():
        return is_on()

    assert [step(), step()] == [True, True]
    assert not changed()


def test_on_and_off_many_times():
    for _ in range(50):
        with cpu.fast():
            y = F.relu(X).array
    np.testing.assert_array_equal(y, np.maximum(X, 0))
    assert not changed()


def test_methods_of_others_stay():
    """Who had a method of Chainer's replaced before gets that back."""
    function = chainer.functions.activation.relu.ReLU
    chainers = function.forward_cpu

    def theirs(self, inputs):
        return chainers(self, inputs)

    function.forward_cpu = theirs
    try:
        with cpu.fast():
            np.testing.assert_array_equal(F.relu(X).array, np.maximum(X, 0))
            np.testing.assert_array_equal(F.relu(X.astype(np.float64)).array, np.maximum(X, 0))
        assert function.forward_cpu is theirs
    finally:
        function.forward_cpu = chainers


class Model(chainer.Chain):
    """Nothing of this project in it."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.conv1 = L.Convolution2D(None, 8, 3, pad=1)
            self.bn1 = L.BatchNormalization(8)
            self.conv2 = L.Convolution2D(8, 8, 3, stride=2, nobias=True)
            self.fc = L.Linear(None, 5)

    def forward(self, x):
        h = F.max_pooling_2d(F.relu(self.bn1(self.conv1(x))), 2)
        h = F.local_response_normalization(F.relu(self.conv2(h)))
        return self.fc(F.dropout(F.average_pooling_2d(h, 1), 0.2))


def train(optimizer, steps=3):
    np.random.seed(0)
    model = L.Classifier(Model())
    optimizer.setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(1e-3))
    t = np.arange(len(X), dtype=np.int32)
    losses = []
    for _ in range(steps):
        optimizer.update(model, X, t)
        losses.append(float(chainer.as_array(model.loss)))
    state = {path: param.array.copy() for path, param in model.namedparams()}
    state.update(avg_mean=model.predictor.bn1.avg_mean.copy(), avg_var=model.predictor.bn1.avg_var.copy())
    return losses, state


@pytest.mark.parametrize(
    'make',
    [
        lambda: chainer.optimizers.MomentumSGD(0.01),
        lambda: chainer.optimizers.SGD(0.01),
        # A large eps: where a gradient is next to nothing Adam's step is a matter of rounding.
        lambda: chainer.optimizers.Adam(1e-3, eps=1e-2),
    ],
    ids=['momentum', 'sgd', 'adam'],
)
def test_training_of_a_plain_chainer_model(make):
    losses, state = train(make())
    with cpu.fast():
        fast_losses, fast_state = train(make())
    np.testing.assert_allclose(fast_losses, losses, rtol=1e-4)
    assert fast_state.keys() == state.keys()
    for path in state:
        scale = np.abs(state[path]).max()
        np.testing.assert_allclose(fast_state[path], state[path], rtol=1e-3, atol=max(1e-4 * scale, 1e-6), err_msg=path)


def test_chainers_trainer_and_serializers(tmp_path):
    def extend(epochs):
        np.random.seed(0)
        data = chainer.datasets.TupleDataset(X, np.arange(len(X), dtype=np.int32))
        model = L.Classifier(Model())
        optimizer = chainer.optimizers.SGD(0.01).setup(model)
        updater = chainer.training.StandardUpdater(chainer.iterators.SerialIterator(data, 2, shuffle=False), optimizer)
        chainer.training.Trainer(updater, (epochs, 'epoch'), out=str(tmp_path)).run()
        return model

    expected = extend(2)
    with cpu.fast():
        found = extend(2)
    chainer.serializers.save_npz(str(tmp_path / 'model.npz'), found)
    loaded = L.Classifier(Model())
    chainer.serializers.load_npz(str(tmp_path / 'model.npz'), loaded)
    with chainer.using_config('train', False):
        np.testing.assert_allclose(loaded.predictor(X).array, expected.predictor(X).array, rtol=1e-3, atol=1e-5)


def test_a_loss_made_outside_is_differentiated_inside_and_the_reverse():
    np.random.seed(0)
    model = Model()
    with chainer.using_config('train', False):
        model(X)
        model.cleargrads()
        F.sum(model(X) ** 2).backward()
        expected = [param.grad.copy() for param in model.params()]
        for inside in (True, False):
            model.cleargrads()
            if inside:
                loss = F.sum(model(X) ** 2)
                with cpu.fast():
                    loss.backward()
            else:
                with cpu.fast():
                    loss = F.sum(model(X) ** 2)
                loss.backward()
            for param, gradient in zip(model.params(), expected):
                np.testing.assert_allclose(param.grad, gradient, rtol=1e-3, atol=1e-4 * np.abs(gradient).max())


def test_chainers_hooks_and_debug_mode_see_the_functions():
    with cpu.fast(), chainer.using_config('debug', True), chainer.function_hooks.TimerHook() as hook:
        F.sum(Model()(X)).backward()
    assert {'Convolution2DFunction', 'ReLU', 'LinearFunction'} <= set(hook.summary())


def test_debug_mode_finds_nan():
    with cpu.fast(), chainer.using_config('debug', True), pytest.raises(RuntimeError, match='NaN'):
        F.convolution_2d(X * np.float32(np.nan), np.ones((2, 3, 3, 3), np.float32))


# Without the wheel

STEP = """
    import numpy as np
    import branchynet, chainer, chainer.functions as F
    from branchynet import cpu

    x, w, b = (np.random.RandomState(0).randn(*s).astype(np.float32) for s in ((4, 3, 9, 9), (4, 3, 3, 3), (4,)))

    def step():
        variables = [chainer.Variable(a) for a in (x, w, b)]
        h = F.relu(F.convolution_2d(*variables, pad=1))
        h = F.local_response_normalization(F.max_pooling_2d(h, 3, 2))
        h = F.batch_normalization(F.average_pooling_2d(h, 2), np.ones(4, 'f'), np.zeros(4, 'f'))
        y = F.sum(F.linear(h, np.random.RandomState(1).randn(5, h.size // 4).astype('f')) ** 2)
        y.backward()
        return [y.array] + [v.grad for v in variables]

    expected = step()
"""
MISSING = {
    'no files listed': 'lambda name: None if name == NAME else files(name)',
    'files without the library': 'lambda name: [] if name == NAME else files(name)',
    'not installed': 'lambda name: not_found(name) if name == NAME else files(name)',
}


def without(how):
    return f"""
    import importlib.metadata, warnings
    NAME, files = 'onednn-cpu-gomp', importlib.metadata.files
    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)
    importlib.metadata.files = {MISSING[how]}
    """


CHECK = """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(3):
            with cpu.fast():
                found = step()
        cpu.enable()
        step()
        cpu.disable()
    for a, e in zip(found, expected):
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-3 * np.abs(e).max())
    mine = [w for w in caught if 'oneDNN' in str(w.message) or 'onednn' in str(w.message)]
    print(len(mine), len(caught), mine and 'onednn-cpu-gomp' in str(mine[0].message))
"""


@pytest.mark.skipif((sys.platform, platform.machine()) != ('linux', 'x86_64'), reason='no wheel for this platform')
def test_the_library_loads_wherever_its_own_libraries_do():
    """So that what is skipped where it does not load is skipped for no other reason."""
    try:
        ctypes.CDLL('libgomp.so.1')
    except OSError:
        with pytest.raises(OSError, match='libgomp'):
            onednn.library()
    else:
        onednn.library()


@pytest.mark.parametrize('how', MISSING)
def test_without_the_wheel_it_works_with_one_warning(how):
    assert run(without(how) + STEP + CHECK).stdout.split() == ['1', '1', 'True']


@pytest.mark.parametrize('how', ['no files listed', 'not installed'])
def test_the_warning_is_shown_at_the_callers_line(how):
    done = run(
        without(how)
        + STEP
        + """
    cpu.enable()  # here
    cpu.disable()
    with cpu.fast():
        pass
    """,
        errors='one',
    )
    assert done.stderr.count('Warning') == 1, done.stderr
    assert 'pip install onednn-cpu-gomp' in done.stderr
    # Shown as the caller's own line, not as one of contextlib's or this package's.
    assert done.stderr.startswith('<string>:'), done.stderr


def test_the_warning_of_fast_is_shown_at_the_callers_line():
    done = run(
        without('not installed')
        + STEP
        + """
    with cpu.fast():
        pass
    """,
        errors='one',
    )
    assert done.stderr.startswith('<string>:'), done.stderr


def test_a_library_that_does_not_load_is_a_missing_one(tmp_path):
    (tmp_path / 'libdnnl.so.3').write_text('not a library')
    done = run(
        """
    import importlib.metadata, pathlib, warnings
    class File:
        name = 'libdnnl.so.3'
        def locate(self):
            return pathlib.Path({!r})
    files = importlib.metadata.files
    importlib.metadata.files = lambda name: [File()] if name == 'onednn-cpu-gomp' else files(name)
    """.format(str(tmp_path / 'libdnnl.so.3'))
        + STEP
        + CHECK
    )
    assert done.stdout.split() == ['1', '1', 'True']


@pytest.mark.onednn
def test_with_the_wheel_there_is_no_warning():
    assert run('import warnings\n' + textwrap.dedent(STEP + CHECK)).stdout.split() == ['0', '0', '[]']


@pytest.mark.onednn
def test_switching_on_is_silent_where_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with cpu.fast():
            F.sum(Model()(X)).backward()


# Many threads


def test_threads_that_enter_and_leave_at_once():
    x, w = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    errors = []

    def work(i):
        try:
            for turn in range(200):
                with cpu.fast():
                    F.linear(x, w)
                    with cpu.fast():
                        F.linear(x.astype(np.float64), w.astype(np.float64))
                    if turn % 7 == i:
                        cpu.disable()
                    if turn % 11 == i:
                        cpu.enable()
                    F.linear(x, w)
                with contextlib.suppress(KeyError), cpu.fast():
                    raise KeyError
        except BaseException as e:
            errors.append(e)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    cpu.disable()
    assert not changed()
    assert F.linear(x.astype(np.float64), w.astype(np.float64)).dtype == np.float64


def test_a_block_outlasts_those_of_other_threads():
    inside, done = threading.Event(), threading.Event()

    def other():
        with cpu.fast():
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=other)
    with cpu.fast():
        thread.start()
        inside.wait(60)
    assert is_on()  # for the other thread
    cpu.disable()
    assert is_on()
    done.set()
    thread.join()
    assert not changed()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_child_that_is_forked_while_another_thread_works():
    run("""
        import os, threading, warnings
        warnings.simplefilter('ignore', DeprecationWarning)  # Python 3.12 warns of any fork with threads
        from branchynet import cpu
        import chainer.functions.connection.linear as linear
        stock = linear.LinearFunction.forward
        inside, done = threading.Event(), threading.Event()
        def other():
            with cpu.fast():
                inside.set()
                done.wait(60)
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(60)
        child = os.fork()
        if not child:
            assert linear.LinearFunction.forward is stock
            with cpu.fast():
                assert linear.LinearFunction.forward is not stock
            assert linear.LinearFunction.forward is stock
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        done.set()
        thread.join()
    """)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_child_that_is_forked_while_another_thread_puts_kernels_in_place():
    run("""
        import os, threading, warnings
        warnings.simplefilter('ignore', DeprecationWarning)  # Python 3.12 warns of any fork with threads
        from branchynet import _chainer, cpu
        from branchynet.cpu import install
        half, forking = threading.Event(), threading.Event()
        set_method, calls = _chainer.set_method, []
        def slowly(*args):
            set_method(*args)
            calls.append(args)
            if len(calls) == 3 and threading.current_thread() is thread:
                half.set()
                forking.wait(60)
        _chainer.set_method = slowly
        thread = threading.Thread(target=cpu.enable)
        thread.start()
        half.wait(60)
        threading.Timer(0.2, forking.set).start()
        child = os.fork()
        if not child:
            in_place = [vars(owner).get(name) is kernel for (owner, name), kernel in install._kernels.items()]
            cpu.disable()
            after = [vars(owner).get(name) is kernel for (owner, name), kernel in install._kernels.items()]
            os._exit(not all(in_place) or any(after))
        assert os.waitpid(child, 0)[1] == 0
        thread.join()
    """)


@pytest.mark.parametrize('inner', ['with cpu.fast(): pass', 'cpu.disable()'])
@pytest.mark.parametrize('outer', ['with cpu.fast(): pass', 'cpu.enable(); cpu.disable()'])
def test_a_handler_that_comes_while_kernels_are_switched_leaves_them_whole(outer, inner):
    run(f"""
        from branchynet import _chainer, cpu
        from branchynet.cpu import install
        with cpu.fast():
            pass
        stock = {{(owner, name): getattr(owner, name) for owner, name in install._kernels}}
        set_method = _chainer.set_method
        for turn in range(2 * len(stock)):
            calls = []
            def interrupted(*args):
                set_method(*args)
                calls.append(args)
                if len(calls) == turn:
                    _chainer.set_method = set_method
                    {inner}
            _chainer.set_method = interrupted
            {outer}
            _chainer.set_method = set_method
            assert not install.are_in_place()
            assert all(getattr(owner, name) is method for (owner, name), method in stock.items()), turn
    """)


@pytest.mark.parametrize('use', ['with cpu.fast(): pass', 'cpu.enable()'])
def test_where_the_warning_is_an_error_nothing_is_in_place(use):
    run(f"""
        import warnings
        from branchynet import cpu
        from branchynet.cpu import install, onednn
        def missing():
            raise OSError('no such library')
        library, onednn.library = onednn.library, missing
        warnings.simplefilter('error')
        try:
            {use}
        except UserWarning:
            pass
        else:
            raise AssertionError
        onednn.library = library
        with cpu.fast():
            assert install.are_in_place()
        assert not install.are_in_place()
    """)


# Subclasses and chainer.static_graph are stock Chainer's


@pytest.mark.onednn
def test_subclasses_keep_their_methods():
    from chainer.functions.activation.relu import ReLU
    from chainer.functions.connection.linear import LinearFunction
    from chainer.functions.normalization.batch_normalization import GeneralBatchNormalizationImpl

    class Doubled(ReLU):
        def forward(self, inputs):
            (y,) = super().forward(inputs)
            return (y * 2,)

    class Shifted(GeneralBatchNormalizationImpl):
        """As ChainerMN's: the statistics are another's."""

        def get_mean_and_var(self, axis, gamma, x, xp, interm_dtype):
            mean, var = super().get_mean_and_var(axis, gamma, x, xp, interm_dtype)
            return mean + 1, var

    class Own(LinearFunction):
        pass

    def shifted():
        gamma, beta = np.ones(3, np.float32), np.zeros(3, np.float32)
        return (
            chainer.functions.normalization.batch_normalization.BatchNormalization(impl_selector=lambda *_: Shifted())
            .apply((X, gamma, beta))[0]
            .array
        )

    def outputs():
        return [Doubled().apply((X,))[0].array, shifted(), Own().apply((X[0, 0], X[0, 0]))[0].array]

    expected = outputs()
    with cpu.fast():
        for found, stock in zip(outputs(), expected):
            np.testing.assert_array_equal(found, stock)
    assert np.abs(expected[1].mean()) > 0.5


def test_static_graph():
    class Static(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.conv = L.Convolution2D(3, 3, 3, pad=1, initialW=chainer.initializers.Normal(0.1))
                self.fc = L.Linear(3 * 9 * 9, 4)

        def forward(self, x):
            return self.fc(F.tanh(self.conv(x) * 0.01))

    class Recorded(Static):
        forward = chainer.static_graph(Static.forward)

    def train(model):
        optimizer = chainer.optimizers.SGD(0.5).setup(model)
        losses = []
        for i in range(4):
            model.cleargrads()
            loss = F.softmax_cross_entropy(model(X + np.float32(i)), np.arange(4, dtype=np.int32))
            loss.backward()
            optimizer.update()
            losses.append(float(loss.array))
        return losses

    plain, recorded = Static(), Recorded()
    recorded.copyparams(plain)
    with chainer.using_config('use_static_graph', True):
        expected = train(plain)
        with cpu.fast():
            np.testing.assert_allclose(train(recorded), expected, rtol=1e-5)


# Calls that differ from the networks' own


def test_adam_with_a_parameter_that_has_no_size_yet():
    chain = chainer.Chain(used=L.Linear(3, 2), unused=L.Linear(None, 3))
    optimizer = chainer.optimizers.Adam().setup(chain)
    with cpu.fast():
        chain.cleargrads()
        before = chain.used.W.array.copy()
        F.sum(chain.used(np.ones((1, 3), np.float32))).backward()
        optimizer.update()
    assert (chain.used.W.array != before).all()


@pytest.mark.onednn
def test_indexes_of_a_maximum_pooling_are_chainers():
    _, expected = F.max_pooling_2d(X, 3, 2, return_indices=True)
    with cpu.fast():
        _, found = F.max_pooling_2d(X, 3, 2, return_indices=True)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found * 2 - 100, expected * 2 - 100)


@pytest.mark.onednn
@pytest.mark.parametrize('pad, cover_all, pixel', [(1, False, 0), (0, True, 2)], ids=['before', 'after'])
def test_the_lowest_number_alone_in_a_window_with_padding(pad, cover_all, pixel):
    lowest = np.zeros((1, 8, 3, 3), np.float32)  # channels enough for the kernels
    lowest[0, 4, pixel, pixel] = np.finfo(np.float32).min  # alone, so that the sum of the image is finite

    def gradient():
        x = chainer.Variable(lowest)
        F.sum(F.max_pooling_2d(x, 2, 2, pad, cover_all)).backward()
        return x.grad

    expected = gradient()
    with cpu.fast():
        np.testing.assert_array_equal(gradient(), expected)
    assert expected[0, 4, pixel, pixel] == 1


@pytest.mark.onednn
def test_an_epsilon_that_is_an_array():
    gamma, beta = np.ones(3, np.float32), np.zeros(3, np.float32)
    expected = F.batch_normalization(X, gamma, beta, eps=np.array(1e-3)).array
    with cpu.fast():
        np.testing.assert_allclose(F.batch_normalization(X, gamma, beta, eps=np.array(1e-3)).array, expected, atol=1e-5)


@pytest.mark.onednn
def test_hooks_see_the_functions_of_a_convolutions_gradient():
    class Hook(chainer.FunctionHook):
        name = 'Names'

        def __init__(self):
            self.seen = []

        def forward_postprocess(self, function, in_data):
            self.seen.append(function.label)

    def seen():
        x, w = chainer.Variable(X), chainer.Variable(np.ones((2, 3, 3, 3), np.float32))
        with Hook() as hook:
            F.sum(F.convolution_2d(x, w)).backward()
        return hook.seen

    expected = seen()
    with cpu.fast():
        assert seen() == expected
