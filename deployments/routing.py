"""Which detector replica a picture is sent to."""

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

_LOOK_AGAIN_S = 1.0


class FewestOutstandingRouter(FIFOMixin, RequestRouter):
    """The one that has the fewest pictures of this ingress replica, in work or waiting; by chance among equals.

    Serve's own choice goes by what replicas say of their queues when they accept a request. Over gRPC that comes with
    the answer: it is as old as the request was long, so that one replica gets all there is while another runs dry. And
    what one says when it is asked, at its start, counts others' pictures, and not those that are on their way.

    A replica has a few at most. What else there is waits here, first come, first served, and a replica that starts in a
    burst has its share of it at once: what was sent to another one would stay there.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """
        Args:
            kwargs: ``most_outstanding``: pictures that a replica has of this ingress replica, in work and next.
        """
        self._most_outstanding: int = kwargs["most_outstanding"]
        self._outstanding: Counter[ReplicaID] = Counter()
        self._may_have_room = asyncio.Event()
        self._turn = asyncio.Lock()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],  # noqa: ARG002 - others may be there when there is room
        pending_request: PendingRequest | None = None,  # noqa: ARG002 - all pictures are alike
    ) -> list[list[RunningReplica]]:
        """As soon as one has room, those that have the fewest; then the others that have room, for Serve to turn to
        where none of the first ones answers or accepts.

        The base class asks a replica of which it knows nothing, or nothing since 10 s.
        """
        async with self._turn:
            await asyncio.sleep(0)  # whoever chose before sends, and is counted, in a step of the loop of its own
            while not (replicas := self._replicas_with_room()) and self.curr_replicas:
                self._may_have_room.clear()
                # Nobody tells that a replica was not heard of for long.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await self._may_have_room.wait()
        fewest = min((self._outstanding[replica.replica_id] for replica in replicas), default=0)
        ranks: tuple[list[RunningReplica], list[RunningReplica]] = ([], [])
        for replica in random.sample(replicas, len(replicas)):
            ranks[self._outstanding[replica.replica_id] > fewest].append(replica)
        return list(ranks)

    def _replicas_with_room(self) -> list[RunningReplica]:
        """Of one that nothing was heard of for 10 s the base class asks how much it has, whatever was counted here."""
        return [
            replica
            for replica_id, replica in self.curr_replicas.items()
            if self._outstanding[replica_id] < self._most_outstanding
            or self.replica_queue_len_cache.get(replica_id) is None
        ]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Those that are new have room."""
        super().update_replicas(replicas)
        self._outstanding = Counter({each: self._outstanding[each] for each in self.curr_replicas})
        self._may_have_room.set()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Where it was the last one, who waits for room in it waits for another one instead."""
        super().on_replica_actor_died(replica_id)
        self._may_have_room.set()

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Counts one."""
        super().on_send_request(replica_id)
        self._outstanding[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:  # noqa: ARG002
        """Takes one off, however the request ended: answered, failed, refused, or given up by who asked."""
        super().decrement_queue_len_cache(replica_id)
        if self._outstanding[replica_id] > 0:  # else it was one of a replica that has gone, or that came back
            self._outstanding[replica_id] -= 1
        self._may_have_room.set()

    def decrement_queue_len_cache(self, replica_id: ReplicaID) -> None:
        """Nothing: Serve calls it beside ``on_request_completed``, for answered requests alone."""

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Heeds only a replica that refuses, which is full: it stays so when the refused request is taken off."""
        replica = self.curr_replicas.get(replica_id)
        if replica is not None and num_ongoing_requests >= replica.max_ongoing_requests:
            super().on_new_queue_len_info(replica_id, num_ongoing_requests + 1)
