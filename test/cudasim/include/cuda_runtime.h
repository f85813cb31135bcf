/* Stands in for the toolkit's header of this name when CUDA files are compiled for the CPU. */
#ifndef CUDASIM_CUDA_RUNTIME_H
#define CUDASIM_CUDA_RUNTIME_H
#include "../device/language.h"
#include "../device/runtime_api.h"
#include "../device/warp.h"
#include "../device/atomics.h"
#include "../device/intrinsics.h"
#endif
