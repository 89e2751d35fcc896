"""Every word that the base was told is one token; anything else still has tokens."""

from mcpl.prompts import TEMPLATES
from mcpl.scenes.grammar import vocabulary
from mcpl.scenes.training.data import scene_and_caption
from mcpl.scenes.training.tokenizer import MAX_TOKENS, build_tokenizer, learn_merges


def test_merges_are_run_to_exhaustion_by_hand():
    # "a" + "b</w>" twice, then nothing is left to merge
    assert learn_merges(["ab", "cab"]) == [("a", "b</w>"), ("c", "ab</w>")]


def test_every_word_is_one_token_and_captions_fit():
    tokenizer = build_tokenizer(vocabulary(TEMPLATES))
    for word in vocabulary(TEMPLATES):
        assert len(tokenizer.tokenize(word)) == 1, word
    captions = [scene_and_caption(0, index)[1] for index in range(500)]
    assert "" in captions and any(caption.startswith("a photo of") for caption in captions)
    for caption in captions:
        words = caption.replace(",", " ,").split()
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(words) + 2 <= MAX_TOKENS, caption


def test_other_text_splits_into_pieces_and_loads_back(tmp_path):
    tokenizer = build_tokenizer(vocabulary(TEMPLATES))
    text = "a zebra, naïve 猫 on a rolling board!"
    pieces = tokenizer(text).input_ids
    assert len(pieces) > len(text.split()) + 2
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path, local_files_only=True)(text).input_ids == pieces
