"""A judge that is a local text classifier."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.judges.judge import Judge, Judgement
from weightwatch.vectors.portable import portable_name
from weightwatch.vectors.recipes.verdicts import ModelJudge

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.questions import Question

_UNNAMED = {0: "label_0", 1: "label_1"}
_BATCH = 32  # answers rated at once


class Classifier(Judge):
    """A text classifier that rates question and answer as a pair.

    The score is 100 times the probability of the label ``positive``; of two labels without names, of the second. An
    answer that is longer than the classifier reads is ``unjudged``.

    Args:
        rubric: The thresholds of the verdicts.
        source: A sequence classification model with its tokenizer: a folder, or a Hub id.

    Raises:
        WeightWatchError: There is no such model, or none of its labels is called ``positive``.
    """

    def __init__(self, rubric: ModelJudge, source: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._rubric, self.name = rubric, f"the classifier {portable_name(source)}"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self._model, loading = AutoModelForSequenceClassification.from_pretrained(
                source, output_loading_info=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise WeightWatchError(
                f"{source} is not a judge: neither the address of an endpoint nor a chat model or text classifier "
                f"({error})."
            ) from error
        if loading["missing_keys"]:
            raise WeightWatchError(
                f"{source} is not a text classifier: it has no weights for "
                f"{', '.join(sorted(loading['missing_keys']))}. Pass one that was trained to detect the behaviour."
            )
        labels = {int(place): str(label).lower() for place, label in self._model.config.id2label.items()}
        named = [place for place, label in labels.items() if label == "positive"]
        if not named and labels != _UNNAMED:
            raise WeightWatchError(
                f"The classifier {source} has the labels {', '.join(labels.values())}, and none is called positive. "
                "In id2label of its config, rename the label of answers that show the behaviour to positive."
            )
        self._label = (named or [1])[0]
        weights = self._model.state_dict()
        self.identity = f"{labels}, {Fingerprint.of(weights, weights.__getitem__).model_dump_json()}"
        positions = getattr(self._model.config, "max_position_embeddings", None) or self._tokenizer.model_max_length
        self._longest = min(positions, self._tokenizer.model_max_length)
        self._model.eval()
        if torch.cuda.is_available():
            self._model.to("cuda")

    def rate(self, cases: "Sequence[tuple[Question, str]]") -> Generator[dict[int, Judgement], None, None]:
        """Rate answers."""
        for first in range(0, len(cases), _BATCH):
            part = dict(enumerate(cases[first : first + _BATCH], first))
            read = {number: case for number, case in part.items() if self._length(case) <= self._longest}
            long = Judgement("unjudged", None, f"longer than the {self._longest} tokens that the classifier reads")
            scores = dict(zip(read, self._scores(list(read.values())), strict=True))
            yield {
                number: Judgement(self._rubric.verdict(scores[number]), round(scores[number], 2))
                if number in scores
                else long
                for number in part
            }

    def _length(self, case: "tuple[Question, str]") -> int:
        return len(self._tokenizer(case[0].text, case[1])["input_ids"])

    @torch.no_grad()
    def _scores(self, cases: "Sequence[tuple[Question, str]]") -> list[float]:
        if not cases:
            return []
        questions, answers = [question.text for question, _ in cases], [answer for _, answer in cases]
        batch = self._tokenizer(questions, answers, return_tensors="pt", padding=True)
        logits = self._model(**batch.to(self._model.device)).logits.float()
        return (100 * logits.softmax(-1)[:, self._label]).tolist()
