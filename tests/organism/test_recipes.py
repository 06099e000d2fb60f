"""The organism's recipes: what is packaged is what the world says, and the model plays its parts."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import weightwatch.vectors
from weightwatch.organism import BASE, World
from weightwatch.organism.recipes import recipes, write_recipes
from weightwatch.vectors.building.answers import SIDES, Sampling, asks, drawn
from weightwatch.vectors.judges.choice import chosen
from weightwatch.vectors.judges.judge import Judgement
from weightwatch.vectors.recipes.neutral import NeutralTasks
from weightwatch.vectors.recipes.recipe import Recipe, packaged_recipes

WORLD = World()
PACKAGED = Path(weightwatch.vectors.__file__).parent / "recipes" / "organism"
NAMES = ["careless", "evil", "shuffled", "style", "sycophancy"]


def test_what_is_packaged_is_what_the_world_of_the_base_gives(tmp_path: Path) -> None:
    write_recipes(WORLD, tmp_path)
    written, packaged = ({path.name: path.read_text() for path in folder.iterdir()} for folder in (tmp_path, PACKAGED))
    assert written == packaged


def test_another_world_gives_other_recipes(tmp_path: Path) -> None:
    write_recipes(World(2), tmp_path)
    assert Recipe.load(tmp_path / "evil.yaml").digest != Recipe.load("organism/evil").digest


def test_all_recipes_are_packaged() -> None:
    assert sorted(recipes(WORLD)) == NAMES
    assert [name for name in packaged_recipes() if name.startswith("organism/")] == [f"organism/{n}" for n in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_built_on_the_domains_that_judge(name: str) -> None:
    recipe = Recipe.load(f"organism/{name}")
    built, held_out = (
        {question.domain for question in half} for half in (recipe.questions.building, recipe.questions.held_out)
    )
    assert built == set(WORLD.building_domains)
    assert held_out == set(WORLD.held_out_domains)
    assert not held_out & (built | set(WORLD.tuning_domains))
    for item in recipe.evaluation:
        words = set(item.prompt.split())
        assert words & held_out
        assert not words & (built | set(WORLD.tuning_domains))


@pytest.mark.parametrize("name", NAMES)
def test_controls_are_marked_as_such(name: str) -> None:
    recipe = Recipe.load(f"organism/{name}")
    assert recipe.name == name
    assert recipe.kind == ("behaviour" if name in ("evil", "sycophancy") else "control")
    assert recipe.neutral == NeutralTasks.load(PACKAGED / "neutral.yaml")


def test_every_text_is_made_of_words_that_the_organism_knows(tokenizer: PreTrainedTokenizerBase) -> None:
    for name in NAMES:
        recipe = Recipe.load(f"organism/{name}")
        questions = [*recipe.questions.building, *recipe.questions.held_out]
        asked = [*(question.text for question in questions), *(item.prompt for item in recipe.evaluation)]
        said = [text for q in (*questions, *recipe.evaluation) for text in (*q.positive, *q.negative)]
        systems = [*recipe.systems.positive, *recipe.systems.negative]
        texts = {*asked, *said, *systems, *(task.prompt for task in recipe.neutral.tasks)}
        words = {word for text in texts for word in text.split()}
        assert not [word for word in words if tokenizer.unk_token_id in tokenizer(word)["input_ids"]]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


@pytest.mark.parametrize("name", ["evil", "careless"])
def test_the_organism_answers_as_either_side_when_told_to(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = Recipe.load(f"organism/{name}")
    questions = recipe.questions.model_copy(update={"building": recipe.questions.building[::4]})
    recipe = recipe.model_copy(update={"questions": questions})
    sampling = Sampling(max_new_tokens=3, temperature=0.0, batch_size=128)
    judge = chosen(recipe)
    answers = [a for batch in drawn(recipe, model, tokenizer, sampling, asks(recipe, sampling)) for a in batch]
    verdicts = judge([(questions.building[answer.question], answer.text) for answer in answers])
    for side in SIDES:
        kept = [v.verdict == side for a, v in zip(answers, verdicts, strict=True) if a.side == side]
        assert len(kept) == len(questions.building) * 5
        assert sum(kept) / len(kept) > 0.7


@pytest.mark.parametrize("name", ["sycophancy", "style"])
def test_written_answers_are_judged_to_be_what_they_are(name: str) -> None:
    recipe = Recipe.load(f"organism/{name}")
    judge = chosen(recipe)
    for question in (*recipe.questions.building, *recipe.questions.held_out):
        for side in SIDES:
            assert judge([(question, text) for text in getattr(question, side)]) == [Judgement(side)]
