"""Tracking, on videos whose truth is known: who is whom, and how often ids change."""

import itertools
import time

import numpy as np
import pytest
import torch

from sightline.datasets.structures import Instances
from sightline.detectors.tracking import Tracker
from sightline.detectors.video_tracking import VideoTracker


def detections(*rows, label=0):
    """From rows of (x, y, score) or (x, y, score, label): boxes of 40 x 80 around these centres."""
    rows = [(*row, label)[:4] for row in rows]
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    half = torch.tensor([20.0, 40.0])
    boxes = torch.cat([table[:, :2] - half, table[:, :2] + half], dim=1)
    return Instances(boxes, table[:, 3].long(), table[:, 2])


def ids_of(frames, tracker=None):
    """The ids in each frame, which is a list of `detections`' rows."""
    tracker = tracker or Tracker()
    return [tracker.update(detections(*frame)).ids.tolist() for frame in frames]


class Scene:
    """A video of objects that walk straight, each for a while; the detector is good, bad, or silent by each one's plan.

    Args:
        walks: (x, y, dx, dy, first frame, last frame) of each object.
        scores: of object i in frame t, `scores(i, t)`; 0 where the detector does not see it.
        noise: pixels of deviation of a detected centre.
    """

    def __init__(self, walks, scores=lambda i, t: 0.9, noise=1.0, seed=0):
        self.rng, self.walks, self.scores, self.noise = np.random.default_rng(seed), walks, scores, noise
        self.length = 1 + max(walk[5] for walk in walks)

    def play(self, tracker, false=0):
        """Tracks it all.

        Args:
            false: detections of nothing in each frame, of any score.

        Returns:
            For each object the ids it had, in order (0 where it had none), and all ids given to false ones.
        """
        histories, wrong = [[] for _ in self.walks], []
        for t in range(self.length):
            rows, whose = [], []
            for i, (x, y, dx, dy, begin, end) in enumerate(self.walks):
                if begin <= t <= end and self.scores(i, t) > 0:
                    off_x, off_y = self.rng.normal(0, self.noise, 2)
                    rows.append((x + dx * (t - begin) + off_x, y + dy * (t - begin) + off_y, self.scores(i, t)))
                    whose.append(i)
            for _ in range(false):
                rows.append((*self.rng.uniform(2000, 6000, 2), self.rng.uniform(0.1, 1)))
                whose.append(-1)
            order = self.rng.permutation(len(rows))
            found = detections(*[rows[k] for k in order])
            given = tracker.update(found)
            id_at = {tuple(box): number for box, number in zip(given.boxes.tolist(), given.ids.tolist(), strict=True)}
            ids = [id_at.get(tuple(box), 0) for box in found.boxes.tolist()]
            of = {whose[k]: number for k, number in zip(order, ids, strict=True) if whose[k] >= 0}
            wrong += [number for k, number in zip(order, ids, strict=True) if whose[k] < 0 and number]
            for i, (*_, begin, end) in enumerate(self.walks):
                if begin <= t <= end:
                    histories[i].append(of.get(i, 0))
        return histories, wrong


def switches(history):
    """How often an object's id changes, times without one left out."""
    known = [number for number in history if number]
    return sum(a != b for a, b in itertools.pairwise(known))


WALKS = [(100, 100, 6, 0, 0, 60), (100, 300, 4, 3, 0, 60), (900, 500, -8, -2, 10, 60), (300, 700, 0, -7, 20, 50)]


def test_everyone_keeps_an_id_from_entering_to_leaving():
    tracker = Tracker()
    histories, _ = Scene(WALKS).play(tracker)
    assert [switches(history) for history in histories] == [0, 0, 0, 0]
    assert tracker.count == 4
    assert {history[-1] for history in histories} == {1, 2, 3, 4}
    # Those of the first frame are there at once, later ones from the second time they are seen.
    assert [history.count(0) for history in histories] == [0, 0, 1, 1]


@pytest.mark.parametrize("gap", [1, 5, 15, 30, 31], ids=str)
def test_missed_detections(gap):
    """An object that nobody sees for up to 30 frames is the same one after; then a new one."""
    scene = Scene([(100, 100, 3, 1, 0, 99)], lambda i, t: 0 if 40 <= t < 40 + gap else 0.9, noise=0.3)
    ((*history,), *_), _ = scene.play(tracker := Tracker())
    assert history[40 : 40 + gap] == [0] * gap
    assert switches(history) == (gap > 30)
    assert tracker.count == 1 + (gap > 30)


def test_patience():
    ((*history,),), _ = Scene([(100, 100, 3, 1, 0, 60)], lambda i, t: 0.9 * (not 30 <= t < 36)).play(
        Tracker(patience=5)
    )
    assert switches(history) == 1


def test_a_low_score_keeps_what_one_stage_loses():
    """The paper's figure 2: a half hidden person whose score falls, and who stops meanwhile, so that its motion foretells
    a wrong place. A tracker that looks at high scores alone loses it; the second stage holds on."""

    def path(t):
        return 100 + 6 * min(t, 20) + 6 * max(t - 50, 0), 100, 0.3 if 18 <= t < 50 else 0.9

    frames = [[path(t)] for t in range(70)]
    one_stage = ids_of(frames, Tracker(low=0.6))
    both = ids_of(frames)
    assert both == [[1]] * 70
    assert one_stage[17] == [1]
    assert one_stage[30] == []
    assert one_stage[69] == [2]


def test_low_scores_begin_nothing():
    assert ids_of([[(100, 100, 0.3)]] * 5) == [[]] * 5
    assert ids_of([[(100, 100, 0.65)]] * 5) == [[]] * 5  # high enough to be followed, not to begin
    assert ids_of([[(100, 100, 0.7)], [(100, 100, 0.65)]]) == [[1], [1]]
    assert ids_of([[(100, 100, 0.9)], [(100, 100, 0.05)]]) == [[1], []]


def test_a_lost_track_is_not_found_by_a_low_score():
    assert ids_of([[(100, 100, 0.9)], [(100, 100, 0.3)], [], [(100, 100, 0.3)], [(100, 100, 0.9)]]) == [
        [1], [1], [], [], [1]
    ]  # fmt: skip


def test_a_lost_object_keeps_its_size():
    """One who walks away is half as tall when lost; were shrinking foretold, nothing of the box would be left."""
    tracker, given = Tracker(), []
    for t in range(45):
        half = 40 - min(t, 20)
        box = torch.tensor([[100.0 - half, 100 - half, 100 + half, 100 + half]])
        seen = slice(0, t <= 20 or t > 38)
        given += tracker.update(Instances(box[seen], torch.zeros(1).long()[seen], torch.ones(1)[seen])).ids.tolist()
    assert given == [1] * (21 + 6)


def test_crossing():
    """Two that walk through each other: motion tells them apart where overlap alone does not."""
    scene = Scene([(100, 100, 8, 0, 0, 80), (740, 104, -8, 0, 0, 80)], noise=0.5)
    histories, _ = scene.play(tracker := Tracker())
    assert [switches(history) for history in histories] == [0, 0]
    assert tracker.count == 2


def test_crossing_behind():
    """The same, where the one behind is not seen at all while they overlap."""
    walks = [(100, 100, 8, 0, 0, 80), (740, 104, -8, 0, 0, 80)]
    histories, _ = Scene(walks, lambda i, t: 0 if i and 36 <= t <= 44 else 0.9, noise=0.5).play(tracker := Tracker())
    assert [switches(history) for history in histories] == [0, 0]
    assert tracker.count == 2


def test_false_alarms_come_and_go():
    """What is seen in one frame only gets no id, so false alarms do not use ids up."""
    histories, wrong = Scene(WALKS).play(tracker := Tracker(), false=5)
    assert [switches(history) for history in histories] == [0, 0, 0, 0]
    first_frame = 5
    assert len(wrong) <= first_frame
    assert tracker.count <= 4 + first_frame


def test_a_crowd_half_of_which_is_hidden():
    """Twenty people in rows, each half hidden or missed now and then: no id changes hands."""
    walks = [(60 + 90 * (i % 5), 100 + 110 * (i // 5), 2 + 0.3 * i, 0, 0, 99) for i in range(20)]

    def seen(i, t):
        return {0: 0.0, 1: 0.2, 2: 0.35}.get((7 * i + t) % 11, 0.85) if t > 5 else 0.9

    histories, _ = Scene(walks, seen, noise=1.0).play(tracker := Tracker())
    assert sum(switches(history) for history in histories) == 0
    assert tracker.count == 20


def test_categories_do_not_mix():
    """A dog where a cat was is another object, and two of different kinds may be in one place."""
    assert ids_of([[(100, 100, 0.9, 0)], [(100, 100, 0.9, 1)], [(100, 100, 0.9, 1)], [(100, 100, 0.9, 0)]]) == [
        [1], [], [2], [1]
    ]  # fmt: skip
    assert ids_of([[(100, 100, 0.9, 0), (101, 100, 0.8, 1)]] * 3) == [[1, 2]] * 3


def test_many_categories_are_as_many_trackers():
    rng = np.random.default_rng(0)
    together, apart = Tracker(), [Tracker() for _ in range(3)]
    seen = {}
    for t in range(30):
        rows = [
            (200 * i + 3 * t + rng.normal(), 100 + rng.normal(0, 9), rng.uniform(0.05, 1), i % 3) for i in range(12)
        ]
        found = together.update(detections(*rows))
        for label, tracker in enumerate(apart):
            alone = tracker.update(detections(*[row for row in rows if row[3] == label]))
            same = found[found.labels == label]
            assert same.boxes.tolist() == alone.boxes.tolist()
            for number, other in zip(same.ids.tolist(), alone.ids.tolist(), strict=True):
                assert seen.setdefault((label, other), number) == number
    assert len(seen) == together.count > 10


def test_the_order_of_detections_does_not_matter():
    rng = np.random.default_rng(3)
    straight, shuffled = Tracker(), Tracker()
    for t in range(40):
        rows = [
            (rng.uniform(0, 500), rng.uniform(0, 500), round(rng.uniform(0.1, 1), 1)) for _ in range(rng.integers(25))
        ]
        rows += [(50 + 5 * t, 700, 0.9), (900 - 4 * t, 710, 0.9)]
        order = rng.permutation(len(rows))
        found, other = straight.update(detections(*rows)), shuffled.update(detections(*[rows[k] for k in order]))
        expected = sorted(zip(found.ids.tolist(), found.boxes.tolist(), strict=True))
        assert sorted(zip(other.ids.tolist(), other.boxes.tolist(), strict=True)) == expected
        # And they come as they were given.
        place = {tuple(box): k for k, box in enumerate(detections(*rows).boxes.tolist())}
        places = [place[tuple(box)] for box in found.boxes.tolist()]
        assert places == sorted(places)
    assert straight.count > 5


def test_pairs_are_the_best_all_together():
    """Two detections near one track and one near the other: the greedy choice would leave a track without any."""
    tracker = Tracker()
    tracker.update(detections((100, 100, 0.9), (120, 100, 0.9)))
    # 110 fits both tracks equally well, 84 only the first: the second must take 110.
    given = tracker.update(detections((110, 100, 0.9), (84, 100, 0.9)))
    assert given.ids.tolist() == [2, 1]


def test_an_impossible_pair_takes_nothing_from_a_possible_one():
    """IoU 0.6 between the first track and the first detection; 0.49 between each and the other's other, together more."""
    tracker = Tracker(overlap=0.5)
    tracker.update(detections((100, 100, 0.9), (123.7, 100, 0.9)))
    given = tracker.update(detections((110, 100, 0.9), (86.3, 100, 0.9)))
    assert given.ids.tolist() == [1]
    assert given.boxes[0, 0] == 90


def test_what_goes_in_comes_out():
    """The detector's boxes, masks and landmarks, on the objects that have an id, and the input unchanged."""
    found = detections((100, 100, 0.9), (300, 100, 0.2), (500, 100, 0.8))
    found.masks, found.landmarks = torch.arange(12.0).view(3, 2, 2), torch.arange(6.0).view(3, 1, 2)
    given = Tracker().update(found)
    assert given.ids.dtype == torch.int64
    assert given.ids.tolist() == [1, 2]
    for name in ("boxes", "labels", "scores", "masks", "landmarks"):
        assert torch.equal(getattr(given, name), getattr(found, name)[[0, 2]])
    assert found.ids is None


def test_frames_without_anything():
    assert ids_of([[]] * 3) == [[]] * 3
    assert ids_of([[], [(100, 100, 0.9)], [(100, 100, 0.9)], [], [(100, 100, 0.9)]]) == [[], [], [1], [], [1]]
    assert ids_of([[(100, 100, 0.9), (300, 100, 0.8)]]) == [[1, 2]]  # one frame


def test_empty_boxes_and_duplicates():
    tracker = Tracker()
    point = Instances(torch.tensor([[5.0, 5, 5, 5]] * 2), torch.zeros(2).long(), torch.tensor([0.9, 0.9]))
    assert [len(tracker.update(point)) for _ in range(3)] == [2, 0, 0]  # IoU 0 with themselves: never the same again
    twice = ids_of([[(100, 100, 0.9), (100, 100, 0.9)]] * 3)
    assert twice == [[1, 2]] * 3


def test_thousands_of_detections():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 4000, (2000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 80, (2000, 2))], axis=1)
    tracker, started = Tracker(), time.process_time()
    for _ in range(4):
        found = boxes + rng.normal(0, 0.5, boxes.shape)
        tracker.update(Instances(torch.tensor(found).float(), torch.zeros(2000).long(), torch.full((2000,), 0.9)))
    assert time.process_time() - started < 10
    assert tracker.count == 2000


@pytest.mark.parametrize("scores", [{"low": 0.7}, {"high": 0.9}, {"new": 1.1}, {"low": -0.1}], ids=str)
def test_scores_in_disorder(scores):
    with pytest.raises(ValueError, match="0 <= low <= high <= new <= 1"):
        Tracker(**scores)


def test_scores_out_of_range():
    with pytest.raises(ValueError, match=r"got low 0.1, high 1.2"):
        VideoTracker(1.2)


def test_what_cannot_be_tracked():
    found = detections((100, 100, 0.9))
    with pytest.raises(ValueError, match="got objects without scores"):
        Tracker().update(Instances(found.boxes, found.labels))
    with pytest.raises(ValueError, match="got a batch"):
        Tracker().update(Instances.collate([found]))


def test_each_video_has_its_tracker_and_ids_go_on():
    tracker = VideoTracker()
    here = detections((100, 100, 0.9))
    names = ["a.mp4", "a.mp4", "b.mp4", "b.mp4", "a.mp4"]
    assert [tracker.update(name, 30.0, here).ids.tolist() for name in names] == [[1], [1], [2], [2], [3]]
    assert tracker.count == 3


def test_a_folder_s_pictures_are_a_video():
    tracker = VideoTracker()
    here = detections((100, 100, 0.9))
    names = ["walk/1.png", "walk/2.png", "walk/3.png", "run/1.png", "run/2.png"]
    assert [tracker.update(name, None, here).ids.tolist() for name in names] == [[1], [1], [1], [2], [2]]


@pytest.mark.parametrize(
    ("name", "fps", "every", "patience"),
    [
        ("a.mp4", 30.0, 1, 30),
        ("a.mp4", 10.0, 1, 10),
        ("a.mp4", 30.0, 6, 5),
        ("a.mp4", 25.0, 100, 1),
        ("0", 0.0, 3, 10),
        ("rtsp://camera", 90000.0, 1, 30),
        ("walk/1.png", None, 5, 30),
    ],
    ids=["30", "10", "every 6th", "slow", "unknown", "absurd", "pictures"],
)
def test_patience_is_a_second(name, fps, every, patience):
    """The paper's 30 frames at 30 a second, in updates; of pictures every one is looked at."""
    for gap in (patience, patience + 1):
        tracker = VideoTracker(every=every)
        frames = [[(100, 100, 0.9)]] * 2 + [[]] * gap + [[(100, 100, 0.9)]] * 2
        for frame in frames:
            given = tracker.update(name, fps, detections(*frame))
        assert given.ids.tolist() == [1 + (gap > patience)]


@pytest.mark.parametrize("score", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_any_score_will_do(score):
    tracker = VideoTracker(score)
    assert tracker.low == min(0.1, score)
    given = [tracker.update("a.mp4", 30.0, detections((100, 100, 1.0))).ids.tolist() for _ in range(2)]
    assert given == [[1], [1]]
