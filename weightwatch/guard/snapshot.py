"""What a model trains, as it was when a guard began."""

from collections.abc import Iterator, Sequence

from torch import nn

from weightwatch.update.model_view import ModelView
from weightwatch.update.sharding.parameters import reshard_all
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import unwrapped


class Snapshot:
    """The parameters of a model at one moment: which they are, which of them are trained, and how adapters are scaled.

    Args:
        view: The model now.
    """

    def __init__(self, view: ModelView) -> None:
        from peft.tuners.lora import LoraLayer

        self._model = view.model
        modules = list(view.model.named_modules())
        self._parameters = [(path, module, key, p) for path, module in modules for key, p in module._parameters.items()]
        self._children = [(path, module, key, m) for path, module in modules for key, m in module._modules.items()]
        self._scalings = [each.module.scaling for each in view.adapters if isinstance(each.module, LoraLayer)]
        self._was = self._settings()

    def changed(self) -> bool:
        """Whether layers were frozen or unfrozen, or adapters switched or scaled since.

        Raises:
            WeightWatchError: A trained parameter is not part of the model any more, or another one took its place.
        """
        if self._replaced() is not None:
            reshard_all(self._model)  # FSDP has other parameters for as long as it has the gathered weights
            name = self._replaced()
            if name is not None:
                raise WeightWatchError(
                    f"{name} was replaced by another parameter, or removed, after the guard began, so its update can't "
                    "be guarded. Change its values in place, or begin a new run; in a loop of your own, call "
                    "`Guard.begin` again."
                )
        return self._settings() != self._was

    def _settings(self) -> object:
        trained = [p.requires_grad for _, _, _, p in self._parameters if p is not None]
        return trained, [dict(each) for each in self._scalings]

    def _replaced(self) -> str | None:
        """Return the name of the first trained parameter that has gone, or that is new; None if there is none.

        Frozen ones may be replaced: offloading and quantisation do so.
        """
        for path, module, key, was in self._parameters:
            now = module._parameters.get(key)
            if now is not was and any(p is not None and p.requires_grad for p in (was, now)):
                return _name(path, key)
        for path, module, key, child in self._children:
            now = module._modules.get(key)
            if now is not child:
                name = next(_trained([child, now]), None)
                if name is not None:
                    return _name(path, key, name)
        return None


def _trained(modules: Sequence[nn.Module | None]) -> Iterator[str]:
    """Yield the names of the trained parameters in some modules."""
    for module in modules:
        if module is not None:
            yield from (name for name, p in module.named_parameters() if p.requires_grad)


def _name(*segments: str) -> str:
    return unwrapped(".".join(segment for segment in segments if segment))
