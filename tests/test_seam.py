"""The seam where a method stands in a model, and what may stand there: pytest tests/test_seam.py"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import oracles
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import randomised
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from bachvid.method.attends import Feature, Inject, Lent, Record, TextMass
from bachvid.method.mask import Spans
from bachvid.method.match import Matches, Places, places
from bachvid.method.recipe import Recipe
from bachvid.method.together import Pass, forward
from bachvid.models.attention import (
    NOWHERE,
    Attend,
    Site,
    _attend_in_blocks,
    attend,
    attend_with_lse,
    rotate,
)
from bachvid.models.cogvideox import CogVideoX, CogVideoXConfig
from bachvid.models.grid import Grid
from bachvid.models.rope import rotary_table

LEAD, GRID = 7, Grid(2, 3, 5)
CONFIG = CogVideoXConfig(
    layers=3, heads=2, head_width=16, channels=4, patch=2, patch_frames=None, text_width=12, text_length=LEAD,
    time_width=8, rotary=True, sample_height=6, sample_width=10, sample_frames=5, temporal_compression=4,
    spatial_scale=1.875, temporal_scale=1.0,
)  # fmt: skip
RECIPE = Recipe(4, "joint", (2,), 1, "joint", (1, 2), 1, (1, 2, 3))
SPANS = Spans(torch.tensor([0, 1, 2]), torch.tensor([4]))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(scope="module")
def model() -> CogVideoX:
    return randomised(CogVideoX(CONFIG)).requires_grad_(False)


def row(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return random(1, 2, 4, 6, 10, seed=seed), torch.tensor([321]), random(1, LEAD, 12, seed=seed + 1)


def qkv(lead: int = LEAD, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(random(1, 2, lead + GRID.tokens, 16, seed=10 * seed + n, dtype=dtype) for n in range(3))


def table(lead: int = LEAD, grid: Grid = GRID) -> Tensor:
    axes = [torch.arange(n).float() for n in grid]
    return rotary_table(axes, (4, 6, 6), lead)


def borrowing(lend: Callable[[], Lent], share: float = 0.4) -> Inject:
    """An Inject of random masks and matches."""
    frame, identity = (random(GRID.tokens, seed=seed) < share for seed in (5, 6))
    partner = torch.randint(GRID.tokens, (GRID.tokens,), generator=torch.Generator().manual_seed(7))
    matches = Matches(partner, torch.ones(GRID.tokens))
    return Inject(lend, places(frame, identity, matches, GRID, RECIPE))


# 1, 2: off is absent, and looking on changes nothing


@pytest.mark.parametrize(
    "attend_at",
    [
        {},
        {Site("joint", n): attend for n in (1, 2, 3)},
        {Site("joint", n): Record() for n in (1, 2, 3)},
        {Site("joint", 2): Feature(GRID.tokens, True, Record())},
        {Site("joint", n): TextMass(SPANS, GRID.tokens) for n in (1, 2, 3)},
        {Site("joint", 1): TextMass(SPANS, GRID.tokens, Record())},
    ],
    ids=["nothing", "attend", "record", "feature of record", "mass", "mass of record"],
)
def test_looking_on_changes_no_bit(model: CogVideoX, attend_at: Mapping[Site, Attend]) -> None:
    given = row()
    plain = model(*given)
    assert torch.equal(model(*given, attend_at), plain)
    assert torch.equal(model(*given), plain), "something was left behind on the model"
    assert torch.equal(model(*given, NOWHERE), plain)


def test_a_record_holds_what_passed(model: CogVideoX) -> None:
    """Keys and values before rotation, and of the output the video's tokens with their heads in a row."""
    record = Record()
    feature = Feature(GRID.tokens, False, record)
    stream = model.begin(*row())
    x, _ = model.blocks[0].attention_norm(stream)
    q, k, v = model.blocks[0].attention.project(x)
    model.blocks[0](stream, {Site("joint", 1): feature})
    assert torch.equal(record.k, k)
    assert torch.equal(record.v, v)
    out = attend(q, k, v, stream.freqs)
    assert torch.equal(feature.value, out[0, :, LEAD:].transpose(0, 1).flatten(1))


# 3, 4: nothing injected, and ourselves injected


def nothing_to_lend() -> Lent:
    raise AssertionError("nothing is borrowed, yet the identity was asked")


@pytest.mark.parametrize("lead", [LEAD, 0])
def test_injecting_nothing_is_attend(lead: int) -> None:
    q, k, v = qkv(lead)
    none = torch.zeros(0, dtype=torch.int64)
    half = torch.arange(GRID.tokens // 2)
    where = Places(GRID.tokens, half, half + GRID.tokens // 2, none, none, none)
    assert torch.equal(Inject(nothing_to_lend, where)(q, k, v, table(lead)), attend(q, k, v, table(lead)))


@pytest.mark.parametrize("shows", [True, False], ids=["foreground", "background"])
@pytest.mark.parametrize("freqs", [table(0), None], ids=["rotary", "added"])
def test_injecting_ourselves_at_our_own_positions_changes_nothing(shows: bool, freqs: Tensor | None) -> None:
    """A softmax over keys that all stand there twice is the same average."""
    q, k, v = qkv(lead=0)
    everywhere = torch.full((GRID.tokens,), shows)
    itself = Matches(torch.arange(GRID.tokens), torch.ones(GRID.tokens))
    where = places(everywhere, everywhere, itself, GRID, RECIPE)
    inject = Inject(lambda: Lent(k, rotate(k, freqs), v), where)
    got, plain = inject(q, k, v, freqs), attend(q, k, v, freqs)
    assert torch.allclose(got, plain, rtol=0, atol=1e-6)
    assert plain.std() > 0.1


# 5, 6: positions


def test_a_recorded_key_at_its_own_positions_is_the_native_one(model: CogVideoX) -> None:
    record = Record()
    model(*row(), {Site("joint", 3): record})
    freqs = model.freqs(GRID, LEAD, torch.device("cpu"))
    where = LEAD + torch.tensor([29, 0, 17, 17, 4])
    again = rotate(record.k[:, :, where], freqs[where])
    assert torch.equal(again, rotate(record.k, freqs)[:, :, where])
    assert torch.equal(again, record.lend().rotated[:, :, where])
    cos, sin = (half.repeat_interleave(2, dim=1) for half in freqs[where].unbind(-1))
    assert torch.equal(again, apply_rotary_emb(record.k[:, :, where], (cos, sin)))
    assert not torch.allclose(again, record.k[:, :, where], atol=0.1)


@settings(max_examples=60, deadline=None)
@given(
    offset=st.tuples(*[st.integers(-9, 9)] * 3),
    one=st.tuples(*[st.integers(0, 40)] * 3),
    other=st.tuples(*[st.integers(0, 40)] * 3),
)
def test_dot_products_depend_on_offsets_only(
    offset: tuple[int, int, int], one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    q, k = random(1, 1, 1, 16, seed=1), random(1, 1, 1, 16, seed=2)

    def product(at: tuple[int, ...], of: tuple[int, ...]) -> float:
        q_at, k_of = (
            rotate(x, rotary_table([torch.tensor([float(i)]) for i in place], (4, 6, 6)))
            for x, place in ((q, at), (k, of))
        )
        return (q_at * k_of).sum().item()

    moved = [tuple(p + o for p, o in zip(place, offset, strict=True)) for place in (one, other)]
    assert product(*moved) == pytest.approx(product(one, other), abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_stand_still_equal_slicing(dtype: torch.dtype) -> None:
    _, k, _ = qkv(dtype=dtype)
    turned = rotate(k, table())
    assert turned.dtype == dtype
    assert torch.equal(turned[:, :, :LEAD], k[:, :, :LEAD])
    assert torch.equal(turned[:, :, LEAD:], rotate(k[:, :, LEAD:], table(lead=0)))
    assert not torch.equal(turned[:, :, LEAD + 1 :], k[:, :, LEAD + 1 :])


def test_rotation_is_multiplication_of_complex_numbers() -> None:
    _, k, _ = qkv()
    encode = oracles.rotary(GRID.places(), (4, 6, 6), LEAD)
    assert torch.allclose(rotate(k, table())[0], encode(k[0], range(k.shape[2])), rtol=0, atol=1e-6)


# 7: looks around an injection


@pytest.mark.parametrize("lead", [LEAD, 0])
def test_a_look_at_an_injection_sees_the_injection(lead: int) -> None:
    q, k, v = qkv(lead)
    _, lent, lent_v = qkv(lead, seed=3)
    inject = borrowing(lambda: Lent(lent, rotate(lent, table(lead)), lent_v))
    alone = inject(q, k, v, table(lead))
    feature = Feature(GRID.tokens, False, inject)
    assert torch.equal(feature(q, k, v, table(lead)), alone)
    assert torch.equal(feature.value, alone[0, :, lead:].transpose(0, 1).flatten(1))
    assert torch.equal(TextMass(SPANS, GRID.tokens, feature)(q, k, v, table(lead)), alone)
    assert not torch.allclose(alone, attend(q, k, v, table(lead)), atol=0.1)


# 8: typing errors


@pytest.mark.parametrize("site", [Site("joint", 0), Site("joint", 4), Site("self", 1)])
def test_an_unknown_site_is_named_and_the_known_are_listed(model: CogVideoX, site: Site) -> None:
    latents, t, text = row()
    at: dict[Site, Attend] = {Site("joint", 1): attend, site: attend}
    message = f"no such site: {site.kind} {site.layer}. .*: joint 1, joint 2, joint 3$"
    with pytest.raises(ValueError, match=message):
        model(latents, t, text, at)
    with pytest.raises(ValueError, match=message):
        forward(model, t, [Pass(latents, text), Pass(latents, text, at)])


# Rows that walk together


def test_rows_together_are_rows_alone(model: CogVideoX) -> None:
    """Identity first through each block: one record serves all layers, and gives what one per layer gives."""
    one, t, text = row(1)
    other, _, other_text = row(2)
    sites = {Site("joint", n) for n in (1, 3)}
    shared = Record()
    stopped = Pass(one, text, until=2)
    frame = Pass(other, other_text, dict.fromkeys(sites, borrowing(shared.lend)))
    first, injected = forward(model, t, [Pass(one, text, dict.fromkeys(sites, shared)), stopped, frame])

    apart = {site: Record() for site in sites}
    assert torch.equal(first, model(one, t, text, apart))
    expected = model(other, t, other_text, {site: borrowing(record.lend) for site, record in apart.items()})
    assert torch.equal(injected, expected)
    assert not torch.equal(injected, model(other, t, other_text))


@pytest.mark.parametrize("until", [1, 2, 3])
def test_a_pass_stops_after_its_last_layer(model: CogVideoX, until: int) -> None:
    latents, t, text = row()
    records = {site: Record() for site in model.sites}
    assert forward(model, t, [Pass(latents, text, records, until=until)]) == []
    assert [site.layer for site, record in records.items() if hasattr(record, "k")] == [1, 2, 3][:until]


# 9: graphs


def test_one_graph_each_for_off_record_and_inject(model: CogVideoX) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    given, identity = row(1), Record()
    site = Site("joint", 2)
    model(*row(2), {site: identity})
    for _ in range(2):
        for at in ({}, {site: Record()}, {site: borrowing(identity.lend)}):
            assert torch.allclose(compiled(*given, at), model(*given, at), rtol=0, atol=1e-5)
    assert counter.frame_count <= 3
    torch._dynamo.reset()


# 10: attention with its log-sum-exp


LSE_ROUTES: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "fused": attend_with_lse,
    "blocks": _attend_in_blocks,
    "blocks of 7 rows": lambda q, k, v: _attend_in_blocks(q, k, v, rows=7),
}
# Output relative to its size, log-sum-exp absolute.
LIMITS = {torch.float32: (1e-6, 5e-6), torch.bfloat16: (4e-3, 1e-4), torch.float16: (6e-4, 1e-4)}


def dense(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x.double() for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return oracles.weights(q, k) @ v, scores.exp().sum(-1).log()


@pytest.mark.parametrize("route", LSE_ROUTES)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("queries", "keys", "width"), [(37, 37, 16), (1, 50, 64), (50, 1, 8), (40, 23, 24)])
def test_attention_and_its_log_sum_exp(
    route: str, dtype: torch.dtype, queries: int, keys: int, width: int
) -> None:
    q = 3 * random(2, 3, queries + 5, width, dtype=dtype)[:, :, 5:]  # a slice, as the mask takes it
    k, v = (random(2, keys, 3, width, seed=s, dtype=dtype).transpose(1, 2) for s in (1, 2))
    out, lse = LSE_ROUTES[route](q, k, v)
    expected, expected_lse = dense(q, k, v)
    out_limit, lse_limit = LIMITS[dtype]
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert lse.shape == (2, 3, queries)
    assert (out.double() - expected).norm() <= out_limit * expected.norm()
    assert (lse.double() - expected_lse).abs().max() <= lse_limit


@pytest.mark.parametrize(("queries", "keys"), [(0, 5), (4, 0), (0, 0)])
def test_no_queries_and_no_keys(queries: int, keys: int) -> None:
    """The fused operator ends the whole process on these."""
    q, k = random(1, 2, queries, 16), random(1, 2, keys, 16)
    out, lse = attend_with_lse(q, k, k)
    assert torch.equal(out, torch.zeros(1, 2, queries, 16))
    assert torch.equal(lse, torch.full((1, 2, queries), -torch.inf))


@pytest.mark.parametrize("shape", [(1, 2, 9, 16), (2, 3, 9, 16), (2, 2, 9, 8)])
def test_keys_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    """The fused operator reads beyond them."""
    q, k, v = random(2, 2, 5, 16), random(*shape), random(*shape)
    with pytest.raises(ValueError, match="do not fit queries"):
        attend_with_lse(q, k, v)
    with pytest.raises(ValueError, match="do not fit queries"):
        attend_with_lse(q, random(2, 2, 9, 16), random(2, 2, 8, 16))


@pytest.mark.parametrize("splits", [(0, 37), (1,), (5, 20), (0,), (37,), (36, 36, 37)])
@pytest.mark.parametrize("route", LSE_ROUTES)
def test_parts_merge_to_the_whole(route: str, splits: tuple[int, ...]) -> None:
    q, k, v = (random(1, 2, 37, 16, seed=s) for s in range(3))
    cuts = torch.tensor_split(k, splits, dim=2), torch.tensor_split(v, splits, dim=2)
    parts = [
        LSE_ROUTES[route if some.shape[2] else "fused"](q, some, values)
        for some, values in zip(*cuts, strict=True)
    ]
    out, lse = oracles.merged(parts)
    expected, expected_lse = dense(q, k, v)
    assert torch.allclose(out.double(), expected, rtol=0, atol=2e-6)
    assert torch.allclose(lse.double(), expected_lse, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_columns_by_log_sum_exp_are_those_of_the_softmax(dtype: torch.dtype) -> None:
    q, k, v = qkv(dtype=dtype)
    _, lse = attend_with_lse(q, k, v)
    columns = torch.exp(q.double() @ k[:, :, :LEAD].double().mT / 4 - lse[..., None])
    expected = oracles.weights(q.double(), k.double())[..., :LEAD]
    assert ((columns - expected).abs() / expected).max() <= (2e-6 if dtype is torch.float32 else 5e-5)
