"""Caption scores against cases worked by hand, the formulas written out slowly, and published numbers."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest

from sightline.datasets.table import DataError
from sightline.evaluation import (
    caption_tokens,
    evaluate_captions,
    read_caption_results,
    read_caption_truth,
    write_caption_results,
)

NAMES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-D", "exact"]


def one(caption, *references):
    """The scores of a single picture."""
    return evaluate_captions({1: references}, {1: caption}).summary()


# -- By hand --


def test_bleu_clips_counts():
    """Papineni et al. 2002, section 2.1: "the" counts twice of seven times."""
    scores = one("the the the the the the the", "the cat is on the mat", "there is a cat on the mat")
    assert scores["BLEU-1"] == pytest.approx(2 / 7)
    assert scores["BLEU-2"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("a b c d", ["a b c d"], 1.0),
        ("a b", ["a b c d"], math.exp(1 - 4 / 2)),  # too short
        ("a b c d", ["a b"], 2 / 4),  # too long is punished by precision alone
        ("a b c", ["a b", "a b c d e"], 3 / 3),  # 2 is nearer than 5, and shorter
        ("a b c", ["a b", "a b c d"], 3 / 3),  # of equally near ones the shorter, which costs nothing
        ("a b c", ["x y z w", "a b"], 2 / 3),
    ],
)
def test_bleu_1_and_its_brevity(caption, references, expected):
    assert one(caption, *references)["BLEU-1"] == pytest.approx(expected, abs=1e-8)


def test_bleu_is_of_the_whole_set_not_a_mean():
    result = evaluate_captions({1: ["a b c"], 2: ["x"]}, {1: "a b c", 2: "y"})
    assert result.summary()["BLEU-1"] == pytest.approx(3 / 4)
    assert result.bleu[:, 0] == pytest.approx([1, 0], abs=1e-6)


def test_bleu_without_brevity_penalty():
    """Two words of four: the penalty is exp(1 - 4 / 2); precisions 2/2 and 1/1, or 1/2 and, of no right bigram, 0."""
    result = evaluate_captions({1: ["a b c d"]}, {1: "a b"})
    assert result.summary()["BLEU-2"] == pytest.approx(math.exp(-1))
    assert result.unpenalised()["BLEU-2"] == pytest.approx(1)
    result = evaluate_captions({1: ["a b c d"], 2: ["e f g h"]}, {1: "a b", 2: "e x g"})
    correct, guessed = (2 + 2, 1 + 0), (2 + 3, 1 + 2)  # of the whole set, as BLEU is
    mean = math.sqrt(correct[0] / guessed[0] * correct[1] / guessed[1])
    assert result.unpenalised()["BLEU-1"] == pytest.approx(4 / 5)
    assert result.unpenalised()["BLEU-2"] == pytest.approx(mean)
    assert result.summary()["BLEU-2"] == pytest.approx(mean * math.exp(1 - 8 / 5))
    longer = evaluate_captions({1: ["a b"]}, {1: "a b c"})
    assert longer.unpenalised() == pytest.approx({name: longer.summary()[name] for name in NAMES[:4]})


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("a red dog", ["a dog", "A red dog ."], True),  # by its words, not its letters
        ("a red dog", ["a dog red", "a red", "a red dog runs"], False),
        ("", ["a"], False),
        ("...", ["!"], False),  # no words are no sentence
    ],
)
def test_exact(caption, references, expected):
    result = evaluate_captions({1: references, 2: ["a cat"]}, {1: caption, 2: "a cat"})
    assert result.exact.tolist() == [expected, True]
    assert result.summary()["exact"] == (1 + expected) / 2


def test_rouge_l_takes_best_precision_and_best_recall():
    """Lin 2004, section 2: police killed the gunman. Two references: precision of the one, recall of the other."""
    precision, recall = 3 / 4, 3 / 4  # police the gunman
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert one("police kill the gunman", "police killed the gunman")["ROUGE-L"] == pytest.approx(expected)
    precision, recall = 3 / 4, 1 / 1
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    scores = one("police kill the gunman", "police killed the gunman", "gunman")
    assert scores["ROUGE-L"] == pytest.approx(expected)
    assert one("the gunman kill police", "police killed the gunman")["ROUGE-L"] == pytest.approx(2 / 4)


def test_cider_by_hand():
    """Two pictures, single words: idf of "a" is log(2 / 2) = 0, of every other word log 2; orders above 1 are empty."""
    result = evaluate_captions({1: ["b", "c"], 2: ["a"]}, {1: "b", 2: "b"})
    assert result.cider == pytest.approx([10 / 4 * (1 + 0) / 2, 0])
    assert result.cider_d == pytest.approx(result.cider)
    result = evaluate_captions({1: ["b c"], 2: ["x y"]}, {1: "b b c", 2: "q"})
    cosine = 3 / math.sqrt(5 * 2)  # (2, 1) and (1, 1)
    bigrams = 1 / math.sqrt(2)  # (bb, bc) and (bc)
    assert result.cider[0] == pytest.approx(10 / 4 * (cosine + bigrams))
    clipped = 2 / math.sqrt(5 * 2)
    penalty = math.exp(-1 / 72)
    assert result.cider_d[0] == pytest.approx(10 / 4 * (clipped + bigrams) * penalty)


def test_one_picture_has_no_rare_words():
    """Every n-gram is in all documents: its weight is log(1 / 1)."""
    assert (one("a b c", "a b c")["CIDEr"], one("a b c", "a b c")["CIDEr-D"]) == (0, 0)


@pytest.mark.parametrize(("caption", "reference"), [("", "a dog"), ("...", "a dog"), ("a dog", "!"), ("", "")])
def test_no_words(caption, reference):
    result = evaluate_captions({1: [reference], 2: ["a cat"]}, {1: caption, 2: "a cat"})
    assert [result.rouge_l[0], result.cider[0], result.cider_d[0]] == [0, 0, 0]
    assert result.bleu[0] == pytest.approx(np.zeros(4), abs=1e-5)
    assert np.isfinite(list(result.summary().values())).all()


def test_words_are_tokens():
    assert one("A man's dog.", "a MAN 's dog !")["BLEU-3"] == pytest.approx(1, abs=1e-8)


# -- The formulas, slowly --


def ngrams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def slow_bleu(pairs):
    correct, guessed, length, reference_length = [0] * 4, [0] * 4, 0, 0
    for words, references in pairs:
        length += len(words)
        reference_length += min((abs(len(r) - len(words)), len(r)) for r in references)[1]
        for n in range(1, 5):
            most = Counter()
            for reference in references:
                most |= ngrams(reference, n)
            correct[n - 1] += (ngrams(words, n) & most).total()
            guessed[n - 1] += max(0, len(words) - n + 1)
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    scores, product = [], 1.0
    for n in range(4):
        product *= (correct[n] + 1e-15) / (guessed[n] + 1e-9)
        scores.append(product ** (1 / (n + 1)) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1))
    return scores


def slow_common(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def slow_rouge_l(words, references):
    common = [slow_common(words, r) for r in references]
    precision = max(c / max(1, len(words)) for c in common)
    recall = max(c / max(1, len(r)) for c, r in zip(common, references, strict=True))
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision * recall else 0.0


def slow_cider(pairs, *, d):
    documents = Counter(
        g for _, references in pairs for g in {g for r in references for n in range(1, 5) for g in ngrams(r, n)}
    )

    def vector(words, n):
        return {g: c * math.log(len(pairs) / max(1, documents[g])) for g, c in ngrams(words, n).items()}

    def similarity(words, reference, n):
        x, y = vector(words, n), vector(reference, n)
        norms = math.sqrt(sum(v * v for v in x.values())) * math.sqrt(sum(v * v for v in y.values()))
        dot = sum((min(v, y.get(g, 0)) if d else v) * y.get(g, 0) for g, v in x.items())
        gap = ngrams(words, 2).total() - ngrams(reference, 2).total()
        return dot / norms * (math.exp(-(gap**2) / 72) if d else 1) if norms else 0.0

    return [
        10 * np.mean([[similarity(words, r, n) for n in range(1, 5)] for r in references])
        for words, references in pairs
    ]


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_slow_formulas(seed):
    """Few different words, so that n-grams repeat; captions may be empty, or a reference."""
    rng = random.Random(seed)
    vocabulary = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op"][: rng.choice([2, 4, 8])]

    def sentence(least):
        return " ".join(rng.choices(vocabulary, k=rng.randint(least, rng.choice([1, 4, 12]))))

    references = {image: [sentence(1) for _ in range(rng.randint(1, 5))] for image in range(rng.randint(1, 10))}
    captions = {image: rng.choice([sentence(0), group[0]]) for image, group in references.items()}
    result = evaluate_captions(references, captions)
    pairs = [(captions[i].split(), [r.split() for r in references[i]]) for i in captions]
    assert [result.summary()[name] for name in NAMES[:4]] == pytest.approx(slow_bleu(pairs), rel=1e-12)
    for row, pair in enumerate(pairs):
        assert result.bleu[row].tolist() == pytest.approx(slow_bleu([pair]), rel=1e-12)
    assert result.rouge_l == pytest.approx([slow_rouge_l(*pair) for pair in pairs], abs=1e-12)
    assert result.cider == pytest.approx(slow_cider(pairs, d=False), abs=1e-12)
    assert result.cider_d == pytest.approx(slow_cider(pairs, d=True), abs=1e-12)
    assert result.exact.tolist() == [words in references and words != [] for words, references in pairs]
    for name, values in zip(NAMES[4:], (result.rouge_l, result.cider, result.cider_d, result.exact), strict=True):
        assert result.summary()[name] == pytest.approx(values.mean())


# -- Published numbers --


def test_oracles(real_data):
    """nlg-eval's examples (https://github.com/Maluuba/nlg-eval); its CIDEr is CIDEr-D."""
    folder = real_data("caption-oracles")
    expected = json.loads((folder / "EXPECTED.json").read_text())
    case = expected["nlg-eval/examples"]
    columns = zip(*((folder / name).read_text().splitlines() for name in case["refs"]), strict=True)
    captions = (folder / case["hyp"]).read_text().splitlines()
    examples = evaluate_captions(dict(enumerate(columns)), dict(enumerate(captions))).summary()
    single = expected["nlg-eval/single"]
    for scores, numbers in ((examples, case), (one(single["hyp"], *single["refs"]), single)):
        found = [scores[name] for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")]
        names = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")
        assert found == pytest.approx([numbers[name] for name in names], abs=1.1e-6)


def test_people_against_people_on_flickr8k(real_data):
    """Each picture's first sentence against its four others; the numbers are pycocoevalcap 1.2's, with its Java tokenizer."""
    text = real_data("flickr8k") / "Flickr8k_text"
    sentences = {}
    for line in (text / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, sentence = line.split("\t")
        sentences.setdefault(name.partition("#")[0], []).append(sentence)
    names = (text / "Flickr_8k.testImages.txt").read_text().split()
    result = evaluate_captions({n: sentences[n][1:] for n in names}, {n: sentences[n][0] for n in names}).summary()
    del result["CIDEr"], result["exact"]  # which pycocoevalcap does not have
    expected = [0.6364127012682705, 0.4457777185666552, 0.30549035362497284, 0.20945675889555992]
    expected += [0.4875475010364561, 0.7885967975248741]
    assert list(result.values()) == pytest.approx(expected, abs=1e-12)


# -- Properties --

REFERENCES = {7: ["a dog runs", "the dog is running fast"], 3: ["two cats sleep"], 5: ["a red car", "one car"]}
CAPTIONS = {5: "a red car", 7: "a dog is running", 3: "nobody knows"}


def test_order_of_pictures_and_references_does_not_matter():
    first = evaluate_captions(REFERENCES, CAPTIONS)
    turned = {image: group[::-1] for image, group in reversed(REFERENCES.items())}
    second = evaluate_captions(turned, dict(sorted(CAPTIONS.items())))
    assert first.summary() == pytest.approx(second.summary(), abs=1e-12)
    assert first.cider_d == pytest.approx(second.cider_d[[second.image_ids.index(i) for i in first.image_ids]])


def test_a_reference_itself_is_best():
    result = evaluate_captions(REFERENCES, {image: group[0] for image, group in REFERENCES.items()})
    assert result.bleu[:, 2] == pytest.approx(1, abs=1e-8)
    assert result.rouge_l == pytest.approx(1)
    assert result.cider[result.image_ids.index(3)] == pytest.approx(7.5)  # three words have no n-gram of four


def test_pictures_worst_first():
    result = evaluate_captions(REFERENCES, CAPTIONS)
    records = result.per_image()
    assert [record["image_id"] for record in records] == [3, 7, 5]
    assert records[0]["caption"] == "nobody knows"
    assert records[0]["references"] == ["two cats sleep"]
    assert [record["CIDEr-D"] for record in records] == sorted(result.cider_d)
    assert json.loads(json.dumps(result.to_dict()))["per_image"] == records
    lines = result.table(worst=2).splitlines()
    assert [line.split()[0] for line in lines[:8]] == NAMES
    assert lines[0].split()[1:] == ["0.7778", "0.7778", "without", "brevity", "penalty"]
    assert "3 captions, 5 references" in result.table()
    assert [line.split()[1] for line in lines if line.split()[1:] and line.split()[1] in ("3:", "7:", "5:")] == [
        "3:",
        "7:",
    ]
    assert "worst" not in result.table(worst=0)


@pytest.mark.parametrize(
    ("references", "captions", "message"),
    [
        ({}, {}, "no captions to score"),
        ({1: ["a"]}, {1: "a", 2: "b"}, "picture 2 has caption but no references"),
        ({1: ["a"], 2: ["b"]}, {1: "a"}, "picture 2 has references but no caption"),
        ({1: []}, {1: "a"}, "at least one sentence"),
        ({1: "a dog"}, {1: "a"}, "must be a list"),
    ],
)
def test_refuses_what_does_not_match(references, captions, message):
    with pytest.raises(ValueError, match=message):
        evaluate_captions(references, captions)


# -- Files --


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


TRUTH = {
    "images": [{"id": 7}, {"id": 3}, {"id": 9}],
    "annotations": [{"image_id": 7, "caption": "A dog."}, {"image_id": 3, "caption": ""}, {"image_id": 7, "caption": "Dog"}],
}  # fmt: skip
GOOD = [{"image_id": 3, "caption": "a cat", "id": 0}, {"image_id": 7, "caption": ""}]


def test_reads_truth_and_results(tmp_path):
    truth = read_caption_truth(write(tmp_path / "truth.json", TRUTH))
    assert truth == {7: ["A dog.", "Dog"], 3: [""]}
    path = write(tmp_path / "results.json", GOOD)
    assert read_caption_results(path, truth) == {3: "a cat", 7: ""}
    path = write(tmp_path / "results.json", GOOD[:1])
    assert read_caption_results(path, truth, partial=True) == {3: "a cat"}


def test_a_mark_at_the_beginning_is_no_fault(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH), encoding="utf-8-sig")
    assert read_caption_truth(tmp_path / "truth.json") == {7: ["A dog.", "Dog"], 3: [""]}


def test_what_is_written_is_read(tmp_path):
    captions = {3: "ein Hund läuft", 7: ""}
    write_caption_results(tmp_path / "results.json", captions)
    assert read_caption_results(tmp_path / "results.json", captions) == captions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        ({"annotations": []}, "expected a list of .*, got a JSON object"),
        ([], "got an empty list"),
        ([*GOOD, 5], "record 2 has no 'image_id': 5"),
        ([GOOD[0], {"image_id": 7}], "record 1 has no 'caption'"),
        ([GOOD[0], {"image_id": 7, "caption": None}], "record 1: caption must be a text, got None"),
        ([{"image_id": "7", "caption": "a"}], "record 0: image_id must be a whole number, got 7"),
        ([*GOOD, {"image_id": 9, "caption": "a"}], "record 2: image_id 9 has no sentence in the truth, which is of 2"),
        ([*GOOD, GOOD[0]], "record 2: image_id 3 has a caption already"),
        (GOOD[:1], "1 of the truth's 2 pictures have no caption, 7 for one"),
    ],
)
def test_refuses_results(tmp_path, content, message):
    path = write(tmp_path / "results.json", content)
    with pytest.raises(DataError, match=message) as error:
        read_caption_results(path, {7: ["a"], 3: ["b"]})
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ([], "got a JSON list"),
        ({"images": []}, "list of annotations"),
        ({"annotations": []}, "list of annotations"),
        ({"annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}, "holds boxes, not captions"),
        ({"annotations": [{"image_id": 1, "caption": 5}]}, "caption must be a text"),
        ({"annotations": [{"caption": "a"}]}, "no 'image_id'"),
    ],
)
def test_refuses_truth(tmp_path, content, message):
    path = write(tmp_path / "truth.json", content)
    with pytest.raises(DataError, match=message) as error:
        read_caption_truth(path)
    assert str(path) in str(error.value)


def test_missing_files(tmp_path):
    for read in (read_caption_truth, lambda path: read_caption_results(path, {1: ["a"]})):
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / "nowhere.json")


def test_tokens_are_those_scored():
    assert evaluate_captions({1: ["x"]}, {1: "It's (one)."}).lengths[0, 0] == len(caption_tokens("It's (one).")) == 5
