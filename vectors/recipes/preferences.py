"""Preference data as a recipe: which of two columns shows the behaviour is all that has to be said."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightwatch.vectors import yaml_text
from weightwatch.vectors.document import Document
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.recipes.pairs import Pairs
from weightwatch.vectors.recipes.recipe import Recipe

_DPO = ("chosen", "rejected")
_UNNAMED = re.compile(r"[^A-Za-z0-9._-]+")  # what a name can't have


@dataclass(frozen=True)
class Preferences:
    """A file of pairs, and what its columns mean.

    The recipe has no evaluation items, so the written answers of its held-out pairs are compared.

    Attributes:
        file: The file, as ``Pairs`` describes it.
        shows: The column of the answers that show the behaviour.
        against: The column of the answers that show its opposite. Default: of ``chosen`` and ``rejected``, the other.
        held_out: Values of the column ``domain`` that are held out. Default: a fifth of the prompts.
        name: Name of the recipe. Default: the file's, without its suffix and with dashes for what a name can't have.
    """

    file: Path
    shows: str
    against: str | None = None
    held_out: tuple[str, ...] = ()
    name: str | None = None

    def recipe(self) -> Recipe:
        """Return the recipe, whose reference is a YAML file of its name beside the data.

        Raises:
            WeightWatchError: The opposite column is not known, or see ``Pairs.questions`` and ``Recipe.load``.
        """
        content = self._content()
        questions = Document(Pairs, content["questions"], str(self.file)).validate().questions(Path())
        recipe = Document(Recipe, {**content, "questions": questions}, str(self.file)).validate()
        return recipe.called(str(self.file.resolve().with_name(f"{recipe.name}.yaml")))

    def save(self, folder: Path) -> Recipe:
        """Write the recipe to a folder as YAML that reads the file of pairs, and return it with that reference.

        Raises:
            WeightWatchError: See ``recipe``; or the file can't be written.
        """
        recipe = self.recipe()
        path = folder / f"{recipe.name}.yaml"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml_text.dump(self._content(), allow_unicode=True), encoding="utf-8")
        except OSError as error:
            raise WeightWatchError(f"{path} can't be written ({error.strerror}). Pass another --output.") from error
        return recipe.called(str(path.resolve()))

    def _content(self) -> dict[str, Any]:
        against = self._opposite()
        questions: dict[str, Any] = {"pairs": str(self.file.resolve()), "positive": self.shows, "negative": against}
        if self.held_out:
            questions["held_out"] = list(self.held_out)
        return {
            "name": (_UNNAMED.sub("-", self.file.stem).strip("-._") or "pairs") if self.name is None else self.name,
            "behaviour": f"answers as in the column {self.shows} of {self.file.name}, against {against}",
            "counts": f"Answers of the column {self.shows} show it, and those of {against} show its opposite.",
            "limits": "Its evaluation compares pairs like those it is built from, so it may be about their form.",
            "questions": questions,
            "judge": {"by": "written"},
        }

    def _opposite(self) -> str:
        if self.against is not None:
            return self.against
        if self.shows not in _DPO:
            raise WeightWatchError(
                f"The column {self.shows!r} shows the behaviour, but which one shows its opposite is not known. "
                "Name it with --against."
            )
        return _DPO[1 - _DPO.index(self.shows)]
