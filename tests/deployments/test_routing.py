"""The choice of a detector replica, by what Serve tells its router."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from deployments.routing import FewestOutstandingRouter

DETECTOR = DeploymentID("Detector", "circles")
A, B, C, D = (ReplicaID(name, DETECTOR) for name in "ABCD")
MOST = 4


class Replica(RunningReplica):
    """What the router asks of one."""

    def __init__(self, replica_id: ReplicaID) -> None:
        self._id = replica_id
        self.queue_len = 0

    @property
    def replica_id(self) -> ReplicaID:
        return self._id

    @property
    def max_ongoing_requests(self) -> int:
        return 80

    async def get_queue_len(self, *, deadline_s: float) -> int:
        assert deadline_s > 0
        return self.queue_len


def routed(work: Callable[[FewestOutstandingRouter], Awaitable[None]]) -> None:
    """Does it with a router that has asked three idle replicas."""

    async def main() -> None:
        router = FewestOutstandingRouter(  # type: ignore[no-untyped-call]
            DETECTOR, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
        )
        router.initialize_state(most_outstanding=MOST)
        router.update_replicas([Replica(A), Replica(B), Replica(C)])
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        await work(router)

    asyncio.run(main())


def fill(router: FewestOutstandingRouter) -> None:
    """Each replica has all that it has room for."""
    for each in (A, B, C):
        for _ in range(MOST):
            router.on_send_request(each)


async def choose(router: FewestOutstandingRouter) -> ReplicaID:
    """As Serve itself does: the first group of which one accepts."""
    for candidates in await router.choose_replicas(list(router.curr_replicas.values())):
        if candidates and (chosen := await router._select_from_candidate_replicas(candidates, 0)):
            return chosen.replica_id
    raise AssertionError("none accepts")


def test_the_one_with_the_fewest_is_chosen_whatever_replicas_said_long_ago() -> None:
    async def work(router: FewestOutstandingRouter) -> None:
        for each in (A, A, B, C, C):
            router.on_send_request(each)
        router.on_new_queue_len_info(B, 16)
        assert await choose(router) == B
        router.on_send_request(B)
        router.on_request_completed(A, "answered")
        router.decrement_queue_len_cache(A)
        router.on_new_queue_len_info(A, 12)
        assert await choose(router) == A
        assert [router.replica_queue_len_cache.get(each) for each in (A, B, C)] == [1, 2, 2]

    routed(work)


def test_what_a_replica_says_when_asked_does_not_weigh_in_the_choice() -> None:
    """What others have sent it ends without our being told, and it does not count what is on its way."""

    async def work(router: FewestOutstandingRouter) -> None:
        for each in (A, B, B, C, C):
            router.on_send_request(each)
        router.replica_queue_len_cache.update(A, MOST)
        router.replica_queue_len_cache.update(B, 0)
        assert {await choose(router) for _ in range(20)} == {A}

    routed(work)


def test_what_was_given_up_is_not_outstanding() -> None:
    """Serve tells of it by this call alone."""

    async def work(router: FewestOutstandingRouter) -> None:
        for each in (A, B, C):
            router.on_send_request(each)
        router.on_request_completed(C, "given up")
        assert await choose(router) == C

    routed(work)


def test_equals_are_chosen_by_chance() -> None:
    async def work(router: FewestOutstandingRouter) -> None:
        assert {await choose(router) for _ in range(100)} == {A, B, C}

    routed(work)


def test_a_replica_that_refuses_is_full() -> None:
    async def work(router: FewestOutstandingRouter) -> None:
        full = router.curr_replicas[A]
        assert isinstance(full, Replica)
        full.queue_len = 80
        router.on_send_request(A)
        router.on_new_queue_len_info(A, 80)
        router.on_request_completed(A, "refused")
        assert router.replica_queue_len_cache.get(A) == 80
        assert {await choose(router) for _ in range(20)} == {B, C}

    routed(work)


def test_no_replica_gets_more_than_it_has_room_for() -> None:
    """As Serve itself asks: one task after the other chooses, and each picture is sent a step of the loop later."""

    async def work(router: FewestOutstandingRouter) -> None:
        sent: Counter[ReplicaID] = Counter()

        async def send(name: str) -> None:
            metadata = RequestMetadata(request_id=name, internal_request_id=name)
            replica = await router._choose_replica_for_request(PendingRequest(args=[], kwargs={}, metadata=metadata))
            router.on_send_request(replica.replica_id)
            sent[replica.replica_id] += 1

        sending = [asyncio.create_task(send(str(number))) for number in range(10 * MOST)]
        await settled()
        assert sent == {A: MOST, B: MOST, C: MOST}
        for count in range(1, 6):
            router.on_request_completed(B, "answered")
            await settled()
            assert sent == {A: MOST, B: MOST + count, C: MOST}
        router.update_replicas([Replica(each) for each in (A, B, C, D)])
        await settled()
        assert sent == {A: MOST, B: MOST + 5, C: MOST, D: MOST}
        for task in sending:
            task.cancel()
        await asyncio.wait(sending)

    routed(work)


async def settled() -> None:
    """Returns when all that goes on without waiting has gone on."""
    for _ in range(1000):
        await asyncio.sleep(0)


def test_what_no_replica_has_room_for_waits_for_the_first_that_has() -> None:
    async def work(router: FewestOutstandingRouter) -> None:
        fill(router)
        waiting = [asyncio.create_task(choose(router)) for _ in range(2)]
        await settled()
        assert not any(task.done() for task in waiting)
        router.on_request_completed(B, "answered")
        assert await asyncio.gather(*waiting) == [B, B]

    routed(work)


def test_a_replica_that_starts_takes_what_waits() -> None:
    async def work(router: FewestOutstandingRouter) -> None:
        fill(router)
        waiting = asyncio.create_task(choose(router))
        await settled()
        router.update_replicas([Replica(each) for each in (A, B, C, D)])
        assert await waiting == D

    routed(work)


def test_nobody_waits_for_room_in_replicas_that_are_gone() -> None:
    """Serve itself waits for new ones then."""

    async def work(router: FewestOutstandingRouter) -> None:
        fill(router)
        waiting = asyncio.create_task(router.choose_replicas([]))
        await settled()
        for each in (A, B, C):
            router.on_replica_actor_died(each)
        assert not any(await waiting)

    routed(work)


def test_what_a_replica_has_of_others_is_not_counted_as_ours() -> None:
    """Asked at its start, it says what it has of all; with the last of ours answered, it would stay full."""

    async def work(router: FewestOutstandingRouter) -> None:
        for each in (A, B, C):
            router.replica_queue_len_cache.update(each, 10 * MOST)
        assert await choose(router) in (A, B, C)

    routed(work)


def test_a_replica_that_was_not_heard_of_for_long_is_asked_whatever_was_counted() -> None:
    """Else one whose last pictures nobody reported as ended would be full for ever."""

    async def work(router: FewestOutstandingRouter) -> None:
        fill(router)
        waiting = asyncio.create_task(choose(router))
        await settled()
        router.replica_queue_len_cache.invalidate_key(C)
        assert await asyncio.wait_for(waiting, timeout=30) == C

    routed(work)
