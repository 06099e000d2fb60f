"""Neutral tasks, whose accuracy under steering shows what it costs."""

from pathlib import Path

from pydantic import Field, model_validator

from weightwatch.vectors.document import Document, Strict
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.recipes.questions import Item, Texts, repeated

PACKAGED = Path(__file__).parent / "neutral.yaml"


class NeutralTask(Item):
    """A task with a known answer.

    Attributes:
        right: Right answers.
        wrong: Wrong answers; optional for an ``open`` task.
    """

    right: Texts = Field(min_length=1)
    wrong: Texts = Field(default_factory=list)

    @model_validator(mode="after")
    def _options_apart(self) -> "NeutralTask":
        if self.format == "choice" and not self.wrong:
            raise ValueError("a choice needs `wrong`, the answers to compare the right ones with")
        self._validate_texts(self.right, self.wrong, "right and wrong")
        return self


class NeutralTasks(Strict):
    """Tasks that are unrelated to any behaviour.

    Attributes:
        tasks: The tasks.

    Example:
        >>> from weightwatch.vectors import NeutralTasks
        >>> len(NeutralTasks.load().tasks)
        40
    """

    tasks: list[NeutralTask] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_duplicates(self) -> "NeutralTasks":
        twice = repeated(task.prompt for task in self.tasks)
        if twice is not None:
            raise ValueError(f"{twice!r} is asked twice")
        return self

    @classmethod
    def load(cls, source: str | Path = "neutral") -> "NeutralTasks":
        """Read tasks.

        Args:
            source: Path of a YAML file, or ``neutral`` for the packaged tasks.

        Raises:
            WeightWatchError: There is no such file, or something in it is not allowed.
        """
        path = Path(source)
        if not path.is_file():
            if str(source) != PACKAGED.stem:
                raise WeightWatchError(
                    f"No neutral tasks at {str(source)!r}. Give the path of a YAML file, or 'neutral'."
                )
            path = PACKAGED
        return Document.read(path, cls, "neutral tasks").validate()
