"""No module of the product imports, by way of others, itself; imports for types alone count too."""

from __future__ import annotations

import graphlib

import grimp

ROOMS = ("cri", "pods", "runtime", "network", "image", "linux")


def test_no_modules_import_each_other() -> None:
    graph = grimp.build_graph(*ROOMS, exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # a CycleError names the circle
