"""EnvoyFilters: what they change in the gateway's Envoy."""

from collections.abc import Sequence

from tests.kuberay.fields import Fields, NotUnderstoodError, read_spec
from tests.kuberay.manifests import Manifest
from tests.kuberay.policies import GATEWAY
from tests.kuberay.resources import Config, all_of, merged, only

CONNECTION_MANAGER = "envoy.filters.network.http_connection_manager"
ROUTER = "envoy.filters.http.router"


class Patches:
    """The changes of all EnvoyFilters, in the order in which Istio takes objects of one age: that of their names."""

    def __init__(self, objects: Sequence[Manifest]) -> None:
        self.filters: list[Config] = []
        """Of HTTP, to be inserted before the router."""
        self._of_managers: list[Config] = []
        self._of_routes: list[tuple[str, Config]] = []
        for each in sorted(all_of(objects, "EnvoyFilter"), key=lambda each: str(each["metadata"]["name"])):
            with read_spec(each) as spec:
                if spec.part("workloadSelector").take("labels") != GATEWAY.labels:
                    raise NotUnderstoodError(f"{spec.path}.workloadSelector: not the ingress gateway")
                for patch in spec.parts("configPatches"):
                    self._read(patch)
        known = {route["name"] for route in only(objects, "VirtualService")["spec"]["http"]}
        unknown = {name for name, _ in self._of_routes} - known
        if unknown:
            raise NotUnderstoodError(f"EnvoyFilter: there are no routes {', '.join(sorted(unknown))}")

    def manager(self, config: Config) -> Config:
        """A connection manager with the changes."""
        for patch in self._of_managers:
            config = merged(config, patch)
        return config

    def route(self, config: Config) -> Config:
        """A route with the changes for its name."""
        for name, patch in self._of_routes:
            if name == config["name"]:
                config = merged(config, patch)
        return config

    def _read(self, patch: Fields) -> None:
        kind = patch.take_one_of("applyTo", "HTTP_FILTER", "NETWORK_FILTER", "HTTP_ROUTE")
        match = patch.part("match")
        match.take_one_of("context", "GATEWAY")
        change = patch.part("patch")
        change.take_one_of("operation", "INSERT_BEFORE" if kind == "HTTP_FILTER" else "MERGE")
        value = change.take("value")
        if kind == "HTTP_ROUTE":
            route = match.part("routeConfiguration").part("vhost").part("route")
            self._of_routes.append((route.take("name"), value))
            return
        place = match.part("listener").part("filterChain").part("filter")
        place.take_one_of("name", CONNECTION_MANAGER)
        if kind == "HTTP_FILTER":
            place.part("subFilter").take_one_of("name", ROUTER)
            self.filters.append(value)
        else:
            self._of_managers.append(value["typed_config"])
