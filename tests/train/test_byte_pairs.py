"""Merges of letters to words."""

from train import byte_pairs


def test_each_word_is_one_piece():
    words = ["hat", "that", "heat", "hi"]
    merges, made = byte_pairs.learn(words)
    assert made == [first + second for first, second in merges]
    assert len(set(made)) == len(made) and set(words) <= set(made)
    assert all(byte_pairs.split(word, merges) == [word] for word in words)
    assert merges[:2] == [("h", "a"), ("ha", "t")]
    # "that" begins with "t", and "hat" is a piece of it already.
    assert merges[2] == ("t", "hat")


def test_merges_go_by_rank():
    merges = [("b", "c"), ("a", "b"), ("a", "bc")]
    assert byte_pairs.split("abcab", merges) == ["abc", "ab"]
    assert byte_pairs.split("xa", merges) == ["x", "a"]
    # A mark may be part of a letter.
    assert byte_pairs.learn([["a", "b</w>"]]) == ([("a", "b</w>")], ["ab</w>"])
