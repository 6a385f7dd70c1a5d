"""What each key of crisp.toml is for. A key of cri.config.KEYS that is not here fails a test."""

from __future__ import annotations

GROUPS: dict[str, dict[str, str]] = {
    "Sockets and directories": {
        "listen": "Socket of CRI, and of crisp. Only root may open it.",
        "root": "Images, and what of pods and containers outlives a reboot.",
        "state": "Sockets, bundles and exit statuses: what must not outlive a reboot. Best on a tmpfs.",
    },
    "Network": {
        "cni_conf_dir": "CNI: the first configuration by name in the directory is the pods' network. The directory is "
        "watched.",
        "cni_bin_dirs": "Where CNI plugins are looked for, in this order.",
        "enable_unprivileged_ports": "In a pod with a network of its own anybody may bind ports below 1024, unless its "
        "sysctls say otherwise (net.ipv4.ip_unprivileged_port_start).",
        "enable_unprivileged_icmp": "In a pod with a network of its own anybody may ping without NET_RAW, unless its "
        "sysctls say otherwise (net.ipv4.ping_group_range).",
    },
    "Devices": {
        "cdi_spec_dirs": "Specs of CDI devices (JSON and YAML); those of later directories win.",
        "checkpoint_images": "Make containers from images that hold a checkpoint. Their processes have the rights that "
        "the checkpoint gives them, whatever the pod asks for and admission allows.",
        "hooks_dirs": "OCI hooks of containers, oci-hooks(5); files of later directories win.",
    },
    "Plugins": {
        "nri_socket": "Socket for NRI plugins. Root can open it, and so change any container. Where another runtime "
        "serves the default one, crispd goes on without. Empty: there is none.",
    },
    "Images": {
        "registries_conf": "Mirrors, insecure and blocked registries: containers-registries.conf(5).",
        "auth_file": "Logins to registries: containers-auth.json(5) or docker's config.json, credential helpers "
        "included. Empty: what podman, skopeo and docker keep for root. Kubelet's own credentials for a pull win over "
        "these.",
        "registry_certs_dirs": "Authorities and client certificates of registries, <dir>/<host[:port]>/*.crt, *.cert, "
        "*.key: containers-certs.d(5).",
        "signature_policy": "Whose images may be pulled and run: containers-policy.json(5). Empty: "
        "/etc/containers/policy.json if there is one, else every image.",
        "registries_d": "Where signatures lie: containers-registries.d(5).",
        "pull_progress_timeout": "Seconds in which a registry has to send something before a pull fails; 0 for no "
        "limit.",
        "parallel_downloads": "Layers of one image fetched and unpacked at a time.",
        "keep_blobs": "Keep layers also as they came (compressed), so that `crisp image export` can write them; takes "
        "that much more of the disk.",
        "additional_image_stores": "Image stores (`<root>/image` of another crisp) whose images are there too; "
        "read at the start, never written to.",
        "layer_limit": "Bytes that one layer may unpack to (64 GiB), so that no image fills the disk with what takes "
        "little to send; 0 for no limit.",
        "pause_image": "Pods need no pause image. One named here is reported as pinned, so that kubelet's garbage "
        "collection leaves it alone.",
    },
    "Other runtimes": {
        "runtime_handlers": "Other OCI runtimes, each a table of its own: after `[runtime_handlers.runc]` comes "
        '`path = "/usr/sbin/runc"`. A RuntimeClass names them by its handler.',
    },
    "Cgroups": {
        "cgroup_driver": "Who makes cgroups. Has to be kubelet's; kubelet 1.34 and later asks crisp.",
    },
    "Streaming": {
        "stream_addr": "Where the streaming server (exec, attach, port-forward) listens. Port 0 takes a free one.",
        "stream_tls_cert": "Certificate (PEM) for serving streams over TLS. Goes with stream_tls_key.",
        "stream_tls_key": "Key (PEM) of stream_tls_cert.",
        "stream_tls_ca": "Certificate of an authority (PEM): clients must have a certificate that it signed.",
    },
    "Watching": {
        "log_level": "What is logged, to standard error. A reload is enough.",
        "metrics_addr": "Prometheus metrics of crispd itself, at http://ADDRESS/metrics such as 127.0.0.1:9091; empty "
        "is off. Anybody who can connect can read them: give a loopback address.",
        "trace_start": "Log each step of a pod's and container's start, with its duration. A reload is enough.",
        "tracing_endpoint": "OpenTelemetry collector that traces are sent to, by OTLP over gRPC without TLS, such as "
        "127.0.0.1:4317; empty is off. Needs the Python packages of the extra `tracing`.",
        "tracing_sampling_rate_per_million": "How many of a million calls begin a trace. One whose caller has begun a "
        "trace, as kubelet does with its own `tracing`, goes by the caller's decision.",
    },
}


def text(key: str) -> str:
    """The meaning of a key. Raises KeyError, saying what to do, for one without a text."""
    for group in GROUPS.values():
        if key in group:
            return group[key]
    raise KeyError(f"{key}: a new key needs its meaning in docs/generate/keys.py, then: python -m docs.generate")
