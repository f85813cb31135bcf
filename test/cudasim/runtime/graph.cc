/* CUDA graphs. While a stream captures, its operations become nodes of a graph: what to run, with
   the addresses and by-value arguments of that moment, and the nodes it comes after. A launch runs
   all nodes again, in the order of capture or (streams=random) in a random legal one. */
#include "stream.h"
#include <algorithm>
#include <memory>

namespace cudasim {

struct Node {
    std::function<void()> run, poison;
    std::vector<int> after;
};
typedef std::vector<Node> Nodes;

struct Capture {
    unsigned id;
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    bool spoiled; /* something illegal was called: the graph is lost */
    std::vector<cudaStream_t> members;
    Nodes nodes;
};

static auto &active = *new std::vector<Capture *>();
static unsigned last_capture_id;

static Capture *find_capture(unsigned id) {
    for (Capture *capture : active)
        if (id && capture->id == id) return capture;
    return nullptr;
}

/* ---- capturing ---- */

cudaError_t spoil_capture(Capture *capture, cudaError_t error) {
    capture->spoiled = true;
    return set_error(error);
}

cudaError_t add_to_capture(cudaStream_t stream, const Operation &operation) {
    Capture *capture = stream->capture;
    if (capture->spoiled) return set_error(cudaErrorStreamCaptureInvalidated);
    capture->nodes.push_back(Node{operation.run, operation.poison, stream->tail});
    stream->tail.assign(1, (int)capture->nodes.size() - 1);
    return cudaSuccess;
}

void record_in_capture(cudaStream_t stream, cudaEvent_t event) {
    event->capture_id = stream->capture->id;
    event->nodes = stream->tail;
}

bool wait_in_capture(cudaStream_t stream, cudaEvent_t event, cudaError_t *error) {
    Capture *capture = find_capture(event->capture_id);
    if (!capture && !stream->capture) return false;
    *error = cudaSuccess;
    if (!capture || (stream->capture && stream->capture != capture)) {
        /* the dependency would cross the border of the capture */
        *error = spoil_capture(stream->capture, cudaErrorStreamCaptureIsolation);
        return true;
    }
    if (!stream->capture) {
        stream->capture = capture;
        stream->tail.clear();
        capture->members.push_back(stream);
    }
    for (int node : event->nodes)
        if (std::find(stream->tail.begin(), stream->tail.end(), node) == stream->tail.end())
            stream->tail.push_back(node);
    return true;
}

cudaError_t forbid_in_capture(bool allowed_if_relaxed) {
    for (Capture *capture : active) {
        if (allowed_if_relaxed && capture->mode == cudaStreamCaptureModeRelaxed) continue;
        return spoil_capture(capture, cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

cudaError_t forbid_legacy_in_capture(cudaStream_t stream) {
    if (stream != resolve(0)) return cudaSuccess;
    for (Capture *capture : active)
        for (cudaStream_t member : capture->members)
            if (!member->nonblocking) return spoil_capture(capture, cudaErrorStreamCaptureImplicit);
    return cudaSuccess;
}

static void end_capture(Capture *capture) {
    for (cudaStream_t member : capture->members) {
        member->capture = nullptr;
        member->tail.clear();
    }
    active.erase(std::find(active.begin(), active.end(), capture));
}

/* Every node must lie before the end of the origin stream: forked streams were joined again. */
static bool all_joined(const Capture *capture) {
    std::vector<char> reached(capture->nodes.size(), 0);
    std::vector<int> todo = capture->origin->tail;
    while (!todo.empty()) {
        int node = todo.back();
        todo.pop_back();
        if (reached[(size_t)node]) continue;
        reached[(size_t)node] = 1;
        const std::vector<int> &after = capture->nodes[(size_t)node].after;
        todo.insert(todo.end(), after.begin(), after.end());
    }
    return std::find(reached.begin(), reached.end(), 0) == reached.end();
}

/* ---- replay ---- */

static void run_in_random_order(const Nodes &nodes) {
    std::vector<char> done(nodes.size(), 0);
    for (size_t count = 0; count < nodes.size(); count++) {
        std::vector<size_t> candidates;
        for (size_t i = 0; i < nodes.size(); i++) {
            bool waits = done[i];
            for (int before : nodes[i].after) waits = waits || !done[(size_t)before];
            if (!waits) candidates.push_back(i);
        }
        size_t pick = candidates[random_number() % candidates.size()];
        done[pick] = 1;
        if (nodes[pick].run) nodes[pick].run();
    }
}

static void replay(const Nodes &nodes) {
    if (options().streams_random) return run_in_random_order(nodes);
    for (const Node &node : nodes)
        if (node.run) node.run();
}

} // namespace cudasim

using namespace cudasim;

struct cudasim_graph {
    std::shared_ptr<Nodes> nodes;
};
struct cudasim_graph_exec {
    std::shared_ptr<Nodes> nodes; /* shared: it may be destroyed while a launch is queued */
};

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    require_one_thread();
    if (!stream) return set_error(cudaErrorStreamCaptureUnsupported); /* the legacy stream */
    if (resolve(stream)->capture) return set_error(cudaErrorIllegalState);
    Capture *capture = new Capture{++last_capture_id, stream, mode, false, {stream}, {}};
    active.push_back(capture);
    stream->capture = capture;
    stream->tail.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Capture *capture = resolve(stream)->capture;
    *graph = nullptr;
    if (!capture) return set_error(cudaErrorIllegalState);
    if (capture->origin != stream)
        return spoil_capture(capture, cudaErrorStreamCaptureUnmatched);
    bool joined = all_joined(capture);
    end_capture(capture);
    std::unique_ptr<Capture> owner(capture);
    if (capture->spoiled) return set_error(cudaErrorStreamCaptureInvalidated);
    if (!joined) return set_error(cudaErrorStreamCaptureUnjoined);
    *graph = new cudasim_graph{std::make_shared<Nodes>(std::move(capture->nodes))};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    const Capture *capture = resolve(stream)->capture;
    *status = !capture           ? cudaStreamCaptureStatusNone
              : capture->spoiled ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = nullptr;
    if (!graph) return set_error(cudaErrorInvalidValue);
    *exec = new cudasim_graph_exec{graph->nodes};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (!exec) return set_error(cudaErrorInvalidValue);
    if (resolve(stream)->capture) return set_error(cudaErrorNotSupported); /* no graphs in graphs */
    std::shared_ptr<Nodes> nodes = exec->nodes;
    Operation launch;
    launch.run = [nodes] { replay(*nodes); };
    launch.poison = [nodes] {
        for (const Node &node : *nodes)
            if (node.poison) node.poison();
    };
    return submit(stream, launch);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
