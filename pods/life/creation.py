"""CreateContainer. `Creation.run` lists the steps; each registers its clean-up by name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from pods import bundle, disk_quotas, foreign_files, handlers, log_fields, pod_files
from pods.cgroups.places import container_cgroup
from pods.checkpoint import restore
from pods.container_limits import DISK, LOG_RATE
from pods.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImageVolumeFailed,
    ImageVolumeInvalid,
    InvalidArgument,
    PodError,
)
from pods.inflight import Background, Flights
from pods.life import chosen_image, container_plan
from pods.life.container_files import make_layer_directories, make_volumes
from pods.life.removal import delete_in_shim, remove_files
from pods.model import Container, ContainerConfig, ContainerUser, SandboxConfig, SandboxState
from pods.oci import mount_points, mount_sources, mounted_images, pod_contents
from pods.oci.check import validate
from pods.oci.document import ContainerContext, build_config, find_host_objects
from pods.oci.process import check_found, user_request
from pods.oci.resources import limits_of, linux_resources
from pods.security import user_namespaces
from pods.security.filter_cache import FilterCache
from pods.security.pulled_profiles import pulled_profile
from pods.security.selinux import relabel_pod_files
from pods.state.plugins import PluginEvent
from pods.state.store import ContainerRecord
from pods.state.transitions import can_start
from pods.undo import Undo
from runtime import validation
from runtime.client import ShimGone
from runtime.errors import (
    OPEN_IN_IMAGE,
    ImageMountFailed,
    OperationFailed,
    RuntimeCoreError,
    SpecError,
    WrongMountPoint,
)
from runtime.process.users import UserNotFound
from runtime.spec.parse import parse
from runtime.wire.calls import Create, Created, Identity, Prepare

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.cgroups.driver import Cgroups
    from pods.host import HostFacts
    from pods.life.chosen_image import ChosenImage
    from pods.life.container_plan import Plan
    from pods.life.removal import Removals
    from pods.life.shims import Shims
    from pods.model import Sandbox
    from pods.oci.document import HostObjects
    from pods.state.memory import State
    from pods.trace import Trace

_log = logging.getLogger("crisp.pods")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A container that is created as far as plugins need not hear of it."""

    container: Container
    user: Identity
    document: dict[str, Any]  # config.json
    placeholder: int  # pid of the process that keeps the container's scope, or 0


@dataclass(frozen=True, slots=True)
class Means:
    """The parts of the node that create containers."""

    state: State
    shims: Shims
    images: ImageStore
    host: HostFacts
    cgroups: Cgroups
    background: Background
    filters: FilterCache = field(default_factory=FilterCache)


class Creations:
    """Creates containers. A repeated request joins the first; a result that no caller waits for is undone."""

    def __init__(self, means: Means, removals: Removals) -> None:
        self._means = means
        self._state = means.state
        self._removals = removals
        self._flights = Flights(means.background)
        self._making: set[str] = set()

    def in_the_making(self) -> Iterator[str]:
        """Yield the ids of containers that are being made or undone."""
        yield from self._making

    async def create(self, sandbox_id: str, config: ContainerConfig, trace: Trace) -> str:
        """Create a container in a ready sandbox and return its id.

        See `Flights` for repeated and abandoned requests.
        """
        sandbox = self._state.ready_sandbox(sandbox_id)
        self._check_limits(sandbox.config, config)
        return await self._flights.run(
            (sandbox.id, config.metadata.name, config.metadata.attempt),
            config,
            lambda: self._make(sandbox.id, config, trace),
            self._removals.remove,
            made=lambda: self._made(sandbox.id, config),
        )

    def _check_limits(self, pod: SandboxConfig, config: ContainerConfig) -> None:
        settings = self._state.settings
        for limit in (LOG_RATE, DISK):
            limit.check(pod, config, settings)
        if DISK.of(pod, config, settings):
            name = DISK.annotation(pod, config)
            disk_quotas.require(settings.root, f"annotation {name!r}" if name in pod.annotations else DISK.setting)

    async def _make(self, sandbox_id: str, config: ContainerConfig, trace: Trace) -> str:
        sandbox = self._state.find_sandbox(sandbox_id).sandbox
        container_id = secrets.token_hex(32)
        fields = {"container": container_id, "container_name": config.metadata.name, "sandbox": sandbox.id}
        with explained(config):
            async with Undo(fields, self._state.recorder.within(sandbox.id, config.metadata.name).said) as undo:
                container = await self._begin(sandbox, container_id, config, trace, undo).run()
                undo.discard()
        await self.created(sandbox, container)
        return container_id

    async def created(self, sandbox: Sandbox, container: Container) -> None:
        """Tell plugins and the log of a container that has become visible."""
        await self._state.happened(PluginEvent.POST_CREATE, sandbox, container)
        fields = log_fields.of_container(container) | {"image": container.config.image.image}
        _log.info("container created", extra=fields)

    def restoration(self, sandbox: Sandbox, config: ContainerConfig, trace: Trace, undo: Undo) -> Creation:
        """Begin the creation of a container in a sandbox that is not visible yet. The caller publishes both."""
        return self._begin(sandbox, secrets.token_hex(32), config, trace, undo)

    def _begin(
        self, sandbox: Sandbox, container_id: str, config: ContainerConfig, trace: Trace, undo: Undo
    ) -> Creation:
        self._making.add(container_id)
        undo.at_end(self._making.discard, container_id)
        return Creation(self._means, sandbox, container_id, config, trace, undo)

    def _made(self, sandbox_id: str, config: ContainerConfig) -> str | None:
        """Return the id of the container that the same request made. Raises AlreadyExists if another has the name."""
        held = self._holder(sandbox_id, config)
        if held is None:
            return None
        if held.config == config and can_start(held):
            return held.id
        name = f"{config.metadata.name}/{config.metadata.attempt}"
        raise AlreadyExists(f"name {name!r} is held by container {held.id} until it is removed")

    def _holder(self, sandbox_id: str, config: ContainerConfig) -> Container | None:
        held = (one for one in self._state.containers_of(sandbox_id) if one.config.metadata == config.metadata)
        return next(held, None)


class Creation:
    """The creation of one container."""

    def __init__(
        self,
        means: Means,
        sandbox: Sandbox,
        container_id: str,
        config: ContainerConfig,
        trace: Trace,
        undo: Undo,
    ) -> None:
        self._means = means
        self._state, self._images, self._host = means.state, means.images, means.host
        self._settings = means.state.settings
        self._sandbox = sandbox
        self._id = container_id
        self._config = config
        self._trace = trace
        self._undo = undo
        self._root, self._bundle = self._settings.container_root(container_id), self._settings.bundle_dir(container_id)
        self._users = user_namespaces.mappings_of(sandbox.config)
        self._held: tuple[str, ...] = ()  # ids of the images that this creation keeps from removal
        self._listed = False  # whether the container was in the lists: then whoever forgets it releases the images
        self._intent: Future[None] | None = None
        self._document: dict[str, Any] | None = None  # config.json as the plugins know it
        self._target_pid = 0  # pid of the container whose PID namespace is joined

    async def run(self) -> Container:
        """Take all steps. Raises what CreateContainer answers; the caller's `Undo` then cleans up."""
        prepared = await self.prepare()
        await self._state.require_plugins(wait=True)
        # Plugins hear of the container until it is in the lists: see `PluginGate`.
        async with self._state.gate.passing():
            return await self._publish(await self.finish(prepared))

    async def prepare(self, archive: str = "", deadline: float | None = None) -> Prepared:
        """Take the steps before plugins hear of the container.

        `archive` is the path of the checkpoint to restore it from, if any, which must be unpacked by the `deadline` of
        the event loop's clock. Raises what CreateContainer answers, and TimeoutError.
        """
        # Registered first, so that it runs last, after the container is forgotten.
        self._undo.register("release the images", self._release)
        async with asyncio.timeout_at(deadline):
            chosen = await self._choose_image(archive)
        plan = container_plan.plan(self._id, self._sandbox, self._config, chosen, self._images)
        await self._reserve(plan, chosen)
        found = await self._look_up(plan)
        await self._make_layer(plan, deadline)
        identity, placeholder = await self._make_rootfs(plan, found)
        volumes = await self._make_volumes(plan, found, identity)
        document = self._configure(plan, found, identity, volumes)
        await self._prepare_sources(plan, found)
        return Prepared(plan.container, identity, document, placeholder)

    async def finish(self, prepared: Prepared) -> ContainerRecord:
        """Take the other steps, inside the plugins' gate. Returns the record that the caller makes visible."""
        container, document = await self._ask_plugins(prepared.container, prepared.document)
        await self._write(document, prepared.placeholder)
        assert self._intent is not None
        await asyncio.wrap_future(self._intent)
        user = prepared.user
        found = ContainerUser(uid=user.uid, gid=user.gid, additional_gids=user.additional_gids)
        return ContainerRecord(container=msgspec.structs.replace(container, user=found), finished=True)

    # -- what is wanted -----------------------------------------------------------------------------------------------

    async def _choose_image(self, archive: str) -> ChosenImage:
        name = archive or self._config.image.image
        if not restore.is_archive(name):
            return await chosen_image.choose(
                self._config, self._sandbox, self._images, checkpoint_images=self._settings.checkpoint_images
            )
        restore.check(self._sandbox)
        # On disk before anything is made: after a crash the next daemon cleans up.
        await asyncio.wrap_future(self._intend(container_plan.begun(self._id, self._sandbox, self._config)))
        return await chosen_image.unpacked(name, self._root / "restore", self._images)

    async def _reserve(self, plan: Plan, chosen: ChosenImage) -> None:
        """Keep the images, and start writing the container's record to disk."""
        for image_id in plan.container.images:
            self._images.hold(image_id)
        self._held = plan.container.images
        await chosen_image.require_trusted(plan.container, chosen, self._images)
        self._intend(plan.container)

    def _release(self) -> None:
        if self._listed:
            return  # the container's removal releases them
        for image_id in self._held:
            self._images.release(image_id)

    def _intend(self, container: Container) -> Future[None]:
        """Write an unfinished record: the next daemon removes the container if this one is killed."""
        if self._intent is None:
            self._undo.register("forget the container", self._forget)
            self._undo.register("remove the container's files", remove_files, self._state, container)
        self._intent = self._state.store.begin_put(ContainerRecord(container=container))
        return self._intent

    async def _forget(self) -> None:
        if await self._state.forget_container(self._id):
            self._listed = False  # and nobody else removes it

    async def _look_up(self, plan: Plan) -> HostObjects:
        """Refuse invalid combinations, and find on the host what the request names."""
        validate(plan.config, self._sandbox, self._host)
        self._target_pid = container_plan.target_pid(plan.container, self._state)
        profile = await pulled_profile(plan.config.security, self._images)
        return await foreign_files.touch(
            f"find the volumes of container {plan.config.metadata.name!r}",
            find_host_objects,
            plan.config,
            self._sandbox,
            self._host,
            self._settings.cdi_spec_dirs,
            self._settings.hooks_dirs,
            profile,
        )

    # -- what is made -------------------------------------------------------------------------------------------------

    async def _make_layer(self, plan: Plan, deadline: float | None) -> None:
        """Make the bundle and the writable layer, with a checkpoint's changes."""
        limit = DISK.of(self._sandbox.config, self._config, self._settings)
        make_layer_directories(self._root, plan.layers, self._users, limit)
        self._bundle.mkdir(parents=True, mode=0o700)
        if plan.checkpoint is not None:
            async with asyncio.timeout_at(deadline):
                await restore.write_changes(plan.checkpoint, self._root / "upper", self._images)
        self._trace.step("directories made")

    async def _make_rootfs(self, plan: Plan, found: HostObjects) -> tuple[Identity, int]:
        """Have the shim mount the rootfs and find the user in it. Returns the user, and the placeholder's pid or 0."""
        call = self._create_call(plan, found)
        self._undo.register("remove the container's cgroup", self._remove_cgroup)
        self._undo.register("have the shim delete the container", delete_in_shim, self._means.shims, plan.container)
        created = await self._create_in_shim(call, plan.container)
        self._trace.step("rootfs mounted, user found")
        identity = created.identity
        check_found(call.user, identity.uid, identity.gid)
        if self._users is not None:
            user_namespaces.check_user(identity, self._users)
        return identity, created.holder

    async def _create_in_shim(self, call: Create, container: Container) -> Created:
        shims = self._means.shims
        shim = shims.of(self._sandbox.id)
        try:
            return await shim.call(call)
        except ShimGone:
            if not shims.has_successor(self._sandbox.id, shim):
                raise
        await delete_in_shim(shims, container)  # the successor may have it
        return await shims.of(self._sandbox.id).call(call)

    async def _remove_cgroup(self) -> None:
        """Remove what a shim has left that died meanwhile."""
        await asyncio.to_thread(self._means.cgroups.kill_container, self._sandbox, self._id)

    def _create_call(self, plan: Plan, found: HostObjects) -> Create:
        root, config = str(self._root), plan.config
        volumes_dir, label = self._root / "volumes", found.labels.files
        handler = handlers.handler_of(self._sandbox, self._settings.runtime_handlers)
        return Create(
            container=self._id,
            bundle=str(self._bundle),
            lower=tuple(str(layer) for layer in plan.layers),
            upper=f"{root}/upper",
            work=f"{root}/work",
            user=user_request(config, plan.image.config),
            mount_points=mount_points.shim_argument(config, found.mount_sources, found.directories, volumes_dir),
            images=mounted_images.shim_argument(
                config, plan.container.mounted_images, self._images, volumes_dir, label
            ),
            hold=(handler is None or handler.has_sandboxes) and self._means.cgroups.of(self._sandbox).hold,
            label=label,
            restored=plan.checkpoint is not None,
            runtime=handlers.runtime_of(self._sandbox, handler, self._settings.state) if handler else None,
            cgroup=container_cgroup(self._sandbox, self._id) if handler else "",
            flags=handler.options if handler else (),
        )

    async def _make_volumes(self, plan: Plan, found: HostObjects, user: Identity) -> Mapping[str, str]:
        shim = self._means.shims.of(self._sandbox.id)
        return await make_volumes(plan, user, self._users, self._root / "volumes", found.labels.files, shim)

    async def _prepare_sources(self, plan: Plan, found: HostObjects) -> None:
        """Make missing volume directories and relabel. This changes the host, so it comes after every check."""
        label, directory = found.labels.files, self._settings.sandbox_dir(self._sandbox.id)
        if not label and not found.some_are_missing:
            return

        def prepare() -> None:
            mount_sources.prepare(plan.config.mounts, found.mount_sources, label)
            if label:
                relabel_pod_files(directory, label)

        await foreign_files.touch(f"prepare the volumes of container {plan.config.metadata.name!r}", prepare)

    # -- config.json --------------------------------------------------------------------------------------------------

    def _configure(self, plan: Plan, found: HostObjects, user: Identity, volumes: Mapping[str, str]) -> dict[str, Any]:
        document = build_config(self._context(plan, found, user, volumes))
        if plan.checkpoint is not None and (ignored := plan.checkpoint.adapt(document)):
            fields = log_fields.of_container(plan.container) | {"mounts": ignored}
            _log.warning("left out mounts that the checkpointed container did not have", extra=fields)
        if self._sandbox.runtime_handler not in handlers.BUILT_IN:
            in_sandbox = handlers.has_sandbox(self._sandbox, self._settings.runtime_handlers)
            handlers.adapt(document, self._sandbox, self._id, self._host, in_sandbox=in_sandbox)
        return document

    def _context(self, plan: Plan, found: HostObjects, user: Identity, volumes: Mapping[str, str]) -> ContainerContext:
        sandbox, sandbox_dir = self._sandbox, self._settings.sandbox_dir(self._sandbox.id)
        return ContainerContext(
            container_id=self._id,
            sandbox=sandbox,
            config=plan.config,
            image=plan.image.config,
            args=plan.args,
            hostname=pod_contents.hostname(sandbox.id, sandbox.config, self._host.hostname),
            user=user,
            infra_pid=sandbox.infra_pid,
            target_pid=self._target_pid,
            sandbox_dir=sandbox_dir,
            files_dir=pod_files.place(sandbox_dir),
            volumes_dir=self._root / "volumes",
            volumes=volumes,
            cgroups_path=container_cgroup(sandbox, self._id),
            host=self._host,
            found=found,
        )

    async def _ask_plugins(
        self, container: Container, document: dict[str, Any]
    ) -> tuple[Container, dict[str, Any]]:
        await self._state.require_plugins(wait=False)
        if self._state.plugins is None:
            return container, document
        self._document = document
        self._undo.register("tell plugins of the container's removal", self._tell_of_removal, container)
        adjusted = await self._state.plugins.adjusted(self._sandbox, container, document)
        self._document = adjusted
        _check_adjusted(adjusted)
        if (limits := limits_of(adjusted)) != limits_of(document):
            linux_resources(limits, self._host, "NRI: adjust.linux.resources")
            container = msgspec.structs.replace(container, updated=limits)
        return container, adjusted

    async def _tell_of_removal(self, container: Container) -> None:
        await self._state.happened(PluginEvent.REMOVE, self._sandbox, container, self._document)

    async def _write(self, document: dict[str, Any], placeholder: int) -> None:
        """Write config.json and its seccomp filter; meanwhile make the cgroup if there is a placeholder process."""
        making = None
        if placeholder:
            driver = self._means.cgroups.of(self._sandbox)
            made = driver.make(self._sandbox, self._id, placeholder, document["linux"]["resources"])
            making = self._means.background.start(made)
        try:
            bundle.write_config(self._bundle, document)
            self._trace.step("config.json written")
            program, flags = await self._means.filters.of(document)
            bundle.write_filter(self._bundle, program, flags)
            self._trace.step("seccomp filter ready")
        except BaseException:
            if making is not None:
                await asyncio.wait({making})  # or the scope would appear after the container was undone
            raise
        if making is not None:
            await making
            self._trace.step("scope made")
        # Its start comes soon. Until then the shim has time, while this process and its client have work.
        call = Prepare(self._id, self._config.stdin, filter_flags=flags)
        self._means.shims.of(self._sandbox.id).prepare(call, program)

    async def _publish(self, record: ContainerRecord) -> Container:
        """Make the container durable and visible. Raises FailedPrecondition if its pod was stopped meanwhile."""
        await self._state.save_container(record)
        self._listed = True
        self._trace.step("container durable")
        # Checked after the container is visible: a stop ends the containers that it sees.
        now = self._state.sandboxes.get(self._sandbox.id)
        if now is None or now.sandbox.state is not SandboxState.READY:
            raise FailedPrecondition(f"pod sandbox {self._sandbox.id} was stopped while the container was created")
        return record.container


def _check_adjusted(document: dict[str, Any]) -> None:
    """Raise PodError if no start would accept the config.json that plugins made."""
    try:
        validation.check(parse(document))
    except RuntimeCoreError as error:
        raise PodError(f"NRI: the container as plugins adjusted it: {error}") from error


@contextlib.contextmanager
def explained(config: ContainerConfig) -> Iterator[None]:
    """Turn the errors of lower rooms into this room's."""
    try:
        yield
    except UserNotFound as error:
        raise InvalidArgument(f"image {config.image.image!r}: {error}") from error
    except (SpecError, WrongMountPoint) as error:
        raise InvalidArgument(str(error)) from error
    except (RuntimeCoreError, OSError) as error:
        if isinstance(error, OperationFailed) and error.operation == OPEN_IN_IMAGE:
            raise ImageVolumeInvalid(f"config.mounts: image_sub_path: {error}") from error
        if isinstance(error, ImageMountFailed):
            raise ImageVolumeFailed(f"create container {config.metadata.name!r}: {error}") from error
        raise PodError(f"create container {config.metadata.name!r}: {error}") from error
