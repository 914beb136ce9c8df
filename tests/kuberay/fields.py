"""Reading a manifest wholly: a field that nobody asked for is an error, so that none goes untested in silence."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from tests.kuberay.manifests import Manifest

_REQUIRED: Final = object()


class NotUnderstoodError(Exception):
    """A manifest says something that its reader would leave out; the message names the field."""


class Fields:
    """A mapping of a manifest, whose fields are taken one by one."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise NotUnderstoodError(f"{path}: {value!r} is no mapping")
        self.path = path
        self._left = dict(value)
        self._parts: list[Fields] = []

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The field's value, as it is."""
        if name not in self._left and default is _REQUIRED:
            raise NotUnderstoodError(f"{self.path}.{name}: absent; what Istio takes instead is not translated")
        return self._left.pop(name, default)

    def take_one_of(self, name: str, *accepted: object, default: Any = _REQUIRED) -> Any:
        """The field's value, which has to be one of these."""
        value = self.take(name, default)
        if value not in accepted:
            raise NotUnderstoodError(f"{self.path}.{name}: {value!r} is none of {accepted}")
        return value

    def part(self, name: str) -> "Fields":
        """The field's value, a mapping that has to be read wholly too; an empty one where it is absent."""
        part = Fields(self.take(name, {}), f"{self.path}.{name}")
        self._parts.append(part)
        return part

    def parts(self, name: str) -> list["Fields"]:
        """The field's value, a list of such mappings; empty where it is absent."""
        parts = [Fields(value, f"{self.path}.{name}[{index}]") for index, value in enumerate(self.take(name, []))]
        self._parts.extend(parts)
        return parts

    def check_is_read(self) -> None:
        """
        Raises:
            NotUnderstoodError: A field was not taken, here or further down.
        """
        for name, value in self._left.items():
            raise NotUnderstoodError(f"{self.path}.{name}: {value!r} is not translated")
        for part in self._parts:
            part.check_is_read()


@contextlib.contextmanager
def read_spec(manifest: Manifest) -> Iterator[Fields]:
    """The object's ``spec``; it has to be read wholly before the context is left."""
    path = f"{manifest['kind']}/{manifest['metadata']['name']}"
    whole = Fields(manifest, path)
    for name in ("apiVersion", "kind", "metadata"):
        whole.take(name)
    yield whole.part("spec")
    whole.check_is_read()
