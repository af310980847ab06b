"""Image files for tests, of one colour each."""

import io

from PIL import Image


def save(path, colour, size=(8, 8), mode="RGB", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **more)


def grey(level):
    return (level, level, level)


def encoded(image, kind="png", **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def levels(data):
    return sorted(data.images[:, 0, 0, 0].tolist())
