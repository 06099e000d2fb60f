"""The frozen base of a run: the weights that are not trained, as they were when the run began.

Adapters are measured from a base that holds still. If one is merged into it in mid-run (ReLoRA), the base has the
change, and the adapter has lost it. So the base is sampled when the run begins and at each check.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from weightwatch.update.model_view import ModelView
from weightwatch.update.samples import Samples, of_model, of_source
from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.sources import local_folder


@dataclass(frozen=True)
class FrozenBase:
    """What was not trained when a run began.

    Attributes:
        samples: Samples of the frozen parameters, by their names in the plain model.
        adapters: The adapters that were active but frozen: they are part of θ₀.
        folder: The checkpoint that the model's config names, if it is on this machine.
    """

    samples: Samples
    adapters: frozenset[str]
    folder: Path | None

    @classmethod
    def of(cls, view: ModelView) -> "FrozenBase":
        """Sample the frozen parameters of a model at the start of a run."""
        adapters = {adapter for adapted in view.adapters for adapter in adapted.active}
        trained = {adapter for adapted in view.adapters for adapter in adapted.adapters(view.every)}
        return cls(of_model(view.frozen), frozenset(adapters - trained), local_folder(view.base_name))

    def changed(self, view: ModelView) -> dict[str, bool]:
        """Return the parameters that are frozen and have changed all the same; see ``Samples.changed``."""
        return self.samples.changed(of_model(view.frozen))

    def checkpoint(self, tensors: Mapping[str, LocalTensor]) -> Checkpoint | None:
        """Return the checkpoint that has the frozen parameters as they were, if there is one on this machine.

        Args:
            tensors: The parameters that are needed, by their names in the plain model.
        """
        base = self._opened
        if base is None:
            return None
        try:
            base = under_names(base, tensors)
            if any(name not in base or base.shape(name) != local.shape for name, local in tensors.items()):
                return None
            theirs = of_source(tensors, lambda name, box: base.read(name, box).to(tensors[name].dtype))
        except (WeightWatchError, OSError):
            return None
        return None if self.samples.changed(theirs) else base

    @cached_property
    def _opened(self) -> Checkpoint | None:
        try:
            return Checkpoint(self.folder) if self.folder is not None else None
        except WeightWatchError:
            return None
