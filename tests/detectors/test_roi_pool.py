"""Pooling of regions against torchvision's operators (https://github.com/pytorch/vision, torchvision/ops); the kernels."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision import ops
from torchvision.ops.poolers import LevelMapper

from sightline.detectors import roi_align as module
from sightline.detectors.roi_align import roi_align, roi_align_plain
from sightline.detectors.roi_pool import RoIAlign, RoIPool, assign_levels

FRAME = (160, 224)
PYRAMID = (4, 8, 16, 32)

# name: strides, bins a side, samples a bin and side, canonical size (less than 224, so that small boxes use all levels)
POOLS = {
    "pyramid": (PYRAMID, 7, 2, 56.0),
    "pyramid of two": ((8, 16), 7, 2, 56.0),
    "one map": ((16,), 7, 2, 224.0),
    "one map, 14 bins": ((16,), 14, 2, 224.0),
    "masks": (PYRAMID, 14, 2, 56.0),
    "one sample a bin": (PYRAMID, 3, 1, 56.0),
    "three samples a bin": (PYRAMID, 2, 3, 56.0),
}

HEIGHT, WIDTH = FRAME
AWKWARD = torch.tensor(
    [
        [0, 0, WIDTH, HEIGHT],  # all of it
        [0, 0, 10, 10],  # corners
        [WIDTH - 10, HEIGHT - 10, WIDTH, HEIGHT],
        [WIDTH - 1, 0, WIDTH, HEIGHT],  # a border
        [-40, -30, 20, 25],  # partly outside
        [WIDTH - 20, HEIGHT - 25, WIDTH + 30, HEIGHT + 40],
        [-200, -200, -100, -100],  # wholly outside
        [WIDTH + 100, 0, WIDTH + 200, 50],
        [50.2, 60.3, 50.4, 60.5],  # less than a pixel
        [33, 44, 33, 44],  # a point
        [10, 20, 90, 20],  # a line
        [0, 0, 0, 0],  # what stands for a missing proposal
        [-4, -4, WIDTH + 4, HEIGHT + 4],  # samples up to a cell outside still count
    ],
    dtype=torch.float64,
)


def maps(strides, batch=2, channels=3):
    return [torch.randn(batch, channels, HEIGHT // s, WIDTH // s, dtype=torch.float64) for s in strides]


def random_boxes(batch, number):
    """Of sides from 4 to 130 pixels, evenly in log scale, partly across the border."""
    side = 4 * 32 ** torch.rand(batch, number, 2, dtype=torch.float64)
    centre = torch.rand(batch, number, 2, dtype=torch.float64) * torch.tensor([WIDTH, HEIGHT])
    return torch.cat([centre - side / 2, centre + side / 2], dim=-1)


def regions(batch=2):
    return torch.cat([AWKWARD.expand(batch, -1, -1), random_boxes(batch, 40)], dim=1)


def torchvisions_align(features, rois, strides, bins, samples, canonical_size):
    pool = ops.MultiScaleRoIAlign(
        [str(i) for i in range(len(strides))], bins, samples, canonical_scale=canonical_size, canonical_level=4
    )
    named = {str(i): level for i, level in enumerate(features)}
    return pool(named, list(rois), [FRAME] * len(rois))


@pytest.mark.parametrize("name", POOLS)
def test_align_equals_torchvisions_in_values_and_gradients(name):
    strides, bins, samples, canonical_size = POOLS[name]
    features, rois = maps(strides), regions()
    for level in features:
        level.requires_grad_()
    pool = RoIAlign(strides, output_size=bins, sampling_ratio=samples, canonical_size=canonical_size)
    ours, peers = pool(features, rois), torchvisions_align(features, rois, *POOLS[name])
    assert ours.shape == (rois.shape[0] * rois.shape[1], 3, bins, bins)
    torch.testing.assert_close(ours, peers)
    weights = torch.randn_like(ours)
    our_gradients = torch.autograd.grad((ours * weights).sum(), features)
    peer_gradients = torch.autograd.grad((peers * weights).sum(), features)
    for mine, wanted in zip(our_gradients, peer_gradients, strict=True):
        assert wanted.abs().sum() > 0  # every level was used
        torch.testing.assert_close(mine, wanted)


def test_align_equals_torchvisions_in_float32():
    features, rois = [level.float() for level in maps(PYRAMID)], regions().float()
    ours = RoIAlign(PYRAMID, canonical_size=56.0)(features, rois)
    torch.testing.assert_close(ours, torchvisions_align(features, rois, PYRAMID, 7, 2, 56.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [(16,), (4, 8)])
def test_align_has_gradients_to_features_and_boxes(strides):
    """Unlike torchvision's operator. Boxes keep away from sizes and places where a sample meets a cell's edge."""
    features = [level[..., :4, :5].clone().requires_grad_() for level in maps(strides, batch=1, channels=2)]
    rois = torch.tensor([[[5.3, 3.1, 21.9, 25.7], [17.77, 9.31, 36.13, 41.3]]], dtype=torch.float64, requires_grad=True)
    pool = RoIAlign(strides, output_size=2, canonical_size=20.0)
    assert torch.autograd.gradcheck(lambda rois, *features: pool(features, rois), (rois, *features))


def with_every_level(rois):
    """The regions, the first four of each image so large that each level of the pyramid has one."""
    middle = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]) / 2
    for place, side in enumerate((40, 150, 300, 600)):
        rois[:, place] = middle + side / 2 * torch.tensor([-1, -1, 1, 1])
    return rois


def torchvisions_pool(features, rois, strides):
    """Of each region's own level, one region at a time."""
    levels = assign_levels(rois, strides)
    return torch.cat(
        [
            ops.roi_pool(features[level][i : i + 1], [box[None]], 7, 1 / strides[level])
            for i in range(len(rois))
            for box, level in zip(rois[i], levels[i].tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("strides", [(16,), PYRAMID])
def test_pool_equals_torchvisions_in_values_and_gradients(strides):
    features, rois = maps(strides), with_every_level(regions())
    for level in features:
        level.requires_grad_()
    ours, peers = RoIPool(strides)(features, rois), torchvisions_pool(features, rois, strides)
    assert torch.equal(ours, peers)
    weights = torch.randn_like(ours)
    our_gradients = torch.autograd.grad((ours * weights).sum(), features)
    peer_gradients = torch.autograd.grad((peers * weights).sum(), features)
    for mine, wanted in zip(our_gradients, peer_gradients, strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(mine, wanted)


def pooled_by_hand(features, box, stride, bins=7):
    """Fast R-CNN, section 2.1, for one region: whole cells, split into bins that overlap where cells do not divide evenly."""
    channels, height, width = features.shape
    left, top, right, bottom = (math.floor(abs(v) / stride + 0.5) * (1 if v >= 0 else -1) for v in box.tolist())
    rows, columns = max(bottom - top + 1, 1) / bins, max(right - left + 1, 1) / bins
    out = torch.zeros(channels, bins, bins, dtype=features.dtype)
    for i in range(bins):
        for j in range(bins):
            y0, y1 = top + math.floor(i * rows), top + math.ceil((i + 1) * rows)
            x0, x1 = left + math.floor(j * columns), left + math.ceil((j + 1) * columns)
            cells = features[:, max(y0, 0) : max(min(y1, height), 0), max(x0, 0) : max(min(x1, width), 0)]
            if cells.numel():
                out[:, i, j] = cells.amax(dim=(1, 2))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strides", [(16,), (8, 32)])
def test_pool_equals_a_slow_loop(strides, dtype):
    """Boxes outside, without area and over the whole picture among them, in two images."""
    features, rois = [level.to(dtype) for level in maps(strides)], regions().to(dtype)
    levels = assign_levels(rois, strides)
    ours = RoIPool(strides)(features, rois).view(*rois.shape[:2], 3, 7, 7)
    for i, boxes in enumerate(rois):
        for box, level, mine in zip(boxes, levels[i].tolist(), ours[i], strict=True):
            assert torch.equal(mine, pooled_by_hand(features[level][i], box, strides[level]))


@pytest.mark.parametrize("strides", [(16,), PYRAMID])
def test_pool_equals_torchvisions_in_float32(strides):
    features, rois = [level.float().requires_grad_() for level in maps(strides)], with_every_level(regions()).float()
    ours, peers = RoIPool(strides)(features, rois), torchvisions_pool(features, rois, strides)
    assert torch.equal(ours, peers)
    weights = torch.randn_like(ours)
    gradients = (torch.autograd.grad((value * weights).sum(), features) for value in (ours, peers))
    for mine, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("strides", [(16,), (4, 8)])
def test_pools_gradients_are_the_differences_quotients(strides):
    """A bin's gradient goes to its largest cell alone; regions outside and without area have none, or one."""
    features = [level[..., :4, :5].clone().requires_grad_() for level in maps(strides, batch=2, channels=2)]
    boxes = [[0, 0, 70, 60], [-20, 5, 30, 90], [300, 300, 400, 400], [9, 9, 9, 9]]
    rois = torch.tensor([boxes, boxes[::-1]], dtype=torch.float64)
    pool = RoIPool(strides, output_size=3)
    assert torch.autograd.gradcheck(lambda *features: pool(features, rois), features)


@pytest.mark.parametrize("pool", [RoIAlign(PYRAMID, canonical_size=56.0), RoIPool(PYRAMID)], ids=["align", "pool"])
class TestBoth:
    def test_a_batch_gives_what_its_images_give_alone(self, pool):
        features, rois = maps(PYRAMID, batch=3), regions(3)
        together = pool(features, rois).view(3, -1, 3, 7, 7)
        for i in range(3):
            torch.testing.assert_close(together[i], pool([level[i : i + 1] for level in features], rois[i : i + 1]))

    def test_inputs_are_not_changed(self, pool):
        features, rois = maps(PYRAMID), regions()
        before = [value.clone() for value in (*features, rois)]
        pool(features, rois)
        assert all(torch.equal(a, b) for a, b in zip(before, (*features, rois), strict=True))

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_the_boxes_exact(self, pool, dtype, layout):
        """Beyond pixel 512 bfloat16 knows only multiples of four."""
        features = [torch.randn(1, 2, 256 // s, 1024 // s).to(dtype, memory_format=layout) for s in PYRAMID]
        low = torch.rand(1, 200, 2) * torch.tensor([900.0, 200.0])
        rois = torch.cat([low, low + 100 * torch.rand(1, 200, 2)], dim=-1)
        ours, exact = pool(features, rois), pool([level.float() for level in features], rois)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("strides", [PYRAMID, (8, 16, 32), (16,), (4,)])
def test_levels_equal_torchvisions(strides):
    """Borders between levels (112, 224, 448 pixels) and boxes without area included."""
    sides = torch.cat(
        [torch.tensor([0.0, 1e-3, 1.0, 56, 111.99, 112, 224, 447.99, 448, 896, 5000]), 800 * torch.rand(500)]
    )
    rois = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)
    finest, coarsest = int(strides[0]).bit_length() - 1, int(strides[-1]).bit_length() - 1
    expected = LevelMapper(finest, coarsest, canonical_scale=224, canonical_level=4)([rois])
    assert torch.equal(assign_levels(rois, strides), expected)
    assert torch.equal(assign_levels(rois.view(7, 73, 4), strides), expected.view(7, 73))


def test_level_of_a_canonical_box():
    """224 pixels pool from stride 16, half of it from 8, twice from 32 (FPN, eq. 1)."""
    rois = torch.tensor([[0.0, 0, side, side] for side in (50, 112, 224, 448, 900)])
    assert assign_levels(rois, PYRAMID).tolist() == [0, 1, 2, 3, 3]


# name: strides, channels, bins a side, samples a bin and side, regions an image, dtype
KERNEL_CASES = {
    "pyramid": (PYRAMID, 16, 7, 2, 6, torch.float32),
    "five levels, three samples": ((4, 8, 16, 32, 64), 5, 2, 3, 6, torch.float32),
    "one map, more bins than a block": ((16,), 3, 14, 2, 1, torch.float32),
    "channels that fill no block": ((8, 32), 40, 3, 1, 6, torch.float32),
    "more channels than a block": ((8,), 72, 2, 2, 2, torch.float32),
    "no regions": ((8, 16), 4, 7, 2, 0, torch.float32),
    "bfloat16": (PYRAMID, 16, 3, 2, 6, torch.bfloat16),
    "float16": ((16, 32), 16, 3, 2, 6, torch.float16),
}


def kernel_case(name):
    """Maps (2, C, H, W), not square, regions (2, K, 4) outside, without area and of NaN among them, levels and options."""
    strides, channels, bins, samples, number, dtype = KERNEL_CASES[name]
    features = [level.to(dtype, memory_format=torch.channels_last) for level in maps(strides, channels=channels)]
    strange = torch.tensor(
        [[-9.0, -9, 9, 300], [50, 60, 50, 60], [300, 0, 400, 50], [torch.nan] * 4, [3, 5, torch.nan, 70]]
    )
    rois = torch.cat([random_boxes(2, 1).float(), strange.expand(2, -1, -1)], dim=1)[:, :number]
    levels = assign_levels(rois, strides, canonical_size=56.0)
    return features, rois, levels, {"strides": strides, "output_size": bins, "sampling_ratio": samples}


def close(found, exact, dtype):
    """To 1e-5 in float32; else to a rounding of the dtype."""
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=tolerance, atol=max(tolerance * 0.1, 1e-5))


def pooled_and_gradients(pool, features, rois, levels, options):
    """What `pool` makes of the maps, and the gradients to them of a sum with fixed weights."""
    features = [level.detach().requires_grad_() for level in features]
    pooled = pool(features, rois, levels, **options)
    weights = torch.linspace(-1, 1, pooled.numel(), device=pooled.device).view_as(pooled).to(pooled.dtype)
    return pooled.detach(), torch.autograd.grad(pooled, features, weights)


def in_full_precision(features, rois, levels, options):
    """`pooled_and_gradients` of the plain version in float32, gradients' weights rounded as those of the maps' dtype."""
    exact = [level.float().requires_grad_() for level in features]
    pooled = roi_align_plain(exact, rois, levels, **options)
    weights = torch.linspace(-1, 1, pooled.numel(), device=pooled.device).view_as(pooled).to(features[0].dtype).float()
    return pooled.detach(), torch.autograd.grad(pooled, exact, weights)


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_a_region_of_nan_is_zero(name):
    features, rois, levels, options = kernel_case(name)
    pooled = roi_align_plain(features, rois, levels, **options)
    unknown = rois.isnan().any(dim=-1).flatten()
    assert pooled.isfinite().all()
    assert (pooled[unknown] == 0).all()
    if rois.shape[1]:
        assert (pooled[~unknown] != 0).any()


@pytest.mark.parametrize("name", ["pyramid", "five levels, three samples", "no regions"])
def test_the_operators_own_plain_gradients_are_autograds(name, monkeypatch):
    """The operator where there is no GPU: what a graph exported on one does elsewhere."""
    case = kernel_case(name)
    wanted = pooled_and_gradients(roi_align, *case)
    monkeypatch.setattr(module, "_fused", lambda features, rois: True)
    found = pooled_and_gradients(roi_align, *case)
    assert torch.equal(found[0], wanted[0])
    for mine, expected in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_operators_keep_their_promises():
    features, rois, levels, _ = kernel_case("pyramid")
    features = [level.requires_grad_() for level in features]
    rois = rois[:, :3].contiguous()  # NaN is no gradient to compare
    arguments = (features, rois, levels[:, :3].contiguous(), list(PYRAMID), 7, 2)
    torch.library.opcheck(torch.ops.sightline.roi_align.default, arguments)
    sizes = [length for level in features for length in level.shape[-2:]]
    arguments = (torch.randn(6, 16, 7, 7), *arguments[1:3], sizes, list(PYRAMID), 2)
    torch.library.opcheck(torch.ops.sightline.roi_align_backward.default, arguments)


@pytest.mark.parametrize("as_operator", [False, True])
def test_compiled_and_exported_whole(as_operator, monkeypatch):
    if as_operator:
        monkeypatch.setattr(module, "_fused", lambda features, rois: True)
    features, rois = [level.float().requires_grad_() for level in maps(PYRAMID)], regions().float()
    pool = RoIAlign(PYRAMID, canonical_size=56.0)
    wanted = pool(features, rois)
    expected = torch.autograd.grad(wanted.square().sum(), features)
    exported = torch.export.export(pool, (features, rois)).module()
    torch.testing.assert_close(exported(features, rois), wanted)
    torch._dynamo.reset()
    found = torch.compile(pool, fullgraph=True, backend="aot_eager")(features, rois)
    torch.testing.assert_close(found, wanted)
    for mine, level in zip(torch.autograd.grad(found.square().sum(), features), expected, strict=True):
        torch.testing.assert_close(mine, level)


def on_pretended_gpu(dtype=torch.bfloat16, *, rois_learn=False, number=4):
    """Which operators `RoIAlign` is made of on an H100, by name; tensors there need no GPU as long as they hold nothing."""
    strides = tuple(4 * 2**i for i in range(number))
    with FakeTensorMode():
        features = [torch.empty(2, 8, 256 // s, 512 // s, dtype=dtype, device="cuda") for s in strides]
        rois = torch.empty(2, 10, 4, device="cuda", requires_grad=rois_learn)
    graph = torch.export.export(RoIAlign(strides), (features, rois)).graph
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    return {target.__name__.split(".")[0] for target in targets}


needs_triton = pytest.mark.skipif(not module.HAS_TRITON, reason="Triton is not installed")


@needs_triton
def test_the_kernel_stands_in_on_a_gpu_where_it_can(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    operator, bag = "roi_align", "embedding_bag"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        names = on_pretended_gpu(dtype)
        assert operator in names
        assert "cat" not in names  # maps are not copied together
    assert operator in on_pretended_gpu(number=1)
    assert operator in on_pretended_gpu(number=5)
    for plain in (on_pretended_gpu(torch.float64), on_pretended_gpu(rois_learn=True), on_pretended_gpu(number=6)):
        assert operator not in plain
        assert bag in plain
    with torch.no_grad():
        assert operator in on_pretended_gpu(rois_learn=True)
    torch.use_deterministic_algorithms(True)
    try:
        assert bag in on_pretended_gpu()
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert bag in on_pretended_gpu()


@needs_triton
def test_triton_kernels_equal_the_plain_version():
    """Interpreted on the CPU. The variable has to be set before Triton is first imported, hence another process."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [str(len(KERNEL_CASES)), "equal"]


def interpret():
    """What the other process does: both kernels beside the plain version, on maps in either order of memory."""
    from sightline.detectors.roi_align_triton import pool, scatter

    torch.manual_seed(0)
    for name in KERNEL_CASES:
        features, rois, levels, options = kernel_case(name)
        exact, gradients = in_full_precision(features, rois, levels, options)
        strides, bins, samples = options.values()
        dtype, shapes = features[0].dtype, [level.shape[-2:] for level in features]
        features[0] = features[0].contiguous()
        pooled = pool(features, rois, levels, strides, bins, samples)
        assert pooled.is_contiguous(memory_format=torch.channels_last)
        close(pooled, exact, dtype)
        weights = torch.linspace(-1, 1, pooled.numel()).view_as(pooled).to(dtype)
        for mine, level in zip(scatter(weights, rois, levels, shapes, strides, samples), gradients, strict=True):
            assert mine.is_contiguous(memory_format=torch.channels_last)
            close(mine, level, dtype)
    print(len(KERNEL_CASES), "equal")


@needs_triton
@pytest.mark.parametrize("scatter", [False, True], ids=["pool", "scatter"])
@pytest.mark.parametrize(("dtype", "channels"), [("bf16", 256), ("fp16", 1), ("fp32", 64)])
def test_triton_kernels_compile_for_a_gpu(dtype, channels, scatter, monkeypatch, tmp_path):
    """To machine code of an H100, which needs no GPU; cells are read and added 16 bytes at a time."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sightline.detectors.roi_align_triton import BLOCK_BINS, BLOCK_CHANNELS, OPTIONS, _visit

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"rois": "*fp32", "levels": "*i64", "regions": f"*{dtype}"}
    types |= {f"map{i}": "*fp32" if scatter else f"*{dtype}" for i in range(5)}
    blocks = {"BLOCK_BINS": BLOCK_BINS, "BLOCK_CHANNELS": min(BLOCK_CHANNELS, channels)}
    constants = {"SCATTER": scatter, "BINS": 7, "SAMPLES": 2, **blocks}
    names = _visit.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [*types, "channels"] if channels % 16 == 0 else types
    source = ASTSource(
        _visit,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=OPTIONS)
    assert len(compiled.asm["cubin"]) > 0
    if channels % 16 == 0:
        for wide in ["add.v4.f32"] if scatter else ["ld.global.v4", "st.global.v4"]:
            assert wide in compiled.asm["ptx"]
        assert "convert_layout" not in compiled.asm["ttgir"]  # nothing passes between threads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnAGPU:
    @pytest.mark.parametrize("name", KERNEL_CASES)
    def test_kernels_equal_the_plain_version_without_waiting(self, name):
        features, rois, levels, options = kernel_case(name)
        exact, gradients = in_full_precision(features, rois, levels, options)
        on_gpu = [level.cuda() for level in features], rois.cuda(), levels.cuda(), options
        assert module._fused(*on_gpu[:2])
        pooled_and_gradients(roi_align, *on_gpu)  # compiles the kernels
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = pooled_and_gradients(roi_align, *on_gpu)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        close(found[0].cpu(), exact, features[0].dtype)
        for mine, level in zip(found[1], gradients, strict=True):
            close(mine.cpu(), level, features[0].dtype)

    def test_deterministic_gradients_are_the_same_twice(self):
        features, rois, levels, options = kernel_case("pyramid")
        rois, levels = rois.repeat(1, 200, 1).cuda(), levels.repeat(1, 200).cuda()
        features = [level.cuda() for level in features]
        torch.use_deterministic_algorithms(True)
        try:
            assert not module._fused(features, rois)
            once, again = (pooled_and_gradients(roi_align, features, rois, levels, options)[1] for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))

    def test_in_a_cuda_graph(self):
        features, rois = [level.cuda().bfloat16() for level in maps(PYRAMID, channels=16)], regions().cuda().float()
        pool = RoIAlign(PYRAMID, canonical_size=56.0)
        with torch.no_grad():
            wanted = pool(features, rois)
            compiled = torch.compile(pool, fullgraph=True, mode="reduce-overhead")
            for _ in range(3):
                found = compiled(features, rois).clone()
        torch.testing.assert_close(found, wanted)


if __name__ == "__main__":
    interpret()
