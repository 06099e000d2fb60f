"""The opening of a run: its folder, θ₀ and files. A folder that can't be written does not keep it from beginning."""

import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from weightwatch.config import Config, GuardSettings
from weightwatch.faults import Faults, attempt
from weightwatch.record.journal import Journal
from weightwatch.record.run_folder import RunFolder
from weightwatch.setup import SETUP, Setup
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.update.snapshot import remove
from weightwatch.update.theta0 import establish, restore
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import write_text

_logger = logging.getLogger("weightwatch")


class Opening:
    """Opens the record of a run. Every process calls each method.

    What can't be written at the beginning is left to the journal, which does it when it can be done.

    Args:
        history: The record.
        faults: Takes what could not be written.
        ranks: The processes of the run.

    Attributes:
        folder: The run's folder. Only the main process writes to it.
    """

    def __init__(self, history: Journal, faults: Faults, ranks: Ranks) -> None:
        self.folder = RunFolder(history.folder)
        self._history, self._faults, self._ranks = history, faults, ranks
        self._claimed = False
        self._kept: TemporaryDirectory[str] | None = None  # θ₀, as long as the run's folder can't be written

    def claim(self, step: int, run: str | None, *, fresh: bool) -> None:
        """Take the run's folder; see ``RunFolder.claim``."""

        def claim() -> tuple[str, Path, Path, bool]:
            folder = self.folder
            unwritten = attempt(lambda: self._claim(step, run, fresh))
            if not isinstance(unwritten, OSError | None):
                raise unwritten
            if unwritten is not None:
                self._history.opening.append(lambda: self._claim(step, run, fresh))
                self._faults.note_unwritten(step, unwritten)
            return folder.run, folder.path, folder.start, unwritten is None

        self.folder.run, self.folder.path, self.folder.start, self._claimed = self._ranks.from_main(claim)
        self._history.folder = self.folder.path

    def establish(self, view: ModelView, given: Reference) -> Reference:
        """Record θ₀ in the run's folder, or in a temporary one until that can be written; see ``theta0.establish``."""
        fixed: list[Reference] = []
        fault: BaseException | None = None
        if self._claimed:
            fault = attempt(lambda: fixed.append(establish(view, self.folder.path, given)))
            if fixed:
                return fixed[0]
            if isinstance(fault, WeightWatchError):
                raise fault
        self._kept = TemporaryDirectory(prefix="weightwatch-", ignore_cleanup_errors=True)
        kept = Path(self._kept.name)
        reference = establish(view, kept, given)
        if fault is not None:
            self._faults.note_unwritten(0, fault)
        self._history.opening.append(lambda: _copy(kept, self._history.folder))
        return reference

    def restore(self, view: ModelView, given: Reference) -> Reference:
        """Return the recorded θ₀; see ``theta0.restore``."""
        return restore(view, self.folder.start, given)

    def open(self, step: int, config: Config, setup: Setup) -> None:
        """Write the settings and the setup, and set aside what the record has of later steps."""
        if self._ranks.main:
            for rule in config.rules:
                if rule.made_for is not None and rule.differences(rule.made_for, setup):
                    _logger.warning("weightwatch: rule %r: %s", rule.alert, rule.standing(setup))
            self._history.end = step or -1
            self._history.opening.append(lambda: self._prepare(step, config, setup))
            self._history.flush()

    def _compare(self, config: Config) -> None:
        """Tell of a guard that is not that of the run so far."""
        path = self._history.folder / "config.yaml"
        try:
            before = Config.load(path).guard if path.is_file() else config.guard
        except WeightWatchError:
            return  # settings of another version
        if before != config.guard:
            _logger.warning(
                "weightwatch: the guard has changed at the resume: it was (%s), and is (%s).",
                _told(before),
                _told(config.guard),
            )

    def _claim(self, step: int, run: str | None, fresh: bool) -> None:
        self.folder.claim(step, run, fresh=fresh)
        self._history.folder, aside = self.folder.path, self.folder.aside
        if aside is not None and not any(aside.parent.glob("*/trainer_state.json")):
            remove(aside)  # no checkpoint is left to go on from, and a copy of θ₀ is as large as the model

    def _prepare(self, step: int, config: Config, setup: Setup) -> None:
        if step:
            self._compare(config)
        self._history.rewind(step or -1)
        self._history.end = float("inf")
        self._history.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._history.folder / "config.yaml", config.to_yaml())
        write_text(self._history.folder / SETUP, setup.model_dump_json(indent=1) + "\n")


def _told(guard: GuardSettings | None) -> str:
    """Return the settings of a guard that are not the defaults, for a message."""
    if guard is None:
        return "no guard"
    changed = guard.model_dump(exclude_defaults=True)
    return ", ".join(f"{key}: {value}" for key, value in {"mode": guard.mode, **changed}.items())


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
