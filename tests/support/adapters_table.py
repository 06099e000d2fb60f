"""Prints docs/adapters.md, the table of PEFT's adapters, from the cases that are tested.

Run: ``python -m tests.support.adapters_table > docs/adapters.md``.
"""

import importlib.metadata

from tests.support.adapters import EXACT, EXPERTS, FACTORS, MERGED, REFUSED, RESCALED

_WAYS = {
    FACTORS: ("rows of A (or whatever stays fixed)", "a few products of thin matrices"),
    RESCALED: ("rows of A, and each row of the weight", "passes over the weight, in fp32"),
    EXPERTS: ("w itself", "the weight's change in full, one weight at a time"),
    MERGED: ("w itself", "two merged copies in fp64, one adapter module at a time"),
}

_HEAD = """# Adapters

weightwatch measures the change of the *weights*, whatever trains them. For an adapter, this is the change that its
merged weights show, and that the outputs of its adapter modules show. Each line of this table is a test against an
fp64 reference that reads the weights off the modules' outputs (`tests/update/peft/test_adapters.py`, PEFT {version}).
`python -m tests.support.adapters_table` prints the table from these tests.

* **Factors** are never multiplied out. The weight below is not read, so it may be quantised or sharded.
* **Rescaled factors** are DoRA's on linear modules. The weight below may be quantised (bitsandbytes), but not
  sharded.
* **Merged copy**: PEFT merges the active adapters into a copy of the adapter module, in fp64. A trial tests the merge
  once for each kind of adapter module: a copy with moved adapters must give the same outputs before and after it is
  merged. The weight below may be neither quantised nor sharded.
* An adapter that does not start at zero is measured from its start: `Monitor.start`, or the callback, keeps a copy of
  its parameters.
* An adapter that does something different in training (dropout, sampling) is measured as it is in evaluation.

`reach` and the figures that follow from it need P(w), the part of a direction that the adapter can express. Where the
table says *w itself*, no limit is known, and `reach` is the share of the direction on the trained tensors.

## Measured

| adapter | PEFT's type | how | P(w) | cost of a check |
|---|---|---|---|---|
"""

_REFUSED = """
## Refused

Measuring stops with an error that names the adapter module, the adapter, the reason and the way out.

| adapter | PEFT's type | reason |
|---|---|---|
"""

_END = """
Disabled adapters are refused, whatever their kind. Two cases are refused unless the adapter is plain LoRA: an adapter
that is merged into the weight at the time of the check, and a weight that is spread over processes (FSDP, ZeRO-3,
tensor parallel).
"""

_REASONS = {
    "instead of its weights": "changes what the model is given or computes, not its weights",
    "not what the adapter does": "PEFT's merge is not what the adapter module does",
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
