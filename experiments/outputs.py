"""What a results folder holds beside results.json: tables, figures, reports and the manifest, which follow from it.

It also holds the weights of its runs, whose SHA-256 results.json records.
"""

from __future__ import annotations

import os
from typing import Any

from branchynet import checkpoint, files, schema, verify
from branchynet.experiments import NETWORKS, figures, get_experiment, pages, report, runs
from branchynet.experiments import results as results_file
from branchynet.experiments.results import Results, Training
from branchynet.experiments.run_id import RunId
from branchynet.files import write_atomically


def in_order(experiment: Any, done: list[Any]) -> list[Any]:
    """Sorts runs by seed, and those of one seed in the order of the experiment's parts.

    Args:
        experiment: the experiment.
        done: runs of it.
    """
    parts = list(experiment.parts)
    return sorted(done, key=lambda run: (run.seed, parts.index(run.part)))


def write(results: Results, out: str) -> None:
    """Writes everything that follows from results.json: tables, figures, both reports, the manifest.

    Args:
        results: the content of results.json.
        out: the results folder.

    Raises:
        OSError: weights in the folder are not those of a run.
    """
    weights = [path for run_id, training in results.trainings().items() for path in kept_weights(run_id, training, out)]
    written, shown = [results_file.path_of(out), *weights], {}
    for name, seeds in results.experiments.items():
        experiment = get_experiment(name)
        paths = experiment.write(seeds, out)
        drawn = figures.draw(experiment, seeds[0], out) if name in NETWORKS else figures.Drawn([])
        shown[name] = drawn._replace(paths=[path for path in paths if path.endswith('.png')] + drawn.paths)
        written += [*paths, *drawn.paths]
    blocks = report.blocks(results, shown)
    for name, text in ('report.md', pages.markdown(blocks)), ('report.html', pages.html('BranchyNet', blocks)):
        written.append(os.path.join(out, name))
        write_atomically(written[-1], text.encode())
    verify.write(os.path.join(out, 'manifest.json'), _manifest(results, written, out))


def changed(out: str) -> str:
    """Says that results.json is not the file that the manifest beside it lists; '' if it is, or if none lists it.

    Args:
        out: a results folder.

    Raises:
        OSError: the manifest is damaged or of another format.
    """
    results, manifest = results_file.path_of(out), os.path.join(out, 'manifest.json')
    if not os.path.exists(manifest):
        return ''
    listed = verify.read(manifest).sha256.get('results.json')
    if listed in (None, files.digest(results)):
        return ''
    return (
        f'{results} is not the file that {manifest} lists: it was edited, or a run was interrupted; '
        "'branchynet measure' measures a folder's weights again, --resume finishes an interrupted run"
    )


def weights_of(run_id: RunId, training: Training | None, out: str) -> dict[str, str]:
    """The SHA-256 of each file of weights that a run wrote.

    Args:
        run_id: of the run.
        training: its training; None: it trained nothing.
        out: the results folder.

    Returns:
        The hashes by path; the files need not exist.
    """
    if training is None:
        return {}
    found = {run_id.weights_path(out): training.weights_sha256}
    if training.main_weights_sha256 is not None:
        found[run_id.main_weights_path(out)] = training.main_weights_sha256
    return found


def kept_weights(run_id: RunId, training: Training | None, out: str) -> list[str]:
    """Finds the files of a run's weights that exist in a folder.

    Args:
        run_id: of the run.
        training: its training; None: it trained nothing.
        out: the results folder.

    Returns:
        Their paths. None while a checkpoint shows that the run is being trained again: the files may be those of the
        new training.

    Raises:
        OSError: a file is not the file that the run wrote.
    """
    if checkpoint.has(run_id.checkpoint_path(out)):
        return []
    kept = {path: sha256 for path, sha256 in weights_of(run_id, training, out).items() if os.path.exists(path)}
    for path, sha256 in kept.items():
        runs.check_written(path, sha256)
    return list(kept)


def _manifest(results: Results, written: list[str], out: str) -> verify.Manifest:
    """The origin and the steps of every run, and the hashes of all files that were written."""
    return verify.Manifest(
        preset=results.preset,
        runs=[run_of_manifest(run_id, run) for run_id, run in results.by_id().items()],
        sha256={os.path.relpath(path, out): files.digest(path) for path in sorted(written)},
    )


def run_of_manifest(run_id: RunId, run: Any) -> verify.Run:
    """Describes a run for `branchynet verify`: settings that must agree, and steps in the order of the run.

    Args:
        run_id: of the run.
        run: its record.
    """
    training, measurement = run.training, run.measurement
    settings = {'seed': run.seed, 'test_samples': measurement.test_samples}
    if training is not None:
        names = ('variant', 'main_epochs', 'joint_epochs', 'batchsize', 'train_samples')
        settings.update({name: getattr(training, name) for name in names})
        steps = training_steps(training)
    else:
        settings.update(variant=measurement.variant, tool=measurement.tool)
        steps = [verify.Step(what='data', sha256=measurement.data_sha256)]
        if measurement.weights_sha256 is not None:
            steps.append(verify.Step(what='weights', sha256=measurement.weights_sha256))
    steps += [
        verify.Step(what=f'output {what}', sha256=digest.sha256, mean=_mean(what, digest, measurement))
        for what, digest in getattr(measurement, 'outputs', {}).items()
    ]
    origin = training or measurement
    return verify.Run(
        name=str(run_id),
        settings=settings,
        device=origin.device,
        environment=schema.unstructure(origin.environment),
        measured_in=schema.unstructure(measurement.environment),
        weights_sha256=weights_of(run_id, training, out=''),
        steps=steps,
    )


def _mean(what: str, digest: results_file.Digest, measurement: Any) -> float | list[float]:
    """The mean of an output; of the sweep's shares one for each exit, as those of all exits together say nothing."""
    if what == 'sweep_exits' and isinstance(measurement, results_file.NetworkMeasurement):
        return [sum(shares) / len(shares) / 100 for shares in zip(*(row.exit_percent for row in measurement.sweep))]
    return digest.mean


def training_steps(training: Training) -> list[verify.Step]:
    """Lists the steps of a training: the data, then the weights after each epoch.

    Args:
        training: a record, also of a training that has not ended.
    """
    steps = [verify.Step(what='data', sha256=training.data_sha256)]
    for phase in 'main', 'joint':
        history = getattr(training, phase)
        epochs = zip(history.weights_sha256, history.loss, history.accuracy)
        steps += [
            verify.Step(
                what=f'weights after epoch {epoch} of {phase} training', sha256=sha256, loss=loss, accuracy=accuracy
            )
            for epoch, (sha256, loss, accuracy) in enumerate(epochs, 1)
        ]
    return steps
