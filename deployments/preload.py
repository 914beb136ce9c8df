"""Imported by each of Ray's workers as it starts, before it knows what for (``RAY_preload_python_modules``).

Beside a running replica a new worker is a replica to be, and imports all that those need at once. So the spare one
(``deployments.spare_worker``) has it when it is wanted. While the application starts, workers are for other things
too, and each imports what it needs.
"""

import importlib

from deployments.spare_worker import titles_of_workers

_REPLICA_TITLE = "ray::ServeReplica:"
_MODULES = ("deployments.ingress", "deployments.detector")

if any(title.startswith(_REPLICA_TITLE) for title in titles_of_workers()):
    for _name in _MODULES:
        importlib.import_module(_name)
