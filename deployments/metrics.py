"""What Prometheus is told of the application, beside what Ray, Serve and HAProxy tell of themselves."""

from datetime import UTC, datetime

from ray.serve.metrics import Gauge

from circles.storage.image_records import Backlog


class BacklogGauges:
    """How much waits for detection. Each ingress replica tells it of the whole service."""

    def __init__(self) -> None:
        self._count = Gauge("circles_pending_images", description="Images that wait for detection.")
        self._age_s = Gauge("circles_pending_oldest_seconds", description="For how long the oldest of them has waited.")

    def set(self, backlog: Backlog) -> None:
        """Tells the state of this moment."""
        self._count.set(backlog.count)
        age = datetime.now(UTC) - backlog.oldest_at if backlog.oldest_at is not None else None
        self._age_s.set(max(0.0, age.total_seconds()) if age is not None else 0.0)
