"""The identity of a run, from which its files have their names."""

from __future__ import annotations

import os
from typing import NamedTuple


class RunId(NamedTuple):
    """One seed of one part of an experiment; as text the common part of its files' names, such as 'figure5_2_seed0'.

    Attributes:
        experiment: its name.
        part: its name; '' in an experiment without parts.
        seed: of the random generators.
    """

    experiment: str
    part: str
    seed: int

    def __str__(self) -> str:
        return '_'.join(filter(None, [self.experiment, self.part, f'seed{self.seed}']))

    def checkpoint_path(self, folder: str) -> str:
        """The path of the checkpoint in a results folder."""
        return os.path.join(folder, f'checkpoint_{self}.npz')

    def weights_path(self, folder: str) -> str:
        """The path of the final weights."""
        return os.path.join(folder, f'weights_{self}.npz')

    def main_weights_path(self, folder: str) -> str:
        """The path of main's weights before joint training, which changes the trunk."""
        return os.path.join(folder, f'weights_{self}_main.npz')

    def record_path(self, folder: str) -> str:
        """The path of the record that `branchynet train` writes."""
        return os.path.join(folder, f'training_{self}.json')
