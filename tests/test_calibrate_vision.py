"""Truth and scores from public vision models: random tiny ones of the real classes, and closed forms."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    EfficientLoFTRConfig,
    EfficientLoFTRForKeypointMatching,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    SwinConfig,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.efficientloftr.image_processing_pil_efficientloftr import (
    EfficientLoFTRImageProcessorPil,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from bachvid.calibrate import prepare, segment
from bachvid.calibrate.aesthetic import Aesthetic, read_head
from bachvid.calibrate.features import (
    Dinov2,
    EfficientLoFTR,
    by_latent_frame,
    cells,
    known_well,
    likeness,
    middle_frames,
    mutual_partners,
    sure_pairs,
)
from bachvid.calibrate.pretrained import (
    CLIP,
    DETECTOR,
    DINOV2,
    LOFTR,
    SEGMENTER,
    licence,
    load,
    load_tokenizer,
)
from bachvid.calibrate.segment import (
    Box,
    Detector,
    GroundedSam,
    MaskFolder,
    Tracker,
    best_query,
    evenly,
    head_phrase,
)
from bachvid.calibrate.truth import Seen
from bachvid.calibrate.vision import VisionJudge, VisionTruth
from bachvid.errors import UsageError
from bachvid.method.spans import Parts
from bachvid.models.grid import Grid
from bachvid.models.weights import WeightsError
from bachvid.pictures.files import write_image, write_video
from bachvid.pictures.frames import Frames

PARTS = Parts("a quiet harbour,", "An old fisherman with a hat,", "waves.")


def noise(frames: int, height: int, width: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def randomised(model: Any, scale: float = 1.0, seed: int = 7) -> Any:
    """The model with random weights of a size that lets signals through; biases stay what they were."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=scale * parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


# Preparing frames


@pytest.mark.parametrize(("size", "inner"), [((48, 72), (24, 36)), ((72, 48), (36, 24))])
def test_clip_sees_the_middle_of_frames_resized_without_antialiasing(
    size: tuple[int, int], inner: tuple[int, int]
) -> None:
    frames = noise(2, *size)
    pictures = torch.from_numpy(frames).movedim(-1, 1).float()
    scaled = F.interpolate(pictures, inner, mode="bicubic").clamp(0, 255).round()
    top, left = (inner[0] - 24) // 2, (inner[1] - 24) // 2
    square = scaled[..., top : top + 24, left : left + 24] / 255
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in prepare.CLIP)
    assert torch.allclose(prepare.for_clip(frames, 24), (square - mean) / spread, atol=1e-5)


def test_the_short_side_is_exact_and_the_middle_is_the_middle() -> None:
    assert prepare.with_short_side(noise(1, 480, 832), 224) == (224, 388)
    assert prepare.with_short_side(noise(1, 768, 480), 224) == (358, 224)
    assert prepare.middle(torch.arange(7)[None] * torch.ones(3, 1), 3).tolist() == [[2, 3, 4]] * 3


def test_dinov2_sees_three_by_two_videos_whole() -> None:
    assert prepare.in_steps(noise(1, 480, 720), 224, 14) == (224, 336)
    assert prepare.in_steps(noise(1, 832, 480), 224, 14) == (392, 224)


@pytest.mark.parametrize("size", [(24, 160), (60, 40), (48, 83)])
def test_pictures_are_those_of_the_stock_processors(size: tuple[int, int]) -> None:
    """They go by way of Pillow, which rounds twice: here and there, one or two of 255 levels differ."""
    frames = noise(1, *size) // 2 + 64
    stock = GroundingDinoImageProcessorPil()(frames[0], return_tensors="pt").pixel_values
    same(prepare.for_grounding_dino(frames), stock, 1 / 255 / 0.225)
    height, width = prepare.in_steps(frames, 56, 14)
    bit = BitImageProcessorPil(size={"height": height, "width": width}, do_center_crop=False)
    mean, spread = prepare.IMAGENET
    stock = bit(frames[0], return_tensors="pt", image_mean=mean, image_std=spread, resample=3).pixel_values
    same(prepare.for_dinov2(frames, height, width), stock, 1 / 255 / 0.225)
    height, width = prepare.in_steps(frames, 480, 32)
    grey = EfficientLoFTRImageProcessorPil(size={"height": height, "width": width})
    stock = grey([frames[0], frames[0]], return_tensors="pt").pixel_values[0, :1, :1]
    same(prepare.for_loftr(frames), stock, 1 / 255)


def same(ours: Tensor, theirs: Tensor, level: float) -> None:
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs() / level
    assert difference.max() < 2.1 and difference.mean() < 0.3


# Models that are there, and models that are not


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, as it is published: words and pictures."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 12},
        projection_dim=12,
    )
    torch.manual_seed(0)  # `randomised` leaves the class embedding as it was made
    return saved(randomised(CLIPModel(config)), tmp_path_factory, "clip")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(randomised(Dinov2Model(dinov2_config())), tmp_path_factory, "dinov2")


@pytest.fixture(scope="module")
def blind_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 whose features depend on their own patch alone: no positions, and blocks that add nothing."""
    model = randomised(Dinov2Model(dinov2_config(layerscale_value=0.0)))
    nn.init.zeros_(model.embeddings.position_embeddings)
    return saved(model, tmp_path_factory, "blind")


def dinov2_config(**options: Any) -> Dinov2Config:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1}
    return Dinov2Config(**sizes, image_size=56, patch_size=14, **options)


def saved(model: Any, factory: pytest.TempPathFactory, name: str) -> Path:
    folder = factory.mktemp(name)
    model.save_pretrained(folder)
    return folder


def test_a_loaded_model_is_the_saved_one(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures = torch.randn(2, 3, 32, 32)
    whole = CLIPModel.from_pretrained(clip).eval()
    capfd.readouterr()
    model = load(CLIP, str(clip))
    assert capfd.readouterr() == ("", ""), "that the words were left out is nobody's concern"
    assert isinstance(model, CLIPVisionModelWithProjection) and not model.training
    expected = whole.get_image_features(pictures).pooler_output
    assert torch.equal(model(pictures).image_embeds, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_of_half_precision_are_widened(dinov2: Path, tmp_path: Path) -> None:
    Dinov2Model.from_pretrained(dinov2).half().save_pretrained(tmp_path)
    assert load(DINOV2, str(tmp_path)).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "fetch"),
    [
        ("facebook/dinov2-small", "facebook/dinov2-small"),  # an id, but not in the cache
        ("somewhere/dinov2", "facebook/dinov2-base"),
        ("../a/b/c", "facebook/dinov2-base"),
        ("", "facebook/dinov2-base"),
    ],
)
def test_an_absent_model_is_told(name: str, fetch: str) -> None:
    for read in (load, load_tokenizer):
        with pytest.raises(WeightsError) as told:
            read(DINOV2, name)
        assert f"There is no DINOv2 {name!r}" in str(told.value) and "the cache /" in str(told.value)
        assert str(told.value).endswith(f"hf download {fetch}")


def test_a_folder_without_a_model_is_told(tmp_path: Path, dinov2: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no SAM 2 that can be read .* hf download facebook/sam2.1"):
        load(SEGMENTER, str(tmp_path))
    (tmp_path / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(WeightsError, match="holds no DINOv2 that can be read"):
        load(DINOV2, str(tmp_path))
    with pytest.raises(WeightsError, match="holds no Grounding DINO that can be read"):
        load_tokenizer(DETECTOR, str(tmp_path))


def test_a_pickled_model_that_runs_code_stays_shut(tmp_path: Path, dinov2: Path) -> None:
    class Mischief:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "mischief",)

    (tmp_path / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    torch.save({"cls_token": Mischief()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds no DINOv2 that can be read"):
        load(DINOV2, str(tmp_path))
    assert not (tmp_path / "mischief").exists()


def test_a_model_of_another_kind_is_told(clip: Path) -> None:
    with pytest.raises(WeightsError, match="is a model of the kind clip, and DINOv2 is wanted"):
        load(DINOV2, str(clip))


def test_a_model_with_a_hole_is_told(tmp_path: Path, dinov2: Path) -> None:
    """transformers fills it with random numbers, and says so in a table that scrolls by."""
    tensors = load_file(dinov2 / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    with pytest.raises(WeightsError, match=r"lacks 1 of the tensors of DINOv2, such as layernorm\.weight"):
        load(DINOV2, str(tmp_path))


def test_licences_are_told_by_id_and_by_file() -> None:
    assert licence("facebook/dinov2-base") == "facebook/dinov2-base: Apache-2.0"
    assert licence("/my/heads/sa_0_4_vit_l_14_linear.pth").endswith("MIT (LAION aesthetic predictor v1)")
    assert "not one of those bachvid knows" in licence("/my/dinov2-base")


def test_ids_in_the_cache_need_no_network_and_no_image_library(
    tmp_path: Path, dinov2: Path, detector: Path
) -> None:
    """In a Python that has no torchvision, Pillow or matplotlib, and counts what reaches out of it.

    The libraries' own `local_files_only` does ask the hub something, once in a process.
    """
    for name, folder in (("facebook--dinov2-base", dinov2), ("IDEA-Research--grounding-dino-base", detector)):
        cached = tmp_path / f"models--{name}"
        (cached / "snapshots").mkdir(parents=True)
        (cached / "snapshots" / "0123456789abcdef").symlink_to(folder)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0123456789abcdef")
    script = """
import socket, sys
sys.modules |= dict.fromkeys(["torchvision", "PIL", "matplotlib"])  # None: importing them fails
reached = []
def refuse(*args):
    reached.append(args)
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = refuse
import numpy as np
from bachvid.calibrate import aesthetic, features, prepare, pretrained, segment, vision
from bachvid.calibrate.features import likeness
features, frames = features.Dinov2(), np.zeros((2, 28, 42, 3), np.uint8)
pretrained.load_tokenizer(pretrained.DETECTOR, pretrained.DETECTOR.usual)
try:
    pretrained.load(pretrained.SEGMENTER, pretrained.SEGMENTER.usual)
except pretrained.WeightsError:
    print(features.about, round(likeness(features.classes(frames), features.classes(frames)), 4), reached)
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "DINOv2 (facebook/dinov2-base at 01234567) 1.0 []\n", done.stderr


# Finding the character


@pytest.mark.parametrize(
    ("character", "phrase"),
    [
        ("An old fisherman with a hat,", "old fisherman."),
        ("the tall red-haired woman in a coat", "tall red-haired woman."),
        ("A corgi", "corgi."),
        ("Lily, a small girl with red hair,", "small girl."),
        ("Captain Ross, an astronaut in white,", "astronaut."),
        ("A Corgi, a hat on its head,", "corgi."),
        ("a king wearing a crown", "king."),
        ("She is a man's dog, brown.", "man's dog."),
        ("a man of forty who waves", "man of forty."),
        ("...", "person."),
        ("", "person."),
    ],
)
def test_the_detector_is_asked_for_the_noun(character: str, phrase: str) -> None:
    assert head_phrase(character) == phrase


def test_frames_are_spread_evenly() -> None:
    assert evenly(49, 5) == [0, 12, 24, 36, 48]
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(1, 5) == [0]


def chances(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).logit()


def test_the_best_box_is_of_the_words() -> None:
    # the start, two words, the full stop, the end
    rows = [[0.1, 0.6, 0.2, 0.1, 0.1], [0.9, 0.2, 0.2, 0.9, 0.9], [0.1, 0.1, 0.7, 0.1, 0.1]]
    score, query = best_query(chances(*rows)) or (0.0, -1)
    assert (score, query) == (pytest.approx(0.7), 2)
    assert best_query(chances(rows[1])) is None, "it fits only the marks around the words"
    assert best_query(chances([0.29] * 5)) is None
    assert best_query(chances([0.1, 0.2, 0.26, 0.31, 0.1])) == (pytest.approx(0.31), 0)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Grounding DINO; the ids of its marks are BERT's, for its code knows them by number."""
    words = {100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?", 0: "[PAD]"}
    words |= {1000: "old", 1001: "fisherman"}
    folder = tmp_path_factory.mktemp("detector")
    BertTokenizer(vocab={words.get(n, f"[unused{n}]"): n for n in range(1030)}).save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
        ),
        text_config=BertConfig(
            vocab_size=1030, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=10,
    )  # fmt: skip
    torch.manual_seed(0)
    model = randomised(GroundingDinoForObjectDetection(config))
    nn.init.constant_(model.model.decoder.layer_norm.weight, 0.1)  # or every score is 1
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_best_box_of_all_frames_is_found(detector: Path) -> None:
    frames = noise(3, 24, 160, seed=4)  # the best box is in the middle
    found = Detector(str(detector)).find(frames, "old fisherman.")
    model = GroundingDinoForObjectDetection.from_pretrained(detector).eval()
    tokenizer = BertTokenizer.from_pretrained(detector)
    processor = GroundingDinoProcessor(GroundingDinoImageProcessorPil(), tokenizer)
    text = tokenizer("old fisherman.", return_tensors="pt")
    assert text.input_ids.tolist() == [[101, 1000, 1001, 1012, 102]]
    boxes = []
    for t in range(3):
        outputs = model(pixel_values=prepare.for_grounding_dino(frames[t : t + 1]), **text)
        (stock,) = processor.post_process_grounded_object_detection(
            outputs, text.input_ids, 0.30, 0.25, [(24, 160)]
        )
        found_here = stock["scores"].tolist(), stock["boxes"].tolist(), stock["text_labels"]
        boxes += [(score, t, *rest) for score, *rest in zip(*found_here, strict=True)]
    boxes = [box for box in boxes if {"old", "fisherman"} & set(box[3].split())]
    assert len({t for _, t, _, _ in boxes}) == 3, "every frame takes part"
    score, frame, corners, _ = max(boxes, key=lambda box: box[0])
    assert found and (found.score, found.frame) == (pytest.approx(score), frame)
    inside = torch.tensor(corners).clamp(min=torch.zeros(4), max=torch.tensor([160.0, 24, 160, 24]))
    assert torch.allclose(found.corners, inside, atol=1e-3)


SIDE = 64  # of the squares that the tiny SAM 2 sees


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = {
        "hidden_size": 8, "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3], "image_size": [SIDE, SIDE],
        "window_size_per_stage": [4, 4, 4, 4],
    }  # fmt: skip
    config = Sam2VideoConfig(
        vision_config={
            "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone},
            "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 128,
            "backbone_feature_sizes": [[SIDE // n, SIDE // n] for n in (4, 8, 16)],
            "model_type": "sam2_vision_model",
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": SIDE},
        mask_decoder_config={
            "hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
        },
        image_size=SIDE, memory_attention_hidden_size=128, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32, memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64, mask_downsampler_embed_dim=128, memory_fuser_num_layers=1,
        memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=32,
        memory_attention_rope_feat_sizes=[SIDE // 16, SIDE // 16],
    )  # fmt: skip
    torch.manual_seed(0)
    model = randomised(Sam2VideoModel(config))
    nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 20.0)  # it is there
    return saved(model, tmp_path_factory, "segmenter")


def test_a_thing_is_followed_to_both_ends(segmenter: Path) -> None:
    """As the stock processor would have it, of which the parts that need torchvision are left out."""
    frames, corners, key = noise(5, 40, 60), [10.0, 5.0, 50.0, 35.0], 2
    mask = Tracker(str(segmenter)).follow(frames, Box(0.9, key, torch.tensor(corners)))
    model = Sam2VideoModel.from_pretrained(segmenter).eval()
    video = (prepare.resized(frames, SIDE, SIDE, "bilinear", antialias=True) / 255).movedim(1, -1)
    video = ((video - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).movedim(
        -1, 1
    )
    session = Sam2VideoInferenceSession(video, 40, 60, dtype=torch.float32)
    processor = object.__new__(Sam2VideoProcessor)
    processor.target_size, processor.point_pad_value = SIDE, -10
    processor.add_inputs_to_inference_session(session, key, 1, input_boxes=[[corners]])
    model(session, frame_idx=key)
    seen = [*model.propagate_in_video_iterator(session, start_frame_idx=key)]
    seen += model.propagate_in_video_iterator(session, start_frame_idx=key, reverse=True)
    assert {each.frame_idx for each in seen} == set(range(5))
    expected = torch.zeros(5, 40, 60).bool()
    for each in seen:
        logits = F.interpolate(each.pred_masks, (40, 60), mode="bilinear", align_corners=False)
        expected[each.frame_idx] = logits[0, 0] > 0
    shares = expected.flatten(1).float().mean(1)
    assert (shares > 0.02).all() and (shares < 0.98).all() and len(shares.unique()) == 5, "a test that sees"
    assert torch.equal(mask, expected)


def test_a_character_that_is_not_found_has_an_empty_mask(
    detector: Path, segmenter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masker, frames = GroundedSam(str(detector), str(segmenter)), noise(2, 24, 160)
    assert masker("0-0", frames, PARTS.character).any()
    monkeypatch.setattr(segment, "BOX_SCORE", 1.0)
    mask = masker("0-0", frames, PARTS.character)
    assert mask.shape == (2, 24, 160) and mask.dtype == torch.bool and not mask.any()
    assert str(detector) in masker.about and str(segmenter) in masker.about


# Masks of the user's own


def drawn(frames: int = 12, height: int = 32, width: int = 48) -> Tensor:
    """A block that moves from left to right."""
    mask = torch.zeros(frames, height, width).bool()
    for t in range(frames):
        mask[t, 8:24, 2 * t : 2 * t + 16] = True
    return mask


def painted(mask: Tensor) -> Frames:
    return np.repeat(mask.numpy()[..., None], 3, axis=-1).astype(np.uint8) * 255


def test_masks_are_read_from_a_video_and_from_pictures(tmp_path: Path) -> None:
    mask = drawn()
    masker = MaskFolder(tmp_path)
    write_video(tmp_path / "0-1.mp4", painted(mask), 8, min_height=0)
    assert (masker("0-1", noise(12, 32, 48), "") == mask).float().mean() > 0.999, "edges may bleed"
    for kind in (".png", ".jpg"):
        folder = tmp_path / f"0-2{kind[1:]}"
        folder.mkdir()
        (folder / "notes.txt").write_text("no picture")
        for t, picture in enumerate(painted(mask)):  # 10 comes after 9, not after 1
            write_image(folder / f"frame {t}{kind}", picture)
        found = masker(folder.name, noise(12, 32, 48), "")
        assert found.dtype == torch.bool and (found == mask).float().mean() > 0.999


def test_mistakes_in_a_mask_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no folder .*none with masks"):
        MaskFolder(tmp_path / "none")
    masker = MaskFolder(tmp_path)
    frames = noise(12, 32, 48)
    with pytest.raises(UsageError, match=r"has no masks for video 0-1: neither 0-1.mp4 nor a folder 0-1"):
        masker("0-1", frames, "")
    write_video(tmp_path / "0-1.mp4", painted(drawn(frames=11)), 8, min_height=0)
    with pytest.raises(UsageError, match="has 11 masks of 48x32, and the video has 12 of 48x32 pixels"):
        masker("0-1", frames, "")
    write_video(tmp_path / "0-2.mp4", painted(drawn(width=64)), 8, min_height=0)
    with pytest.raises(UsageError, match=r"0-2.mp4 has 12 masks of 64x32, and the video has 12 of 48x32"):
        masker("0-2", frames, "")
    (tmp_path / "0-3.mp4").write_bytes(b"no video")
    with pytest.raises(UsageError, match=r"0-3.mp4 cannot be read as a video or picture"):
        masker("0-3", frames, "")


@pytest.mark.parametrize("name", ["../secret", "a/b", "..", "", "/etc/x", "a\\b", "0-1\n", "-rf"])
def test_no_name_leads_out_of_the_mask_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "masks").mkdir()
    write_video(tmp_path / "secret.mp4", painted(drawn()), 8, min_height=0)
    with pytest.raises(UsageError, match="There are no masks for a video called"):
        MaskFolder(tmp_path / "masks")(name, noise(12, 32, 48), "")


# Finding places again


def directions(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, 24, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_shifted_features_have_the_shifted_partners() -> None:
    grid = Grid(3, 5, 7)
    here = directions(grid.tokens)
    moved = torch.arange(grid.tokens).view(grid).roll((2, 3), dims=(1, 2)).flatten()
    there = here[moved]  # token n there is token moved[n] here
    every = torch.ones(grid.tokens).bool()
    found = mutual_partners(here, there, every, every, grid, quantile=0, least=0)
    own = grid.places()[:, 0]  # elsewhere features are not the same, and nearest ones mean nothing
    assert torch.equal(moved[found[torch.arange(grid.tokens), own]], torch.arange(grid.tokens))
    size = grid.height * grid.width
    assert all((found[:, t] < 0).logical_or(found[:, t] // size == t).all() for t in range(3))
    sure = mutual_partners(here, there, every, every, grid, quantile=2 / 3, least=0)
    assert torch.equal((sure >= 0).nonzero(), torch.stack([torch.arange(grid.tokens), own], dim=1))


def test_partners_lie_within_both_masks() -> None:
    grid = Grid(1, 4, 6)
    here = directions(grid.tokens)
    shown, shown_there = torch.arange(24) < 18, torch.arange(24) >= 6
    found = mutual_partners(here, here, shown, shown_there, grid, quantile=0, least=0)[:, 0]
    both = shown & shown_there
    assert torch.equal(found[both], torch.arange(24)[both])
    assert (found[~shown] == -1).all() and shown_there[found[found >= 0]].all()
    assert (mutual_partners(here, here, shown, ~shown & shown, grid) == -1).all()


@pytest.mark.parametrize(("apart", "known"), [(1, True), (2, False), (6, True), (7, False)])
def test_the_way_back_may_miss_by_one_token(apart: int, known: bool) -> None:
    """Tokens 8 and 8 + apart of a 4x6 frame look for the same one there, which is nearer to the second."""
    grid = Grid(1, 4, 6)
    one, other = directions(2)
    here = torch.zeros(24, 24)
    here[8], here[8 + apart] = F.normalize(one + 0.1 * other, dim=0), one
    shown = torch.zeros(24).bool()
    shown[[8, 8 + apart]] = True
    goal = torch.arange(24) == 20
    found = mutual_partners(here, one.repeat(24, 1), shown, goal, grid, quantile=0, least=0)[:, 0]
    assert found[8 + apart] == 20
    assert found[8] == (20 if known else -1)


def test_frames_with_few_points_are_not_known() -> None:
    grid = Grid(2, 2, 3)
    partners = torch.full((12, 2), -1)
    partners[:3, 0] = 1  # three points of the first frame in the first, two of the second in the second
    partners[6:8, 1] = 7
    assert torch.equal(known_well(partners, grid, least=2), partners)
    assert (known_well(partners, grid, least=3) >= 0).nonzero().tolist() == [[0, 0], [1, 0], [2, 0]]


def test_later_latent_frames_stand_for_groups() -> None:
    values = torch.arange(9.0)[:, None]
    assert by_latent_frame(values, 3)[:, 0].tolist() == [0, 2.5, 6.5]
    assert by_latent_frame(values[:1], 1)[:, 0].tolist() == [0]
    frames = noise(9, 2, 2)
    assert (middle_frames(frames, 3) == frames[[0, 3, 7]]).all()
    assert (middle_frames(frames[:1], 1) == frames[:1]).all()


GRID = Grid(2, 8, 12)  # of videos of 5 frames of 128x192: tokens of 16 pixels


def crossed() -> tuple[Frames, Frames, Tensor]:
    """Two videos, the second moved down and right; where each shows in its first frame what the other does
    later. And the true partners."""
    first, later = noise(1, 128, 192, seed=1), noise(1, 128, 192, seed=2)
    identity = np.roll(np.concatenate([later, *[first] * 4]), (2 * 16, 3 * 16), axis=(1, 2))
    numbers = torch.arange(GRID.tokens).view(2, 8, 12)
    landed = numbers.roll((-2, -3), dims=(1, 2))  # where the picture of each token went
    truth = torch.full((2, 96, 2), -1)
    truth[0, :, 1], truth[1, :, 0] = landed[1].flatten(), landed[0].flatten()
    return np.concatenate([first, *[later] * 4]), identity, truth.flatten(0, 1)


def whole(frames: Frames) -> Tensor:
    return torch.ones(frames.shape[:3]).bool()


def test_dinov2_finds_what_moved(blind_dinov2: Path) -> None:
    frame, identity, truth = crossed()
    matcher = Dinov2(str(blind_dinov2))
    ours, theirs = (Seen(whole(video), matcher.look(video)) for video in (frame, identity))
    assert torch.equal(matcher.partners(ours, theirs, GRID), truth)
    nobody = Seen(torch.zeros_like(ours.mask), None)
    assert (matcher.partners(ours, nobody, GRID) == -1).all()


def test_dinov2_judges_whole_frames(dinov2: Path) -> None:
    features = Dinov2(str(dinov2))
    a, b = noise(10, 32, 48), noise(10, 32, 48, seed=1)
    assert likeness(features.classes(a), features.classes(a)) == pytest.approx(1)
    with torch.no_grad():
        ours, theirs = (
            features.model(prepare.for_dinov2(video, 224, 336)).last_hidden_state[:, 0] for video in (a, b)
        )
    expected = (F.normalize(ours) * F.normalize(theirs)).sum(1).mean().item()
    assert likeness(features.classes(a), features.classes(b)) == pytest.approx(expected, abs=1e-5)
    assert expected < 0.999


def test_sure_pairs_are_each_others_best() -> None:
    similarity = torch.randn(12, 9, generator=torch.Generator().manual_seed(0)) * 3
    sureness = similarity.softmax(0) * similarity.softmax(1)
    expected = {
        (i, j)
        for i, j in product(range(12), range(9))
        if sureness[i, j] == sureness[i].max() == sureness[:, j].max() and sureness[i, j] > 0.2
    }
    rows, columns = sure_pairs(similarity, 0.2)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == expected and len(expected) > 2
    assert sureness[rows, columns].diff().min() >= 0, "the surest last"


def test_cells_lie_in_their_tokens() -> None:
    token, inner = cells(8, 12, Grid(5, 4, 6), edge=1)
    assert token.view(8, 12)[::2, ::2].flatten().tolist() == list(range(24))
    assert torch.equal(token.view(8, 12)[1::2, 1::2], token.view(8, 12)[::2, ::2])
    assert inner.sum() == 6 * 10 and not inner.view(8, 12)[0].any()
    assert cells(3, 3, Grid(1, 2, 2), edge=0)[0].tolist() == [0, 1, 1, 2, 3, 3, 2, 3, 3]


@pytest.fixture(scope="module")
def loftr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EfficientLoFTR whose cells tell each other apart: its norms know noise, attention is mute."""
    config = EfficientLoFTRConfig(
        stage_num_blocks=[1, 1, 1, 1], out_features=[16, 32, 64, 256], num_attention_layers=1
    )
    model = randomised(EfficientLoFTRForKeypointMatching(config), scale=1.4)
    for name, parameter in model.named_parameters():
        if ".mlp." in name:
            nn.init.zeros_(parameter)
    norms = {name: each for name, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)}
    for norm in norms.values():
        norm.momentum = 1.0
    with torch.no_grad():
        model.efficientloftr.train()(
            torch.rand(1, 2, 1, 160, 160, generator=torch.Generator().manual_seed(0))
        )
    for name, norm in norms.items():
        if "stages.3" in name:
            nn.init.constant_(norm.weight, 3.0)
    return saved(model.eval(), tmp_path_factory, "loftr")


def test_loftr_finds_what_moved(loftr: Path) -> None:
    grid = Grid(2, 30, 30)
    frame, other = (noise(2, 480, 480, seed)[..., :1].repeat(3, axis=-1) for seed in (0, 1))
    other[1] = np.roll(frame[1], (2 * 16, 3 * 16), axis=(0, 1))
    matcher = EfficientLoFTR(str(loftr))
    mask = whole(frame)
    mask[0] = mask[:, :, :240] = False
    ours, theirs = (
        Seen(where, matcher.look(video)) for where, video in ((mask, frame), (whole(other), other))
    )
    found = matcher.partners(ours, theirs, grid).view(2, 30, 30, 2)
    assert (found[0] == -1).all() and (found[:, :, :15] == -1).all(), "outside of the mask"
    assert (found[..., 0] == -1).all(), "two frames that show nothing in common"
    assert (found[:, 0] == -1).all(), "cells at the edge have no partners"
    inner = found[1, 2:26, 15:25, 1]  # off the edges of both pictures
    right = inner == 900 + torch.arange(900).view(30, 30)[4:28, 18:28]
    assert (right | (inner == -1)).float().mean() > 0.95 and right.float().mean() > 0.7


@torch.no_grad()
def test_loftr_is_the_coarse_stage_of_the_whole_model(loftr: Path) -> None:
    pictures = torch.rand(2, 1, 160, 160, generator=torch.Generator().manual_seed(1))
    pictures[1, :, :80], pictures[1, :, 80:] = pictures[0, :, 64:144], pictures[0, :, :80].roll(24, dims=-1)
    model = EfficientLoFTRForKeypointMatching.from_pretrained(loftr).eval()
    row = model(pictures[None]).matches[0, 0]  # of the first picture, for every cell of the second
    expected = {(i, j) for j, i in enumerate(row.tolist()) if i >= 0}
    found = EfficientLoFTR(str(loftr))._pairs(*pictures, Grid(1, 20, 20))  # a token for every cell
    assert set(zip(*(tokens.tolist() for tokens in found), strict=True)) == expected
    assert len(expected) > 100 and len({i - j for i, j in expected}) > 1


def test_a_part_of_a_checkpoint_is_that_part(loftr: Path) -> None:
    stored = load_file(loftr / "model.safetensors")
    found = load(LOFTR, str(loftr)).state_dict()
    assert all(torch.equal(stored[f"efficientloftr.{name}"], value) for name, value in found.items())


# Rating


def heads(folder: Path, width: int = 12) -> tuple[Path, Path, nn.Sequential]:
    """Files of both versions, as they were published, and the second one's layers."""
    torch.manual_seed(0)
    first = nn.Linear(width, 1)
    second = nn.Sequential(
        nn.Linear(width, 20), nn.Dropout(), nn.Linear(20, 10), nn.Dropout(), nn.Linear(10, 6), nn.Dropout(),
        nn.Linear(6, 4), nn.Linear(4, 1),
    ).eval()  # fmt: skip
    torch.save(first.state_dict(), folder / "v1.pth")
    torch.save({f"layers.{name}": value for name, value in second.state_dict().items()}, folder / "v2.pth")
    save_file(first.state_dict(), folder / "v1.safetensors")
    return folder / "v1.pth", folder / "v2.pth", second


def test_the_second_head_collapses_to_one_map(tmp_path: Path) -> None:
    one, two, layers = heads(tmp_path)
    features = torch.randn(50, 12)
    weight, bias = read_head(two)
    assert torch.allclose(features.double() @ weight + bias, layers(features)[:, 0].double(), atol=1e-6)
    again = read_head(tmp_path / "v1.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(read_head(one), again, strict=True))


def test_layers_are_sorted_by_number(tmp_path: Path) -> None:
    """The layers 0, 2 and 10 in the order of letters would be 0, 10, 2."""
    layers = {0: nn.Linear(4, 4), 2: nn.Linear(4, 4), 10: nn.Linear(4, 1)}
    state = {f"layers.{n}.{name}": value for n, layer in layers.items()
             for name, value in layer.state_dict().items()}  # fmt: skip
    torch.save(state, tmp_path / "head.pth")
    features = torch.randn(3, 4)
    weight, bias = read_head(tmp_path / "head.pth")
    expected = layers[10](layers[2](layers[0](features)))[:, 0].double()
    assert torch.allclose(features.double() @ weight + bias, expected, atol=1e-6)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"weight": torch.ones(1, 4)},
        {"weight": torch.ones(2, 4), "bias": torch.ones(2)},
        {"layers.0.weight": torch.ones(3, 4), "layers.0.bias": torch.ones(3),
         "layers.1.weight": torch.ones(1, 4), "layers.1.bias": torch.ones(1)},
    ],
)  # fmt: skip
def test_what_is_no_head_is_told(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match="is no head of LAION's aesthetic predictor"):
        read_head(tmp_path / "head.pth")


def test_a_missing_head_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no aesthetic head .* sa_0_4_vit_l_14_linear.pth"):
        read_head(tmp_path / "head.pth")


def test_a_video_is_rated_by_all_its_frames(tmp_path: Path, clip: Path) -> None:
    head, *_ = heads(tmp_path)
    frames = noise(10, 40, 60)
    pictures = torch.from_numpy(frames).movedim(-1, 1).float()
    scaled = F.interpolate(pictures, (32, 48), mode="bicubic").clamp(0, 255).round()[..., 8:40]
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in prepare.CLIP)
    with torch.no_grad():
        model = CLIPModel.from_pretrained(clip).eval()
        features = model.get_image_features((scaled / 255 - mean) / spread).pooler_output
    layer = torch.load(head, weights_only=True)
    expected = F.linear(features / features.norm(dim=1, keepdim=True), layer["weight"], layer["bias"])
    assert Aesthetic(head, str(clip))(frames) == pytest.approx(expected.mean().item(), abs=1e-5)
    assert len({round(value, 4) for value in expected[:, 0].tolist()}) == 10, "a test that sees"


def test_a_head_for_another_clip_is_told(tmp_path: Path, clip: Path) -> None:
    head, *_ = heads(tmp_path, width=16)
    with pytest.raises(WeightsError, match=r"rates 16 features, and .* has 12"):
        Aesthetic(head, str(clip))


# All together


def test_truth_joins_a_masker_and_a_matcher(tmp_path: Path, blind_dinov2: Path) -> None:
    frame, identity, truth = crossed()
    for name in ("0-0", "0-1"):
        (tmp_path / name).mkdir()
        mask = whole(frame)
        mask[:, :, :32] = name == "0-0"  # the frame video's character leaves two columns of tokens free
        for t, picture in enumerate(painted(mask)):
            write_image(tmp_path / name / f"{t}.png", picture)
    judge = VisionTruth(MaskFolder(tmp_path), Dinov2(str(blind_dinov2)))
    assert judge.about == f"masks in {tmp_path}; DINOv2 ({blind_dinov2})"
    theirs, ours = judge.see("0-0", identity, PARTS), judge.see("0-1", frame, PARTS)
    found = judge.partners(ours, theirs, GRID).view(2, 8, 12, 2)
    expected = truth.view(2, 8, 12, 2).clone()
    expected[:, :, :2] = -1
    assert torch.equal(found, expected)


def test_scores_join_a_head_and_dinov2(tmp_path: Path, clip: Path, dinov2: Path) -> None:
    aesthetic, features = Aesthetic(heads(tmp_path)[0], str(clip)), Dinov2(str(dinov2))
    judge, frames, other = VisionJudge(aesthetic, features), noise(2, 32, 48), noise(2, 32, 48, seed=1)
    video, twin = judge.judge(frames), judge.judge(other)
    assert video.quality == aesthetic(frames)
    assert judge.likeness(video, twin) == likeness(features.classes(frames), features.classes(other))
    assert judge.about == f"the aesthetic head v1.pth on CLIP ({clip}); DINOv2 ({dinov2})"
