"""Thresholds for a target against every setting there is, the guarantee against exact probabilities, temperatures."""

import itertools
import math

import branchynet  # noqa: F401
from branchynet import calibration, checkpoint, exits, sweep
from branchynet.calibration import Infeasible, Macs, Target, choose, judge, p_value
from branchynet.cost import cost
from branchynet.datasets import mnist
from branchynet.inference import Compiled
from branchynet.networks import lenet_mnist

import numpy as np
import pytest
from helpers import WEIGHTS, small_data, small_net
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special, stats

MACS = Macs(100, [30, 80, 120])


def record_of(seed, samples=12, count=3, criterion=exits.ENTROPY, levels=6):
    """A record with equal scores among others, whose accuracy rises from exit to exit."""
    rng = np.random.RandomState(seed)
    score = rng.randint(1, levels + 1, (count, samples)).astype(np.float32)
    correct = rng.rand(count, samples) < np.linspace(0.5, 0.9, count)[:, None]
    released = np.ones((count, samples)) * np.arange(1, count + 1)[:, None]
    return sweep.ExitRecord(score, correct, released, released * 2, criterion)


def baseline_of(seed, samples=12):
    return np.random.RandomState(1000 + seed).rand(samples) < 0.8


def every_setting(recorded):
    """All thresholds that differ on the record: closed, and each between neighbours, one apart."""
    between = [None, *np.arange(0.5, 8)]
    return list(itertools.product(between, repeat=len(recorded.score) - 1))


def fulfils(target, judged, samples):
    return (
        (target.accuracy_loss is None or judged.loss_points <= target.accuracy_loss + 1e-9)
        and (target.seconds is None or getattr(judged, f'{target.clock}_ms') / 1000 <= target.seconds + 1e-9)
        and (target.macs is None or judged.macs_percent / 100 <= target.macs + 1e-9)
        and (target.leave is None or judged.exit_percent[target.exit] / 100 >= target.leave - 1e-9)
    )


def cost_of(target, judged):
    if target.macs is not None and target.seconds is None:
        return judged.macs_percent
    return getattr(judged, f'{target.clock}_ms')


TARGETS = st.builds(
    Target,
    st.none() | st.sampled_from([-100 / 3, -25, 0, 5, 100 / 12, 25]),
    st.none() | st.sampled_from([3.0, 4.0, 6.0, 8.0]),
    st.none() | st.sampled_from([0.3, 0.5, 0.8, 1.2]),
    st.none() | st.sampled_from([0, 0.25, 0.5, 1]),
    st.sampled_from([0, 1]),
    st.sampled_from(['whole', 'released']),
).filter(lambda target: any(part is not None for part in target[:4]))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), TARGETS, st.sampled_from(list(exits.CRITERIA.values())))
def test_the_choice_is_the_best_of_every_setting(seed, target, criterion):
    recorded, baseline = record_of(seed, criterion=criterion), baseline_of(seed)
    judged = [judged_fast(recorded, setting, baseline) for setting in every_setting(recorded)]
    within = [one for one in judged if fulfils(target, one, 12)]
    if not within:
        with pytest.raises(Infeasible, match='^no setting of thresholds fulfils .*: the nearest that can be fulfilled'):
            choose(recorded, target, baseline, MACS)
        return
    found = judged_fast(recorded, choose(recorded, target, baseline, MACS), baseline)
    assert fulfils(target, found, 12)

    def order(one):
        return (cost_of(target, one), one.loss_points)[:: 1 if target.accuracy_loss is not None else -1]

    assert order(found) == pytest.approx(min(map(order, within)))


def judged_fast(recorded, setting, baseline):
    """`judge` without its interval, which takes a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, 'loss_bound', lambda *arguments: 0.0)
        return judge(recorded, setting, baseline, MACS)


def test_costs_in_place_of_their_multiply_adds_are_named():
    recorded, costs = record_of(0), cost(lenet_mnist.get_network(), (1, 28, 28))
    with pytest.raises(TypeError, match='^macs does not hold numbers alone: expected Macs'):
        choose(recorded, Target(macs=0.5), recorded.correct[-1], macs=costs)


@pytest.mark.parametrize('count', [4, 8, 9, 20])
def test_with_many_exits_no_common_threshold_is_better(count):
    recorded = record_of(3, samples=300, count=count)
    baseline, target = recorded.correct[-1], Target(accuracy_loss=3)
    found = choose(recorded, target, baseline)
    loss, ms = of_setting(recorded, found)
    assert loss <= 3
    common = [of_setting(recorded, [level] * (count - 1)) for level in (None, *np.arange(0.5, 8))]
    within = [other for loss, other in common if loss <= 3]
    assert len(within) > 1 and ms <= min(within)


def of_setting(recorded, setting):
    """(loss of accuracy in points, ms per sample) of a setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, 'loss_bound', lambda *arguments: 0.0)
        judged = judge(recorded, setting, recorded.correct[-1])
    return judged.loss_points, judged.whole_ms


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 30), TARGETS)
def test_the_nearest_target_that_the_message_names_can_be_fulfilled(seed, target):
    recorded, baseline = record_of(seed), baseline_of(seed)
    try:
        choose(recorded, target, baseline, MACS)
    except Infeasible as e:
        nearest = str(e).partition('is ')[2].split(' or ')
        alone = nearest[0].endswith(' alone')
        for part in nearest:
            name, value, *_ = part.split()
            others = Target(exit=target.exit, clock=target.clock) if alone else target
            choose(recorded, others._replace(**{name: float(value)}), baseline, MACS)
            assert '\n' not in str(e)
    else:
        assume(False)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 30), st.floats(-20, 40), st.floats(0, 20))
def test_a_looser_target_never_costs_more(seed, loss, more):
    recorded, baseline = record_of(seed, 40), baseline_of(seed, 40)
    try:
        tight = choose(recorded, Target(accuracy_loss=loss), baseline, MACS)
    except Infeasible:
        return
    loose = choose(recorded, Target(accuracy_loss=loss + more), baseline, MACS)
    tight, loose = (judged_fast(recorded, setting, baseline) for setting in (tight, loose))
    assert loose.whole_ms <= tight.whole_ms and tight.loss_points <= loss + 1e-9


def test_the_share_that_leaves_is_reached_exactly():
    recorded = sweep.ExitRecord(
        np.random.RandomState(0).rand(2, 1000).astype(np.float32),
        np.arange(2000).reshape(2, -1) >= 1000,
        *np.ones((2, 2, 1000)),
    )
    for share in 0, 0.001, 0.6, 1:
        (threshold,) = choose(recorded, Target(leave=share))  # all are wrong there
        assert judge(recorded, [threshold]).exit_percent[0] == pytest.approx(100 * share)
        assert (threshold is None) == (share == 0)


def test_one_threshold_is_chosen_among_all_ranks():
    rng = np.random.RandomState(3)
    recorded = sweep.ExitRecord(
        rng.rand(2, 500).astype(np.float32), rng.rand(2, 500) < [[0.8], [0.9]], *np.ones((2, 2, 500))
    )
    baseline = rng.rand(500) < 0.88
    cuts = np.append(np.sort(recorded.score[0]), np.inf)
    swept = sweep.sweep(recorded, cuts[:, None])
    for loss in -1, 0, 0.4, 3:
        fastest = swept.whole[(baseline.mean() - swept.accuracy) * 100 <= loss + 1e-9].min()
        found = sweep.sweep(recorded, [choose(recorded, Target(accuracy_loss=loss), baseline)])
        assert found.whole[0] == pytest.approx(fastest)


def test_four_exits_are_searched_on_a_grid():
    rng = np.random.RandomState(5)
    recorded = sweep.ExitRecord(
        rng.rand(4, 300).astype(np.float32), rng.rand(4, 300) < [[0.8], [0.85], [0.9], [0.92]], *np.ones((2, 4, 300))
    )
    found = choose(recorded, Target(accuracy_loss=1.0))
    judged = judge(recorded, found)
    assert judged.loss_points <= 1 and judged.whole_ms < 4000 and len(found) == 3


def test_nan_scores_never_leave():
    recorded = record_of(0)
    recorded.score[0, :6] = math.nan
    with pytest.raises(Infeasible, match='is leave 0.5$'):
        choose(recorded, Target(leave=0.6))
    judged = judge(recorded, choose(recorded, Target(leave=0.5)))
    assert judged.exit_percent[0] == 50


@pytest.mark.parametrize('side, rest', [('above', 1), ('at least', 1), ('below', 2)])
def test_samples_whose_scores_tie_at_infinity_leave_together(side, rest):
    infinite = -math.inf if side == 'below' else math.inf
    score = np.float32([[infinite] * 4 + [rest] * 2, [1] * 6])
    correct = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], bool)
    recorded = sweep.ExitRecord(score, correct, *np.ones((2, 2, 6)), exits.by_scores(max, side))
    thresholds = choose(recorded, Target(leave=0.3))
    assert judge(recorded, thresholds).exit_percent[0] == pytest.approx(100 * 4 / 6)


# The guarantee


@pytest.mark.parametrize(
    ('gain', 'loss'), [(0.0, 0.05), (0.0, 0.0), *itertools.product([0.15, 0.4], [0.05, 0.0, -0.05])]
)
def test_p_values_are_valid_at_the_boundary_for_every_level(gain, loss):
    """By every outcome of 20 samples and its probability, where the loss is exactly the hypothesis's."""
    samples, lose = 20, gain + loss
    outcomes = [(b, c) for b in range(samples + 1) for c in range(samples + 1 - b)]
    probability = stats.multinomial(samples, [lose, gain, 1 - lose - gain])
    weights = np.array([probability.pmf([b, c, samples - b - c]) for b, c in outcomes])
    likely = weights > 1e-9
    p = np.array([p_value(*outcome, samples, loss) for outcome, use in zip(outcomes, likely) if use])
    for level in 0.01, 0.05, 0.1, 0.5:
        assert weights[likely][p <= level].sum() <= level
    if gain:  # and not so careful that it never tells
        assert weights[likely][p <= 0.5].sum() > 0.05


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 200), st.floats(-0.2, 0.2))
def test_p_values_rise_with_losses_and_fall_with_the_hypothesis(lost, gained, more, loss):
    samples = lost + gained + more
    p = p_value(lost, gained, samples, loss)
    assert 0 < p <= 1
    assert p_value(lost + 1, gained, samples, loss) >= p - 1e-9
    assert p_value(lost, gained, samples, loss + 0.01) <= p + 1e-9


def test_a_bound_is_where_the_p_value_is_the_error():
    for lost, gained in (0, 0), (3, 5), (40, 10):
        bound = calibration.loss_bound(lost, gained, 500, 0.05)
        assert p_value(lost, gained, 500, bound) == pytest.approx(0.05, abs=1e-3)
        assert bound > (lost - gained) / 500
    assert calibration.loss_bound(0, 0, 1, 0.05) > 0.9


def simulated(rng, samples, difficulty=0.3):
    """A record whose true accuracies are known: those who leave at exit 1 below a threshold u are wrong 0.4 u more."""
    score = rng.rand(2, samples).astype(np.float32)
    correct = np.stack([rng.rand(samples) < 0.9 - 0.4 * score[0], rng.rand(samples) < 0.9])
    return sweep.ExitRecord(score, correct, *np.ones((2, 2, samples)))


def test_the_guarantee_holds_as_often_as_it_says():
    rng, broken, told = np.random.RandomState(0), 0, 0
    trials, target = 20, 8.0
    for trial in range(trials):
        recorded = simulated(rng, 600)
        baseline = rng.rand(600) < 0.9
        try:
            (threshold,) = choose(recorded, Target(accuracy_loss=target), baseline, guarantee=0.9, seed=trial)
        except Infeasible:
            continue
        told += 1
        true_loss = 100 * 0.4 * (threshold or 0) ** 2 / 2  # the integral of 0.4 u
        broken += true_loss > target
    assert told > trials / 2  # it does tell
    assert broken <= stats.binom.isf(1e-3, trials, 0.1)
    # Without a guarantee, the target is missed about every second time.
    missed = 0
    for _ in range(60):
        recorded = simulated(rng, 900)
        (threshold,) = choose(recorded, Target(accuracy_loss=target), rng.rand(900) < 0.9)
        missed += 100 * 0.4 * (threshold or 0) ** 2 / 2 > target
    assert missed > 15


def test_a_guarantee_is_never_looser_than_the_choice_without():
    rng = np.random.RandomState(1)
    recorded, baseline = simulated(rng, 3000), rng.rand(3000) < 0.9
    target = Target(accuracy_loss=4.0)
    assert choose(recorded, target, baseline, guarantee=0.95)[0] < choose(recorded, target, baseline)[0]


def test_a_guarantee_that_the_samples_cannot_give_names_what_they_can():
    recorded, baseline = simulated(np.random.RandomState(0), 900), np.random.RandomState(1).rand(900) < 0.9
    with pytest.raises(Infeasible, match='^600 samples cannot guarantee accuracy_loss 0.1 for any setting') as info:
        choose(recorded, Target(accuracy_loss=0.1), baseline, guarantee=0.95)
    nearest = float(str(info.value).partition('is accuracy_loss ')[2].split(';')[0])
    assert choose(recorded, Target(accuracy_loss=nearest), baseline, guarantee=0.95)
    with pytest.raises(Infeasible, match='^none of the .* settings whose loss of accuracy is guaranteed fulfils'):
        choose(recorded, Target(accuracy_loss=9, leave=1), baseline, guarantee=0.95)
    with pytest.raises(ValueError, match='^a guarantee is one of accuracy: give the target an accuracy_loss$'):
        choose(recorded, Target(leave=0.5), baseline, guarantee=0.95)


# Judging


def test_a_judgement_by_its_definition():
    recorded, baseline = record_of(7, 200), baseline_of(7, 200)
    judged = judge(recorded, [2.5, 3.5], baseline, MACS)
    swept = sweep.sweep(recorded, [[2.5, 3.5]])
    assert judged.accuracy_percent == pytest.approx(100 * swept.accuracy[0])
    assert judged.exit_percent == pytest.approx(swept.exits[0] / 2)
    assert (judged.released_ms, judged.whole_ms) == pytest.approx((1e3 * swept.released[0], 1e3 * swept.whole[0]))
    assert judged.macs_percent == pytest.approx(np.dot(judged.exit_percent, MACS.exits) / 100)
    assert judged.loss_points == pytest.approx(judged.baseline_percent - judged.accuracy_percent)
    low, high = judged.loss_interval_points
    assert low < judged.loss_points < high
    assert judge(recorded, [2.5, 3.5]).baseline_percent == 100 * recorded.correct[-1].mean()


# Temperatures


def test_temperatures_undo_a_scale():
    rng = np.random.RandomState(0)
    logits = rng.randn(5000, 4) * 3
    t = np.array([rng.choice(4, p=p) for p in special.softmax(logits, axis=1)])
    found = calibration.fit_temperatures([logits, 2.5 * logits, logits / 3], t)
    assert found == pytest.approx([1, 2.5, 1 / 3], rel=0.06)


@pytest.mark.onednn
def test_temperatures_of_a_trained_net_lower_its_calibration_error():
    net = lenet_mnist.get_network()
    checkpoint.load_npz(WEIGHTS, net)
    _, _, x, t = mnist.get_data()
    held, test = slice(0, None, 2), slice(1, None, 2)  # no training saw the test set
    before = Compiled(net).look(x[test])
    net.temperatures = calibration.fit_temperatures(calibration.logits_of(Compiled(net), x[held]), t[held])
    after = Compiled(net).look(x[test])
    assert all(temperature > 1 for temperature in net.temperatures)  # it was too sure
    for cold, warm in zip(before, after):
        errors = [calibration.expected_calibration_error(look.prob, t[test]) for look in (cold, warm)]
        assert errors[1] < 0.8 * errors[0]
        np.testing.assert_array_equal(cold.logits.argmax(axis=1), warm.logits.argmax(axis=1))


def test_the_calibration_error_by_hand():
    prob = np.float64([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1, 0]])
    # (13/15, 14/15]: 0.9 and 0.9, one of them right; (8/15, 9/15]: 0.6, right; (14/15, 1]: 1, right
    assert calibration.expected_calibration_error(prob, [0, 1, 1, 0]) == pytest.approx((2 * 0.4 + 0.4 + 0) / 4)
    assert calibration.expected_calibration_error(np.ones((3, 1)), [0, 0, 0]) == 0


# What cannot be


@pytest.mark.parametrize(
    'target, error, message',
    [
        (Target(), ValueError, 'the target is empty: expected accuracy_loss, seconds, macs, leave or several of them'),
        (Target(accuracy_loss=math.nan), ValueError, 'accuracy_loss is nan: expected points from -100 to 100'),
        (Target(accuracy_loss='1'), TypeError, "accuracy_loss is '1': expected a number"),
        (Target(accuracy_loss=True), TypeError, 'accuracy_loss is True: expected a number'),
        (Target(accuracy_loss=101), ValueError, 'accuracy_loss is 101: expected points from -100 to 100'),
        (Target(seconds=0), ValueError, 'seconds is 0: expected a finite number above 0'),
        (Target(macs=-1), ValueError, 'macs is -1: expected a finite number above 0'),
        (Target(leave=1.1), ValueError, 'leave is 1.1: expected a share from 0 to 1'),
        (Target(leave=0.5, exit=2), ValueError, 'exit is 2: expected 0 to 1, as all leave at the last exit'),
        (Target(leave=0.5, exit=-1), ValueError, 'exit is -1: expected 0 to 1, as all leave at the last exit'),
        (Target(seconds=1, clock='wall'), ValueError, "clock is 'wall': expected whole or released"),
    ],
)
def test_impossible_targets_are_named(target, error, message):
    with pytest.raises(error) as info:
        choose(record_of(0), target, macs=MACS)
    assert str(info.value) == message


@pytest.mark.parametrize(
    'target',
    [
        Target(accuracy_loss=-100),
        Target(accuracy_loss=100),
        Target(leave=0),
        Target(leave=1),
        Target(leave=0.5, exit=0),
        Target(leave=0.5, exit=1),
    ],
)
def test_the_ends_of_ranges_are_targets(target):
    calibration.check_target(target, exits=3)


def test_what_does_not_fit_is_named():
    recorded, target = record_of(0), Target(macs=0.5)
    for message, run in [
        ('^macs is a target, and the multiply-adds', lambda: choose(recorded, target)),
        ('^macs has 2 exits: expected 3$', lambda: choose(recorded, target, macs=Macs(1, [1, 2]))),
        ('^baseline has shape .*expected bool of shape', lambda: choose(recorded, target, np.ones(12), MACS)),
        ('^the exit record is empty', lambda: choose(record_of(0, 0), Target(leave=0.5))),
        ('^the record has a single exit', lambda: choose(record_of(0, count=1), Target(leave=0.5))),
        ('^thresholds is ', lambda: judge(recorded, [0.5])),
        ('^macs has 2 exits: expected 3$', lambda: judge(recorded, [0.5, 0.5], macs=Macs(1, [1, 2]))),
        ('^logits hold NaN or infinity', lambda: calibration.fit_temperatures(np.full((1, 2, 3), np.inf), [0, 1])),
        ('^no samples are held out', lambda: calibration.fit_temperatures(np.ones((2, 0, 3)), np.ones(0, int))),
        ('^all 4 held-out samples have', lambda: calibration.fit_temperatures(np.ones((2, 4, 3)), np.ones(4, int))),
        ('^logits hold NaN', lambda: calibration.fit_temperatures(np.full((1, 2, 3), np.nan), [0, 1])),
        ('^t holds labels from 0 to 3', lambda: calibration.fit_temperatures(np.ones((1, 2, 3)), [0, 3])),
        ('^t has dtype float64', lambda: calibration.fit_temperatures(np.ones((1, 2, 3)), [0.0, 1.0])),
        ('^logits have shape', lambda: calibration.fit_temperatures(np.ones((2, 3)), [0, 1])),
        ('^x holds no samples', lambda: calibration.logits_of(small_net(), small_data(4)[0][:0])),
        ('^prob holds no samples', lambda: calibration.expected_calibration_error(np.ones((0, 3)), [])),
        ('^bins is 0: expected 1 or more$', lambda: calibration.expected_calibration_error([[0.5, 0.5]], [0], 0)),
        ('^prob holds NaN: ', lambda: calibration.expected_calibration_error([[math.nan, 0.5]], [0])),
        (r'^prob has shape \(2,\), t \(2,\): ', lambda: calibration.expected_calibration_error([0.5, 0.5], [0, 1])),
        (r'^prob has shape \(1, 2\), t \(2,\)', lambda: calibration.expected_calibration_error([[0.5, 0.5]], [0, 1])),
    ]:
        with pytest.raises(ValueError, match=message) as info:
            run()
        assert '\n' not in str(info.value)


def test_a_target_is_a_target():
    for target in None, 0.5, 'accuracy_loss':
        with pytest.raises(TypeError, match='^target is .*: expected a calibration.Target$'):
            choose(record_of(0), target)


def test_it_runs_on_a_net():
    net, (x, t) = small_net(), small_data(200)
    for _ in range(30):
        net.train(x, t)
    held, test = slice(100), slice(100, 200)
    recorded = sweep.record(net, x[held], t[held], 20, exits.MARGIN)
    thresholds = choose(recorded, Target(accuracy_loss=5.0, leave=0.2))
    judged = judge(sweep.record(net, x[test], t[test], 20, exits.MARGIN), thresholds)
    assert judged.exit_percent[0] > 10 and judged.loss_points < 15


@pytest.mark.parametrize('guarantee', [0, 1 - calibration.OUTSIDE, 0.9995, math.nan])
def test_a_guarantee_beyond_what_p_values_can_show_is_refused(guarantee):
    with pytest.raises(ValueError, match=f'^guarantee is {guarantee}: expected a number between 0 and 0.999'):
        choose(record_of(0), Target(accuracy_loss=5), guarantee=guarantee)


@pytest.mark.parametrize('guarantee', ['0.9', True])
def test_a_guarantee_that_is_no_number_is_refused(guarantee):
    with pytest.raises(TypeError, match=f'^guarantee is {guarantee!r}: expected a number$'):
        choose(record_of(0), Target(accuracy_loss=5), guarantee=guarantee)


def test_a_guarantee_needs_three_samples():
    target = Target(accuracy_loss=100)
    for count in 1, 2:
        with pytest.raises(ValueError, match=f'^the record holds {count} samples: a guarantee needs three at least'):
            choose(record_of(0, count), target, guarantee=0.9)
    assert len(choose(record_of(0, 3), target, guarantee=0.9)) == 2


def test_a_judgement_takes_one_threshold_for_all_exits():
    recorded = record_of(0)
    assert judge(recorded, 0.5) == judge(recorded, [0.5] * (len(recorded.score) - 1))
