"""Verdicts on the claims in words: a line for each, or the counts and the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from branchynet.experiments import claims
from branchynet.experiments.claims import FAIL, NOT_RUN, PASS, Claim, Verdict
from branchynet.experiments.results import Results
from branchynet.experiments.wording import mean

import numpy as np


def verdict(results: Results, every: bool = False) -> int:
    """Checks the claims, and prints failures and counts.

    Args:
        results: of a folder.
        every: whether to print a line for every claim.

    Returns:
        The exit status: 1 if a claim fell short, else 0.
    """
    verdicts = claims.check(results)
    print('\n'.join((lines if every else summary)(verdicts)))
    return int(any(v.status == FAIL for v in verdicts))


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Writes a line for each claim, those that were not run first and failures last, and then the counts.

    Args:
        verdicts: on all claims.
    """
    return [line(v) for status in (NOT_RUN, PASS, FAIL) for v in verdicts if v.status == status] + [counts(verdicts)]


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Writes what failed, the counts, and a line for each group of reasons why claims were not run.

    Args:
        verdicts: on all claims.
    """
    return failures(verdicts) + [counts(verdicts)] + [f'{NOT_RUN}: {text}' for text in reasons(verdicts)]


def failures(verdicts: Sequence[Verdict]) -> list[str]:
    """Writes a line for each failure. Claims of one kind that failed for one known cause share the line of the worst.

    Args:
        verdicts: on all claims.
    """
    groups: dict[tuple[str, ...], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.status == FAIL:
            claim, cause = verdict.claim, verdict.cause
            groups.setdefault((claim.entry['id'], cause) if cause else (claim.id,), []).append(verdict)
    return [line(max(group, key=_miss), group) for group in groups.values()]


def _miss(verdict: Verdict) -> float:
    """By how much a figure is out of its claim's range; infinite where there is no figure."""
    least, most = verdict.claim.bounds()
    found = np.mean(verdict.measured) if verdict.measured else np.nan
    return float(max(least - found, found - most)) if np.isfinite(found) else np.inf


def line(verdict: Verdict, group: Sequence[Verdict] = ()) -> str:
    """Puts a verdict into one line.

    Args:
        verdict: on one claim.
        group: if it is a failure, the claims of one kind that failed for one cause, of which it is the worst.
    """
    claim = verdict.claim
    if verdict.status == NOT_RUN:
        return f'{NOT_RUN}: {claim.id}: {verdict.reason}'
    different = len({tuple(v.measured) for v in group})
    figures = f', with {different} different figures' if different < len(group) else ''
    others = f' (the worst of {len(group)} of this kind{figures})' if len(group) > 1 else ''
    cause = f' (cause: {verdict.cause})' if verdict.cause else ''
    return f'{verdict.status}: {claim.id}{others}: {claim.text}: {figure(verdict)}, expected {bounds(claim)}{cause}'


def figure(verdict: Verdict) -> str:
    """Writes the figure of a claim that was checked; without one, the reason.

    Args:
        verdict: on the claim.
    """
    return mean(verdict.measured, 2) if verdict.measured else verdict.reason


def bounds(claim: Claim) -> str:
    """Puts the range of values for which a claim holds into words.

    Args:
        claim: a claim that is checked.
    """
    least, most = claim.bounds()
    if most == np.inf:
        return f'{least:.4g} or more'
    return f'{most:.4g} or less' if least == -np.inf else f'{least:.4g} to {most:.4g}'


def counts(verdicts: Sequence[Verdict]) -> str:
    """Puts the numbers of claims that passed, failed and were not run into words.

    Args:
        verdicts: on all claims.
    """
    return 'Claims: ' + ', '.join(f'{count} {status}' for status, count in counted(verdicts).items())


def counted(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Counts the claims that passed, failed and were not run.

    Args:
        verdicts: on claims.
    """
    found = Counter(v.status for v in verdicts)
    return {status: found[status] for status in (PASS, FAIL, NOT_RUN)}


def reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """Groups the claims that were not run by reason.

    Args:
        verdicts: on all claims.

    Returns:
        A line for each group: the number of claims and their common reason.
    """
    absent: Counter = Counter()
    needed: Counter = Counter()
    unchecked: Counter = Counter()
    for verdict in verdicts:
        if verdict.status == NOT_RUN:
            if verdict.claim.not_checked is not None:
                unchecked[verdict.reason] += 1
            elif verdict.is_absent:
                absent[verdict.claim.experiment] += 1
            else:
                needed[verdict.reason] += 1
    found = [f'{count}: {reason}' for reason, count in needed.most_common()]
    if absent:
        found.append(f'{sum(absent.values())}: of experiments that were not run ({_listed(absent)})')
    if unchecked:
        found.append(f'{sum(unchecked.values())}: no run can check them ({_listed(unchecked)})')
    return found


def _listed(counter: Counter) -> str:
    return '; '.join(f'{what}: {count}' for what, count in counter.most_common())
