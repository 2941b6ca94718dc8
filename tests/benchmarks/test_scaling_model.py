"""The model of scaling: its formula, its limits, and the page that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import branchynet  # noqa: F401
from branchynet import cli, schema
from branchynet.benchmarks import scaling_model
from branchynet.benchmarks.scaling_model import Link, Load, message_seconds, strong, weak
from branchynet.experiments import pages

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
FAST, SLOW = Link(1e11, 1e-6), Link(1e9, 1e-4)

loads = st.builds(Load, st.integers(10**4, 10**9), st.integers(10**4, 10**9), st.integers(1, 4096))
links = st.builds(Link, st.floats(1e8, 1e12), st.floats(0, 1e-3))
workers = st.integers(2, 256)


def test_a_ring_of_two_and_of_four():
    assert message_seconds(1000, 1, SLOW) == 0
    assert message_seconds(1000, 2, SLOW) == pytest.approx(2 * (500 / 1e9 + 1e-4))  # a half there, a half back
    assert message_seconds(1000, 4, SLOW) == pytest.approx(6 * (250 / 1e9 + 1e-4))


@given(loads, workers, links, st.floats(1e9, 1e14))
def test_scaling_has_its_limits(load, workers, link, flops):
    assert 0 < strong(load, workers, flops, link) <= workers * (1 + 1e-9)
    assert 0 < weak(load, workers, flops, link) <= 1
    assert strong(load, 1, flops, link) == weak(load, 1, flops, link) == 1
    # What a worker gains in weak scaling it cannot lose by having less to compute for the same message.
    assert strong(load, workers, flops, link) <= workers * weak(load, workers, flops, link) * (1 + 1e-9)


@given(loads, workers, st.floats(1e9, 1e14))
def test_a_faster_link_helps_and_a_faster_processor_makes_scaling_worse(load, workers, flops):
    for scaling in strong, weak:
        assert scaling(load, workers, flops, FAST) >= scaling(load, workers, flops, SLOW)
        assert scaling(load, workers, 2 * flops, SLOW) <= scaling(load, workers, flops, SLOW)


def test_the_message_is_that_of_a_measured_step():
    assert scaling_model.load('lenet') == Load(macs=1247720, message=302176, batch=512)


def measured(**changes: Any) -> dict[str, Any]:
    """A file of `branchynet bench scaling` whose points the model explains exactly."""

    def point(scaling: str, ranks: int, batch: int, compute: float, message: float) -> dict[str, Any]:
        clocks = {'step': compute + message, 'compute': compute, 'cpu': compute, 'message': message}
        return {
            'scaling': scaling,
            'ranks': ranks,
            'global_batch': batch,
            **{f'{clock}_seconds': {'min': seconds} for clock, seconds in clocks.items()},
        }

    points = [
        point('strong', 1, 512, 0.08, 0),
        point('strong', 2, 512, 0.04, 0.01),
        point('weak', 1, 512, 0.08, 0),
        point('weak', 2, 1024, 0.08, 0.01),
    ]
    return {'network': 'lenet', 'points': points, **changes}


def test_measured_points_are_checked():
    for check in scaling_model.checks(measured()):
        assert check.parts == pytest.approx(check.step) and check.predicted == pytest.approx(check.processor)
    rows = scaling_model.measured_table([measured()]).rows
    assert rows[1] == ['B-LeNet', 'strong', '2', '50.0', '1.60', '50.0', '+0%', '40.0', '40.0', '+0%']
    slowed = measured()
    slowed['points'][3]['compute_seconds']['min'] = slowed['points'][3]['cpu_seconds']['min'] = 0.16
    slowed['points'][3]['step_seconds']['min'] = 0.18
    (row,) = scaling_model.measured_table([slowed]).rows[3:]
    assert row[3:] == ['180.0', '44%', '170.0', '-6%', '160.0', '80.0', '-50%']


def test_the_page_shows_what_the_code_says():
    page = (ROOT / 'docs' / 'scaling.md').read_text()
    for name, table in scaling_model.tables().items():
        assert pages.between_markers(page, table + '\n', name) == page, "run 'branchynet bench scaling_model'"
    measured = scaling_model.read(str(ROOT / 'results' / 'benchmarks' / 'scaling'))
    table = scaling_model.measured_table(measured).markdown()
    assert pages.between_markers(page, table + '\n', 'measured') == page, "run 'branchynet bench scaling_model'"


def test_the_command_writes_the_page(tmp_path, capsys):
    page = tmp_path / 'page.md'
    names = ['measured', *scaling_model.tables()]
    page.write_text('\n'.join(f'<!-- {name}: begin -->\n<!-- {name}: end -->' for name in names))
    words = ['bench', 'scaling_model', '--measured', str(tmp_path), '--update', str(page)]
    assert cli.main(words) == 2
    assert 'holds no measured points' in capsys.readouterr().err
    schema.write(str(tmp_path / 'lenet.json'), measured())
    assert cli.main(words) == 0
    assert '| B-LeNet | strong  | 2     | 50.0' in page.read_text() and 'H100, NVLink' in page.read_text()
    page.write_text('no markers')
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert f'{page}: expected the lines <!-- measured: begin -->' in error and error.count('\n') == 1
