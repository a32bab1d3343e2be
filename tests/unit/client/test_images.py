"""Pictures in the caller's hands."""

import base64
import builtins
import dataclasses
import io
import re

import PIL.Image
import pytest

from darkroom import BadResponse, GenerateRequest, Generation, Image, Output
from darkroom._fake_pictures import generated


@pytest.fixture
def png(client):
    return client.generate("a fox", seed=7).image


def relabelled(image, media_type):
    return dataclasses.replace(image, media_type=media_type)


def test_a_saved_file_holds_the_bytes_of_the_service(png, tmp_path):
    path = png.save(tmp_path / "fox.png")
    assert path == tmp_path / "fox.png"
    assert path.read_bytes() == png.data


@pytest.mark.parametrize(
    ("media_type", "suffix"),
    [("image/png", ".png"), ("image/jpeg", ".jpg"), ("image/webp", ".webp"), ("image/avif", ".avif")],
)
def test_a_path_without_a_suffix_gets_the_right_one(png, tmp_path, media_type, suffix):
    assert relabelled(png, media_type).save(str(tmp_path / "fox")) == tmp_path / f"fox{suffix}"


@pytest.mark.parametrize(("media_type", "name"), [("image/png", "FOX.PNG"), ("image/jpeg", "fox.jpeg")])
def test_every_spelling_of_the_right_suffix_is_kept(png, tmp_path, media_type, name):
    assert relabelled(png, media_type).save(tmp_path / name).name == name


@pytest.mark.parametrize("name", ["fox.jpg", "fox.txt", "fox-1.5"])
def test_a_picture_is_never_saved_under_a_wrong_suffix(png, tmp_path, name):
    with pytest.raises(
        ValueError, match=f"'{name}' would mislabel an image/png file; end the name in .png, or ask"
    ):
        png.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_a_file_name(png, tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        png.save(tmp_path)


def test_pillow_sees_the_same_picture(png):
    picture = png.pil()
    assert (picture.format, picture.size, picture.mode) == ("PNG", (64, 64), "RGB")


def test_without_pillow_the_error_says_what_to_install(png, monkeypatch):
    real = builtins.__import__

    def without_pillow(name, *rest, **more):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(ImportError, match=re.escape("pip install 'darkroom-client[images]'")):
        png.pil()


def test_a_notebook_shows_each_format_by_its_own_hook(client):
    png, jpeg, webp = (
        client.generate("a fox", seed=7, output=Output(format=name)).image for name in ("png", "jpeg", "webp")
    )
    assert (png._repr_png_(), png._repr_jpeg_()) == (png.data, None)
    assert (jpeg._repr_png_(), jpeg._repr_jpeg_()) == (None, jpeg.data)
    assert (webp._repr_png_(), webp._repr_jpeg_()) == (None, None)
    shown = webp._repr_mimebundle_(include=None, exclude=None)
    assert base64.b64decode(shown["image/webp"]) == webp.data
    assert PIL.Image.open(io.BytesIO(webp.data)).format == "WEBP"


def test_a_generation_in_a_notebook_shows_all_its_pictures_and_no_markup_of_the_prompt(client):
    page = client.generate('<script>"', seed=7, num_images=2)._repr_html_()
    assert page.count("<img ") == 2
    assert "seed 7" in page
    assert "seed 8" in page
    assert "<script>" not in page
    assert 'alt="&lt;script&gt;&quot;"' in page


def test_a_generation_is_a_sequence_of_its_pictures(client):
    generation = client.generate("a fox", seed=7, num_images=3)
    assert len(generation) == 3
    assert list(generation) == [*generation.images]
    assert [image.seed for image in generation[1:]] == [8, 9]
    assert generation[-1] in generation
    assert repr(generation) == "<Generation fake-1 of fake: 3 images in 0.0 s>"


def test_the_only_picture_is_called_image_and_several_are_not(client):
    assert isinstance(client.generate("a fox").image, Image)
    with pytest.raises(ValueError, match=r"this generation has 2 pictures; choose one: generation\[0\]"):
        _ = client.generate("a fox", num_images=2).image


def test_the_name_of_a_picture_in_a_prompt_is_short(png):
    assert repr(png) == f"<Image 64×64 image/png, {len(png.data) / 1000:.1f} kB, seed 7>"
    assert repr(dataclasses.replace(png, data=bytes(1_300_000))) == "<Image 64×64 image/png, 1.3 MB, seed 7>"


def test_a_picture_that_is_not_base64_is_a_bad_response():
    answer = generated(GenerateRequest(prompt="a fox"), 1)
    broken = answer.model_copy(update={"images": [answer.images[0].model_copy(update={"b64": "no!"})]})
    with pytest.raises(BadResponse, match="image 0 is not valid base64"):
        Generation.from_response(broken)
