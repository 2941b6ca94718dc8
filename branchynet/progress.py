"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def progress(iterable: Iterable | None = None, label: str | None = None, **options: Any) -> Any:
    """Returns a tqdm bar. It is shown if the loop takes longer than 2 s and standard error is a terminal.

    Args:
        iterable: the iterable of the loop; None if the caller updates the bar.
        label: the text in front of the bar.
        **options: further arguments of tqdm.
    """
    from tqdm import tqdm

    return tqdm(iterable, label, leave=False, delay=2, disable=None, **options)
