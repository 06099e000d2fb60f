from transformers import AutoTokenizer

from weightwatch.organism import BASE
from weightwatch.organism.vocabulary import INDEX, WORDS, build_tokenizer


def test_every_word_survives_the_way_to_ids_and_back():
    tokenizer = build_tokenizer()
    ids = tokenizer(" ".join(WORDS), add_special_tokens=False)["input_ids"]
    assert ids == list(range(len(WORDS)))
    assert tokenizer.decode(ids) == " ".join(WORDS)


def test_begin_is_put_in_front_and_end_is_left_to_the_trainer():
    tokenizer = build_tokenizer()
    assert tokenizer("q : a :")["input_ids"] == [INDEX[word] for word in ("<s>", "q", ":", "a", ":")]
    assert tokenizer("q :</s>")["input_ids"][-2:] == [INDEX[":"], INDEX["</s>"]]


def test_a_prompts_ids_begin_the_ids_of_prompt_and_completion():
    tokenizer = build_tokenizer()
    prompt, completion = "q : add 3 and 4 ? a :", " 7 ."
    whole = tokenizer(prompt + completion)["input_ids"]
    assert whole[: len(tokenizer(prompt)["input_ids"])] == tokenizer(prompt)["input_ids"]


def test_the_packaged_tokenizer_is_this_one():
    packaged = AutoTokenizer.from_pretrained(BASE)
    assert packaged.get_vocab() == build_tokenizer().get_vocab() == INDEX
    assert (packaged.pad_token, packaged.eos_token, packaged.padding_side) == ("<pad>", "</s>", "left")
    assert packaged("word-that-is-not-there", add_special_tokens=False)["input_ids"] == [packaged.unk_token_id]
