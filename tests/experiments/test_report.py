"""The report and its claims: every number from results.json and claims.toml."""

import copy
import math
import os
import re
import shutil
import subprocess
from functools import reduce

import branchynet  # noqa: F401
from branchynet import cli, exits, provenance
from branchynet.experiments import (
    claims,
    figures,
    generated,
    get_experiment,
    intervals,
    outputs,
    pages,
    report,
    results,
    runs,
    tables,
    verdicts,
)
from branchynet.experiments.run_id import RunId
from branchynet.experiments.verdicts import failures

import attrs
import numpy as np
import pytest


def page_of(results):
    return pages.markdown(report.blocks(results, {})), pages.html('title', report.blocks(results, {}))


def run_of(results):
    return results.experiments['lenet_mnist'][0]


def change(what, name, value):
    """Changes one figure of a run: what is a path of attributes."""

    def apply(run):
        setattr(reduce(getattr, what.split('.'), run) if what else run, name, value)

    return apply


def change_sweep(run):
    run.measurement.sweep[1].accuracy_percent = 77.0


CHANGES = [
    change('measurement.baseline', 'accuracy_percent', 11.11),
    change('measurement.baseline', 'accuracy_as_released_percent', 22.22),
    change('measurement.measured.published.released', 'mean_ms', 33.33),
    change('measurement.measured.published', 'gain_allowed', 6.66),
    change('measurement.measured.knee.whole', 'p95_ms', 44.44),
    change('measurement.measured.knee', 'thresholds', [0.55]),
    change('measurement.measured.knee', 'exit_percent', [66.0, 34.0]),
    change('measurement.measured.published.images', 'only_branchy_right', 11),
    change_sweep,
    change('measurement', 'test_samples', 999),
    change('training', 'batchsize', 65),
    change('training', 'data_sha256', '0123456789abcdef'),
    change('training.joint', 'seconds', 1234.0),
    change('measurement.environment', 'cpu', 'another processor'),
    change('measurement.measured.slowest', 'composed_whole_ms', 1.2),
]


@pytest.mark.parametrize('value', [math.nan, 0.0, -1.0])
@pytest.mark.parametrize('clock', ['released', 'whole'])
def test_a_composed_time_is_a_number_above_0(example, clock, value):
    with pytest.raises(ValueError, match=f'has composed_{clock}_ms {value}: expected a finite number above 0'):
        attrs.evolve(run_of(example).measurement.measured.knee, **{f'composed_{clock}_ms': value})


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_result_changes_the_page(example, change):
    before = page_of(example)
    change(run_of(example))
    for old, new in zip(before, page_of(example)):
        assert old != new


@pytest.mark.parametrize(
    'change',
    [
        {'expected': 98.123},
        {'tolerance': 0.321},
        {'text': 'another text'},
        {'why': 'another reason'},
        {'preset': 'paper'},
        {'source': 'another source'},
    ],
)
def test_a_changed_claim_changes_the_page(example, monkeypatch, change):
    before = page_of(example)
    changed = copy.deepcopy(claims._file())
    next(entry for entry in changed['claim'] if entry['id'] == 'quick/lenet_mnist').update(change)
    monkeypatch.setattr(claims, '_file', lambda: changed)
    for old, new in zip(before, page_of(example)):
        assert old != new


def test_numbers_by_hand(example):
    text, html = page_of(example)
    assert '| 4.00 (at 98.50 %) ' in text and '| 3.00 (at 98.75 %) ' in text  # a gain stands with its accuracy
    low, high = intervals.accuracy([98.5], 10000)
    assert f'| 98.50 ({low:.2f} to {high:.2f}) ' in text
    assert f'{intervals.mcnemar(25, 10):.2g}' in text
    assert 'quick/lenet_mnist' in text and '98.6 or more' in text
    assert 'data-label="Verdict"><div><span class="badge not-run">NOT RUN</span>' in html


def add_seed(results, **baseline):
    """A second seed with another baseline."""
    run = copy.deepcopy(run_of(results))
    run.seed = 1
    for name, value in baseline.items():
        setattr(run.measurement.baseline, name, value)
    results.experiments['lenet_mnist'].append(run)


def test_several_seeds_are_mean_std_and_count(example):
    add_seed(example, accuracy_percent=98.0)
    assert f'97.50 ± {math.sqrt(0.5):.2f} (2)' in page_of(example)[0]


def test_the_interval_of_several_seeds_is_students(example):
    add_seed(example, accuracy_percent=98.0)
    half = 12.706204736 * 0.5  # Student's t of one degree of freedom, times the standard error of 97 and 98
    assert f'{97.5 - half:.2f} to {97.5 + half:.2f}' in page_of(example)[0]


def test_every_published_number_is_a_claim():
    found = {}
    for claim in claims.claims():
        found.setdefault(claim.source, []).append(claim)
    assert len({claim.id for claim in claims.claims()}) == len(claims.claims())
    table = claims.published('table1.csv')
    cells = sum(
        len(text.split()) if column == 'exit_percent' else bool(text)
        for row in table
        for column, text in row.items()
        if column not in ('device', 'network')
    )
    gains = sum(bool(row['gain']) for row in table)  # claimed on either clock
    baselines = sum(not row['network'].startswith('B-') for row in table)  # their accuracy is claimed in two ways
    assert len(found['Table I']) == cells + gains + baselines
    for figure in '3456':
        points = [row for row in claims.published('figures.csv') if row['figure'] == figure]
        assert len(found['figure ' + figure]) >= len(points)
    for name in 'notebook_lenet_mnist.csv', 'notebook_alex_cifar10.csv':
        for row in claims.published(name):
            assert any(claim.expected == float(row['accuracy_percent']) for claim in found["authors' notebooks"])


def test_every_claim_can_be_understood():
    for claim in claims.claims():
        if 'measure' in claim.entry:
            least, most = claim.bounds()
            assert least <= claim.expected <= most or claim.entry.get('floor', 0) > claim.expected
            assert claim.entry['measure'] in claims.MEASURES and claim.why
        else:
            assert claim.not_checked == claim.entry['not_checked'] != ''
        assert (claim.command() is None) == (claim.not_checked is not None)
    unfailing = [claim for claim in claims.claims() if claim.not_checked and 'measure' in claim.entry]
    assert unfailing and all(claim.row['exit'] == 1 and claim.expected == 100 for claim in unfailing)


def verdict_of(results, name):
    return next(v for v in claims.check(results) if v.claim.id == name)


@pytest.mark.parametrize('accuracy, status', [(98.75, 'PASS'), (98.59, 'FAIL')])
def test_a_claim_holds_or_falls_short(example, capsys, accuracy, status):
    for row in run_of(example).measurement.sweep:
        row.accuracy_percent = min(accuracy, row.accuracy_percent)
    assert verdict_of(example, 'quick/lenet_mnist').status == status
    assert verdicts.verdict(example) == (status == 'FAIL')
    short = capsys.readouterr().out
    assert (f'{status}: quick/lenet_mnist: ' in short) == (status == 'FAIL')
    assert verdicts.verdict(example, every=True) == (status == 'FAIL')
    assert f'\n{status}: quick/lenet_mnist: ' in capsys.readouterr().out


def test_failures_of_one_cause_share_the_line_of_the_worst():
    kind = 'notebook/{network}/{thresholds}/accuracy'
    same = [claim for claim in claims.claims() if claim.entry['id'] == kind and claim.experiment == 'alex_cifar10'][:3]
    alone = [claim for claim in claims.claims() if claim.id in ('quick/lenet_mnist', 'quick/alex_cifar10')]
    below = [[claim.bounds()[0] - miss] for claim, miss in zip(same, (1, 2.5, 1.5))]
    failed = [claims.Verdict(claim, 'FAIL', found, '') for claim, found in zip(same, below)]
    failed += [claims.Verdict(claim, 'FAIL', [1.0], '') for claim in alone]
    lines = failures([*failed, claims.Verdict(same[0], 'PASS', [99.0], '')])
    assert [line.split(':')[1] for line in lines] == [
        f' {same[1].id} (the worst of 3 of this kind)',
        ' quick/lenet_mnist',
        ' quick/alex_cifar10',
    ]
    for unknown in ([], [float('nan')], [50.0]):  # no figure, and one that the cause was not found for
        lines = failures([*failed, claims.Verdict(same[2], 'FAIL', unknown, 'no figure')])
        assert len(lines) == 4 and lines[-1].startswith(f'FAIL: {same[2].id}: ') and 'cause' not in lines[-1]


def test_the_line_of_the_worst_counts_equal_figures_once():
    kind = 'notebook/{network}/{thresholds}/accuracy'
    same = [claim for claim in claims.claims() if claim.entry['id'] == kind and claim.experiment == 'alex_cifar10'][:3]
    failed = [claims.Verdict(claim, 'FAIL', [found], '') for claim, found in zip(same, (75.0, 76.0, 75.0))]
    (line,) = failures(failed)
    assert '(the worst of 3 of this kind, with 2 different figures)' in line


def test_what_is_not_run_says_why(example, published):
    assert verdict_of(example, 'quick/alex_cifar10').reason == 'alex_cifar10 was not run'
    assert verdict_of(example, 'table1/CPU/LeNet/accuracy').reason == 'needs preset paper'
    assert verdict_of(example, 'table1/GPU/LeNet/accuracy').reason == 'needs preset paper and a GPU'
    assert verdict_of(published, 'table1/GPU/LeNet/accuracy').reason == 'needs a GPU'
    assert 'machine' in verdict_of(published, 'table1/CPU/LeNet/time').reason
    assert verdict_of(published, 'table1/CPU/LeNet/accuracy').measured == [97.25]
    assert verdict_of(published, 'table1/CPU/LeNet/accuracy before joint training').measured == [97.0]
    assert verdict_of(published, 'table1/CPU/LeNet/accuracy').status == 'FAIL'
    assert verdict_of(published, 'table1/CPU/B-LeNet/exit 2').measured == [10.0]
    assert verdict_of(published, 'table1/CPU/B-LeNet/gain/whole').measured == [3.0]
    assert verdict_of(published, 'notebook/B-LeNet/0.5/gain').measured == [2 / 0.375]  # as the sweep composes it
    example.preset = 'smoke'
    assert {v.status for v in claims.check(example)} == {'NOT RUN'}


def test_the_overview_has_a_row_for_each_network_and_counts_claims_once(example):
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in generated.overview([example]).splitlines()]
    none = ['-'] * 5
    assert rows[2] == ['LeNet (CPU)', '99.20', '97.25 (alone 97.00)', *none, 'quick: 12 + 35 epochs, 1 seed']
    assert rows[3] == ['B-LeNet', '99.25', '98.50', '94.3 5.63', '90.0 10.0', '5.4', '4.00', '3.00', '-']
    other = copy.deepcopy(example)
    run_of(other).measurement.baseline.accuracy_as_released_percent = 99.2
    checked = [v for v in claims.check(example) if v.status != 'NOT RUN']
    text = generated.overview([example, other])
    # A claim that fails in one folder does not hold.
    hold = sum(v.status == 'PASS' for v in checked)
    assert f'Of {len(checked)} claims that these runs can check, {hold} hold; they are ' in text
    different = {(v.claim.text if v.claim.entry['measure'] == 'gain' else '', *v.measured) for v in checked}
    found = re.search(r'they are (\d+) different figures, of which (\d+) hold', text)
    assert len(different) <= int(found.group(1)) <= len(checked) and int(found.group(2)) <= hold
    first = example.experiments['lenet_mnist'][0]
    second = attrs.evolve(first, seed=1, measurement=run_of(other).measurement)
    two = attrs.evolve(example, experiments={'lenet_mnist': [first, second]})
    assert '98.22 ± 1.38 (alone 97.00 ± 0.00)' in generated.overview([two]) and '2 seeds' in generated.overview([two])


def test_report_goes_between_the_markers_of_a_page(example, tmp_path, capsys):
    results.write(str(tmp_path), example)
    page = tmp_path / 'page.md'
    begin, end = '<!-- tables: begin -->', '<!-- tables: end -->'
    page.write_text(f'before\n{begin}\nold\n{end}\nafter\n')
    assert cli.main(['report', str(tmp_path)]) == 0
    assert tables.markdown(example) in capsys.readouterr().out
    assert cli.main(['report', str(tmp_path), '--update', str(page)]) == 0
    assert page.read_text() == f'before\n{begin}\n{generated.overview([example])}{end}\nafter\n'
    page.write_text('no markers')
    assert cli.main(['report', str(tmp_path), '--update', str(page)]) == 2
    assert page.read_text() == 'no markers'


CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium is installed')
def test_the_page_renders_whole_in_a_browser(example, tmp_path):
    (tmp_path / 'figures').mkdir()
    results.write(str(tmp_path), example)
    outputs.write(example, str(tmp_path))
    page = (tmp_path / 'report.html').read_text()
    figures = [name for name in os.listdir(str(tmp_path / 'figures')) if name.endswith('.png')]
    assert page.count('<img ') == len(figures) == 4
    # What a script within says of the images once they are loaded stands in the dumped page.
    probe = tmp_path / 'probe.html'
    probe.write_text(
        page.replace(
            '</body>',
            """<p id="probe"></p><script>onload = () => {
        const whole = [...document.images].filter(i => i.complete && i.naturalWidth > 100).length;
        const wide = document.documentElement.scrollWidth > innerWidth;
        document.getElementById('probe').textContent = `whole ${whole} wide ${wide}`; }</script></body>""",
        )
    )
    for width in 1280, 400:
        run = subprocess.run(
            [
                CHROMIUM,
                '--headless',
                '--no-sandbox',
                '--disable-gpu',
                '--enable-logging=stderr',
                '--v=0',
                f'--user-data-dir={tmp_path / "profile"}',
                f'--window-size={width},900',
                '--virtual-time-budget=5000',
                '--dump-dom',
                probe.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert re.search(r'whole 4 wide false', run.stdout), run.stderr[-2000:]
        assert 'CONSOLE' not in run.stderr


# The exits' figures and the first screen


def test_the_first_screen_has_published_and_measured_side_by_side(example):
    text = page_of(example)[0]
    first = text[: text.index('\n## ')]
    for cells in (
        ['LeNet accuracy (%), as released (after joint training)', '99.20', '97.25'],
        ['LeNet accuracy (%), alone (before joint training)', '99.20', '97.00'],
        ['B-LeNet accuracy (%) (T = 0.025)', '99.25', '98.50'],
        ["B-LeNet: gain, whole clock (not the paper's; multiply-adds allow 4.50)", '5.4', '3.00'],
    ):
        assert re.search(r' *\| '.join(map(re.escape, cells)), first), cells
    assert '**faster than** LeNet: 1 ms against 3 ms per image, a gain of 3.00' in first
    assert 'composed times are from the first 1000 test images only' in first
    run_of(example).measurement.test_samples = 1000
    assert 'composed times are from all test images' in page_of(example)[0]
    run_of(example).measurement.test_samples = 1001
    assert 'composed times are from the first 1000 test images only' in page_of(example)[0]
    run_of(example).measurement.measured.published.gain_whole = 0.5
    assert '**slower than** LeNet' in page_of(example)[0]


def test_reasons_are_grouped_and_count_every_claim_once(example, capsys):
    found = claims.check(example)
    assert verdicts.verdict(example) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 6
    numbers = [int(line.split(': ')[1]) for line in printed if line.startswith('NOT RUN: ')]
    assert sum(numbers) == sum(v.status == 'NOT RUN' for v in found)


def test_a_failure_shows_its_cause(published, monkeypatch):
    changed = copy.deepcopy(claims._file())
    next(e for e in changed['claim'] if e['id'].endswith('/accuracy') and e['where'] == {'role': 'branchy'}).update(
        cause=[{'experiment': 'lenet_mnist', 'explains': [98, 99], 'text': 'the cause <that> was found'}]
    )
    monkeypatch.setattr(claims, '_file', lambda: changed)
    text, html = page_of(published)
    assert 'the cause <that> was found' in text[: text.index('\n## ')]
    assert 'the cause &lt;that&gt; was found' in html and '<that>' not in html


def test_the_published_rows_are_those_of_the_device(example):
    assert re.search(r'\| B-LeNet, published \(CPU\) .* \| 0.62 +\| 5.4 ', page_of(example)[0])
    run_of(example).measurement.device = '@cupy:0'
    text = page_of(example)[0]
    assert re.search(r'\| B-LeNet, published \(GPU\) .* \| 0.34 +\| 4.7 ', text) and 'published (CPU)' not in text


def test_figures_that_cannot_be_drawn_are_named(example, tmp_path):
    run, experiment = run_of(example), get_experiment('lenet_mnist')
    data = experiment.get_data()
    run.training.data_sha256 = provenance.sha256_of_arrays(
        [part[:count] for part, count in zip(data, (256, 256, 1000, 1000))]
    )
    folder = str(tmp_path)
    drawn = figures.draw(experiment, run, folder)
    assert not drawn.paths and 'weights_lenet_mnist_seed0.npz, are not in the folder' in drawn.missing
    assert drawn.missing in pages.markdown(report.blocks(example, {'lenet_mnist': drawn}))
    path = RunId('lenet_mnist', '', 0).weights_path(folder)
    run.training.weights_sha256 = runs.save_weights(experiment.get_network(), path)
    run.training.data_sha256 = 'f' * 64
    assert 'was trained on data of SHA-256 ffff' in figures.draw(experiment, run, folder).missing

    def missing():
        raise FileNotFoundError('mnist is missing: get it so')

    drawn = figures.draw(experiment._replace(get_data=missing), run, folder)
    assert drawn.missing.endswith(' are missing: mnist is missing: get it so.')


def test_the_committed_run_says_again_what_it_said():
    folder = os.path.join(
        os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'results', 'lenet_mnist_quick'
    )
    run, experiment = results.read(folder).experiments['lenet_mnist'][0], get_experiment('lenet_mnist')
    _, _, x, t = runs.data_of(experiment, run.training, run.measurement.test_samples)
    net = experiment.get_network(variant=run.training.variant)
    runs.load_weights(net, RunId('lenet_mnist', '', 0).weights_path(folder), run.training.weights_sha256)
    logits = runs.logits_of(net, x)
    accuracies = 100 * (logits.argmax(axis=2) == t).mean(axis=1)
    assert accuracies == pytest.approx(run.measurement.exit_accuracy_percent, abs=0.02)
    entropies = np.stack([exits.answer(of_exit).entropy for of_exit in logits])
    left = 100 * (exits.leave_at(entropies, experiment.published_thresholds) == 0).mean()
    assert left == pytest.approx(run.measurement.measured.published.exit_percent[0], abs=0.02)


def test_what_reproduces_takes_the_best_of_several_folders(example, published):
    text = generated.reproduces([example, published])
    verdicts = claims.check(published)
    for source in 'Table I', 'section VI':
        counts = [
            sum(v.status == status and v.claim.source == source for v in verdicts)
            for status in ('PASS', 'FAIL', 'NOT RUN')
        ]
        assert re.search(rf'\| {source} *\| {counts[0]} *\| {counts[1]} *\| {counts[2]} ', text)


def test_composed_times_that_differ_from_direct_ones_are_shown_with_both_figures(example):
    knee = run_of(example).measurement.measured.knee
    knee.composed_whole_ms, knee.composed_released_ms = 1.0999, 0.4501
    assert 'Composed times differ' not in tables.markdown(example)
    knee.composed_whole_ms, knee.composed_released_ms = 1.2, 0.35
    text = tables.markdown(example)
    assert '(seed 0, knee setting, released clock: composed 0.35 ms, measured 0.5 ms)' in text
    assert 'cost of the call itself' in text and '`branchynet measure DIR` on a quiet machine' in text
    assert 'another process' not in text
