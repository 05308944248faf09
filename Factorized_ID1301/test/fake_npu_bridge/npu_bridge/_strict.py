"""What the parts of the fake share: refusing, the record, facts per graph, number of ranks."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import atexit
import json
import os

KINDS = "sessions managers optimizers loops system collectives dropouts"
RECORD = {kind: [] for kind in KINDS.split()}


class FakeNpuError(AssertionError):
    """The real adapter would fail, silently ignore the request, or be slow."""


def require(holds, sentence):
    """Raises FakeNpuError with the sentence unless `holds`."""
    if not holds:
        raise FakeNpuError(sentence)


def note(kind, **fields):
    """Appends one entry to RECORD[kind], saves the record, returns the entry."""
    RECORD[kind].append(fields)
    save()
    return fields


@atexit.register
def save():
    """Rewrites the file FAKE_NPU_RECORD, if set; a reader never sees half of it."""
    path = os.environ.get("FAKE_NPU_RECORD")
    if not path:
        return
    graphs = [graph for session in RECORD["sessions"] for graph in session["graphs"]]
    totals = {"distinct_graphs": len(graphs), "runs": sum(graph["runs"] for graph in graphs)}
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w") as stream:
        json.dump(dict(RECORD, **totals), stream, indent=1, default=str)
    os.replace(temporary, path)


class GraphFacts:
    """What later checks must know about one graph."""

    def __init__(self):
        self.manager_count = 0  # loss-scale managers built
        self.plain_applies = []  # names of optimizer classes applied without loss scaling
        self.loops = {}  # name of an IterationOp -> util.IterationPerLoop
        self.looped_train_ops = []  # operations that were given a loop count


def graph_facts(graph):
    """The GraphFacts of a tf.Graph, made at the first call."""
    if not hasattr(graph, "fake_npu_facts"):
        graph.fake_npu_facts = GraphFacts()
    return graph.fake_npu_facts


def rank_size():
    """Number of ranks by the environment, 1 when it is not set."""
    both = "RANK_SIZE" in os.environ and "CM_WORKER_SIZE" in os.environ
    require(not both, "RANK_SIZE and CM_WORKER_SIZE are both set; set one of them.")
    return int(os.environ.get("RANK_SIZE") or os.environ.get("CM_WORKER_SIZE") or 1)
