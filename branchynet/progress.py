"""Progress bars."""


def progress(iterable=None, label=None, **kwargs):
    """A tqdm bar, shown where it takes longer than 2 s and standard error is a terminal."""
    from tqdm import tqdm
    return tqdm(iterable, label, leave=False, delay=2, disable=None, **kwargs)
