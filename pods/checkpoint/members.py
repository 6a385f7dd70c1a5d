"""What a checkpoint's archive has in it, by the names that CRI-O and podman give its parts.

    checkpoint/       criu's images, and descriptors.json
    rootfs-diff.tar   what the container has changed in its root, and deleted.files what of the image it has deleted
    spec.dump         its config.json
    config.dump       which container it was, of which image, and when
    ctr.log           its log
    dump.log          criu's
"""

from __future__ import annotations

from typing import Final

IMAGES: Final = "checkpoint"
CHANGES: Final = "rootfs-diff.tar"
DELETED: Final = "deleted.files"
SPEC: Final = "spec.dump"
CONFIG: Final = "config.dump"
LOG: Final = "ctr.log"
CRIU_LOG: Final = "dump.log"
# Members of config.dump that name the container's image: by its id, by a digest of a registry, and as the request did.
IMAGE_ID: Final = "rootfsImage"
IMAGE_REF: Final = "rootfsImageRef"
IMAGE_NAME: Final = "rootfsImageName"
