"""What the application in a container is told; that it runs there is tests/test_image.py's."""

import yaml

from serve_app.container import container_config
from serve_app.processes import ROOT


def test_only_the_address_differs_from_the_configuration_of_this_machine() -> None:
    ours = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    theirs = yaml.safe_load(container_config())
    assert (ours["http_options"].pop("host"), theirs["http_options"].pop("host")) == ("127.0.0.1", "0.0.0.0")
    assert theirs == ours
