"""Words of captions: the Penn Treebank's rules as COCO's caption evaluation applies them.

Expected words are those of Stanford's PTBTokenizer 3.4.1 as pycocoevalcap 1.2 runs it, obtained once with Java, but where a
row is said to deviate.
"""

import doctest

import pytest

from sightline.evaluation import caption_tokens
from sightline.evaluation.caption_tokens import PUNCTUATION

SENTENCES = {
    "plain": ("A Man rides a horse .", "a man rides a horse"),
    "possessives": ("A man's dog, the dogs' toys and James's.", "a man 's dog the dogs toys and james 's"),
    "negations": ("It can't, WON'T or Don't.", "it ca n't wo n't or do n't"),
    "clitics": ("I'm he'd we'll they've you're", "i 'm he 'd we 'll they 've you 're"),
    "double clitics": ("can't've wouldn't've", "ca n't 've would n't 've"),
    "joined words": ("cannot gonna wanna gotta gimme lemme Cannot", "can not gon na wan na got ta gim me lem me can not"),
    "words that only begin so": ("canoe gondola wander gottan limes", "canoe gondola wander gottan limes"),
    "cut words": ("'tis 'twas 'em 'til '90s rock 'n' roll", "'t is 't was 'em 'til '90s rock 'n' roll"),
    "elisions": ("o'clock O'Neil D'Angelo qu'il ma'am y'all", "o'clock o'neil d'angelo qu'il ma'am y' all"),
    "hyphens": ("a t-shirt - well-known -- x-men's -foo", "a t-shirt well-known x-men 's foo"),
    "dashes": ("foo---bar ---- ----- end", "foo bar ----- end"),
    "dots": ("wait ... what.. so....", "wait what so"),
    "sentence without a space": ("on the table.A dog!the cat", "on the table.a dog!the cat"),
    "brackets": ("(a [b] {c})", "-lrb- a -lsb- b -rsb- -lcb- c -rcb- -rrb-"),
    "quotation": ("\"a\" 'b' `c' \u201ce\u201d \u2018f\u2019", "a b c e f"),
    "curly clitics": ("it\u2019s don\u2019t", "it 's do n't"),
    "runs of marks": ("what?! no!! yes! hm ???", "what ?! no !! yes hm ???"),
    "numbers": ("3,000 at 4:30 or .5 and -5 1-1/2", "3,000 at 4:30 or .5 and -5 1-1/2"),
    "numbers and letters": ("5pm 12:30pm 1950s 4-wheeler 4x4 2nd", "5pm 12:30 pm 1950s 4-wheeler 4x4 2nd"),
    "signs": ("$5.00 50% #1 a & b 5'10\"", "$ 5.00 50 % # 1 a & b 5 10"),
    "handles": ("#hashtag @user AT&T at&t", "#hashtag @user at&t at & t"),
    "currencies": ("£5 €5 5¢ ½", "# 5 $ 5 5 cents 1/2"),
    "titles": ("Dr. Smith of St. Mary's, inc. and mt. x", "dr. smith of st. mary 's inc. and mt. x"),
    "no titles": ("in the sun. on the sat. sec. 5", "in the sun on the sat sec 5"),
    "titles that are words": ("Miss. or Mo. and a miss. dog", "miss. or mo. and a miss dog"),
    "acronyms": ("U.S. U.S.A. a.m. d.c, s.c.u.b.a.", "u.s. u.s.a. a.m. d.c s.c.u.b.a."),
    "initials": ("J. K. and A. The end b.", "j. k. and a the end b"),
    "numero": ("no. 5, No.1 and no. end", "no. 5 no. 1 and no end"),
    "addresses": ("see http://a.org/x?y=1. or a@b.com www.c.de", "see http://a.org/x?y=1 or a@b.com www.c.de"),
    "markup": ("a <b> c <3 &amp; d", "a <b> c < 3 & d"),
    "letters of other scripts": ("Ünïcode CAFÉ привет हिन्दी 日本語", "ünïcode café привет हिन्दी 日本語"),
    "spaces": ("a\tb\n c\u00a0d \u3000 e", "a b c d e"),
    "composed letters (deviates)": ("cafe\u0301", "caf\u00e9"),
    "emoji (deviates)": ("a \U0001f600dog", "a \U0001f600 dog"),
    "smiley (deviates)": ("dog :)", "dog -rrb-"),
    "nothing": (" .,;:! ?'\"`-- ... ", ""),
    "empty": ("", ""),
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "words"), SENTENCES.values(), ids=SENTENCES)
def test_words(sentence, words):
    assert caption_tokens(sentence) == words.split()


def test_words_are_lower_case_without_space_or_punctuation():
    text = "".join(map(chr, range(0x20, 0x3000))) + " ".join(sentence for sentence, _ in SENTENCES.values())
    for word in caption_tokens(text):
        assert word == word.lower()
        assert word.strip() == word != ""
        assert word not in PUNCTUATION


@pytest.mark.parametrize("sentence", [row[0] for row in SENTENCES.values()], ids=SENTENCES)
def test_no_letter_is_lost(sentence):
    """But for what is spelt out, words are the sentence without punctuation and spaces."""
    plain = sentence.lower()
    if set(plain) & set("()[]{}&£€¢½\u0301"):
        return
    kept = "".join(caption_tokens(sentence))
    assert [letter for letter in kept if letter.isalnum()] == [letter for letter in plain if letter.isalnum()]


def test_the_docstrings_example():
    examples = doctest.DocTestFinder().find(caption_tokens, globs={"caption_tokens": caption_tokens})
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert sum(result.attempted for result in results) == 1
    assert sum(result.failed for result in results) == 0


def test_a_real_set_keeps_its_vocabulary(real_data):
    """Flickr8k's sentences, of which the words were counted with the Java tokenizer."""
    lines = (real_data("flickr8k") / "Flickr8k_text" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    words = [word for line in lines for word in caption_tokens(line.split("\t")[1])]
    assert (len(words), len(set(words))) == (436577, 8909)
