"""Where settings come from, and what is refused."""

import pytest
from pydantic import ValidationError

from circles.settings import Settings


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
        ({"database_url": "oracle://x/y"}, "only SQLite in a file"),
        ({"database_url": "sqlite://"}, "only SQLite in a file"),
        ({"storage_url": "ftp://x"}, "only a local folder"),
        ({"detector_min_replicas": 3, "detector_max_replicas": 2}, "detector_min_replicas"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate(arguments)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "first-secret, second-secret,")
    settings = Settings()
    assert settings.api_key_list == ["first-secret", "second-secret"]
    assert "secret" not in f"{settings!r} {settings.public()}"


def test_min_score_is_the_detectors_own_unless_set() -> None:
    assert Settings(detector="hough").default_min_score == 0.3
    assert Settings(detector="hough", min_score=0.7).default_min_score == 0.7
