"""Where facts go beside the run's log: the board, TensorBoard, MLflow.

A sink sees facts that are public or released and no others, so that a tracker on another machine
learns nothing that the report of the run would not tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from synth_common.errors import ConfigError
from synth_common.facts import Fact, FactLog


class Sink(Protocol):
    """Takes facts as they are recorded."""

    def take(self, facts: Iterable[Fact]) -> None:
        """Facts that may be seen outside of the sites."""
        ...


class TrackedLog(FactLog):
    """A log of facts that also passes on those that are not local to a site.

    Args:
        path: The log's file.
        sinks: Who gets them, after they are on the disk.
    """

    def __init__(self, path: Path, sinks: Sequence[Sink]) -> None:
        super().__init__(path)
        self._sinks = sinks

    def append(self, *facts: Fact) -> None:
        """See :class:`~synth_common.facts.FactLog`."""
        super().append(*facts)
        for sink in self._sinks:
            sink.take(shareable(facts))


def shareable(facts: Iterable[Fact]) -> list[Fact]:
    """The facts that are public or released."""
    return [fact for fact in facts if fact.scope in ("public", "released")]


def scalars(fact: Fact) -> Iterator[tuple[str, float]]:
    """The finite numbers of a fact with a round, named ``fact/key`` or ``fact/site``."""
    if fact.round is None:
        return
    place = f"{fact.name}/{fact.site}" if fact.site is not None else fact.name
    found = fact.value.items() if isinstance(fact.value, Mapping) else [("", fact.value)]
    for key, value in found:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            yield f"{place}/{key}".rstrip("/"), float(value)


class TensorBoardSink:
    """Curves and sample grids in a folder that TensorBoard reads.

    Args:
        folder: Where TensorBoard's files go.
        run_dir: Where the paths of sample grids start.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, run_dir: Path) -> None:
        try:
            import torch.utils.tensorboard as tensorboard
        except ImportError as err:
            raise ConfigError(
                "--tensorboard needs TensorBoard, which is not installed: "
                "pip install 'synthward[tensorboard]'"
            ) from err
        make: Any = tensorboard.SummaryWriter  # not typed
        self._writer = make(str(folder))
        self._run_dir, self._round = run_dir, 0

    def take(self, facts: Iterable[Fact]) -> None:
        """See :class:`Sink`."""
        for fact in facts:
            self._round = fact.round if fact.round is not None else self._round
            for name, value in scalars(fact):
                self._writer.add_scalar(name, value, fact.round)
            if fact.name == "samples.grid":
                self._writer.add_image(
                    fact.name, _pixels(self._run_dir / str(fact.value)), self._round,
                    dataformats="HWC",
                )  # fmt: skip
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class MlflowSink:
    """A run in MLflow: the plan as parameters, curves as metrics, sample grids as artifacts.

    Args:
        uri: MLflow's tracking URI: a server's, or ``sqlite:///FILE``.
        name: Of the federation: MLflow's experiment.
        run_dir: Where the paths of sample grids start.

    Raises:
        ConfigError: MLflow is not installed.
    """

    def __init__(self, uri: str, name: str, run_dir: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow 3 reports its use
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as err:
            raise ConfigError(
                "--mlflow needs MLflow, which is not installed: pip install 'synthward[mlflow]'"
            ) from err
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._run_dir = run_dir
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self._run = self._client.create_run(experiment).info.run_id

    def take(self, facts: Iterable[Fact]) -> None:
        """See :class:`Sink`."""
        for fact in facts:
            for name, value in scalars(fact):
                self._client.log_metric(self._run, name, value, step=fact.round)
            if fact.name in ("run.id", "plan.digest", "run.seed"):
                self._client.log_param(self._run, fact.name, fact.value)
            elif fact.name == "samples.grid":
                self._client.log_artifact(self._run, str(self._run_dir / str(fact.value)))

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run)


class _Expendable:
    """A tracker that is given up, with a line, when it fails: the run goes on without it."""

    def __init__(
        self,
        option: str,
        make: Callable[[], TensorBoardSink | MlflowSink],
        tell: Callable[[str], None],
    ) -> None:
        self._option, self._tell = option, tell
        try:
            self._sink: TensorBoardSink | MlflowSink | None = make()
        except ConfigError:
            raise
        except Exception as err:  # a library's own errors; at the start they can be mended
            raise ConfigError(f"{option} cannot be used: {err}") from err

    def take(self, facts: Iterable[Fact]) -> None:
        """See :class:`Sink`."""
        self._do(lambda sink: sink.take(facts))

    def close(self) -> None:
        """End the tracker."""
        self._do(lambda sink: sink.close())

    def _do(self, work: Callable[[TensorBoardSink | MlflowSink], None]) -> None:
        try:
            if self._sink is not None:
                work(self._sink)
        except Exception as err:  # a library's own errors, of which there are many kinds
            self._sink = None
            self._tell(f"{self._option} failed and is not used any more: {err}")


@contextmanager
def trackers(
    run_dir: Path, name: str, asked: tuple[Path | None, str | None], tell: Callable[[str], None]
) -> Iterator[list[Sink]]:
    """The trackers that were asked for, closed in the end.

    Args:
        run_dir: Where the paths of sample grids start.
        name: Of the federation.
        asked: A folder for TensorBoard and a URI for MLflow, each or None.
        tell: Takes a line when a tracker fails.

    Raises:
        ConfigError: One is not installed, or cannot be used from the start.
    """
    folder, uri = asked
    made: list[_Expendable] = []
    try:
        if folder is not None:
            board = partial(TensorBoardSink, folder, run_dir)
            made.append(_Expendable(f"--tensorboard {folder}", board, tell))
        if uri is not None:
            made.append(
                _Expendable(f"--mlflow {uri}", partial(MlflowSink, uri, name, run_dir), tell)
            )
        yield list(made)
    finally:
        for sink in made:
            sink.close()


def _pixels(path: Path) -> Any:
    """A PNG as uint8 (H, W, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
