/* What stream.cc and graph.cc share. */
#ifndef CUDASIM_STREAM_H
#define CUDASIM_STREAM_H

#include "emulator.h"
#include <deque>
#include <time.h>

namespace cudasim {
struct Capture;
}

struct cudasim_stream {
    std::deque<cudasim::Operation> queue;
    bool nonblocking;          /* takes no part in the legacy stream's ordering */
    cudasim::Capture *capture; /* operations go into its graph, not into the queue */
    std::vector<int> tail;     /* graph nodes that the next operation comes after */
};

struct cudasim_event {
    unsigned long recorded, done; /* how often; done when the two are equal */
    struct timespec time;
    unsigned capture_id;          /* 0: last recorded outside a capture */
    std::vector<int> nodes;       /* ... else what it stands for in the graph */
};

namespace cudasim {
cudaStream_t resolve(cudaStream_t stream); /* 0 is the legacy stream; checks the handle */
const std::vector<cudaStream_t> &all_streams();

cudaError_t add_to_capture(cudaStream_t stream, const Operation &operation);
void record_in_capture(cudaStream_t stream, cudaEvent_t event);
/* A wait for a captured event draws the stream into the capture. Returns whether this was one. */
bool wait_in_capture(cudaStream_t stream, cudaEvent_t event, cudaError_t *error);
/* The legacy stream waits for all blocking streams, so it must not be used while one captures. */
cudaError_t forbid_legacy_in_capture(cudaStream_t stream);
cudaError_t spoil_capture(Capture *capture, cudaError_t error);
} // namespace cudasim

#endif
