"""A KServe model server around ``owlvit.py``, built as the template's is: V1 protocol, base64, one picture a call.

``python -m evaluation.benchmark.programs.owlvit_server --http_port 8080``
"""

import base64
import io
from typing import Any

import kserve
import numpy as np
import torch
from PIL import Image

from evaluation.benchmark.programs.owlvit import SIDE_PX, OwlVitShape

_MEAN = np.array((0.4815, 0.4578, 0.4082), np.float32)
_DEVIATION = np.array((0.2686, 0.2613, 0.2758), np.float32)
_SHOWN = 8  # with random weights no score means anything


class OwlVitModel(kserve.Model):  # type: ignore[misc]  # the package is not typed
    """One network in this process, computing with all cores, as PyTorch does unless told otherwise."""

    def load(self) -> bool:
        torch.manual_seed(0)
        self._network = OwlVitShape().eval()
        self._query = torch.zeros((1, 16), dtype=torch.long)
        self.ready = True
        return True

    # Not a coroutine, as in the template: it keeps the event loop waiting while it computes.
    def predict(self, payload: dict[str, Any], _headers: Any = None, _response_headers: Any = None) -> dict[str, Any]:
        return {"predictions": self._detect(base64.b64decode(payload["instances"][0]["image"]["b64"]))}

    def _detect(self, image_bytes: bytes) -> list[dict[str, Any]]:
        with Image.open(io.BytesIO(image_bytes)) as opened:
            picture = opened.convert("RGB")
        small = np.asarray(picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC), np.float32) / 255
        pixels = torch.from_numpy((small - _MEAN) / _DEVIATION).permute(2, 0, 1)[None]  # (1, 3, 768, 768)
        with torch.inference_mode():
            logits, boxes = self._network(pixels, self._query)
        best = logits[0].topk(_SHOWN)
        found = []
        for score, index in zip(best.values.sigmoid().tolist(), best.indices.tolist(), strict=True):
            x, y, width, height = boxes[0, index].tolist()
            corners = {"xmin": x - width / 2, "ymin": y - height / 2, "xmax": x + width / 2, "ymax": y + height / 2}
            found.append(
                {
                    "bounding_box": {name: round(side * SIDE_PX) for name, side in corners.items()},
                    "centroid": {"x": round(x * SIDE_PX), "y": round(y * SIDE_PX)},
                    "radius": {"radius": round((width + height) / 4 * SIDE_PX)},
                    "label": "coin",
                    "score": score,
                }
            )
        return found


if __name__ == "__main__":
    model = OwlVitModel("circle-detector")
    model.load()
    kserve.ModelServer(enable_grpc=False).start([model])
