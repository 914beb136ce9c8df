"""How the application is put together, and facts that stand in more than one file."""

import os
import pickle
import re
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values
from ray.serve._private.build_app import build_app as build_deployments
from ray.serve.schema import ServeDeploySchema

import serve_app
from circles.settings import Settings
from deployments.ingress import UserConfig
from serve_app import build_app
from tests.running import settings_in

ROOT = Path(__file__).resolve().parent.parent.parent


def deployments_of(settings: Settings) -> set[str]:
    """The names of the deployments that Serve would make."""
    return {deployment.name for deployment in build_deployments(build_app(settings), name="circles").deployments}


def test_each_mode_has_just_the_deployments_it_needs(tmp_path: Path) -> None:
    assert deployments_of(settings_in(tmp_path)) == {"Ingress", "Detector"}
    assert deployments_of(settings_in(tmp_path, mode="dummy")) == {"Ingress"}
    assert deployments_of(settings_in(tmp_path, model_server_url="http://127.0.0.1:9090")) == {"Ingress"}


def test_what_serve_keeps_holds_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in the controller's checkpoint, and a replica that is started later is made from it."""
    monkeypatch.setenv("API_KEYS", "hidden-key")
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://me:hidden-password@db/x")
    settings = Settings()
    assert b"hidden" in pickle.dumps(settings)
    kept = [deployment.init_args for deployment in build_deployments(build_app(settings), name="circles").deployments]
    assert b"hidden" not in pickle.dumps(kept)


def test_importing_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert serve_app.app is not None
    assert list(tmp_path.iterdir()) == []


def test_config_file_is_what_serve_understands_and_names_what_exists(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert (application.name, application.import_path) == ("circles", "serve_app:build_app")
    Settings.model_validate(application.args)
    # Options may only be given for deployments that every mode has.
    for entry in config["applications"][0]["deployments"]:
        assert entry["name"] in deployments_of(settings_in(tmp_path, mode="dummy"))
        UserConfig.model_validate(entry["user_config"])


def test_service_listens_on_loopback_only() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    assert config["http_options"]["host"] == "127.0.0.1"


def test_fast_path_variables_come_together_and_fit_the_upload_limit() -> None:
    variables = dotenv_values(ROOT / "serve.env")
    assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    limit = int(variables["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"] or 0)
    assert limit > Settings.model_fields["max_upload_bytes"].default
    # One limit for inference requests, whichever protocol they come by.
    assert (
        int(variables["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] or 0) == Settings.model_fields["max_inference_bytes"].default
    )


def test_uploads_that_no_message_could_carry_are_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    monkeypatch.setenv("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(10 * 2**20))
    build_app(settings_in(tmp_path, max_upload_bytes=5 * 2**20))
    with pytest.raises(ValueError, match="RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH is 10485760"):
        build_app(settings_in(tmp_path, max_upload_bytes=10 * 2**20))


def test_lock_file_has_exact_versions_hashes_and_no_addresses() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._\[\],-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in text
    names = {re.split(r"[=\[]", entry)[0] for entry in entries}
    assert "torch" not in names
    assert "opencv-python-headless" in names
    assert "opencv-python" not in names


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_scripts_can_be_executed() -> None:
    for name in ("justw", "scripts/install.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name
