"""Which detector replica a picture is sent to."""

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica


class FewestOutstandingRouter(FIFOMixin, RequestRouter):
    """The one that has the fewest pictures of this ingress replica, in work or waiting; by chance among equals.

    Serve's own choice goes by what replicas say of their queues when they accept a request. Over gRPC that comes with
    the answer: it is as old as the request was long, so that one replica gets all there is while another runs dry.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002 - all pictures are alike
    ) -> list[list[RunningReplica]]:
        """All, of which the base class takes the one with the shortest queue that it knows of: the first of several.

        It adds one to a queue when it sends, and asks a replica of which it knows nothing, or nothing since 10 s.
        """
        return [random.sample(candidate_replicas, len(candidate_replicas))]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:  # noqa: ARG002
        """Takes one off, however the request ended: answered, failed, refused, or given up by who asked."""
        super().decrement_queue_len_cache(replica_id)

    def decrement_queue_len_cache(self, replica_id: ReplicaID) -> None:
        """Nothing: Serve calls it beside ``on_request_completed``, for answered requests alone."""

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Heeds only a replica that refuses, which is full: it stays so when the refused request is taken off."""
        replica = self.curr_replicas.get(replica_id)
        if replica is not None and num_ongoing_requests >= replica.max_ongoing_requests:
            super().on_new_queue_len_info(replica_id, num_ongoing_requests + 1)
