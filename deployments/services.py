"""What the routes work with: the resources of one ingress replica, opened once and closed with it."""

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Query, Request

from circles.errors import StorageUnavailableError
from circles.settings import Score, Settings, local_folders
from circles.storage.database import Database
from circles.storage.engine import is_sqlite
from circles.storage.images import is_local, open_image_store
from circles.storage.lock import DataFolderLock
from circles.storage.records import RecordBook
from deployments.access import Access
from deployments.admission import Admission
from deployments.api_keys import ApiKeys
from deployments.async_detectors import AsyncDetector
from deployments.pipeline import ImagePipeline
from deployments.rate_limit import RateLimiter
from deployments.readiness import Readiness
from deployments.reconciler import Reconciler

logger = logging.getLogger("ray.serve")

# Beyond the time that a replica which is being replaced may take to finish its work.
_LOCK_SLACK_S = 5.0


@dataclass
class Services:
    """One replica's parts. ``min_score`` may change while the replica runs."""

    settings: Settings
    locks: list[DataFolderLock]
    database: Database
    book: RecordBook
    detector: AsyncDetector
    pipeline: ImagePipeline
    reconciler: Reconciler
    admission: Admission
    access: Access
    readiness: Readiness
    min_score: float
    # Decoded pictures and their drawn copies are large: few are in memory at once.
    drawing_turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    reconciling: "asyncio.Task[None] | None" = None

    def check_health(self) -> None:
        """Raises when this replica cannot keep its promises any more and should be replaced.

        Raises:
            RuntimeError: Nobody finishes pending pictures.
        """
        if self.reconciling is not None and self.reconciling.done():
            raise RuntimeError("the reconciler has ended")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Finishes pending work in the background until left, then gives everything back."""
        self.reconciling = asyncio.create_task(self.reconciler.run(self.pipeline))
        self.reconciling.add_done_callback(_log_unexpected_end)
        try:
            yield
        finally:
            self.reconciling.cancel()
            await asyncio.wait([self.reconciling])
            await self.detector.close()
            self.database.close()
            for lock in self.locks:
                lock.release()


def open_services(settings: Settings, detector: AsyncDetector, holder: str) -> Services:
    """Opens files and database.

    Args:
        holder: Who takes the data folder, for those who find it taken.

    Raises:
        DataFolderLockedError: Another service uses the data folder.
        DatabaseSchemaError: The tables are not those of this version.
        StorageMismatchError: The store's files are those of another database.
        DatabaseUnavailableError, StorageUnavailableError: They cannot be opened, or would go with the pod.
    """
    with contextlib.ExitStack() as opened:
        locks = []
        for folder in local_folders(settings):
            _check_outlives_pod(folder)
            locks.append(DataFolderLock(folder, holder, settings.drain_timeout_s + _LOCK_SLACK_S))
            opened.callback(locks[-1].release)
        is_alone = is_sqlite(settings.database_url)  # with the lock of its folder
        database = Database(
            settings.database_url, settings.database_pool_size, settings.database_timeout_s, migrates=is_alone
        )
        opened.callback(database.close)
        if is_alone:
            database.end_leases()
        images = open_image_store(settings.storage_url, settings.storage_timeout_s)
        # A folder has this one user, who knows what it has staged itself.
        max_staging_s = math.inf if is_local(settings.storage_url) else settings.orphan_grace_s / 2
        book = RecordBook(images, database, settings.max_pending, max_staging_s)
        opened.pop_all()  # from here on they are the services' own
    reconciler = Reconciler(book, settings)
    return Services(
        settings=settings,
        locks=locks,
        database=database,
        book=book,
        detector=detector,
        pipeline=ImagePipeline(book, detector, settings, on_pending=reconciler.wake),
        reconciler=reconciler,
        admission=Admission(settings.max_in_flight, settings.max_in_flight_bytes),
        access=Access(
            ApiKeys(settings.api_key_list),
            None if settings.rate_limit is None else RateLimiter(settings.rate_limit),
            settings.trusted_proxies,
        ),
        readiness=Readiness(
            {"database": book.check_database, "storage": book.check_images, "detector": detector.state}
        ),
        min_score=settings.default_min_score,
    )


def _check_outlives_pod(folder: Path) -> None:
    """Refuses to keep anything in the container's own file system, where nobody mounted a volume."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if existing.stat().st_dev == Path("/").stat().st_dev:
        raise StorageUnavailableError(
            f"{folder} is in the container's own file system, which goes with the pod: mount a volume there, or give "
            "PostgreSQL or MySQL as DATABASE_URL and a bucket as STORAGE_URL"
        )


async def services_of(request: Request) -> Services:
    """The services of the replica that this request reached.

    A coroutine, as the next one: FastAPI gives plain functions to threads, which a slow disk may have used up.
    """
    services: Services = request.app.state.services
    return services


ServicesParameter = Annotated[Services, Depends(services_of)]


async def _effective_min_score(
    services: ServicesParameter,
    min_score: Annotated[Score | None, Query(description="show objects of at least this score")] = None,
) -> float:
    return services.min_score if min_score is None else min_score


MinScoreParameter = Annotated[float, Depends(_effective_min_score)]


def _log_unexpected_end(reconciling: "asyncio.Task[None]") -> None:
    if not reconciling.cancelled() and reconciling.exception() is not None:
        logger.critical("the reconciler has ended; pending pictures stay pending", exc_info=reconciling.exception())
