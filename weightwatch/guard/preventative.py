"""Training with k·w added to what the model computes, and to nothing that is saved.

The forward pass of each layer is that of ``W + k w``, so the data need not move the weights along w. The weights stay
as they are: θ₀, checkpoints, resumes and readings are those of an ordinary run, and taking w off again is to stop.
Sources: preventative steering of activations, Chen et al., arXiv 2507.21509.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.hooks import RemovableHandle

from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.names import canonical


def add_while_training(
    model: nn.Module, directions: Sequence[Direction], k: float, chosen: Callable[[str], bool]
) -> list[RemovableHandle]:
    """Add k·w to the forward pass of a model's layers while they are in training mode.

    Args:
        model: The model, plain or with adapters.
        directions: The directions. What they state for an embedding counts for its tied head, too.
        k: The coefficient.
        chosen: Whether a weight is to be guarded, by its name.

    Returns:
        Handles to remove.

    Raises:
        WeightWatchError: A direction has a weight that is not that of a linear layer or an embedding.
    """
    layers = _layers(model)
    handles: list[RemovableHandle] = []
    for direction in directions:
        for name, w in direction.deltas.items():
            if not chosen(name):
                continue
            path, layer = layers.get(name, ("", None))
            if layer is None or (not isinstance(layer, nn.Linear | nn.Embedding) and type(layer).__name__ != "Conv1D"):
                for handle in handles:
                    handle.remove()
                what = "no layer of this model" if layer is None else f"the weight of {type(layer).__name__}"
                raise WeightWatchError(
                    f"Direction {direction.name!r} has {name}, which is {what}; `mode: preventative` adds to linear "
                    "layers and embeddings only. Leave it out with `layers:`, or use `mode: update`."
                )
            held = _Held(w, k)
            handles.append(layer.register_forward_hook(partial(_added, held=held)))
            if path.endswith(".base_layer"):
                continue  # an adapter changes this layer alone
            for other, (_, tied) in layers.items():  # a tied head has the same weight
                if tied is not layer and tied.weight is layer.weight and other not in direction.deltas:
                    handles.append(tied.register_forward_hook(partial(_added, held=held)))
    return handles


class _Held:
    """A direction's change of one weight, moved to the layer's device at the first use."""

    def __init__(self, w: LowRank | Tensor, k: float) -> None:
        self.k = k
        self._factors: tuple[Tensor, Tensor | None] = w.oriented if isinstance(w, LowRank) else (w, None)

    def at(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return its factors in the precision and on the device of an output; the second is None if it is dense."""
        left, right = self._factors
        if left.device != like.device or left.dtype != like.dtype:
            self._factors = left.to(like), None if right is None else right.to(like)
        return self._factors


def _added(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, held: _Held) -> Tensor | None:
    if not layer.training:
        return None
    left, right = held.at(output)
    if isinstance(layer, nn.Embedding):
        added = embedding(inputs[0], left) if right is None else embedding(inputs[0], left) @ right
        added = added * getattr(layer, "embed_scale", 1.0)  # Gemma's and BART's embeddings
    elif isinstance(layer, nn.Linear):  # w is (out, in)
        x = inputs[0].to(output.dtype)
        added = x @ left.T if right is None else (x @ right.T) @ left.T
    else:  # Conv1D's weight is (in, out)
        x = inputs[0].to(output.dtype)
        added = x @ left if right is None else (x @ left) @ right
    return output + held.k * added


def _layers(model: nn.Module) -> Mapping[str, tuple[str, Any]]:
    """Return paths and layers by the names of their weights in the plain model; under PEFT, of the base layers."""
    found: dict[str, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        if module._parameters.get("weight") is None:  # PEFT's layers show the weight of the layer inside
            continue
        name = canonical(f"{path}.weight")
        if name not in found or ".modules_to_save." in path:
            found[name] = path, module
    return found
