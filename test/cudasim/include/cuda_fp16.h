#include "cuda_runtime.h"
#include "../device/float16.h"
