"""Variants of a network trained alike and compared by the accuracy of their exits."""
from functools import partial
import os
from typing import Callable, NamedTuple

from branchynet import cpu, sweep, visualize
from branchynet.experiments import runs

BATCHSIZE = 500  # of testing: nothing is timed


class Part(NamedTuple):
    """What is trained: ``get_network(variant=...)``, after its baseline or (trained=False) from a random start."""
    get_network: Callable
    trained: bool = True


class Comparison(NamedTuple):
    """Networks of one branch, and what differs between them.

    Attributes:
        parts: of Part, by name. xlabel: what the names are.
        published: the accuracy (a share) of the final exit by the part's name, where there is one.
    """
    name: str
    title: str
    xlabel: str
    parts: dict
    get_data: Callable
    presets: dict
    published: dict

    def about(self):
        """What results.json says of the experiment itself."""
        return {'title': self.title}

    def minutes(self, preset, data, setup):
        """Minutes that a seed will take on cut data."""
        total = 0.
        for part in self.parts:
            net = self.parts[part].get_network(variant=setup.variant)
            net.to_device(setup.device)
            total += runs.training_minutes(net, self._preset(part, preset), data)
        return total

    def run(self, part, seed, data, setup):
        """Trains one part with one seed on cut data: a JSON-ready dict, units in its keys."""
        run, preset = (self.name, part, seed), self._preset(part, self.presets[setup.preset])
        get_network = partial(self.parts[part].get_network, variant=setup.variant)
        training = runs.begin(run, get_network, preset, data, setup)
        net, result = training.net, training.result
        with cpu.fast():
            for phase in 'main', 'joint':
                training.train(phase)
            profile = sweep.profile(runs.for_inference(net), *data[2:], BATCHSIZE)
        result['exit_accuracy_percent'] = (profile.correct.mean(axis=1) * 100).tolist()
        result['outputs'] = {
            'entropy': runs.digest(profile.entropy), 'correct': runs.digest(profile.correct)}
        result['weights_sha256'] = runs.save_weights(net, runs.weights_path(setup.out, *run))
        return result

    def write(self, results, out):
        """Draws the accuracy of the final exit by part; returns the paths."""
        parts = [part for part in self.parts if any(result['part'] == part for result in results)]
        accuracies = [[r['exit_accuracy_percent'][-1] / 100 for r in results if r['part'] == part] for part in parts]
        paths = [os.path.join(out, 'figures', '%s.%s' % (self.name, suffix)) for suffix in ('png', 'pdf')]
        for path in paths:
            visualize.plot_comparison(parts, accuracies, self.published, self.xlabel, output_path=path)
        return paths

    def _preset(self, part, preset):
        return preset if self.parts[part].trained else preset._replace(main_epochs=0)
