"""Objects: what was found in an image."""

from fastapi import APIRouter

from deployments.problems import problem_responses
from deployments.routes.images import ImageId
from deployments.schemas import ImageObjectBody, ObjectListBody, objects_above
from deployments.services import MinScoreParameter, ServicesParameter
from deployments.threads import in_thread

router = APIRouter(tags=["objects"])


@router.get("/images/{image_id}/objects", responses=problem_responses(404))
async def list_objects(image_id: ImageId, services: ServicesParameter, min_score: MinScoreParameter) -> ObjectListBody:
    """All objects of an image, best score first."""
    record = await in_thread(services.book.get, image_id)
    objects = objects_above(record, min_score)
    return ObjectListBody(image_id=image_id, status=record.status, count=len(objects), objects=objects)


@router.get("/images/{image_id}/objects/{object_id}", responses=problem_responses(404))
async def get_object(image_id: ImageId, object_id: str, services: ServicesParameter) -> ImageObjectBody:
    """One object, whatever its score."""
    return ImageObjectBody.of(await in_thread(services.book.get_object, image_id, object_id))
