from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tsugiki.data._headers import FORMATS
from tsugiki.data.images import content_key, image_files, image_size, open_image, pixel_key
from tsugiki.errors import ImageError


def _bytes(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _picture(width: int = 30, height: int = 20) -> Image.Image:
    across = np.linspace(0, 255, width, dtype=np.uint8)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, 255 - across], -1))


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_header(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", head) + _png_chunk(b"IDAT", b"x" * 64) + _png_chunk(b"IEND", b"")


def _one_line(error: pytest.ExceptionInfo[ImageError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        open_image(tmp_path / "no.png", where="data.jsonl:3 messages[0].content[0].image")
    _one_line(error, "data.jsonl:3", "no.png", "does not exist", "Correct the path")


def test_folder_and_impossible_names(tmp_path: Path) -> None:
    for bad, words in ((tmp_path, "is a folder"), ("a" * 5000, "can't be read"), ("a\0b", "can't be read")):
        with pytest.raises(ImageError, match=words):
            open_image(bad)


def test_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    for source in (tmp_path / "a.jpg", b""):
        with pytest.raises(ImageError) as error:
            open_image(source)
        _one_line(error, "0 bytes")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated(form: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = _bytes(noise, form)
    with pytest.raises(ImageError) as error:
        open_image(whole[: int(len(whole) * part)], where="here")
    _one_line(error, "here", "leave it out")


def test_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello, I am a text that is longer than sixteen bytes")
    with pytest.raises(ImageError, match="is not a picture"):
        open_image(tmp_path / "a.png")


def test_formats_that_start_programs_are_refused() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="is not a picture"):
        open_image(eps)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(ImageError) as error:
        open_image(_png_header(20_000, 10_000), where="data.jsonl:9")
    _one_line(error, "data.jsonl:9", "20000x10000 = 200.0 megapixels", "at most 100 megapixels", "max_pixels")
    assert image_size(_png_header(20_000, 10_000)) == (20_000, 10_000)  # without a warning


def test_the_limit_is_the_callers() -> None:
    big = Image.new("1", (12_000, 8_000))  # 96 megapixels: Pillow itself would warn
    raw = _bytes(big)
    assert open_image(raw).size == (12_000, 8_000)
    with pytest.raises(ImageError, match="at most 0.0001 megapixels"):
        open_image(_picture(), max_pixels=100)
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None and limit < 12_000 * 8_000


def test_cmyk() -> None:
    image = open_image(_bytes(_picture().convert("CMYK"), "JPEG", quality=95))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - np.asarray(_picture(), int)).mean() < 8


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits(form: str) -> None:
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    image = open_image(_bytes(Image.fromarray(values), form))
    assert image.mode == "RGB"
    for channel in range(3):
        assert np.array_equal(np.asarray(image)[..., channel], values >> 8)


def test_deep_grey() -> None:
    ints = np.arange(600, dtype=np.int32).reshape(20, 30)
    assert np.asarray(open_image(Image.fromarray(ints * 100_000)))[..., 0].max() == 255
    assert np.asarray(open_image(Image.fromarray(ints % 200)))[..., 0].max() == 199
    assert np.asarray(open_image(Image.fromarray(ints * 100)))[19, 29, 0] == 59_900 >> 8
    floats = (ints / 599).astype(np.float32)
    assert np.abs(np.asarray(open_image(Image.fromarray(floats)))[..., 0] - floats * 255).max() <= 1
    assert np.asarray(open_image(Image.fromarray(floats * 0 - 5))).max() == 0


def test_palette_with_and_without_transparency() -> None:
    plain = _picture().quantize(256)
    assert np.abs(np.asarray(open_image(_bytes(plain)), int) - np.asarray(plain.convert("RGB"), int)).max() == 0
    clear = Image.new("P", (4, 4), 1)
    clear.putpalette([0, 0, 0, 255, 0, 0])
    for transparency, colour in ((1, (255, 255, 255)), (bytes([255, 0]), (255, 255, 255)), (0, (255, 0, 0))):
        assert open_image(_bytes(clear, transparency=transparency)).getpixel((0, 0)) == colour


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_put_on_white(mode: str) -> None:
    clear = Image.new(mode, (4, 4), (0, 0) if mode == "LA" else (0, 0, 0, 0))
    assert open_image(_bytes(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_colour_key_of_png() -> None:
    raw = _bytes(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert open_image(raw).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "HSV"])
def test_other_modes(mode: str) -> None:
    assert open_image(_picture().convert(mode)).mode == "RGB"


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated_gives_the_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    raw = _bytes(
        frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    assert open_image(raw).getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(form: str, orientation: int) -> None:
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    upright = _picture()
    stored = upright.transpose(turned[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = _bytes(stored, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    seen = open_image(raw)
    assert seen.size == upright.size == image_size(raw)
    assert np.abs(np.asarray(seen, int) - np.asarray(upright, int)).mean() < 6


def test_exif_after_the_pixels_of_a_png() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = _bytes(_picture())
    late = raw[:-12] + _png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + raw[-12:]
    assert image_size(late) == open_image(late).size == (20, 30)


def test_size_of_a_png_needs_no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _bytes(_picture())
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    assert image_size(raw) == (30, 20)


def test_damaged_exif_is_ignored() -> None:
    raw = _bytes(_picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + b"\x01\x12" * 3)
    assert image_size(raw) == (30, 20)
    assert open_image(raw).size == (30, 20)


def test_open_pictures_are_left_as_they_are() -> None:
    picture = _picture()
    before = picture.tobytes()
    seen = open_image(picture)
    seen.paste("black", (0, 0, 30, 20))
    assert picture.tobytes() == before
    lazy = Image.open(io.BytesIO(_bytes(_picture())))
    assert open_image(lazy).tobytes() == before
    assert lazy.getpixel((0, 0)) == picture.getpixel((0, 0))


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "絵.png"
    path.write_bytes(_bytes(_picture()))
    for _ in range(3):  # a ResourceWarning would be an error
        assert open_image(path).size == image_size(str(path)) == (30, 20)


def test_threads_share_nothing() -> None:
    good, bomb = _bytes(_picture()), _png_header(20_000, 10_000)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(20):
            try:
                assert open_image(good).size == (30, 20)
                with pytest.raises(ImageError):
                    open_image(bomb)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_keys(tmp_path: Path) -> None:
    raw, other = _bytes(_picture()), _bytes(_picture(), compress_level=1)
    (tmp_path / "a.png").write_bytes(raw)
    assert content_key(raw) == content_key(tmp_path / "a.png") == content_key(str(tmp_path / "a.png"))
    assert content_key(raw) != content_key(other)
    assert pixel_key(raw) == pixel_key(other) == content_key(_picture())
    assert pixel_key(raw) != pixel_key(_picture(20, 30))
    with pytest.raises(ImageError, match="does not exist"):
        content_key(tmp_path / "b.png")


def test_image_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/不良.png", ".hidden.png", ".thumbs/a.png", "Thumbs.db", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [p.relative_to(tmp_path).as_posix() for p in image_files(tmp_path)] == ["a/不良.png", "b.JPG"]


def test_formats_are_known_to_pillow() -> None:
    Image.init()
    assert set(FORMATS) - {"HEIF", "AVIF"} <= set(Image.OPEN)
