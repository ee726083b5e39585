"""Files, sheets, lettering and overlays: pytest tests/test_pictures.py"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from bachvid.pictures.files import count_frames, replacing, write_image, write_video
from bachvid.pictures.frames import Frames, enlarge, resize, shade, to_frames
from bachvid.pictures.lettering import (
    ASCENT,
    DESCENT,
    PEN,
    STROKES,
    UNKNOWN,
    draw_text,
    line,
    segments,
    shorten,
    text_width,
)
from bachvid.pictures.overlays import ACCENT, over_pixels, place_colour, show_mask, show_matches
from bachvid.pictures.sheets import FAINT, GAP, INK, MARGIN, PAPER, Line, contact_sheet, sheet


def moving(count: int = 9, height: int = 32, width: int = 48) -> Frames:
    """Colour fields that move one cell a frame, so that every frame is another."""
    fields = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    large = fields.repeat(-(-height // 4), 0).repeat(-(-width // 6), 1)[:height, :width]
    return np.stack([np.roll(large, 8 * n, 1) for n in range(count)])


def flat(value: int, count: int = 5, height: int = 32, width: int = 48) -> Frames:
    return np.full((count, height, width, 3), value, np.uint8)


def read(path: Path) -> Frames:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# Frames


def test_to_frames_moves_axes_and_rounds() -> None:
    video = torch.zeros(3, 2, 4, 6)
    video[0, 1, 2, 3] = 1.0
    video[1, 1, 2, 3] = -1.5
    video[2, 1, 2, 3] = 0.999
    frames = to_frames(video)
    assert frames.shape == (2, 4, 6, 3)
    assert frames.dtype == np.uint8
    assert frames[1, 2, 3].tolist() == [255, 0, 255]
    assert frames[0].tolist() == np.full((4, 6, 3), 128).tolist()
    assert np.array_equal(to_frames(video.bfloat16().requires_grad_())[0], frames[0])
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 4, 6\)"):
        to_frames(video[None])


def test_enlarge_takes_the_smallest_whole_factor() -> None:
    frames = moving()
    assert enlarge(frames, 384).shape == (9, 384, 576, 3)
    assert enlarge(frames, 33).shape == (9, 64, 96, 3)
    assert enlarge(frames, 32) is frames
    squares = enlarge(frames, 96, smooth=False)
    assert np.array_equal(squares[:, 1::3, 1::3], frames)
    assert np.array_equal(squares[:, 0::3, 2::3], frames)


def test_resize_keeps_colours_and_place() -> None:
    assert np.array_equal(resize(flat(77), 50, 31), flat(77, 5, 50, 31))
    half = flat(0)[0]
    half[:, 24:, 1] = 200
    larger = resize(half, 64, 96)
    assert (larger[:, :44] == 0).all()
    assert (larger[:, 52:] == (0, 200, 0)).all()
    assert resize(half, 16, 24)[8, :11, 1].max() <= 3


# Files


def test_mp4_is_complete_and_plays_in_a_browser(tmp_path: Path) -> None:
    frames = moving()
    write_video(tmp_path / "video.mp4", frames, fps=8)
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]
    data = (tmp_path / "video.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index must come first"
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
        assert (codec.height, codec.width) == (384, 576)
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
    error = np.abs(read(tmp_path / "video.mp4").astype(int) - enlarge(frames, 384))
    assert error.mean() < 3  # colours and the order of the frames
    assert count_frames(tmp_path / "video.mp4") == 9


@pytest.mark.parametrize(
    ("fps", "rate"), [(24000 / 1001, Fraction(24000, 1001)), (16, 16), (7.5, Fraction(15, 2))]
)
def test_frame_rate(tmp_path: Path, fps: float, rate: Fraction) -> None:
    write_video(tmp_path / "video.mp4", moving(5), fps, min_height=0)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert container.streams.video[0].average_rate == rate


def test_odd_sizes_are_made_even(tmp_path: Path) -> None:
    frames = flat(90, 2, 33, 47)
    write_video(tmp_path / "video.mp4", frames, 8, min_height=0)
    back = read(tmp_path / "video.mp4")
    assert back.shape == (2, 34, 48, 3)
    assert np.abs(back.astype(int) - 90).max() <= 3


def test_moving_png_is_exact(tmp_path: Path) -> None:
    write_video(tmp_path / "video.png", moving(), 8, min_height=64)
    assert np.array_equal(read(tmp_path / "video.png"), enlarge(moving(), 64))


def test_images(tmp_path: Path) -> None:
    image = moving(1)[0]
    write_image(tmp_path / "image.png", image)
    assert np.array_equal(read(tmp_path / "image.png")[0], image)
    write_image(tmp_path / "image.jpg", image, min_height=64, smooth=False)
    expected = enlarge(image, 64, smooth=False)
    assert np.abs(read(tmp_path / "image.jpg")[0].astype(int) - expected).mean() < 3


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"video\.avi cannot be written; the known endings are \.mp4, \.png"):
        write_video(tmp_path / "video.avi", moving(), 8)
    with pytest.raises(ValueError, match=r"\(F, H, W, 3\), but these have \(0, 32, 48, 3\)"):
        write_video(tmp_path / "video.mp4", moving()[:0], 8)
    with pytest.raises(ValueError, match="at 0 frames a second"):
        write_video(tmp_path / "video.mp4", moving(), 0)
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        write_image(tmp_path / "image.png", moving())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, moving(3), 8, min_height=64)
    before = path.read_bytes()
    with files_of_at_most(3000), pytest.raises(OSError):
        write_video(path, np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3)).astype(np.uint8), 8)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_count_frames_sees_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, moving(), 8)
    path.write_bytes(path.read_bytes()[:-4000])
    assert count_frames(path) < 9
    path.write_bytes(b"no video")
    assert count_frames(path) == 0
    assert count_frames(tmp_path / "absent.mp4") == 0


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with replacing(path) as part:
        part.write_text("new")
        assert part.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


# Lettering


def test_letters_lie_inside_their_line() -> None:
    for letter in STROKES:
        strokes = segments(letter)
        if strokes.size:
            assert strokes[..., 0].min() >= -0.15, letter
            assert strokes[..., 1].max() <= ASCENT - PEN, letter
            assert strokes[..., 1].min() >= PEN - DESCENT, letter


def test_every_printable_letter_is_drawn_and_no_two_are_alike() -> None:
    letters = [chr(n) for n in range(33, 127)]
    drawn = {line(letter, 24.0).tobytes() for letter in letters}
    assert len(drawn) == len(letters)
    assert all(letter in STROKES for letter in letters)


def test_unknown_letters() -> None:
    assert np.array_equal(segments("é"), segments("e"))
    assert np.array_equal(segments("猫"), segments("\0"))
    assert len(segments("猫")) == UNKNOWN.count(" ")


def test_text_is_blended_and_cut() -> None:
    image = flat(255)[0]
    draw_text(image, "Hg", 2, 4, 20, (10, 20, 30))
    assert (image.reshape(-1, 3).min(0) == (10, 20, 30)).all()
    assert (image[:4] == 255).all()
    assert (image[:, :2] == 255).all()
    assert (image[:, 2 + text_width("Hg", 20) :] == 255).all()
    draw_text(image, "too long for this picture", 20, 20, 20, (0, 0, 0))
    draw_text(image, "outside", 100, 100, 20, (0, 0, 0))


def test_shorten() -> None:
    assert shorten("walks", 16, 200) == "walks"
    short = shorten("walks to the left and then to the right", 16, 120)
    assert short.endswith("…")
    assert "walks to the left".startswith(short[:-1])
    assert 90 < text_width(short, 16) <= 120
    assert shorten("walks", 16, 0) == "…"


# Sheets


def test_sheet_places_its_cells() -> None:
    rows = [Line("vanilla\nseed 1", [flat(10)[0], flat(20)[0]]), Line("ours", [flat(30)[0], flat(40)[0]])]
    page = sheet(rows, ["stands", "waves"], height=32)
    bottom, right = page.shape[0] - MARGIN, page.shape[1] - MARGIN
    for n, (down, across) in enumerate([(1, 1), (1, 0), (0, 1), (0, 0)]):
        y, x = bottom - down * (32 + GAP) - 32, right - across * (48 + GAP) - 48
        assert (page[y : y + 32, x : x + 48] == 10 * (n + 1)).all()
    for colour in (PAPER, INK, FAINT):
        assert (page == colour).all(-1).any()


def test_sheet_of_videos_plays_in_step() -> None:
    page = sheet([Line("", [moving(), flat(9, 9)])], height=32)
    assert page.shape == (9, 32 + 2 * MARGIN, 2 * 48 + GAP + 2 * MARGIN, 3)
    assert np.array_equal(page[:, MARGIN:-MARGIN, MARGIN : MARGIN + 48], moving())


def test_sheet_wants_equal_cells() -> None:
    with pytest.raises(ValueError, match="one shape"):
        sheet([Line("", [flat(0)[0], flat(0)])])
    with pytest.raises(ValueError, match="none"):
        sheet([])


def test_contact_sheet_shows_first_and_last_frame() -> None:
    frames = np.stack([flat(10 * n)[0] for n in range(9)])
    page = contact_sheet([("a", frames), ("b", frames)], fps=8, columns=3, height=32)
    row = page[-MARGIN - 16, -MARGIN - 3 * 48 - 2 * GAP : -MARGIN]
    assert [row[24 + n * (48 + GAP), 0] for n in range(3)] == [0, 40, 80]
    single = contact_sheet([("a", frames[:1])], fps=8, columns=5, height=32)
    assert single.shape[1] < 32 * 5


# Overlays


def test_tokens_are_spread_over_frames_as_the_vae_compresses() -> None:
    tokens = np.arange(13)[:, None, None] + np.zeros((13, 30, 45))
    times = over_pixels(tokens, flat(0, 49, 60, 90))[:, 0, 0]
    assert times.tolist() == [0, *(1 + n // 4 for n in range(48))]
    assert over_pixels(np.ones((1, 2, 3)), flat(0, 1, 32, 48)).shape == (1, 32, 48)
    places = over_pixels(np.arange(24).reshape(1, 4, 6), flat(0, 1))[0]
    assert (places[8:16, 16:24] == 8).all()
    assert (places == 8).sum() == 64


def test_mask_tints_and_outlines_the_foreground_only() -> None:
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[1, 1:3, 2:4] = True
    frames = flat(100, 5, 384, 576)
    shown = show_mask(frames, mask)
    assert np.array_equal(shown[0], frames[0])
    inside = np.zeros((384, 576), bool)
    inside[96:288, 192:384] = True
    assert np.array_equal((shown[1] != 100).any(-1), inside)
    assert (shown[1, 96, 192:384] == ACCENT).all()
    assert (shown[1, 192, 288] == shade(frames[1], inside, ACCENT, 0.3)[192, 288]).all()
    assert show_mask(moving(5), mask).shape == (5, 384, 576, 3)


def test_matched_places_have_the_same_colour() -> None:
    identity_mask, mask = torch.zeros(2, 4, 6, dtype=torch.bool), torch.zeros(2, 4, 6, dtype=torch.bool)
    identity_mask[:, 1:4, 0:3] = True
    mask[:, 0:3, 3:6] = True
    partner = torch.arange(48).reshape(2, 4, 6).roll((-1, 3), (1, 2)).flatten()  # one down and three left
    video = flat(100, 5, 384, 576)
    left, right = show_matches(video, video, identity_mask, mask, partner)
    painted = left[:, 96:384, 0:288]
    assert np.array_equal(painted, right[:, 0:288, 288:576])
    cells = {tuple(cell) for cell in painted[0, 48::96, 48::96].reshape(-1, 3)}
    assert len(cells) == 9, "nine places, nine colours"
    _, grey = show_matches(video, video, identity_mask, mask, torch.zeros_like(partner))
    assert len(np.unique(grey[0, 0:288, 288:576].reshape(-1, 3), axis=0)) == 1
    assert np.ptp(grey[0, 100, 400].astype(int)) < 10


def test_place_colours_are_far_apart_where_places_are() -> None:
    down, across = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 3), indexing="ij")
    colours = place_colour(down, across).reshape(-1, 3)
    assert colours.min() >= 0
    assert colours.max() <= 255
    distances = np.linalg.norm(colours[:, None] - colours, axis=-1) + 999 * np.eye(15)
    assert distances.min() > 60
