"""What must be true when calm has come after faults: nothing acknowledged is lost, and there is nothing beside it."""

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pysqlite3

from tests.chaos.uploads import Told
from tests.serving import RunningServe

_POLL_PERIOD_S = 0.2


def breaches_in(service: RunningServe, told: Told, calm_s: float, *, has_swept: bool = True) -> list[str]:
    """What is wrong in a service that runs, and that nobody uploads to any more.

    Args:
        calm_s: In which everything that is pending is done.
        has_swept: Whether it has looked for files without a row since the faults, as it does at its start; until then
            there may be some.
    """
    breaches = list(told.wrong)
    with service.client() as client:
        breaches += _pending_too_long(client, calm_s)
        images = list(_all_images(client))
        breaches += _unexpected(images, told)
        for image_id in told.acknowledged:
            breaches += _lost(client, image_id)
    breaches += _broken_database(Path(service.folder) / "data" / "db.sqlite3")
    if has_swept:
        breaches += _rows_and_files_disagree(service, len(images), calm_s)
    return breaches


def _pending_too_long(client: httpx2.Client, calm_s: float) -> list[str]:
    deadline = time.monotonic() + calm_s
    while waiting := client.get("/images/", params={"status": "pending", "limit": 1}).json()["items"]:
        if time.monotonic() > deadline:
            return [f"image {waiting[0]['image_id']} is pending after {calm_s:g} s of calm"]
        time.sleep(_POLL_PERIOD_S)
    return []


def _all_images(client: httpx2.Client) -> Iterator[dict[str, str]]:
    cursor = None
    while True:
        page = client.get("/images/", params={"limit": 200} | ({"cursor": cursor} if cursor else {})).json()
        yield from page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _unexpected(images: list[dict[str, str]], told: Told) -> list[str]:
    counts = Counter(image["image_id"] for image in images)
    breaches = [f"image {image_id} is listed {count} times" for image_id, count in counts.items() if count > 1]
    breaches += [f"image {image_id} was never sent" for image_id in counts.keys() - told.sent]
    breaches += [f"image {image_id} is acknowledged and not listed" for image_id in told.acknowledged.keys() - counts]
    breaches += [f"image {image['image_id']} has failed" for image in images if image["status"] == "failed"]
    return breaches


def _lost(client: httpx2.Client, image_id: str) -> list[str]:
    content = client.get(f"/images/{image_id}/content")
    if content.status_code != 200:
        return [f"image {image_id} is acknowledged, and its bytes answer {content.status_code}"]
    if hashlib.sha256(content.content).hexdigest() != image_id:
        return [f"image {image_id} has other bytes than those that were acknowledged"]
    objects = client.get(f"/images/{image_id}/objects")
    if objects.status_code != 200 or objects.json()["status"] != "done":
        return [f"image {image_id} is acknowledged, and its objects answer {objects.status_code}: {objects.text[:200]}"]
    return []


def _broken_database(path: Path) -> list[str]:
    connection = pysqlite3.connect(path)
    try:
        breaches = []
        integrity = [row[0] for row in connection.execute("PRAGMA integrity_check")]
        if integrity != ["ok"]:
            breaches.append(f"SQLite's integrity_check: {'; '.join(integrity)[:500]}")
        dangling = connection.execute("PRAGMA foreign_key_check").fetchall()
        if dangling:
            breaches.append(f"{len(dangling)} objects of images that are not there")
        ranks = "SELECT image_id FROM objects GROUP BY image_id, rank HAVING count(*) > 1"
        breaches += [f"image {row[0]} has its objects twice" for row in connection.execute(ranks)]
        return breaches
    finally:
        connection.close()


def _rows_and_files_disagree(service: RunningServe, images: int, calm_s: float) -> list[str]:
    """What the service's own command says, which reads all files."""
    deadline = time.monotonic() + calm_s
    while True:
        check = subprocess.run(
            [sys.executable, "-m", "circles.storage", "check", "--deep"],
            env={**os.environ, **service.environment, "ORPHAN_GRACE_S": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        is_well = check.returncode == 0 and check.stdout.split("\n")[-2:-1] == [f"{images} images"]
        if is_well:
            return []
        if time.monotonic() > deadline:  # the sweep, too, has until then
            return [f"storage check, {images} images expected: {check.stdout[-2000:]}{check.stderr[-500:]}"]
        time.sleep(_POLL_PERIOD_S)
