"""How one image file becomes bytes: colours, transparency, ranges of values, orientation, size."""

import struct
import threading

import numpy as np
import pytest
from pictures import encoded
from PIL import Image

from gancli.datasets import decoding
from gancli.datasets.decoding import GUESSED, NOT_FINITE, SEVERAL, SMALL, Decoding
from gancli.datasets.memory_budget import MemoryBudget


def test_colour_is_converted_to_grey_by_luminance():
    array = Decoding(2, 2, 1, "crop")(encoded(Image.new("RGB", (2, 2), (255, 0, 0))))
    assert array.shape == (1, 2, 2) and set(array.ravel().tolist()) == {76}  # ITU-R 601: 0.299 of 255


def test_channels_are_red_green_blue():
    array = Decoding(2, 2, 3, "crop")(encoded(Image.new("RGB", (2, 2), (10, 20, 30))))
    assert array[:, 1, 1].tolist() == [10, 20, 30] and array.dtype == np.uint8


@pytest.mark.parametrize(
    ("image", "more", "expected"),
    [
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), {}, [255, 255, 255]),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 128)), {}, [255, 127, 127]),
        (Image.new("LA", (2, 2), (0, 0)), {}, [255, 255, 255]),
        (Image.new("P", (2, 2), 0), {"transparency": 0}, [255, 255, 255]),
        (Image.new("1", (2, 2), 1), {}, [255, 255, 255]),
    ],
    ids=["clear", "half", "LA", "palette", "bits"],
)
def test_transparency_is_put_over_white(image, more, expected):
    array = Decoding(2, 2, 3, "crop")(encoded(image, **more))
    assert array[:, 0, 0].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_sixteen_bits_are_scaled_to_eight(level):
    sixteen = np.full((4, 4), level * 257, dtype=np.uint16)
    array = Decoding(4, 4, 3, "crop")(encoded(Image.fromarray(sixteen)))
    assert np.unique(array).tolist() == [level]


def test_dark_images_of_sixteen_bits_stay_dark():
    dark = np.full((4, 4), 200, dtype=np.uint16)  # 200 of 65535 is black, not light grey
    assert Decoding(4, 4, 1, "crop")(encoded(Image.fromarray(dark))).max() <= 1


def test_a_transparent_value_of_sixteen_bits_is_put_over_white():
    values = np.array([[0, 300], [40_000, 65_535]], dtype=np.uint16)
    array = Decoding(2, 2, 1, "crop")(encoded(Image.fromarray(values), transparency=300))
    assert array[0].tolist() == [[0, 255], [156, 255]]


def test_the_rotation_in_exif_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.paste((255, 255, 255), (0, 0, 1, 2))  # the left column
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter clockwise: left becomes top
    array = Decoding(4, 2, 3, "stretch")(encoded(image, exif=exif))
    assert array[0].tolist() == [[255, 255], [0, 0], [0, 0], [0, 0]]
    for kind in ("png", "jpeg", "tiff", "webp"):
        assert decoding.size_of(encoded(image, kind, exif=exif)) == (2, 4) and decoding.size_of(
            encoded(image, kind)
        ) == (4, 2)


def test_crop_cuts_the_sides_off_and_stretch_keeps_them():
    wide = Image.new("RGB", (24, 8), (255, 0, 0))
    wide.paste((0, 0, 255), (8, 0, 16, 8))  # red, blue, red
    crop, stretch = (Decoding(8, 8, 3, fit)(encoded(wide)) for fit in ("crop", "stretch"))
    assert (crop[0] == 0).all() and (crop[2] == 255).all()
    assert stretch[0, 4, 0] > 200 and stretch[2, 4, 0] < 60
    assert stretch[2, 4, 4] > 200


@pytest.mark.parametrize(
    ("size", "remarks"), [((5, 5), [SMALL]), ((6, 5), []), ((5, 6), []), ((8, 8), []), ((40, 5), [])]
)
def test_what_is_much_enlarged_is_remarked(size, remarks):
    assert Decoding(8, 8, 3, "crop").with_remarks(encoded(Image.new("RGB", size)))[1] == remarks


RAMP = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)


def decoded(values, **more):
    return Decoding(8, 8, 1, "crop", **more).with_remarks(encoded(Image.fromarray(values), "tiff"))


@pytest.mark.parametrize(
    ("values", "guessed"),
    [
        (RAMP, True),
        (RAMP * 255, True),
        (RAMP * 2 - 1, True),
        (RAMP * 1e9, True),
        ((RAMP * 255).astype(np.int32), True),
        ((RAMP * 65535).astype(np.int32), True),
        ((RAMP * 65535).astype(np.uint16), False),
    ],
    ids=["0 to 1", "0 to 255", "-1 to 1", "wide", "bytes in 32 bits", "16 in 32 bits", "16 bits"],
)
def test_values_from_black_to_white_become_bytes_from_black_to_white(values, guessed):
    array, remarks = decoded(values)
    assert (array.min(), array.max()) == (0, 255) and np.abs(array[0].astype(int) - RAMP * 255).max() <= 1
    assert remarks == ([GUESSED] if guessed else [])


def test_white_may_be_set():
    array, remarks = decoded((RAMP * 4095).astype(np.uint16), white=4095)
    assert array.max() == 255 and remarks == []
    assert decoded(RAMP, white=2.0)[0].max() == 128


def test_a_tiff_of_twelve_bits_is_read_by_its_own_bits():
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + b"\xff\xf0\x00"
    assert Decoding(1, 2, 1, "crop")(content).ravel().tolist() == [255, 0]


def test_values_that_are_no_numbers_are_dark():
    array, remarks = decoded(np.where(RAMP > 0.9, np.nan, RAMP).astype(np.float32))
    assert array[0, -1, -1] == 0 and array.max() == 227 and remarks == [NOT_FINITE, GUESSED]
    with pytest.raises(Exception, match="without any finite value"):
        decoded(np.full((8, 8), np.nan, dtype=np.float32))


def test_an_odd_tag_of_exif_costs_neither_the_picture_nor_its_orientation():
    entries = [(0x100, 2, 4, b"abc\0"), (0x112, 3, 1, struct.pack("<HH", 6, 0))]  # the width as text; a quarter turn
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + body + bytes(4)
    image = Image.new("L", (32, 16), 0)
    image.paste(255, (0, 0, 16, 16))  # the left half, which becomes the upper one
    array = Decoding(32, 16, 1, "crop")(encoded(image, "jpeg", exif=exif))
    assert array[0, 0].min() > 200 and array[0, -1].max() < 50


@pytest.mark.filterwarnings("ignore")  # of Pillow, which no command shows
def test_a_damaged_exif_costs_nothing_but_itself():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    rng, whole = np.random.default_rng(0), exif.tobytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for at in rng.integers(14, len(whole), 4):
            damaged[at] = rng.integers(256)
        content = encoded(Image.new("L", (32, 16)), "jpeg", exif=bytes(damaged))
        assert Decoding(16, 16, 1, "crop")(content).shape == (1, 16, 16)


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff", "png"])
def test_the_first_of_several_frames_is_taken(kind):
    frames = [Image.new("L", (4, 4), level) for level in (200, 0)]
    array, remarks = Decoding(4, 4, 1, "crop").with_remarks(
        encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    )
    assert array.min() > 190 and remarks == [SEVERAL]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV"])
def test_images_of_every_mode_are_read(mode):
    kind = "png" if mode in ("LA", "P", "RGBA") else "tiff" if mode != "HSV" else "png"
    image = Image.new("RGB", (4, 4), "white").convert("L").convert(mode) if mode in ("I;16", "I", "F") else None
    image = image or Image.new("RGB", (4, 4), "white").convert(mode)
    content = encoded(image.convert("RGB") if mode == "HSV" else image, kind)
    assert Decoding(4, 4, 3, "crop")(content).shape == (3, 4, 4)


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    content, budget = encoded(Image.new("L", (100, 100))), MemoryBudget(100 * 100 * 8)
    at_once, most = [], []
    upright = decoding._upright

    def watched(image):
        at_once.append(1)
        most.append(len(at_once))
        threading.Event().wait(0.01)
        at_once.pop()
        return upright(image)

    monkeypatch.setattr(decoding, "PIXELS", budget)
    monkeypatch.setattr(decoding, "_upright", watched)
    threads = [threading.Thread(target=Decoding(8, 8, 1, "crop"), args=(content,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1] and budget.taken == 0
