/* Streams and events. Eager: every operation runs at once. streams=random: operations are queued
   and run in a random legal order when something waits for them, so that a missing event or
   synchronisation shows as a wrong result. */
#include "stream.h"
#include <algorithm>

namespace cudasim {

static auto &legacy_stream = *new cudasim_stream();
static auto &streams = *new std::vector<cudaStream_t>{&legacy_stream};

const std::vector<cudaStream_t> &all_streams() { return streams; }

cudaStream_t resolve(cudaStream_t stream) {
    if (!stream) return &legacy_stream;
    if (std::find(streams.begin(), streams.end(), stream) == streams.end())
        fail("%p is not a live stream", (void *)stream);
    return stream;
}

/* ---- running queued operations ---- */

long simulated_seconds;

static void finish(const Operation &operation) {
    if (operation.run) operation.run();
    if (!operation.record) return;
    operation.record->done++;
    clock_gettime(CLOCK_MONOTONIC, &operation.record->time);
    operation.record->time.tv_sec += simulated_seconds;
}

static bool runnable(cudaStream_t stream) {
    if (stream->queue.empty()) return false;
    const Operation &next = stream->queue.front();
    return !next.wait || next.wait->done >= next.wait_version;
}

/* Which of the streams that can go on does. Where the order is random, one of two streams gets far
   ahead of the other too rarely to show a missing event between distant operations. */
static cudaStream_t choose(const std::vector<cudaStream_t> &candidates) {
    switch (options().streams_random) {
    case 2: return candidates.front();
    case 3: return candidates.back();
    default: return candidates[random_number() % candidates.size()];
    }
}

/* Runs the head of a stream that can go on; false when there is none. */
static bool run_one() {
    std::vector<cudaStream_t> candidates;
    for (cudaStream_t stream : streams)
        if (runnable(stream)) candidates.push_back(stream);
    if (candidates.empty()) return false;
    cudaStream_t stream = choose(candidates);
    Operation operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    finish(operation);
    return true;
}

template <class Done> static void drain(Done done) {
    require_one_thread();
    protect_device(false);
    while (!done())
        if (!run_one()) fail("streams deadlock: they wait for an event that is never recorded");
    protect_device(true);
}

void drain_all() {
    drain([] {
        for (cudaStream_t stream : streams)
            if (!stream->queue.empty()) return false;
        return true;
    });
}

/* The legacy stream and the blocking streams wait for each other. */
static void order_with_legacy(cudaStream_t stream) {
    if (stream->nonblocking) return;
    for (cudaStream_t other : streams) {
        bool waits = stream == &legacy_stream ? !other->nonblocking : other == &legacy_stream;
        if (waits && other != stream) drain([other] { return other->queue.empty(); });
    }
}

cudaError_t submit(cudaStream_t handle, Operation operation) {
    require_one_thread();
    cudaStream_t stream = resolve(handle);
    if (stream->capture) return add_to_capture(stream, operation);
    if (cudaError_t error = forbid_legacy_in_capture(stream)) return error;
    if (!options().streams_random) {
        protect_device(false);
        finish(operation);
        protect_device(true);
        return cudaSuccess;
    }
    order_with_legacy(stream);
    if (operation.poison) operation.poison();
    stream->queue.push_back(std::move(operation));
    return cudaSuccess;
}

cudaError_t enqueue_library(cudaStream_t stream, std::function<void()> run) {
    Operation operation;
    operation.run = std::move(run);
    return submit(stream, std::move(operation));
}

} // namespace cudasim

using namespace cudasim;

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    require_one_thread();
    *stream = new cudasim_stream();
    (*stream)->nonblocking = flags & cudaStreamNonBlocking;
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags); /* priorities order nothing */
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, 0); }

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    cudaStream_t stream = resolve(handle);
    if (stream->capture) return spoil_capture(stream->capture, cudaErrorStreamCaptureUnsupported);
    if (cudaError_t error = forbid_legacy_in_capture(stream)) return error;
    drain([stream] { return stream->queue.empty(); });
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (cudaError_t error = cudaStreamSynchronize(stream)) return error;
    streams.erase(std::find(streams.begin(), streams.end(), resolve(stream)));
    delete stream;
    return cudaSuccess;
}

/* Asking makes a little progress: a loop around a query must end. */
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    cudaStream_t stream = resolve(handle);
    if (stream->capture) return spoil_capture(stream->capture, cudaErrorStreamCaptureUnsupported);
    if (stream->queue.empty()) return cudaSuccess;
    protect_device(false);
    run_one();
    protect_device(true);
    return cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
    cudaStream_t stream = resolve(handle);
    cudaError_t error;
    if (wait_in_capture(stream, event, &error)) return error;
    Operation wait;
    wait.wait = event;
    wait.wait_version = event->recorded;
    return submit(stream, wait);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    return enqueue_library(stream, [=] { function(data); });
}

cudaError_t cudaDeviceSynchronize() {
    if (cudaError_t error = forbid_in_capture(false)) return error;
    drain_all();
    return cudaSuccess;
}

cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new cudasim_event();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    drain_all();
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    cudaStream_t stream = resolve(handle);
    if (stream->capture) {
        record_in_capture(stream, event);
        return cudaSuccess;
    }
    event->capture_id = 0;
    event->recorded++;
    Operation record;
    record.record = event;
    return submit(stream, record);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->capture_id) return set_error(cudaErrorCapturedEvent);
    drain([event] { return event->done >= event->recorded; });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (event->capture_id) return set_error(cudaErrorCapturedEvent);
    if (event->done >= event->recorded) return cudaSuccess;
    protect_device(false);
    run_one();
    protect_device(true);
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    double seconds = (double)(end->time.tv_sec - start->time.tv_sec);
    double nanoseconds = (double)(end->time.tv_nsec - start->time.tv_nsec);
    *milliseconds = (float)(seconds * 1e3 + nanoseconds * 1e-6);
    return cudaSuccess;
}
