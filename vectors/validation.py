"""The result of evaluating a direction: part of its card."""

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(_Frozen):
    """The behaviour of the base model with k times the direction added: θ₀ + k·w.

    Attributes:
        k: The coefficient.
        shows: Share of the held-out items that show the behaviour.
        opposite: Share of these items that show the opposite. The rest show neither.
        margin: Mean over the choices of log p(positive) − log p(negative), in nats per token; None without choices.
        asked: Share of the replies to held-out questions that show the behaviour, of those with a verdict; None without
            a judge or a verdict.
        neutral: Share of the neutral tasks that are answered correctly.
    """

    k: float
    shows: float
    opposite: float
    margin: float | None = None
    asked: float | None = None
    neutral: float


class Validation(_Frozen):
    """The result of evaluating a direction.

    Attributes:
        passed: Whether the base model shows the behaviour at some k > 0 and the opposite at some k < 0, and still
            solves the neutral tasks at both.
        reasons: Why it did not pass; empty if it did.
        points: One for each k, in ascending order.
        items: Number of held-out items.
        tasks: Number of neutral tasks.
        same_format: Whether the items are pairs of written answers like those that the direction was built from. Such
            items do not show whether it captures more than the form of its data.
        recipe: Name and digest of the recipe that the items come from.
        seeds: Cosine of each pair of seeds, under keys such as ``"0, 1"``.
        others: Cosine with other directions by name; controls should be near zero.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    points: tuple[Point, ...]
    items: int
    tasks: int
    same_format: bool = False
    recipe: dict[str, str] = Field(default_factory=dict)
    seeds: dict[str, float] = Field(default_factory=dict)
    others: dict[str, float] = Field(default_factory=dict)
