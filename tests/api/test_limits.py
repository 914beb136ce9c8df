"""What is refused while others are worked on."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.api.test_errors import assert_problem, send_file
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import running_api, settings_in, wait_until


def test_pictures_that_are_detected_in_again_count_as_uploads_do(tmp_path: Path) -> None:
    first, second = disc_jpeg(1), disc_jpeg(2)
    settings = settings_in(tmp_path, max_in_flight_bytes=len(first) + len(second) - 1)
    detector = GatedDetector(FixedDetector())
    with running_api(settings, detector) as api, ThreadPoolExecutor(1) as pool:
        again = [f"{send_file(api.client, picture).headers['Location']}/detection" for picture in (first, second)]
        detector.close_gate()
        held = pool.submit(api.client.post, again[0])
        wait_until(lambda: detector.calls == 3)
        assert_problem(api.client.post(again[1]), 429, "bytes of pictures")
        detector.open_gate()
        assert held.result().status_code == 200
        assert api.client.post(again[1]).status_code == 200
