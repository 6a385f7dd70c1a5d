"""The life of containers: CreateContainer, StartContainer, StopContainer, RemoveContainer, and their exits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import secrets
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pods import handlers, log_fields, log_place, pod_files
from pods.checkpoint import restore as restores
from pods.directories import remove_trees
from pods.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PodError
from pods.inflight import Background, Flights
from pods.model import Container, ContainerConfig, ContainerState, ContainerUser, NamespaceMode, SandboxState
from pods.oci import document as oci
from pods.oci import image_volumes, mount_points, mounted_images
from pods.oci.cgroups import limits_of
from pods.oci.signals import signal_number
from pods.security import user_namespaces
from pods.security.filter_cache import FilterCache
from pods.security.labels import selinux_labels
from pods.security.selinux import relabel, relabel_pod_files
from pods.state.plugins import Moment
from pods.state.store import ContainerRecord, SandboxRecord
from runtime import validation
from runtime.client import ShimGone, ShimTooOld
from runtime.criu import worker as criu
from runtime.errors import NotRunning, OperationFailed, RuntimeCoreError, SpecError, WrongMountPoint
from runtime.process.users import Identity, UserNotFound
from runtime.spec.parse import parse

if TYPE_CHECKING:
    from image.model import Image
    from image.store import ImageStore
    from pods.checkpoint.restore import Checkpoint
    from pods.host import HostFacts
    from pods.life.shims import Shims
    from pods.model import Sandbox
    from pods.state.memory import State
    from pods.systemd.scopes import Scopes
    from pods.trace import Trace
    from runtime.namespaces.user import IDMappings

_log = logging.getLogger("crisp.pods")
_START_FAILED = 128


class Containers:
    """All changes to containers go through here; each is idempotent and finishes although its caller leaves."""

    def __init__(
        self,
        state: State,
        shims: Shims,
        images: ImageStore,
        host: HostFacts,
        scopes: Scopes,
        background: Background,
    ) -> None:
        self._scopes = scopes
        self._state = state
        self._shims = shims
        self._images = images
        self._host = host
        self._background = background
        self._flights = Flights(background)
        self._filters = FilterCache()

    # -- create -------------------------------------------------------------------------------------------------------

    async def create(self, sandbox_id: str, config: ContainerConfig, trace: Trace, archive: str = "") -> str:
        """Make a container in a ready sandbox and return its id; repeated requests as for sandboxes.

        `archive` is the path of a checkpoint that it is to be restored from.
        """
        sandbox = self._state.find_sandbox(sandbox_id).sandbox
        if sandbox.state is not SandboxState.READY:
            raise FailedPrecondition(f"pod sandbox {sandbox.id} is not ready: no container can be created in it")
        return await self._flights.run(
            (sandbox.id, config.metadata.name, config.metadata.attempt),
            (config, archive),
            lambda: self._make(sandbox.id, config, trace, archive),
            self._undo,
            made=lambda: self._made(sandbox.id, config, archive),
        )

    def _made(self, sandbox_id: str, config: ContainerConfig, archive: str) -> str | None:
        """The id of the container that the same request made before. Raises AlreadyExists when another has the name."""
        held = self._holder(sandbox_id, config)
        if held is None:
            return None
        same = held.container.config == config and (not archive or bool(held.container.checkpoint))
        if same and held.container.state is ContainerState.CREATED:
            return held.container.id
        name = f"{config.metadata.name}/{config.metadata.attempt}"
        raise AlreadyExists(f"name {name!r} is held by container {held.container.id} until it is removed")

    def _holder(self, sandbox_id: str, config: ContainerConfig) -> ContainerRecord | None:
        for record in self._state.containers.values():
            container = record.container
            if container.sandbox_id == sandbox_id and container.config.metadata == config.metadata:
                return record
        return None

    async def _make(self, sandbox_id: str, config: ContainerConfig, trace: Trace, archive: str) -> str:
        async with contextlib.AsyncExitStack() as undo:
            made = await self._make_in(self._state.find_sandbox(sandbox_id), config, archive, trace, undo)
            undo.pop_all()
        return made

    async def _make_in(
        self,
        sandbox: SandboxRecord,
        config: ContainerConfig,
        archive: str,
        trace: Trace,
        undo: contextlib.AsyncExitStack,
    ) -> str:
        container_id = secrets.token_hex(32)
        checkpoint = await self._find_checkpoint(sandbox.sandbox, container_id, config, archive, undo)
        image = checkpoint.base if checkpoint is not None else self._images.find(config.image.image)
        if image is None:
            raise NotFound(f"image {config.image.image!r} is not on this node: pull it first")
        container = self._plan(sandbox, container_id, config, image, checkpoint)
        for image_id in container.images:
            self._images.hold(image_id)
        try:
            await self._require_trusted(container, checkpoint)
        except BaseException:
            for image_id in container.images:
                self._images.release(image_id)
            raise
        intent = self._state.store.begin_put(ContainerRecord(container=container))
        try:
            async with contextlib.AsyncExitStack() as heard_of:
                container = await self._prepare(sandbox, container, image, checkpoint, trace, heard_of)
                await asyncio.wrap_future(intent)
                await self._state.save_container(ContainerRecord(container=container, finished=True))
            trace.step("container durable")
        except BaseException as failure:
            with contextlib.suppress(PodError):
                await asyncio.wrap_future(intent)
            await self._erase(container)
            await self._state.happened(Moment.REMOVE, sandbox.sandbox, container)
            raise _explained(failure, config) from failure
        now = self._state.sandboxes.get(sandbox.sandbox.id)
        if now is None or now.sandbox.state is not SandboxState.READY:
            await self._erase(container)
            raise FailedPrecondition(f"pod sandbox {sandbox.sandbox.id} was stopped meanwhile")
        await self._state.happened(Moment.POST_CREATE, sandbox.sandbox, container)
        _log.info("container created", extra=log_fields.of_container(container) | {"image": config.image.image})
        return container.id

    async def _find_checkpoint(
        self,
        sandbox: Sandbox,
        container_id: str,
        config: ContainerConfig,
        archive: str,
        undo: contextlib.AsyncExitStack,
    ) -> Checkpoint | None:
        """What the container is to be restored from, if the request's image is a checkpoint, or there is an archive."""
        name = archive or config.image.image
        if restores.is_archive(name):
            restores.check(sandbox)
            begun = Container(
                id=container_id, sandbox_id=sandbox.id, config=config, image_id="", image_ref="",
                state=ContainerState.CREATED, created_at=time.time_ns(),
            )  # fmt: skip
            # Known before there is anything on disk: a daemon that is killed has its successor take it away.
            await asyncio.wrap_future(self._state.store.begin_put(ContainerRecord(container=begun)))
            undo.push_async_callback(self._erase, begun)
            directory = self._state.settings.container_root(container_id) / "restore"
            await restores.unpack(name, directory, self._images)
            return await restores.read(directory, self._images)
        image = self._images.find(name)
        if image is None or not await restores.of_image(image, self._images):
            return None
        if not self._state.settings.checkpoint_images:
            raise FailedPrecondition(
                f"image {name!r} holds a checkpoint, whose processes have the rights that it gives them, whatever the "
                "pod asks for: crispd starts such images when crisp.toml has checkpoint_images = true"
            )
        restores.check(sandbox)
        return await restores.read(self._images.layers(image)[0], self._images, image.id)

    async def _require_trusted(self, container: Container, checkpoint: Checkpoint | None) -> None:
        config = container.config
        specs = [config.image, *(config.mounts[mounted.mount].image for mounted in container.mounted_images)]
        names = [spec.user_specified_image or spec.image for spec in specs if spec is not None]
        if checkpoint is not None:
            names = [checkpoint.base_name, *(names if checkpoint.image_id else names[1:])]
        for image_id, name in zip(container.images, names, strict=True):
            image = self._images.find(image_id)
            if image is not None:
                await self._images.require_trusted(image, name)

    def _plan(
        self,
        sandbox: SandboxRecord,
        container_id: str,
        config: ContainerConfig,
        image: Image,
        checkpoint: Checkpoint | None,
    ) -> Container:
        log_path = ""
        if config.log_path and sandbox.sandbox.config.log_directory:
            log_path = os.path.join(sandbox.sandbox.config.log_directory, config.log_path)
        if checkpoint is None:
            oci.process_args(config, image.config)  # a container without a command is refused before anything is made
        oci.image_volumes(config, image.config)  # and one of an image with too many volumes
        return Container(
            id=container_id,
            sandbox_id=sandbox.sandbox.id,
            config=config,
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            state=ContainerState.CREATED,
            created_at=time.time_ns(),
            log_path=log_path,
            stop_signal=oci.stop_signal(config, image.config),
            mounted_images=mounted_images.find(config, self._images),
            checkpoint=str(checkpoint.directory / restores.IMAGES) if checkpoint is not None else "",
            checkpoint_image_id=checkpoint.image_id if checkpoint is not None else "",
        )

    async def _prepare(
        self,
        sandbox: SandboxRecord,
        container: Container,
        image: Image,
        checkpoint: Checkpoint | None,
        trace: Trace,
        heard_of: contextlib.AsyncExitStack,
    ) -> Container:
        """Make the container's directories, its rootfs in the shim, and its config.json; the container with its user.

        `heard_of` is entered when plugins hear of the container, and to be left when it is seen in the lists.
        """
        settings, config = self._state.settings, container.config
        if checkpoint is not None:
            config = checkpoint.wanted(config)
        oci.validate(config, sandbox.sandbox, self._host)
        target_pid = self._target_pid(container)
        # In a thread: a volume's path may lie on a network file system whose server does not answer.
        found = await asyncio.to_thread(
            oci.find_host_objects,
            config,
            self._host,
            settings.cdi_spec_dirs,
            settings.hooks_dirs,
            self._images.profiles.content,
        )
        lower = self._images.layers(image)
        root, bundle = settings.container_root(container.id), settings.bundle_dir(container.id)
        users = user_namespaces.mappings_of(sandbox.sandbox.config)
        _make_layer_directories(root, lower, users)
        bundle.mkdir(parents=True, mode=0o700)
        label = selinux_labels(config.security, self._host)[1]
        if label:
            await asyncio.to_thread(relabel_pod_files, settings.sandbox_dir(container.sandbox_id), label)
        if checkpoint is not None:
            await restores.write_changes(checkpoint, root / "upper", self._images)
        trace.step("directories made")
        other = handlers.runtime_of(sandbox.sandbox, settings.runtime_handlers, settings.state)
        scope = None if other else oci.container_scope(sandbox.sandbox, container.id)
        path = oci.cgroups_path(sandbox.sandbox, container.id)
        told: dict[str, Any] = {"runtime": other, "cgroup": path} if other else {}
        asked_user = oci.user_request(config, image.config)
        identity = await self._shims.of(container.sandbox_id).call(
            "create",
            container=container.id,
            bundle=str(bundle),
            lower=[str(layer) for layer in lower],
            upper=str(root / "upper"),
            work=str(root / "work"),
            user=asked_user.to_json(),
            mount_points=mount_points.shim_argument(
                config, found.mount_sources, found.directories, root / "volumes"
            ),
            images=mounted_images.shim_argument(config, container.mounted_images, self._images, root / "volumes"),
            hold=scope is not None,
            label=label,
            restored=checkpoint is not None,
            **told,
        )
        trace.step("rootfs mounted, user found")
        user = Identity(
            uid=identity["uid"],
            gid=identity["gid"],
            additional_gids=tuple(identity["additional_gids"]),
            home=identity["home"],
        )
        asked_user.check(user.uid, user.gid)
        if users is not None:
            user_namespaces.check_user(user, users)
        context = oci.ContainerContext(
            container_id=container.id,
            sandbox=sandbox.sandbox,
            config=config,
            image=image.config,
            user=user,
            infra_pid=sandbox.sandbox.infra_pid,
            target_pid=target_pid,
            sandbox_dir=settings.sandbox_dir(container.sandbox_id),
            files_dir=pod_files.place(settings.sandbox_dir(container.sandbox_id)),
            volumes_dir=root / "volumes",
            volumes=await self._make_volumes(container, config, image, user, users, label),
            cgroups_path=path,
            host=self._host,
            found=found,
        )
        document = oci.build_config(context)
        if checkpoint is not None and (ignored := checkpoint.adapt(document)):
            fields = log_fields.of_container(container) | {"mounts": ignored}
            _log.warning("mounts that the checkpointed container had not are left out", extra=fields)
        if other:
            handlers.adapt(document, sandbox.sandbox, container.id, self._host)
        await heard_of.enter_async_context(self._state.gate.passing())
        if self._state.plugins is not None:
            asked, document = document, await self._state.plugins.adjusted(sandbox.sandbox, container, document)
            _check_adjusted(document)
            if (limits := limits_of(document)) != limits_of(asked):
                oci.linux_resources(limits, self._host, "NRI: adjust.linux.resources")
                container = msgspec.structs.replace(container, updated=limits)
        making = None
        if scope is not None:
            scoped = self._scopes.make(scope, container.id, identity["holder"], document["linux"]["resources"])
            making = self._background.start(scoped)
        (bundle / "config.json").write_text(json.dumps(document))
        trace.step("config.json written")
        if making is not None:
            await making
            trace.step("scope made")
        found_user = ContainerUser(uid=user.uid, gid=user.gid, additional_gids=user.additional_gids)
        return msgspec.structs.replace(container, user=found_user)

    async def _make_volumes(
        self,
        container: Container,
        config: ContainerConfig,
        image: Image,
        user: Identity,
        users: IDMappings | None,
        label: str,
    ) -> dict[str, str]:
        """Those that the image declares and that are to be mounted: path in the container -> name in `volumes`."""
        wanted = oci.image_volumes(config, image.config)
        if not wanted:
            return {}
        place = self._state.settings.container_root(container.id) / "volumes"
        owner = (user.uid, user.gid) if users is None else (users.uid(user.uid), users.gid(user.gid))
        shim = self._shims.of(container.sandbox_id)
        try:
            (rootfs,) = await shim.call_for_descriptors("rootfs", container=container.id)
        except ShimTooOld:  # the pod is an older crisp's: volumes are empty below a read-only root, as they were there
            if not config.security.readonly_rootfs:
                return {}
            for name in wanted.values():
                (place / name).mkdir(parents=True)
                user_namespaces.give(place / name, users)
            return wanted

        def make() -> dict[str, str]:
            try:
                made = image_volumes.make(rootfs, wanted, place, owner, readonly=config.security.readonly_rootfs)
            finally:
                os.close(rootfs)
            for name in made.values() if label else ():
                relabel(str(place / name), label, f"image {config.image.image!r}: volumes")
            return made

        return await asyncio.to_thread(make)

    def _target_pid(self, container: Container) -> int:
        options = container.config.security.namespaces
        if options.pid is not NamespaceMode.TARGET:
            return 0
        field = "config.linux.security_context.namespace_options.target_id"
        try:
            target = self._state.find_container(options.target_id).container
        except NotFound as error:
            raise InvalidArgument(f"{field}: {error}") from error
        if target.sandbox_id != container.sandbox_id:
            raise InvalidArgument(f"{field}: container {target.id} is in another pod sandbox")
        if target.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"{field}: container {target.id} is not running")
        return target.pid

    async def _undo(self, container_id: str) -> None:
        await self.remove(container_id)

    # -- start --------------------------------------------------------------------------------------------------------

    async def start(self, container_id: str, trace: Trace) -> None:
        """Run the container's program. Raises FailedPrecondition unless it is created and was never started."""
        found = self._state.find_container(container_id).container.id
        await self._background.shielded(self._start(found, trace))

    async def _start(self, container_id: str, trace: Trace) -> None:
        async with self._state.lock(container_id):
            container = self._state.find_container(container_id).container
            if container.state is not ContainerState.CREATED:
                raise FailedPrecondition(f"container {container_id} is {container.state.value}, not created")
            sandbox = self._state.find_sandbox(container.sandbox_id).sandbox
            if sandbox.state is not SandboxState.READY:
                raise FailedPrecondition(f"pod sandbox {sandbox.id} is not ready")
            await self._state.happens(Moment.START, sandbox, container)
            try:
                if container.log_path:
                    log_place.make_log(container.log_path, sandbox.config.log_directory)
                answer = await self._start_in_shim(container, sandbox, trace)
            except (PodError, RuntimeCoreError, OSError) as error:
                await self._start_failed(container, str(error))
                raise PodError(f"start container {container_id}: {error}") from error
            for warning in answer.get("warnings", ()):
                _warn_once(warning)
            try:
                await self._state.record_fact(
                    container_id, state=ContainerState.RUNNING, pid=answer["pid"], started_at=answer["started_at"]
                )
            except PodError:
                # The caller takes it for not started: it must not run. Its exit is recorded as any other's.
                await self._shims.of(container.sandbox_id).call("kill", container=container_id)
                raise
            trace.step("start durable")
            if (now := self._state.containers.get(container_id)) is not None:
                await self._state.happened(Moment.POST_START, sandbox, now.container)
            _log.info("container started", extra=log_fields.of_container(container) | {"pid": answer["pid"]})

    async def _start_in_shim(self, container: Container, sandbox: Sandbox, trace: Trace) -> dict[str, Any]:
        bundle = self._state.settings.bundle_dir(container.id)
        program, flags = await self._filters.of(bundle / "config.json")
        trace.step("seccomp filter ready")
        restored: dict[str, Any] = {}
        if container.checkpoint:
            work = self._state.settings.container_root(container.id) / "criu"
            work.mkdir(mode=0o700, exist_ok=True)
            restored = {"restore": container.checkpoint, "work": str(work), "criu": criu.find()}
        answer = await self._shims.of(container.sandbox_id).call(
            "start",
            container=container.id,
            log=container.log_path,
            log_trusted=log_place.trusted(sandbox.config.log_directory) if container.log_path else "",
            stdin=container.config.stdin,
            stdin_once=container.config.stdin_once,
            filter=base64.b64encode(program).decode(),
            filter_flags=flags,
            trace=trace.on,
            **restored,
        )
        trace.add((name, at) for name, at in answer.get("steps", ()))
        trace.step("shim answered")
        return answer

    async def _start_failed(self, container: Container, message: str) -> None:
        _log.info("container not started", extra=log_fields.of_container(container) | {"error": message})
        try:
            await self._state.record_fact(
                container.id,
                state=ContainerState.EXITED,
                exit_code=_START_FAILED,
                reason="StartError",
                message=message,
                started_at=0,
                finished_at=time.time_ns(),
            )
        except PodError as error:
            _log.error("failed start is not on disk", extra=log_fields.of_container(container) | {"error": error})

    # -- exit ---------------------------------------------------------------------------------------------------------

    def exited(self, container_id: str, status: dict[str, Any]) -> None:
        """A shim reports an exit."""
        self._background.detach(self.record_exit(container_id, status), f"record exit of container {container_id}")

    async def record_exit(self, container_id: str, status: dict[str, Any]) -> None:
        """Make an exit durable and known."""
        if status.get("start_failed"):
            return  # the start's own answer tells it
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
            if record is None or record.container.state is ContainerState.EXITED:
                return
            code = status["code"]
            reason = "OOMKilled" if status["oom"] else "Completed" if code == 0 else "Error"
            try:
                await self._state.record_fact(
                    container_id,
                    state=ContainerState.EXITED,
                    pid=0,
                    exit_code=code,
                    reason=reason,
                    finished_at=status["finished_at"],
                )
            except PodError as error:
                _log.error("exit is not on disk", extra=log_fields.of_container(record.container) | {"error": error})
            await self._tell_of_stop(container_id)
        fields = log_fields.of_container(record.container) | {"code": code, "reason": reason}
        _log.info("container exited", extra=fields)

    async def _tell_of_stop(self, container_id: str) -> None:
        record = self._state.containers.get(container_id)
        sandbox = self._state.sandboxes.get(record.container.sandbox_id) if record is not None else None
        if record is not None and sandbox is not None:
            await self._state.happened(Moment.STOP, sandbox.sandbox, record.container)

    async def lost(self, sandbox_id: str) -> None:
        """Nothing is left to watch the sandbox's containers: those not exited are dead, killed if need be."""
        record = self._state.sandboxes.get(sandbox_id)
        for container in list(self._state.containers_of(sandbox_id)):
            # A start that the shim did not live to answer may have come to pass.
            started = container.state is not ContainerState.EXITED or container.reason == "StartError"
            if record is not None and started:
                path = oci.cgroups_path(record.sandbox, container.id)
                await asyncio.to_thread(self._shims.kill_cgroup, path)
            await self.record_exit(container.id, self._status_on_disk(container) or _unknown_status())

    async def clear_cgroups(self, sandbox: Sandbox) -> None:
        """End and take away what a shim that is gone could not: on all other days there is nothing."""
        for container in list(self._state.containers_of(sandbox.id)):
            path = oci.cgroups_path(sandbox, container.id)
            if self._shims.has_cgroup(path):
                await asyncio.to_thread(self._shims.kill_cgroup, path)

    async def orphaned(self, sandbox_id: str) -> None:
        """The sandbox's infra process is gone: its shim kills what runs, and what does not run never will."""
        for container in list(self._state.containers_of(sandbox_id)):
            if container.state is ContainerState.CREATED:
                await self._end(container.id)

    def _status_on_disk(self, container: Container) -> dict[str, Any] | None:
        path = self._state.settings.sandbox_dir(container.sandbox_id) / "exits" / container.id
        try:
            status = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        return status if isinstance(status, dict) else None

    # -- stop ---------------------------------------------------------------------------------------------------------

    async def stop(self, container_id: str, timeout: float) -> None:
        """Ask the container to end, and after `timeout` seconds make it. Unknown ids and exited ones succeed."""
        try:
            found = self._state.find_container(container_id).container.id
        except NotFound:
            return
        await self._background.shielded(self._stop(found, timeout))

    async def _stop(self, container_id: str, timeout: float) -> None:
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
        if record is None or record.container.state is not ContainerState.RUNNING:
            return
        container = record.container
        with contextlib.suppress(ShimGone):
            shim = self._shims.of(container.sandbox_id)
            exited = self._state.exited(container_id)
            if timeout > 0:
                await shim.call("signal", container=container_id, signal=signal_number(container.stop_signal))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(exited.wait(), timeout)
            if not exited.is_set():
                await shim.call("kill", container=container_id)
            await exited.wait()
        async with self._state.lock(container_id):
            pass  # plugins have heard of the exit, too

    async def kill_all(self, sandbox_id: str) -> None:
        """End every running container of the sandbox now."""
        await asyncio.gather(*(self._end(container.id) for container in self._state.containers_of(sandbox_id)))

    async def _end(self, container_id: str) -> None:
        """Kill the container; one that does not run never will, for its sandbox, not ready any more, goes away."""
        record = self._state.containers.get(container_id)
        if record is not None and record.container.state is ContainerState.CREATED:
            # A start may be under way, and hang while it holds the lock.
            with contextlib.suppress(RuntimeCoreError):
                await self._shims.of(record.container.sandbox_id).call("kill", container=container_id)
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
        if record is not None and record.container.state is ContainerState.CREATED:
            await self.record_exit(container_id, _unknown_status())
        else:
            await self._stop(container_id, 0)

    # -- remove -------------------------------------------------------------------------------------------------------

    async def remove(self, container_id: str) -> None:
        """Kill the container if it runs, and take away all that is left of it. Unknown ids succeed."""
        try:
            found = self._state.find_container(container_id).container.id
        except NotFound:
            return
        await self._background.shielded(self._remove(found))

    async def _remove(self, container_id: str) -> None:
        await self._stop(container_id, 0)
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
            if record is not None:
                await self._erase(record.container)
                if (sandbox := self._state.sandboxes.get(record.container.sandbox_id)) is not None:
                    await self._state.happened(Moment.REMOVE, sandbox.sandbox, record.container)
                _log.info("container removed", extra=log_fields.of_container(record.container))

    async def _erase(self, container: Container) -> None:
        with contextlib.suppress(ShimGone):
            await self._shims.of(container.sandbox_id).call("delete", container=container.id)
        settings = self._state.settings
        bundle, root = settings.bundle_dir(container.id), settings.container_root(container.id)
        sandbox = self._state.sandboxes.get(container.sandbox_id)
        if sandbox is None or sandbox.sandbox.runtime_handler not in handlers.BUILT_IN:
            handlers.clean_up(container.id, bundle, root / "volumes", settings.state)
        shutil.rmtree(bundle, ignore_errors=True)
        await remove_trees([root])
        await self._state.forget_container(container.id)
        for image_id in container.images:
            self._images.release(image_id)

    async def discard(self, container: Container) -> None:
        """Undo a container that an earlier daemon did not finish."""
        await self._erase(container)

    # -- logs ---------------------------------------------------------------------------------------------------------

    async def reopen_log(self, container_id: str) -> None:
        """Go on in a new file at the log path. Raises FailedPrecondition unless the container runs, PodError."""
        container = self._state.find_container(container_id).container
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is {container.state.value}, not running")
        try:
            await self._shims.of(container.sandbox_id).call("reopen-log", container=container.id)
        except (ShimGone, NotRunning) as error:  # its end has not reached the state yet
            raise FailedPrecondition(f"container {container.id} is gone: {error}") from error
        except RuntimeCoreError as error:
            raise PodError(f"reopen log {container.log_path!r} of container {container.id}: {error}") from error


def _make_layer_directories(root: Path, lower: list[Path], users: IDMappings | None) -> None:
    """The writable layer's root looks like the image's own root directory."""
    upper = root / "upper"
    root.mkdir(parents=True, mode=0o700, exist_ok=True)  # a checkpoint may be in it already
    upper.mkdir()
    (root / "work").mkdir(mode=0o700)
    if lower:
        status = lower[0].stat()
        owner = status.st_uid, status.st_gid
        os.chown(upper, *(owner if users is None else (users.uid(owner[0]), users.gid(owner[1]))))
        upper.chmod(stat.S_IMODE(status.st_mode))


def _check_adjusted(document: dict[str, Any]) -> None:
    """Raise PodError for what plugins made of a config.json and no start would take."""
    try:
        validation.check(parse(document))
    except RuntimeCoreError as error:
        raise PodError(f"NRI: the container as plugins adjusted it: {error}") from error


def _unknown_status() -> dict[str, Any]:
    return {"code": 255, "signal": 0, "oom": False, "finished_at": time.time_ns()}


def _explained(failure: BaseException, config: ContainerConfig) -> BaseException:
    """What the caller is told of a failed creation."""
    if isinstance(failure, UserNotFound):
        return InvalidArgument(f"image {config.image.image!r}: {failure}")
    if isinstance(failure, OperationFailed) and failure.operation == "open in image":
        return InvalidArgument(f"config.mounts: image_sub_path: {failure}")
    if isinstance(failure, (SpecError, WrongMountPoint)):
        return InvalidArgument(str(failure))
    if isinstance(failure, (RuntimeCoreError, OSError)):
        return PodError(f"create container {config.metadata.name!r}: {failure}")
    return failure


_warned: set[str] = set()


def _warn_once(warning: str) -> None:
    kind = warning.partition(" ")[0]
    if kind not in _warned:
        _warned.add(kind)
        _log.warning("%s (said once)", warning)
