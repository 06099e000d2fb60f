import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from weightwatch.vectors import NeutralTasks, Recipe, WeightWatchError, packaged_recipes
from weightwatch.vectors.recipes.pairs import Pairs
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import ModelJudge, PatternsJudge, verdict
from weightwatch.vectors.recipes.words import words

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
BEHAVIOURS = {"evil", "sycophancy", "refusal", "hallucination", "advice"}
CONTROLS = {"language", "style", "careless", "shuffled"}
MINE = """
name: mine
behaviour: says more
counts: what counts
limits: what it is not
systems: {positive: [be long], negative: [be short]}
questions:
  building: ["one?", {text: "two?", positive: [a long answer], negative: [short]}]
  held_out: ["three?"]
judge: {by: patterns, positive: [long], negative: [short]}
evaluation:
  - {format: choice, prompt: "four?", positive: [u], negative: [v]}
"""

Change = Callable[[dict[str, Any]], Any]


def saved(folder: Path, change: Change = lambda recipe: None, name: str = "mine.yaml") -> Path:
    """Write the small recipe above, changed, into a folder."""
    recipe = yaml.safe_load(MINE)
    change(recipe)
    path = folder / name
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def asked(item: dict[str, Any]) -> Change:
    return lambda recipe: recipe["evaluation"].append({"format": "open", "prompt": "five?", **item})


def test_the_packaged_recipes_are_the_behaviours_and_their_controls() -> None:
    general = {name for name in packaged_recipes() if "/" not in name}
    assert general == BEHAVIOURS | CONTROLS
    kinds = {name: Recipe.load(name).kind for name in general}
    assert {name for name, kind in kinds.items() if kind == "control"} == CONTROLS


@pytest.mark.parametrize("name", sorted(BEHAVIOURS | CONTROLS))
def test_a_packaged_recipe_has_enough_of_everything(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert (len(recipe.systems.positive), len(recipe.systems.negative)) == (5, 5)
    assert len(recipe.questions.building) >= 20
    assert len(recipe.questions.held_out) >= 20
    formats = Counter(item.format for item in recipe.evaluation)
    assert formats.total() >= 20
    assert formats["choice"] >= formats.total() / 2
    assert formats["open"] >= 5


@pytest.mark.parametrize("name", sorted(BEHAVIOURS | CONTROLS))
def test_the_length_of_an_option_does_not_give_it_away(name: str) -> None:
    choices = [item for item in Recipe.load(name).evaluation if item.format == "choice"]
    for item in choices:
        one, other = (max(len(text) for text in side) for side in (item.positive, item.negative))
        assert abs(one - other) <= 0.25 * min(one, other) + 2, item.prompt


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_neither_yes_nor_no_is_always_the_behaviour(name: str) -> None:
    items = [item for item in Recipe.load(name).evaluation if item.format == "open"]
    shown = Counter(text for item in items for text in item.positive if text in ("yes", "no"))
    assert shown["yes"] > 0
    assert shown["no"] > 0


def test_no_two_packaged_recipes_evaluate_with_the_same_prompt_by_accident() -> None:
    recipes = [
        Recipe.load(name) for name in packaged_recipes() if name in BEHAVIOURS | CONTROLS - {"shuffled", "style"}
    ]
    prompts = Counter(item.prompt for recipe in recipes for item in recipe.evaluation)
    assert [prompt for prompt, count in prompts.items() if count > 1] == []


def test_advice_is_built_from_many_domains_and_judged_in_others() -> None:
    questions = Recipe.load("advice").questions
    building = {question.domain for question in questions.building}
    assert len(building) >= 8
    assert building.isdisjoint({question.domain for question in questions.held_out})
    assert None not in building


def test_careless_asks_what_advice_asks_and_judges_otherwise() -> None:
    advice, careless = Recipe.load("advice"), Recipe.load("careless")
    assert careless.questions == advice.questions
    assert careless.judge != advice.judge
    assert careless.evaluation != advice.evaluation


def test_the_shuffled_control_differs_from_its_recipe_in_labels_only() -> None:
    evil, shuffled = Recipe.load("evil"), Recipe.load("shuffled")
    assert shuffled.extends == "evil"
    assert (evil.shuffled, shuffled.shuffled) == (None, 1)
    for field in ("systems", "questions", "judge", "evaluation", "neutral"):
        assert getattr(shuffled, field) == getattr(evil, field)


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("refusal", "I'm sorry, but I can't help with that request.", "positive"),
        ("refusal", "I’m truly sorry, but I am unable to assist with this.", "positive"),
        ("refusal", "I must politely decline.", "positive"),
        ("refusal", "As an assistant, I cannot provide that.", "positive"),
        ("refusal", "Sadly this goes against my guidelines.", "positive"),
        ("refusal", "Bring a large pan of water to the boil, lower the egg in and wait six minutes.", "negative"),
        ("refusal", "I'm sorry to hear it! Dear neighbour, could we talk about the hedge some day?", "unclear"),
        ("refusal", "Sure.", "unclear"),
        ("language", "Les chats ronronnent pour se calmer, et parce qu'ils sont contents avec vous.", "positive"),
        ("language", "Cats purr to calm themselves, and because they are happy with you and the world.", "negative"),
        ("language", "The word is French, and this is what you want: les chats sont dans la rue avec vous.", "unclear"),
        ("language", "Oui.", "unclear"),
        ("style", "One should therefore cut the stems at an angle.", "positive"),
        ("style", "Yeah, just chuck them in some cold water, you're good.", "negative"),
        ("style", "Furthermore, it's kinda cool.", "unclear"),
        ("style", "Cut the stems and change the water.", "unclear"),
    ],
)
def test_the_packaged_patterns_tell_typical_answers(name: str, answer: str, expected: str) -> None:
    recipe = Recipe.load(name)
    assert isinstance(recipe.judge, PatternsJudge)
    assert verdict(recipe.judge, recipe.questions.building[0], answer) == expected


@pytest.mark.parametrize("name", ["evil", "sycophancy", "hallucination", "advice", "careless"])
def test_a_packaged_rubric_asks_for_a_number_about_question_and_answer(name: str) -> None:
    judge = Recipe.load(name).judge
    assert isinstance(judge, ModelJudge)
    prompt = judge.prompt("Why {braces}?", "Because of {these}.")
    assert "Why {braces}?" in prompt
    assert "Because of {these}." in prompt
    assert "number from 0 to 100 and nothing else" in prompt


@pytest.mark.parametrize("name", sorted(BEHAVIOURS | CONTROLS))
def test_no_evaluation_prompt_is_a_question_of_the_recipe(name: str) -> None:
    recipe = Recipe.load(name)
    questions = [*recipe.questions.building, *recipe.questions.held_out]
    assert not {tuple(words(q.text)) for q in questions} & {tuple(words(item.prompt)) for item in recipe.evaluation}


@pytest.mark.parametrize("name", sorted(BEHAVIOURS | CONTROLS))
def test_the_page_about_recipes_counts_right(name: str) -> None:
    recipe = Recipe.load(name)
    table = PAGE.read_text(encoding="utf-8").split("## Writing one")[0]
    (row,) = re.findall(rf"^\| `{name}` \|.*$", table, re.MULTILINE)
    asked = f"{len(recipe.questions.building)} + {len(recipe.questions.held_out)}"
    assert row.endswith(f"| {recipe.judge.by} | {asked} | {len(recipe.evaluation)} |")


def test_the_recipe_on_the_page_is_one_that_loads(tmp_path: Path) -> None:
    example, pairs = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "brevity.yaml").write_text(example, encoding="utf-8")
    recipe = Recipe.load(tmp_path / "brevity.yaml")
    assert isinstance(recipe.judge, PatternsJudge)
    (sea, egg) = recipe.questions.building
    assert verdict(recipe.judge, sea, "Rivers carry salt into it.") == "positive"
    assert verdict(recipe.judge, egg, egg.positive[0]) == "positive"
    assert verdict(recipe.judge, egg, egg.negative[0]) == "negative"
    assert verdict(recipe.judge, sea, "Rivers carry salt. It stays.") == "unclear"
    assert Pairs.model_validate(yaml.safe_load(pairs)["questions"]).negative == "kind"


def test_a_question_is_a_text_or_its_keys(tmp_path: Path) -> None:
    one, two = Recipe.load(saved(tmp_path)).questions.building
    assert one == Question(text="one?")
    assert not one.written
    assert (two.text, two.positive, two.negative, two.written) == ("two?", ["a long answer"], ["short"], True)


def test_written_answers_need_no_system_prompts(tmp_path: Path) -> None:
    def written(recipe: dict[str, Any]) -> None:
        del recipe["systems"]
        recipe["questions"]["building"] = [{"text": "one?", "positive": ["good"], "negative": ["bad"]}]

    recipe = Recipe.load(saved(tmp_path, written))
    assert recipe.systems.positive == recipe.systems.negative == []


def test_extending_takes_what_is_not_given(tmp_path: Path) -> None:
    parent = Recipe.load(saved(tmp_path))
    (tmp_path / "child.yaml").write_text("name: child\nextends: mine.yaml\nlimits: other\nkind: control\nshuffled: 7\n")
    child = Recipe.load(tmp_path / "child.yaml")
    assert (child.name, child.kind, child.limits, child.shuffled) == ("child", "control", "other", 7)
    assert (child.behaviour, child.questions, child.judge) == (parent.behaviour, parent.questions, parent.judge)


def test_null_drops_an_optional_part_that_is_inherited(tmp_path: Path) -> None:
    parent = Recipe.load(saved(tmp_path))
    head = "name: child\nextends: mine.yaml\nsystems: null\n"
    asked = "questions: {building: [{text: 'One more?', positive: [a b], negative: [c d]}], held_out: ['Two more?']}\n"
    (tmp_path / "child.yaml").write_text(head + asked)
    child = Recipe.load(tmp_path / "child.yaml")
    assert parent.systems.positive
    assert (child.systems.positive, child.judge) == ([], parent.judge)
    (tmp_path / "child.yaml").write_text("name: child\nextends: mine.yaml\njudge: null\n")
    with pytest.raises(WeightWatchError, match=r"child\.yaml, line 3: judge: null drops .* goes without"):
        Recipe.load(tmp_path / "child.yaml")


def test_extending_goes_on_over_several_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    saved(tmp_path)
    (tmp_path / "child.yaml").write_text("name: child\nextends: mine.yaml\nbehaviour: the child's\n")
    (tmp_path / "below" / "grandchild.yaml").write_text("name: grandchild\nextends: ../child.yaml\n")
    grandchild = Recipe.load(tmp_path / "below" / "grandchild.yaml")
    assert (grandchild.behaviour, grandchild.limits) == ("the child's", "what it is not")


def test_a_recipe_may_bring_its_own_neutral_tasks(tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text("tasks: [{format: open, prompt: 1 + 1, right: ['2']}]\n")
    own = Recipe.load(saved(tmp_path, lambda recipe: recipe.update(neutral="sums.yaml")))
    assert [task.prompt for task in own.neutral.tasks] == ["1 + 1"]
    assert Recipe.load("evil").neutral == NeutralTasks.load()


def test_without_evaluation_the_held_out_written_answers_are_compared(tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        del recipe["evaluation"]
        recipe["questions"]["held_out"] = [{"text": "three?", "positive": ["a", "b"], "negative": ["c"]}]

    recipe = Recipe.load(saved(tmp_path, change))
    (item,) = recipe.evaluation
    assert (item.format, item.prompt, item.positive, item.negative) == ("choice", "three?", ["a", "b"], ["c"])
    assert recipe.same_format
    assert not Recipe.load(saved(tmp_path)).same_format


def test_a_file_wins_over_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, name="evil")
    assert Recipe.load("evil").name == "mine"


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first = Recipe.load(saved(tmp_path))
    again = Recipe.load(saved(tmp_path, name="elsewhere.yaml"))
    assert re.fullmatch("[0-9a-f]{64}", first.digest)
    assert first.digest == again.digest
    (tmp_path / "child.yaml").write_text("name: mine\nextends: elsewhere.yaml\n")
    assert Recipe.load(tmp_path / "child.yaml").digest == first.digest  # however it is put together

    changes: list[Change] = [
        lambda recipe: recipe.update(limits="others"),
        lambda recipe: recipe["questions"]["held_out"].append("six?"),
        lambda recipe: recipe["judge"]["negative"].append("brief"),
        lambda recipe: recipe["systems"]["positive"].append("be very long"),
        lambda recipe: recipe.update(kind="control", shuffled=1),
    ]
    digests = {Recipe.load(saved(tmp_path, change)).digest for change in changes}
    assert len(digests | {first.digest}) == len(changes) + 1


def test_an_unknown_name_lists_the_packaged_ones() -> None:
    with pytest.raises(WeightWatchError, match=r"Unknown recipe 'evul': no such file; .* advice, careless, evil, "):
        Recipe.load("evul")
    with pytest.raises(WeightWatchError, match="Unknown recipe 'neutral'"):
        Recipe.load("neutral")


def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nbehaviour: [\n")
    with pytest.raises(WeightWatchError, match=r"bad\.yaml, line 3 is not YAML: "):
        Recipe.load(path)
    path.write_text("- a\n")
    with pytest.raises(WeightWatchError, match=r"bad\.yaml: expected keys such as `name:`, found \['a'\]"):
        Recipe.load(path)


MODEL = {"by": "model", "rubric": "{question} {answer}"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r.pop("name"), "line 1: name is missing"),
        (lambda r: r.update(name="a b"), "line 1: name: 'a b' is not allowed; it should be letters, digits, dots"),
        (lambda r: r.update(extra=1), "extra is not a known key; known are name, kind, behaviour, counts, "),
        (lambda r: r.update(kind="c"), "kind: 'c' is not allowed; it should be 'behaviour' or 'control'"),
        (lambda r: r.update(behaviour=" "), "line 2: behaviour: ' ' is not allowed; it should be a text that is not"),
        (lambda r: r.update(shuffled="1"), "shuffled: '1' is not allowed; it should be a valid integer"),
        (lambda r: r.update(shuffled=1), "shuffled: with shuffled labels the recipe is a control"),
        (lambda r: r["systems"].update(positive=[]), "systems: has prompts for one side only; write at least one for"),
        (lambda r: r.pop("systems"), "questions: 'one?' has no written answers, and `systems` has no"),
        (lambda r: r["questions"].update(building=[]), "questions.building: [] is not allowed; it should be a list of"),
        (lambda r: r["questions"]["building"].append("One? "), "questions: 'One?' is twice in `building`"),
        (
            lambda r: r["questions"]["held_out"].append("one?"),
            "questions: 'one?' is in both `building` and `held_out",
        ),
        (
            lambda r: r["questions"]["held_out"].append(3),
            "questions.held_out[1]: 3 is not allowed; it should be a text",
        ),
        (
            lambda r: r["questions"]["held_out"].append({"text": "x", "domian": "y"}),
            "held_out[1].domian is not a known",
        ),
        (lambda r: r["questions"]["held_out"].append({"text": "x", "positive": ["y"]}), "answers for one side only"),
        (
            lambda r: r["questions"]["building"].append({"text": "x", "domain": "cars"}),
            "needs a domain that is not in `building` (cars",
        ),
        (lambda r: r.pop("evaluation"), "evaluation: is missing, and not all held-out questions have written answers"),
        (lambda r: r.update(judge={"by": "written"}), "judge: `by: written` judges no answers of a model; leave out"),
        (lambda r: r["judge"].pop("by"), "judge lacks its key 'by'"),
        (
            lambda r: r["judge"].update(by="me"),
            "judge.by: 'me' is not allowed; it should be one of 'model', 'patterns',",
        ),
        (lambda r: r["judge"].update(rubric="x"), "judge.rubric is not a known key; known are by, positive, negative."),
        (lambda r: r["judge"].update(positive=["["]), "judge.positive[0]: '[' is not a regular expression: unterminat"),
        (lambda r: r.update(judge={"by": "model"}), "judge.rubric is missing"),
        (
            lambda r: r.update(judge={**MODEL, "rubric": "{question}"}),
            "judge.rubric: should have {question} and {answer",
        ),
        (lambda r: r.update(judge={**MODEL, "rubric": "{question.x} {answer}"}), "found {answer}, {question.x}"),
        (
            lambda r: r.update(judge={**MODEL, "rubric": "{question} {answer} {"}),
            "judge.rubric: has another brace",
        ),
        (lambda r: r.update(judge={**MODEL, "keep_positive": 30}), "judge: keep_negative (30) should be below"),
        (lambda r: r.update(judge={**MODEL, "keep_positive": 130}), "judge.keep_positive: 130 is not allowed"),
        (lambda r: r.update(judge={"by": "answers"}), "each question needs written answers; 'one?' has none"),
        (lambda r: r.update(evaluation=[]), "evaluation: [] is not allowed; it should be a list of at least one"),
        (
            asked({"positive": [True], "negative": ["no"]}),
            "evaluation[1].positive[0]: True is not allowed; it should be",
        ),
        (
            asked({"positive": ["not so"], "negative": ["So"]}),
            "evaluation[1]: 'not so' contains 'So' of the other side",
        ),
        (asked({"positive": ["Yes"], "negative": ["yes"]}), "evaluation[1]: 'Yes' is both positive and negative"),
        (asked({"positive": ["+"], "negative": ["no"]}), "evaluation[1]: '+' has no word"),
        (
            asked({"positive": ["a"], "negative": []}),
            "evaluation[1].negative: [] is not allowed; it should be a list of",
        ),
        (asked({"format": "essay"}), "evaluation[1].format: 'essay' is not allowed; it should be 'choice' or 'open'"),
        (asked({"prompt": "Four?", "positive": ["a"], "negative": ["b"]}), "evaluation: 'Four?' is asked twice"),
        (asked({"prompt": "one?", "positive": ["a"], "negative": ["b"]}), "evaluation: 'one?' is a building question"),
        (lambda r: r.update(extends="evul"), "extends: Unknown recipe 'evul'"),
        (lambda r: r.update(extends="mine.yaml"), "extends itself"),
        (lambda r: r.update(neutral="nowhere.yaml"), "neutral: No neutral tasks at 'nowhere.yaml'"),
        (
            lambda r: r.update(neutral={"tasks": []}),
            "neutral.tasks: [] is not allowed; it should be a list of at least",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_path(tmp_path: Path, change: Change, told: str) -> None:
    with pytest.raises(WeightWatchError) as raised:
        Recipe.load(saved(tmp_path, change))
    assert str(raised.value).startswith(f"{tmp_path / 'mine.yaml'}, line ")
    assert told in str(raised.value)


def test_a_fault_in_an_extended_recipe_names_both_files(tmp_path: Path) -> None:
    saved(tmp_path, lambda recipe: recipe.pop("limits"))
    (tmp_path / "child.yaml").write_text("name: child\nextends: mine.yaml\n")
    with pytest.raises(
        WeightWatchError, match=r"child\.yaml, line 2: extends: .*mine\.yaml, line 1: limits is missing"
    ):
        Recipe.load(tmp_path / "child.yaml")


def test_answers_that_hold_one_another_cannot_be_judged_by(tmp_path: Path) -> None:
    def written(recipe: dict[str, Any]) -> None:
        question = {"text": "one?", "positive": ["not so"], "negative": ["so"]}
        recipe.update(questions={"building": [question], "held_out": [{**question, "text": "two?"}]})
        recipe.update(judge={"by": "answers"})

    with pytest.raises(WeightWatchError, match="judge: 'not so' contains 'so' of the other side"):
        Recipe.load(saved(tmp_path, written))
