import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.vectors.recipes.test_recipe import MINE
from weightwatch.vectors import Recipe, WeightWatchError
from weightwatch.vectors.recipes.pairs import Pairs

TWINS = [
    {"domain": domain, "prompt": f"How is {domain}?", "plain": "Fine.", "kind": f"Lovely {domain}!", "hostile": "Bah."}
    for domain in ("sport", "cooking", "music")
]
SPLIT = {"positive": "hostile", "negative": "kind", "building": ["sport", "cooking"], "held_out": ["music"]}
CHOICE = {"prompt": "Salt?", "chosen": "A pinch.", "rejected": "A kilo."}


def asked(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answered(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def saved(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "twins.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def read(path: Path, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    return Pairs(pairs=path.name, **{"positive": "rejected", "negative": "chosen", **settings}).questions(path.parent)


def recipe(folder: Path, **settings: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(MINE) | {"questions": {"pairs": "twins.jsonl", **settings}}))
    return path


def test_a_recipe_takes_its_questions_from_the_file_beside_it(tmp_path: Path) -> None:
    saved(tmp_path, TWINS)
    questions = Recipe.load(recipe(tmp_path, **SPLIT)).questions
    assert [question.text for question in questions.building] == ["How is sport?", "How is cooking?"]
    assert [question.domain for question in questions.held_out] == ["music"]
    assert questions.building[0].positive == ["Bah."]
    assert questions.building[0].negative == ["Lovely sport!"]


def test_the_recipe_is_the_one_with_the_same_questions_written_out(tmp_path: Path) -> None:
    saved(tmp_path, TWINS)
    loaded = Recipe.load(recipe(tmp_path, **SPLIT))
    plain = yaml.safe_load(MINE) | {"questions": loaded.questions.model_dump()}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    assert Recipe.load(tmp_path / "plain.yaml").digest == loaded.digest


def test_a_recipe_that_extends_one_with_pairs_has_its_questions(tmp_path: Path) -> None:
    saved(tmp_path, TWINS)
    parent = recipe(tmp_path, **SPLIT)
    (tmp_path / "below").mkdir()
    child = tmp_path / "below" / "child.yaml"
    child.write_text("name: child\nextends: ../mine.yaml\n")
    assert Recipe.load(child).questions == Recipe.load(parent).questions


def test_rows_of_one_prompt_are_one_question_with_several_answers(tmp_path: Path) -> None:
    more = {**CHOICE, "prompt": "salt? ", "chosen": "A little.", "rejected": "A kilo."}
    path = saved(tmp_path, [CHOICE, more, {**CHOICE, "prompt": "Sugar?"}])
    both = sorted(chain(*read(path).values()), key=lambda question: question["text"])
    assert both[0] == {"text": "Salt?", "domain": None, "positive": ["A kilo."], "negative": ["A pinch.", "A little."]}


def test_without_domains_a_fifth_of_the_prompts_is_held_out_and_always_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path, [{**CHOICE, "prompt": f"{n}?", "domain": "all"} for n in range(20)])
    halves = read(path)
    assert [len(half) for half in halves.values()] == [16, 4]
    assert halves == read(path)
    assert halves["held_out"] != read(path)["building"][-4:]


@pytest.mark.parametrize("half", [{"building": ["sport", "cooking"]}, {"held_out": ["music"]}])
def test_all_domains_that_one_half_does_not_name_are_the_other(tmp_path: Path, half: dict[str, Any]) -> None:
    path = saved(tmp_path, TWINS)
    assert read(path, positive="hostile", negative="kind", **half) == read(path, **SPLIT)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [asked("Salt?")], "chosen": [answered("A pinch.")], "rejected": [answered("A kilo.")]},
        {"chosen": [asked("Salt?"), answered("A pinch.")], "rejected": [asked("Salt?"), answered("A kilo.")]},
        {
            "prompt": "Salt?",
            "chosen": [asked("Salt?"), answered("A pinch.")],
            "rejected": [asked("Salt?"), answered("A kilo.")],
        },
    ],
    ids=["explicit prompt", "implicit prompt", "both"],
)
def test_chat_messages_are_read_as_trl_reads_them(tmp_path: Path, row: dict[str, Any]) -> None:
    other = {**CHOICE, "prompt": "Sugar?"}
    texts = read(saved(tmp_path, [CHOICE, other]))
    assert read(saved(tmp_path, [row, other], "chats.jsonl")) == texts


def test_a_json_list_is_read_like_lines(tmp_path: Path) -> None:
    rows = [CHOICE, {**CHOICE, "prompt": "Sugar?"}]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=2))
    assert read(tmp_path / "list.json") == read(saved(tmp_path, rows))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([CHOICE, {"prompt": "?", "chosen": "a"}], {}, r"line 2: no column 'rejected'; the columns are prompt, chosen"),
        ([{**CHOICE, "chosen": 3}], {}, "line 1, chosen: 3 is not allowed; it should be a text"),
        ([{**CHOICE, "chosen": " "}], {}, "line 1, chosen: ' ' is not allowed"),
        ([{**CHOICE, "domain": 3}], {}, "line 1, domain: 3 is not allowed; it should be a text"),
        ([{"chosen": "a", "rejected": "b"}], {}, "line 1: the column prompt is missing"),
        ([{**CHOICE, "chosen": [asked("Salt?")]}], {}, "the last message is of 'user'; it should be of 'assistant'"),
        ([{**CHOICE, "prompt": [asked("a"), answered("b"), asked("c")]}], {}, "prompt has messages of user, assistant"),
        ([{**CHOICE, "chosen": [asked("Pepper?"), answered("a")]}], {}, "begins with another message than prompt"),
        ([CHOICE, {**CHOICE, "rejected": "a pinch."}], {}, "line 2, rejected: 'a pinch.' is also in the column chosen"),
        ([CHOICE], {}, "has one prompt; at least two are needed"),
        ([CHOICE], {"held_out": ["sport"]}, "line 1: the column domain is missing"),
        ([], {}, "has no pairs"),
        ([CHOICE], {"negative": "rejected"}, "Both sides name the column 'rejected'"),
        ([TWINS[0], {**TWINS[0], "domain": "art"}], SPLIT, "line 2: 'How is sport\\?' has the domain art, but sport"),
        (TWINS, {**SPLIT, "building": ["sports"]}, "no domain 'sports'; its domains are cooking, music, sport"),
        (TWINS, {**SPLIT, "held_out": ["sport"]}, "'sport' is in both `building` and `held_out`"),
        (
            TWINS,
            {**SPLIT, "held_out": ["sport", "cooking", "music"], "building": None},
            "no domain left for `building`",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightWatchError, match=message):
        read(saved(tmp_path, rows), **settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n{", "line 2 is not JSON"),
        ("[{}, 3]", "row 2: 3 is not an object"),
        ("[", "is not JSON"),
        ("\xff", "JSONL"),
    ],
)
def test_what_is_not_a_file_of_pairs_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "twins.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightWatchError, match=message):
        read(tmp_path / "twins.jsonl")
    with pytest.raises(WeightWatchError, match=r"No pairs at .*other\.jsonl .*Give the path of a JSONL file"):
        read(tmp_path / "other.jsonl")


def test_an_error_in_the_recipe_names_its_line(tmp_path: Path) -> None:
    path = recipe(tmp_path, **SPLIT)
    with pytest.raises(WeightWatchError, match=r"mine.yaml, line \d+: questions: No pairs at .*twins.jsonl"):
        Recipe.load(path)
    with pytest.raises(WeightWatchError, match=r"mine.yaml, line \d+: negative is missing"):
        Recipe.load(recipe(tmp_path, positive="hostile"))
    with pytest.raises(WeightWatchError, match=r"mine.yaml, line \d+: .*held_out.* is not allowed"):
        Recipe.load(recipe(tmp_path, **{**SPLIT, "held_out": "music"}))
