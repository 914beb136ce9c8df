"""Where settings come from, and what is refused."""

import pickle

import pytest
from pydantic import SecretStr, ValidationError

from circles.settings import Settings, why_refused

SHARED = {"database_url": "postgresql+psycopg://db/circles", "storage_url": "s3://pictures/uploads"}


def test_environment_wins_over_defaults_and_arguments_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("MODE", "dummy")
    assert Settings().max_in_flight == 7
    # The way Serve gives arguments to a builder.
    settings = Settings.model_validate({"mode": "real"})
    assert (settings.mode, settings.max_in_flight) == ("real", 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fancy"}, "mode"),
        ({"detector": "owl"}, "detector"),
        ({"min_score": 1.5}, "min_score"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"mistyped": 1}, "mistyped"),
        ({"database_url": "nonsense"}, "not a database URL"),
        ({"database_url": "oracle://db/x"}, "'oracle' is none of sqlite"),
        ({"database_url": "sqlite://"}, "names no database"),
        ({"database_url": "postgresql+psycopg://db"}, "names no database"),
        ({"storage_url": "ftp://x/y"}, "neither file: and a folder"),
        ({"storage_url": "file:"}, "neither file: and a folder"),
        ({"storage_url": "s3:///prefix"}, "neither file: and a folder"),
        ({"ingress_replicas": 2}, "SQLite has one writer"),
        ({**SHARED, "storage_url": "file:data/images", "ingress_replicas": 2}, "a folder is of one node"),
        ({**SHARED, "ingress_replicas": 2, "orphan_grace_s": 10}, "600 at least"),
        ({**SHARED, "orphan_grace_s": 0}, "600 at least"),
        ({**SHARED, "signed_url_s": 604_801}, "signed_url_s"),
        ({"content_delivery": "redirect"}, "a folder has no addresses"),
        ({"model_server_url": "http://host:abc"}, "model_server_url"),
        ({"model_server_url": "http://host:99999"}, "model_server_url"),
        ({"model_server_url": "127.0.0.1:9090"}, "not the base URL"),
        ({"model_server_url": "http://me:secret@host"}, "not the base URL"),
        ({"model_name": "a/b"}, "model_name"),
        ({"retention_days": float("inf")}, "retention_days"),
        ({"retention_days": float("nan")}, "retention_days"),
        ({"retention_days": 740_000}, "less than or equal to 36500"),
        ({"detector_num_gpus": 1}, "heatmap computes on the CPU"),
        ({"detector_min_replicas": 3, "detector_max_replicas": 2}, "detector_min_replicas"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate(arguments)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "first-secret, second-secret,")
    settings = Settings(database_url="mysql+pymysql://me:secret@db/x")
    assert settings.api_key_list == ["first-secret", "second-secret"]
    assert "secret" not in f"{settings!r} {settings.public()}"


@pytest.mark.parametrize("blank", [" ", ",", "\n", " , "], ids=repr)
def test_keys_that_are_none_are_refused_rather_than_open(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    monkeypatch.setenv("API_KEYS", blank)
    with pytest.raises(ValidationError, match="it holds no key"):
        Settings()


def test_empty_keys_are_unset_unless_keys_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose passes API_KEYS on as it is, unset or not."""
    monkeypatch.setenv("API_KEYS", "")
    settings = Settings()
    assert settings.with_environment_secrets().api_key_list == []
    monkeypatch.setenv("REQUIRE_API_KEYS", "true")
    with pytest.raises(ValueError, match="REQUIRE_API_KEYS is true"):  # also where the application was built without
        settings.with_environment_secrets()
    with pytest.raises(ValueError, match="API_KEYS: unset or empty, but REQUIRE_API_KEYS is true"):
        Settings().with_environment_secrets()
    monkeypatch.setenv("API_KEYS", "alpha")
    assert Settings().with_environment_secrets().api_key_list == ["alpha"]


def test_detection_in_the_background_has_as_long_as_it_may_take_at_all() -> None:
    settings = Settings(detection_timeout_s=1)
    assert settings.background_timeout_s >= 2 * settings.hang_limit_s > settings.detection_timeout_s


def test_impatient_uploads_make_no_detection_count_as_hung() -> None:
    assert Settings(detection_timeout_s=0.5).hang_limit_s == Settings().hang_limit_s == 30
    assert Settings(detection_timeout_s=60).hang_limit_s == 180


def test_processes_that_detect_are_told_no_secret() -> None:
    settings = Settings(
        database_url="mysql+pymysql://me:hidden@db/x",
        api_keys=SecretStr("hidden"),
        model_server_url="http://hidden.example",
        max_image_pixels=7,
    )
    told = settings.without_secrets()
    assert b"hidden" not in pickle.dumps(told)
    assert told.max_image_pixels == 7


def test_secrets_of_the_environment_are_read_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "hidden")
    monkeypatch.setenv("DATABASE_URL", "mysql+pymysql://me:hidden@db/x")
    monkeypatch.setenv("STORAGE_URL", "s3://bucket")
    settings = Settings.model_validate({"ingress_replicas": 2, "storage_url": "s3://other"})
    kept = pickle.dumps(settings.without_environment_secrets())
    assert b"hidden" not in kept
    monkeypatch.setenv("API_KEYS", "replaced")
    read = pickle.loads(kept).with_environment_secrets()
    assert read.api_key_list == ["replaced"]
    assert read.database_url == "mysql+pymysql://me:hidden@db/x"
    assert (read.storage_url, read.ingress_replicas) == ("s3://other", 2)  # arguments win, here as well
    monkeypatch.delenv("API_KEYS")
    with pytest.raises(ValueError, match="API_KEYS: set where the application was built"):
        pickle.loads(kept).with_environment_secrets()  # rather than open to everybody


def test_min_score_is_the_detectors_own_unless_set() -> None:
    assert Settings(detector="hough").default_min_score == 0.3
    assert Settings(detector="hough", min_score=0.7).default_min_score == 0.7


def test_settings_for_many_replicas() -> None:
    settings = Settings.model_validate({**SHARED, "ingress_replicas": 3})
    assert settings.ingress_replicas == 3


def test_passwords_are_not_repeated_where_they_are_refused() -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(database_url="postgresql://me:secret@db/x")
    assert "secret" not in str(refusal.value) + why_refused(refusal.value)
    assert "'postgresql' is none of" in why_refused(refusal.value)


def test_refusals_name_the_value() -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate({"detector": "owl", "max_in_flight": 0})
    detector, in_flight = why_refused(refusal.value).splitlines()
    assert detector.startswith("detector: Input should be 'heatmap'")
    assert detector.endswith("(it is 'owl')")
    assert in_flight == "max_in_flight: Input should be greater than or equal to 1 (it is 0)"
