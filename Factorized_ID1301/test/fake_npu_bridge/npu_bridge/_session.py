"""Stands between every session and its user: checks and records, then runs on the CPU."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import threading

from tensorflow.python.client import session

from npu_bridge._options import checked_options
from npu_bridge._strict import FakeNpuError, graph_facts, note, require, save

MAX_SHAPES = 10  # graphs the adapter keeps for one fetch with dynamic_input
UNSUPPORTED_TYPES = {"AccumulateNV2", "IdentityReaderV2", "LMDBReader", "WholeFileReaderV2"}
COMPILED = "The model has been compiled on the Ascend AI processor, current graph id is:{}"


class CompiledGraphs:
    """The options of one session and the graphs an NPU would have compiled for it so far."""

    def __init__(self, config):
        self.options = checked_options(config)
        rewrites = config.graph_options.rewrite_options
        switches = {name: getattr(rewrites, name) for name in ("remapping", "memory_optimization")}
        self._graphs = note("sessions", options=self.options, graphs=[], **switches)["graphs"]
        self.lock = threading.Lock()  # hold it to count: queue runners run in threads
        self._known = {}  # (fetch names, feed names) -> (graph version, {shapes: graph entry})

    def count_run(self, graph, fetches, feeds):
        """Checks one run and counts it; a new combination is "compiled" first.

        Args:
          graph: tf.Graph of the session.
          fetches: names of fetched tensors and target operations, sorted.
          feeds: {tensor name: shape as a list of int}.
        """
        key = (tuple(fetches), tuple(sorted(feeds)))
        if key not in self._known:
            self._check_graph(graph)
            self._known[key] = (graph.version, {})
        version, entries = self._known[key]
        if graph.version != version:
            raise FakeNpuError(f"Operations were added to the graph between runs of {fetches}.")
        shapes = tuple(tuple(feeds[name]) for name in key[1])
        if shapes not in entries:
            is_allowed = not entries or self.options.get("dynamic_input")
            require(is_allowed, f"Feed shapes of {fetches} changed without dynamic_input: {feeds}")
            require(len(entries) < MAX_SHAPES, f"{fetches} has over {MAX_SHAPES} feed shapes.")
            entries[shapes] = self._compile(fetches, feeds)
        entries[shapes]["runs"] += 1

    def check_loop(self, count):
        """Checks that a loop was given this session's iterations_per_loop as its count."""
        expected = self.options.get("iterations_per_loop", 1)
        require(count == expected, f"Loop count {count}, but iterations_per_loop is {expected}.")

    def _compile(self, fetches, feeds):
        entry = {"id": 10 * len(self._graphs) + 1, "fetches": fetches, "feeds": feeds, "runs": 0}
        self._graphs.append(entry)
        print(COMPILED.format(entry["id"]) + "\n", end="", flush=True)  # one write: threads
        save()
        return entry

    def _check_graph(self, graph):
        facts = graph_facts(graph)
        unscaled = facts.plain_applies if facts.manager_count else []
        require(not unscaled, f"{unscaled} applied without the loss scaling a manager is for.")
        for operation in graph.get_operations():
            name, kind = operation.name, operation.type
            require(kind not in UNSUPPORTED_TYPES, f"{name}: {kind} is unsupported or discouraged.")
            is_looped = self.options.get("iterations_per_loop", 1) > 1
            is_fatal = is_looped and kind == "OneShotIterator"
            require(not is_fatal, f"{name}: iterations_per_loop>1 excludes one-shot iterators.")
            if kind == "IteratorGetNext" and self.options.get("enable_data_pre_proc"):
                is_static = all(output.shape.is_fully_defined() for output in operation.outputs)
                require(is_static, f"{name}: open shapes; batch with drop_remainder=True.")


def install():
    """Wraps the base class of Session, InteractiveSession, MonitoredSession, ..."""
    base = session.BaseSession
    plain_init, plain_run = base.__init__, base._do_run

    def checked_init(self, target="", graph=None, config=None):
        self._session = None  # __del__ reads it, also when the next line refuses
        self.fake_npu = CompiledGraphs(config)
        plain_init(self, target, graph, config)

    def checked_run(self, handle, targets, fetches, feed_dict, options, run_metadata):
        names = sorted(item.name for item in list(targets) + list(fetches))
        feeds = {_feed_name(key): list(value.shape) for key, value in feed_dict.items()}
        with self.fake_npu.lock:
            self.fake_npu.count_run(self.graph, names, feeds)
        loops = graph_facts(self.graph).loops
        for loop in [loops[target.name] for target in targets if target.name in loops]:
            self.fake_npu.check_loop(loop.count)
            for _ in range(loop.count - 1):
                plain_run(self, handle, [loop.train_op], [], feed_dict, None, None)
        return plain_run(self, handle, targets, fetches, feed_dict, options, run_metadata)

    def checked_callable(self, fetches, feed_list=None, accept_options=False):
        del accept_options  # run() takes the same two keywords, given or not
        return lambda *values, **keywords: self.run(
            fetches, dict(zip(feed_list or [], values)), **keywords
        )

    base.__init__, base._do_run, base.make_callable = checked_init, checked_run, checked_callable


def _feed_name(key):
    """Name of a fed tensor; TF 2 hands over references, TF 1.15 the tensors themselves."""
    return key.deref().name if hasattr(key, "deref") else key.name
