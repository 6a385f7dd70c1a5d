"""The names of the files in a checkpoint archive, the same as CRI-O's and podman's.

    checkpoint/       criu's images, and descriptors.json
    rootfs-diff.tar   what the container changed in its root; deleted.files lists what it deleted of the image
    spec.dump         its config.json
    config.dump       the container's id and name, its image, and times
    ctr.log           its log
    dump.log          criu's log
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
# Members of config.dump that name the container's image: its id, a registry's digest, and the name in the request.
IMAGE_ID: Final = "rootfsImage"
IMAGE_REF: Final = "rootfsImageRef"
IMAGE_NAME: Final = "rootfsImageName"
