"""The project's exceptions, one tree, split by whose fault it is.

    CirclesError
    ├── ImageError                      the picture's fault
    │   ├── UnsupportedImageError       not an accepted format
    │   ├── BrokenImageError            an accepted format, but damaged
    │   └── ImageTooLargeError          more pixels than allowed
    ├── InferenceInputError             an inference request that its protocol does not allow
    ├── NotFoundError                   no such image, object or model
    ├── DetectionFailedError            the detector stumbled over this picture
    ├── OverloadedError                 no room just now; worth trying again
    │   ├── TooManyUploadsError
    │   └── BacklogFullError
    ├── WeightsError                    the detector's weights are absent or not the right ones
    └── UnavailableError                a part of the service is away
        ├── DetectorUnavailableError
        ├── DatabaseUnavailableError
        ├── DatabaseSchemaError         its tables are of another version
        ├── StorageUnavailableError
        ├── StorageMismatchError        it has the files of another service
        ├── StorageFullError
        └── DataFolderLockedError       another service uses this data folder

Every class hands its arguments to ``super().__init__``, so that they survive pickling between replicas, and clients
are answered from ``detail``, never from ``str(error)``, which Ray replaces by a traceback.
"""


class CirclesError(Exception):
    """Base of all errors that this project raises on purpose."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ImageError(CirclesError):
    """The picture cannot be used."""


class UnsupportedImageError(ImageError):
    """The bytes are not a picture of an accepted format."""


class BrokenImageError(ImageError):
    """The bytes start like an accepted format but cannot be decoded."""


class ImageTooLargeError(ImageError):
    """The picture has more pixels than allowed."""


class InferenceInputError(CirclesError):
    """A request for inference is not what its protocol and this detector take; the message says what is wrong."""


class NotFoundError(CirclesError):
    """There is no image, object or model of this id."""


class DetectionFailedError(CirclesError):
    """The detector raised an error on this picture, and would do so again."""


class WeightsError(CirclesError):
    """A weights file is absent, damaged, or not the one that this version was made with."""


class OverloadedError(CirclesError):
    """There is no room for this request just now."""


class TooManyUploadsError(OverloadedError):
    """As many uploads as allowed are being worked on."""


class BacklogFullError(OverloadedError):
    """As many pictures as allowed are waiting for detection."""


class UnavailableError(CirclesError):
    """A part that the answer needs is away."""


class DetectorUnavailableError(UnavailableError):
    """No detector answered in time."""


class DatabaseUnavailableError(UnavailableError):
    """The database does not answer."""


class DatabaseSchemaError(UnavailableError):
    """The database's tables do not have the form that this version works with."""


class StorageUnavailableError(UnavailableError):
    """The image store cannot be read or written."""


class StorageMismatchError(UnavailableError):
    """The image store has the files of a service with another database, or hardly any of this one's."""


class StorageFullError(UnavailableError):
    """The image store or the database has no space left."""


class DataFolderLockedError(UnavailableError):
    """Another service uses this data folder."""
