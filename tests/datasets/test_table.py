"""Problems and tables."""

import numpy as np
import pytest

from sightline.datasets.table import Problems, Table, counted, nearest


def table(image=(0, 0, 2), **changes) -> Table:
    """Three pictures; by default the first has two objects, the second none, the third one."""
    count = len(image)
    columns = {
        "categories": ["cat", "dog"],
        "paths": ["a.jpg", "b.jpg", "c.jpg"],
        "image_ids": np.array([10, 20, 30]),
        "sizes": np.array([[30, 40], [31, 41], [32, 42]]),
        "image": np.array(image, np.int64),
        "boxes": np.arange(4 * count, dtype=np.float32).reshape(count, 4),
        "labels": np.arange(count) % 2,
        "area": np.ones(count),
        "crowd": np.zeros(count, bool),
        "difficult": np.zeros(count, bool),
        "category_ids": np.array([1, 2]),
        "segmentations": [[k] for k in range(count)],
        "captions": [["one"], ["two"], ["three"]],
    }
    return Table(**(columns | changes))


def test_offsets_are_where_an_image_begins():
    assert table().offsets.tolist() == [0, 2, 2, 3]
    assert table(image=()).offsets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0], [1], [], [2, 2, 0]])
def test_select_equals_a_loop(rows):
    whole = table()
    part = whole.select(rows)
    objects = [(new, k) for new, row in enumerate(rows) for k in range(3) if whole.image[k] == row]
    assert part.image.tolist() == [new for new, _ in objects]
    assert part.boxes.tolist() == [whole.boxes[k].tolist() for _, k in objects]
    assert part.segmentations == [whole.segmentations[k] for _, k in objects]
    assert part.paths == [whole.paths[row] for row in rows]
    assert part.captions == [whole.captions[row] for row in rows]
    assert part.sizes.tolist() == [whole.sizes[row].tolist() for row in rows]
    assert len(part.offsets) == len(rows) + 1


def test_shapes_and_order_are_checked():
    with pytest.raises(ValueError, match=r"labels must be \(3,\), got \(2,\)"):
        table(labels=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="sorted by image"):
        table(image=(2, 0, 0))


def test_describe():
    assert table().describe() == "3 images, 3 objects, 2 categories (.)"
    assert "0 images" in table().select([]).describe()


def test_problems_keep_counts_and_first_examples():
    problems = Problems()
    for number in range(7):
        problems.add("bad", f"file:{number}")
    problems.add("worse", "here", fatal=True)
    problems.warn("odd", "there")
    asked = []
    problems.add_rows("bad", np.arange(100, 120), lambda row: asked.append(row) or f"row {row}")
    assert problems.counts == {"bad": 27, "worse": 1, "odd": 1}
    assert problems.repaired == {"bad": [f"file:{number}" for number in range(5)]}
    assert len(asked) <= Problems.LIMIT  # the places of the other rows are never worked out
    assert problems.summary().splitlines()[:2] == ["error: worse: 1", "    here"]
    assert "repaired: bad: 27" in problems.summary()
    assert "and 22 more" in problems.summary()
    assert problems.summary().endswith("warning: odd: 1\n    there")


def test_problems_merge_and_forget():
    one, other = Problems(), Problems()
    for problems, count in ((one, 3), (other, 4)):
        problems.add_rows("bad", np.arange(count), str)
    other.add("worse", "here", fatal=True)
    one.merge(other)
    assert one.counts == {"bad": 7, "worse": 1}
    assert one.repaired["bad"] == ["0", "1", "2", "0", "1"]
    one.forget("bad")
    assert (one.counts, one.repaired, list(one.fatal)) == ({"worse": 1}, {}, ["worse"])


def test_no_problems_have_no_summary():
    problems = Problems()
    problems.add_rows("bad", np.array([], np.int64), str)
    assert (problems.summary(), problems.counts) == ("", {})


def test_counted():
    assert [counted(count, "picture") for count in range(3)] == ["0 pictures", "1 picture", "2 pictures"]
    assert [counted(count, "category", "categories") for count in (1, 2)] == ["1 category", "2 categories"]


def test_nearest():
    assert nearest("persn", ["person", "dog"]) == "; did you mean 'person'?"
    assert nearest("xyz", ["person", "dog"]) == ""


def test_largest_objects_of_each_picture():
    few = table((0, 0, 0, 2, 2), area=np.array([3.0, 9, 5, 1, 7]), crowd=np.array([0, 0, 0, 0, 1], bool)).largest(2)
    assert few.paths == ["a.jpg", "c.jpg"]  # without the picture that has no object
    assert few.image.tolist() == [0, 0, 1]
    assert few.area.tolist() == [9, 5, 1]  # nor the crowd
    assert few.segmentations == [[1], [2], [3]]
