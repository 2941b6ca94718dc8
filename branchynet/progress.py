"""Progress bars."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional


def progress(iterable: Optional[Iterable] = None, label: Optional[str] = None, **options: Any) -> Any:
    """A tqdm bar, shown where the loop takes longer than 2 s and standard error is a terminal.

    Args:
        iterable: What is looped over; None: the caller updates the bar.
        label: Stands in front of the bar.
        **options: Of tqdm.
    """
    from tqdm import tqdm
    return tqdm(iterable, label, leave=False, delay=2, disable=None, **options)
