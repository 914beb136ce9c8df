"""Uploading, finding again, listing, deleting: the contract over HTTP."""

import concurrent.futures
import hashlib
import io
import uuid
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.pictures import disc_jpeg, encode, two_discs
from tests.running import wait_until


def new_picture() -> bytes:
    """A picture nobody uploaded before."""
    return disc_jpeg(seed=uuid.uuid4().int % 2**63)


def upload(client: httpx2.Client, image_bytes: bytes, **options: Any) -> httpx2.Response:
    return client.post("/images/", files={"file": ("discs.jpg", image_bytes, "image/jpeg")}, **options)


def test_upload_answers_circles(client: httpx2.Client) -> None:
    """The circles that were drawn come back, in the picture's own coordinates."""
    image_bytes = new_picture()
    response = upload(client, image_bytes)
    assert response.status_code == 201
    body = response.json()
    image_id = hashlib.sha256(image_bytes).hexdigest()
    assert response.headers["Location"] == f"/images/{image_id}"
    assert body["image_id"] == image_id
    assert body["filename"] == "discs.jpg"
    assert body["media_type"] == "image/jpeg"
    assert (body["width"], body["height"], body["size_bytes"]) == (320, 240, len(image_bytes))
    assert body["created_at"].endswith("Z")
    assert (body["status"], body["error"]) == ("done", None)
    found = body["detection"]["detections"]
    assert body["detection"]["count"] == len(found) == 2
    assert [entry["score"] for entry in found] == sorted((entry["score"] for entry in found), reverse=True)
    circles = sorted((entry["centroid"]["x"], entry["centroid"]["y"], entry["radius"]) for entry in found)
    # The working picture is 200 to 800 px wide and its edges are found to about one of its px.
    np.testing.assert_allclose(circles, [(90.3, 110.7, 42.0), (220.5, 130.2, 55.5)], atol=1.5)
    for entry in found:
        x_min, y_min, x_max, y_max = entry["bbox"]
        assert 0 <= x_min < x_max <= 320
        assert 0 <= y_min < y_max <= 240


def test_raw_body_is_an_upload_too(client: httpx2.Client) -> None:
    response = client.post("/images/", content=new_picture(), headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 201
    assert response.json()["filename"] is None


def test_same_bytes_again_answer_the_same_image(client: httpx2.Client) -> None:
    image_bytes = new_picture()
    first, again = upload(client, image_bytes), upload(client, image_bytes)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()


def test_same_bytes_at_the_same_instant_give_one_image(client: httpx2.Client) -> None:
    """Sixteen clients at once: one makes the image, all are told the same objects."""
    image_bytes = new_picture()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda _: upload(client, image_bytes), range(16)))
    assert sorted(response.status_code for response in responses) == [200] * 15 + [201]
    assert len({response.text for response in responses}) == 1


def test_many_different_pictures_at_once(client: httpx2.Client) -> None:
    pictures = [new_picture() for _ in range(32)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda picture: upload(client, picture), pictures))
    assert [response.status_code for response in responses] == [201] * 32
    ids = [response.json()["image_id"] for response in responses]
    assert ids == [hashlib.sha256(picture).hexdigest() for picture in pictures]


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_prefix_and_trailing_slash_never_matter(client: httpx2.Client, prefix: str, slash: str) -> None:
    response = client.post(f"{prefix}/images{slash}", content=new_picture(), headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 201
    location = response.headers["Location"]
    assert location == f"{prefix}/images/{response.json()['image_id']}"
    for path in (location, f"{location}/objects", f"{location}/content", f"{prefix}/images", f"{prefix}/config"):
        assert client.get(path + slash).status_code == 200


def test_objects_can_be_asked_for_one_by_one(client: httpx2.Client) -> None:
    image_id = upload(client, new_picture()).json()["image_id"]
    listed = client.get(f"/images/{image_id}/objects").json()
    assert (listed["image_id"], listed["status"], listed["count"]) == (image_id, "done", 2)
    for entry in listed["objects"]:
        response = client.get(f"/images/{image_id}/objects/{entry['object_id']}")
        assert response.status_code == 200
        assert response.json() == {**entry, "image_id": image_id}


def test_min_score_cuts_answers(client: httpx2.Client) -> None:
    image_id = upload(client, new_picture()).json()["image_id"]
    scores = [entry["score"] for entry in client.get(f"/images/{image_id}/objects?min_score=0").json()["objects"]]
    cut = (scores[0] + scores[1]) / 2 if scores[0] > scores[1] else scores[0]
    expected = sum(score >= cut for score in scores)
    assert client.get(f"/images/{image_id}/objects?min_score={cut}").json()["count"] == expected
    body = client.get(f"/images/{image_id}?min_score={cut}").json()
    assert (body["detection"]["min_score"], body["detection"]["count"]) == (cut, expected)


def test_content_comes_back_byte_for_byte(client: httpx2.Client) -> None:
    image_bytes = new_picture()
    location = upload(client, image_bytes).headers["Location"]
    response = client.get(f"{location}/content")
    assert response.content == image_bytes
    assert response.headers["Content-Type"] == "image/jpeg"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    head = client.head(f"{location}/content")
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": "", "x-request-id": ""} == {**response.headers, "date": "", "x-request-id": ""}
    cached = client.get(f"{location}/content", headers={"If-None-Match": response.headers["ETag"]})
    assert (cached.status_code, cached.content) == (304, b"")


def test_annotated_picture_shows_the_circles(client: httpx2.Client) -> None:
    location = upload(client, new_picture()).headers["Location"]
    response = client.get(f"{location}/annotated")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "image/jpeg")
    drawn = np.asarray(Image.open(io.BytesIO(response.content)))
    assert drawn.shape == (240, 320, 3)
    red, green = drawn[..., 0].astype(int), drawn[..., 1].astype(int)
    assert np.sum(red - green > 100) > 100
    bare = np.asarray(Image.open(io.BytesIO(client.get(f"{location}/annotated?min_score=1").content)))
    assert np.sum(bare[..., 0].astype(int) - bare[..., 1] > 100) <= np.sum(red - green > 100)


def test_annotated_picture_is_smaller_where_it_is_too_long_for_jpeg(client: httpx2.Client) -> None:
    long = np.full((8, 65_501, 3), uuid.uuid4().bytes[0], np.uint8)
    response = upload(client, encode(long, "PNG"))
    assert response.json()["status"] == "done"
    response = client.get(f"{response.headers['Location']}/annotated")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(response.content)).size == (65_500, 8)


def test_deleted_image_is_gone_and_can_come_again(client: httpx2.Client) -> None:
    image_bytes = new_picture()
    location = upload(client, image_bytes).headers["Location"]
    assert client.delete(location).status_code == 204
    for path in ("", "/objects", "/content", "/annotated"):
        assert client.get(location + path).status_code == 404
    assert client.delete(location).status_code == 404
    assert upload(client, image_bytes).status_code == 201


def test_detection_can_be_done_again(client: httpx2.Client) -> None:
    first = upload(client, new_picture())
    again = client.post(f"{first.headers['Location']}/detection")
    assert again.status_code == 200

    def shapes(response: httpx2.Response) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in entry.items() if key != "object_id"}
            for entry in response.json()["detection"]["detections"]
        ]

    assert shapes(again) == shapes(first)


def test_listing_goes_through_all_images_newest_first(client: httpx2.Client) -> None:
    ids = [upload(client, new_picture()).json()["image_id"] for _ in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/images/", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        assert len(page["items"]) <= 2
        seen += [item["image_id"] for item in page["items"]]
        assert all("detections" not in (item["detection"] or {}) for item in page["items"])
        cursor = page["next_cursor"]
        if cursor is None or len(seen) >= 6:
            break
    assert seen[:5] == ids[::-1]
    assert len(set(seen)) == len(seen)


def test_listing_by_status(client: httpx2.Client) -> None:
    image_id = upload(client, new_picture()).json()["image_id"]
    assert client.get("/images/?status=done&limit=1").json()["items"][0]["image_id"] == image_id
    assert all(item["status"] == "failed" for item in client.get("/images/?status=failed").json()["items"])


def test_respond_async_is_answered_at_once_and_finished(client: httpx2.Client) -> None:
    response = upload(client, new_picture(), headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "respond-async"
    assert response.json()["detection"] is None
    location = response.headers["Location"]
    wait_until(lambda: client.get(location).json()["status"] == "done")
    assert client.get(location).json()["detection"]["count"] == 2


def test_batch_answers_in_order_and_one_bad_file_spoils_nothing(client: httpx2.Client) -> None:
    good, known = new_picture(), new_picture()
    assert upload(client, known).status_code == 201
    files = [("good.jpg", good), ("bad.jpg", good[: len(good) // 2]), ("text.txt", b"hello"), ("known.jpg", known)]
    files.append(("empty.jpg", b""))
    response = client.post("/images/batch", files=[("files", file) for file in files])
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["filename"] for result in results] == [name for name, _ in files]
    assert [result["status"] for result in results] == [201, 422, 415, 200, 400]
    assert results[0]["image"]["detection"]["count"] == 2
    assert results[1]["image"] is None
    assert results[1]["problem"]["title"] == "Broken image"
    client.delete(f"/images/{results[0]['image']['image_id']}")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_accepted_format(client: httpx2.Client, file_format: str) -> None:
    image_bytes = encode(two_discs(seed=uuid.uuid4().int % 2**63).image, file_format)
    # What the client claims does not count.
    response = client.post("/images/", files={"file": ("x.exe", image_bytes, "application/x-msdownload")})
    assert response.status_code == 201
    assert response.json()["media_type"] == f"image/{file_format.lower()}"
    assert response.json()["detection"]["count"] == 2


def test_real_photographs(client: httpx2.Client, photograph: bytes) -> None:
    response = upload(client, photograph)
    assert response.status_code in (200, 201)
    assert response.json()["detection"]["count"] >= 1
