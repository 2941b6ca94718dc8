"""One Compiled under load of threads and forked processes: no leak, no hang, the bits of one thread."""

from __future__ import annotations

import os
import sys
import threading

import branchynet  # noqa: F401
from branchynet.benchmarks import soak

import numpy as np
import pytest
from helpers import QUICK

on_linux = pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='memory is read from /proc')


@pytest.fixture(autouse=True)
def untraced():
    """A forked child under coverage's tracer waits for ever for a lock that another thread held during the fork."""
    tracer, of_threads = sys.gettrace(), getattr(threading, '_trace_hook', None)
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(of_threads)
    sys.settrace(tracer)


@pytest.fixture(scope='module')
def task() -> soak.Task:
    return soak.task(QUICK)


@pytest.mark.slow
@on_linux
def test_ten_minutes_of_load(task):
    measured = soak.soak(task, soak.SECONDS)
    assert soak.verdict(measured) == []
    assert all(latency['count'] for latency in measured['latency'].values())


@pytest.mark.onednn
@on_linux
def test_a_moment_of_load_has_the_bits_of_one_thread(task):
    measured = soak.soak(task, 3)
    assert measured['different'] == 0
    assert len(measured['memory']) == 1 + soak.PROCESSES
    assert sum(latency['count'] for latency in measured['latency'].values()) > soak.THREADS + soak.PROCESSES


@pytest.mark.onednn
@on_linux
def test_other_answers_and_lost_children_are_told(task, monkeypatch):
    entropy = np.nextafter(task.expected.entropy, np.float32(np.inf))
    measured = soak.soak(task._replace(expected=task.expected._replace(entropy=entropy)), 1)
    assert measured['different'] == sum(latency['count'] for latency in measured['latency'].values()) > 0
    assert soak.verdict(measured)[0] == f'{measured["different"]} answers differ from those of one thread'
    monkeypatch.setattr(soak, '_child', lambda *_: sys.exit(3))
    with pytest.raises(OSError, match='ended with status 3'):
        soak.soak(task, 1)


@on_linux
def test_a_process_that_starts_after_the_end_has_a_memory():
    memory = soak.Memory(-1)
    assert memory.summary()['warm_rss_mb'] > 0 == memory.summary()['growth_percent']


def test_memory_that_grows_is_told():
    latency = {'1': {'count': 7}}
    measured = {
        'different': 0,
        'latency': latency,
        'memory': [{'growth_percent': 1.0}, {'growth_percent': soak.GROWTH + 0.1}],
    }
    assert soak.verdict(measured) == ['the memory of a process grew by 5.1 %: expected 5 % at most']
    measured['memory'][1]['growth_percent'] = soak.GROWTH
    assert soak.verdict(measured) == []
    latency['2 to 10'] = {'count': 0}
    assert soak.verdict(measured) == ['no calls of 2 to 10 images']


def test_percentiles_are_those_of_the_calls():
    record, seconds = soak.Record(), np.random.RandomState(0).lognormal(-7, 1, 5003)
    for one in seconds:
        record.add(1, one, True)
    record.add(300, 1e9, True)  # beyond the histogram
    found = soak.latencies(record.counts)
    assert found['1']['count'] == 5003 and found['2 to 10'] == {'count': 0} and found['101 to 300']['count'] == 1
    for percent in soak.PERCENTILES:
        exact = np.percentile(seconds, percent, method='inverted_cdf') * 1e3
        assert exact <= found['1'][f'p{percent}_ms'] <= exact * 1.021
