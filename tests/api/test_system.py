"""What the service says of itself."""

import re

import httpx2


def test_health(client: httpx2.Client) -> None:
    body = client.get("/health").json()
    assert (body["status"], body["mode"]) == ("ok", "real")


def test_ready_names_every_part(client: httpx2.Client) -> None:
    response = client.get("/ready")
    assert response.status_code == 200
    assert response.json() == {"status": "ok", "checks": {"database": "ok", "storage": "ok", "detector": "ok"}}


def test_config_is_flat_and_without_secrets(client: httpx2.Client) -> None:
    body = client.get("/config").json()
    assert body["mode"] == "real"
    assert body["model_name"] == "circle-detector"
    assert "api_keys" not in body
    assert all(not isinstance(value, dict | list) for value in body.values())


def test_home_is_the_page_for_people(client: httpx2.Client) -> None:
    response = client.get("/")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for name in re.findall(r'(?:href|src)="(static/[^"]+)"', response.text):
        assert client.get(f"/{name}").status_code == 200


def test_openapi_lists_every_route_of_the_contract_once(client: httpx2.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    operations = {path: sorted(found) for path, found in paths.items() if not path.startswith(("/v1", "/v2"))}
    assert operations == {
        "/api/v1/images/": ["get", "post"],
        "/api/v1/images/batch": ["post"],
        "/api/v1/images/{image_id}": ["delete", "get"],
        "/api/v1/images/{image_id}/objects": ["get"],
        "/api/v1/images/{image_id}/objects/{object_id}": ["get"],
        "/api/v1/images/{image_id}/content": ["get"],
        "/api/v1/images/{image_id}/annotated": ["get"],
        "/api/v1/images/{image_id}/detection": ["post"],
        "/api/v1/config": ["get"],
        "/health": ["get"],
        "/ready": ["get"],
    }
    assert set(paths["/api/v1/images/"]["post"]["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
