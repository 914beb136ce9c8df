"""What cameras, lamps and files do to a picture; no pixel moves, so truth stays truth."""

import cv2
import numpy as np

from circles.imaging import RGBImage, decode_image, encode_jpeg


def photograph(image: RGBImage, rng: np.random.Generator) -> RGBImage:
    """The picture in another light, out of focus, with noise, compressed; each by chance."""
    pixels = image.astype(np.float32)
    if rng.random() < 0.8:
        pixels = _relit(pixels, rng)
    if rng.random() < 0.15:
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = grey + np.float32(rng.choice((0.0, 0.4, 1.6))) * (pixels - grey)
    if rng.random() < 0.05:
        pixels = pixels[..., rng.permutation(3)]
    if rng.random() < 0.35:
        pixels = _blurred(pixels, rng)
    if rng.random() < 0.4:
        pixels = pixels + rng.normal(0, rng.uniform(1, 12), (*pixels.shape[:2], rng.choice((1, 3)))).astype(np.float32)
    result = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        result = decode_image(encode_jpeg(result, quality=int(rng.integers(25, 96))), max_pixels=result.size)
    return result


def _relit(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gain = np.exp(rng.normal(0, 0.22) + rng.normal(0, 0.07, 3))
    if rng.random() < 0.08:  # a colored lamp
        gain = gain * rng.uniform(0.1, 1.0, 3)
    mean = pixels.mean(dtype=np.float64)
    contrast = np.exp(rng.normal(0, 0.2))
    table = np.arange(256)[:, None] / 255
    gamma = np.exp(rng.normal(0, 0.25))
    table = 255 * table**gamma * gain
    table = (table - mean) * contrast + mean + rng.normal(0, 8)
    lit: np.ndarray = np.stack(
        [table[:, channel].astype(np.float32)[pixels[..., channel].astype(np.uint8)] for channel in range(3)], axis=-1
    )
    return lit


def _blurred(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.7:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 2.0)))
    # A shaken camera. Odd lengths: the kernel of an even one lies half a px beside the middle, and moves the picture.
    length, angle = 2 * int(rng.integers(1, 5)) + 1, rng.uniform(0, np.pi)
    kernel = np.zeros((length, length), np.float32)
    middle = (length - 1) / 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * middle
    start, end = middle - reach, middle + reach
    cv2.line(kernel, tuple(np.round(start).astype(int).tolist()), tuple(np.round(end).astype(int).tolist()), 1.0)
    return np.asarray(cv2.filter2D(pixels, -1, kernel / kernel.sum()))
