"""Neutral tasks: how many a model still gets right shows what steering costs."""

from pathlib import Path

from pydantic import Field, model_validator

from weightwatch.vectors.document import Document, Strict, Text
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.recipes.questions import Item, repeated

PACKAGED = Path(__file__).parent / "neutral.yaml"


class NeutralTask(Item):
    """A task with a known answer.

    Attributes:
        right: Texts that are right.
        wrong: Texts that are wrong; an ``open`` task may have none.
    """

    right: list[Text] = Field(min_length=1)
    wrong: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _options_apart(self) -> "NeutralTask":
        if self.format == "choice" and not self.wrong:
            raise ValueError("a choice needs `wrong`, the texts that the right ones are compared with")
        self._check(self.right, self.wrong, "right and wrong")
        return self


class NeutralTasks(Strict):
    """Tasks that have nothing to do with a behaviour.

    Attributes:
        tasks: The tasks.
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
            source: A YAML file's path, or ``neutral``, those that come with the package.

        Raises:
            WeightWatchError: There is no such file, or it says something that is not allowed.
        """
        path = Path(source)
        if not path.is_file():
            if str(source) != PACKAGED.stem:
                raise WeightWatchError(f"No neutral tasks at {str(source)!r}: give a YAML file's path, or 'neutral'.")
            path = PACKAGED
        return Document.read(path, cls, "neutral tasks").validate()
