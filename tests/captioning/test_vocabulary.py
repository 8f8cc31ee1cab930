"""Words of any script, the numbers they get, and what is said of vocabularies that cannot be."""

import pickle
import unicodedata

import pytest

from sightline.captioning.decoder import END, PAD, START, UNKNOWN
from sightline.captioning.vocabulary import SPECIAL, Vocabulary, split
from sightline.datasets.shapes import shapes_table
from sightline.datasets.table import DataError

SENTENCES = {
    "plain": ("A black Dog, running ... fast!", "a black dog running fast"),
    "apostrophes": ("The dog's, the dogs', 'n' don\u2019t", "the dog's the dogs n don't"),
    "typographic quotes": ("\u201cA dog\u201d \u2018runs\u2019", "a dog runs"),
    "full-width apostrophe": ("it\uff07s m\u02bcjata", "it's m'jata"),
    "hyphens": ("A black-and-white - tri\u2010colour -- t\u2011shirt-", "a black-and-white tri-colour t-shirt"),
    "dashes": ("a dog\u2014running \u2013 fast", "a dog running fast"),
    "digits": ("2 dogs, no. 3a", "2 dogs no 3a"),
    "underscore": ("a_dog", "a dog"),
    "accents": ("Ein KÄFER, ça été", "ein käfer ça été"),
    "taken apart": (unicodedata.normalize("NFD", "Ein KÄFER, Việt Nam"), "ein käfer việt nam"),
    "sharp s": ("Eine Straße", "eine straße"),
    "Greek": ("Ένας ΣΚΎΛΟΣ", "ένας σκύλος"),
    "Turkish": ("İki KÖPEK", "i\u0307ki köpek"),
    "Russian": ("Ёж и собака.", "ёж и собака"),
    "Ukrainian": ("П\u2019ять", "п'ять"),
    "Hindi": ("एक कुत्ता दौड़ रहा है।", unicodedata.normalize("NFC", "एक कुत्ता दौड़ रहा है")),
    "Hindi, joined": ("क्\u200dष", "क्\u200dष"),
    "Tamil": ("ஒரு நாய் ஓடுகிறது.", "ஒரு நாய் ஓடுகிறது"),
    "Persian": ("یک سگ می\u200cدود", "یک سگ می\u200cدود"),
    "Arabic": ("كَلْبٌ أَسْوَد، يركض؟", "كَلْبٌ أَسْوَد يركض"),
    "Hebrew": ("כלב שחור־לבן", "כלב שחור לבן"),
    "Korean": ("검은 개가 달린다.", "검은 개가 달린다"),
    "Korean, taken apart": (unicodedata.normalize("NFD", "개가"), "개가"),
    "Chinese": ("一只狗\uff0c在跑。", "一 只 狗 在 跑"),
    "Chinese, parted": ("一只 狗 在 跑", "一 只 狗 在 跑"),
    "Japanese": ("犬がボールを", "犬 が ボ ー ル を"),
    "Thai": ("สุนัขวิ่ง", "สุ นั ข วิ่ ง"),
    "Lao": ("ໝາ\u200bແລ່ນ", "ໝ າ ແ ລ່ ນ"),
    "Khmer": ("ឆ្កែ", "ឆ្ កែ"),
    "two scripts": ("iPhone手机3个", "iphone 手 机 3 个"),
    "beyond the first plane": ("\U00020000狗 \U0001d41a", "\U00020000 狗 \U0001d41a"),
    "pictures of things": ("a ❤\ufe0f dog \U0001f468\u200d\U0001f469\u200d\U0001f467 👍🏽", "a dog"),
    "invisible": ("\ufeffa do\u00adg \u200eruns", "a dog runs"),
    "a mark upon nothing": ("\u0301 a \u0301", "a"),
    "nothing": ("... !", ""),
}


@pytest.mark.parametrize(("sentence", "words"), SENTENCES.values(), ids=SENTENCES)
def test_words(sentence, words):
    assert split(sentence) == words.split(" ") * bool(words)


@pytest.mark.parametrize("sentence", [sentence for sentence, _ in SENTENCES.values()], ids=SENTENCES)
def test_splitting_what_was_split_changes_nothing(sentence):
    words = split(sentence)
    assert split(" ".join(words)) == words
    assert split(unicodedata.normalize("NFD", sentence)) == words
    assert all(unicodedata.normalize("NFC", word) == word == word.lower() for word in words)


@pytest.mark.parametrize("sentence", [sentence for sentence, _ in SENTENCES.values()], ids=SENTENCES)
def test_said_again(sentence):
    """What is decoded has the same words as what was encoded."""
    if split(sentence):
        words = Vocabulary.of([sentence], 1)
        assert split(words.decode(words.encode(sentence))) == split(sentence)


def test_scripts_without_spaces_are_said_without():
    for sentence, said in (
        ("一只狗 在跑。", "一只狗在跑"),
        ("สุนัขวิ่ง", "สุนัขวิ่ง"),
        ("iPhone手机", "iphone 手机"),
        ("कुत्ते 狗", "कुत्ते 狗"),
    ):
        words = Vocabulary.of([sentence], 1)
        assert words.decode(words.encode(sentence)) == said


def test_every_character_has_a_kind():
    """None raises; a word begins with a letter or digit, and holds nothing but these, their marks, and joiners."""
    for code in range(0, 0x110000, 7):
        for word in split(f"a{chr(code)}b {chr(code)}"):
            assert unicodedata.category(word[0])[0] in "LN"
            assert all(c in "'-\u200c\u200d" or unicodedata.category(c)[0] in "LNM" for c in word)


def test_ascii_by_a_slow_loop():
    text = "".join(map(chr, range(128))) * 2
    assert split(text) == ["0123456789", "abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz"] * 2


# -- Numbers --


def test_the_commonest_come_first():
    words = Vocabulary.of(["The dog", "the DOG runs", "a cat", "a cat runs.", "A bird"], 2)
    assert words.words == [*SPECIAL, "a", "cat", "dog", "runs", "the"]
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)
    assert len(words) == 9
    assert words.encode("The bird runs!") == [8, UNKNOWN, 7, END]
    assert words.encode("...") == [END]


def test_the_order_of_sentences_does_not_matter():
    sentences = [text for (text,) in shapes_table("train", 30, 32).captions]
    assert Vocabulary.of(sentences, 2).words == Vocabulary.of(sentences[::-1], 2).words
    assert Vocabulary.of(iter(sentences), 2).words == Vocabulary.of(sentences, 2).words


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([4, 5, END, 4], "a b"),
        ([4, PAD, 4], "a"),
        ([4, UNKNOWN, 5], "a <unknown> b"),
        ([END], ""),
        ([], ""),
    ],
    ids=["end", "padding", "unknown", "nothing said", "empty"],
)
def test_decoding(tokens, said):
    assert Vocabulary([*SPECIAL, "a", "b"]).decode(tokens) == said


def test_numbers_stand_in():
    words = Vocabulary.numbers(6)
    assert words.words == [*SPECIAL, "word 4", "word 5"]
    assert words.decode([5, 4, END]) == "word 5 word 4"


def test_it_travels():
    words = Vocabulary.of(["a dog's 狗"], 1)
    again = pickle.loads(pickle.dumps(words))
    assert (again.words, again.encode("dog's")) == (words.words, words.encode("dog's"))


# -- What cannot be --


def test_no_word_is_common_enough():
    with pytest.raises(
        DataError, match=r"no word stands 5 times .* the commonest, 'dog', 2 times: set --data\.min_count 2"
    ):
        Vocabulary.of(["A dog", "dog runs"], 5)
    with pytest.raises(DataError, match="not one word in the sentences"):
        Vocabulary.of(["...", ""], 1)
    with pytest.raises(DataError, match="not one word in the sentences"):
        Vocabulary.of([], 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary.of(["a"], 0), "min_count must be at least 1, got 0"),
        (lambda: Vocabulary(["a", "b"]), "begins with <pad>, <start>, <end>, <unknown>, got a, b"),
        (lambda: Vocabulary([*SPECIAL, "a", "b", "b"]), "twice in the vocabulary: 'b'"),
    ],
    ids=["min_count", "no special words", "twice"],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_real_flickr8k(real_data):
    sentences = [
        line.split("\t")[1] for line in (real_data("flickr8k") / "Flickr8k_text" / "Flickr8k.token.txt").open()
    ]
    words = Vocabulary.of(sentences, 5)
    assert words.words[4:7] == ["a", "in", "the"]
    assert 2500 < len(words) < 3200
    known = sum(token != UNKNOWN for sentence in sentences for token in words.encode(sentence))
    assert known / sum(len(words.encode(sentence)) for sentence in sentences) > 0.97
