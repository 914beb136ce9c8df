"""``python -m tests.chaos.clock_service``: the HTTP application alone, for a test that plays with its process's clock.

Lines of its input open and close the detector's gate; the end of its input ends it.
"""

import sys
import threading
from pathlib import Path

import uvicorn

from circles.geometry import Circle
from deployments.api import create_api
from deployments.services import open_services
from tests.fakes import FixedDetector, GatedDetector
from tests.running import settings_in


def main(folder: Path, port: int) -> None:
    """Serves what is in the folder until the input ends."""
    detector = GatedDetector(FixedDetector((Circle(90, 110, 40), 0.9)))
    settings = settings_in(folder, detection_timeout_s=0.5, reconcile_period_s=0.5, orphan_grace_s=60)
    app = create_api(open_services(settings, detector, holder="a test of clocks"), is_behind_serve=False)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none"))

    def obey() -> None:
        for line in sys.stdin:
            {"open": detector.open_gate, "close": detector.close_gate}[line.strip()]()
        server.should_exit = True

    threading.Thread(target=obey, daemon=True).start()
    server.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
