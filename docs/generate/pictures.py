"""Pictures of the architecture as mermaid text: imports of the rooms, the tree of processes, the steps of a start."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOMS = ("cri", "pods", "runtime", "network", "image", "linux")
# Who makes whom, how, and the module that does so, whose first line says what the process is.
_PROCESSES = (
    ("kubelet", "crispd", "gRPC", "cri/daemon/main.py"),
    ("crispd", "zygote", "fresh exec", "runtime/shim/zygote.py"),
    ("crispd", "layer worker", "fork of a warm process", "image/unpack/worker.py"),
    ("zygote", "shim", "fork", "runtime/shim/shim.py"),
    ("shim", "infra", "clone3", "runtime/process/infra.py"),
    ("shim", "container", "clone3", "runtime/process/init.py"),
    ("shim", "exec", "clone3", "runtime/process/join.py"),
)
_START = {
    "RunPodSandbox": (
        "pods/life/pod_creation.py", ("_write_files", "_make_pod", "_wait_for", "_add_network", "_publish"),
    ),
    "CreateContainer": ("pods/life/creation.py", ("_make_layer", "_make_rootfs", "_write", "_publish")),
    "StartContainer": ("pods/life/start.py", ("_start_in_shim", "_start")),
}
_INTRODUCTION = """\
# Pictures

<!-- Made by python -m docs.generate from the source. -->

Drawn from the source: they change when it does. The words to them: [Architecture](architecture.md).
"""


def page(root: Path) -> str:
    """All pictures of the project in `root`."""
    drawn = {
        "Who imports whom": _imports(root),
        "Who makes whom": _processes(root),
        "The steps of a start": _steps(root),
    }
    titles = {
        "Who imports whom": "Packages. An arrow upwards, or between `runtime`, `network` and `image`, would fail CI.",
        "Who makes whom": "Processes, how each is made, and the module that is its program.",
        "The steps of a start": "What `trace_start` logs and `metrics_addr` counts, in the order of the code. Which of "
        "an init's steps are taken depends on the container.",
    }
    parts = [_INTRODUCTION]
    parts += [
        f"\n## {title}\n\n{titles[title]}\n\n```mermaid\n{picture}\n```\n" for title, picture in drawn.items()
    ]
    return "".join(parts)


def _imports(root: Path) -> str:
    edges = sorted({edge for file in _modules(root) for edge in _edges(root, file)})
    lines = ["flowchart TD"]
    for room in _ROOMS:
        inside = sorted({end for edge in edges for end in edge if end.split(".")[0] == room})
        lines += [f"  subgraph {room}_room [{room}/]", *(f"    {_id(name)}[{name}]" for name in inside), "  end"]
    lines += [
        f"  {_id(source)} --> {_id(target)}"
        for source, target in edges
        if source.split(".")[0] != target.split(".")[0]  # those within a room would hide the others
    ]
    return "\n".join(lines)


def _modules(root: Path) -> Iterator[Path]:
    for room in _ROOMS:
        yield from sorted(file for file in (root / room).rglob("*.py") if "_pb2" not in file.name)


def _edges(root: Path, file: Path) -> Iterator[tuple[str, str]]:
    source = _package(root, ".".join(file.relative_to(root).with_suffix("").parts))
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            target = _package(root, name)
            if name.split(".")[0] in _ROOMS and target != source:
                yield source, target


def _package(root: Path, module: str) -> str:
    """The room, or its sub-package, that a module is in; generated stubs and their like count as the whole."""
    parts = module.split(".")[:2]
    return ".".join(parts) if len(parts) == 2 and (root / parts[0] / parts[1]).is_dir() else parts[0]


def _processes(root: Path) -> str:
    lines = ["flowchart TD", "  kubelet"]
    for parent, child, how, module in _PROCESSES:
        said = ast.get_docstring(ast.parse((root / module).read_text())) or ""
        first = said.split("\n\n")[0].replace("\n", " ").replace('"', "'").replace("`", "").split(". ")[0].rstrip(".")
        lines.append(f'  {_id(child)}["{child}<br/><small>{module}: {first}</small>"]')
        lines.append(f"  {_id(parent)} -->|{how}| {_id(child)}")
    return "\n".join(lines)


def _steps(root: Path) -> str:
    lines = ["sequenceDiagram", "  participant kubelet", "  participant crispd", "  participant init as shim and init"]
    for call, (module, functions) in _START.items():
        lines.append(f"  kubelet->>crispd: {call}")
        for step in _steps_of(root / module, functions):
            if step == "shim answered":
                files = ("runtime/shim/launch/own.py", "runtime/process/init.py")
                inits = tuple(step for file in files for step in _steps_of(root / file, ()))
                # The shim learns last that the program runs. Of a step that two ways lead to, the later is shown.
                inits = tuple(dict.fromkeys(sorted(inits, key="program runs".__eq__)[::-1]))[::-1]
                lines.append("  crispd->>init: start")
                lines += [f"  init->>init: {one}" for one in inits]
                lines.append("  init->>crispd: answer")
            lines.append(f"  crispd->>crispd: {step}")
        lines.append("  crispd->>kubelet: done")
    return "\n".join(lines)


def _steps_of(file: Path, functions: tuple[str, ...]) -> list[str]:
    """The names given to `step(...)` in these functions, one after the other; in all, without any."""
    tree = ast.parse(file.read_text())
    found: dict[str, list[str]] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and _is_step(node)]
            calls.sort(key=lambda call: call.lineno)
            found[function.name] = [str(ast.literal_eval(call.args[0])) for call in calls]
    return [step for name in functions or found for step in found[name]]


def _is_step(call: ast.Call) -> bool:
    named = isinstance(call.func, ast.Attribute) and call.func.attr == "step"
    return named and bool(call.args) and isinstance(call.args[0], ast.Constant)


def _id(name: str) -> str:
    return name.replace(".", "_").replace(" ", "_")
