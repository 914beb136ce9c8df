"""Every knob of the service, its default and its unit.

Arguments in ``serve_config.yaml`` win over environment variables of the same name (in capitals), which win over these
defaults. Secrets come by environment alone. Each program reads its settings once, at start.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from circles.detectors import DetectorName, default_min_score
from circles.storage.engine import DRIVERS, is_sqlite
from circles.storage.images import is_local, local_folder

# Age below which a file without a row may be an upload of another replica.
_LEAST_SHARED_GRACE_S = 600.0
_GPU_BATCH = 8
# Detecting takes a small part of the time that uploads wait for it; what takes several times as long does not end.
_HANG_FACTOR = 3.0

HASHED_KEY_PREFIX = "sha256:"
"""Before a hash that stands in the place of a key."""

LONGEST_RETENTION_DAYS = 36_500
"""A century; a datetime goes back no further than some twenty of them."""

Score = Annotated[float, Field(ge=0.0, le=1.0)]


def _check_database_url(url: str) -> str:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(f"not a database URL: {error}") from error
    if parsed.drivername not in DRIVERS:
        raise ValueError(f"'{parsed.drivername}' is none of {', '.join(DRIVERS)}")
    if not parsed.database or parsed.database == ":memory:":
        raise ValueError("it names no database, as sqlite:///data/db.sqlite3 or postgresql+psycopg://host/name do")
    return url


def _check_storage_url(url: str) -> str:
    parts = urlsplit(url)
    is_folder = is_local(url) and str(local_folder(url)) != "."
    if not is_folder and not (parts.scheme in ("s3", "gs", "az") and parts.netloc and "@" not in parts.netloc):
        raise ValueError("neither file: and a folder, as file:data/images, nor s3://, gs:// or az:// and a bucket")
    return url


def _check_model_server_url(url: str) -> str:
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError where it is none
    is_base = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    if not is_base or parts.username:
        raise ValueError("not the base URL of a server, as in http://127.0.0.1:9090")
    return url.rstrip("/")


def _check_api_keys(keys: SecretStr) -> SecretStr:
    text = keys.get_secret_value()
    listed = _listed(text)
    if text and not listed:  # somebody meant to set some
        raise ValueError("it holds no key: give one that `just api-key` makes, or leave it unset for an open service")
    for key in listed:
        if key.startswith(HASHED_KEY_PREFIX) and not re.fullmatch(rf"{HASHED_KEY_PREFIX}[0-9a-f]{{64}}", key):
            raise ValueError(f"a hash is {HASHED_KEY_PREFIX} and 64 lower-case hex digits")
    return keys


def _check_origins(origins: str) -> str:
    for origin in _listed(origins):
        parts = urlsplit(origin)
        _ = parts.port  # raises ValueError where it is none
        is_origin = (
            parts.scheme in ("http", "https") and origin == f"{parts.scheme}://{parts.netloc}" and parts.hostname
        )
        if origin != "*" and (not is_origin or parts.username is not None or origin != origin.lower()):
            raise ValueError(f"'{origin}' is not an origin, as https://app.example.org is, nor *")
    return origins


def _listed(text: str) -> list[str]:
    return [entry for entry in (part.strip() for part in text.split(",")) if entry]


class Settings(BaseSettings):
    """What the service may be told; the description of each field is its documentation."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_ignore_empty=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    _arguments: frozenset[str] = PrivateAttr(default=frozenset())
    """Names of what was given by arguments, which win over the environment."""

    mode: Literal["real", "dummy"] = "real"
    """`dummy`: fixed detections; `real`: the detector deployment, or what `MODEL_SERVER_URL` names."""

    model_server_url: Annotated[str, AfterValidator(_check_model_server_url)] | None = None
    """Base URL of a KServe endpoint (V2 or V1 protocol) to detect with instead of the detector deployment."""

    model_server_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that endpoint has for a picture nobody waits for any more: what it may take to start from zero."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "circle-detector"
    """Name under which inference protocols know the detector, here and at `MODEL_SERVER_URL`."""

    detector: DetectorName = "heatmap"
    """What the replicas load: `heatmap` (learned), `heatmap-torch` (PyTorch runs it), `hough` (OpenCV) or `dummy`."""

    min_score: Score | None = None
    """Score from which objects are answered; unset: the detector's own. `user_config` changes it without a restart."""

    store_min_score: Score = 0.1
    """Floor below which objects are not kept."""

    detection_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds an upload waits for the detector; then it becomes pending."""

    hang_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds from which on a detection counts as hung, or three times `DETECTION_TIMEOUT_S` where that is more."""

    max_in_flight: int = Field(default=64, ge=1)
    """Pictures worked on at once by one ingress replica or model server; more are answered 429."""

    max_in_flight_bytes: int = Field(default=256 * 2**20, ge=1)
    """Bytes of the requests that one of them has taken and not answered; at worst memory is nine times as much."""

    max_pending: int = Field(default=1000, ge=0)
    """Pictures that may wait for detection in the whole service; more are answered 429."""

    database_url: Annotated[str, AfterValidator(_check_database_url), Field(repr=False)] = "sqlite:///data/db.sqlite3"
    """Where the rows are: `sqlite:///` and a path, `postgresql+psycopg://…`, `mysql+pymysql://…`, `mariadb+pymysql://…`."""

    database_pool_size: int = Field(default=16, ge=1)
    """Most database connections of one ingress replica."""

    database_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds to wait for the database: for a connection, an answer, other transactions."""

    storage_url: Annotated[str, AfterValidator(_check_storage_url)] = "file:data/images"
    """Where the uploaded bytes are: `file:` and a folder, or `s3://…`, `gs://…`, `az://…`, a bucket and a prefix."""

    storage_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that one request to a bucket may take; one that failed is tried again for as long."""

    content_delivery: Literal["stream", "redirect"] = "stream"
    """How uploaded bytes are given back: through the service, or by a redirection to a signed address of the bucket."""

    signed_url_s: int = Field(default=300, ge=1, le=604_800)
    """Seconds for which such an address works."""

    max_upload_bytes: int = Field(default=25 * 2**20, ge=1)
    """Largest picture file, in bytes."""

    upload_timeout_s: float = Field(default=120.0, gt=0)
    """Seconds a client has to send an upload; then it is answered 408."""

    max_inference_bytes: int = Field(default=64 * 2**20, ge=1)
    """Largest body of an inference request, in bytes; each of its pictures is held to `MAX_UPLOAD_BYTES` too."""

    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Largest picture, in pixels; checked in its header."""

    server_timing: bool = False
    """Whether answers tell, as `Server-Timing`, where their time went."""

    api_keys: Annotated[SecretStr, AfterValidator(_check_api_keys)] = SecretStr("")
    """Comma-separated keys, or `sha256:…` of keys; when set, all but the open routes want one of them."""

    require_api_keys: bool = False
    """Whether the service refuses to start without `API_KEYS`, rather than being open."""

    rate_limit: Annotated[str, Field(pattern=r"^[1-9]\d{0,8}/(second|minute|hour|day)$")] | None = None
    """Most requests of one key, or of one address without a key, as `100/minute`, at each ingress replica; then 429."""

    trusted_proxies: int = Field(default=0, ge=0)
    """Proxies in front that tell addresses by `X-Forwarded-For`, HAProxy being one; 0: all without a key are as one."""

    cors_origins: Annotated[str, AfterValidator(_check_origins)] | None = None
    """Comma-separated origins whose web pages may ask, as `https://app.example.org`, or `*`; unset: none."""

    reconcile_period_s: float = Field(default=10.0, gt=0)
    """Seconds between two looks for pending pictures; those of this replica are also taken up at once."""

    orphan_grace_s: float = Field(default=3600.0, ge=0)
    """Age in seconds from which a stored file that no row names is removed."""

    retention_days: float | None = Field(default=None, gt=0, le=LONGEST_RETENTION_DAYS)
    """Age in days from which images are removed, rows and bytes; unset: they stay."""

    detector_min_replicas: int = Field(default=1, ge=0)
    """Fewest detector replicas; 0 lets the detector sleep when idle."""

    detector_max_replicas: int = Field(default=2, ge=1)
    """Most detector replicas."""

    detector_num_cpus: float = Field(default=0.8, gt=0)
    """Cores that Ray reserves for one detector replica."""

    detector_num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for one detector replica; `heatmap-torch` uses them."""

    detector_threads: int = Field(default=1, ge=1)
    """Threads that one detector replica computes with (OpenCV, torch)."""

    detector_memory_bytes: int = Field(default=1536 * 2**20, ge=512 * 2**20)
    """Most memory that one detector's process may take; a picture that needs more fails. Not heeded with a GPU."""

    detector_batch_size: int | None = Field(default=None, ge=1)
    """Most pictures detected in one call; unset: 8 with a GPU, else 1."""

    detector_batch_wait_s: float = Field(default=0.0, ge=0)
    """Seconds a batch waits to fill up; 0 takes what is there."""

    ingress_replicas: int = Field(default=1, ge=1)
    """Replicas of the ingress; more than one need PostgreSQL or MySQL, and a bucket."""

    ingress_num_cpus: float = Field(default=0.2, ge=0)
    """Cores that Ray reserves for the ingress replica."""

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.detector_min_replicas > self.detector_max_replicas:
            raise ValueError(
                f"detector_min_replicas ({self.detector_min_replicas}) is above "
                f"detector_max_replicas ({self.detector_max_replicas})"
            )
        return self

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.detector_num_gpus > 0 and self.detector != "heatmap-torch":
            raise ValueError(
                f"detector_num_gpus is {self.detector_num_gpus:g}, but {self.detector} computes on the CPU: "
                "give heatmap-torch as detector"
            )
        return self

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._arguments = frozenset(arguments)

    @model_validator(mode="after")
    def _check_ingress_replicas(self) -> Self:
        if self.ingress_replicas == 1:
            return self
        if is_sqlite(self.database_url):
            raise ValueError(
                f"ingress_replicas is {self.ingress_replicas}, but SQLite has one writer: give PostgreSQL or MySQL as "
                "database_url"
            )
        if is_local(self.storage_url):
            raise ValueError(
                f"ingress_replicas is {self.ingress_replicas}, but a folder is of one node: "
                "give a bucket as storage_url"
            )
        return self

    @model_validator(mode="after")
    def _check_grace(self) -> Self:
        # A bucket has no lock: another replica, or the one that is being replaced, may be uploading to it.
        upload_s = self.detection_timeout_s + self.storage_timeout_s + self.database_timeout_s
        least_s = max(_LEAST_SHARED_GRACE_S, 10 * upload_s)
        if not is_local(self.storage_url) and self.orphan_grace_s < least_s:
            raise ValueError(
                f"orphan_grace_s is {self.orphan_grace_s:g}, but in a bucket another replica's upload may be "
                f"younger than its row: {least_s:g} at least, with these timeouts"
            )
        return self

    @model_validator(mode="after")
    def _check_content_delivery(self) -> Self:
        if self.content_delivery == "redirect" and is_local(self.storage_url):
            raise ValueError(
                "content_delivery is redirect, but a folder has no addresses: give a bucket as storage_url"
            )
        return self

    @property
    def database_path(self) -> Path:
        """The SQLite file."""
        return Path(str(make_url(self.database_url).database))

    @property
    def default_min_score(self) -> float:
        """The score from which objects are answered when neither the query nor `user_config` names one."""
        if self.min_score is not None:
            return self.min_score
        return default_min_score(self.loaded_detector)

    @property
    def loaded_detector(self) -> DetectorName:
        """The detector of this mode."""
        return "dummy" if self.mode == "dummy" else self.detector

    @property
    def largest_batch(self) -> int:
        """Most pictures detected in one call. On a CPU eight together take as long as one after the other, and the
        first of them would be answered when the last is done."""
        if self.detector_batch_size is not None:
            return self.detector_batch_size
        return _GPU_BATCH if self.detector_num_gpus > 0 else 1

    @property
    def drain_timeout_s(self) -> float:
        """How long a replica that is to go may work on what it has begun."""
        return self.detection_timeout_s + 5.0

    @property
    def hang_limit_s(self) -> float:
        """How long a detection may take before its process counts as hung."""
        return max(self.hang_timeout_s, _HANG_FACTOR * self.detection_timeout_s)

    @property
    def background_timeout_s(self) -> float:
        """How long a detection may take that nobody waits for: while it may go on, it is not begun anew."""
        if self.model_server_url is None:
            return 2 * self.hang_limit_s  # a picture that hangs is tried twice; another's run may come first
        return max(self.detection_timeout_s, self.model_server_timeout_s)

    @property
    def api_key_list(self) -> list[str]:
        """The keys one by one; empty when the service is open."""
        return _listed(self.api_keys.get_secret_value())

    @property
    def cors_origin_list(self) -> list[str]:
        """The origins one by one; empty when there are none."""
        return _listed(self.cors_origins or "")

    def without_secrets(self) -> Self:
        """For processes that only detect."""
        return self._without(_NOT_TO_BE_REPEATED)

    def without_environment_secrets(self) -> Self:
        """For whoever keeps settings for later: of the secrets only those that were arguments."""
        return self._without(self._environment_secrets)

    def with_environment_secrets(self) -> Self:
        """With those secrets that were no arguments as the environment of this process has them now.

        Raises:
            ValueError: The environment lacks one that was there where these settings were read, or keys that are
                required; or they do not fit what the other settings are.
        """
        left_out = {*(_NOT_TO_BE_REPEATED - self._arguments)}
        if not self.require_api_keys:  # there; here they may be
            left_out.add("require_api_keys")
        known = self.model_dump(exclude=left_out)
        settings = type(self).model_validate(known)
        lacking = ", ".join(sorted(self._environment_secrets - settings.model_fields_set)).upper()
        if lacking:
            raise ValueError(f"{lacking}: set where the application was built, but not in this replica's environment")
        # Not where settings are read: the database's commands read them too, and are told no keys.
        if settings.require_api_keys and not settings.api_key_list:
            raise ValueError(
                "API_KEYS: unset or empty, but REQUIRE_API_KEYS is true: give a key that `just api-key` makes"
            )
        return settings

    @property
    def _environment_secrets(self) -> frozenset[str]:
        return _NOT_TO_BE_REPEATED & self.model_fields_set - self._arguments

    def _without(self, names: Collection[str]) -> Self:
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in names})

    def public(self) -> dict[str, str | int | float | None]:
        """All settings but secrets, flat."""
        return {
            **self.model_dump(exclude={"api_keys"}),
            "database_url": _without_passwords(self.database_url),
            "min_score": self.default_min_score,
            "detector_batch_size": self.largest_batch,
        }


# Their values may hold a password, also where they are refused.
_NOT_TO_BE_REPEATED = frozenset({"database_url", "storage_url", "api_keys", "model_server_url"})


def local_folders(settings: Settings) -> list[Path]:
    """Folders of which a service must be the only user.

    That of the files too: with another database, a second service would take them for orphans.
    """
    folders = set()
    if is_sqlite(settings.database_url):
        folders.add(settings.database_path.parent.resolve())
    if is_local(settings.storage_url):
        folders.add(local_folder(settings.storage_url).resolve())
    return sorted(folders)


def _without_passwords(database_url: str) -> str:
    """The URL with asterisks for the user's password, and for those among its parameters."""
    url = make_url(database_url)
    hidden = {name: "***" for name in url.query if "pass" in name.lower()}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def why_refused(error: ValidationError) -> str:
    """What is wrong with settings, a line for each, with the value that was given unless it may be a secret."""
    lines = []
    for entry in error.errors(include_url=False):
        name = ".".join(map(str, entry["loc"]))
        is_shown = name and name not in _NOT_TO_BE_REPEATED
        given = f" (it is {entry['input']!r})" if is_shown else ""
        lines.append(f"{name or 'settings'}: {entry['msg']}{given}")
    return "\n".join(lines)
