import os
import subprocess
import sys

from branchynet import drawing, utils, visualize

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib import pyplot

PS = [[0.001], [0.01], [0.1], [1.0]]
ACCS = np.array([0.99, 0.992, 0.991, 0.98])
TIMES = np.array([2.0, 1.5, 1.1, 0.6])
EXITS = np.array([[70, 30], [80, 20], [90, 10], [100, 0]])
EPOCHS = [np.array([2.0, 1.5, 1.0]), np.array([1.0, 0.8, 0.4])]  # two epochs, three exits

LABELS = np.array([0, 0, 1, 1])  # of four samples; PROBS are the answers of two exits
PROBS = np.array(
    [[[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], [[0.8, 0.2], [0.7, 0.3], [0.1, 0.9], [0.6, 0.4]]], 'f'
)


class Net:
    """Three samples at two exits: one undecided, one certain, one between."""

    def get_SM(self, x):
        return [np.array([[0.5, 0.5], [1, 0], [0.9, 0.1]], 'f'), np.array([[0.6, 0.4], [1, 0], [0.99, 0.01]], 'f')]


CALLS = {
    'layers': lambda path: visualize.plot_layers(EPOCHS, path, 'Epoch', 'Loss'),
    'curves': lambda path: visualize.plot_curves(EPOCHS, EPOCHS, output_path=path),
    'tradeoff': lambda path: visualize.plot_tradeoff(PS, ACCS, TIMES, 0.991, 3.0, path),
    'roc': lambda path: visualize.plot_roc(PS, ACCS, TIMES, 0.991, 3.0, path),
    'line_tradeoff': lambda path: visualize.plot_line_tradeoff(
        ACCS, TIMES, PS, EXITS, 0.991, 3.0, knee_idx=0, all_samples=True, output_path=path
    ),
    'layer_entropy': lambda path: visualize.plot_layer_entropy(Net(), None, path),
    'exits': lambda path: visualize.plot_exits(EXITS, ACCS, EXITS, ACCS, output_path=path),
    'leaving': lambda path: visualize.plot_leaving(
        np.random.RandomState(0).rand(4, 1, 8, 8), LABELS, PROBS, np.array([0, 0, 1, 1]), 'ab', output_path=path
    ),
    'confusion': lambda path: visualize.plot_confusion(LABELS, PROBS, 'ab', path),
    'reliability': lambda path: visualize.plot_reliability(LABELS, PROBS, output_path=path),
    'runtimes': lambda path: visualize.plot_runtimes(['a', 'b'], [1.0, 2.0], output_path=path),
}
every_figure = pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)


@pytest.fixture(autouse=True)
def quick_and_tidy(monkeypatch):
    monkeypatch.setitem(drawing.STYLE, 'savefig.dpi', 50)
    yield
    pyplot.close('all')


def lines(axes):
    """What a reader sees: label to (x, y) of every line."""
    return {line.get_label(): tuple(line.get_data()) for line in axes.lines}


def assert_line(axes, label, x, y):
    np.testing.assert_allclose(lines(axes)[label], (x, y), rtol=1e-6)


# What every figure keeps to


@every_figure
def test_saving_touches_nothing_but_the_file(call, tmp_path):
    pyplot.close('all')
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    for name, magic in (('a.png', b'\x89PNG'), ('b.pdf', b'%PDF'), ('new/folder/c.svg', b'<?xml')):
        call(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['a.png', 'b.pdf', 'c.svg', 'folder', 'new']
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == backend


@every_figure
def test_without_a_path_the_figure_is_pyplots_and_stays_open(call):
    before = dict(matplotlib.rcParams)
    figure = call(None)
    assert pyplot.fignum_exists(figure.number) and len(pyplot.get_fignums()) == 1
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize('suffix', ['.png', '.pdf', '.svg'])
def test_same_figure_same_bytes(suffix, tmp_path):
    first, second = tmp_path / ('1' + suffix), tmp_path / ('2' + suffix)
    CALLS['line_tradeoff'](first)
    CALLS['line_tradeoff'](str(second))
    assert first.read_bytes() == second.read_bytes()


def test_failure_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'figure.png'
    path.write_text('old')

    def full(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='disk full'):
        visualize.plot_layers(EPOCHS, path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ['old']


@pytest.mark.parametrize(
    'name, message', [('figure', 'must end in its format, as in .pdf or .png, not .*figure'), ('figure.xyz', 'xyz')]
)
def test_format_that_cannot_be_written(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        visualize.plot_curves(EPOCHS, EPOCHS, output_path=tmp_path / 'new' / name)
    assert not list(tmp_path.iterdir())


def test_failure_while_drawing_leaves_no_open_figure():
    with pytest.raises(ValueError):
        visualize.plot_runtimes(['a', 'b'], [1.0, 2.0, 3.0])
    assert pyplot.get_fignums() == []


def test_first_figures_of_a_process_stay_open_while_others_are_saved(tmp_path):
    code = """import sys
from branchynet import visualize
visualize.plot_layers([1., 2.])
visualize.plot_layers([1., 2.], sys.argv[1])
visualize.plot_layers([1., 2.])
from matplotlib import get_backend, pyplot
get_backend()
print(pyplot.get_fignums())
"""
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 'figure.png')],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == '[1, 2]\n'


def test_importing_does_not_import_matplotlib():
    code = 'import sys; import branchynet.visualize; print("matplotlib" in sys.modules)'
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout == 'False\n'


# What the single figures show


@settings(max_examples=12, deadline=None)
@given(hnp.arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 8)), elements=st.floats(-10, 10)))
def test_layers_is_one_line_per_exit(values):
    (axes,) = visualize.plot_layers(list(values)).axes
    assert len(axes.lines) == values.shape[1]
    for k in range(values.shape[1]):
        assert_line(axes, f'Exit {k + 1}', np.arange(1, len(values) + 1), values[:, k])
    pyplot.close('all')


def test_layers_of_the_released_call(tmp_path):
    """A tuple over the epochs for each exit, by zip; and a name without a suffix."""
    (axes,) = visualize.plot_layers(zip(*[(3.0, 6.0), (2.0, 5.0), (1.0, 4.0)]), str(tmp_path / 'loss')).axes
    assert_line(axes, 'Exit 1', [1, 2, 3], [3, 2, 1])
    assert_line(axes, 'Exit 2', [1, 2, 3], [6, 5, 4])
    assert len(axes.lines) == 2 and (tmp_path / 'loss.png').exists()


def test_layers_of_main():
    (axes,) = visualize.plot_layers([3.0, 2.0, 1.0], xlabel='Epoch', ylabel='Loss').axes
    assert len(axes.lines) == 1 and axes.get_legend() is None
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 3], [2, 2], [3, 1]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('Epoch', 'Loss')


def test_curves():
    accs = [a / 10 for a in EPOCHS]
    loss, accuracy = visualize.plot_curves(EPOCHS, accs, labels=['early', 'middle', 'last']).axes
    assert_line(loss, 'middle', [1, 2], [1.5, 0.8])
    assert_line(accuracy, 'last', [1, 2], [0.1, 0.04])


def test_tradeoff():
    accuracy, time = visualize.plot_tradeoff(PS, ACCS, TIMES, 0.991, 3.0).axes
    assert_line(accuracy, 'BranchyNet', range(4), ACCS)
    assert_line(time, 'BranchyNet', range(4), TIMES)
    assert_line(accuracy, 'Baseline', [0, 1], [0.991, 0.991])
    assert_line(time, 'Baseline', [0, 1], [3, 3])
    assert [t.get_text() for t in time.get_xticklabels()][1:5] == ['0.001', '0.01', '0.1', '1']


@pytest.mark.parametrize('ps', [[0.1, 0.5, 1.0, 2.0], [[0.1, 0.2], [0.1, 0.5], [0.5, 1], [1, 2]]])
def test_settings_may_be_scalars_or_lists(ps):
    expected = ['0.1', '0.5', '1', '2'] if np.ndim(ps) == 1 else ['0.1, 0.2', '0.1, 0.5', '0.5, 1', '1, 2']
    ticks = [t.get_text() for t in visualize.plot_tradeoff(ps, ACCS, TIMES, 0.991, 3.0).axes[1].get_xticklabels()]
    assert [text for text in ticks if text] == expected
    assert len(visualize.plot_roc(ps, ACCS, TIMES, 0.991, 3.0).axes[0].lines[0].get_xdata()) == 4


def test_roc():
    (axes,) = visualize.plot_roc(PS, ACCS, TIMES, 0.991, 3.0).axes
    assert_line(axes, 'All settings', 3 / TIMES, 100 * (ACCS - 0.991))
    assert_line(axes, 'Best settings', [2, 3 / 1.1, 5], [0.1, 0, -1.1])
    assert_line(axes, 'Baseline', [1], [0])
    assert [t.get_text() for t in axes.texts] == ['T = 0.01', 'T = 1']


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(1, 10)), min_size=1, max_size=15))
def test_roc_joins_exactly_the_settings_that_no_other_beats(points):
    accs, times = np.array(points, float).T
    (axes,) = visualize.plot_roc(range(len(accs)), accs / 10, times, 0.5, 5.0).axes
    best = {(a, t) for a, t in points if not any(a2 >= a and t2 <= t and (a2, t2) != (a, t) for a2, t2 in points)}
    gains, changes = lines(axes)['Best settings']
    assert {(round(c / 10 + 5), round(5 / g)) for g, c in zip(gains, changes)} == best
    assert len(gains) == len(best) and (np.diff(gains) > 0).all()
    pyplot.close('all')


def test_line_tradeoff():
    (axes,) = visualize.plot_line_tradeoff(
        ACCS, TIMES, PS, EXITS, 0.991, 3.0, orig_label='LeNet', title='On MNIST', our_label='B-LeNet'
    ).axes
    accs, times, _, _ = utils.get_inc_points(ACCS, TIMES, PS, EXITS)
    assert set(lines(axes)) == {'B-LeNet', 'LeNet'}
    assert_line(axes, 'B-LeNet', times, accs)
    assert_line(axes, 'LeNet', [3], [0.991])
    assert axes.get_title() == 'On MNIST'
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('Runtime (ms)', 'Classification Accuracy')


def test_line_tradeoff_with_everything():
    (axes,) = visualize.plot_line_tradeoff(
        ACCS, TIMES, PS, EXITS, 0.991, 3.0, all_samples=True, knee_idx=1, xlim=(0, 4), ylim=(0.97, 1.0), inc_amt=-1
    ).axes
    assert_line(axes, 'Our Method, all settings', TIMES, ACCS)
    assert_line(axes, 'Our Method', TIMES[::-1], ACCS[::-1])
    assert_line(axes, 'Knee: T = 0.1', [1.1], [0.991])
    assert axes.get_xlim() == (0, 4) and axes.get_ylim() == (0.97, 1)


@pytest.mark.parametrize('knee_idx', [-1, 3])
def test_knee_that_does_not_exist(knee_idx):
    with pytest.raises(ValueError, match=f'one of the 3 kept settings, 0 to 2, not {knee_idx}'):
        visualize.plot_line_tradeoff(ACCS[1:], TIMES[1:], PS[1:], EXITS[1:], 0.991, 3.0, knee_idx=knee_idx)


def test_layer_entropy():
    (axes,) = visualize.plot_layer_entropy(Net(), None).axes
    middle = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    expected = [1e-5, middle, np.log(2), 10], [1 / 3, 2 / 3, 1, 1]  # the axis begins at 1e-5 and ends at 10
    np.testing.assert_allclose(lines(axes)['Exit 1'], expected, rtol=1e-5)
    assert set(lines(axes)) == {'Exit 1', 'Exit 2'}


def test_layer_entropy_when_all_are_certain():
    class Certain:
        def get_SM(self, x):
            return [np.eye(3, dtype='f')]

    (axes,) = visualize.plot_layer_entropy(Certain(), None).axes
    np.testing.assert_allclose(lines(axes)['Exit 1'], ([1e-5] * 3 + [10], [1 / 3, 2 / 3, 1, 1]))


def test_exits():
    accs2 = ACCS - 0.01
    (axes,) = visualize.plot_exits(EXITS, ACCS, EXITS[::-1], accs2[::-1], i=1, labels=('A', 'B')).axes
    assert_line(axes, 'A', [0, 0.1, 0.2, 0.3], ACCS[::-1])
    assert_line(axes, 'B', [0, 0.1, 0.2, 0.3], accs2[::-1])
    assert axes.get_xlabel() == 'Samples leaving at exit 2'


def test_exits_joins_the_most_accurate_of_each_share():
    (axes,) = visualize.plot_exits([[5, 5], [5, 5], [8, 2]], [0.7, 0.9, 0.6], [[1, 1]], [0.5], labels=('A', 'B')).axes
    assert_line(axes, 'A', [0.5, 0.8], [0.9, 0.6])
    points = [line for line in axes.lines if line.get_linestyle() == 'None']
    np.testing.assert_allclose(points[0].get_data(), ([0.5, 0.5, 0.8], [0.7, 0.9, 0.6]))


def test_runtimes():
    (axes,) = visualize.plot_runtimes(['LeNet', 'B-LeNet'], [3.37, 0.62]).axes
    assert [bar.get_width() for bar in axes.patches] == [3.37, 0.62]
    assert [t.get_text() for t in axes.texts] == ['3.37', '0.62']
    assert axes.yaxis_inverted() and axes.get_xlabel() == 'Runtime (ms)'


@pytest.mark.parametrize('ylim, expected', [((0.75, 0.80), '79 %'), ((0.986, 0.9925), '99.1 %'), ((0, 1), '80 %')])
def test_percent_labels_have_the_decimals_they_need(ylim, expected):
    (axes,) = visualize.plot_line_tradeoff(ACCS, TIMES, PS, EXITS, 0.991, 3.0, ylim=ylim).axes
    texts = [t.get_text() for t in axes.get_yticklabels()]
    assert expected in texts and len({len(t.partition('.')[2]) for t in texts}) == 1


def test_figures_of_the_experiments_are_drawn_whole(tmp_path):
    paths = [str(tmp_path / f'{k}.png') for k in range(4)]
    curves = {'released clock': ([0.2, 0.5, 1.1], [0.7, 0.8, 0.79]), 'whole clock': ([0.4, 0.6, 1.3], [0.7, 0.8, 0.79])}
    figure = visualize.plot_relative_tradeoff(
        curves, 0.78, 1, [(0.3, 0.75), (1.0, 0.79)], 0.784, 'AlexNet', output_path=paths[0]
    )
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == [
        'B-AlexNet, released clock',
        'Knee',
        'B-AlexNet, whole clock',
        'B-AlexNet, published',
        'AlexNet, published',
        'AlexNet',
    ]
    figure = visualize.plot_exit1([0, 0.5, 1], [0.8, 0.8, 0.7], [0, 0.1, 2], [(0, 0.79)], output_path=paths[1])
    assert [axes.get_ylabel() for axes in figure.axes] == ['Accuracy', 'Highest entropy (nat)']
    figure = visualize.plot_comparison(['0', '1'], [[0.7, 0.72], [0.75]], {'1': 0.77}, output_path=paths[2])
    assert [tuple(line.get_ydata()) for line in figure.axes[0].lines] == [(0.7, 0.72, 0.75), (0.71, 0.75), (0.77,)]
    figure = visualize.plot_comparison(['a', 'b'], [[0.7], [0.75]], {}, intervals=[(0.6, 0.8), (0.7, 0.9)])
    assert [tuple(line.get_ydata()) for line in figure.axes[0].lines] == [(0.7, 0.75), (0.6, 0.8), (0.7, 0.9)]
    figure = visualize.plot_cache_misses([1, 2], [0.1, 0.2], 3, 0.3, [(4, 0.4)], (5, 0.5), output_path=paths[3])
    assert [axes.get_title() for axes in figure.axes] == ['Measured', 'Published']
    assert all(os.path.getsize(path) for path in paths)


def test_leaving_samples_are_sorted_by_entropy_and_named():
    figure = CALLS['leaving'](None)
    titles = [axes.get_title(loc='left') for axes in figure.axes]
    assert titles[:4] == [
        'Exit 1, right: easiest of 1',
        'Exit 1, right: hardest of 1',
        'Exit 1, wrong: easiest of 1',
        'Exit 1, wrong: hardest of 1',
    ]
    assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == ['b\nis a\n0.67']


def test_confusion_is_in_percent_of_the_true_class():
    first, second = CALLS['confusion'](None).axes
    np.testing.assert_allclose(first.images[0].get_array(), [[50, 50], [0, 100]])
    assert first.get_title() == 'Exit 1: 75.00 % right' == second.get_title().replace('2:', '1:')


def test_answers_that_are_nan_are_never_right():
    probs = np.array([[[0.9, 0.1], [np.nan, np.nan]], [[0.2, 0.8], [0.7, 0.3]]])
    labels, names = np.zeros(2, int), ['cat', 'dog']
    figure = visualize.plot_leaving(np.zeros((2, 1, 4, 4)), labels, probs, np.zeros(2, int), names)
    titles = [axes.get_title(loc='left') for axes in figure.axes]
    assert titles[0] == 'Exit 1, right: easiest of 1' and titles[2] == 'Exit 1, wrong: easiest of 1'
    (text,) = [t.get_text() for t in figure.axes[2].get_xticklabels()]
    assert text == 'NaN\nis cat\nnan'
    with pytest.raises(ValueError, match='^exit 0 answers NaN: expected probabilities$'):
        visualize.plot_reliability(labels, probs)

    class Net:
        def get_SM(self, x):
            return [probs[0]]

    (axes,) = visualize.plot_layer_entropy(Net(), None).axes
    assert axes.lines[0].get_ydata().max() == 0.5


def test_reliability_states_its_scores():
    text = CALLS['reliability'](None).axes[0].texts[0].get_text()
    loss = -np.mean(np.log([0.9, 0.4, 0.8, 0.7]))
    brier = np.mean(np.square([0.1, 0.6, 0.2, 0.3]))
    assert text == f'log loss {loss:.3f} nat\nBrier score {brier:.3f}'
