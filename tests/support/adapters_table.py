"""Prints docs/adapters.md, the table of PEFT's adapters, from the cases that are tested.

Run: ``python -m tests.support.adapters_table > docs/adapters.md``.
"""

import importlib.metadata

from tests.support.adapters import EXACT, EXPERTS, FACTORS, MERGED, REFUSED, RESCALED

_WAYS = {
    FACTORS: ("rows of A (or what else keeps its place)", "a few products of thin matrices"),
    RESCALED: ("rows of A, and each row of the weight", "passes over the weight, in fp32"),
    EXPERTS: ("w itself", "the weight's change in full, one weight at a time"),
    MERGED: ("w itself", "two merged copies of the layer in fp64, one layer at a time"),
}

_HEAD = """# Adapters

weightwatch measures the change of the *weights*, whatever trains them. Of an adapter that is the change which its
merged weights show, and which its layer's outputs show. Each line of this table is a test against an fp64 reference
that reads the weights off the layers' outputs (`tests/update/peft/test_adapters.py`, PEFT {version}); the table is
printed from these tests by `python -m tests.support.adapters_table`.

* **Factors** are never multiplied out, and need no look at the weight beneath: it may be quantised or sharded.
* **Rescaled factors** are DoRA's on linear layers. The weight beneath may be quantised (bitsandbytes), but not sharded.
* **Merged copy**: PEFT merges the active adapters into a copy of the layer, in fp64. Whether its merge tells the truth
  is tried once for each kind of layer: a copy with moved adapters has to give the same outputs before and after it is
  merged. The weight beneath may be neither quantised nor sharded.
* Adapters that don't start at zero are measured from where they start: `Monitor.start`, or the callback, keeps a copy
  of their parameters.
* Where an adapter does something different in training (dropout, sampling), it is measured as it is for evaluation.

`reach` and the figures that follow from it need P(w), the part of a direction that the adapter could express. Where
this is *w itself*, it is not known to be limited, and `reach` is the share of the direction on the trained tensors.

## Measured

| adapter | PEFT's type | how | P(w) | cost of a check |
|---|---|---|---|---|
"""

_REFUSED = """
## Refused

Measuring stops with an error that names the layer, the adapter, the reason and the way out.

| adapter | PEFT's type | reason |
|---|---|---|
"""

_END = """
Refused with any adapter: adapters that are disabled. Refused unless the adapter is plain LoRA: adapters that are merged
into the weight at the time, and a weight that is spread over processes (FSDP, ZeRO-3, tensor parallel).
"""

_REASONS = {
    "beside its weights": "changes what the model is given or computes, not its weights",
    "not what the adapter does": "PEFT's merge is not what the layer does",
    "groups": "PEFT can't merge it",
    "task_ids": "depends on the task",
}


def table() -> str:
    """Return the page."""
    version = ".".join(importlib.metadata.version("peft").split(".")[:2])
    lines = [_HEAD.format(version=version)]
    for name, case in EXACT.items():
        reach, cost = _WAYS[case.how]
        lines.append(f"| {name} | {case.tuner.value} | {case.how} | {reach} | {cost} |\n")
    lines.append(_REFUSED)
    for name, case in REFUSED.items():
        reason = _REASONS.get(case.how, "depends on the input: PEFT can't merge it")
        lines.append(f"| {name} | {case.tuner.value} | {reason} |\n")
    return "".join([*lines, _END])


if __name__ == "__main__":
    print(table(), end="")
