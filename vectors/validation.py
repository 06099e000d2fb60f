"""What applying a direction has shown: part of its card."""

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(_Frozen):
    """How the base behaves with k steering units added: θ₀ + k·w.

    Attributes:
        k: Steering units.
        shows: Share of the held-out items, of another format than the building questions, that show the behaviour.
        opposite: Share of them that show its opposite. Neither is what is left.
        margin: Mean over the choices of log p(positive) − log p(negative), in nats a token; None without choices.
        asked: Share of the replies to held-out questions that show the behaviour; None where nobody judged them.
        neutral: Share of the neutral tasks that are right.
    """

    k: float
    shows: float
    opposite: float
    margin: float | None = None
    asked: float | None = None
    neutral: float


class Validation(_Frozen):
    """What a direction was found to do.

    Attributes:
        passed: It shows the behaviour at some k > 0 and its opposite at some k < 0, and neutral tasks survive both.
        reasons: Why it did not pass; empty if it did.
        points: By rising k.
        items: Number of held-out items.
        tasks: Number of neutral tasks.
        recipe: Name and digest of the recipe whose items they are.
        seeds: Cosine of each pair of seeds, as ``"0, 1"``.
        others: Cosine with other directions by name: the controls should be near zero.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    points: tuple[Point, ...]
    items: int
    tasks: int
    recipe: dict[str, str] = Field(default_factory=dict)
    seeds: dict[str, float] = Field(default_factory=dict)
    others: dict[str, float] = Field(default_factory=dict)
