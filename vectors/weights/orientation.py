"""Which products of LoRA factors are the transpose of the weight's change: those of transformers' ``Conv1D``.

PEFT keeps one flag for an adapter, ``fan_in_fan_out``, and sets it anew at each module that it adapts. In the settings
of an adapter of both ``Conv1D`` and linear modules it is the flag of the last one. There, the base model tells.
"""

from collections.abc import Mapping

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import architecture
from weightwatch.vectors.weights.names import module_of
from weightwatch.vectors.weights.reader import FLOATS
from weightwatch.vectors.weights.sources import local_folder

_CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}  # the names that every Conv1D of transformers has


def transposed(
    products: Mapping[str, tuple[int, int]], flag: bool, base: Checkpoint | None, named: str | None, title: str
) -> set[str]:
    """Return the names of the weights whose change is the transpose of the product of their factors.

    The flag counts for all of them, unless the names of the modules or the shapes of the base's weights show that both
    kinds are adapted. Then the shape of each weight decides, and where it is square, the class of its module.

    Args:
        products: Shape of each product, by the weight's name. Embeddings are not among them.
        flag: ``fan_in_fan_out`` of the adapter's settings.
        base: The base model; None if it is unknown.
        named: The base that the adapter's settings name. It is only looked up where it is needed.
        title: The adapter, for messages.

    Raises:
        WeightWatchError: Both kinds are adapted, and the base that could tell them apart is not on this machine.
    """
    by_shape = _by_shape(products, base)
    if len({module_of(name) in _CONV1D for name in products}) < 2 and set(by_shape.values()) <= {flag}:
        return set(products) if flag else set()
    if base is None:
        base = _on_this_machine(named)
        by_shape = _by_shape(products, base)
    unknown = [name for name in products if name not in by_shape]
    model = architecture(base.path) if unknown and base is not None else None
    lost = next((name for name in unknown if model is None or name not in model.shapes), None)
    if lost is not None:
        raise WeightWatchError(
            f"{title} adapts both linear modules and Conv1D, for which one fan_in_fan_out can't be right, and the "
            f"shape of {lost} does not tell which it is. Its base does ({named or 'not named'}): pass the folder of "
            "the base, with its config.json."
        )
    return {name for name in products if by_shape.get(name, model is not None and name in model.conv1d)}


def _by_shape(products: Mapping[str, tuple[int, int]], base: Checkpoint | None) -> dict[str, bool]:
    """Return whether each product is transposed, as far as the shape of the base's weight tells."""
    found = {}
    for name, (rows, columns) in products.items():
        if base is not None and rows != columns and name in base and base.dtype(name) in FLOATS:
            shape = base.shape(name)
            if shape in ((rows, columns), (columns, rows)):
                found[name] = shape == (columns, rows)
    return found


def _on_this_machine(named: str | None) -> Checkpoint | None:
    folder = local_folder(named or "")
    try:
        return Checkpoint(folder) if folder is not None else None
    except WeightWatchError:
        return None
